"""Batches as a pure function of (seed, step), so that a run resumes from a step number.

Position p of a member's stream (p = step * batch_size + row) is record
`permutation(seed, p // n)[p % n]` of its n records: every epoch reads every record
once, in an order of its own. The permutation of a large data set is computed per
index (a pseudorandom bijection), so any step is read at the same cost.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from grain.experimental import index_shuffle

from wd_plasticity.errors import UserError

# grain's bijection works on at least 2**16 values and walks until it lands below n, which is
# slow for small n; below this many records a table per epoch is faster, and small.
_SMALL = 1 << 14


def record_index(position: int, num_records: int, seed: int) -> int:
  """The record at a position of the endless stream of a seed."""
  epoch, index = divmod(position, num_records)
  mixed = _epoch_seed(seed, epoch)
  if num_records <= _SMALL:
    return int(_table(num_records, mixed)[index])
  return index_shuffle(index, max_index=num_records - 1, seed=mixed, rounds=4)


def spaced(count: int, wanted: int) -> np.ndarray:
  """At most `wanted` (0: all) of the places 0 .. count - 1, evenly spaced."""
  taken = min(wanted, count) or count
  return np.arange(taken) * count // max(taken, 1)


def read_records(num_positions: int, num_records: int, seed: int, wanted: int = 0) -> np.ndarray:
  """Some of the records among the first positions of the stream of a seed, each once, sorted.

  Args:
    num_positions: how far the stream was read: steps times the batch size.
    num_records: n.
    seed: of the stream.
    wanted: how many, evenly spaced in the order of reading, or where every record has been read
      in the order of the records, so that they are the same for all seeds; 0: all.
  """
  places = spaced(min(num_positions, num_records), wanted)
  if num_positions >= num_records:
    return places
  return np.sort(np.array([record_index(p, num_records, seed) for p in places.tolist()], np.int64))


@functools.lru_cache(maxsize=256)
def _epoch_seed(seed: int, epoch: int) -> int:
  # Hashed, because neighbouring seeds must not share orders: seed 0's second epoch
  # must not be seed 1's first.
  digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=4).digest()
  return int.from_bytes(digest, "little")


@functools.lru_cache(maxsize=256)
def _table(num_records: int, seed: int) -> np.ndarray:
  # RandomState, because its streams are frozen: a run resumes under any numpy.
  return np.random.RandomState(seed).permutation(num_records).astype(np.uint16)


class BatchSource:
  """`source[step]`: the int32 records [M, rows, L+1] of M members at a step.

  Args:
    records: [n, L+1], an array or anything with `len` that is indexed by an int array.
    seeds: the seed of each member's order, [M]; members with equal seeds are read once.
    batch_size: rows of the global batch.
    rows: which rows of the global batch to read (a slice, a list of slices or indices),
      those of this process; all when None.
  """

  def __init__(self, records, seeds: Sequence[int], batch_size: int, rows=None):
    if not len(records):
      raise UserError("there are no records to train on; use more data or a shorter "
                      "data.sequence_length.")
    self._records = records
    self._seeds, self._member_to_seed = np.unique(np.asarray(seeds, np.int64), return_inverse=True)
    self._batch_size = batch_size
    self._rows = _row_indices(rows, batch_size)

  def __getitem__(self, step: int) -> np.ndarray:
    n = len(self._records)
    start = step * self._batch_size
    index = np.array([[record_index(start + row, n, seed) for row in self._rows]
                      for seed in self._seeds.tolist()], np.int64)
    records = np.asarray(self._records[index.reshape(-1)], np.int32)
    return records.reshape(*index.shape, records.shape[-1])[self._member_to_seed]


def _row_indices(rows, batch_size: int) -> list[int]:
  every = np.arange(batch_size)
  if rows is None:
    rows = slice(None)
  if isinstance(rows, slice):
    rows = [rows]
  if len(rows) and isinstance(rows[0], slice):
    return np.concatenate([every[r] for r in rows]).tolist()
  return every[np.asarray(rows, np.int64)].tolist()


class _Steps:
  """The steps [start, start + num_steps) of a BatchSource as a sequence."""

  def __init__(self, source: BatchSource, start: int, num_steps: int):
    self._source, self._start, self._num_steps = source, start, num_steps

  def __len__(self) -> int:
    return self._num_steps

  def __getitem__(self, i: int) -> np.ndarray:
    return self._source[self._start + i]


def read_ahead(source: BatchSource, start_step: int, num_steps: int, num_threads: int = 2,
               buffer: int = 8) -> Iterator[np.ndarray]:
  """Iterates `source[start_step]`, ... (`num_steps` of them), read ahead of use by threads."""
  dataset = grain.MapDataset.source(_Steps(source, start_step, num_steps))
  options = grain.ReadOptions(num_threads=num_threads,
                              prefetch_buffer_size=max(buffer, num_threads) if num_threads else 0)
  return iter(dataset.to_iter_dataset(options))


def eval_batches(records, num_sequences: int,
                 batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Up to `num_sequences` evenly spaced records in full batches, always the same.

  Yields:
    (tokens int32 [B, L+1], weights float32 [B]): the last batch is filled up with rows
    of weight 0.
  """
  n = len(records)
  indices = spaced(n, num_sequences) if num_sequences else np.arange(0)
  count = len(indices)
  for start in range(0, count, batch_size):
    chosen = indices[start:start + batch_size]
    weights = np.zeros(batch_size, np.float32)
    weights[:len(chosen)] = 1.0
    filled = np.concatenate([chosen, np.full(batch_size - len(chosen), chosen[0])])
    yield np.asarray(records[filled], np.int32), weights
