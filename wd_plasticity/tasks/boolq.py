"""BoolQ (google/boolq, TFDS bool_q; Clark et al. 2019): yes or no questions on a passage.

Passage and question as prompt and the word as response, as in lm-eval.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_WORDS = ("no", "yes")


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  rows = list(rows)
  if rows and reading.has(rows[0], "query"):
    prompts = [reading.text(row, "query").removesuffix("\nAnswer:") for row in rows]
    answers = [options[gold] for options, gold in formats.choices(rows)]
  else:
    prompts = [_prompt(row) for row in rows]
    answers = [reading.column(row, "answer", "label") for row in rows]
  golds = formats.classes(answers, _WORDS, rows, also={"false": 0, "true": 1})
  for number, (row, prompt, gold) in enumerate(zip(rows, prompts, golds, strict=True)):
    yield Problem(key=formats.key(row, number), prompt=prompt, response=_WORDS[gold],
                  answer=_WORDS[gold], options=_WORDS, gold=gold)


def _prompt(row: dict) -> str:
  question = reading.text(row, "question").strip().removesuffix("?")
  return f"{reading.text(row, 'passage').strip()}\nQuestion: {question}?"


TASK = Task(
    name="boolq", title="BoolQ", source="google/boolq",
    splits={"train": 9427, "validation": 3270}, problems=_problems, grading="word",
)
