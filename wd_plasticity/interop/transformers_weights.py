"""Our parameters as the tensors of transformers' Llama and Olmo2 models, and back.

Only names and layouts change, in numpy; files are read by `transformers_files`, sizes are
translated by `transformers_config`.
transformers keeps a linear layer's weight as [outputs, inputs], ours is [inputs, outputs].
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from wd_plasticity.errors import UserError
from wd_plasticity.interop.transformers_config import family
from wd_plasticity.interop.transformers_files import Tensors, is_buffer
from wd_plasticity.models.config import ModelConfig

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS = 2048  # of a matrix that are compared at once

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


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a tensor of transformers stands among our parameters.

  Attributes:
    tensor: transformers' name.
    parameter: ours, slash-joined.
    layer: its index on the parameter's leading axis; None for a parameter of no layer.
    shape: of the tensor.
    transposed: the parameter holds its transpose.
  """

  tensor: str
  parameter: str
  layer: int | None
  shape: tuple[int, ...]
  transposed: bool


def places(config: ModelConfig, *, score_head: bool = False) -> list[Place]:
  """All tensors of a model, those of one parameter after each other.

  Args:
    config: the sizes.
    score_head: as in `from_transformers`.

  Raises:
    UserError: as `transformers_config.family`.
  """
  width, vocab = config.width, config.vocab_size
  single = [Place(_EMBEDDING, "embed/embedding", None, (vocab, width), False),
            Place("model.norm.weight", "final_norm/scale", None, (width,), False)]
  if score_head:
    single.append(Place("score.weight", "score/kernel", None, (1, width), True))
  elif not config.tied_head:
    single.append(Place(_HEAD, "head/kernel", None, (vocab, width), True))
  shapes = _layer_shapes(config)
  return single + [
      Place(f"model.layers.{i}.{theirs}", f"layers/{ours}", i, shapes[ours][::-1],
            len(shapes[ours]) == 2)
      for theirs, ours in _LAYER_NAMES[family(config)].items() for i in range(config.num_layers)]


def parameter_shapes(wanted: Iterable[Place]) -> dict[str, tuple[int, ...]]:
  """Our names to the shapes of our parameters, in the order of their places."""
  shapes = {}
  for p in wanted:
    shape = p.shape[::-1] if p.transposed else p.shape
    shapes[p.parameter] = shape if p.layer is None else (p.layer + 1, *shape)
  return shapes


def places_in(tensors: Mapping[str, Any], config: ModelConfig, *,
              score_head: bool = False) -> list[Place]:
  """`places`, by the tensors of a checkpoint that hold them.

  Where embedding and head are one matrix, either may be the one that is stored.

  Args:
    tensors: transformers' names to arrays, or `transformers_files.Tensors`. Passed over are a
      second copy of a matrix that is embedding and head, any head beside `score_head`, and
      buffers.
    config: the sizes.
    score_head: as in `from_transformers`.

  Raises:
    UserError: naming a tensor that is missing or has no place, or a head that is tied by
      `config` but has numbers of its own.
  """
  if config.num_layers > len(tensors):  # before as many places are made
    raise UserError(f"The checkpoint has {len(tensors)} tensors, fewer than its config.json says "
                    f"that it has layers ({config.num_layers}); copy both again.")
  wanted = places(config, score_head=score_head)
  given = {name for name in tensors if not is_buffer(name)}
  if config.tied_head and _HEAD in given:
    if score_head or _EMBEDDING in given:
      given.remove(_HEAD)
      if not score_head and not _equal(tensors, _EMBEDDING, _HEAD):
        raise UserError(
            f"The config.json says tie_word_embeddings=true, but {_HEAD} differs from {_EMBEDDING}:"
            " transformers 4 takes the embedding for the head and 5 takes the tensor; set it to "
            f"false in a copy of config.json to use the tensor, or remove {_HEAD} from the file.")
    else:
      wanted = [dataclasses.replace(p, tensor=_HEAD) if p.tensor == _EMBEDDING else p
                for p in wanted]
  missing = [p.tensor for p in wanted if p.tensor not in given]
  if missing == [_HEAD] and not config.tied_head:
    raise UserError(
        f"The checkpoint lacks the tensor {_HEAD} and its config.json does not say "
        "tie_word_embeddings=true; say so in a copy of it if the embedding is the head, or copy "
        "the model again.")
  if missing:
    raise UserError(f"The checkpoint lacks the tensor {missing[0]}; is its model_type "
                    f"{family(config)!r} and has it {config.num_layers} layers?")
  if left := sorted(given.difference(p.tensor for p in wanted)):
    raise UserError(f"The checkpoint has {len(left)} tensors that this model has no place for, "
                    f"such as {left[0]}; it is of another architecture, or its config.json of "
                    "another model.")
  return wanted


