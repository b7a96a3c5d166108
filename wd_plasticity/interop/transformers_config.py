"""Sizes of this decoder as a config.json of transformers, and back.

A field of a config.json is used, harmless (it does not enter the computation of logits), or
must have the value at which the computation is that of this decoder. Any other is refused
by name: an unknown field could be one that changes the computation. Fields that contradict
each other are refused too, since releases of transformers differ in which they believe.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from wd_plasticity.errors import UserError
from wd_plasticity.models.config import ModelConfig

MODEL_TYPES = ("llama", "olmo2")
CAUSAL = {"llama": "LlamaForCausalLM", "olmo2": "Olmo2ForCausalLM"}
_TYPE_OF = {"LlamaForCausalLM": "llama", "LlamaForSequenceClassification": "llama",
            "Olmo2ForCausalLM": "olmo2"}
_LARGEST = 1 << 31  # no size of a model reaches it
_LENGTH, _THETA = 2048, 10_000.0  # max_position_embeddings and rope_theta where they are absent

# `ModelConfig.rope_scaling` in transformers' words, for rope_type "llama3".
_LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor",
                   "original_max_position_embeddings")

# Where rotary positions stand beside `rope_theta`: before and since transformers 5, which
# believes the first that is there.
_ROPE_PLACES = ("rope_scaling", "rope_parameters")

_USED = frozenset("""
model_type architectures vocab_size hidden_size intermediate_size num_hidden_layers
num_attention_heads num_key_value_heads head_dim rms_norm_eps tie_word_embeddings rope_theta
rope_scaling rope_parameters max_position_embeddings original_max_position_embeddings
sliding_window use_sliding_window layer_types
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
    "is_causal": (True,),
}
_NULL_COUNTS = ("hidden_act", "is_causal")  # there, null is not as if the field were absent


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
    original = config.rope_scaling[-1]
    rope = {"rope_type": "llama3", **numbers, "original_max_position_embeddings":
            int(original) if original.is_integer() else original}
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
      sliding window, another scaling of rotary positions than that of Llama 3.1, ...), has a
      field that is not known here, or fields that contradict each other.
  """
  model_type = fields.get("model_type")
  if model_type not in MODEL_TYPES:
    raise UserError(f"model_type={model_type!r} is not known here; it can be llama or olmo2.")
  for architecture in fields.get("architectures") or ():
    if _TYPE_OF.get(str(architecture)) != model_type:
      raise UserError(f"The config.json says model_type={model_type!r} and the architecture "
                      f"{architecture}, which do not belong together.")
  _refuse(fields, model_type)
  _refuse_unknown(fields, model_type, frozenset(harmless))
  theta, scaling = _rope(fields, model_type)
  heads = _whole(fields, "num_attention_heads")
  _whole(fields, "max_position_embeddings", _LENGTH)
  return dict(
      num_layers=_whole(fields, "num_hidden_layers"),
      width=_whole(fields, "hidden_size"),
      num_heads=heads,
      num_kv_heads=_whole(fields, "num_key_value_heads", heads),
      head_dim=_whole(fields, "head_dim", 0),
      ffn_width=_whole(fields, "intermediate_size"),
      vocab_size=_whole(fields, "vocab_size"),
      norm_position="pre" if model_type == "llama" else "post",
      qk_norm=model_type == "olmo2",
      rope_theta=theta,
      norm_eps=_number("rms_norm_eps", fields.get(
          "rms_norm_eps", 1e-6 if model_type == "llama" else 1e-5)),
      tied_head=_tied(fields),
      rope_scaling=scaling,
  )


def _refuse(fields: Mapping, model_type: str) -> None:
  """Raises for what is known to change the computation."""
  for name, allowed in _NEUTRAL.items():
    value = fields.get(name)
    null_counts = name in fields and name in _NULL_COUNTS
    if (value is not None or null_counts) and value not in allowed:
      _not_here(model_type, f"{name}={_short(value)}")
  window = fields.get("sliding_window")
  if window is not None and fields.get("use_sliding_window", True) is not False:
    _not_here(model_type, f"sliding_window={_short(window)}")
  layers, types = fields.get("num_hidden_layers"), fields.get("layer_types")
  if types is not None and (not isinstance(types, list) or
                            any(kind != "full_attention" for kind in types)):
    _not_here(model_type, f"layer_types={_short(types)}")
  if types is not None and len(types) != layers:
    raise UserError(f"The config.json says num_hidden_layers={_short(layers)} and has layer_types "
                    f"of {len(types)} layers; copy it again.")


def _refuse_unknown(fields: Mapping, model_type: str, harmless: frozenset[str]) -> None:
  known = _USED | _HARMLESS | set(_NEUTRAL) | harmless
  for name, value in fields.items():
    if name not in known and value not in (None, False, "", [], {}):
      raise UserError(
          f"The config.json of this {model_type} model has the field {name}={_short(value)}, which "
          "is not known here and could change the computation; if it does not, remove it from a "
          f"copy of the file or import with --harmless={name}.")


def _rope(fields: Mapping, model_type: str) -> tuple[float, tuple[float, ...]]:
  """`ModelConfig.rope_theta` and `rope_scaling`, on which all places must agree."""
  given = {name: fields[name] for name in _ROPE_PLACES if fields.get(name) not in (None, {})}
  scalings = {name: _scaling(name, rope, model_type) for name, rope in given.items()}
  if len(set(scalings.values())) > 1:
    raise UserError(
        "rope_scaling and rope_parameters in config.json contradict each other, and transformers "
        "4 and 5 differ in which they read; keep the right one in a copy of the file.")
  scaling = next(iter(scalings.values()), ())
  first = next(iter(given), None)
  if first and "rope_theta" in given[first]:  # in the order of transformers 5
    place, theta = f"{first}.rope_theta", given[first]["rope_theta"]
  elif "rope_theta" in fields:
    place, theta = "rope_theta", fields["rope_theta"]
  else:
    place, theta = "its default", _THETA
  theta = _number(place, theta)
  others = {f"{name}.rope_theta": rope.get("rope_theta") for name, rope in given.items()}
  for other, value in ({"rope_theta": fields.get("rope_theta")} | others).items():
    if value is not None and _number(other, value) != theta:
      raise UserError(f"The config.json has two bases of rotary positions, {place}={theta:g} and "
                      f"{other}={value:g}; keep the right one in a copy of the file.")
  original = fields.get("original_max_position_embeddings")
  if scaling and original not in (None, scaling[-1]):
    raise UserError(f"The config.json says original_max_position_embeddings={_short(original)} and "
                    f"within {first} {scaling[-1]:g}; keep the right one in a copy of "
                    "the file.")
  return theta, scaling


def _scaling(name: str, rope: Any, model_type: str) -> tuple[float, ...]:
  """`ModelConfig.rope_scaling` of one place; raises for what this decoder does not have."""
  if not isinstance(rope, Mapping):
    raise UserError(f"{name}={_short(rope)} in config.json is not an object; copy it again.")
  kind = rope.get("rope_type", rope.get("type", "default"))
  if rope.get("type", kind) not in (None, kind):
    raise UserError(f"{name} in config.json says rope_type={_short(kind)} and "
                    f"type={_short(rope['type'])}; keep the right one in a copy of the file.")
  if any(isinstance(value, Mapping) for value in rope.values()):
    _not_here(model_type, f"{name} by layer type")
  if kind not in ("default", "llama3"):
    _not_here(model_type, f"rope scaling {kind!r}")
  if rope.get("partial_rotary_factor", 1) != 1:
    _not_here(model_type, "partial rotary positions")
  used = _LLAMA3_SCALING if kind == "llama3" else ()
  for key, value in rope.items():
    if value is not None and key not in ("rope_type", "type", "rope_theta",
                                         "partial_rotary_factor", *used):
      raise UserError(f"{name} in config.json has {key}={_short(value)}, which rope_type={kind!r} "
                      "does not use; name the rope_type that is meant, or remove it from a copy of "
                      "the file.")
  if lacking := [key for key in used if rope.get(key) is None]:
    raise UserError(f"{name} in config.json lacks {lacking[0]}, which rope_type={kind!r} needs; "
                    "copy it again.")
  return tuple(_number(f"{name}.{key}", rope[key]) for key in used)


def _not_here(model_type: str, what: str) -> NoReturn:
  raise UserError(f"This {model_type} model uses {what}, which the decoder here does not have; "
                  "give one without.")


def _whole(fields: Mapping, name: str, default: int | None = None) -> int:
  """A whole number above 0; absent and null are the default."""
  value = fields.get(name)
  if value is None and default is not None:
    return default
  if value is None:
    raise UserError(f"The config.json lacks a field that is needed, {name}; copy it again.")
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise UserError(f"{name}={value!r} is not a whole number above 0, in config.json; copy it "
                    "again.")
  if value >= _LARGEST:
    raise UserError(f"{name}={_short(value)} in config.json is larger than that of any model; copy "
                    "it again.")
  return value


def _number(name: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
    raise UserError(f"{name}={_short(value)} in config.json is not a number above 0; copy it "
                    "again.")
  return float(value)


def _tied(fields: Mapping) -> bool:
  value = fields.get("tie_word_embeddings", False)
  if not isinstance(value, bool):
    raise UserError(f"tie_word_embeddings={_short(value)} in config.json is neither true nor "
                    "false; write which it is in a copy of the file.")
  return value


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False, default=str)
  return text if len(text) <= 60 else text[:57] + "..."
