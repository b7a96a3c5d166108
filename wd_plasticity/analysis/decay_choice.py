"""Which weight decay is best, from draws of what their means may be.

All functions take the larger mean for the better one. Letters: R fine-tuning rates,
D weight decays, S seeds, I items, B draws (see `two_way`), K spreads of true means.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from wd_plasticity.analysis import two_way

_TAILS = (0.025, 0.975)
# Standard errors within which a decay may be the best.
_CONTENDS = 1.96
# Of the spread of true means: its scale in errors, and how many values stand for it.
_PRIOR, _SPREADS = 8.0, 16
# By how much the draws' errors are taken as smaller there: few seeds make them too wide on average.
_NOISE = 0.96
# Of the lower end of the cost: lower than for the best, because the upper end hardly ever fails.
_COST_LEVELS = 0.92, 0.975
# Of the upper end of the cost where one decay, and where several may be the best.
_COST_TAILS = 0.025, 0.05


def intervals(draws_BxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Ends [D] of the 95 % intervals of the means."""
  low_D, high_D = np.quantile(draws_BxD, _TAILS, axis=0)
  return low_D, high_D


def best_interval(mean_D: np.ndarray, draws_BxD: np.ndarray) -> tuple[float, float]:
  """95 % interval of the true mean of the decay whose estimate is the largest.

  It was picked for being the largest, so its estimate is on the high side, and the lower end is
  further away (`_largest_error`). The upper end is that of the decay by itself, which is more than
  is needed where several contend. With one contender it is that decay's own interval.
  """
  noise_BxD = draws_BxD - mean_D
  best = int(np.argmax(mean_D))
  # Many that are level are spread widely by chance.
  low = mean_D[best] - _largest_error(mean_D, noise_BxD, 1.5 * _CONTENDS, (0.95, _TAILS[1]))
  return float(low), float(mean_D[best] - np.quantile(noise_BxD[:, best], _TAILS[0]))


def _largest_error(mean_D: np.ndarray, noise_BxD: np.ndarray, contends: float,
                   levels: tuple[float, float]) -> float:
  """What the estimate of the best decay may be too high by, because it was picked.

  A quantile, of the first level, of the largest error among the contenders, the decays within so
  many standard errors of the best, as if those were tied (moment selection, Andrews and Soares
  2010, Econometrica 78), and no less than the decay's own quantile of the second level. Of several
  that are level the one picked is hardly ever too low, so that one side may have all of the 5 %.
  """
  best = int(np.argmax(mean_D))
  contends_D = _contenders(mean_D, noise_BxD, contends)
  return max(float(np.quantile(noise_BxD[:, contends_D].max(1), levels[0])),
             float(np.quantile(noise_BxD[:, best], levels[1])))


def _contenders(mean_D: np.ndarray, noise_BxD: np.ndarray, contends: float) -> np.ndarray:
  """[D] which decays are within so many standard errors of the best, itself included."""
  best = int(np.argmax(mean_D))
  # quantiles, because draws with few seeds have no variance
  scale_D = np.quantile(np.abs(noise_BxD - noise_BxD[:, [best]]), 0.6827, axis=0)
  return mean_D[best] - mean_D <= contends * scale_D


