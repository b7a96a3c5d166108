"""Uncertainty of means over seeds and items that are crossed: draws of what the means may be.

Every member (a weight decay with a seed) is tested on the same items, and the seeds are mostly
the same for all decays. The model of the score of decay d, seed s, item i is

  mu_d + a_s + b_ds + u_i + v_di + e_dsi,

a effect of the seed on all decays alike, b on one decay (with the noise of its fine-tuning, whose
seeds are averaged before), u and v of the item, e the rest. Bootstrapping seeds and items at once
counts the rest twice or more (Owen 2007, The pigeonhole bootstrap), and percentiles over two or
three seeds tell nothing. So the items' part is drawn with the covariance of the items, the same
items for all decays, and the seeds' part with the variances of a and b from the two-way analysis
of variance and its few degrees of freedom. The rest is in both and counts once: it is taken out
of the shared effect of the seeds, and for what tells decays apart out of the items' part.

The variance of b differs between decays: each is the pooled one moderated by its own
(`seed_variance.py`). Members may be missing; seeds stay paired as far as they are there.

Letters: T tasks, R fine-tuning learning rates, D weight decays, S seeds, I items, B draws.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from wd_plasticity.analysis import seed_variance
from wd_plasticity.analysis.seed_variance import Own, Shared

NUM_DRAWS = 4000


@dataclasses.dataclass(frozen=True)
class Fit:
  """Means of the decays and what they may be.

  Attributes:
    mean_D: over tasks, seeds and items.
    draws_BxD: of the true means; all equal to `mean_D` when nothing is known of the errors.
    scale_BxD: standard deviation, of what tells decays apart, with which each draw was made: the
      variances of the seeds' effects are drawn too, because few seeds hardly tell them.
    seeds_D: members of each decay.
    items: of all tasks together, without those whose items are not known.
    known: whether there is anything to compute an error from.
    item_cov_DxD: covariance of `mean_D` through the items, which holds the rest too.
    rest: variance of one member's mean through the noise of seed x item.
    shared: of the seeds' effect on all decays alike; None if it is not told apart.
    own: of a seed's effect on one decay; None with one seed.
  """
  mean_D: np.ndarray
  draws_BxD: np.ndarray
  scale_BxD: np.ndarray
  seeds_D: np.ndarray
  items: int
  known: bool
  item_cov_DxD: np.ndarray
  rest: float
  shared: Shared | None
  own: Own | None


def draws(tasks: Sequence[np.ndarray], errors: Sequence[np.ndarray | None] = (), *,
          choices: Sequence["seed_variance.Choice | None"] = (), num_draws: int = NUM_DRAWS,
          seed: int = 0) -> Fit:
  """Fits means over tasks of equal weight, seeds and items.

  Args:
    tasks: scores_DxSxI of each task. A member that is missing is all NaN; one that is
      missing in any task counts in none. An item that is NaN for some member is left out.
    errors: per task None, or [D, S] standard errors of scores with I = 1, for means whose
      items are not known. Members are taken to be tested on the same items, so that these errors
      do not fall with the seeds; between decays they are taken as independent, which is too
      wide for differences.
    choices: per task None, or the learning rates among which its scores were chosen.
    num_draws: B.
    seed: of the draws.

  Raises:
    ValueError: if a decay has no member or a task no item.
  """
  errors = list(errors) or [None] * len(tasks)
  choices = list(choices) or [None] * len(tasks)
  valid_DxS = np.all([~np.isnan(x).all(-1) for x in tasks], axis=0)
  used_S = valid_DxS.any(0)
  valid_DxS = valid_DxS[:, used_S]
  seeds_D = valid_DxS.sum(1)
  if not len(seeds_D) or not seeds_D.min():
    raise ValueError("every weight decay needs a member that has all tasks.")
  tasks = [_complete(x[:, used_S], valid_DxS) for x in tasks]
  rng = np.random.default_rng([seed, 1])
  member_DxS = np.mean([x.mean(-1) for x in tasks], axis=0)
  mean_D = _over_seeds(member_DxS, valid_DxS)
  noise_BxD = np.zeros((num_draws, len(mean_D)))
  cov_DxD = np.zeros((len(mean_D),) * 2)
  for x_DxSxI, se_DxS in zip(tasks, errors, strict=True):
    if x_DxSxI.shape[-1] > 1:
      one_DxD = np.atleast_2d(np.cov(_over_seeds(x_DxSxI, valid_DxS))) / x_DxSxI.shape[-1]
    elif se_DxS is not None:
      squares_DxS = np.where(valid_DxS, np.nan_to_num(se_DxS[:, used_S]) ** 2, 0.0)
      one_DxD = np.diag(squares_DxS.sum(1) / seeds_D)
    else:
      continue
    cov_DxD += one_DxD / len(tasks) ** 2
    noise_BxD += _normal(one_DxD, rng, num_draws) / len(tasks)
  rest = _rest(tasks, valid_DxS)
  own = seed_variance.own(valid_DxS, rest, *seed_variance.alternatives(
      [x.mean(-1) for x in tasks], [c and c.of(seeds=used_S) for c in choices]))
  shared = None
  seeds_BxD = own_BxD = np.zeros_like(noise_BxD)
  if own is not None:
    shared = seed_variance.shared(member_DxS, valid_DxS, own)
    noise_BxD = _without_rest(noise_BxD, cov_DxD, own, seeds_D, crossed=shared is not None)
    seeds_BxD, own_BxD = seed_variance.draw(own, shared, valid_DxS, cov_DxD.mean(), rng, num_draws)
  apart_BxD = noise_BxD - noise_BxD.mean(1, keepdims=True)
  alone = 1 - 1 / max(len(mean_D), 2)  # how much of an error its distance from the mean holds
  scale_BxD = np.sqrt(apart_BxD.var(0) / alone + own_BxD)
  items = sum(x.shape[-1] for x in tasks if x.shape[-1] > 1)
  known = own is not None or bool(np.any(cov_DxD > 0))
  return Fit(mean_D, mean_D + noise_BxD + seeds_BxD, scale_BxD, seeds_D, items, known,
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
  weight_DxS = valid_DxS / valid_DxS.sum(1, keepdims=True)
  return np.einsum("ds...,ds->d...", x, weight_DxS)


def _normal(cov_DxD: np.ndarray, rng: np.random.Generator, num_draws: int) -> np.ndarray:
  """[B, D] normal errors with a covariance."""
  values, vectors = np.linalg.eigh(cov_DxD)
  root_DxD = vectors * np.sqrt(np.maximum(values, 0.0))
  return rng.standard_normal((num_draws, len(cov_DxD))) @ root_DxD.T


def _without_rest(noise_BxD: np.ndarray, cov_DxD: np.ndarray, own: Own, seeds_D: np.ndarray,
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


def _rest(tasks: Sequence[np.ndarray], valid_DxS: np.ndarray) -> float:
  """Variance of one member's mean over items, then tasks, through the noise of seed x item.

  From what neither decay, seed nor item explains; with missing members from what differs between
  the seeds of a decay.
  """
  num_decays, num_seeds = valid_DxS.shape
  if valid_DxS.all() and num_decays > 1:
    freedom = (num_decays - 1) * (num_seeds - 1)
  else:
    freedom = int(np.sum(valid_DxS.sum(1) - 1))
  if not freedom:
    return 0.0
  total = 0.0
  for x_DxSxI in tasks:
    n = x_DxSxI.shape[-1]
    if n < 2:
      continue
    e_DxSxI = x_DxSxI - _over_seeds(x_DxSxI, valid_DxS)[:, None]
    e_DxSxI = np.where(valid_DxS[..., None], e_DxSxI, 0.0)
    e_DxSxI -= e_DxSxI.mean(-1, keepdims=True)
    if valid_DxS.all() and num_decays > 1:
      e_DxSxI -= e_DxSxI.mean(0)
    total += np.sum(e_DxSxI**2) / (freedom * (n - 1)) / n
  return float(total) / len(tasks) ** 2


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
