"""Our parameters as the tensors of transformers' Llama and Olmo2 models, and back.

Only names and layouts change, in numpy; files are read by `transformers_files`.
transformers keeps a linear layer's weight as [outputs, inputs], ours is [inputs, outputs].
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wd_plasticity.errors import UserError
from wd_plasticity.models.config import ModelConfig

_ATTENTION_AND_FEED_FORWARD = {
    "self_attn.q_proj.weight": "attention/query/kernel",
    "self_attn.k_proj.weight": "attention/key/kernel",
    "self_attn.v_proj.weight": "attention/value/kernel",
    "self_attn.o_proj.weight": "attention/output/kernel",
    "mlp.gate_proj.weight": "feed_forward/gate/kernel",
    "mlp.up_proj.weight": "feed_forward/up/kernel",
    "mlp.down_proj.weight": "feed_forward/down/kernel",
}

# One layer's tensors by family: transformers' name to ours.
_LAYER_NAMES = {
    "llama": _ATTENTION_AND_FEED_FORWARD | {
        "input_layernorm.weight": "attention_norm/scale",
        "post_attention_layernorm.weight": "feed_forward_norm/scale",
    },
    "olmo2": _ATTENTION_AND_FEED_FORWARD | {
        "self_attn.q_norm.weight": "attention/query_norm/scale",
        "self_attn.k_norm.weight": "attention/key_norm/scale",
        "post_attention_layernorm.weight": "attention_norm/scale",
        "post_feedforward_layernorm.weight": "feed_forward_norm/scale",
    },
}

# `ModelConfig.rope_scaling` in transformers' words, for rope_type "llama3".
_LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor",
                   "original_max_position_embeddings")


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


def to_transformers(params: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
  """Tensors for `LlamaForCausalLM` or `Olmo2ForCausalLM`.

  Args:
    params: our nested dict, arrays on any device.
    config: its sizes.

  Returns:
    transformers' names to contiguous float32 arrays; without `lm_head.weight` when tied.

  Raises:
    UserError: as `family`.
  """
  tensors = {
      "model.embed_tokens.weight": np.array(params["embed"]["embedding"]),
      "model.norm.weight": np.array(params["final_norm"]["scale"]),
  }
  if not config.tied_head:
    tensors["lm_head.weight"] = _transposed(params["head"]["kernel"])
  for theirs, ours in _LAYER_NAMES[family(config)].items():
    stacked = params["layers"]
    for part in ours.split("/"):
      stacked = stacked[part]
    for i, array in enumerate(np.asarray(stacked)):
      tensors[f"model.layers.{i}.{theirs}"] = _transposed(array)
  return tensors


def as_float32(name: str, array: np.ndarray) -> np.ndarray:
  """The parameter in float32."""
  return np.asarray(array, np.float32)


def from_transformers(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, *, score_head: bool = False,
    place: Callable[[str, np.ndarray], Any] = as_float32) -> dict[str, Any]:
  """Our parameters from the tensors of a Llama or Olmo2 model.

  One parameter is made at a time and each tensor is read once, so that a lazy mapping
  needs little memory beside what `place` keeps.

  Args:
    tensors: transformers' names to arrays. `lm_head.weight` beside a tied head and buffers
      (`inv_freq`) are passed over; anything else that does not belong is refused.
    config: the sizes, e.g. of `section_from_transformers`.
    score_head: whether the model is a `...ForSequenceClassification` with one label, which
      has `score/kernel` [D, 1] in place of the output head.
    place: what becomes of a parameter, from its name (`layers/attention/query/kernel`) and
      its array in the dtype of the tensors; such as putting it on devices.

  Returns:
    The nested dict of docs/architecture.md, its leaves as `place` returned them.

  Raises:
    UserError: a tensor is missing, unknown or of another shape.
  """
  width, vocab = config.width, config.vocab_size
  heads = {"score/kernel": ("score.weight", (1, width))} if score_head else {}
  if not config.tied_head and not score_head:
    heads = {"head/kernel": ("lm_head.weight", (vocab, width))}
  single = {"embed/embedding": ("model.embed_tokens.weight", (vocab, width)),
            "final_norm/scale": ("model.norm.weight", (width,)), **heads}
  shapes = _layer_shapes(config)
  layered = {f"layers/{ours}": (theirs, shapes[ours][::-1])
             for theirs, ours in _LAYER_NAMES[family(config)].items()}
  each_layer = lambda theirs: [f"model.layers.{i}.{theirs}" for i in range(config.num_layers)]

  wanted = [theirs for theirs, _ in single.values()]
  wanted += [name for theirs, _ in layered.values() for name in each_layer(theirs)]
  passed_over = {"lm_head.weight"} if config.tied_head else set()
  given = {name for name in tensors if not name.endswith("inv_freq")} - passed_over
  if missing := [name for name in wanted if name not in given]:
    raise UserError(f"The checkpoint lacks the tensor {missing[0]}; is its model_type "
                    f"{family(config)!r} and has it {config.num_layers} layers?")
  if left := sorted(given.difference(wanted)):
    raise UserError(f"The checkpoint has {len(left)} tensors that this model has no place for, "
                    f"such as {left[0]}; it is of another architecture.")

  def read(name, shape):
    array = np.asarray(tensors[name])
    if array.shape != shape:
      raise UserError(f"The checkpoint's tensor {name} has the shape {array.shape} and the "
                      f"configuration wants {shape}; take the sizes from its config.json.")
    return array

  params: dict[str, Any] = {}
  for ours, (theirs, shape) in single.items():
    array = read(theirs, shape)
    _set(params, ours, place(ours, _transposed(array) if ours in heads else array))
  for ours, (theirs, shape) in layered.items():
    for i, name in enumerate(each_layer(theirs)):
      array = read(name, shape)
      if i == 0:
        stacked = np.empty((config.num_layers, *shape[::-1]), array.dtype)
      elif array.dtype != stacked.dtype:  # float32 holds the values of every dtype that is read
        stacked = stacked.astype(np.float32)
      _transpose_into(stacked[i], array)
    _set(params, ours, place(ours, stacked))
  return params


def config_to_transformers(config: ModelConfig, length: int) -> dict[str, Any]:
  """The fields of transformers' config.json that describe this decoder.

  Args:
    config: our sizes.
    length: the longest sequence, `max_position_embeddings`.
  """
  model_type = family(config)
  rope: dict[str, Any] = {"rope_type": "default"}
  if config.rope_scaling:
    numbers = dict(zip(_LLAMA3_SCALING, config.rope_scaling, strict=True))
    rope = {"rope_type": "llama3", **numbers,
            "original_max_position_embeddings": int(config.rope_scaling[-1])}
  return {
      "model_type": model_type,
      "architectures": [{"llama": "LlamaForCausalLM", "olmo2": "Olmo2ForCausalLM"}[model_type]],
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


def section_from_transformers(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of our `model` section that describe a transformers config.json.

  Args:
    fields: the parsed config.json of a Llama or Olmo2 model.

  Returns:
    The fields that sizes determine, for `config.model.update(...)`.

  Raises:
    UserError: the model is of another type or uses what this decoder has not (biases,
      another scaling of rotary positions than that of Llama 3.1, another activation).
  """
  model_type = fields.get("model_type")
  if model_type not in _LAYER_NAMES:
    raise UserError(f"model_type={model_type!r} is not known here; it can be llama or olmo2.")
  rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
  scaling = rope.get("rope_type", rope.get("type", "default"))
  refused = {
      "attention_bias": fields.get("attention_bias", False),
      "mlp_bias": fields.get("mlp_bias", False),
      f"rope scaling {scaling!r}": scaling not in ("default", "llama3"),
      "partial rotary positions": rope.get("partial_rotary_factor", 1) != 1,
      "hidden_act": fields.get("hidden_act", "silu") != "silu",
  }
  for name, present in refused.items():
    if present:
      raise UserError(f"This {model_type} model uses {name}, which the decoder here does not have.")
  try:
    return _section(fields, model_type, rope, scaling)
  except (KeyError, TypeError, ValueError) as e:
    raise UserError(f"The config.json of this {model_type} model lacks a field or has a wrong one "
                    f"({type(e).__name__}: {e}); copy it again.") from e


