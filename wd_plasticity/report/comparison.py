"""Numbers of the answer: each weight decay's mean with what it may be, and what follows."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from wd_plasticity.analysis import decay_choice, two_way
from wd_plasticity.report.scores import Scores, is_loss


@dataclasses.dataclass(frozen=True)
class Estimate:
  """One weight decay.

  Attributes:
    value, low, high: mean over tasks, seeds and items, and its 95 % interval; None where
      nothing tells it.
    best: probability that this decay is the best of the grid; None from one seed.
    seeds, items: how many members and items it is a mean of; 0 items where they are not known.
  """
  weight_decay: float
  value: float
  low: float | None
  high: float | None
  best: float | None
  seeds: int
  items: int


@dataclasses.dataclass(frozen=True)
class Interval:
  """A number with its 95 % interval; `n` is what it is computed from."""
  value: float
  low: float | None
  high: float | None
  n: int


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One measure over the decays of a group.

  Attributes:
    task: '' is the average over tasks.
    title: 'average of 6 tasks', 'SST-2'.
    rate: 'best' (each decay at its own best learning rate of fine-tuning, chosen on other
      seeds and items than those it is judged by), else the name of one, 'lr0.001', '' where
      there was only one.
    measure: 'acc'; 'accuracy' for the average.
    estimates: by weight decay.
    best: the decay with the best mean.
    ties: decays that cannot be told from it at 95 %; all others from one seed.
    best_interval: of the mean of `best`, which was picked for being the best; `n` decays.
    has_seeds: whether some decay has several pretraining seeds, without which nothing is known
      of how much they differ.
    gain: value at `best` minus that at the decay best for pretraining loss, never
      negative (for losses the other way round): the cost of choosing by loss; `n` decays.
    correlation: over decays, of pretraining loss and this measure; `n` decays.
    rates: of rate 'best', the learning rates chosen by weight decay.
    members: (weight decay, seed, value) of every member that is compared.
    tasks: (task, split) of what is compared.
    parts: each task with its problems and splits, in words.
    runs: fine-tuning seeds of a member.
  """
  task: str
  title: str
  rate: str
  measure: str
  estimates: list[Estimate]
  best: float
  ties: list[float]
  gain: Interval | None
  correlation: Interval | None
  rates: dict[float, list[float]]
  members: list[tuple[float, int, float]] = dataclasses.field(default_factory=list)
  tasks: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  parts: list[str] = dataclasses.field(default_factory=list)
  runs: int = 1
  best_interval: Interval | None = None
  has_seeds: bool = False

  def at(self, weight_decay: float) -> Estimate | None:
    return next((e for e in self.estimates if e.weight_decay == weight_decay), None)


@dataclasses.dataclass(frozen=True)
class Evidence:
  """A comparison and what it was computed from, for sentences that need more."""
  comparison: Comparison
  fit: two_way.Fit
  decays: list[float]
  leave_one_out: list[float]


def of_one_set(parts: Sequence[Scores]) -> list[Scores]:
  """The tasks to average and the one set of decays they all have.

  The set is one that some task has, or what two or more have in common, of two decays or more,
  so that decays times tasks are the most, then decays. Scores of other decays become NaN.
  """
  sets = {frozenset(np.flatnonzero(p.has_D)) for p in parts}
  sets |= {a & b for a in sets for b in sets}
  def size(decays):
    return len(decays) * sum(decays <= set(np.flatnonzero(p.has_D)) for p in parts), len(decays)
  best = max((s for s in sorted(sets, key=sorted) if len(s) > 1), key=size, default=None)
  if best is None:
    return list(parts)[:1]
  made = []
  for p in parts:
    if best <= set(np.flatnonzero(p.has_D)):
      out_D = ~np.isin(np.arange(len(p.has_D)), list(best))
      scores_DxSxI = p.scores_DxSxI.copy()
      scores_DxSxI[out_D] = np.nan
      made.append(dataclasses.replace(p, scores_DxSxI=scores_DxSxI))
  return made


