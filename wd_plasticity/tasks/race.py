"""RACE (ehovy/race, TFDS race, or the files of the original archive; Lai et al. 2017).

Trained on the published train and dev sets, middle and high school (92,753 questions,
92,737 within the length filter), so the training split is read from both. A response is
the text of the right option and `Therefore, the answer is X.`
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import formats, printed, reading
from wd_plasticity.tasks.task import Problem, Task


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  asked = []  # (name, passage, question), and of each the options and the answer as a row
  for number, row in enumerate(rows):
    name, passage = formats.key(row, number, "example_id", "id"), reading.text(row, "article")
    origin = {k: row[k] for k in ("_name", "_count_from", "_notes") if k in row}
    asked += [((f"{name}-{number}-{i}", passage, question),
               {**origin, "choices": options, "answerKey": answer})
              for i, (question, options, answer) in enumerate(_questions(row))]
  found = formats.choices([row for _, row in asked])
  for (about, _), (options, gold) in zip(asked, found, strict=True):
    problem = _problem(*about, options, gold)
    if split != "train" or formats.short_enough(problem.prompt, problem.response):
      yield problem


def _questions(row: dict) -> list[tuple]:
  if not reading.has(row, "questions"):
    return [(reading.text(row, "question"), reading.column(row, "options"),
             reading.column(row, "answer"))]
  # A passage with all its questions, as in the archive and in TFDS.
  lists = [printed.structure(reading.column(row, name))
           for name in ("questions", "options", "answers")]
  if not all(isinstance(x, list) for x in lists) or len({len(x) for x in lists}) != 1:
    raise UserError(f"row {reading.shown(row)} has not as many options and answers as questions; "
                    "give a list of each.")
  return list(zip(*lists, strict=True))


def _problem(name: str, passage: str, question: str, options: list[str], gold: int) -> Problem:
  letters = formats.LETTERS[:len(options)]
  ends = tuple(f"{text} Therefore, the answer is {letter}."
               for letter, text in zip(letters, options, strict=True))
  passage = ("Answer the question from the passage alone.\n\n"
             f"Passage: {passage.strip()}\n\n"
             f"Question: {str(question).strip()}")
  return Problem(key=name, prompt=formats.lettered(passage, options), response=ends[gold],
                 answer=letters[gold], options=ends, gold=gold)


TASK = Task(
    name="race", title="RACE", source="ehovy/race (all)",
    splits={"train": 92737, "test": 4934}, problems=_problems,
    grading="letter", generated=True,
)
