"""Scores of members as arrays [decay, seed, item], from a study's results.

Larger is better in all of them: losses are negated.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from wd_plasticity.analysis import decay_choice
from wd_plasticity.report.study import Finetuned, Member, Result, Study


@dataclasses.dataclass(frozen=True)
class Scores:
  """One task at one fine-tuning rate, or the pretraining loss.

  Attributes:
    task, title, rate, measure: as in `comparison.Comparison`.
    split: of the task.
    scores_DxSxI: by the group's decays and seeds, NaN for members that are missing.
    errors_DxS: standard errors where the items are not known (I = 1), else None.
    keys: [I] of the items.
    learning_rates: decay to the rates its scores were made with.
  """
  task: str
  split: str
  title: str
  rate: str
  measure: str
  scores_DxSxI: np.ndarray
  errors_DxS: np.ndarray | None
  keys: list[str]
  learning_rates: dict[float, list[float]]

  @property
  def has_D(self) -> np.ndarray:
    return ~np.isnan(self.scores_DxSxI).all((1, 2))


@dataclasses.dataclass(frozen=True)
class Group:
  """Members that differ in weight decay and seed alone, as far as they can be compared.

  Attributes:
    name: of the group.
    members: all of them.
    decays, seeds: axes of the arrays.
    finetuned: results of the last steps of members that are done.
    left_out: names of members that failed or have not finished.
    ruined: results whose fine-tuning was not finite at some step.
    early: names of members whose results are from before their last step.
  """
  name: str
  members: list[Member]
  decays: list[float]
  seeds: list[int]
  finetuned: list[Finetuned]
  left_out: list[str]
  ruined: list[Finetuned]
  early: list[str]


def groups(study: Study) -> list[Group]:
  """The groups of a study; results without any pretraining beside them make groups too."""
  names = dict.fromkeys([m.group for m in study.members])
  if not names:
    names = dict.fromkeys([f.group for f in study.finetuned])
  return [_group(study, name) for name in names] or [_group(study, "")]


def _group(study: Study, name: str) -> Group:
  members = [m for m in study.members if m.group == name]
  done = {m.name: m for m in members if m.status == "done"}
  found = [f for f in study.finetuned if f.group == name and f.last
           and (f.member in done or not study.members)]
  decays = sorted({m.weight_decay for m in done.values()} | {f.weight_decay for f in found})
  seeds = sorted({m.seed for m in done.values()} | {f.seed for f in found})
  early = sorted({f.member for f in found if f.member in done and done[f.member].steps
                  and f.step < done[f.member].steps})
  return Group(name, members, decays, seeds, found,
               left_out=[m.name for m in members if m.status != "done"],
               ruined=[f for f in found if f.failed_at is not None], early=early)


def is_loss(measure: str) -> bool:
  """Whether the lower value of a measure is the better one."""
  return "loss" in measure


def pretraining_loss(study: Study, group: Group) -> tuple[Scores | None, str]:
  """Validation losses of the pretraining, and a caution when it is not by document.

  By document where the overfit program has measured all members that are done: every
  document counts by its tokens, y_i = R + (sum_i - R * count_i) / mean(count), whose mean is
  the loss per token R and whose variance that of the ratio estimator (Cochran, Sampling
  Techniques, 1977, 6.3).
  """
  done = [m for m in group.members if m.status == "done"]
  documents = {r.member: r for r in study.overfit if r.last and r.group == group.name
               and all(f"validation_{k}" in r.arrays for k in _DOCUMENT_ARRAYS)}
  caution = ""
  if documents and (not done or all(m.name in documents for m in done)):
    cells = [(r.weight_decay, r.seed, *_by_document(r)) for name, r in documents.items()
             if not done or any(m.name == name for m in done)]
  else:
    if documents:
      caution = (f"The losses of documents are known of only {len(documents)} of {len(done)} "
                 "members, so the error of the pretraining loss is that of the seeds alone; run "
                 "the overfit program on all members.")
    cells = [(m.weight_decay, m.seed, [""], np.array([m.validation_loss]), None) for m in done
             if m.validation_loss is not None]
  cells = [c for c in cells if np.isfinite(c[3]).all()]
  if not cells:
    return None, caution
  keys, scores_DxSxI, _ = _arrays(group, [(w, s, k, -y, None) for w, s, k, y, _ in cells])
  return Scores("", "", "pretraining", "", "validation loss", scores_DxSxI, None, keys, {}), caution


_DOCUMENT_ARRAYS = ("documents", "document_sums", "document_counts")


def _by_document(result: Result) -> tuple[list[str], np.ndarray, None]:
  names, sums, counts = (np.asarray(result.arrays[f"validation_{k}"]) for k in _DOCUMENT_ARRAYS)
  names, index = np.unique(names, return_inverse=True)
  sums, counts = (np.bincount(index.reshape(-1), weights=np.asarray(v, np.float64))
                  for v in (sums, counts))
  if not counts.sum():
    return [""], np.array([np.nan]), None
  mean = sums.sum() / counts.sum()
  return [str(n) for n in names], mean + (sums - mean * counts) / counts.mean(), None


def tasks(group: Group) -> list[dict[str, Scores]]:
  """Scores of every task and split by rate; 'best' is each decay's own, cross-fitted."""
  alike: dict[tuple[str, str], list[Finetuned]] = {}
  for f in group.finetuned:
    alike.setdefault((f.task, f.split), []).append(f)
  splits = collections.Counter(task for task, _ in alike)
  made = []
  for (task, split), results in alike.items():
    title = results[0].title + (f", {split}" if splits[task] > 1 else "")
    measure = collections.Counter(f.measure for f in results).most_common(1)[0][0]
    results = [f for f in results if f.after.get(measure, {}).get("value") is not None]
    rates = sorted({f.rate: f.learning_rate for f in results}.items(), key=lambda r: (r[1], r[0]))
    by_rate = {}
    for rate, _ in rates:
      found = _scores(group, [f for f in results if f.rate == rate], title, rate, measure)
      if found is not None:
        by_rate[rate] = found
    best = _best_rates(group, list(by_rate.values()))
    if by_rate:
      made.append(({"best": best} if best else {}) | by_rate)
  return made


