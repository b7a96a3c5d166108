"""MedMCQA with chain of thought: entrance exams of medical schools.

Training rows are HPAI-BSC/medmcqa-cot-llama31 (182,736), whose question follows an
instruction that ends in `Question: ` and whose response ends in `Answer: X.`; that is
rewritten to `The answer is X.`, and rows that are too long or have no such end are left
out (182,555 in the study). The test set is the validation split of
openlifescienceai/medmcqa.
"""

import re
from collections.abc import Iterable, Iterator

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_END = re.compile(r"Answer:\s*\(?([A-D])\)?\.?\s*$")
_OPTIONS = tuple(f"The answer is {letter}." for letter in "ABCD")


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  yield from _train(rows) if split == "train" else _test(list(rows))


def _train(rows: Iterable[dict]) -> Iterator[Problem]:
  for number, row in enumerate(rows):
    prompt = reading.text(row, "question").partition("Question: ")
    prompt = (prompt[2] or prompt[0]).strip()
    response = reading.text(row, "response").strip()
    end = _END.search(response)
    if end is None:
      continue
    response = f"{response[:end.start()]}The answer is {end[1]}."
    if formats.short_enough(prompt, response):
      yield Problem(key=str(number), prompt=prompt, response=response, answer=end[1],
                    options=_OPTIONS, gold="ABCD".index(end[1]))


def _test(rows: list[dict]) -> Iterator[Problem]:
  # The original repository counts the right option from 1, Hugging Face from 0. Options may
  # be empty; answers are hidden in the published test split.
  given = [reading.column(row, "cop") for row in rows]
  numbers = [reading.whole(value) for value in given]
  first = formats.count_from(
      [(n, 4, row) for n, row in zip(numbers, rows, strict=True) if n is not None], None)
  for number, (row, value, n) in enumerate(zip(rows, given, numbers, strict=True)):
    options = [reading.optional_text(row, name).strip() for name in ("opa", "opb", "opc", "opd")]
    gold = -1 if n is None else n - first
    if not 0 <= gold < 4:
      raise UserError(f"row {reading.shown(row)} has the right option {value!r}, counted from "
                      f"{first}; use the validation split, the test split has no answers.")
    question = f"{reading.text(row, 'question').strip()}\nOptions:"
    yield Problem(key=formats.key(row, number), prompt=formats.lettered(question, options),
                  response=_OPTIONS[gold], answer="ABCD"[gold], options=_OPTIONS, gold=gold)


TASK = Task(
    name="medmcqa", title="MedMCQA",
    source="HPAI-BSC/medmcqa-cot-llama31; test openlifescienceai/medmcqa (validation)",
    splits={"train": 182555, "test": 4183}, problems=_problems,
    grading="letter", generated=True,
    notes="Options are scored without a chain of thought.",
)
