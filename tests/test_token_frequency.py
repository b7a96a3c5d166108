"""Token frequencies, the documents of tokens, and errors clustered by document."""

import collections

import numpy as np
import pytest

from wd_plasticity.analysis import token_frequency as tf
from wd_plasticity.analysis.statistics import cluster_mean
from wd_plasticity.data.records import JoinedRecords
from wd_plasticity.errors import UserError

END = 0


def _split(rng, lengths, record, vocab_size=30):
  """Records of documents of these lengths, and of every token where its document begins."""
  stream, owners = [], []
  for length in lengths:
    ids = rng.zipf(1.5, size=length) % (vocab_size - 1) + 1
    owners += [len(stream)] * (length + 1)
    stream += [*ids.tolist(), END]
  n = len(stream) // record
  cut = lambda x: np.array(x[:n * record]).reshape(n, record)
  return cut(stream).astype(np.uint16), cut(owners)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(tf, "_CHUNK_TOKENS", 40)  # so that every loop runs several times
  monkeypatch.setattr(tf, "_BACK_TOKENS", 16)


def test_tokens_are_counted_as_a_counter_counts_them(rng):
  records, _ = _split(rng, [50, 70, 9], 11)
  expected = collections.Counter(records.reshape(-1).tolist())
  counts = tf.count_tokens(records, 30)
  assert counts.tolist() == [expected[v] for v in range(30)]


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.mark.parametrize("chosen", [range(28), [0, 5, 11, 12, 26], [13], [26, 27]])
def test_every_token_goes_to_its_own_document(rng, chosen):
  # Documents shorter and longer than a record, empty ones, ends on both sides of a border.
  records, owners = _split(rng, [3, 0, 0, 25, 6, 14, 100, 1, 7, 8, 8, 0, 40], 8)
  assert len(records) == 28
  tokens = tf.choose_tokens(records, np.array(chosen), END, 30)
  chosen = list(chosen)
  np.testing.assert_array_equal(
      tokens.documents[tokens.cell_documents][tokens.cells], owners[chosen, 1:])
  np.testing.assert_array_equal(tokens.cell_types[tokens.cells], records[chosen][:, 1:])
  np.testing.assert_array_equal(np.bincount(tokens.cells.reshape(-1)), tokens.cell_counts)


def test_no_document_reaches_from_one_split_into_the_next(rng):
  whole, owners = _split(rng, [20, 50], 8)
  parts = JoinedRecords([whole[:5], whole[5:]])  # the second document goes on in the second part
  tokens = tf.choose_tokens(parts, np.arange(len(whole)), END, 30, (0, 5))
  found = tokens.documents[tokens.cell_documents][tokens.cells]
  assert owners[4, 7] == owners[5, 0] == 21
  assert found[4, -1] == 21 and found[5, 0] == 5 * 8


def test_sums_over_cells_equal_sums_over_tokens(rng):
  records, owners = _split(rng, rng.integers(0, 60, 20), 9)
  tokens = tf.choose_tokens(records, np.arange(len(records)), END, 30)
  losses = rng.exponential(size=(2, *tokens.cells.shape)).astype(np.float32)
  sums = np.zeros((2, len(tokens.cell_counts)))
  for start in range(0, len(records), 4):
    tf.add_losses(sums, tokens.cells[start:start + 4], losses[:, start:start + 4])
  bins = tf.make_bins(tf.count_tokens(records, 30), "types", 4)
  targets, owners = records[:, 1:], owners[:, 1:]
  for m in range(2):
    by_bin = tokens.bin_sums(sums[m], bins)
    for g, document in enumerate(tokens.documents):
      own = owners == document
      np.testing.assert_allclose(tokens.document_sums(sums[m])[g], losses[m][own].sum(), rtol=1e-6)
      for k in range(len(bins)):
        mask = own & (bins.index_V[targets] == k)
        np.testing.assert_allclose(by_bin[g, k], losses[m][mask].sum(), rtol=1e-6)
    assert tokens.document_counts().sum() == targets.size
    by_type = tokens.type_sums(sums[m], 30)
    np.testing.assert_allclose(by_type[7], losses[m][targets == 7].sum(), rtol=1e-6)


@pytest.mark.parametrize("binning,bins", [("log", 0), ("log", 1), ("mass", 5), ("types", 5)])
def test_bins_partition_the_vocabulary(rng, binning, bins):
  counts = np.sort(rng.zipf(1.3, size=400).clip(max=10**7))
  counts[:7] = 0
  rng.shuffle(counts)
  made = tf.make_bins(counts, binning, bins)
  assert made.index_V.shape == (400,) and set(made.index_V) == set(range(len(made)))
  assert made.types.sum() == 400 and np.isclose(made.mass.sum(), 1)
  assert made.types[0] == 7 and made.low[0] == made.high[0] == made.mass[0] == 0
  assert set(made.index_V[counts == 0]) == {0}
  p = counts / counts.sum()
  assert np.all(np.diff(made.low) > 0)
  assert np.all(p >= made.low[made.index_V] * (1 - 1e-9))
  assert np.all(p <= made.high[made.index_V] * (1 + 1e-9))
  # The more frequent of two ids is never in a lower bin.
  assert np.all(np.diff(made.index_V[np.argsort(counts, kind="stable")]) >= 0)


