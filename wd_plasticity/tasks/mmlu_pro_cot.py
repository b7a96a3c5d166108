"""MMLU-Pro with chain of thought (dongboklee/MMLU-Pro-Llama-3.1-70B-Instruct-CoT).

The published `test` split (130,811 rows of 10,532 questions) is what the study trains
on, but for 500 questions that it moves to its test set, one row each; the rest of the
test set are the 67 questions of the published `validation` split, so both splits here
are read from both files. Rows whose response does not reach the right letter, and those
beyond the length filter, are left out of training. The 500 are those of the smallest
hash, not the study's random ones: the number of training rows comes out a little other.

A file of `problem` (with its options), `gt_solution` and `gt_answer` is taken as the split
that it is given for.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, grading, reading
from wd_plasticity.tasks.task import Problem, Task

_HELD_OUT = 500


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  rows = list(rows)
  if rows and reading.has(rows[0], "gt_answer"):
    for number, row in enumerate(rows):
      problem = _ready_problem(row, number)
      if split != "train" or _fit(problem):
        yield problem
    return
  # In excerpts of the data set, at most half of the questions.
  questions = {_question(row) for row in rows if not _validation(row)}
  held_out = set(sorted(questions, key=_hash)[:min(_HELD_OUT, len(questions) // 2)])
  test = held_out | {_question(row) for row in rows if _validation(row)}
  seen = set()
  for number, (row, options) in enumerate(zip(rows, formats.choices(rows), strict=True)):
    question = _question(row)
    if split == "train" and question not in test:
      problem = _problem(row, number, *options)
      if _fit(problem):
        yield problem
    elif split == "test" and question in test and question not in seen:
      seen.add(question)
      yield _problem(row, number, *options)


def _question(row: dict) -> str:
  return reading.text(row, "question").strip()


def _validation(row: dict) -> bool:
  # The published validation questions are those that prompts of MMLU-Pro show as examples.
  return str(reading.column(row, "src")).startswith("cot_lib")


def _hash(question: str) -> bytes:
  return hashlib.blake2b(question.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _problem(row: dict, number: int, options: list[str], gold: int) -> Problem:
  letters = formats.LETTERS[:len(options)]
  return Problem(
      key=f"{formats.key(row, number, 'question_id')}-{formats.key(row, 0, 'cot_id')}",
      prompt=formats.lettered(_question(row), options),
      response=reading.text(row, "cot_content").strip(), answer=letters[gold],
      options=_responses(letters), gold=gold)


def _ready_problem(row: dict, number: int) -> Problem:
  prompt = reading.text(row, "problem", "question").strip()
  shown = {line[:1] for line in prompt.split("\n") if line[1:3] in (". ", ") ")}
  shown |= {line[1:2] for line in prompt.split("\n") if line[:1] == "(" and line[2:3] == ")"}
  letters = "".join(itertools.takewhile(shown.__contains__, formats.LETTERS))
  given = reading.text(row, "gt_answer").strip().strip("()[]. ").upper()
  answer = given if len(given) == 1 and given in formats.LETTERS else ""
  known = answer and answer in letters
  return Problem(
      key=formats.key(row, number, "question_id", "id"), prompt=prompt,
      response=reading.optional_text(row, "gt_solution").strip(), answer=answer,
      options=_responses(letters) if known else (), gold=letters.index(answer) if known else -1)


def _responses(letters: str) -> tuple[str, ...]:
  return tuple(f"The answer is {letter}." for letter in letters)


def _fit(problem: Problem) -> bool:
  """Whether a training row reaches the right letter and passes the length filter."""
  return (formats.short_enough(problem.prompt, problem.response)
          and grading.grade(TASK, problem, problem.response).correct)


TASK = Task(
    name="mmlu_pro_cot", title="MMLU-Pro CoT",
    source="dongboklee/MMLU-Pro-Llama-3.1-70B-Instruct-CoT (test and validation)",
    splits={"train": 123836, "test": 567}, problems=_problems,
    grading="letter", generated=True,
    notes="Options are scored without a chain of thought.",
)
