"""Model directories whose fields and tensors agree, contradict each other or are absent.

Each is read as transformers reads it, which its logits tell, or refused by the name of what is
wrong. What is refused may still be opened by transformers: where its releases differ, or where
it goes on with random numbers or passes over what a user has written.
"""

import itertools
import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity suite needs torch")
transformers = pytest.importorskip("transformers", reason="the parity suite needs transformers")

from safetensors.numpy import save_file  # noqa: E402

from wd_plasticity.config import default_config  # noqa: E402
from wd_plasticity.errors import UserError  # noqa: E402
from wd_plasticity.interop import (  # noqa: E402
    transformers_config,
    transformers_files,
    transformers_weights,
)
from wd_plasticity.models import decoder  # noqa: E402
from wd_plasticity.models.config import ModelConfig  # noqa: E402

ABSENT = object()
# Positions reach beyond those that the model is made for, where scalings begin to differ.
LENGTH, LONGEST = 24, 16
LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=37, hidden_size=32,
    intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=LONGEST, rms_norm_eps=1e-5, hidden_act="silu", rope_theta=400.0,
    tie_word_embeddings=False)
OLMO = LLAMA | dict(architectures=["Olmo2ForCausalLM"], model_type="olmo2")
THETA = dict(rope_theta=400.0)
PLAIN = dict(rope_type="default")
SCALED = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8)
LINEAR = dict(rope_type="linear", factor=4.0)
READ = ""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def old(name, **rope):
  """A dict of transformers before 4.43, which said `type`."""
  return {name: {"type": rope.pop("rope_type"), **rope}}


