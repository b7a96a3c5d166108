"""MedMCQA with chain of thought: entrance exams of medical schools.

Training rows are HPAI-BSC/medmcqa-cot-llama31 (182,736), whose question follows an
instruction that ends in `Question: ` and whose response ends in `Answer: X.`; that is
rewritten to `The answer is X.`, and rows that are too long or have no such end are left
out (182,555 in the study). The test set is the validation split of
openlifescienceai/medmcqa.
"""

import re
from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_END = re.compile(r"Answer:\s*\(?([A-D])\)?\.?\s*$")
_OPTIONS = tuple(f"The answer is {letter}." for letter in "ABCD")


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  yield from _train(rows) if split == "train" else _test(list(rows))


def _train(rows: Iterable[dict]) -> Iterator[Problem]:
  for number, row in enumerate(rows):
    prompt = str(reading.column(row, "question")).partition("Question: ")
    prompt = (prompt[2] or prompt[0]).strip()
    response = str(reading.column(row, "response")).strip()
    end = _END.search(response)
    if end is None:
      continue
    response = f"{response[:end.start()]}The answer is {end[1]}."
    if formats.short_enough(prompt, response):
      yield Problem(key=str(number), prompt=prompt, response=response, answer=end[1],
                    options=_OPTIONS, gold="ABCD".index(end[1]))


def _test(rows: list[dict]) -> Iterator[Problem]:
  # The original repository counts the right option from 1, Hugging Face from 0.
  first = 1 if any(reading.column(row, "cop") == 4 for row in rows) else 0
  for number, row in enumerate(rows):
    options = [str(row.get(name)) for name in ("opa", "opb", "opc", "opd")]
    gold = int(reading.column(row, "cop")) - first
    if not 0 <= gold < 4:
      continue  # the published test split has no answers
    question = f"{str(reading.column(row, 'question')).strip()}\nOptions:"
    yield Problem(key=formats.key(row, number), prompt=formats.lettered(question, options),
                  response=_OPTIONS[gold], answer="ABCD"[gold], options=_OPTIONS, gold=gold)


TASK = Task(
    name="medmcqa", title="MedMCQA",
    source="HPAI-BSC/medmcqa-cot-llama31; test openlifescienceai/medmcqa (validation)",
    splits={"train": 182555, "test": 4183}, problems=_problems,
    grading="letter", generated=True,
    notes="Options are scored without a chain of thought.",
)
