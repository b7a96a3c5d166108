"""PIQA (ybisk/piqa, TFDS piqa; Bisk et al. 2020): which of two ways reaches a goal.

The goal as prompt and the text of a way as response, as in lm-eval.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  for number, row in enumerate(rows):
    ways = [str(reading.column(row, name)).strip() for name in ("sol1", "sol2")]
    gold = formats.class_index(reading.column(row, "label"), ("0", "1"), row)
    yield formats.cloze(formats.key(row, number), str(reading.column(row, "goal")).strip(), ways,
                        gold)


TASK = Task(
    name="piqa", title="PIQA", source="ybisk/piqa",
    splits={"train": 16113, "validation": 1838}, problems=_problems, grading="none",
)
