"""Bytes per device of programs of M stacked members, how many members fit, and what to do
when memory runs out all the same.

What is stored is counted exactly, the rest is estimated: within 20 % of what XLA allocates
when the study's sizes are trained on TPUs, see docs/results/paper. Sizes of a mesh are a
mapping from its axes (training/mesh.py) to numbers of devices.
"""

import dataclasses
import functools
import gc
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wd_plasticity.errors import is_out_of_memory
from wd_plasticity.models import attention, flops, loss
from wd_plasticity.models.config import ModelConfig

Parts = dict[str, int]  # bytes of a device, by what they are for

_UNKNOWN = 16e9  # of a device that does not tell what it has
_HOST_SHARE = 0.8  # of the host's memory that devices on the CPU can have
_FLOAT32 = 4
_CGROUPS = Path("/sys/fs/cgroup")


# What there is.


@functools.cache
def device_limit() -> int:
  """Bytes that programs can take of a device; of several processes the least, in all of them."""
  devices = jax.local_devices()
  if jax.default_backend() == "cpu":
    limit = _HOST_SHARE * host_memory() / len(devices)
  else:
    limit = min((d.memory_stats() or {}).get("bytes_limit", _UNKNOWN) for d in devices)
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    mebibytes = multihost_utils.process_allgather(np.int32(limit / 2**20))
    limit = 2**20 * int(mebibytes.min())
  return int(limit)


def host_memory() -> int:
  """Bytes of this machine, or of the control group that this process is confined to."""
  limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for line in _own_groups():
    _, controllers, path = line.split(":", 2)
    root, name = (_CGROUPS, "memory.max") if not controllers else (
        _CGROUPS / "memory", "memory.limit_in_bytes")
    if controllers and "memory" not in controllers.split(","):
      continue
    group = root / path.strip("/")
    for folder in (group, *group.parents):
      try:
        limits.append(int((folder / name).read_text()))
      except (OSError, ValueError):  # not there, or "max"
        continue
  return min(limits)


def _own_groups() -> list[str]:
  """The control groups that this process is in, as Linux lists them."""
  try:
    return Path("/proc/self/cgroup").read_text().splitlines()
  except OSError:
    return []


# What fits.


def splits(count: int, smallest: int = 1) -> list[int]:
  """Sizes of programs that members can be divided into evenly, the largest first.

  Args:
    count: members; six are divided into programs of 6, 3, 2 or 1, five into 5, 3, 2 or 1.
    smallest: the sizes are multiples of it (the mesh axis `sweep`).
  """
  sizes = {math.ceil(math.ceil(count / n) / smallest) * smallest
           for n in range(1, max(1, count) + 1)}
  return sorted(sizes, reverse=True)


def members_that_fit(count: int, need: Callable[[int], float], smallest: int = 1,
                     limit: float | None = None) -> int:
  """The largest of `splits` whose need is within the limit; the smallest where none is.

  Args:
    count, smallest: as of `splits`.
    need: bytes of a device that a program of so many members takes.
    limit: bytes; None: `device_limit()`.
  """
  limit = device_limit() if limit is None else limit
  sizes = splits(count, smallest)
  return next((size for size in sizes if need(size) <= limit), sizes[-1])


def fewer(size: int, count: int, smallest: int = 1) -> int | None:
  """The next smaller of `splits`, or None."""
  return next((n for n in splits(count, smallest) if n < size), None)


def attempt(run: Callable[[], Any]) -> tuple[bool, Any]:
  """(True, what `run` returned), or (False, None) when memory ran out in one of the processes.

  What the attempt held is let go by then: arrays hang on the frames of an error's traceback.
  """
  made, done = None, False
  try:
    made, done = run(), True
  except Exception as e:
    if not is_out_of_memory(e):
      raise
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    done = bool(multihost_utils.process_allgather(np.array(done)).all())
  if not done:
    made = None
    gc.collect()
  return done, made