# Changed fields, tensors that are taken away ("-head") or tell of themselves ("=head"), and READ
# or the words of the refusal.
CASES = {
    # Where rotary positions stand, and what they say.
    "theta": ({}, "", READ),
    "no_theta": (dict(rope_theta=ABSENT), "", READ),
    "whole_theta": (dict(rope_theta=500), "", READ),
    "null_scaling": (dict(rope_scaling=None), "", READ),
    "empty_scaling": (dict(rope_scaling={}), "", READ),
    "null_parameters": (dict(rope_parameters=None), "", READ),
    "plain_scaling": (dict(rope_scaling=PLAIN), "", READ),
    "plain_parameters": (dict(rope_parameters=PLAIN), "", READ),
    "theta_of_parameters": (dict(rope_theta=ABSENT, rope_parameters=PLAIN | THETA), "", READ),
    "theta_of_parameters_alone": (dict(rope_theta=ABSENT, rope_parameters=THETA), "", READ),
    "theta_of_scaling": (dict(rope_theta=ABSENT, rope_scaling=PLAIN | THETA), "", READ),
    "null_theta_beside_parameters": (
        dict(rope_theta=None, rope_parameters=PLAIN | THETA), "", READ),
    "theta_twice": (dict(rope_parameters=PLAIN | THETA), "", READ),
    "llama3": (dict(rope_scaling=SCALED), "", READ),
    "llama3_by_type": (old("rope_scaling", **SCALED), "", READ),
    "llama3_by_both": (dict(rope_scaling=SCALED | dict(type="llama3")), "", READ),
    "llama3_without_theta": (dict(rope_theta=ABSENT, rope_scaling=SCALED), "", READ),
    "llama3_parameters": (dict(rope_theta=ABSENT, rope_parameters=SCALED | THETA), "", READ),
    "llama3_twice": (dict(rope_scaling=SCALED, rope_parameters=SCALED | THETA), "", READ),
    "llama3_far": (dict(rope_scaling=SCALED | dict(factor=32, high_freq_factor=2.0)), "", READ),
    "llama3_length_twice": (
        dict(rope_scaling=SCALED, original_max_position_embeddings=8), "", READ),
    "plain_with_a_length": (dict(original_max_position_embeddings=8), "", READ),
    "whole_partial": (dict(partial_rotary_factor=1.0), "", READ),
    "thetas_differ": (
        dict(rope_parameters=PLAIN | dict(rope_theta=1e4)), "", "two bases of rotary positions"),
    "thetas_differ_in_scaling": (
        dict(rope_scaling=SCALED | dict(rope_theta=1e4)), "", "two bases of rotary positions"),
    "theta_where_none_is_read": (
        dict(rope_theta=ABSENT, rope_scaling=SCALED, rope_parameters=SCALED | THETA), "",
        "its default=10000 and rope_parameters.rope_theta=400"),
    "linear": (dict(rope_scaling=LINEAR), "", "rope scaling 'linear'"),
    "linear_by_type": (old("rope_scaling", **LINEAR), "", "rope scaling 'linear'"),
    "linear_beside_plain": (
        dict(rope_scaling=LINEAR, rope_parameters=PLAIN | THETA), "", "rope scaling 'linear'"),
    "linear_parameters": (dict(rope_parameters=LINEAR | THETA), "", "rope scaling 'linear'"),
    "plain_beside_linear": (
        dict(rope_scaling=PLAIN, rope_parameters=LINEAR | THETA), "", "rope scaling 'linear'"),
    "dynamic": (dict(rope_scaling=LINEAR | dict(rope_type="dynamic")), "", "scaling 'dynamic'"),
    "dynamic_beside_plain": (
        dict(rope_scaling=dict(type="dynamic", factor=2.0), rope_parameters=PLAIN | THETA), "",
        "rope scaling 'dynamic'"),
    "yarn": (dict(rope_scaling=dict(rope_type="yarn", factor=4.0,
                                    original_max_position_embeddings=4)), "", "scaling 'yarn'"),
    "longrope": (dict(rope_scaling=dict(
        rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4,
        original_max_position_embeddings=8)), "", "rope scaling 'longrope'"),
    "proportional": (dict(rope_parameters=dict(
        rope_type="proportional", partial_rotary_factor=0.5)), "", "scaling 'proportional'"),
    "factor_without_type": (dict(rope_scaling=dict(factor=4.0)), "", "has factor=4.0, which"),
    "factor_of_plain": (dict(rope_parameters=PLAIN | dict(factor=4.0)), "", "has factor=4.0, "),
    "more_than_llama3": (
        dict(rope_scaling=SCALED | dict(attention_factor=2.0)), "", "has attention_factor=2.0"),
    "plain_beside_llama3": (dict(rope_scaling=PLAIN, rope_parameters=SCALED | THETA), "",
                            "rope_scaling and rope_parameters .* contradict"),
    "llama3_beside_plain": (dict(rope_scaling=SCALED, rope_parameters=PLAIN | THETA), "",
                            "rope_scaling and rope_parameters .* contradict"),
    "two_factors": (
        dict(rope_scaling=SCALED, rope_parameters=SCALED | THETA | dict(factor=4.0)), "",
        "rope_scaling and rope_parameters .* contradict"),
    "type_and_rope_type": (
        dict(rope_scaling=SCALED | dict(type="linear")), "",
        'rope_type="llama3" and type="linear"'),
    "plain_type_and_rope_type": (
        dict(rope_scaling=dict(type="linear", rope_type="default", factor=4.0)), "",
        'rope_type="default" and type="linear"'),
    "null_rope_type": (dict(rope_parameters=dict(rope_type=None)), "", "rope scaling None"),
    "two_lengths": (dict(rope_scaling=SCALED, original_max_position_embeddings=4), "",
                    "original_max_position_embeddings=4 and within rope_scaling 8"),
    "no_length": (dict(rope_scaling={k: SCALED[k] for k in list(SCALED)[:-1]}), "",
                  "lacks original_max_position_embeddings"),
    "factor_as_text": (dict(rope_scaling=SCALED | dict(factor="8.0")), "", "is not a number"),
    "theta_as_text": (dict(rope_theta="400.0"), "", 'rope_theta="400.0" .* is not a number'),
    "null_theta": (dict(rope_theta=None), "", "rope_theta=null .* is not a number"),
    "null_theta_within": (
        dict(rope_parameters=dict(rope_type="default", rope_theta=None)), "",
        "rope_parameters.rope_theta=null .* is not a number"),
    "partial": (dict(partial_rotary_factor=0.5), "", "partial_rotary_factor=0.5"),
    "partial_llama3": (
        dict(rope_scaling=SCALED | dict(partial_rotary_factor=0.5)), "", "partial rotary"),
    "by_layer": (dict(rope_parameters=dict(full_attention=PLAIN | THETA)), "", "by layer type"),
    "by_layer_of_types": (
        dict(layer_types=["full_attention"] * 2,
             rope_scaling=dict(full_attention=LINEAR)), "", "by layer type"),
    "scaling_is_a_list": (dict(rope_scaling=["linear", 4]), "", "rope_scaling=.* not an object"),
    # Heads that are tied, or are not.
    "tied": (dict(tie_word_embeddings=True), "-head", READ),
    "tied_with_a_copy": (dict(tie_word_embeddings=True), "=head", READ),
    "tied_by_the_head": (dict(tie_word_embeddings=True), "=head -embedding", READ),
    "tied_with_its_own": (dict(tie_word_embeddings=True), "", "lm_head.weight differs from"),
    "tied_with_one_number_of_its_own": (
        dict(tie_word_embeddings=True), "~head", "lm_head.weight differs from"),
    "equal_but_not_tied": ({}, "=head", READ),
    "untied_by_absence": (dict(tie_word_embeddings=ABSENT), "", READ),
    "no_head_and_nothing_said": (dict(tie_word_embeddings=ABSENT), "-head", "lacks .* lm_head"),
    "untied_without_head": ({}, "-head", "does not say tie_word_embeddings=true"),
    "untied_without_embedding": ({}, "-embedding", "lacks the tensor model.embed_tokens"),
    "tied_without_both": (dict(tie_word_embeddings=True), "-head -embedding", "lacks the tensor"),
    "null_tied": (dict(tie_word_embeddings=None), "", "neither true nor false"),
    "tied_as_text": (dict(tie_word_embeddings="false"), "", "neither true nor false"),
    # Sizes, by absence and against the tensors.
    "one_group_each": (dict(num_key_value_heads=4), "", READ),
    "no_groups_named": (dict(num_key_value_heads=ABSENT), "", READ),
    "null_groups": (dict(num_key_value_heads=None), "", READ),
    "null_head_dim": (dict(head_dim=None), "", READ),
    "head_dim": (dict(head_dim=6), "", READ),
    "epsilon_by_absence": (dict(rms_norm_eps=ABSENT), "", READ),
    "large_epsilon": (dict(rms_norm_eps=0.3), "", READ),
    "no_epsilon": (dict(rms_norm_eps=0.0), "", "rms_norm_eps=0.0 .* is not a number above 0"),
    "no_groups": (dict(num_key_value_heads=0), "", "num_key_value_heads=0 is not a whole number"),
    "no_head_dim": (dict(head_dim=0), "", "head_dim=0 is not a whole number"),
    "epsilon_as_text": (dict(rms_norm_eps="1e-5"), "", 'rms_norm_eps="1e-5" .* is not a number'),
    "null_epsilon": (dict(rms_norm_eps=None), "", "rms_norm_eps=null .* is not a number"),
    "padded_embedding": ({}, "+rows", r"embed_tokens.weight has the shape \(40, 32\)"),
    "length_as_text": (dict(max_position_embeddings="16"), "", "max_position_embeddings='16'"),
    # What this decoder does not have, and names of what it has.
    "swish": (dict(hidden_act="swish"), "", READ),
    "gelu": (dict(hidden_act="gelu"), "", 'hidden_act="gelu"'),
    "null_activation": (dict(hidden_act=None), "", "hidden_act=null"),
    "bias": (dict(attention_bias=True), "", "attention_bias=true"),
    "bias_of_tensors": ({}, "+bias", "no place for, such as .*q_proj.bias"),
    "mlp_bias": (dict(mlp_bias=True), "", "mlp_bias=true"),
    "stored_frequencies": ({}, "+inv_freq", READ),
    "full_layer_types": (dict(layer_types=["full_attention"] * 2), "", READ),
    "too_many_layer_types": (dict(layer_types=["full_attention"] * 3), "", "of 3 layers"),
    "sliding_layer_types": (
        dict(layer_types=["full_attention", "sliding_attention"], sliding_window=4), "",
        "sliding_window=4"),
    "window": (dict(sliding_window=4), "", "sliding_window=4"),
    "window_not_used": (dict(sliding_window=4, use_sliding_window=False), "", READ),
    "window_perhaps_used": (dict(sliding_window=4, use_sliding_window=None), "",
                            "sliding_window=4"),
    "both_ways": (dict(is_causal=False), "", "is_causal=false"),
    "both_ways_by_null": (dict(is_causal=None), "", "is_causal=null"),
    "causal": (dict(is_causal=True), "", READ),
    "tensor_parallel": (dict(pretraining_tp=2), "", READ),
    "clipped": (dict(clip_qkv=0.5), "", "clip_qkv=0.5"),
    "scaled_logits": (dict(logits_scaling=8.0), "", "logits_scaling=8.0"),
    "dtypes_differ": (dict(torch_dtype="bfloat16", dtype="float32"), "", READ),
    "another_architecture": (dict(architectures=["MistralForCausalLM"]), "", "MistralForCausalLM"),
    "two_architectures": (
        dict(architectures=["LlamaForCausalLM", "MistralForCausalLM"]), "", "MistralForCausalLM"),
    "another_type": (dict(model_type="mistral"), "", "model_type='mistral'"),
}
# Whatever holds for Llama and is no matter of its names holds for OLMo-2.
FOR_OLMO = ("theta", "no_theta", "llama3", "llama3_parameters", "theta_of_parameters",
            "thetas_differ", "linear_beside_plain", "tied", "tied_with_a_copy", "tied_by_the_head",
            "tied_with_its_own", "untied_by_absence", "no_groups_named", "head_dim",
            "epsilon_by_absence", "large_epsilon", "swish", "both_ways", "clipped")
