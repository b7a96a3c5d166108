"""MMLU-Pro with chain of thought (dongboklee/MMLU-Pro-Llama-3.1-70B-Instruct-CoT).

The published `test` split (130,811 rows of 10,532 questions) is what the study trains
on, but for 500 questions that it moves to its test set, one row each; the rest of the
test set are the 67 questions of the published `validation` split, so both splits here
are read from both files. Rows whose response does not reach the right letter, and those
beyond the length filter, are left out of training. The 500 are those of the smallest
hash, not the study's random ones: the number of training rows comes out a little other.
"""

import hashlib
from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, grading, reading
from wd_plasticity.tasks.task import Problem, Task

_HELD_OUT = 500


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  rows = list(rows)
  # In excerpts of the data set, at most half of the questions.
  questions = {_question(row) for row in rows if not _validation(row)}
  held_out = set(sorted(questions, key=_hash)[:min(_HELD_OUT, len(questions) // 2)])
  test = held_out | {_question(row) for row in rows if _validation(row)}
  seen = set()
  for row in rows:
    question = _question(row)
    if split == "train" and question not in test:
      problem = _problem(row)
      if _right(problem) and formats.short_enough(problem.prompt, problem.response):
        yield problem
    elif split == "test" and question in test and question not in seen:
      seen.add(question)
      yield _problem(row)


def _question(row: dict) -> str:
  return str(reading.column(row, "question")).strip()


def _validation(row: dict) -> bool:
  # The published validation questions are those that prompts of MMLU-Pro show as examples.
  return str(reading.column(row, "src")).startswith("cot_lib")


def _hash(question: str) -> bytes:
  return hashlib.blake2b(question.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _problem(row: dict) -> Problem:
  options, gold = formats.choices(row)
  letters = formats.LETTERS[:len(options)]
  return Problem(
      key=f"{reading.column(row, 'question_id')}-{row.get('cot_id', 0)}",
      prompt=formats.lettered(_question(row), options),
      response=str(reading.column(row, "cot_content")).strip(), answer=letters[gold],
      options=tuple(f"The answer is {letter}." for letter in letters), gold=gold)


def _right(problem: Problem) -> bool:
  answer = grading.extract(problem.response)
  return answer is not None and answer.rstrip(".,;!?") == problem.answer


TASK = Task(
    name="mmlu_pro_cot", title="MMLU-Pro CoT",
    source="dongboklee/MMLU-Pro-Llama-3.1-70B-Instruct-CoT (test and validation)",
    splits={"train": 123836, "test": 567}, problems=_problems,
    grading="letter", generated=True,
    notes="Options are scored without a chain of thought.",
)
