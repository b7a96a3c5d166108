"""The answer of a study: numbers, then sentences, one answer for each group of members."""

import dataclasses
import math
from typing import Any

from wd_plasticity.report import scores as scores_lib
from wd_plasticity.report import sentences
from wd_plasticity.report.comparison import (
  Comparison,
  Estimate,
  Evidence,
  Interval,
  average,
  compare,
)
from wd_plasticity.report.study import Study

__all__ = ["Answer", "Comparison", "Estimate", "Interval", "answers", "as_json"]


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a group of members says.

  Attributes:
    group: '' or the fields that it has in common, 'learning_rate=0.002'.
    loss: of the pretraining's validation loss.
    comparisons: for every rate, 'best' first: the average over tasks if there are several,
      then the tasks.
    sentences: findings; the first answers which weight decay to pretrain with.
    cautions: what the evidence does not suffice for, and what would.
  """
  group: str
  loss: Comparison | None
  comparisons: list[Comparison]
  sentences: list[str]
  cautions: list[str]


def answers(study: Study) -> list[Answer]:
  """One answer for each group of members; also for studies with little or nothing in them."""
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
  tasks = scores_lib.tasks(group)
  for_average = scores_lib.headline_split(tasks)
  evidence: list[Evidence] = []
  left_out: set[str] = set()
  rates = list(dict.fromkeys(rate for by_rate in tasks for rate in by_rate))
  for rate in sorted(rates, key=lambda r: r != "best"):  # the order of the others stays
    used, without = average([by_rate[rate] for by_rate in for_average if rate in by_rate])
    parts = [used] if len(used) > 1 else []
    left_out |= {part.title for part in without} if parts else set()
    parts += [[by_rate[rate]] for by_rate in tasks if rate in by_rate]
    found = [compare(part, group.decays, group.seeds, loss.comparison if loss else None)
             for part in parts]
    evidence += [f for f in found if f is not None]
  extra = [caution] if caution else []
  if left_out:
    extra.append(f"{', '.join(sorted(left_out))} {'is' if len(left_out) == 1 else 'are'} not in "
                 "the average, because fewer weight decays have results there.")
  found, cautions = sentences.write(group, loss, evidence)
  return Answer(group.name, loss.comparison if loss else None,
                [e.comparison for e in evidence], found, cautions + extra)
