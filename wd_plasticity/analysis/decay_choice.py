"""Which weight decay is best, from draws of what their means may be.

All functions take the larger mean for the better one. Letters: R fine-tuning rates,
D weight decays, S seeds, I items, B draws (see `two_way`).
"""

import zlib
from collections.abc import Sequence

import numpy as np

_TAILS = (0.025, 0.975)
# Standard errors within which a decay may be the best when the cost's lower end is sought.
_CONTENDS = 1.96


def intervals(draws_BxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Ends [D] of the 95 % intervals of the means."""
  low_D, high_D = np.quantile(draws_BxD, _TAILS, axis=0)
  return low_D, high_D


def probability_best(draws_BxD: np.ndarray) -> np.ndarray:
  """[D] share of the draws in which each decay is the best; ties are shared."""
  best_BxD = draws_BxD == draws_BxD.max(1, keepdims=True)
  return np.mean(best_BxD / best_BxD.sum(1, keepdims=True), axis=0)


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
  so percentiles of the draws' maxima do not cover. The lower end subtracts the 97.5 %
  quantile of the largest error among the contenders, the decays within 1.96 standard errors
  of the best, as if those were tied (moment selection, Andrews and Soares 2010,
  Econometrica 78). The upper end is the largest of the decays' own upper ends: one of them
  is the best, and that one's end covers in 97.5 %. In simulation (bench/coverage.py) it holds
  the truth in 95 to 97 % of studies, and in 99 % where the chosen decay is the best, because
  the interval then starts at 0; a lower end of 0 means that it may be. The decay that was chosen
  is taken as given, not as an estimate itself.
  """
  gain_D = mean_D - mean_D[chosen]
  noise_BxD = (draws_BxD - draws_BxD[:, [chosen]]) - gain_D
  best = int(np.argmax(gain_D))
  scale_D = np.quantile(np.abs(noise_BxD - noise_BxD[:, [best]]), 0.6827, axis=0)
  contends_D = gain_D[best] - gain_D <= _CONTENDS * scale_D
  low = gain_D[best] - np.quantile(noise_BxD[:, contends_D].max(1), 0.975)
  high = np.max(gain_D - np.quantile(noise_BxD, 0.025, axis=0))
  return float(gain_D[best]), max(float(low), 0.0), max(float(high), 0.0)


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


def cross_fit(scores_RxDxSxI: np.ndarray, fold_I: np.ndarray
              ) -> tuple[np.ndarray, list[list[int]]]:
  """Scores of every decay at its own best rate, chosen on items it is not judged by.

  The best of several rates on the same items looks better than it is. So the rate
  that is best on one half, by the mean over seeds, gives the scores of the other half.

  Args:
    scores_RxDxSxI: a member that is missing at a rate is all NaN. Rates compete that have
      the most seeds of their decay.
    fold_I: 0 or 1; both occur.

  Returns:
    scores_DxSxI, all NaN for members that are missing at a chosen rate, and the indices of
    the rates chosen, two for each decay (none if it has no member).
  """
  scores_RxDxSxI = np.asarray(scores_RxDxSxI, np.float64)
  _, num_decays, num_seeds, num_items = scores_RxDxSxI.shape
  made_DxSxI = np.full((num_decays, num_seeds, num_items), np.nan)
  there_RxDxS = ~np.isnan(scores_RxDxSxI).all(-1)
  counts_I = ~np.isnan(scores_RxDxSxI[there_RxDxS]).any(0)
  chosen: list[list[int]] = []
  for d in range(num_decays):
    seeds_R = there_RxDxS[:, d].sum(1)
    chosen.append([])
    if not seeds_R.max(initial=0):
      continue
    rates = np.flatnonzero(seeds_R == seeds_R.max())
    for fold in (0, 1):
      learn_I = counts_I & (fold_I != fold)
      means = [scores_RxDxSxI[r, d][there_RxDxS[r, d]][:, learn_I].mean() for r in rates]
      best = int(rates[int(np.argmax(means))])
      chosen[-1].append(best)
      made_DxSxI[d][:, fold_I == fold] = scores_RxDxSxI[best, d][:, fold_I == fold]
    present_S = np.all([there_RxDxS[r, d] for r in chosen[-1]], axis=0)
    made_DxSxI[d, ~present_S] = np.nan
  return made_DxSxI, chosen