GRID = [("llama", name) for name in CASES] + [("olmo2", name) for name in FOR_OLMO]


def changed(fields, changes):
  return {name: value for name, value in (fields | changes).items() if value is not ABSENT}


def tensors_of(fields, spoil):
  """Weights far from their initial values, of the sizes that transformers takes."""
  def size(name, default):
    value = fields.get(name)
    return value if isinstance(value, int) and value > 0 else default
  heads = fields["num_attention_heads"]
  shape = dict(num_layers=2, width=32, num_heads=heads, ffn_width=24, vocab_size=37,
               num_kv_heads=size("num_key_value_heads", heads), head_dim=size("head_dim", 8))
  section = default_config().model
  olmo = fields["model_type"] == "olmo2"
  section.update(norm_position="post" if olmo else "pre", qk_norm=olmo, tied_head=False, **shape)
  rng = np.random.default_rng(0)
  tensors = {p.tensor: (rng.normal(size=p.shape) * 0.3 + ("norm" in p.tensor)).astype(np.float32)
             for p in transformers_weights.places(ModelConfig.from_section(section, 0))}
  for what in spoil.split():
    if what in ("=head", "~head"):
      tensors[HEAD] = tensors[EMBEDDING].copy()
      tensors[HEAD][-1, -1] += what == "~head"
    elif what == "+rows":
      tensors[EMBEDDING] = np.concatenate([tensors[EMBEDDING], np.ones((3, 32), np.float32)])
    elif what == "+bias":
      tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(32, np.float32)
    elif what == "+inv_freq":  # of another base and in a dtype that is not read
      tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.full(4, 0.5)
    else:
      del tensors[dict(head=HEAD, embedding=EMBEDDING)[what.removeprefix("-")]]
  return tensors