def probability_best(mean_D: np.ndarray, draws_BxD: np.ndarray, scale_BxD: np.ndarray
                     ) -> np.ndarray:
  """[D] probability of each decay to be the best.

  The true means are taken for draws from one normal distribution of unknown mean and spread, so
  that estimates shrink towards each other by as much as their errors explain their differences:
  without it the largest of several is called the best too surely. Spread and errors are integrated
  over. Of the spread the prior is a wide half-Cauchy (Gelman 2006, Bayesian Analysis 1). Of the
  errors the draws bring their own: a draw counts by how likely its standard deviations make the
  estimates, so that a decay that stands alone may do so by noise that few seeds do not show. The
  scale of the prior and of the errors were set by simulation (bench/coverage.py), so that of what
  is said to be p a share p is true.

  Args:
    mean_D: estimates.
    draws_BxD: of the true means, as from `two_way`.
    scale_BxD: standard deviation of what each was drawn with.
  """
  num_decays = len(mean_D)
  if num_decays == 1:
    return np.ones(1)
  noise_BxD = _NOISE * (draws_BxD - mean_D)
  noise_BxD = noise_BxD - noise_BxD.mean(1, keepdims=True)  # what all have in common does not tell
  scale_BxD = _NOISE * scale_BxD
  typical = np.sqrt(np.mean(np.median(scale_BxD, axis=0) ** 2))
  if not typical > 0:
    return _shares(draws_BxD)
  # in units of the typical error
  noise_BxD, centred_D = noise_BxD / typical, (mean_D - mean_D.mean()) / typical
  square_BxD = np.maximum(scale_BxD / typical, 1e-6) ** 2
  angle_K = (np.arange(_SPREADS) + 0.5) / _SPREADS * np.pi / 2  # equal shares of the prior
  spread2_Kx1x1 = (_PRIOR * np.tan(angle_K))[:, None, None] ** 2
  weight_KxBxD = 1 / (spread2_Kx1x1 + square_BxD)
  total_KxBx1 = weight_KxBxD.sum(-1, keepdims=True)
  away_KxBxD = centred_D - (weight_KxBxD * centred_D).sum(-1, keepdims=True) / total_KxBx1
  keep_KxBxD = spread2_Kx1x1 * weight_KxBxD
  true_KxBxD = centred_D - (1 - keep_KxBxD) * away_KxBxD + np.sqrt(keep_KxBxD) * noise_BxD
  log_KxB = 0.5 * (np.log(weight_KxBxD).sum(-1) - np.log(total_KxBx1[..., 0])
                   - (weight_KxBxD * away_KxBxD**2).sum(-1))
  likelihood_KxB = np.exp(log_KxB - log_KxB.max())
  return _shares(true_KxBxD.reshape(-1, num_decays), likelihood_KxB.ravel())


def _shares(draws_BxD: np.ndarray, weight_B: np.ndarray | None = None) -> np.ndarray:
  """[D] share of the draws in which each is the largest; ties are shared."""
  best_BxD = draws_BxD == draws_BxD.max(1, keepdims=True)
  return np.average(best_BxD / best_BxD.sum(1, keepdims=True), axis=0, weights=weight_B)


def ties(mean_D: np.ndarray, draws_BxD: np.ndarray) -> list[int]:
  """Decays that cannot be told from the best at 95 %, without the best itself.

  Hsu's multiple comparisons with the best (1984, Annals of Statistics 12): decay i is told
  from it when some other is better by more than the largest, over all the others, of their
  errors against i exceeds in 5 % of the draws. The truly best decay is so excluded in at
  most 5 % of studies, also though the best was picked after seeing the data.
  """
  noise_BxD = draws_BxD - mean_D
  found = []
  for i in range(len(mean_D)):
    others = np.arange(len(mean_D)) != i
    if i == np.argmax(mean_D):
      continue
    against_BxD = noise_BxD[:, others] - noise_BxD[:, [i]]
    # quantiles, because draws with few seeds have no variance
    scale_D = np.quantile(np.abs(against_BxD), 0.6827, axis=0)
    scale_D = np.where(scale_D > 0, scale_D, 1.0)
    limit = np.quantile(np.max(against_BxD / scale_D, axis=1), 0.95)
    if np.max((mean_D[others] - mean_D[i]) / scale_D) <= limit:
      found.append(i)
  return found


