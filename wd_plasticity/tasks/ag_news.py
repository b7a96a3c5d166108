"""AG News (fancyzhx/ag_news, TFDS ag_news_subset; Zhang et al. 2015): topic of news.

The text is the title and the description, where a layout has both. Layouts: text and
label; title, description and label; the original CSV without header (class from 1,
title, description); and text and class name without header.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_TOPICS = ("World", "Sports", "Business", "Sci/Tech")
_QUESTION = "Question: Is this article about World, Sports, Business or Sci/Tech?"


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  rows = list(rows)
  original = bool(rows) and "2" in rows[0] and "text" not in rows[0]  # counts from 1
  found = [_text_and_label(row) for row in rows]
  classes = formats.classes([label for _, label in found], _TOPICS, rows, default=int(original))
  for number, ((text, _), gold) in enumerate(zip(found, classes, strict=True)):
    yield formats.labelled(str(number), text.strip(), gold, _TOPICS, _QUESTION)


def _text_and_label(row: dict) -> tuple[str, Any]:
  if "2" in row and "text" not in row:
    return f"{row['1']} {row['2']}", row["0"]
  if "1" in row and "text" not in row:
    return row["0"], row["1"]
  names = [name for name in ("title", "description", "text") if reading.has(row, name)]
  names = [name for name in names if name in row.get("_renamed", ())] or names
  texts = [reading.optional_text(row, name) for name in names or ("text",)]
  return " ".join(filter(None, texts)), reading.column(row, "label")


TASK = Task(
    name="ag_news", title="AG News", source="fancyzhx/ag_news",
    splits={"train": 120000, "test": 7600}, problems=_problems, grading="word", labels=_TOPICS,
)
