"""Uncertainty of means over seeds and items that are crossed: draws of what the means may be.

Every member (a weight decay with a seed) is tested on the same items, and the seeds are mostly
the same for all decays. A mean over both is uncertain through the items (how hard those are
that were drawn), through the seeds, and through what is left. Bootstrapping both sides at
once counts the rest twice or more (Owen 2007, The pigeonhole bootstrap), and percentiles over
two or three seeds tell nothing. So the items are resampled, together for all members, and
the variance of the seeds comes from the two-way analysis of variance with its few degrees of
freedom. The rest, the noise of seed x item, is in both and counts once: it is taken out of
the shared effect of the seeds, which has the fewest degrees of freedom, and for what tells
decays apart it is taken out of the items' part, where its estimate is a small correction
(in simulation, bench/coverage.py, intervals of differences are too short the other way).

Letters: T tasks, D weight decays, S seeds, I items, B draws.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

NUM_DRAWS = 4000
_MANY_ITEMS = 2000


@dataclasses.dataclass(frozen=True)
class Strata:
  """A variance between seeds and what is known of it.

  Attributes:
    mean_square: its estimate, which holds `rest` too.
    rest: what the noise of seed x item adds to it.
    freedom: degrees of freedom.
  """
  mean_square: float
  rest: float
  freedom: int

  @property
  def variance(self) -> float:
    return max(self.mean_square - self.rest, 0.0)


def _variances(variance: float, freedom: float, rng: np.random.Generator, size: int
               ) -> np.ndarray:
  """[B] draws such that a normal with these variances has the tails of Student's t."""
  return variance * freedom / rng.chisquare(freedom, size)



@dataclasses.dataclass(frozen=True)
class Fit:
  """Means of the decays and what they may be.

  Attributes:
    mean_D: over tasks, seeds and items.
    draws_BxD: of the true means; all equal to `mean_D` when nothing is known of the errors.
    seeds_D: members of each decay.
    items: of all tasks together.
    known: whether there is anything to compute an error from.
    item_cov_DxD: covariance of `mean_D` through the items, which holds the rest too.
    rest: variance of one member's mean through the noise of seed x item.
    shared: of the seeds' effect on all decays alike; None if it is not told apart.
    own: of a seed's effect on one decay; None with one seed.
  """
  mean_D: np.ndarray
  draws_BxD: np.ndarray
  seeds_D: np.ndarray
  items: int
  known: bool
  item_cov_DxD: np.ndarray
  rest: float
  shared: Strata | None
  own: Strata | None


def draws(tasks: Sequence[np.ndarray], errors: Sequence[np.ndarray | None] = (), *,
          num_draws: int = NUM_DRAWS, seed: int = 0) -> Fit:
  """Fits means over tasks of equal weight, seeds and items.

  Args:
    tasks: scores_DxSxI of each task. A member that is missing is all NaN; one that is
      missing in any task counts in none. An item that is NaN for some member is left out.
    errors: per task None, or [D, S] standard errors of scores with I = 1, for means whose
      items are not known. They are taken as independent, which is too wide for differences.
    num_draws: B.
    seed: of the draws.

  Raises:
    ValueError: if a decay has no member or a task no item.
  """
  errors = list(errors) or [None] * len(tasks)
  valid_DxS = np.all([~np.isnan(x).all(-1) for x in tasks], axis=0)
  used_S = valid_DxS.any(0)
  valid_DxS = valid_DxS[:, used_S]
  seeds_D = valid_DxS.sum(1)
  if not len(seeds_D) or not seeds_D.min():
    raise ValueError("every weight decay needs a member that has all tasks.")
  tasks = [_complete(x[:, used_S], valid_DxS) for x in tasks]
  rng = np.random.default_rng([seed, 1])
  means_TxDxS = np.stack([x.mean(-1) for x in tasks])
  member_DxS = means_TxDxS.mean(0)
  mean_D = _over_seeds(member_DxS, valid_DxS)
  noise_BxD = np.zeros((num_draws, len(mean_D)))
  cov_DxD = np.zeros((len(mean_D),) * 2)
  for t, (x_DxSxI, se_DxS) in enumerate(zip(tasks, errors, strict=True)):
    if x_DxSxI.shape[-1] > 1:
      z_DxI = _over_seeds(x_DxSxI, valid_DxS)
      cov_DxD += np.atleast_2d(np.cov(z_DxI)) / z_DxI.shape[1] / len(tasks) ** 2
      noise_BxD += _item_noise(z_DxI, num_draws, (seed, t)) / len(tasks)
    elif se_DxS is not None:
      squares_DxS = np.where(valid_DxS, np.nan_to_num(se_DxS[:, used_S]) ** 2, 0.0)
      se_D = np.sqrt(squares_DxS.sum(1)) / seeds_D
      cov_DxD += np.diag(se_D**2) / len(tasks) ** 2
      noise_BxD += rng.standard_normal(noise_BxD.shape) * se_D / len(tasks)
  shared, own = _strata(tasks, member_DxS, valid_DxS)
  if own is not None:
    noise_BxD = _without_rest(noise_BxD, cov_DxD, own, seeds_D, crossed=shared is not None)
    noise_BxD += _own_noise(own, seeds_D, rng, num_draws, crossed=shared is not None)
  if shared is not None:
    noise_BxD += _shared_noise(shared, cov_DxD, seeds_D[0], rng, num_draws)
  known = own is not None or shared is not None or bool(np.any(cov_DxD > 0))
  rest = 0.0 if own is None and shared is None else (own or shared).rest
  return Fit(mean_D, mean_D + noise_BxD, seeds_D, sum(x.shape[-1] for x in tasks), known,
             cov_DxD, rest, shared, own)


