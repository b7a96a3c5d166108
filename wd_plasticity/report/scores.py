"""Scores of members as arrays [decay, seed, item], from a study's results.

Larger is better in all of them: losses are negated.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from wd_plasticity.analysis import decay_choice
from wd_plasticity.analysis.seed_variance import Choice
from wd_plasticity.report import runs as runs_lib
from wd_plasticity.report.study import Finetuned, Member, Result, Study
from wd_plasticity.report.words import enumerate_all, plural
from wd_plasticity.tasks import registry


@dataclasses.dataclass(frozen=True)
class Scores:
  """One task at one learning rate of fine-tuning, or the pretraining loss.

  Attributes:
    task, title, rate, measure: as in `comparison.Comparison`.
    splits: of the task, whose problems are pooled.
    scores_DxSxI: by the group's decays and seeds, NaN for members that are missing; means over
      fine-tuning seeds. Where every decay has one pretraining seed and several of fine-tuning, the
      second axis is those.
    errors_DxS: standard errors where the items are not known (I = 1), else None.
    keys: [I] of the items.
    learning_rates: decay to the rates its scores were made with.
    base_DxSxI: before fine-tuning; None where it is not known by item as the scores are.
    chance: share of the problems that guessing solves; None where it is not known.
    choice: the rates among which those of 'best' were chosen.
    runs: most fine-tuning seeds of a member.
    seeds: pretraining seeds that a decay has at most.
    seed_of: where that is one, the seed of each decay.
    notes: sentences on what is not in the scores though there are results of it.
  """
  task: str
  splits: list[str]
  title: str
  rate: str
  measure: str
  scores_DxSxI: np.ndarray
  errors_DxS: np.ndarray | None
  keys: list[str]
  learning_rates: dict[float, list[float]]
  base_DxSxI: np.ndarray | None = None
  chance: float | None = None
  choice: Choice | None = None
  runs: int = 1
  seeds: int = 1
  seed_of: dict[float, int] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)

  @property
  def has_D(self) -> np.ndarray:
    return ~np.isnan(self.scores_DxSxI).all((1, 2))

  @property
  def problems(self) -> str:
    """'SST-2 (872 problems of validation)'."""
    where = " and ".join(self.splits) if len(self.splits) < 3 else f"{len(self.splits)} splits"
    count = f"{len(self.keys):,} problems of " if len(self.keys) > 1 else ""
    return f"{self.title} ({count}{where})" if where else self.title

  def is_learnt(self) -> bool:
    """Whether some decay is better than its base model and not at chance, which a loss has not."""
    return decay_choice.is_learnt(self.scores_DxSxI, self.base_DxSxI,
                                  None if is_loss(self.measure) else self.chance, self.errors_DxS)


@dataclasses.dataclass(frozen=True)
class Tested:
  """A task, tested on one split or on several together.

  Attributes:
    by_rate: scores by the name of the rate; 'best', each decay's own, comes first.
    is_headline: whether it stands for its task in an average.
  """
  by_rate: dict[str, Scores]
  is_headline: bool

  @property
  def first(self) -> Scores:
    return next(iter(self.by_rate.values()))


@dataclasses.dataclass(frozen=True)
class Group:
  """Members that differ in weight decay and seed alone, fine-tuned in one setting.

  Attributes:
    name: of the group.
    setting: of the fine-tuning, '' when there is only one.
    members: all of them.
    decays, seeds: axes of the arrays.
    finetuned: results of the last steps of members that are done.
    left_out: names of members that failed or have not finished.
    ruined: results whose fine-tuning was not finite at some step.
    early: names of members whose results are from before their last step.
  """
  name: str
  setting: str
  members: list[Member]
  decays: list[float]
  seeds: list[int]
  finetuned: list[Finetuned]
  left_out: list[str]
  ruined: list[Finetuned]
  early: list[str]


def groups(study: Study) -> list[Group]:
  """The groups of a study, one for each setting of the fine-tuning.

  Results without any pretraining beside them make groups too.
  """
  names = dict.fromkeys([m.group for m in study.members])
  if not names:
    names = dict.fromkeys([f.group for f in study.finetuned])
  made = []
  for name in names or [""]:
    settings = dict.fromkeys(sorted(f.setting for f in study.finetuned if f.group == name))
    made += [_group(study, name, setting) for setting in settings or [""]]
  return made


def _group(study: Study, name: str, setting: str) -> Group:
  members = [m for m in study.members if m.group == name]
  done = {m.name: m for m in members if m.status == "done"}
  found = [f for f in study.finetuned if f.group == name and f.setting == setting and f.last
           and (f.member in done or not study.members)]
  decays = sorted({m.weight_decay for m in done.values()} | {f.weight_decay for f in found})
  seeds = sorted({m.seed for m in done.values()} | {f.seed for f in found})
  early = sorted({f.member for f in found if f.member in done and done[f.member].steps
                  and f.step < done[f.member].steps})
  return Group(name, setting, members, decays, seeds, found,
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
  loose = not study.members  # results without any pretraining beside them
  if documents and (loose or all(m.name in documents for m in done)):
    cells = [(r.weight_decay, r.seed, *_by_document(r)) for name, r in documents.items()
             if loose or any(m.name == name for m in done)]
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
  keys, scores_DxSxFxI, _ = runs_lib.arrays(group.decays, group.seeds, [
      runs_lib.Cell(w, s, 0, k, -y, None, None) for w, s, k, y, _ in cells])
  seeds = max(len({s for w, s, *_ in cells if w == decay}) for decay in {c[0] for c in cells})
  return Scores("", [], "pretraining", "", "validation loss", scores_DxSxFxI[:, :, 0], None, keys,
                {}, seeds=seeds, seed_of={c[0]: c[1] for c in cells}), caution


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


def tasks(group: Group) -> list[Tested]:
  """Scores of every task, of its splits together and one by one.

  A task's splits are pooled, so that each counts by its problems; 'validation' stands apart where
  there are others, because that is what one would tune on.
  """
  splits: dict[str, list[str]] = {}
  for f in group.finetuned:
    if f.split not in splits.setdefault(f.task, []):
      splits[f.task].append(f.split)
  made = []
  for task, names in splits.items():
    main = [n for n in names if n != "validation"] or names
    wanted = [main] + [[n] for n in names if [n] != main]
    for some in wanted:
      title = "" if len(names) == 1 or (some == main and len(main) > 1) else f", {some[0]}"
      by_rate = _by_rate(group, [f for f in group.finetuned
                                 if f.task == task and f.split in some], some, title)
      if by_rate:
        made.append(Tested(by_rate, is_headline=some == main))
  return made


def rate_name(learning_rate: float) -> str:
  return f"lr{learning_rate:g}"


def _by_rate(group: Group, results: Sequence[Finetuned], splits: Sequence[str],
             title: str) -> dict[str, Scores]:
  """Scores by rate; points of one learning rate that differ in the seed are replicates."""
  title = results[0].title + title
  measure = collections.Counter(f.measure for f in results).most_common(1)[0][0]
  known = [f for f in results if f.after.get(measure, {}).get("value") is not None]
  rates = sorted({f.learning_rate for f in known})
  several = len({f.learning_rate for f in group.finetuned}) > 1 and any(
      len({f.learning_rate for f in group.finetuned if f.task == task}) > 1
      for task in {f.task for f in group.finetuned})
  notes = []
  if len(known) < len(results):
    notes.append(f"{plural(len(results) - len(known), 'result')} on {title} "
                 f"{'has' if len(results) - len(known) == 1 else 'have'} no {measure} and "
                 "are left out.")
  made = {}
  for rate in rates:
    found = _scores([f for f in known if f.learning_rate == rate], group, splits, title,
                    rate_name(rate) if several else "", measure, notes)
    if found is not None:
      made[found.rate] = found
  best = _best_rates(group, list(made.values()))
  return ({"best": best} if best else {}) | made


def _scores(results: Sequence[Finetuned], group: Group, splits: Sequence[str], title: str,
            rate: str, measure: str, notes: list[str]) -> Scores | None:
  sign = -1.0 if is_loss(measure) else 1.0
  runs: dict[tuple[float, int, str], dict[str, Finetuned]] = {}
  for f in results:
    # Without a stored seed of the fine-tuning, points of one learning rate are runs by their names.
    run = f.rate if f.finetune_seed is None else f"{f.finetune_seed:>12}"
    runs.setdefault((f.weight_decay, f.seed, run), {}).setdefault(f.split, f)
  names = {run: i for i, run in enumerate(sorted({run for *_, run in runs}))}
  cells, means = [], []
  for (decay, seed, run), by_split in runs.items():
    if set(by_split) != set(splits):
      continue
    parts = [by_split[s] for s in splits]
    place = decay, seed, names[run]
    count = np.array([f.after[measure].get("n") or 1 for f in parts], np.float64)
    value, base, error = (runs_lib.weighted(parts, count, measure, what) for what in (
        "value", "base", "se"))
    means.append(runs_lib.Cell(*place, [""], np.array([sign * value]),
                       None if base is None else np.array([sign * base]), error))
    cell = runs_lib.of_problems(parts, measure, sign)
    if cell is not None:
      cells.append(runs_lib.Cell(*place, *cell, None))
  notes = list(notes)
  partly = len(runs) - len(means)
  if partly:
    notes.append(f"{plural(partly, 'run')} of {title} without all of its splits "
                 f"{'is' if partly == 1 else 'are'} left out; finish the fine-tuning.")
  used = cells if len(cells) == len(means) else means
  keys, array, errors = runs_lib.arrays(group.decays, group.seeds, used)
  if not keys and cells:  # no item in common
    used = means
    keys, array, errors = runs_lib.arrays(group.decays, group.seeds, used)
  if not keys or np.isnan(array).all():
    return None
  if used is cells and max(len(c.keys) for c in cells) > len(keys):
    notes.append(f"Only {len(keys):,} of {max(len(c.keys) for c in cells):,} problems of {title} "
                 "are in the results of all members, and count.")
  base = None
  if all(c.base is not None for c in used):
    base = runs_lib.arrays(group.decays, group.seeds, [
        dataclasses.replace(c, scores=c.base) for c in used])[1]
  seeds = int((~np.isnan(array).all((2, 3))).sum(1).max())
  num_runs = int((~np.isnan(array).all(3)).sum(2).max())
  array, base, errors = (runs_lib.over_runs(x, seeds) for x in (array, base, errors[..., None]))
  chances = [(f.chance, f.after[measure].get("n") or 1) for f in results if f.chance is not None]
  labels = registry.get(results[0].task).labels
  chance = (sum(c * n for c, n in chances) / sum(n for _, n in chances) if chances else
            1 / len(labels) if labels else None)
  rates = {d: sorted({f.learning_rate for f in results if f.weight_decay == d})
           for d in group.decays}
  return Scores(results[0].task, list(splits), title, rate, measure, array,
                None if np.isnan(errors).all() else errors[..., 0], keys,
                {d: r for d, r in rates.items() if r}, base, chance, None, num_runs, seeds,
                {c.weight_decay: c.seed for c in used}, notes)


def _best_rates(group: Group, rates: Sequence[Scores]) -> Scores | None:
  """Every decay at its own best of the rates that all decays have; None below two."""
  if len(rates) < 2:
    return None
  has_D = np.any([r.has_D for r in rates], axis=0)
  notes = list(dict.fromkeys(n for r in rates for n in r.notes))
  partly = [r.rate.removeprefix("lr") for r in rates if not r.has_D[has_D].all()]
  rates = [r for r in rates if r.has_D[has_D].all()]
  common = sorted(set.intersection(*(set(r.keys) for r in rates))) if rates else []
  if len(rates) < 2 or not common:
    return None
  first = rates[0]
  places = [[{k: i for i, k in enumerate(r.keys)}[k] for k in common] for r in rates]
  stacked_RxDxSxI = np.stack([r.scores_DxSxI[..., p] for r, p in zip(rates, places, strict=True)])
  if len(common) < 4 and not (~np.isnan(stacked_RxDxSxI[0]).all(-1)).sum(1).max() > 1:
    return None  # neither other seeds nor other items
  if partly:
    notes.append(f"Learning rate {enumerate_all(partly)} on {first.title} has no results of some "
                 "weight decays and does not compete; finish the fine-tuning.")
  fold_I = decay_choice.folds(common) if len(common) > 3 else np.zeros(len(common), np.int64)
  made_DxSxI, picked_DxSx2 = decay_choice.cross_fit(stacked_RxDxSxI, fold_I)
  if np.isnan(made_DxSxI).all():
    return None
  learning_rates = {d: sorted({x for r in np.unique(picked_Sx2[picked_Sx2 >= 0])
                               for x in rates[r].learning_rates.get(d, [])})
                    for d, picked_Sx2 in zip(group.decays, picked_DxSx2, strict=True)}
  errors = None
  if all(r.errors_DxS is not None for r in rates):
    errors_RxDxS = np.stack([r.errors_DxS for r in rates])
    picked_1xDxS = np.maximum(picked_DxSx2[None, ..., 0], 0)
    errors = np.take_along_axis(errors_RxDxS, picked_1xDxS, 0)[0]
  base = first.base_DxSxI
  return dataclasses.replace(
      first, rate="best", scores_DxSxI=made_DxSxI, errors_DxS=errors, keys=common,
      learning_rates={d: r for d, r in learning_rates.items() if r},
      base_DxSxI=None if base is None else base[..., places[0]],
      choice=Choice(np.mean(stacked_RxDxSxI, axis=-1)), notes=notes)
