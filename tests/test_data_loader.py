"""Batches: a pure function of (seed, step), whole epochs, shares of processes, evaluation."""

import sys
import tracemalloc

import numpy as np
import pytest

from wd_plasticity.data import loader
from wd_plasticity.data import records as records_lib
from wd_plasticity.errors import UserError


def numbered(n, length=5, dtype=np.uint16):
  """Records whose first token is their number."""
  return np.arange(n, dtype=dtype)[:, None] + np.zeros(length, dtype)


@pytest.mark.parametrize("n", [1, 2, 3, 37, 256, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2**40, -3])
def test_every_epoch_is_a_permutation(n, seed):
  orders = [[loader.record_index(e * n + i, n, seed) for i in range(n)] for e in range(4)]
  for order in orders:
    assert sorted(order) == list(range(n))
  if n >= 37:
    assert len({tuple(o) for o in orders}) == 4


def test_large_epochs_are_permutations():
  n = loader._SMALL + 3  # the first sizes that are not looked up in a table
  orders = [[loader.record_index(e * n + i, n, 9) for i in range(n)] for e in range(2)]
  assert all(sorted(order) == list(range(n)) for order in orders)
  assert orders[0] != orders[1]


def test_neighbouring_seeds_do_not_share_orders():
  n = 200
  orders = {tuple(loader.record_index(e * n + i, n, seed) for i in range(n))
            for seed in range(8) for e in range(8)}
  assert len(orders) == 64


@pytest.mark.parametrize("n", [4000, 20000])
def test_order_looks_random(n):
  # Correlation of a random order of n with the identity has standard deviation n**-0.5.
  order = np.array([loader.record_index(i, n, 5) for i in range(n)])
  assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 * n**-0.5
  assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 * n**-0.5


def test_batches_walk_through_the_stream_and_over_epochs():
  records = numbered(10)
  source = loader.BatchSource(records, seeds=[3], batch_size=4)
  stream = np.concatenate([source[step][0, :, 0] for step in range(10)])
  assert [loader.record_index(p, 10, 3) for p in range(40)] == stream.tolist()
  for epoch in range(4):
    assert sorted(stream[epoch * 10:epoch * 10 + 10]) == list(range(10))
  batch = source[2]
  assert batch.shape == (1, 4, 5) and batch.dtype == np.int32


def test_members_share_or_own_their_order():
  source = loader.BatchSource(numbered(50), seeds=[7, 3, 7], batch_size=6)
  batch = source[11]
  assert batch.shape == (3, 6, 5)
  np.testing.assert_array_equal(batch[0], batch[2])
  assert (batch[0] != batch[1]).any()
  for member, seed in enumerate([7, 3, 7]):
    np.testing.assert_array_equal(
        batch[member], loader.BatchSource(numbered(50), [seed], 6)[11][0])


@pytest.mark.parametrize("rows", [
    slice(2, 5), [slice(0, 2), slice(6, 8)], [5, 1], np.array([0, 7]), slice(None), [slice(3, 3)],
    np.array([], int)])
def test_processes_read_their_own_rows(rows):
  read = []

  class Recorded:
    def __len__(self):
      return 100

    def __getitem__(self, index):
      read.extend(index)
      return numbered(100)[index]

  whole = loader.BatchSource(numbered(100), [0, 1], 8)[9]
  part = loader.BatchSource(Recorded(), [0, 1], 8, rows)[9]
  wanted = (np.concatenate([np.arange(8)[r] for r in rows])
            if isinstance(rows, list) and isinstance(rows[0], slice) else np.arange(8)[rows])
  np.testing.assert_array_equal(part, whole[:, wanted])
  joined = records_lib.JoinedRecords([numbered(100)])
  np.testing.assert_array_equal(loader.BatchSource(joined, [0, 1], 8, rows)[9], part)
  assert len(read) == 2 * len(wanted)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_read_ahead_equals_the_source_and_resumes(num_threads):
  source = loader.BatchSource(numbered(23), [0, 1], 4)
  whole = list(loader.read_ahead(source, 0, 30, num_threads))
  assert len(whole) == 30
  for step, batch in enumerate(whole):
    np.testing.assert_array_equal(batch, source[step])
  resumed = list(loader.read_ahead(source, 17, 13, num_threads, buffer=2))
  np.testing.assert_array_equal(np.stack(resumed), np.stack(whole[17:]))


def test_no_steps_left():
  assert not list(loader.read_ahead(loader.BatchSource(numbered(3), [0], 2), 5, 0))


@pytest.mark.parametrize("n", [200, 1_000_000])
def test_any_step_costs_the_same_and_little(n):
  """Counted in calls and bytes: no order of all records, no walk through earlier steps."""
  source = loader.BatchSource(np.zeros((n, 257), np.uint16), [0], 16)

  def cost(step):
    calls = 0
    def count(frame, event, argument):
      nonlocal calls
      calls += event in ("call", "c_call")
    tracemalloc.start()
    sys.setprofile(count)
    try:
      source[step]
    finally:
      sys.setprofile(None)
      peak = tracemalloc.get_traced_memory()[1]
      tracemalloc.stop()
    return calls, peak

  cost(0)

  near, far = cost(0), cost(10**9)
  assert far[0] <= near[0] + 20 and near[0] < 1000
  assert max(near[1], far[1]) < 200_000


def test_evaluation_is_evenly_spaced_and_padded():
  batches = list(loader.eval_batches(numbered(100), 10, 4))
  assert [w.tolist() for _, w in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
  assert all(t.shape == (4, 5) and t.dtype == np.int32 and w.dtype == np.float32
             for t, w in batches)
  chosen = np.concatenate([t[w > 0, 0] for t, w in batches])
  assert chosen.tolist() == list(range(0, 100, 10))
  # Fewer records than asked for: each once.
  few = list(loader.eval_batches(numbered(3), 10, 4))
  assert [t[w > 0, 0].tolist() for t, w in few] == [[0, 1, 2]]


def test_joined_records_are_the_concatenation():
  parts = [numbered(7), numbered(0), numbered(4) + 7]
  joined, whole = records_lib.JoinedRecords(parts), np.concatenate(parts)
  assert len(joined) == 11 and joined.shape == whole.shape and joined.dtype == whole.dtype
  np.testing.assert_array_equal(joined[np.arange(11)], whole)
  np.testing.assert_array_equal(joined[[8, 0, -1, 8]], whole[[8, 0, -1, 8]])
  np.testing.assert_array_equal(joined[7], whole[7])
  with pytest.raises(IndexError):
    joined[11]
  with pytest.raises(TypeError):
    joined[1:3]


def test_no_records():
  with pytest.raises(UserError, match="no records"):
    loader.BatchSource(numbered(0), [0], 2)
