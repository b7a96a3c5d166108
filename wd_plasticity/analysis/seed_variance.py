"""How much seeds make the means of weight decays differ: variances, and draws of their effects.

A member's mean is x_ds = mu_d + a_s + b_ds. The residuals of the additive model tell the variances
of b, also when members are missing (least squares). Decays may differ in it, but two or three
seeds hardly tell by how much, so each decay's variance is the pooled one moderated by its own, as
Smyth (2004, Statistical Applications in Genetics and Molecular Biology 3) does for genes.

Scores at learning rates that were chosen on other seeds are not independent between seeds: two
seeds that choose from each other agree when both were lucky. Their own spread would then be too
small an error, so it is taken at the competing learning rates, where nothing was chosen, and
multiplied by what choosing among as many equal rates does to the mean (`_inflation`).

Letters: K competing learning rates; D weight decays, S seeds, B draws as in `two_way`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

# Degrees of freedom with which the pooled variance counts in that of a decay. In simulation
# (bench/coverage.py) more makes differences to a decay that is three times as noisy too short,
# fewer makes all of them more than three points too wide where decays are alike.
PRIOR_FREEDOM = 2.0
# Standard errors within which a learning rate may be as good as the best one of its decay.
_CONTENDS = 2.0


@dataclasses.dataclass(frozen=True)
class Choice:
  """Means over the items of members at the learning rates among which a task's were chosen.

  Attributes:
    means_RxDxS: NaN where there is none; rates that did not compete for a decay are NaN.
  """
  means_RxDxS: np.ndarray

  def of(self, decays: np.ndarray | slice = slice(None),
         seeds: np.ndarray | slice = slice(None)) -> "Choice":
    return Choice(self.means_RxDxS[:, decays][:, :, seeds])


@dataclasses.dataclass(frozen=True)
class Own:
  """Variance of the effect of a seed on one decay, with the rest that one member's mean has.

  Attributes:
    mean_square: over all decays.
    rest: what the noise of seed x item adds to it.
    freedom: degrees of freedom of `mean_square`, of single runs where learning rates competed.
    each_D: of each decay, moderated; the variance of a mean over seeds times their number.
    each_freedom_D: degrees of freedom of `each_D`; None where that is the pooled one.
  """
  mean_square: float
  rest: float
  freedom: float
  each_D: np.ndarray
  each_freedom_D: np.ndarray | None

  @property
  def variance(self) -> float:
    return max(self.mean_square - self.rest, 0.0)


@dataclasses.dataclass(frozen=True)
class Shared:
  """Variance between seeds of the mean over decays, weighted by how sure each decay is.

  Attributes:
    mean_square: of one seed; it holds what effects on single decays and the rest add.
    rest: what the noise of seed x item adds to it.
    seeds: variance of the effect on all decays alone.
    weight_S: of the seeds in the mean over decays and seeds.
    freedom: degrees of freedom.
  """
  mean_square: float
  rest: float
  seeds: float
  weight_S: np.ndarray
  freedom: int


def alternatives(tasks_TxDxS: Sequence[np.ndarray], choices: Sequence[Choice | None]
                 ) -> tuple[np.ndarray, np.ndarray]:
  """Members' means at learning rates as they competed, and what choosing adds to the error.

  Args:
    tasks_TxDxS: means of each task as they were chosen.
    choices: per task, None where nothing was chosen.

  Returns:
    means_KxDxS, the k-th of each decay and task at its k-th contender, in turn; and [D], the
    factor by which choosing multiplies the variance that runs' own noise gives to the mean.
  """
  num_decays = len(tasks_TxDxS[0])
  picked, factor_D = [], np.zeros(num_decays)
  for task_DxS, choice in zip(tasks_TxDxS, choices, strict=True):
    rows = []
    for d, task_S in enumerate(task_DxS):
      contenders = _contenders(choice.means_RxDxS, d) if choice else []
      rows.append([np.where(np.isnan(choice.means_RxDxS[r, d]), task_S, choice.means_RxDxS[r, d])
                   for r in contenders] or [task_S])
      factor_D[d] += _inflation(len(rows[-1]), len(task_S))
    picked.append(rows)
  most = max(len(row) for rows in picked for row in rows)
  means_KxDxS = np.mean([[[row[k % len(row)] for row in rows] for k in range(most)]
                         for rows in picked], axis=0)
  return means_KxDxS, factor_D / len(picked)


def _contenders(means_RxDxS: np.ndarray, d: int) -> list[int]:
  """Learning rates that may be the best of decay d, given how much runs differ."""
  x_RxS = means_RxDxS[:, d]
  seeds_S = ~np.isnan(x_RxS).all(0)
  rates = np.flatnonzero(~np.isnan(x_RxS[:, seeds_S]).any(1)) if seeds_S.any() else []
  if len(rates) < 2:
    return list(rates)
  mean_R = x_RxS[rates][:, seeds_S].mean(1)
  best = int(np.argmax(mean_R))
  # Differences of two runs, of all decays: few seeds tell little of those of one.
  squares, freedom = 0.0, 0
  for e in range(means_RxDxS.shape[1]):
    y_RxS = means_RxDxS[rates, e]
    y_RxS = y_RxS[:, ~np.isnan(y_RxS).any(0)]
    if y_RxS.shape[1] > 1:
      r_RxS = y_RxS - y_RxS.mean(0) - y_RxS.mean(1, keepdims=True) + y_RxS.mean()
      squares += np.sum(r_RxS**2)
      freedom += (y_RxS.shape[0] - 1) * (y_RxS.shape[1] - 1)
  if not freedom:
    return list(rates)
  error = np.sqrt(2 * squares / freedom / seeds_S.sum())
  return [int(r) for r, m in zip(rates, mean_R, strict=True)
          if mean_R[best] - m <= _CONTENDS * error]


@functools.lru_cache(maxsize=64)
def _inflation(num_rates: int, num_seeds: int) -> float:
  """Variance of a mean over seeds whose rates are chosen on the other seeds, times the seeds.

  Of `num_rates` equal rates with independent runs of variance 1; 1 without a choice.
  """
  if num_rates < 2 or num_seeds < 2:
    return 1.0
  x_NxRxS = np.random.default_rng([num_rates, num_seeds]).standard_normal(
      (20_000, num_rates, num_seeds))
  others_NxRxS = x_NxRxS.sum(2, keepdims=True) - x_NxRxS
  best_Nx1xS = others_NxRxS.argmax(1, keepdims=True)
  return max(float(np.take_along_axis(x_NxRxS, best_Nx1xS, 1).mean((1, 2)).var()) * num_seeds, 1.0)


def own(valid_DxS: np.ndarray, rest: float, means_KxDxS: np.ndarray,
        factor_D: np.ndarray) -> Own | None:
  """Variances of seeds' effects on single decays; None where nothing tells them.

  Args:
    valid_DxS: which members are there.
    rest: variance of a member's mean through the noise of seed x item.
    means_KxDxS, factor_D: as `alternatives` gives them.
  """
  num_decays = len(valid_DxS)
  cells = np.nonzero(valid_DxS)
  project_CxC, _ = _projection(valid_DxS)
  freedom = round(np.trace(project_CxC))
  if freedom < 1:
    return None
  r_KxC = means_KxDxS[:, cells[0], cells[1]] @ project_CxC
  run_share, worth = _runs(r_KxC)
  square_D = np.bincount(cells[0], np.mean(r_KxC**2, axis=0), num_decays)
  pooled = float(square_D.sum()) / freedom
  factor_D = 1 + (factor_D - 1) * run_share
  each = _each(project_CxC, cells[0], square_D)
  if each is None:
    return Own(pooled, rest, freedom * worth, pooled * factor_D, None)
  each_freedom = np.maximum(valid_DxS.sum(1) - 1, 0) * worth
  total_D = each_freedom + PRIOR_FREEDOM
  moderated_D = (each_freedom * each + PRIOR_FREEDOM * pooled) / total_D
  return Own(pooled, rest, freedom * worth, moderated_D * factor_D, total_D)


def _projection(valid_DxS: np.ndarray) -> tuple[np.ndarray, bool]:
  """[C, C] from the members that are there to their residuals from decays and seeds.

  With one decay, or where decays share too few seeds, from decays alone; the second value is
  whether it is from both.
  """
  decay_C, seed_C = np.nonzero(valid_DxS)
  decays_CxD = (decay_C[:, None] == np.arange(valid_DxS.shape[0])).astype(np.float64)
  seeds_CxS = (seed_C[:, None] == np.arange(valid_DxS.shape[1])).astype(np.float64)
  for design in (np.concatenate([decays_CxD, seeds_CxS], 1), decays_CxD):
    project = np.eye(len(decay_C)) - design @ np.linalg.pinv(design)
    if np.trace(project) > 0.5:
      break
  return project, design is not decays_CxD


def _runs(r_KxC: np.ndarray) -> tuple[float, float]:
  """Share of single runs in the residuals, and how many independent rates K are worth."""
  num_rates = len(r_KxC)
  total = np.sum(r_KxC**2) / num_rates
  if num_rates < 2 or not total > 0:
    return 0.0, 1.0
  run = np.sum((r_KxC - r_KxC.mean(0)) ** 2) / (num_rates - 1)
  share = min(run / total, 1.0)
  return share, num_rates / (1 + (num_rates - 1) * (1 - share) ** 2)


def _each(project_CxC: np.ndarray, decay_C: np.ndarray, square_D: np.ndarray) -> np.ndarray | None:
  """[D] unbiased variance of each decay (Rao 1970), not below 0; None for two decays or fewer."""
  num_decays = len(square_D)
  of_DxC = np.arange(num_decays)[:, None] == decay_C
  expected_DxD = of_DxC @ project_CxC**2 @ of_DxC.T.astype(np.float64)
  if num_decays < 3 or np.linalg.cond(expected_DxD) > 1e6:
    return None
  return np.maximum(np.linalg.solve(expected_DxD, square_D), 0.0)


def shared(member_DxS: np.ndarray, valid_DxS: np.ndarray, own_fit: Own) -> Shared | None:
  """Variance of the seeds' effect on all decays; None where no two decays share two seeds."""
  num_seeds = valid_DxS.shape[1]
  if num_seeds < 2 or len(valid_DxS) < 2 or not _projection(valid_DxS)[1]:
    return None
  weight_DxS = np.where(valid_DxS, 1 / np.maximum(own_fit.each_D, 1e-300)[:, None], 0.0)
  mean_D = np.sum(np.where(valid_DxS, member_DxS, 0.0), 1) / valid_DxS.sum(1)
  centred_DxS = np.where(valid_DxS, member_DxS - mean_D[:, None], 0.0)
  weight_S = weight_DxS.sum(0)
  effect_S = np.sum(weight_DxS * centred_DxS, 0) / weight_S
  freedom = num_seeds - 1
  typical = (weight_S.sum() - np.sum(weight_S**2) / weight_S.sum()) / freedom
  mean_square = float(np.sum(weight_S * effect_S**2) / freedom / typical)
  share_D = weight_DxS.mean(1) / weight_DxS.mean(1).sum()
  return Shared(mean_square, own_fit.rest * float(np.sum(share_D**2)),
                max(mean_square - 1 / float(typical), 0.0), weight_S / weight_S.sum(), freedom)


