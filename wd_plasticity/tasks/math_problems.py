"""Test sets of the tasks in mathematics: GSM8K-Platinum and MATH.

GSM8K-Platinum (madrylab/gsm8k-platinum; Vendrow et al. 2025) is the GSM8K test set
without its wrong and ambiguous problems. MATH (hendrycks/competition_math, also by
subject in EleutherAI/hendrycks_math; Hendrycks et al. 2021) comes as one JSON file per
problem or as Parquet; its levels are reported one by one.
"""

import re
from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, grading, reading
from wd_plasticity.tasks.task import Problem

SPLITS = {"gsm8k_platinum": 1209, "math": 5000, "math_level1": 437, "math_level2": 894,
          "math_level3": 1131, "math_level4": 1214, "math_level5": 1324}
SOURCES = "madrylab/gsm8k-platinum; EleutherAI/hendrycks_math"

_CALCULATION = re.compile(r"<<[^<>]*>>")


def problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  """The problems of one of `SPLITS`."""
  if split == "gsm8k_platinum":
    yield from gsm8k_problems(rows)
    return
  level = split.removeprefix("math").removeprefix("_level")
  for number, row in enumerate(rows):
    if level and _digits(reading.column(row, "level")) != level:
      continue
    solution = str(reading.column(row, "solution", "gt_solution"))
    yield Problem(key=formats.key(row, number),
                  prompt=str(reading.column(row, "problem", "question")).strip(),
                  response=solution, answer=grading.last_boxed(solution) or "")


def gsm8k_problems(rows: Iterable[dict]) -> Iterator[Problem]:
  """Problems in the layout of GSM8K, without the marks of calculations (`<<1+1=2>>`)."""
  for number, row in enumerate(rows):
    solution = _CALCULATION.sub("", str(reading.column(row, "answer", "gt_solution")))
    yield Problem(key=formats.key(row, number),
                  prompt=str(reading.column(row, "question", "problem")).strip(),
                  response=solution.strip(), answer=grading.extract(solution) or "")


def _digits(level) -> str:
  return re.sub(r"\D", "", str(level))
