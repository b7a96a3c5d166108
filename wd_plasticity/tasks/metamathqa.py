"""MetaMathQA (meta-math/MetaMathQA; Yu et al. 2023): augmented GSM8K and MATH problems.

All rows with their original responses, which end in `The answer is: ...`; tested on
GSM8K-Platinum and MATH.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import math_problems, reading
from wd_plasticity.tasks.task import Problem, Task


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  if split != "train":
    yield from math_problems.problems(rows, split)
    return
  for number, row in enumerate(rows):
    yield Problem(key=str(number), prompt=reading.text(row, "query"),
                  response=reading.text(row, "response"))


TASK = Task(
    name="metamathqa", title="MetaMathQA",
    source=f"meta-math/MetaMathQA; tests {math_problems.SOURCES}",
    splits={"train": 395000, **math_problems.SPLITS}, problems=_problems,
    grading="math", generated=True,
)