def test_bins_have_the_shares_they_promise():
  counts = np.arange(1, 1001)
  assert tf.make_bins(counts, "types", 10).types.tolist() == [100] * 10
  mass = tf.make_bins(counts, "mass", 10).mass
  np.testing.assert_allclose(mass, 0.1, atol=0.002)
  edges = tf.make_bins(np.array([1, 9, 10, 90, 100, 790]), "log", 1)  # p from 0.001
  np.testing.assert_allclose(edges.low, [1e-3, 1e-2, 1e-1])
  assert edges.index_V.tolist() == [0, 0, 1, 1, 2, 2]
  joined = tf.make_bins(np.array([1, 10, 7000, 93_000, 9 * 10**5, 0]), "log", 1)
  assert joined.index_V.tolist() == [1, 1, 1, 2, 3, 0]
  with pytest.raises(UserError, match="binning='deciles'"):
    tf.make_bins(counts, "deciles")


def _brute_balanced(owners, targets, losses, types, without=None):
  keep = owners != without
  means = [losses[keep & (targets == v)].mean() for v in types if (keep & (targets == v)).any()]
  return np.mean(means)


def test_balanced_mean_equals_brute_force(rng):
  records, owners = _split(rng, rng.integers(5, 60, 12), 9)
  tokens = tf.choose_tokens(records, np.arange(len(records)), END, 30)
  losses = rng.exponential(size=tokens.cells.shape)
  sums = np.zeros((1, len(tokens.cell_counts)))
  tf.add_losses(sums, tokens.cells, losses[None])
  types_V = tf.frequent_types(tokens, 30, 3)
  counts = collections.Counter(records[:, 1:].reshape(-1).tolist())
  types = [v for v in range(30) if counts[v] >= 3]
  assert np.flatnonzero(types_V).tolist() == types and 5 < len(types) < 29
  got = tf.balanced_mean(tokens, sums[0], types_V)
  owners, targets = owners[:, 1:], records[:, 1:]
  assert got["mean"] == pytest.approx(_brute_balanced(owners, targets, losses, types))
  left_out = [_brute_balanced(owners, targets, losses, types, g) for g in tokens.documents]
  n = len(left_out)
  assert got["se"] == pytest.approx(np.sqrt((n - 1) / n * np.sum((left_out - np.mean(
      left_out)) ** 2)))
  assert got["n"] == len(types) and got["clusters"] == n
  assert tf.balanced_mean(tokens, sums[0], np.zeros(30, bool))["mean"] is None


def _losses_of_documents(rng, num_documents):
  """Token losses with an effect of the document and of its token ids, mean 3."""
  lengths = rng.integers(20, 200, num_documents)
  records, owners = _split(rng, lengths, 8, vocab_size=20)
  tokens = tf.choose_tokens(records, np.arange(len(records)), END, 20)
  level = rng.normal(0, 0.5, (num_documents, 1)) + rng.normal(0, 0.3, (num_documents, 20))
  number = np.unique(owners, return_inverse=True)[1].reshape(owners.shape)
  losses = 3 + level[number[:, 1:], records[:, 1:]] + rng.normal(0, 1, tokens.cells.shape)
  sums = np.zeros((1, len(tokens.cell_counts)))
  tf.add_losses(sums, tokens.cells, losses[None])
  return tokens, sums[0]


def _mean(tokens, sums):
  return cluster_mean(tokens.document_sums(sums), tokens.document_counts(), tokens.documents)


def test_intervals_cover_the_truth_as_often_as_they_say(rng, monkeypatch):
  monkeypatch.setattr(tf, "_CHUNK_TOKENS", 1 << 20)
  types_V = np.arange(20) < 12
  covered, naive, balanced = [], [], []
  for _ in range(300):
    a, b = _losses_of_documents(rng, 12), _losses_of_documents(rng, 30)
    gap = tf.difference(_mean(*a), _mean(*b))
    covered.append(gap["low"] < 0 < gap["high"])
    # Treating tokens as independent must fail here, or this test shows nothing.
    naive.append(abs(gap["value"]) < 1.96 * 1.15 * np.sqrt(
        1 / a[0].cell_counts.sum() + 1 / b[0].cell_counts.sum()))
    gap = tf.difference(*(tf.balanced_mean(*x, types_V) for x in (a, b)))
    balanced.append(gap["low"] < 0 < gap["high"])
  assert 0.91 < np.mean(covered) <= 0.985  # binomial: 0.95 +- 3 x 0.0126
  assert 0.91 < np.mean(balanced) <= 0.985
  assert np.mean(naive) < 0.6


def test_what_cannot_be_known_is_none(rng):
  records, _ = _split(rng, [200], 9)  # one document has no error
  tokens = tf.choose_tokens(records, np.arange(len(records)), END, 30)
  sums = tokens.cell_counts * 2.0
  mean = _mean(tokens, sums)
  assert mean["mean"] == pytest.approx(2) and mean["se"] is None
  assert tf.balanced_mean(tokens, sums, tf.frequent_types(tokens, 30, 1))["se"] is None
  assert tf.difference(mean, mean) == {"value": 0.0, "se": None, "low": None, "high": None}
  counts = np.arange(30) + 1
  counts[25:] = 0
  bins = tf.make_bins(counts, "types", 3)
  means = tf.bin_means(tokens, sums, bins)
  assert [m["n"] for m in means] == np.bincount(
      bins.index_V[records[:, 1:]].reshape(-1), minlength=4).tolist()