def _section(fields, model_type, rope, scaling) -> dict[str, Any]:
  heads = fields["num_attention_heads"]
  return dict(
      num_layers=fields["num_hidden_layers"],
      width=fields["hidden_size"],
      num_heads=heads,
      num_kv_heads=fields.get("num_key_value_heads") or heads,
      head_dim=fields.get("head_dim") or 0,
      ffn_width=fields["intermediate_size"],
      vocab_size=fields["vocab_size"],
      norm_position="pre" if model_type == "llama" else "post",
      qk_norm=model_type == "olmo2",
      rope_theta=float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0))),
      norm_eps=float(fields.get("rms_norm_eps", 1e-6 if model_type == "llama" else 1e-5)),
      tied_head=bool(fields.get("tie_word_embeddings", False)),
      rope_scaling=tuple(float(rope[name]) for name in _LLAMA3_SCALING)
      if scaling == "llama3" else (),
  )


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
  """Puts a leaf into nested dicts by its slash-joined name."""
  *parents, leaf = name.split("/")
  for part in parents:
    tree = tree.setdefault(part, {})
  tree[leaf] = value


def _transposed(array) -> np.ndarray:
  """The contiguous transpose of a matrix; a vector stays."""
  return np.ascontiguousarray(np.asarray(array).T)


def _transpose_into(out: np.ndarray, array: np.ndarray) -> None:
  """out[...] = array.T, in strips that stay in the CPU's cache: three times as fast."""
  for start in range(0, len(array), 32):
    out[..., start:start + 32] = array[start:start + 32].T


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of one layer's parameters by our names."""
  query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  width, ffn_width = config.width, config.ffn_width
  return {
      "attention_norm/scale": (width,),
      "feed_forward_norm/scale": (width,),
      "attention/query/kernel": (width, query),
      "attention/key/kernel": (width, key),
      "attention/value/kernel": (width, key),
      "attention/output/kernel": (query, width),
      "attention/query_norm/scale": (query,),
      "attention/key_norm/scale": (key,),
      "feed_forward/gate/kernel": (width, ffn_width),
      "feed_forward/up/kernel": (width, ffn_width),
      "feed_forward/down/kernel": (ffn_width, width),
  }
