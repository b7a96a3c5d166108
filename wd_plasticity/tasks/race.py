"""RACE (ehovy/race, TFDS race, or the files of the original archive; Lai et al. 2017).

Trained on the published train and dev sets, middle and high school (92,753 questions,
92,737 within the length filter), so the training split is read from both. A response is
the text of the right option and `Therefore, the answer is X.`
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  for number, row in enumerate(rows):
    name = row.get("example_id") or row.get("id") or number
    for i, (question, options, answer) in enumerate(_questions(row)):
      problem = _problem(f"{name}-{number}-{i}", row, question, options, answer)
      if split != "train" or formats.short_enough(problem.prompt, problem.response):
        yield problem


def _questions(row: dict) -> list[tuple]:
  if "questions" in row:  # a passage with all its questions, as in the archive and in TFDS
    return list(zip(row["questions"], row["options"], row["answers"], strict=True))
  return [(reading.column(row, "question"), reading.column(row, "options"),
           reading.column(row, "answer"))]


def _problem(name: str, row: dict, question: str, options, answer) -> Problem:
  options, gold = formats.choices({**row, "choices": options, "answerKey": answer})
  letters = formats.LETTERS[:len(options)]
  ends = tuple(f"{text} Therefore, the answer is {letter}."
               for letter, text in zip(letters, options, strict=True))
  passage = ("Answer the question from the passage alone.\n\n"
             f"Passage: {str(reading.column(row, 'article')).strip()}\n\n"
             f"Question: {str(question).strip()}")
  return Problem(key=name, prompt=formats.lettered(passage, options), response=ends[gold],
                 answer=letters[gold], options=ends, gold=gold)


TASK = Task(
    name="race", title="RACE", source="ehovy/race (all)",
    splits={"train": 92737, "test": 4934}, problems=_problems,
    grading="letter", generated=True,
)
