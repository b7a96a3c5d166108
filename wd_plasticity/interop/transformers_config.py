"""Sizes of this decoder as a config.json of transformers, and back.

A field of a config.json is used, harmless (it does not enter the computation of logits), or
must have the value at which the computation is that of this decoder. Any other is refused
by name: an unknown field could be one that changes the computation.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from wd_plasticity.errors import UserError
from wd_plasticity.models.config import ModelConfig

MODEL_TYPES = ("llama", "olmo2")
CAUSAL = {"llama": "LlamaForCausalLM", "olmo2": "Olmo2ForCausalLM"}

# `ModelConfig.rope_scaling` in transformers' words, for rope_type "llama3".
_LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor",
                   "original_max_position_embeddings")

_USED = frozenset("""
model_type architectures vocab_size hidden_size intermediate_size num_hidden_layers
num_attention_heads num_key_value_heads head_dim rms_norm_eps tie_word_embeddings rope_theta
rope_scaling rope_parameters max_position_embeddings
""".split())

# What transformers or its users write beside the computation: how it is loaded, trained,
# cached and generated from. `pretraining_tp` cuts one product into parts that are added.
_HARMLESS = frozenset("""
torch_dtype dtype transformers_version _name_or_path _commit_hash use_cache initializer_range
bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
attention_dropout hidden_dropout resid_pdrop embd_pdrop pretraining_tp
_attn_implementation _attn_implementation_autoset attn_implementation _experts_implementation
output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
use_return_dict torchscript use_bfloat16 gradient_checkpointing chunk_size_feed_forward
id2label label2id num_labels problem_type finetuning_task tokenizer_class task_specific_params
prefix tf_legacy_loss is_decoder keys_to_ignore_at_inference
do_sample temperature top_k top_p typical_p epsilon_cutoff min_length max_length
max_new_tokens num_beams num_beam_groups diversity_penalty early_stopping length_penalty
repetition_penalty encoder_no_repeat_ngram_size no_repeat_ngram_size num_return_sequences
begin_suppress_tokens suppress_tokens bad_words_ids forced_bos_token_id forced_eos_token_id
remove_invalid_values exponential_decay_length_penalty
unsloth_fixed unsloth_version ignore_keys_at_rope_validation
""".split())

# Fields that change the computation, and the values (beside null) at which they do not.
_NEUTRAL: dict[str, tuple] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "hidden_act": ("silu", "swish"),  # two names of one function
    "hidden_activation": ("silu", "swish"),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "clip_qkv": (),
    "quantization_config": (),
    "auto_map": (),  # code that comes with the model
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}


def family(config: ModelConfig) -> str:
  """'llama' or 'olmo2', transformers' `model_type` of this decoder.

  Raises:
    UserError: transformers has neither.
  """
  kind = (config.norm_position, config.qk_norm)
  if kind == ("pre", False):
    return "llama"
  if kind == ("post", True):
    return "olmo2"
  raise UserError(
      f"model.norm_position={kind[0]!r} with model.qk_norm={kind[1]} is neither Llama (pre, False) "
      "nor OLMo-2 (post, True), so transformers has no such model.")


def architecture(config: ModelConfig) -> str:
  """The class of transformers that is this decoder.

  Raises:
    UserError: as `family`.
  """
  return CAUSAL[family(config)]


def check_exportable(config: ModelConfig) -> None:
  """Refuses a decoder that transformers cannot open.

  Raises:
    UserError: as `family`, or the sizes are none that transformers' class takes.
  """
  if family(config) == "llama" and config.width % config.num_heads:
    raise UserError(f"transformers' Llama wants a hidden size that is a multiple of the number of "
                    f"heads, and this model has model.width={config.width} and "
                    f"model.num_heads={config.num_heads}, so it cannot be exported.")


def config_to_transformers(config: ModelConfig, length: int) -> dict[str, Any]:
  """The fields of transformers' config.json that describe this decoder.

  Args:
    config: our sizes.
    length: the longest sequence, `max_position_embeddings`.
  """
  rope: dict[str, Any] = {"rope_type": "default"}
  if config.rope_scaling:
    numbers = dict(zip(_LLAMA3_SCALING, config.rope_scaling, strict=True))
    rope = {"rope_type": "llama3", **numbers,
            "original_max_position_embeddings": int(config.rope_scaling[-1])}
  return {
      "model_type": family(config),
      "architectures": [architecture(config)],
      "vocab_size": config.vocab_size,
      "hidden_size": config.width,
      "intermediate_size": config.ffn_width,
      "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads,
      "num_key_value_heads": config.num_kv_heads,
      "head_dim": config.head_dim,
      "max_position_embeddings": length,
      "rms_norm_eps": config.norm_eps,
      "hidden_act": "silu",
      "attention_bias": False,
      "tie_word_embeddings": config.tied_head,
      # transformers before and since version 5
      "rope_theta": config.rope_theta,
      "rope_scaling": rope if config.rope_scaling else None,
      "rope_parameters": {**rope, "rope_theta": config.rope_theta},
  }


def section_from_transformers(fields: Mapping[str, Any],
                              harmless: Iterable[str] = ()) -> dict[str, Any]:
  """Fields of our `model` section that describe a transformers config.json.

  Args:
    fields: the parsed config.json of a Llama or Olmo2 model.
    harmless: fields unknown here that are known not to enter the computation.

  Returns:
    The fields that sizes determine, for `config.model.update(...)`.

  Raises:
    UserError: the model is of another type, uses what this decoder has not (biases, a
      sliding window, another scaling of rotary positions than that of Llama 3.1, ...), or
      has a field that is not known here.
  """
  model_type = fields.get("model_type")
  if model_type not in MODEL_TYPES:
    raise UserError(f"model_type={model_type!r} is not known here; it can be llama or olmo2.")
  rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
  if not isinstance(rope, Mapping):
    raise UserError(f"The rotary positions {rope!r} in config.json are not an object; copy it "
                    "again.")
  scaling = rope.get("rope_type", rope.get("type", "default"))
  _refuse(fields, rope, scaling, model_type)
  _refuse_unknown(fields, model_type, frozenset(harmless))
  try:
    return _section(fields, model_type, rope, scaling)
  except (KeyError, TypeError, ValueError) as e:
    raise UserError(f"The config.json of this {model_type} model lacks a field or has a wrong one "
                    f"({type(e).__name__}: {e}); copy it again.") from e


def _refuse(fields: Mapping, rope: Mapping, scaling: Any, model_type: str) -> None:
  """Raises for what is known to change the computation."""
  window = fields.get("sliding_window") if fields.get("use_sliding_window", True) else None
  layer_types = fields.get("layer_types") or ()
  used = {name: value for name, allowed in _NEUTRAL.items()
          if (value := fields.get(name)) is not None and value not in allowed}
  if scaling not in ("default", "llama3"):
    used[f"rope scaling {scaling!r}"] = None
  if any(isinstance(value, Mapping) for value in rope.values()):
    used["rope_parameters by layer type"] = None
  if rope.get("partial_rotary_factor", 1) != 1:
    used["partial rotary positions"] = None
  if window is not None:
    used["sliding_window"] = window
  if set(layer_types) - {"full_attention"}:
    used["layer_types"] = sorted(set(map(str, layer_types)))
  for name, value in used.items():
    shown = "" if value is None else f"={_short(value)}"
    raise UserError(f"This {model_type} model uses {name}{shown}, which the decoder here does not "
                    "have.")


def _refuse_unknown(fields: Mapping, model_type: str, harmless: frozenset[str]) -> None:
  known = _USED | _HARMLESS | set(_NEUTRAL) | harmless | {
      "sliding_window", "use_sliding_window", "layer_types"}
  for name, value in fields.items():
    if name not in known and value not in (None, False, "", [], {}):
      raise UserError(
          f"The config.json of this {model_type} model has the field {name}={_short(value)}, which "
          "is not known here and could change the computation; if it does not, remove it from a "
          f"copy of the file or import with --harmless={name}.")


def _section(fields, model_type, rope, scaling) -> dict[str, Any]:
  def whole(name, default=None):
    value = fields[name] if default is None else fields.get(name) or default
    if not isinstance(value, int) or isinstance(value, bool):
      raise TypeError(f"{name}={value!r} is not a whole number")
    return value

  heads = whole("num_attention_heads")
  theta = rope.get("rope_theta")
  theta = fields.get("rope_theta") if theta is None else theta
  epsilon = fields.get("rms_norm_eps")
  if epsilon is None:
    epsilon = 1e-6 if model_type == "llama" else 1e-5
  return dict(
      num_layers=whole("num_hidden_layers"),
      width=whole("hidden_size"),
      num_heads=heads,
      num_kv_heads=whole("num_key_value_heads", heads),
      head_dim=whole("head_dim", 0) if fields.get("head_dim") else 0,
      ffn_width=whole("intermediate_size"),
      vocab_size=whole("vocab_size"),
      norm_position="pre" if model_type == "llama" else "post",
      qk_norm=model_type == "olmo2",
      rope_theta=float(10_000.0 if theta is None else theta),
      norm_eps=float(epsilon),
      tied_head=bool(fields.get("tie_word_embeddings", False)),
      rope_scaling=tuple(float(rope[name]) for name in _LLAMA3_SCALING)
      if scaling == "llama3" else (),
  )


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False, default=str)
  return text if len(text) <= 60 else text[:57] + "..."
