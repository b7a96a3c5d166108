"""BoolQ (google/boolq, TFDS bool_q; Clark et al. 2019): yes or no questions on a passage.

Passage and question as prompt and the word as response, as in lm-eval.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_WORDS = ("no", "yes")


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  for number, row in enumerate(rows):
    if "query" in row:
      prompt = str(row["query"]).removesuffix("\nAnswer:")
      options, gold = formats.choices(row)
      gold = _WORDS.index(options[gold])
    else:
      question = str(reading.column(row, "question")).strip().removesuffix("?")
      prompt = f"{str(reading.column(row, 'passage')).strip()}\nQuestion: {question}?"
      gold = int(str(reading.column(row, "answer", "label")).lower() in ("true", "1", "yes"))
    yield Problem(key=formats.key(row, number), prompt=prompt, response=_WORDS[gold],
                  answer=_WORDS[gold], options=_WORDS, gold=gold)


TASK = Task(
    name="boolq", title="BoolQ", source="google/boolq",
    splits={"train": 9427, "validation": 3270}, problems=_problems, grading="word",
)
