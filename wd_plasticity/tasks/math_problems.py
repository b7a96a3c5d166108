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
    solution = reading.text(row, "solution", "gt_solution", "answer")
    yield Problem(key=formats.key(row, number),
                  prompt=reading.text(row, "problem", "question").strip(),
                  response=solution, answer=_gold(row, solution, "answer"))


def gsm8k_problems(rows: Iterable[dict]) -> Iterator[Problem]:
  """Problems in the layout of GSM8K, without the marks of calculations (`<<1+1=2>>`)."""
  for number, row in enumerate(rows):
    solution = _CALCULATION.sub("", reading.text(row, "answer", "gt_solution", "solution"))
    answer = _gold(row, solution)
    if _is_bare(solution) and reading.has(row, "solution"):
      solution = reading.text(row, "solution")
    yield Problem(key=formats.key(row, number),
                  prompt=reading.text(row, "question", "problem").strip(),
                  response=solution.strip(), answer=answer)


def _gold(row: dict, solution: str, beside: str = "") -> str:
  """The answer that a row gives; '' when none can be found, which `registry.load` counts.

  It is in the column `gt_answer`, or follows the last `####` of the solution (GSM8K), or is
  in its last box (MATH), or in the column `beside`, or the solution is nothing but it, or
  says it.
  """
  if reading.has(row, "gt_answer"):
    return reading.text(row, "gt_answer").strip()
  _, mark, end = solution.rstrip().rpartition("####")
  ends = bool(mark) and "\n" not in end.strip()  # not the heading of a last section
  found = (ends and end.strip().rstrip(".")) or grading.last_boxed(solution)
  if not found and reading.has(row, beside):
    stated = reading.text(row, beside).strip()
    found = stated if stated != solution.strip() and "\n" not in stated else ""
  if not found:
    found = solution if _is_bare(solution) else grading.extract(solution)
  return (found or "").strip()


def _is_bare(text: str) -> bool:
  """Whether a text is nothing but an answer: a number or an expression, not a sentence."""
  text = text.strip()
  return len(text) <= 100 and len(text.split()) == 1 and (
      "\\" in text or any(c.isdigit() for c in text))


def _digits(level) -> str:
  return re.sub(r"\D", "", str(level))