def _complete(x_DxSxI: np.ndarray, valid_DxS: np.ndarray) -> np.ndarray:
  """Scores of the items that count for every member; 0 for members that are missing."""
  x_DxSxI = np.where(valid_DxS[..., None], np.asarray(x_DxSxI, np.float64), 0.0)
  x_DxSxI = x_DxSxI[..., ~np.isnan(x_DxSxI).any((0, 1))]
  if not x_DxSxI.shape[-1]:
    raise ValueError("no item counts for every member.")
  return x_DxSxI


def _over_seeds(x: np.ndarray, valid_DxS: np.ndarray) -> np.ndarray:
  """Mean over the seeds that are there, of [D, S] or [D, S, I]."""
  count_D = valid_DxS.sum(1)
  weight_DxS = valid_DxS / count_D[:, None]
  return np.einsum("ds...,ds->d...", x, weight_DxS)


def _item_noise(z_DxI: np.ndarray, num_draws: int, seed: tuple[int, int]) -> np.ndarray:
  """[B, D] deviations of the means over resampled items from the means.

  The factor makes their variance that of the sample with n - 1. Beyond 2,000 items the
  limit of the bootstrap is drawn, a normal distribution with the items' covariance.
  """
  n = z_DxI.shape[1]
  centred_DxI = z_DxI - z_DxI.mean(1, keepdims=True)
  if n > _MANY_ITEMS:
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(z_DxI)) / n)
    root_DxD = vectors * np.sqrt(np.maximum(values, 0.0))
    rng = np.random.default_rng([2, *seed, n])
    return rng.standard_normal((num_draws, len(z_DxI))) @ root_DxD.T
  counts_BxI = _resampled(n, num_draws, seed)
  return (counts_BxI.astype(np.float32) @ centred_DxI.T.astype(np.float32)) / np.sqrt(n * (n - 1))


@functools.lru_cache(maxsize=16)
def _resampled(n: int, num_draws: int, seed: tuple[int, int]) -> np.ndarray:
  """[B, n] how often each of n items is in a resample; the same for all members."""
  rng = np.random.default_rng([3, *seed, n])
  rows = [rng.multinomial(n, np.full(n, 1 / n), size=min(500, num_draws - i)).astype(np.uint8)
          for i in range(0, num_draws, 500)]
  return np.concatenate(rows)


def _without_rest(noise_BxD: np.ndarray, cov_DxD: np.ndarray, own: Strata, seeds_D: np.ndarray,
                  crossed: bool) -> np.ndarray:
  """Items' errors less the noise of seed x item that comes again with the seeds of `own`.

  Crossed, this is of what tells decays apart, the errors less their mean over decays.
  """
  common_Bx1 = noise_BxD.mean(1, keepdims=True) if crossed else np.zeros((len(noise_BxD), 1))
  num_decays = len(seeds_D)
  variance, rest = np.trace(cov_DxD), own.rest * np.sum(1 / seeds_D)
  if crossed:
    variance -= cov_DxD.sum() / num_decays
    rest *= 1 - 1 / num_decays
  share = max(1 - rest / variance, 0.0) if variance > 0 else 0.0
  return common_Bx1 + (noise_BxD - common_Bx1) * np.sqrt(share)


