"""Means and proportions against closed forms and simulation."""

import math

import numpy as np
import pytest

from wd_plasticity.analysis import statistics


def test_mean_with_error():
  assert statistics.mean_with_error([1, 2, 3, 6]) == {
      "mean": 3.0, "se": pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4)), "n": 4}
  assert statistics.mean_with_error([5]) == {"mean": 5.0, "se": None, "n": 1}
  assert statistics.mean_with_error([]) == {"mean": None, "se": None, "n": 0}


def test_proportion_has_wilson_interval():
  p, n, z = 0.3, 50, 1.959963984540054
  centre = (p + z * z / (2 * n)) / (1 + z * z / n)
  half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  got = statistics.proportion(15, 50)
  assert got["low"] == pytest.approx(centre - half) and got["high"] == pytest.approx(centre + half)
  same = statistics.mean_with_error([1] * 15 + [0] * 35)
  assert (got["value"], got["se"]) == (pytest.approx(same["mean"]), pytest.approx(same["se"]))
  assert statistics.proportion(0, 9)["low"] == pytest.approx(0, abs=1e-12)
  assert statistics.proportion(0, 9)["high"] > 0.2
  assert statistics.proportion(0, 0)["value"] is None
  with pytest.raises(ValueError):
    statistics.proportion(5, 4)


def test_cluster_mean_of_single_units_is_the_mean():
  values = [1.0, 4.0, 2.0, 2.5]
  got = statistics.cluster_mean(values, [1] * 4, range(4))
  want = statistics.mean_with_error(values)
  assert got == {"mean": pytest.approx(want["mean"]), "se": pytest.approx(want["se"]), "n": 4,
                 "clusters": 4}


def test_cluster_mean_covers_correlated_units():
  rng = np.random.default_rng(0)
  means, errors, naive = [], [], []
  for _ in range(400):
    sizes = rng.integers(5, 20, 30)
    cluster = np.repeat(np.arange(30), sizes)
    x = rng.normal(size=30)[cluster] + rng.normal(size=sizes.sum())
    got = statistics.cluster_mean(x, np.ones_like(x), cluster)
    # Sums of each cluster say the same.
    sums = np.bincount(cluster, weights=x)
    assert statistics.cluster_mean(sums, sizes, range(30))["se"] == pytest.approx(got["se"])
    means.append(got["mean"])
    errors.append(got["se"])
    naive.append(statistics.mean_with_error(x)["se"])
  spread = np.std(means)
  assert np.mean(errors) == pytest.approx(spread, rel=0.1)
  assert np.mean(naive) < 0.5 * spread


def test_cluster_mean_of_little():
  assert statistics.cluster_mean([3.0], [2], ["a"]) == {
      "mean": 1.5, "se": None, "n": 2, "clusters": 1}
  assert statistics.cluster_mean([], [], [])["mean"] is None