def more_micro_batches(steps: int, rows: int, shares: int) -> int | None:
  """The next larger number of micro-batches that rows can be divided into, or None.

  Args:
    steps: micro-batches now.
    rows: of all micro-batches together.
    shares: devices that divide the rows of a micro-batch.
  """
  return next((n for n in range(2 * steps, rows + 1, steps)
               if rows % n == 0 and rows // n % shares == 0), None)


def text(number: float) -> str:
  """Bytes for people."""
  for unit in ("B", "KiB", "MiB", "GiB"):
    if number < 1024:
      return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
    number /= 1024
  return f"{number:.1f} TiB"


# What programs need.


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """Memory of pretraining.

  Attributes:
    model: sizes and switches.
    mesh: sizes of the axes.
    rows, length: of the batch of one member.
    attention: what `attention.choose` gives for it.
    accumulate_steps: micro-batches.
    tile_tokens: tokens of the whole batch whose logits exist at once; 0: the platform's.
  """
  model: ModelConfig
  mesh: Mapping[str, int]
  rows: int
  length: int
  attention: str = "auto"
  accumulate_steps: int = 1
  tile_tokens: int = 0

  def parts(self, members: int) -> Parts:
    """By part, for a program of so many members."""
    here, shard = _on_device(members, self.mesh), self.mesh["fsdp"] * self.mesh["tensor"]
    shares = self.mesh["data"] * self.mesh["fsdp"]
    stored = here * parameter_bytes(self.model) // shard
    tokens = self.rows / self.accumulate_steps / shares * self.length
    return {
        "parameters": stored,
        "optimizer": 2 * stored,
        "gradients": stored * _gradient_copies(self.accumulate_steps),
        "snapshot": 3 * stored,  # of a checkpoint being written
        "activations": int(here * tokens * _activations(
            self.model, self.mesh, self.length, self.attention)),
        "logits": int(here * _logits(self.model, self.mesh, tokens, self.tile_tokens / shares)),
    }

  def total(self, members: int) -> int:
    return total(self.parts(members))


@dataclasses.dataclass(frozen=True)
class Finetuning:
  """Memory of fine-tuning, the model that it starts from included.

  Attributes:
    model, mesh: as of `Pretraining`.
    rows, length, targets: of a batch: rows, their tokens, and how many of these are learnt.
    replay_rows, replay_length: of the pretraining records beside them.
    trained: parameters that are trained; 0: all. Others are the factors of LoRA.
    evaluation: bytes that evaluations on the way take beside the state, by number of members.
  """
  model: ModelConfig
  mesh: Mapping[str, int]
  rows: int
  length: int
  targets: int
  replay_rows: int = 0
  replay_length: int = 0
  trained: int = 0
  evaluation: Callable[[int], float] = lambda members: 0

  def parts(self, members: int, micro_batches: int = 1) -> Parts:
    """By part, for a program of so many members and micro-batches."""
    here, shard = _on_device(members, self.mesh), self.mesh["fsdp"] * self.mesh["tensor"]
    shares = self.mesh["data"] * self.mesh["fsdp"]
    stored = here * parameter_bytes(self.model) // shard
    trained = here * self.trained * _FLOAT32 if self.trained else stored
    rows, replayed = (-(-n // (shares * micro_batches)) for n in (self.rows, self.replay_rows))
    packed = attention.choose(
        self.model.attention, length=self.length, head_dim=self.model.head_dim,
        dtype=np.dtype(self.model.compute_dtype), packed=True)
    activations = rows * self.length * _activations(
        self.model, self.mesh, self.length, packed, packed=True)
    logits = _logits(self.model, self.mesh, rows * self.targets)
    if replayed:
      activations += replayed * self.replay_length * _activations(
          self.model, self.mesh, self.replay_length, packed, packed=self.model.document_mask)
      logits += _logits(self.model, self.mesh, replayed * self.replay_length)
    gradients = trained * _gradient_copies(micro_batches)
    if self.trained:  # kernels with their updates, and the gradient of these
      gradients += 2 * stored
    step = {"gradients": int(gradients), "activations": int(here * activations),
            "logits": int(here * logits)}
    spare = int(max(0, self.evaluation(members) - sum(step.values())))
    return {"parameters": stored + trained, "optimizer": 2 * trained, **step,
            "evaluation": spare}

  def micro_batches(self, members: int, limit: float | None = None) -> int:
    """The fewest whose need is within the limit, or as many as there are rows of a device."""
    limit = device_limit() if limit is None else limit
    most = max(1, -(-self.rows // (self.mesh["data"] * self.mesh["fsdp"])))
    count = 1
    while count < most and total(self.parts(members, count)) > limit:
      count = min(most, 2 * count)
    return count


def reading(model: ModelConfig, mesh: Mapping[str, int], members: int, *, tokens: float,
            length: int, copies: int = 1) -> Parts:
  """A forward pass that keeps nothing but what a layer works on.

  Args:
    model, mesh: as of `Pretraining`; the platform decides on the attention.
    members: stacked in the program.
    tokens: that a device reads at once for each member.
    length: of their rows.
    copies: stacks of parameters that are there. Beside them is one member, while a stack
      is filled.
  """
  here, shard = _on_device(members, mesh), mesh["fsdp"] * mesh["tensor"]
  one = parameter_bytes(model) // shard
  name = attention.choose("auto", length=length, head_dim=model.head_dim,
                          dtype=np.dtype(model.compute_dtype), packed=model.document_mask)
  everything, _, beside = _layer(model, mesh, length, name, model.document_mask)
  return {"parameters": one * (here * copies + 1),
          "activations": int(here * tokens * (everything + beside)),
          "logits": int(here * _logits(model, mesh, tokens) / 2)}  # no gradients


def generation_row(model: ModelConfig, *, length: int, new_tokens: int, samples: int,
                   itemsize: int) -> float:
  """Bytes of the caches, logits and activations of one prompt of one member.

  Args:
    model: sizes.
    length: slots of the prompt.
    new_tokens: of each continuation.
    samples: continuations of the prompt.
    itemsize: bytes of a number in the caches.
  """
  cache_of_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * itemsize
  # The cache of new tokens is copied when it grows; logits are, in every step.
  cache = cache_of_token * (length + 1.5 * samples * new_tokens)
  logits = 4 * _FLOAT32 * samples * model.vocab_size
  activations = itemsize * length * (8 * model.width + 3 * model.ffn_width)
  scores = 2 * _FLOAT32 * model.num_heads * length**2  # where attention is not fused
  return cache + logits + activations + scores


def spectra(model: ModelConfig, mesh: Mapping[str, int], members: int) -> Parts:
  """Singular values of the attention kernels: these in an order of their own, and factors."""
  here, shard = _on_device(members, mesh), mesh["fsdp"] * mesh["tensor"]
  one = parameter_bytes(model) // shard
  kernels = model.num_layers * model.width * model.head_dim * _FLOAT32 * (
      2 * model.num_heads + 2 * model.num_kv_heads)
  return {"parameters": one * (here + 1), "factors": here * 3 * kernels}


def parameter_bytes(model: ModelConfig) -> int:
  """Of one model in float32, on all devices together."""
  return flops.count_parameters(model)["total"] * _FLOAT32


def _on_device(members: int, mesh: Mapping[str, int]) -> int:
  return max(1, -(-members // mesh["sweep"]))


def _gradient_copies(micro_batches: int) -> int:
  """The sum over micro-batches stands beside the gradients of one."""
  return 1 if micro_batches == 1 else 2


def _logits(model: ModelConfig, mesh: Mapping[str, int], tokens: float, tile: float = 0) -> float:
  """Logits in float32 and their gradient; the whole head and its gradient, gathered."""
  head = model.width * model.vocab_size // mesh["tensor"]
  tile = min(tile or loss.default_tile_tokens(), tokens)
  return (tile * model.vocab_size / mesh["tensor"] + head) * (_FLOAT32 + _itemsize(model))


def _itemsize(model: ModelConfig) -> int:
  return 2 if model.compute_dtype == "bfloat16" else 4


def _layer(model: ModelConfig, mesh: Mapping[str, int], length: int, name: str,
           packed: bool) -> tuple[float, float, float]:
  """Bytes per token: all that a layer makes for its backward pass, what of it is kept until
  then, and what it works on beside it.

  Counted from what `jax.vjp` of a layer returns. A fused attention stores no scores.
  """
  width, tensor = _itemsize(model), mesh["tensor"]
  d, f = model.width, model.ffn_width / tensor
  q, kv = (n * model.head_dim / tensor for n in (model.num_heads, model.num_kv_heads))
  heads = 2 * q + 2 * kv  # queries, keys, values and what attention returns
  # Norms keep three arrays in float32.
  norms = _FLOAT32 * (6 * d + (3 * (q + kv) if model.qk_norm else 0))
  everything = norms + width * (2 * d + heads + q + 3 * f)
  beside = 0.0
  if name == "plain":
    scores = _FLOAT32 * length * model.num_heads / tensor
    everything, beside = everything + scores, 2 * scores
  elif name == "cudnn" and packed:
    beside = _FLOAT32 * length  # the mask, as a bias
  kept = d  # what enters
  if model.remat == "dots":  # and products; what `down` makes is needed again by a norm after it
    kept += heads + 2 * f + (d if model.norm_position == "pre" else 2 * d)
  return everything, everything if model.remat == "none" else width * kept, beside


def _activations(model: ModelConfig, mesh: Mapping[str, int], length: int, name: str,
                 packed: bool = False) -> float:
  """Bytes per token of training: what all layers keep, and all of a layer that is made again."""
  everything, kept, beside = _layer(model, mesh, length, name, packed)
  return kept * model.num_layers + (0 if model.remat == "none" else everything) + beside


def total(parts: Parts) -> int:
  return sum(parts.values())


def described(parts: Parts) -> str:
  """'10.3 GiB (parameters 1.0 GiB, ...)'."""
  return f"{text(total(parts))} (" + ", ".join(f"{k} {text(v)}" for k, v in parts.items()) + ")"