def cost(mean_D: np.ndarray, draws_BxD: np.ndarray, chosen: int) -> tuple[float, float, float]:
  """How much better the best decay is than the chosen one: value and 95 % interval.

  The quantity max_d mu_d - mu_chosen is never negative and its estimate is biased upwards,
  so percentiles of the draws' maxima do not cover. The lower end allows for the best having been
  picked (`_largest_error`). The upper end is the largest of the decays' own upper ends: one of them
  is the best, and that one's end covers in 97.5 %. Where several may be the best, ends of 95 %
  cover in more than that, because all of them would have to fail. A lower end of 0 means that the
  chosen decay may be the best.
  """
  gain_D = mean_D - mean_D[chosen]
  noise_BxD = (draws_BxD - draws_BxD[:, [chosen]]) - gain_D
  value = float(gain_D.max())
  low = value - _largest_error(gain_D, noise_BxD, _CONTENDS, _COST_LEVELS)
  tail = _COST_TAILS[int(_contenders(gain_D, noise_BxD, _CONTENDS).sum() > 1)]
  high = np.max(gain_D - np.quantile(noise_BxD, tail, axis=0))
  return value, max(low, 0.0), max(float(high), 0.0)


def is_learnt(scores_DxSxI: np.ndarray, base_DxSxI: np.ndarray | None, chance: float | None,
              errors_DxS: np.ndarray | None = None) -> bool:
  """Whether some decay is better than its base model, and some is not at chance.

  By more than the error, at 95 % for the largest difference of all decays. What is not known (None)
  is not asked for.

  Args:
    scores_DxSxI, base_DxSxI: after and before fine-tuning, on the same items.
    chance: the score of guessing.
    errors_DxS: standard errors of scores with I = 1; those of the base model are taken as large.
  """
  if base_DxSxI is not None:
    errors = None if errors_DxS is None else 2**0.5 * errors_DxS
    gain, limit = _largest(scores_DxSxI - base_DxSxI, errors, np.asarray)
    if not gain > limit:
      return False
  if chance is not None:
    gain, limit = _largest(scores_DxSxI - chance, errors_DxS, np.abs)
    return gain > limit
  return True


def _largest(gain_DxSxI: np.ndarray, errors_DxS: np.ndarray | None, size) -> tuple[float, float]:
  """The largest mean in its standard errors, and the 95 % quantile of what chance makes of it."""
  has_D = ~np.isnan(gain_DxSxI).all((1, 2))
  try:
    fit = two_way.draws([gain_DxSxI[has_D]], [None if errors_DxS is None else errors_DxS[has_D]],
                        num_draws=1000)
  except ValueError:  # no member, or no item that counts for all
    return np.inf, 0.0
  noise_BxD = fit.draws_BxD - fit.mean_D
  scale_D = np.maximum(np.quantile(np.abs(noise_BxD), 0.6827, axis=0), 1e-12)
  return (float(np.max(size(fit.mean_D) / scale_D)),
          float(np.quantile(np.max(size(noise_BxD) / scale_D, axis=1), 0.95)))


def correlation(x_D: Sequence[float], y_D: Sequence[float]
                ) -> tuple[float, float, float] | None:
  """Pearson's r and its 95 % interval by Fisher's z (1921); None below four decays.

  Also None when one side does not vary. The interval takes decays for draws from a
  bivariate normal distribution and their means for exact.
  """
  x_D, y_D = np.asarray(x_D, np.float64), np.asarray(y_D, np.float64)
  if len(x_D) < 4:
    return None
  r = _pearson(x_D, y_D)
  if r is None:
    return None
  z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
  half = 1.959964 / np.sqrt(len(x_D) - 3)
  return r, float(np.tanh(z - half)), float(np.tanh(z + half))


def leave_one_out(x_D: Sequence[float], y_D: Sequence[float]) -> list[float | None]:
  """Pearson's r without each decay in turn."""
  x_D, y_D = np.asarray(x_D, np.float64), np.asarray(y_D, np.float64)
  return [_pearson(np.delete(x_D, i), np.delete(y_D, i)) for i in range(len(x_D))]


def _pearson(x_D: np.ndarray, y_D: np.ndarray) -> float | None:
  x_D, y_D = x_D - x_D.mean(), y_D - y_D.mean()
  size = np.sqrt(np.sum(x_D**2) * np.sum(y_D**2))
  return float(np.clip(np.sum(x_D * y_D) / size, -1.0, 1.0)) if size > 1e-300 else None


