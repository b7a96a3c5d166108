"""The answer of a study: numbers, then sentences, one answer for each group of members."""

import dataclasses
import math
from typing import Any

import numpy as np

from wd_plasticity.report import scores as scores_lib
from wd_plasticity.report import sentences
from wd_plasticity.report.comparison import (
  Comparison,
  Estimate,
  Evidence,
  Interval,
  compare,
  of_one_set,
)
from wd_plasticity.report.study import Study
from wd_plasticity.report.words import enumerate_all

__all__ = ["Answer", "Comparison", "Estimate", "Interval", "answers", "as_json"]


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a group of members says.

  Attributes:
    group: '' or the fields that it has in common, 'learning_rate=0.002'.
    loss: of the pretraining's validation loss.
    comparisons: the one to answer by first, then for every rate, 'best' first: the average over
      tasks if there are several, then the tasks.
    sentences: findings; the first answers which weight decay to pretrain with.
    cautions: what the evidence does not suffice for, and what would.
    setting: of the fine-tuning, 'epochs=3', '' when there is only one.
  """
  group: str
  loss: Comparison | None
  comparisons: list[Comparison]
  sentences: list[str]
  cautions: list[str]
  setting: str = ""

  @property
  def name(self) -> str:
    """Of the group and the setting, for headings."""
    tuned = f"fine-tuned with {self.setting}" if self.setting else ""
    return "; ".join(part for part in (self.group, tuned) if part)


def answers(study: Study) -> list[Answer]:
  """One answer for each group of members and setting of the fine-tuning; also of nothing."""
  return [_answer(study, group) for group in scores_lib.groups(study)]


def as_json(made: list[Answer]) -> dict[str, Any]:
  """The answers as plain values; what is not finite is None."""
  return {"schema": "wd_plasticity.answer", "schema_version": 1,
          "answers": [_plain(dataclasses.asdict(a)) for a in made]}


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {f"{k:g}" if isinstance(k, float) else str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _answer(study: Study, group: scores_lib.Group) -> Answer:
  measured, caution = scores_lib.pretraining_loss(study, group)
  loss = compare([measured], group.decays, group.seeds) if measured else None
  tested = scores_lib.tasks(group)
  learnt, heads, notes = _for_average(tested)
  evidence: list[Evidence] = []
  head = None
  rates = list(dict.fromkeys(rate for t in tested for rate in t.by_rate))
  for rate in sorted(rates, key=lambda r: r != "best"):  # the order of the others stays
    parts = [part for t in heads if (part := _at(t, rate)) is not None]
    used = of_one_set(parts) if parts else []
    wanted = [used] if len(used) > 1 else []
    wanted += [[t.by_rate[rate]] for t in tested if rate in t.by_rate]
    found = [compare(part, group.decays, group.seeds, loss.comparison if loss else None)
             for part in wanted]
    if head is None and used and rate in ("best", "", rates[0]):
      head = found[0] if len(used) > 1 else compare(
          used, group.decays, group.seeds, loss.comparison if loss else None)
      notes += _left_out(heads, used, rate, group)
    evidence += [f for f in found if f is not None]
  if head is not None:  # it comes first, also where it is one task of several
    same = (head.comparison.rate, head.comparison.tasks)
    evidence.sort(key=lambda e: (e.comparison.rate, e.comparison.tasks) != same)
  found, cautions = sentences.write(group, loss, evidence, head, learnt)
  notes = [note for t in tested for note in t.first.notes] + notes + ([caution] if caution else [])
  return Answer(group.name, loss.comparison if loss else None,
                [e.comparison for e in evidence], found, list(dict.fromkeys(cautions + notes)),
                group.setting)


def _at(tested: scores_lib.Tested, rate: str) -> scores_lib.Scores | None:
  """Scores at a rate; of a task with one rate alone, those stand for its best."""
  if rate == "best" and "best" not in tested.by_rate and len(tested.by_rate) == 1:
    return tested.first
  return tested.by_rate.get(rate)


def _for_average(tested: list[scores_lib.Tested]
                 ) -> tuple[bool, list[scores_lib.Tested], list[str]]:
  """Whether any task is learnt, what stands for the tasks to answer by, and what does not."""
  notes = []
  heads = [t for t in tested if t.is_headline]
  for t in tested:
    if not t.is_headline:
      notes.append(f"{t.first.title} is shown but does not count in the answer, which is by the "
                   "other splits of the task.")
  accuracies = [t for t in heads if not scores_lib.is_loss(t.first.measure)]
  if accuracies and len(accuracies) < len(heads):
    named = enumerate_all([t.first.title for t in heads if t not in accuracies])
    notes.append(f"Only a loss is known of {named}, which is not in the average of accuracies.")
  heads = accuracies or heads[:1]
  learnt = [t for t in heads if any(s.is_learnt() for s in t.by_rate.values())]
  out = [t.first.title for t in heads if t not in learnt]
  if out and learnt:
    notes.append(
        f"Not learnt, and left out of the answer: {enumerate_all(out)}; by more than the error no "
        "weight decay is better there than its base model, or none is away from chance.")
  return bool(learnt) or not heads, learnt or heads, notes


def _left_out(heads: list[scores_lib.Tested], used: list[scores_lib.Scores], rate: str,
              group: scores_lib.Group) -> list[str]:
  """What the answer leaves out of tasks and decays, and tasks with one rate in it."""
  notes = []
  decays = sorted({group.decays[d] for p in used for d in np.flatnonzero(p.has_D)})
  names = {p.task for p in used}
  out = [t.first for t in heads if t.first.task not in names]
  several = len(heads) > 1
  for scores in out:
    has = [group.decays[d] for d in np.flatnonzero(scores.has_D)]
    has = f"has results of weight decay {enumerate_all(has)} alone" if (
        not set(decays) <= set(has)) else f"has no results that can be compared at {rate or 'it'}"
    notes.append(f"{scores.title} is not in the answer, because it {has}.")
  missing = sorted({f.weight_decay for f in group.finetuned} - set(decays))
  if missing and len(used) and several:
    notes.append(f"Weight decay {enumerate_all(missing)} is not in the answer, because not all of "
                 "its tasks have results of it.")
  if rate == "best":
    fixed = [p for p in used if p.rate != "best"]
    if fixed:
      notes.append(
          f"{enumerate_all([p.title for p in fixed])} {'was' if len(fixed) == 1 else 'were'} "
          "fine-tuned at one learning rate only, and "
          f"{'counts' if len(fixed) == 1 else 'count'} at that in the answer.")
    if any(p.choice is not None and p.seeds == 1 and p.runs == 1 for p in used):
      notes.append("With one run at each learning rate the choice among them cannot be corrected "
                   "for luck: accuracies at each decay's own best rate are on the high side.")
    elif any(p.choice is not None and p.errors_DxS is not None for p in used):
      notes.append("Without scores per problem learning rates are chosen on other seeds, but on "
                   "the same problems.")
  return notes
