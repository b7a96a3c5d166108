"""HellaSwag (Rowan/hellaswag, TFDS hellaswag; Zellers et al. 2019): how a passage goes on.

Activity and passage as prompt and the text of an ending as response, with the marks of
WikiHow removed, as in lm-eval.
"""

import re
from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  for number, row in enumerate(rows):
    if "query" in row:
      prompt = str(row["query"])
    else:
      passage = " ".join(filter(None, (str(reading.column(row, "ctx_a")).strip(),
                                       _capitalised(str(row.get("ctx_b") or "").strip()))))
      prompt = _clean(f"{reading.column(row, 'activity_label')}: {passage}")
    options, gold = formats.choices(row)
    name = row.get("ind", number)
    yield formats.cloze(str(name), prompt, [_clean(option) for option in options], gold)


def _capitalised(text: str) -> str:
  return text[:1].upper() + text[1:].lower()


def _clean(text: str) -> str:
  text = re.sub(r"\[[^\]]*\]", "", text.replace(" [title]", ". "))
  return re.sub(r" +", " ", text).strip()


TASK = Task(
    name="hellaswag", title="HellaSwag", source="Rowan/hellaswag",
    splits={"train": 39905, "validation": 10042}, problems=_problems, grading="none",
)
