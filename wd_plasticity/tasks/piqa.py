"""PIQA (ybisk/piqa, TFDS piqa; Bisk et al. 2020): which of two ways reaches a goal.

The goal as prompt and the text of a way as response, as in lm-eval.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_WAYS = ("sol1", "sol2")


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  rows = list(rows)
  ways = [[reading.text(row, name).strip() for name in _WAYS] for row in rows]
  golds = formats.classes([reading.column(row, "label") for row in rows], _WAYS, rows)
  for number, (row, options, gold) in enumerate(zip(rows, ways, golds, strict=True)):
    yield formats.cloze(formats.key(row, number), reading.text(row, "goal").strip(), options, gold)


TASK = Task(
    name="piqa", title="PIQA", source="ybisk/piqa",
    splits={"train": 16113, "validation": 1838}, problems=_problems, grading="none",
)