def draw(own_fit: Own, shared_fit: Shared | None, valid_DxS: np.ndarray, items: float,
         rng: np.random.Generator, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
  """Errors of the decays' means through the seeds.

  A decay's own effect, without what all have in common, and the common one. That has the
  degrees of freedom of Satterthwaite (1946, Biometrics Bulletin 2) for its sum with the items'
  error of the mean over decays: the tails of one or two degrees matter only as far as the seeds do.

  Args:
    own_fit, shared_fit: variances.
    valid_DxS: which members are there.
    items: variance of the mean over decays through the items.
    rng: of the draws.
    num_draws: B.

  Returns:
    the errors [B, D], and [B, D] the variance of a decay's own effect that each was drawn with.
  """
  seeds_D = valid_DxS.sum(1)
  variance_D = own_fit.each_D / seeds_D
  normal_BxD = rng.standard_normal((num_draws, len(seeds_D)))
  own_BxD = variance_D * _tails(own_fit.freedom if own_fit.each_freedom_D is None
                                else own_fit.each_freedom_D, rng, num_draws)
  error_BxD = normal_BxD * np.sqrt(own_BxD)
  if shared_fit is None:
    return error_BxD, own_BxD
  weight_D = 1 / np.maximum(variance_D, 1e-300)
  error_BxD -= error_BxD @ (weight_D / weight_D.sum())[:, None]
  variance = max(shared_fit.mean_square - shared_fit.rest, 0.0) * np.sum(shared_fit.weight_S**2)
  if variance <= 1e-9 * items:
    return error_BxD, own_BxD
  freedom = shared_fit.freedom * ((variance + items) / variance) ** 2
  tails_Bx1 = np.sqrt(_tails(freedom, rng, num_draws))
  error_BxD += rng.standard_normal((num_draws, 1)) * np.sqrt(variance) * tails_Bx1
  # Where members are missing, means are over different seeds.
  unlike_DxS = valid_DxS / seeds_D[:, None] - shared_fit.weight_S
  effect_BxS = rng.standard_normal((num_draws, valid_DxS.shape[1])) * tails_Bx1
  return error_BxD + np.sqrt(shared_fit.seeds) * effect_BxS @ unlike_DxS.T, own_BxD


def _tails(freedom: float | np.ndarray, rng: np.random.Generator, num_draws: int) -> np.ndarray:
  """[B, 1] or [B, D] factors that give normal errors the tails of Student's t."""
  shape = (num_draws, np.size(freedom))
  return freedom / rng.chisquare(freedom, shape)
