"""Means and proportions with their standard errors; None where one is not defined."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def mean_with_error(values: Sequence[float]) -> dict[str, Any]:
  """Mean of independent values and its standard error (sample deviation over sqrt n)."""
  values = np.asarray(values, np.float64)
  n = int(values.size)
  return {
      "mean": float(values.mean()) if n else None,
      "se": float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
      "n": n,
  }


def proportion(successes: int, n: int) -> dict[str, Any]:
  """A proportion, its standard error, and its 95 % interval by Wilson (1927).

  The standard error is that of the mean of n zeros and ones, as `mean_with_error` has it.
  """
  if not 0 <= successes <= n:
    raise ValueError(f"{successes} successes of {n}.")
  if n == 0:
    return {"value": None, "se": None, "low": None, "high": None, "n": 0}
  from scipy import stats  # pylint: disable=g-import-not-at-top  # half a second

  interval = stats.binomtest(int(successes), int(n)).proportion_ci(0.95, method="wilson")
  value = successes / n
  return {
      "value": float(value),
      "se": float(np.sqrt(value * (1 - value) / (n - 1))) if n > 1 else None,
      "low": float(interval.low),
      "high": float(interval.high),
      "n": int(n),
  }


def cluster_mean(sums: Sequence[float], counts: Sequence[float],
                 clusters: Sequence[Any]) -> dict[str, Any]:
  """Mean over units that come in clusters, such as tokens in sequences of one document.

  The ratio estimator sum(sums) / sum(counts) with its linearised, cluster-robust
  standard error (Cochran, Sampling Techniques, 1977, 6.3 and 9A.5).

  Args:
    sums: [n] sums over the units of each group.
    counts: [n] numbers of units.
    clusters: [n] cluster of each group; groups of one cluster need not be independent.

  Returns:
    mean, se, n (the number of units) and clusters (how many there are).
  """
  sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
  total = counts.sum()
  names, index = np.unique(np.asarray(clusters), return_inverse=True)
  num_clusters = len(names)
  if total == 0:
    return {"mean": None, "se": None, "n": 0, "clusters": num_clusters}
  mean = sums.sum() / total
  residuals = np.bincount(index.reshape(-1), weights=sums - mean * counts, minlength=num_clusters)
  se = None
  if num_clusters > 1:
    se = float(np.sqrt(num_clusters / (num_clusters - 1) * np.sum(residuals**2)) / total)
  return {"mean": float(mean), "se": se, "n": int(total), "clusters": num_clusters}
