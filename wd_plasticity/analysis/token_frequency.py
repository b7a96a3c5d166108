"""Token losses by document and by how frequent the token is in the training corpus.

Weight decay is reported to cost rare tokens more than frequent ones while the mean loss
hardly moves (Fair Language Model Paradox, arXiv 2410.11985), so losses are split by the
training frequency of the predicted token. Tokens of one document are not independent:
every error here is clustered by document. All statistics follow from sums over *cells*,
the pairs of document and token id that occur in a token set.

Letters: C cells, V vocabulary, G documents, n records.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wd_plasticity.analysis import statistics
from wd_plasticity.errors import UserError

BINNINGS = ("log", "mass", "types")
_CHUNK_TOKENS = 1 << 22
_BACK_TOKENS = 1 << 14  # looked through at once for where a document begins
# The rarest logarithmic bins are joined until this share of the training tokens is in one:
# byte-pair ids that only ever occur inside longer ones would each have a bin of no weight.
_LEAST_MASS = 1e-3


def _chunks(records: np.ndarray):
  """(start, records of a chunk) through a memory map [n, L+1]."""
  rows = max(1, _CHUNK_TOKENS // records.shape[1])
  for start in range(0, len(records), rows):
    yield start, np.asarray(records[start:start + rows])


def count_tokens(records: np.ndarray, vocab_size: int) -> np.ndarray:
  """How often each token id occurs in records [n, L+1], int64 [V]."""
  counts_V = np.zeros(vocab_size, np.int64)
  for _, chunk in _chunks(records):
    counts_V += np.bincount(chunk.reshape(-1), minlength=vocab_size)
  return counts_V


def document_starts(records: Any, indices: np.ndarray, end_of_document: int,
                    begins: Sequence[int] = (0,)) -> np.ndarray:
  """Where the document of each chosen record's first token begins: its place in all tokens.

  Only what lies between a chosen record and the last end before it is read.

  Args:
    records: [n, L+1], indexed by int arrays: the documents of a split one after another, each
      closed by the token `end_of_document`.
    indices: of the chosen records, sorted [k].
    end_of_document: the token.
    begins: records at which a split begins, where there are several one after another.

  Returns:
    int64 [k].
  """
  width = records.shape[1]
  rows = max(1, _BACK_TOKENS // width)
  starts_k, place, start = [], 0, 0
  for index in np.asarray(indices).tolist():
    floor = max(b for b in begins if b <= index)
    if floor > place:
      place, start = floor, floor * width
    for stop in range(index, place, -rows):
      first = max(place, stop - rows)
      ends = np.flatnonzero(np.asarray(records[np.arange(first, stop)]) == end_of_document)
      if len(ends):
        start = first * width + int(ends[-1]) + 1
        break
    place = index
    starts_k.append(start)
  return np.array(starts_k, np.int64)


@dataclasses.dataclass(frozen=True)
class Bins:
  """A partition of the vocabulary by training frequency, from the rarest to the most frequent.

  Attributes:
    index_V: the bin of each token id.
    low, high: bounds of the relative frequency of each bin; in a bin when low <= p < high
      (`log`), or the least and the greatest frequency in it. The first bin holds the ids
      that never occur in training, if there are any, with low = high = 0.
    types: token ids in each bin.
    mass: share of the training tokens in each bin.
  """
  index_V: np.ndarray
  low: np.ndarray
  high: np.ndarray
  types: np.ndarray
  mass: np.ndarray

  def __len__(self) -> int:
    return len(self.low)


def make_bins(counts_V: np.ndarray, binning: str, num_bins: int = 0) -> Bins:
  """Cuts the vocabulary into bins; none is empty.

  Args:
    counts_V: occurrences in the training corpus.
    binning: 'log', equal steps of log10 of the relative frequency, with edges that do not
      depend on the corpus; the rarest are one bin, of 0.1 % of its tokens or more. 'mass',
      equal shares of the training tokens; 'types', equal shares of the token ids that
      occur: ids of one count share a bin, so that these are as equal as that allows.
    num_bins: per factor of ten for 'log' (0: 2), in all for the others (0: 10).

  Raises:
    UserError: for an unknown binning or a negative number.
  """
  if binning not in BINNINGS:
    raise UserError(f"binning={binning!r} is unknown; use one of {', '.join(BINNINGS)}.")
  if num_bins < 0:
    raise UserError(f"bins={num_bins} must be 0 (the usual number) or more.")
  num_bins = num_bins or (2 if binning == "log" else 10)
  seen_V = counts_V > 0
  p_V = counts_V / max(counts_V.sum(), 1)
  raw_V = np.full(len(counts_V), np.iinfo(np.int64).min)
  if binning == "log":
    # The tolerance keeps frequencies that are an edge, such as 0.001, on one side of it.
    raw_V[seen_V] = np.floor(np.log10(p_V[seen_V]) * num_bins + 1e-9)
    raw_V[seen_V] = np.maximum(raw_V[seen_V], _rarest_step(raw_V[seen_V], p_V[seen_V]))
  else:
    levels, level_of = np.unique(counts_V[seen_V], return_inverse=True)
    share = np.bincount(level_of, weights=p_V[seen_V] if binning == "mass" else None,
                        minlength=len(levels)).astype(np.float64)
    share /= max(share.sum(), 1e-300)
    middle = np.cumsum(share) - share / 2
    raw_V[seen_V] = np.minimum(num_bins * middle, num_bins - 1).astype(np.int64)[level_of]
  values, index_V = np.unique(raw_V, return_inverse=True)
  index_V = index_V.reshape(-1)
  low, high = np.full(len(values), np.inf), np.zeros(len(values))
  if binning == "log":
    seen = values > np.iinfo(np.int64).min
    low = np.where(seen, 10.0 ** (np.where(seen, values, 0) / num_bins), 0.0)
    high = np.where(seen, 10.0 ** (np.where(seen, values + 1, 0) / num_bins), 0.0)
    low[np.flatnonzero(seen)[:1]] = p_V[seen_V].min(initial=1.0)
  else:
    np.minimum.at(low, index_V, p_V)
    np.maximum.at(high, index_V, p_V)
  return Bins(index_V=index_V, low=low, high=high, types=np.bincount(index_V),
              mass=np.bincount(index_V, weights=p_V))


def _rarest_step(steps: np.ndarray, p: np.ndarray) -> int:
  """The step into which all rarer ones are joined, for `_LEAST_MASS` of the tokens in it."""
  values, place = np.unique(steps, return_inverse=True)
  mass = np.cumsum(np.bincount(place.reshape(-1), weights=p))
  return int(values[np.searchsorted(mass, min(_LEAST_MASS, mass[-1]))]) if len(values) else 0


@dataclasses.dataclass(frozen=True)
class TokenSet:
  """Chosen records, and the cell of each token that they predict.

  Attributes:
    indices: the records that were chosen, in order [n].
    cells: int32 [n, L], the cell of each predicted token (all but a record's first).
    documents: where each document that has predicted tokens begins, its place in all tokens [G].
    cell_documents: index into `documents` of each cell [C]; cells are in its order.
    cell_types: token id of each cell [C].
    cell_counts: predicted tokens of each cell [C].
  """
  indices: np.ndarray
  cells: np.ndarray
  documents: np.ndarray
  cell_documents: np.ndarray
  cell_types: np.ndarray
  cell_counts: np.ndarray

  def document_counts(self) -> np.ndarray:
    return self.document_sums(self.cell_counts)

  def document_sums(self, cell_sums: np.ndarray) -> np.ndarray:
    """Sums [G] over the cells of each document."""
    return np.bincount(self.cell_documents, weights=cell_sums, minlength=len(self.documents))

  def type_sums(self, cell_sums: np.ndarray, vocab_size: int) -> np.ndarray:
    """Sums [V] over the cells of each token id."""
    return np.bincount(self.cell_types, weights=cell_sums, minlength=vocab_size)

  def bin_sums(self, cell_sums: np.ndarray, bins: Bins) -> np.ndarray:
    """Sums [G, bins] over the cells of each document and bin."""
    shape = len(self.documents), len(bins)
    index = self.cell_documents * shape[1] + bins.index_V[self.cell_types]
    return np.bincount(index, weights=cell_sums, minlength=math.prod(shape)).reshape(shape)


def choose_tokens(records: Any, indices: np.ndarray, end_of_document: int, vocab_size: int,
                  begins: Sequence[int] = (0,)) -> TokenSet:
  """The token set of records [n, L+1] at sorted indices; all else as of `document_starts`."""
  starts_n = document_starts(records, indices, end_of_document, begins)
  width = records.shape[1]
  rows = max(1, _CHUNK_TOKENS // width)
  keys, places = [], []
  for first in range(0, len(indices), rows):
    chosen = np.asarray(indices[first:first + rows])
    tokens = np.asarray(records[chosen], np.int64)
    # Of every token the last place after an end, which closes its own document.
    after = np.where(tokens == end_of_document, np.arange(1, width + 1), 0)[:, :-1]
    last = np.maximum.accumulate(np.pad(after, ((0, 0), (1, 0))), axis=1)
    document = np.where(last, chosen[:, None] * width + last, starts_n[first:first + rows, None])
    key, place = np.unique((document * vocab_size + tokens)[:, 1:], return_inverse=True)
    keys.append(key)
    places.append(place.reshape(len(chosen), -1).astype(np.int32))
  all_keys = np.unique(np.concatenate(keys))
  cells = np.concatenate([np.searchsorted(all_keys, key).astype(np.int32)[place]
                          for key, place in zip(keys, places, strict=True)])
  documents, cell_documents = np.unique(all_keys // vocab_size, return_inverse=True)
  return TokenSet(
      indices=indices, cells=cells, documents=documents,
      cell_documents=cell_documents.reshape(-1), cell_types=all_keys % vocab_size,
      cell_counts=np.bincount(cells.reshape(-1), minlength=len(all_keys)))


def add_losses(cell_sums_MxC: np.ndarray, cells_BxL: np.ndarray, losses_MxBxL: np.ndarray):
  """Adds token losses of a batch to the sums of their cells, in float64 and in place."""
  low, high = int(cells_BxL.min()), int(cells_BxL.max())  # neighbouring records: few documents
  index = (cells_BxL - low).reshape(-1)
  for sums, losses in zip(cell_sums_MxC, losses_MxBxL, strict=True):
    sums[low:high + 1] += np.bincount(index, weights=losses.reshape(-1), minlength=high - low + 1)


def frequent_types(tokens: TokenSet, vocab_size: int, min_count: int) -> np.ndarray:
  """bool [V]: the token ids that a set predicts at least `min_count` times."""
  return tokens.type_sums(tokens.cell_counts, vocab_size) >= max(min_count, 1)


def balanced_mean(tokens: TokenSet, cell_sums: np.ndarray, types_V: np.ndarray) -> dict:
  """The token-balanced mean (1/|types|) sum_v L_v, L_v being the mean loss of token id v.

  Its standard error is the delete-one-document jackknife (Efron and Stein 1981), which
  does not pass over ids that occur in few documents as a linearised error would.

  Args:
    tokens: the token set.
    cell_sums: losses summed over each cell [C].
    types_V: which ids to average over; each must occur in the set.

  Returns:
    mean, se, n (token ids) and clusters (documents); None where not defined.
  """
  num_types, num_documents = int(np.count_nonzero(types_V)), len(tokens.documents)
  if not num_types:
    return {"mean": None, "se": None, "n": 0, "clusters": num_documents}
  sums_V = tokens.type_sums(cell_sums, len(types_V))
  counts_V = tokens.type_sums(tokens.cell_counts, len(types_V))
  losses_V = sums_V / np.maximum(counts_V, 1)
  total = losses_V[types_V].sum()
  used = types_V[tokens.cell_types]
  types, document = tokens.cell_types[used], tokens.cell_documents[used]
  rest = counts_V[types] - tokens.cell_counts[used]  # tokens of the id in other documents
  without = np.divide(sums_V[types] - cell_sums[used], rest, where=rest > 0, out=np.zeros_like(
      rest, dtype=np.float64))
  change_G = np.bincount(document, weights=without - losses_V[types], minlength=num_documents)
  vanished_G = np.bincount(document, weights=rest == 0, minlength=num_documents)
  se = None
  if num_documents > 1 and vanished_G.max() < num_types:
    means_G = (total + change_G) / (num_types - vanished_G)
    spread = np.sum((means_G - means_G.mean()) ** 2)
    se = float(np.sqrt((num_documents - 1) / num_documents * spread))
  return {"mean": float(total / num_types), "se": se, "n": num_types, "clusters": num_documents}


def difference(a: dict, b: dict) -> dict:
  """a minus b, means of independent sets of documents, with a 95 % interval.

  The interval is Student's with the degrees of freedom of Welch (1947): a set may hold
  few documents.

  Args:
    a, b: with mean, se and clusters, as of `statistics.cluster_mean`.

  Returns:
    value, se, low, high; None where not defined.
  """
  out = dict.fromkeys(("value", "se", "low", "high"))
  if a["mean"] is None or b["mean"] is None:
    return out
  out["value"] = a["mean"] - b["mean"]
  if a["se"] is None or b["se"] is None:
    return out
  from scipy import stats  # pylint: disable=g-import-not-at-top  # half a second

  variances = np.array([a["se"], b["se"]]) ** 2
  out["se"] = float(np.sqrt(variances.sum()))
  if out["se"] == 0:
    return out | {"low": out["value"], "high": out["value"]}
  freedom = variances.sum() ** 2 / np.sum(
      variances ** 2 / np.array([a["clusters"] - 1, b["clusters"] - 1]))
  half = float(stats.t.ppf(0.975, freedom)) * out["se"]
  return out | {"low": out["value"] - half, "high": out["value"] + half}


def bin_means(tokens: TokenSet, cell_sums: np.ndarray, bins: Bins) -> list[dict]:
  """`statistics.cluster_mean` of each bin; None for the mean of a bin without tokens."""
  sums_GxK = tokens.bin_sums(cell_sums, bins)
  counts_GxK = tokens.bin_sums(tokens.cell_counts, bins)
  documents = np.arange(len(sums_GxK))
  return [statistics.cluster_mean(sums_GxK[:, k], counts_GxK[:, k], documents)
          for k in range(len(bins))]
