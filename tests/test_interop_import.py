"""Model directories of transformers as checkpoints, and everything that is refused."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import model_directory
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file, save_file

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.evals import targets
from wd_plasticity.interop import (
    export,
    import_,
    parameter_stream,
    transformers_config,
    transformers_files,
    transformers_weights,
)
from wd_plasticity.report import study

FIELDS = transformers_config.config_to_transformers(model_directory.model_config(), 64)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)


def request(folder, workdir, **changes):
  return import_.Request(**(dict(model=folder, workdir=workdir, name="wd0.1",
                                 weight_decay=0.1) | changes))


def run(folder, workdir, **changes) -> tuple[pathlib.Path, str]:
  lines = []
  path = import_.import_model(request(folder, workdir, **changes), lines.append)
  return path, "\n".join(lines)


def tensors_of(folder) -> dict[str, np.ndarray]:
  return dict(transformers_files.read_directory(folder)[1])


def assert_same_bits(got, wanted):
  assert got.keys() == wanted.keys()
  for name, array in wanted.items():
    assert got[name].dtype == array.dtype
    np.testing.assert_array_equal(got[name].view(np.uint8), array.view(np.uint8), err_msg=name)


@pytest.mark.parametrize("dtype, changes", [
    (np.float32, dict()),
    (ml_dtypes.bfloat16, dict(tied_head=True)),
    (np.float16, dict(rope_scaling=(8.0, 1.0, 4.0, 32.0))),
    (ml_dtypes.bfloat16, dict(family="olmo2", num_kv_heads=4)),
], ids=["llama", "tied", "scaled", "olmo2"])
def test_there_and_back(tmp_path, monkeypatch, dtype, changes):
  monkeypatch.setattr(parameter_stream, "PIECE_BYTES", 2000)  # several pieces of a tensor
  config = model_directory.model_config(**changes)
  written = model_directory.write(tmp_path / "theirs", config, dtype)
  path, _ = run(tmp_path / "theirs", tmp_path / "w")
  [target], _ = targets.find([str(tmp_path / "w")])
  params = target.stored.load_params()
  assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  expected = transformers_weights.from_transformers(written, config)
  jax.tree.map(np.testing.assert_array_equal, params,
               jax.tree.map(lambda p: np.asarray(p, np.float32), expected))
  assert dataclass_sizes(target.model) == dataclass_sizes(config)
  assert (target.weight_decay, target.seed, target.step, target.tokens) == (0.1, 0, 1, 0)
  out = export.export(path, tmp_path / "again", report=lambda line: None)
  assert_same_bits(tensors_of(out), written)
  for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
    assert (out / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
  assert (out / "model.safetensors").read_bytes() == (
      tmp_path / "theirs" / "model.safetensors").read_bytes()


def dataclass_sizes(config):
  return (config.num_layers, config.width, config.num_heads, config.num_kv_heads, config.head_dim,
          config.ffn_width, config.vocab_size, config.tied_head, config.rope_scaling,
          config.rope_theta, config.norm_eps, config.norm_position, config.qk_norm)


def test_tensors_of_two_dtypes_come_back_as_they_were(tmp_path):
  written = model_directory.write(tmp_path / "theirs", dtype=ml_dtypes.bfloat16)
  written["model.norm.weight"] = written["model.norm.weight"].astype(np.float32) + 2**-20
  save_file(written, tmp_path / "theirs" / "model.safetensors")
  path, _ = run(tmp_path / "theirs", tmp_path / "w")
  out = export.export(path, tmp_path / "again", report=lambda line: None)
  assert_same_bits(tensors_of(out), written)


@pytest.mark.parametrize("stored", ["both", "head"])
def test_a_tied_head_that_is_stored(tmp_path, stored):
  """Beside the embedding with equal numbers, or in its place: one matrix, written once."""
  config = model_directory.model_config(tied_head=True)
  wanted = model_directory.write(tmp_path / "a", config, ml_dtypes.bfloat16)
  embedding = wanted["model.embed_tokens.weight"] = wanted[
      "model.embed_tokens.weight"].astype(np.float32) + 2**-20
  tensors = wanted | {"lm_head.weight": embedding}
  if stored == "head":
    del tensors["model.embed_tokens.weight"]
  save_file(tensors, tmp_path / "a" / "model.safetensors")
  path, _ = run(tmp_path / "a", tmp_path / "w")
  [target], _ = targets.find([str(path)])
  params = target.stored.load_params()
  assert target.model.tied_head and "head" not in params
  np.testing.assert_array_equal(params["embed"]["embedding"], embedding)
  out = export.export(path, tmp_path / "b", report=lambda line: None)
  assert_same_bits(tensors_of(out), wanted)


@pytest.mark.parametrize("place", [(0, 0), (-1, -1), (150, 3)])
def test_one_number_of_a_tied_head_differs(tmp_path, monkeypatch, place):
  monkeypatch.setattr(transformers_weights, "_ROWS", 7)
  tensors = model_directory.write(tmp_path / "a", model_directory.model_config(tied_head=True))
  embedding = tensors["model.embed_tokens.weight"]
  tensors["lm_head.weight"] = embedding.copy()
  tensors["lm_head.weight"][place] *= 1.001
  with pytest.raises(UserError, match="lm_head.weight differs"):
    transformers_weights.places_in(tensors, model_directory.model_config(tied_head=True))
  save_file(tensors, tmp_path / "a" / "model.safetensors")
  with pytest.raises(UserError, match="lm_head.weight differs") as error:
    run(tmp_path / "a", tmp_path / "w")
  assert "\n" not in str(error.value) and not (tmp_path / "w").exists()
  tensors["lm_head.weight"] = embedding[:-1]
  with pytest.raises(UserError, match="lm_head.weight differs"):
    transformers_weights.places_in(tensors, model_directory.model_config(tied_head=True))


def test_a_head_that_is_neither_stored_nor_tied(tmp_path):
  tensors = model_directory.write(tmp_path / "a")
  del tensors["lm_head.weight"]
  save_file(tensors, tmp_path / "a" / "model.safetensors")
  with pytest.raises(UserError, match="lacks the tensor lm_head.weight and its config.json"):
    run(tmp_path / "a", tmp_path / "w")


def test_a_scaling_that_was_added_to_an_export_of_ours(trained, tmp_path):
  """An export has its positions in each of the places that releases of transformers read."""
  out = export.export(trained / "members" / "wd3-seed0", tmp_path / "out", report=lambda line: None)
  fields = json.loads((out / "config.json").read_text())
  for changes, message in (
      (dict(rope_scaling={"type": "linear", "factor": 4.0}), "uses rope scaling 'linear'"),
      (dict(rope_scaling={"rope_type": "dynamic", "factor": 4.0}), "uses rope scaling 'dynamic'"),
      (dict(rope_scaling=LLAMA3), "rope_scaling and rope_parameters .* contradict"),
      (dict(rope_theta=5e5), "two bases of rotary positions")):
    (out / "config.json").write_text(json.dumps(fields | changes))
    with pytest.raises(UserError, match=message):
      run(out, tmp_path / "w", weight_decay=None)
  (out / "config.json").write_text(json.dumps(fields | dict(
      rope_scaling=LLAMA3, rope_parameters=LLAMA3 | dict(rope_theta=fields["rope_theta"]))))
  path, _ = run(out, tmp_path / "w", weight_decay=None)
  [target], _ = targets.find([str(path)])
  assert target.model.rope_scaling == (8.0, 1.0, 4.0, 32.0)


def test_an_export_of_ours_comes_back_with_all_it_knows(trained, tmp_path):
  ours = trained / "members" / "wd3-seed0"
  out = export.export(ours, tmp_path / "out", report=lambda line: None)
  path, _ = run(out, tmp_path / "w", weight_decay=None)
  [before], _ = targets.find([str(ours)])
  [after], _ = targets.find([str(path)])
  jax.tree.map(np.testing.assert_array_equal, before.stored.load_params(),
               after.stored.load_params())
  for name in ("weight_decay", "seed", "step", "tokens", "sequence_length", "order_known"):
    assert getattr(after, name) == getattr(before, name)
  # As another seed or step it is not known what it has read.
  other, _ = run(out, tmp_path / "other", weight_decay=None, seed=5)
  assert before.order_known and not targets.find([str(other)])[0][0].order_known
  for name in ("tokenizer_fingerprint", "data_fingerprint", "steps", "parameters"):
    assert after.meta[name] == before.meta[name]
  assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
  again = export.export(path, tmp_path / "again", report=lambda line: None)
  assert_same_bits(tensors_of(again), tensors_of(out))
  for name in ("config.json", "generation_config.json", "tokenizer.json"):
    assert (again / name).read_bytes() == (out / name).read_bytes()


def test_the_same_import_does_nothing_and_another_is_refused(tmp_path):
  model_directory.write(tmp_path / "a")
  model_directory.write(tmp_path / "b", seed=1)
  path, said = run(tmp_path / "a", tmp_path / "w")
  assert "nothing was done" not in said
  def files():
    return sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "w").rglob("*")
                  if p.name != ".lock")
  before = files()
  again, said = run(tmp_path / "a", tmp_path / "w")
  assert again == path and "nothing was done" in said
  assert files() == before
  for changes, message in ((dict(model=tmp_path / "b"), "other weights or config.json; give"),
                           (dict(weight_decay=0.2), "other optim.weight_decay; give"),
                           (dict(seed=4), "other seed; give"),
                           (dict(tokens=5), "other tokens; give")):
    with pytest.raises(UserError, match=message):
      run(**(dict(folder=tmp_path / "a", workdir=tmp_path / "w") | {
          "folder": changes.pop("model", tmp_path / "a")} | changes))


def test_steps_of_one_member(tmp_path):
  model_directory.write(tmp_path / "a")
  model_directory.write(tmp_path / "b", seed=1)
  run(tmp_path / "b", tmp_path / "w", step=20, tokens=2000)
  run(tmp_path / "a", tmp_path / "w", step=10, tokens=1000)
  found, notes = targets.find([str(tmp_path / "w")], "all")
  assert [(t.step, t.tokens) for t in found] == [(10, 1000), (20, 2000)] and not notes
  [member] = study.read(tmp_path / "w").members
  assert (member.status, member.steps, member.tokens, member.weight_decay) == (
      "done", 20, 2000, 0.1)


def test_a_killed_import_is_begun_anew(tmp_path, monkeypatch):
  model_directory.write(tmp_path / "a")
  def fail(*_):
    raise KeyboardInterrupt
  with monkeypatch.context() as patched:
    patched.setattr(parameter_stream.ParameterWriter, "finish", fail)
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path / "a", tmp_path / "w")
  assert not list((tmp_path / "w/members/wd0.1/checkpoints").iterdir())
  path, _ = run(tmp_path / "a", tmp_path / "w")
  assert targets.find([str(path)])[0]


def test_data_of_a_configuration(tmp_path, corpus):
  model_directory.write(tmp_path / "a")
  config = default_config()
  config.data.update(source="files", train=f"{corpus}/*.txt", sequence_length=32,
                     validation_fraction=0.2, train_subset_fraction=0.2)
  run(tmp_path / "a", tmp_path / "w", config=config)
  model_directory.write(tmp_path / "b", seed=1)
  run(tmp_path / "b", tmp_path / "w", config=config, name="wd0.3", weight_decay=0.3)
  found, _ = targets.find([str(tmp_path / "w")])
  assert len({t.meta["data_fingerprint"] for t in found}) == 1
  assert {m.group for m in study.read(tmp_path / "w").members} == {""}
  assert found[0].sequence_length == 32 and len(found[0].meta["data_fingerprint"]) == 64
  assert not found[0].order_known


@pytest.mark.parametrize("changes, message", [
    (dict(attention_bias=True), "uses attention_bias=true"),
    (dict(mlp_bias=True), "uses mlp_bias=true"),
    (dict(sliding_window=4096), "uses sliding_window=4096"),
    (dict(layer_types=["full_attention", "sliding_attention"]), "uses layer_types"),
    (dict(rope_parameters={"rope_type": "linear", "factor": 2.0}), "rope scaling 'linear'"),
    (dict(rope_parameters={"rope_type": "dynamic", "factor": 2.0}), "rope scaling 'dynamic'"),
    (dict(rope_parameters={"rope_type": "yarn", "factor": 2.0}), "rope scaling 'yarn'"),
    (dict(rope_parameters=None, rope_scaling={"type": "longrope"}), "rope scaling 'longrope'"),
    (dict(rope_parameters={"full_attention": {"rope_type": "default"}}), "by layer type"),
    (dict(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}), "partial rotary"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    (dict(hidden_act="gelu"), 'hidden_act="gelu"'),
    (dict(quantization_config={"bits": 4}), "quantization_config"),
    (dict(logit_scale=0.5), "logit_scale=0.5"),
    (dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0"),
    (dict(final_logit_softcapping=30.0), "final_logit_softcapping=30.0"),
    (dict(clip_qkv=8.0), "clip_qkv=8.0"),
    (dict(embedding_multiplier=12.0), "embedding_multiplier=12.0"),
    (dict(residual_multiplier=0.2), "residual_multiplier=0.2"),
    (dict(auto_map={"AutoModel": "m.M"}), "auto_map"),
    (dict(is_causal=False), "uses is_causal=false"),
    (dict(rope_scaling={"type": "linear", "factor": 4.0}), "rope scaling 'linear'"),
    (dict(rope_scaling={"type": "dynamic", "factor": 4.0}), "rope scaling 'dynamic'"),
    (dict(rope_scaling={"factor": 4.0}), "has factor=4.0, which rope_type='default' does"),
    (dict(rope_scaling={"type": "linear", "rope_type": "default"}),
     'rope_scaling .* says rope_type="default" and type="linear"'),
    (dict(rope_scaling=LLAMA3), "rope_scaling and rope_parameters in config.json contradict"),
    (dict(rope_scaling=LLAMA3, rope_parameters=LLAMA3 | dict(factor=2.0)), "contradict each other"),
    (dict(rope_scaling=LLAMA3, rope_parameters=None, original_max_position_embeddings=16),
     "says original_max_position_embeddings=16 and within rope_scaling 32"),
    (dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}, rope_parameters=None),
     "rope_scaling .* lacks low_freq_factor"),
    (dict(rope_scaling=[2.0]), r"rope_scaling=\[2.0\] .* is not an object"),
    (dict(rope_theta=1234.0), "two bases .* rope_parameters.rope_theta=10000 and rope_theta=1234"),
    (dict(rope_theta="1e4", rope_parameters=None), 'rope_theta="1e4" .* is not a number'),
    (dict(rope_theta=None, rope_parameters=None), "rope_theta=null .* is not a number"),
    (dict(rope_theta=float("inf"), rope_parameters=None), "rope_theta=Infinity .* not a number"),
    (dict(rms_norm_eps=None), "rms_norm_eps=null .* is not a number"),
    (dict(rms_norm_eps=True), "rms_norm_eps=true .* is not a number"),
    (dict(hidden_act=None), "uses hidden_act=null"),
    (dict(is_causal=None), "uses is_causal=null"),
    (dict(tie_word_embeddings=None), "tie_word_embeddings=null .* is neither true nor false"),
    (dict(tie_word_embeddings="false"), "tie_word_embeddings=.* is neither true nor false"),
    (dict(tie_word_embeddings=True), "lm_head.weight differs from model.embed_tokens.weight"),
    (dict(num_key_value_heads=0), "num_key_value_heads=0 is not a whole number above 0"),
    (dict(head_dim=0), "head_dim=0 is not a whole number above 0"),
    (dict(head_dim=8), r"has the shape \(40, 24\) and the configuration wants \(32, 24\)"),
    (dict(vocab_size=None), "lacks a field that is needed, vocab_size"),
    (dict(max_position_embeddings="64"), "max_position_embeddings='64' is not a whole number"),
    (dict(layer_types=["full_attention"]), "num_hidden_layers=2 and has layer_types of 1"),
    (dict(layer_types=[["full_attention"]] * 2), "uses layer_types"),
    (dict(layer_types=2), "uses layer_types=2"),
    (dict(sliding_window=8, use_sliding_window=None), "uses sliding_window=8"),
    (dict(architectures=["LlamaForCausalLM", "MistralForCausalLM"]), "MistralForCausalLM, which"),
    (dict(architectures="LlamaForCausalLM"), "LlamaForCausalLM, which is not known .* in a list"),
    (dict(architectures=[["LlamaForCausalLM"]]), "which is not known"),
    (dict(mystery=3), "the field mystery=3, which is not known here .*--harmless=mystery"),
    (dict(model_type="olmo2"), "do not belong together"),
    (dict(architectures=["LlamaForSequenceClassification"]), "has no head for next tokens"),
    (dict(architectures=["MistralForCausalLM"]), "MistralForCausalLM, which is not known"),
    (dict(num_hidden_layers="2"), "num_hidden_layers='2' is not a whole number"),
    (dict(num_hidden_layers=3), "lacks the tensor model.layers.2"),
    (dict(num_hidden_layers=1), "no place for, such as model.layers.1"),
    (dict(intermediate_size=40), r"has the shape \(32, 24\) and the configuration wants \(40, 24"),
])
def test_what_this_decoder_has_not_is_refused_by_name(tmp_path, changes, message):
  model_directory.write(tmp_path / "a", **changes)
  with pytest.raises(UserError, match=message) as error:
    run(tmp_path / "a", tmp_path / "w")
  assert "\n" not in str(error.value) and not (tmp_path / "w").exists()


@pytest.mark.parametrize("changes", [
    dict(attention_bias=False, mlp_bias=False, pretraining_tp=2, use_cache=True, hidden_act="swish",
         sliding_window=None, layer_types=["full_attention"] * 2, quantization_config=None,
         logit_scale=1.0, transformers_version="4.40", bos_token_id=7, pad_token_id=None,
         attention_dropout=0.1, unheard_of=None, is_causal=True,
         original_max_position_embeddings=16),
    dict(use_sliding_window=False, sliding_window=4096),
    dict(rope_scaling={}, rope_theta=None, num_key_value_heads=2, hidden_act="silu"),
    dict(rope_scaling={"type": "default"}, rope_parameters={"rope_theta": 10_000}),
])
def test_fields_that_change_nothing_pass(tmp_path, changes):
  model_directory.write(tmp_path / "a", **changes)
  _, said = run(tmp_path / "a", tmp_path / "w")
  assert ("attention_dropout=0.1" in said) == ("attention_dropout" in changes)


def test_a_field_declared_harmless(tmp_path):
  model_directory.write(tmp_path / "a", mystery=3)
  run(tmp_path / "a", tmp_path / "w", harmless=("mystery",))


def spoil_bias(folder):
  tensors = load_file(folder / "model.safetensors")
  tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(40, np.float32)
  save_file(tensors, folder / "model.safetensors")


def spoil_vocabulary(folder):
  model_directory.write(folder, model_directory.model_config(vocab_size=258))


@pytest.mark.parametrize("spoil, changes, message", [
    (spoil_bias, {}, "no place for, such as model.layers.0.self_attn.q_proj.bias"),
    (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), {}, "damaged or cut short"),
    (lambda f: (f / "model.safetensors").unlink(), {}, "neither model.safetensors nor"),
    (lambda f: (f / "config.json").unlink(), {}, "has no config.json"),
    (lambda f: (f / "tokenizer.json").unlink(), {}, "no tokenizer that can be read.*--tokenizer"),
    (lambda f: (f / "tokenizer.json").write_text("{"), {}, "is not a tokenizer.json"),
    (lambda f: (f / "tokenizer.json").write_bytes(b"\xff"), {}, "is not a tokenizer.json"),
    (spoil_vocabulary, {}, "has 2.. tokens and the embedding .* 258 rows"),
    (shutil.rmtree, {}, "There is no directory"),
    (lambda f: None, dict(weight_decay=None), "--weight_decay=NUMBER is missing"),
    (lambda f: None, dict(weight_decay=-1.0), "--weight_decay=-1.0 must be"),
    (lambda f: None, dict(weight_decay=float("nan")), "--weight_decay=nan must be"),
    (lambda f: None, dict(step=0), "--step=0 must be at least 1"),
    (lambda f: None, dict(name="../x"), "--name=../x must be"),
    (lambda f: None, dict(tokenizer="absent.json"), "--tokenizer=absent.json is not there"),
])
def test_mistakes(tmp_path, spoil, changes, message):
  model_directory.write(tmp_path / "a")
  spoil(tmp_path / "a")
  with pytest.raises(UserError, match=message) as error:
    run(tmp_path / "a", tmp_path / "w", **changes)
  assert "\n" not in str(error.value) and not (tmp_path / "w").exists()


def test_a_member_that_was_pretrained_is_left_alone(trained, tmp_path):
  model_directory.write(tmp_path / "a")
  with pytest.raises(UserError, match="was pretrained here"):
    run(tmp_path / "a", trained, name="wd3-seed0")


def test_another_end_of_sequence(tmp_path):
  model_directory.write(tmp_path / "a")
  path = tmp_path / "a" / "tokenizer_config.json"
  path.write_text(json.dumps({"eos_token": {"content": "d", "__type": "AddedToken"}}))
  (tmp_path / "a" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
  _, said = run(tmp_path / "a", tmp_path / "w")
  [target], _ = targets.find([str(tmp_path / "w")])
  assert target.tokenizer.decode([target.tokenizer.eos_id]) == "d"
  assert "ends also at 0, 1" in said


def test_an_end_of_sequence_that_no_file_names(tmp_path):
  folder = tmp_path / "a"
  model_directory.write(folder, eos_token_id=None)
  (folder / "tokenizer_config.json").unlink()
  _, said = run(folder, tmp_path / "guessed")
  assert "the token <|endoftext|> (id 0), which is guessed by its name; to name another" in said
  path = folder / "tokenizer.json"
  path.write_text(path.read_text().replace("<|endoftext|>", "<end>"))
  with pytest.raises(UserError, match="set eos_token of tokenizer_config.json to the token that "
                                      "ends a document .its special tokens: <end>"):
    run(folder, tmp_path / "asked")
  with pytest.raises(UserError, match="set the eos_token of tokenizer_config.json beside it"):
    run(folder, tmp_path / "asked", tokenizer=str(path))  # a file alone has nobody to say it
  (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
  _, said = run(folder, tmp_path / "named", tokenizer=str(folder))
  assert "guessed" not in said


def test_a_sentencepiece_model_with_another_end(tmp_path):
  folder = tmp_path / "a"
  model_directory.write(folder)
  (folder / "tokenizer.json").unlink()
  with open(folder / "tokenizer.model", "wb") as f:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the decay of a weight"] * 9), model_writer=f, vocab_size=16,
        minloglevel=2)
  (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>"}))
  run(folder, tmp_path / "w")
  [target], _ = targets.find([str(tmp_path / "w")])
  assert target.tokenizer.eos_id == 1  # </s> is 2
  (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<x>"}))
  with pytest.raises(UserError, match="eos_token of tokenizer_config.json='<x>' is not a token of"):
    run(folder, tmp_path / "v")


def test_the_program(tmp_path):
  model_directory.write(tmp_path / "a")
  def start(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "wd_plasticity.interop.import_", *arguments], text=True,
        capture_output=True, cwd=pathlib.Path(__file__).parents[1])
  arguments = [f"--model={tmp_path}/a", f"--workdir={tmp_path}/w", "--name=x"]
  wrong = start(*arguments)
  assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
  assert "error: --weight_decay=NUMBER is missing" in wrong.stderr
  done = start(*arguments, "--weight_decay=0.1")
  assert done.returncode == 0, done.stderr
  assert "x/1: 21 tensors" in done.stdout