def folds(keys: Sequence[str]) -> np.ndarray:
  """[I] 0 or 1: two halves of the items that depend on their keys alone."""
  order = sorted(range(len(keys)), key=lambda i: (zlib.crc32(str(keys[i]).encode()), keys[i]))
  fold_I = np.zeros(len(keys), np.int64)
  fold_I[order[1::2]] = 1
  return fold_I


def cross_fit(scores_RxDxSxI: np.ndarray, fold_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Scores of every decay at its own best rate, chosen on other seeds and other items.

  The best of several rates on the same runs and items looks better than it is. So a seed is
  judged, on one half of the items, at the rate that is best on the other half for the other seeds.
  Where a decay has one seed only, its own runs choose, and the luck of a run is not corrected.

  Args:
    scores_RxDxSxI: a member that is missing at a rate is all NaN. Rates compete that at least half
      of the seeds of their decay have.
    fold_I: 0 or 1; where only one occurs, the same items choose and judge.

  Returns:
    scores_DxSxI, all NaN for members that are missing at a rate chosen for them, and
    rates_DxSx2, the index of the rate by which each half is judged, -1 for such members.
  """
  scores_RxDxSxI = np.asarray(scores_RxDxSxI, np.float64)
  _, num_decays, num_seeds, num_items = scores_RxDxSxI.shape
  made_DxSxI = np.full((num_decays, num_seeds, num_items), np.nan)
  picked_DxSx2 = np.full((num_decays, num_seeds, 2), -1)
  there_RxDxS = ~np.isnan(scores_RxDxSxI).all(-1)
  counts_I = ~np.isnan(scores_RxDxSxI[there_RxDxS]).any(0)
  halves = np.unique(fold_I)
  means_2xRxDxS = []
  for fold in (0, 1):
    learn_I = counts_I & (fold_I != fold) if len(halves) > 1 else counts_I
    total = scores_RxDxSxI[..., learn_I].sum(-1)  # NaN where missing
    means_2xRxDxS.append(total / max(learn_I.sum(), 1))
  for d in range(num_decays):
    count_R = there_RxDxS[:, d].sum(1)
    rates = np.flatnonzero((count_R > 0) & (2 * count_R >= there_RxDxS[:, d].any(0).sum()))
    seeds = np.flatnonzero(there_RxDxS[rates, d].any(0)) if len(rates) else []
    for s in seeds:
      others = [o for o in seeds if o != s] or [s]
      for fold in (0, 1):
        known = [r for r in rates if there_RxDxS[r, d, others].any()]
        mean_R = _additive_means(means_2xRxDxS[fold][known, d][:, others])
        picked_DxSx2[d, s, fold] = known[int(np.argmax(mean_R))]
      if not all(there_RxDxS[r, d, s] for r in picked_DxSx2[d, s]):
        picked_DxSx2[d, s] = -1
        continue
      for fold in (0, 1):
        here_I = fold_I == fold
        made_DxSxI[d, s, here_I] = scores_RxDxSxI[picked_DxSx2[d, s, fold], d, s, here_I]
  return made_DxSxI, picked_DxSx2


def _additive_means(x_RxS: np.ndarray) -> np.ndarray:
  """[R] means over the seeds; where some are missing, of the additive model of rate and seed."""
  missing_RxS = np.isnan(x_RxS)
  if not missing_RxS.any():
    return x_RxS.mean(1)
  rate_C, seed_C = np.nonzero(~missing_RxS)
  design = np.concatenate([rate_C[:, None] == np.arange(x_RxS.shape[0]),
                           seed_C[:, None] == np.arange(x_RxS.shape[1])], 1).astype(np.float64)
  return np.linalg.lstsq(design, x_RxS[rate_C, seed_C], rcond=None)[0][:x_RxS.shape[0]]
