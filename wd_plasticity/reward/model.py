"""The outcome reward model: a Llama with a scalar head, from a directory of transformers.

Made for Skywork-Reward-Llama-3.1-8B-v0.2 (`LlamaForSequenceClassification`, one label);
any other of this form can be used.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.interop import transformers_config, transformers_files, transformers_weights
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.reward.chat import ChatTokenizer
from wd_plasticity.training import mesh as mesh_rules

ARCHITECTURE = "LlamaForSequenceClassification"
_FIRST_BUCKET = 128


class RewardModel:
  """Scores of (problem, response) pairs.

  Attributes:
    config: the decoder's, without an output head.
    fingerprint: sha256 of config.json, the tokenizer, the template and the head's weights;
      it tells one reward model from another in results.
    parts: how many times smaller batches are than was asked for; may be set.
  """

  def __init__(self, config: ModelConfig, params: dict, chat: ChatTokenizer, mesh: Mesh, *,
               pad_id: int | None, batch_size: int, fingerprint: str):
    """Use `load_reward_model`."""
    self.config = config
    self.fingerprint = fingerprint
    self._score_head = params.pop("score")["kernel"]
    self._params = params
    self._chat = chat
    self._mesh = mesh
    self._pad_id = pad_id
    self._batch_size, self._rows, self.parts = batch_size, batch_size, 1
    self._program = jax.jit(self._scores, out_shardings=NamedSharding(mesh, P()))

  def score(self, pairs: Sequence[tuple[str, str]],
            on_batch: Callable[[int], None] | None = None) -> np.ndarray:
    """The scalar of each pair; higher is better.

    Every process of a run calls this with the same pairs. Equal pairs are scored once.

    Args:
      pairs: (problem, response), without any template.
      on_batch: called with the number of pairs that are done, after each batch.

    Returns:
      float32 [len(pairs)].

    Raises:
      UserError: the tokenizer does not belong to the model, or a score is not finite.
    """
    unique = list(dict.fromkeys(pairs))
    count_of = dict.fromkeys(unique, 0)
    for pair in pairs:
      count_of[pair] += 1
    tokens = self._chat.encode(unique)
    self._check(tokens)
    scores = np.zeros(len(unique), np.float32)
    done = 0

    def collect(batch, scores_B):
      nonlocal done
      scores[batch] = np.asarray(scores_B)[:len(batch)]
      done += sum(count_of[unique[i]] for i in batch)
      if on_batch:
        on_batch(done)

    shards = mesh_rules.row_shares(self._mesh)
    self._rows = -(-max(1, self._batch_size // self.parts) // shards) * shards
    with jax.set_mesh(self._mesh):
      running = None
      for batch, length in self._batches(tokens):
        started = batch, self._start([tokens[i] for i in batch], length)
        if running:  # read one batch while the next is computed
          collect(*running)
        running = started
      if running:
        collect(*running)
    if not np.isfinite(scores).all():
      raise UserError("The reward model gives scores that are not finite; its files are damaged, "
                      "or its numbers need compute_dtype='float32'.")
    place = {pair: i for i, pair in enumerate(unique)}
    return scores[[place[pair] for pair in pairs]]

  def _check(self, tokens):
    """Refuses ids that have no row in the embedding."""
    if any(len(ids) == 0 for ids in tokens):
      raise UserError("The reward model's chat template gives no text for a pair.")
    largest = max((int(ids.max()) for ids in tokens), default=0)
    if largest >= self.config.vocab_size:
      raise UserError(f"The reward model's tokenizer gives the token id {largest} and its "
                      f"embedding has {self.config.vocab_size} rows; tokenizer.json and the "
                      "weights are not of the same model.")

  def _batches(self, tokens):
    """(indices, padded length) of each batch, the longest first: what fits then fits later."""
    buckets = {}
    for i, ids in enumerate(tokens):
      buckets.setdefault(bucket_length(len(ids)), []).append(i)
    for length in sorted(buckets, reverse=True):
      for start in range(0, len(buckets[length]), self._rows):
        yield buckets[length][start:start + self._rows], length

  def _start(self, tokens, length: int) -> jax.Array:
    """Starts one batch; rows that are missing are zeros, their scores are dropped."""
    tokens_BxL = np.zeros((self._rows, length), np.int32)
    last_B = np.zeros(self._rows, np.int32)
    for row, ids in enumerate(tokens):
      tokens_BxL[row, :len(ids)] = ids
      last_B[row] = last_token(ids, self._pad_id)
    put = lambda array: mesh_rules.put(self._mesh, array, mesh_rules.ROWS)
    return self._program(self._params, self._score_head, put(tokens_BxL), put(last_B))

  def _scores(self, params, score_Dx1, tokens_BxL, last_B):
    # Padding is on the right, so causal attention keeps it from the tokens before it.
    x_BxLxD = decoder.hidden_states(params, self.config, tokens_BxL)
    x_BxD = x_BxLxD[jnp.arange(len(last_B)), last_B].astype(jnp.float32)
    return jnp.sum(x_BxD * score_Dx1[:, 0].astype(jnp.float32), axis=-1)


def load_reward_model(directory: str | os.PathLike, mesh: Mesh | None = None, *,
                      compute_dtype: str = "", batch_size: int = 16) -> RewardModel:
  """Reads a reward model and spreads it over the mesh.

  Parameters stay in the dtype of the file, since casting them where they are used gives
  the same numbers: 8B parameters in bfloat16 take 16 GB over all devices of the mesh axes
  `fsdp` and `tensor`. They are read one parameter of all layers at a time.

  Args:
    directory: config.json, safetensors, tokenizer.json, tokenizer_config.json.
    mesh: of training/mesh.py; its sweep axis serves as more of `data`. None: all devices
      as `fsdp`.
    compute_dtype: float32 or bfloat16; "" is bfloat16 if the model's config.json says so,
      else float32.
    batch_size: rows in one batch, rounded up to a multiple of data * fsdp.

  Raises:
    UserError: the directory is not one of such a model, or does not fit the mesh.
  """
  fields, tensors = transformers_files.read_directory(directory)
  architecture = fields["architectures"][0]
  labels = _labels(fields, tensors)
  if architecture != ARCHITECTURE or labels != 1:
    raise UserError(f"{directory} is a {architecture} with {labels} label(s); a reward model is a "
                    f"{ARCHITECTURE} with one.")
  pad_id = fields.get("pad_token_id")
  if pad_id is not None and (isinstance(pad_id, bool) or not isinstance(pad_id, int)):
    raise UserError(f"pad_token_id={pad_id!r} in the config.json of {directory} is not a token; "
                    "copy it again.")
  section = default_config().model
  section.update(transformers_config.section_from_transformers(fields))
  stored = fields.get("dtype") or fields.get("torch_dtype")
  section.compute_dtype = compute_dtype or ("bfloat16" if stored == "bfloat16" else "float32")
  # There is no output head; `tied_head` is how a decoder does without its parameters.
  config = dataclasses.replace(ModelConfig.from_section(section, 0), tied_head=True)
  chat = ChatTokenizer(directory)

  mesh = _mesh(mesh)
  shapes = decoder.param_shapes(config)
  mesh_rules.check_parameters(shapes, dict(mesh.shape))

  def place(name, array):
    spec = P() if name == "score/kernel" else mesh_rules.parameter_spec(name)
    return mesh_rules.put(mesh, array, spec)

  params = transformers_weights.from_transformers(tensors, config, score_head=True, place=place)
  digest = hashlib.sha256(json.dumps([fields, chat.fingerprint], sort_keys=True).encode())
  digest.update(np.ascontiguousarray(tensors["score.weight"]).tobytes())
  return RewardModel(config, params, chat, mesh, pad_id=pad_id, batch_size=batch_size,
                     fingerprint=digest.hexdigest())


def _labels(fields: dict, tensors: transformers_files.Tensors) -> int:
  """Scores that the head gives: 1, or the number of the first statement that is another."""
  names = fields.get("id2label")
  said = [] if names is None else [len(names) if isinstance(names, dict) else 0]
  if fields.get("num_labels") is not None:
    said.append(fields["num_labels"])
  if "score.weight" in tensors:
    said += tensors.stored("score.weight").shape[:1]
  return next((number for number in said if number != 1), 1)


def bucket_length(length: int) -> int:
  """The smallest of 128, 256, 384, 512, 768, 1024, 1536, ... that holds `length`.

  Few lengths to compile for, rarely more than a third of a row is padding, and multiples
  of 128, which the fused attention of TPUs needs.
  """
  power = max(_FIRST_BUCKET, 1 << (length - 1).bit_length())
  between = 3 * power // 4
  return between if length <= between and between % _FIRST_BUCKET == 0 else power


def last_token(ids: np.ndarray, pad_id: int | None) -> int:
  """The place whose state is scored: the last token that is not padding.

  As in transformers (GenericForSequenceClassification), a conversation that itself ends
  with the padding token is scored before it.
  """
  places = np.flatnonzero(ids != pad_id) if pad_id is not None else np.arange(len(ids))
  return int(places[-1]) if len(places) else 0


def _mesh(mesh: Mesh | None) -> Mesh:
  """The same devices with one member: what was the sweep axis divides rows."""
  if mesh is None:
    shape = (1, 1, jax.device_count(), 1)
    return jax.make_mesh(shape, mesh_rules.AXES, axis_types=(AxisType.Auto,) * 4)
  sweep, data, fsdp, tensor = (mesh.shape[axis] for axis in mesh_rules.AXES)
  return Mesh(mesh.devices.reshape(1, sweep * data, fsdp, tensor), mesh_rules.AXES,
              axis_types=(AxisType.Auto,) * 4)