def _strata(tasks, member_DxS: np.ndarray, valid_DxS: np.ndarray):
  """Variances of the shared effect of seeds and of the own one (`Fit.shared`, `Fit.own`)."""
  num_decays, num_seeds = valid_DxS.shape
  if not valid_DxS.all():
    return None, _nested(tasks, member_DxS, valid_DxS)
  if num_seeds < 2:
    return None, None
  freedom = num_seeds - 1
  shared = Strata(member_DxS.mean(0).var(ddof=1),
                  _rest([_centre(x.mean(0), 0, 1) for x in tasks], freedom), freedom)
  if num_decays < 2:
    return shared, None
  freedom *= num_decays - 1
  own = Strata(np.sum(_centre(member_DxS, 0, 1) ** 2) / freedom,
               _rest([_centre(x, 0, 1, 2) for x in tasks], freedom), freedom)
  return shared, own


def _nested(tasks, member_DxS: np.ndarray, valid_DxS: np.ndarray) -> Strata | None:
  """Seeds as if every decay had its own: the pooled variance within decays."""
  freedom = int(np.sum(valid_DxS.sum(1) - 1))
  if not freedom:
    return None

  def within(x):
    rest = x - _over_seeds(x, valid_DxS)[:, None]
    return np.where(valid_DxS.reshape(valid_DxS.shape + (1,) * (x.ndim - 2)), rest, 0.0)

  rest = _rest([_centre(within(x), 2) for x in tasks], freedom)
  return Strata(np.sum(within(member_DxS) ** 2) / freedom, rest, freedom)


def _centre(x: np.ndarray, *axes: int) -> np.ndarray:
  """Without the mean along each of the axes: the interaction of these factors."""
  for axis in axes:
    x = x - x.mean(axis, keepdims=True)
  return x


def _rest(residuals: Sequence[np.ndarray], freedom: int) -> float:
  """Variance of a mean over items, then tasks, by residuals [..., I] of each task."""
  each = [np.sum(e**2) / (freedom * (e.shape[-1] - 1)) / e.shape[-1] if e.shape[-1] > 1 else 0.0
          for e in residuals]
  return float(np.sum(each)) / len(residuals) ** 2


def _own_noise(own: Strata, seeds_D: np.ndarray, rng: np.random.Generator, num_draws: int,
               crossed: bool) -> np.ndarray:
  """[B, D] errors of the means through the effects of seeds on single decays."""
  z_BxD = rng.standard_normal((num_draws, len(seeds_D))) / np.sqrt(seeds_D)
  if crossed:  # the effect on all decays together is in the shared one
    z_BxD -= z_BxD.mean(1, keepdims=True)
  return z_BxD * np.sqrt(_variances(own.mean_square, own.freedom, rng, num_draws))[:, None]


def _shared_noise(shared: Strata, cov_DxD: np.ndarray, num_seeds: int, rng: np.random.Generator,
                  num_draws: int) -> np.ndarray:
  """[B, 1] errors of all means alike, through effects of seeds on all decays.

  Its degrees of freedom are those of Satterthwaite (1946, Biometrics Bulletin 2) for its sum
  with the items' error of the mean over decays: the tails of one or two degrees
  matter only as far as the seeds do.
  """
  variance, items = shared.variance / num_seeds, cov_DxD.mean()
  if variance <= 1e-9 * items:
    return np.zeros((num_draws, 1))
  freedom = shared.freedom * ((variance + items) / variance) ** 2
  return (rng.standard_normal(num_draws)
          * np.sqrt(_variances(variance, freedom, rng, num_draws)))[:, None]


def needed(fit: Fit, i: int, j: int) -> tuple[float, float, float]:
  """How many times as many items, seeds, or both would tell decays i and j apart.

  About: the gap that was seen is taken for the true one, and 1.96 standard errors have
  to be smaller. inf where no number is enough; at least 1.
  """
  gap = abs(fit.mean_D[i] - fit.mean_D[j])
  if not gap > 0:
    return np.inf, np.inf, np.inf
  target = (gap / 1.959964) ** 2
  share = 1 / fit.seeds_D[i] + 1 / fit.seeds_D[j]
  c = fit.item_cov_DxD
  whole = c[i, i] + c[j, j] - 2 * c[i, j]
  rest = min(fit.rest * share, whole)
  items, seeds = whole - rest, (fit.own.variance if fit.own else 0.0) * share
  by_items = (items + rest) / (target - seeds) if target > seeds else np.inf
  by_seeds = (seeds + rest) / (target - items) if target > items else np.inf
  if fit.own is None:  # one seed: the items' part is all that is known
    by_seeds = np.inf
  both = (items + seeds + np.sqrt((items + seeds) ** 2 + 4 * target * rest)) / (2 * target)
  return max(by_items, 1.0), max(by_seeds, 1.0), max(both, 1.0)