def compare(parts: Sequence[Scores], decays: Sequence[float], seeds: Sequence[int],
            loss: Comparison | None = None) -> Evidence | None:
  """Compares decays by one task, or by the average of several; None without a member.

  Args:
    parts: one for each task, of one rate.
    decays, seeds: of the first two axes of the scores.
    loss: of the pretraining, for the cost of choosing by it and the correlation.
  """
  valid_DxS = np.all([~np.isnan(p.scores_DxSxI).all(-1) for p in parts], axis=0)
  has_D = valid_DxS.any(1)
  if not has_D.any():
    return None
  try:
    fit = two_way.draws(
        [p.scores_DxSxI[has_D] for p in parts],
        [None if p.errors_DxS is None else p.errors_DxS[has_D] for p in parts],
        choices=[None if p.choice is None else p.choice.of(decays=has_D) for p in parts])
  except ValueError:  # no item counts for all members
    return None
  first = parts[0]
  alone = len(parts) == 1
  sign = -1.0 if is_loss(first.measure) else 1.0
  has_seeds = fit.own is not None and max(p.seeds for p in parts) > 1
  if max(p.seeds for p in parts) > 1:
    members = [(float(decays[d]), int(seeds[s]),
                sign * float(np.mean([np.nanmean(p.scores_DxSxI[d, s]) for p in parts])))
               for d, s in np.argwhere(valid_DxS)]
  else:
    members = [(float(decays[d]), int(first.seed_of.get(float(decays[d]), seeds[0])),
                sign * float(np.mean([np.nanmean(p.scores_DxSxI[d]) for p in parts])))
               for d in np.flatnonzero(has_D)]
  decays = [float(d) for d, has in zip(decays, has_D, strict=True) if has]
  place = int(np.argmax(fit.mean_D))
  best = decays[place]
  others = [i for i in range(len(decays)) if i != place]
  ties = [] if not fit.known else (
      decay_choice.ties(fit.mean_D, fit.draws_BxD) if has_seeds else others)
  gain, correlation, without = _against_loss(fit, decays, sign, loss)
  chosen = {d: sorted({r for p in parts for r in p.learning_rates.get(d, [])}) for d in decays}
  comparison = Comparison(
      task=first.task if alone else "",
      title=first.title if alone else f"average of {len(parts)} tasks",
      rate=first.rate,
      measure=first.measure if alone or len({p.measure for p in parts}) == 1 else "accuracy",
      estimates=_estimates(fit, decays, sign, first, has_seeds), best=best,
      ties=[decays[i] for i in ties],
      gain=gain, correlation=correlation, rates=chosen if first.rate == "best" else {},
      members=members, tasks=[(p.task, s) for p in parts for s in p.splits],
      parts=[p.problems for p in parts], runs=max(p.runs for p in parts),
      best_interval=_best_interval(fit, sign), has_seeds=has_seeds)
  return Evidence(comparison, fit, decays, without)


def _best_interval(fit: two_way.Fit, sign: float) -> Interval | None:
  if not fit.known:
    return None
  low, high = sorted(sign * x for x in decay_choice.best_interval(fit.mean_D, fit.draws_BxD))
  return Interval(sign * float(fit.mean_D.max()), low, high, len(fit.mean_D))


def _estimates(fit: two_way.Fit, decays: Sequence[float], sign: float, of: Scores,
               has_seeds: bool) -> list[Estimate]:
  low_D, high_D = decay_choice.intervals(fit.draws_BxD)
  best_D = decay_choice.probability_best(fit.mean_D, fit.draws_BxD, fit.scale_BxD)
  made = []
  for d, decay in enumerate(decays):
    low, high = sorted((sign * float(low_D[d]), sign * float(high_D[d])))
    made.append(Estimate(
        decay, sign * float(fit.mean_D[d]), low if fit.known else None,
        high if fit.known else None, float(best_D[d]) if has_seeds else None,
        int(fit.seeds_D[d]) if of.seeds > 1 else 1, fit.items))
  return made


def _against_loss(fit: two_way.Fit, decays: Sequence[float], sign: float,
                  loss: Comparison | None):
  """Cost of choosing by loss, correlation with it, and that without each decay in turn."""
  if loss is None:
    return None, None, []
  gain = None
  # The best for loss among the decays that are compared here.
  known = [e for e in loss.estimates if e.weight_decay in decays]
  if known and len(decays) > 1:
    chosen = decays.index(min(known, key=lambda e: e.value).weight_decay)
    value, low, high = decay_choice.cost(fit.mean_D, fit.draws_BxD, chosen)
    gain = Interval(value, low if fit.known else None, high if fit.known else None, len(decays))
  x = [e.value for e in known]
  y = [sign * float(fit.mean_D[decays.index(e.weight_decay)]) for e in known]
  found = decay_choice.correlation(x, y)
  if found is None:
    return gain, None, []
  without = [r for r in decay_choice.leave_one_out(x, y) if r is not None]
  return gain, Interval(*found, len(x)), without
