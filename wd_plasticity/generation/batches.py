"""Prompts of any length as batches of a few static shapes."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from wd_plasticity import memory
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.models import attention
from wd_plasticity.models.config import ModelConfig

SHORTEST = 16  # prompts are padded to 16, 24, 32, 48, 64, 96, ...
_MOST_ROWS = {"cpu": 256}  # beyond, a CPU gains nothing
_MOST_ROWS_ELSEWHERE = 4096
_CPU_BYTES = 2**30
_DEVICE_SHARE = 0.4  # of an accelerator's memory, the rest is left to activations
_BUSY_SHARE = 0.1  # of what is left beside parameters that is not counted on


@dataclasses.dataclass(frozen=True)
class Batch:
  """B prompts of at most L tokens, the last of which may be fillers.

  Attributes:
    prompts: places of its prompts in the caller's list.
    tokens_BxL: int32, padded on the right with 0.
    lengths_B: int32, at least 1.
    index_B: int32, `prompts` with 0 for fillers.
    is_prompt_B: bool, False for fillers.
  """

  prompts: np.ndarray
  tokens_BxL: np.ndarray
  lengths_B: np.ndarray
  index_B: np.ndarray
  is_prompt_B: np.ndarray


def padded_length(length: int) -> int:
  """The least of 16, 24, 32, 48, 64, 96, ... that is not below `length` and suits attention."""
  size = SHORTEST
  while size < length:
    size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
  return attention.row_length(size)


def make_batches(prompts: Sequence[np.ndarray], model: ModelConfig, sampling: Sampling,
                 shares: int, members: int, memory_bytes: int, parts: int = 1) -> Iterator[Batch]:
  """Batches over all prompts, the longest first.

  Args:
    prompts: token ids of each.
    model: its sizes tell what a row costs.
    sampling: likewise.
    shares: the number of rows is a multiple of this (devices they are divided among).
    members: on one device.
    memory_bytes: of one device; 0: a share of what it has.
    parts: as of `rows_per_device`.
  """
  order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
  start = 0
  while start < len(order):
    length = padded_length(len(prompts[order[start]]))
    rows = shares * rows_per_device(model, sampling, length, members, memory_bytes, parts)
    # Few prompts need few rows, but not a shape of their own for every number.
    rows = min(rows, -(-_power_of_two(len(prompts)) // shares) * shares)
    chosen = np.array(order[start:start + rows])
    yield _pad([prompts[i] for i in chosen], chosen, rows, length)
    start += rows


def rows_per_device(model: ModelConfig, sampling: Sampling, length: int, members: int,
                    memory_bytes: int, parts: int = 1) -> int:
  """Prompts whose caches, logits and activations fit into the memory, at least 1.

  Args:
    model, sampling, length: as of `make_batches`; slots of a prompt.
    members, memory_bytes: as of `make_batches`.
    parts: how many times fewer than fit.
  """
  itemsize = 4 if model.compute_dtype == "float32" or jax.default_backend() == "cpu" else 2
  samples = sampling.num_samples
  row = members * memory.generation_row(
      model, length=length, new_tokens=sampling.max_new_tokens, samples=samples, itemsize=itemsize)
  fitting = (memory_bytes or _default_bytes(model, members)) // row
  most = _MOST_ROWS.get(jax.default_backend(), _MOST_ROWS_ELSEWHERE)
  rows = min(fitting, most // (samples * members)) // parts
  return _power_of_two(int(max(rows, 1)) + 1) // 2


def _default_bytes(model: ModelConfig, members: int) -> int:
  if jax.default_backend() == "cpu":
    return _CPU_BYTES
  # Parameters may be there as they were before and are after fine-tuning, and are cast.
  limit, parameters = memory.device_limit(), members * memory.parameter_bytes(model) * 3
  return max(1, int(min(_DEVICE_SHARE * limit, (1 - _BUSY_SHARE) * limit - parameters)))


def _power_of_two(n: int) -> int:
  """The least power of two that is not below n."""
  return 1 << (n - 1).bit_length()


def _pad(prompts, chosen, rows, length) -> Batch:
  batch = Batch(prompts=chosen, tokens_BxL=np.zeros((rows, length), np.int32),
                lengths_B=np.ones(rows, np.int32), index_B=np.zeros(rows, np.int32),
                is_prompt_B=np.arange(rows) < len(prompts))
  batch.index_B[:len(prompts)] = chosen
  for i, prompt in enumerate(prompts):
    batch.tokens_BxL[i, :len(prompt)] = prompt
    batch.lengths_B[i] = len(prompt)
  return batch