def headline_split(of_splits: Sequence[dict[str, Scores]]) -> list[dict[str, Scores]]:
  """One split of every task: 'test', else 'validation', else the first."""
  by_task: dict[str, dict[str, dict[str, Scores]]] = {}
  for by_rate in of_splits:
    some = next(iter(by_rate.values()))
    by_task.setdefault(some.task, {})[some.split] = by_rate
  return [next((splits[s] for s in ("test", "validation") if s in splits),
               next(iter(splits.values()))) for splits in by_task.values()]


def _scores(group: Group, results: Sequence[Finetuned], title: str, rate: str,
            measure: str) -> Scores | None:
  sign = -1.0 if is_loss(measure) else 1.0
  cells, means = [], []
  for f in results:
    value = f.after[measure]
    means.append((f.weight_decay, f.seed, [""], np.array([sign * value["value"]]),
                  value.get("se")))
    scores = f.scores.get("after", {}).get(measure)
    if scores is not None and len(f.keys) and len(scores) == len(f.keys):
      scores = np.asarray(scores, np.float64)
      counts = np.isfinite(scores)
      if counts.any():
        cells.append((f.weight_decay, f.seed, [str(k) for k in np.asarray(f.keys)[counts]],
                      sign * scores[counts], None))
  keys, array, errors = _arrays(group, cells if len(cells) == len(means) else means)
  if not keys and cells:  # no item in common
    keys, array, errors = _arrays(group, means)
  rates = {d: sorted({f.learning_rate for f in results if f.weight_decay == d})
           for d in group.decays}
  if not keys or np.isnan(array).all():
    return None
  return Scores(results[0].task, results[0].split, title, rate, measure, array,
                None if np.isnan(errors).all() else errors, keys,
                {d: r for d, r in rates.items() if r})


def _arrays(group: Group, cells) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Keys in common, scores_DxSxI and errors_DxS of (decay, seed, keys, scores, error)."""
  common = set.intersection(*(set(keys) for _, _, keys, _, _ in cells)) if cells else set()
  names = sorted(common)
  shape = len(group.decays), len(group.seeds)
  scores_DxSxI = np.full((*shape, len(names)), np.nan)
  errors_DxS = np.full(shape, np.nan)
  for decay, seed, keys, scores, error in cells:
    place = group.decays.index(decay), group.seeds.index(seed)
    if not np.isnan(scores_DxSxI[place]).all():
      continue  # a second member of this decay and seed
    row = dict(zip(keys, scores, strict=True))
    scores_DxSxI[place] = [row[name] for name in names]
    if error is not None:
      errors_DxS[place] = error
  return names, scores_DxSxI, errors_DxS


def _best_rates(group: Group, rates: Sequence[Scores]) -> Scores | None:
  """Every decay at its own best of the rates that all decays have; None below two."""
  if len(rates) < 2:
    return None
  has_D = np.any([r.has_D for r in rates], axis=0)
  rates = [r for r in rates if r.has_D[has_D].all()]
  common = sorted(set.intersection(*(set(r.keys) for r in rates))) if rates else []
  if len(rates) < 2 or len(common) < 4:
    return None
  places = [[{k: i for i, k in enumerate(r.keys)}[k] for k in common] for r in rates]
  stacked = np.stack([r.scores_DxSxI[..., p] for r, p in zip(rates, places, strict=True)])
  made_DxSxI, chosen = decay_choice.cross_fit(stacked, decay_choice.folds(common))
  if np.isnan(made_DxSxI).all():
    return None
  learning_rates = {d: sorted({rate for r in picked for rate in rates[r].learning_rates[d]})
                    for d, picked in zip(group.decays, chosen, strict=True) if picked}
  first = rates[0]
  return Scores(first.task, first.split, first.title, "best", first.measure, made_DxSxI, None,
                common, learning_rates)
