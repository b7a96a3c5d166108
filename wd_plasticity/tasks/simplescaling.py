"""SimpleScaling (simplescaling/data_ablation_full59K; Muennighoff et al. 2025).

The response is the column `attempt`; rows whose attempt has no \\boxed answer are left
out (58,986 before, 54,484 after). Tested on GSM8K-Platinum and MATH.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import math_problems, reading
from wd_plasticity.tasks.task import Problem, Task


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  if split != "train":
    yield from math_problems.problems(rows, split)
    return
  for number, row in enumerate(rows):
    attempt = reading.text(row, "attempt")
    if "\\boxed" in attempt:
      yield Problem(key=str(number), prompt=reading.text(row, "question"),
                    response=attempt)


TASK = Task(
    name="simplescaling", title="SimpleScaling",
    source=f"simplescaling/data_ablation_full59K; tests {math_problems.SOURCES}",
    splits={"train": 54484, **math_problems.SPLITS}, problems=_problems,
    grading="math", generated=True,
)