def _equal(tensors: Mapping[str, Any], one: str, other: str) -> bool:
  """Whether two matrices hold the same numbers; a part of each is in memory."""
  lazy = isinstance(tensors, Tensors)
  shapes = {tuple((tensors.stored(name) if lazy else tensors[name]).shape) for name in (one, other)}
  if len(shapes) > 1:
    return False
  length = shapes.pop()[0]
  def rows(name, start):
    stop = min(start + _ROWS, length)
    part = tensors.rows(name, start, stop) if lazy else tensors[name][start:stop]
    return np.asarray(part, np.float32)
  return all(np.array_equal(rows(one, start), rows(other, start))
             for start in range(0, length, _ROWS))


def check_shape(place: Place, shape: tuple[int, ...]) -> None:
  """Refuses a tensor of another shape.

  Raises:
    UserError: naming both shapes.
  """
  if tuple(shape) != place.shape:
    raise UserError(f"The checkpoint's tensor {place.tensor} has the shape {tuple(shape)} and the "
                    f"configuration wants {place.shape}; take the sizes from its config.json.")


def check_finite(tensor: str, rows: np.ndarray) -> None:
  """Refuses numbers that are none, of a tensor or of some of its rows.

  Raises:
    UserError: naming the tensor.
  """
  for start in range(0, len(rows), _ROWS):
    if not np.isfinite(rows[start:start + _ROWS]).all():
      raise UserError(f"The tensor {tensor} holds numbers that are not finite (NaN, infinity): the "
                      "model has diverged, or its file is damaged; copy it again, or take an "
                      "earlier checkpoint of it.")


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
    tensors: transformers' names to arrays, as in `places_in`.
    config: the sizes, e.g. of `section_from_transformers`.
    score_head: whether the model is a `...ForSequenceClassification` with one label, which
      has `score/kernel` [D, 1] in place of the output head.
    place: what becomes of a parameter, from its name (`layers/attention/query/kernel`) and
      its array in the dtype of the tensors; such as putting it on devices.

  Returns:
    The nested dict of docs/architecture.md, its leaves as `place` returned them.

  Raises:
    UserError: as `places_in`, or a tensor is of another shape, or not finite.
  """
  wanted = places_in(tensors, config, score_head=score_head)
  stacks: dict[str, list[Place]] = {}
  for p in wanted:
    stacks.setdefault(p.parameter, []).append(p)

  def read(p):
    array = np.asarray(tensors[p.tensor])
    check_shape(p, array.shape)
    check_finite(p.tensor, array)
    return array

  params: dict[str, Any] = {}
  for ours, members in stacks.items():
    if members[0].layer is None:
      array = read(members[0])
      _set(params, ours, place(ours, _transposed(array) if members[0].transposed else array))
      continue
    for p in members:
      array = read(p)
      if p.layer == 0:
        stacked = np.empty((len(members), *p.shape[::-1]), array.dtype)
      elif array.dtype != stacked.dtype:  # float32 holds the values of every dtype that is read
        stacked = stacked.astype(np.float32)
      _transpose_into(stacked[p.layer], array)
    _set(params, ours, place(ours, stacked))
  return params


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