def write(folder, fields, tensors):
  (folder / "config.json").write_text(json.dumps(fields))
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


TOKENS = np.random.default_rng(1).integers(37, size=(2, LENGTH)).astype(np.int32)


def our_logits(folder):
  fields, tensors = transformers_files.read_directory(folder)
  section = default_config().model
  section.update(transformers_config.section_from_transformers(fields))
  config = ModelConfig.from_section(section, 0)
  params = transformers_weights.from_transformers(tensors, config)
  with jax.disable_jit():  # one program for each would cost more than its numbers
    return np.asarray(decoder.logits(params, config, TOKENS))


def their_logits(folder):
  """None where transformers does not open it, or fills tensors with random numbers."""
  try:
    model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    if loaded["missing_keys"] or loaded["mismatched_keys"]:
      return None
    with torch.no_grad():
      return model.eval()(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
  except Exception:  # of many classes
    return None


def outcome(folder):
  """Our logits, or the sentence of the refusal."""
  try:
    return our_logits(folder)
  except UserError as e:
    return str(e)


@pytest.mark.parametrize("family, name", GRID, ids=[f"{f}-{n}" for f, n in GRID])
def test_read_as_transformers_reads_it_or_refused_by_name(tmp_path, family, name):
  changes, spoil, words = CASES[name]
  fields = changed(LLAMA if family == "llama" else OLMO, changes)
  write(tmp_path, fields, tensors_of(fields, spoil))
  if words:
    with pytest.raises(UserError, match=words) as error:
      our_logits(tmp_path)
    assert "\n" not in str(error.value)
    return
  theirs = their_logits(tmp_path)
  assert theirs.std() > 0.3
  np.testing.assert_allclose(our_logits(tmp_path), theirs, atol=1e-4)


def test_rotary_positions_in_three_places(tmp_path):
  """Every way in which three places can speak: none is read otherwise than transformers does."""
  thetas = (ABSENT, None, 400.0, 1e4)
  scalings = (ABSENT, PLAIN, PLAIN | THETA, SCALED, SCALED | THETA, LINEAR, dict(factor=4.0))
  tensors = tensors_of(LLAMA, "")
  read, contradictions = 0, 0
  for theta, scaling, parameters in itertools.product(thetas, scalings, scalings):
    fields = changed(LLAMA, dict(rope_theta=theta, rope_scaling=scaling,
                                 rope_parameters=parameters))
    write(tmp_path, fields, tensors)
    ours = outcome(tmp_path)
    if isinstance(ours, str):
      assert "rope" in ours and "\n" not in ours
      contradictions += 1
    else:
      read += 1
      np.testing.assert_allclose(ours, their_logits(tmp_path), atol=1e-4, err_msg=str(fields))
  print(f"\n{read} read, {contradictions} refused")
  assert read > 40
