"""AG News (fancyzhx/ag_news, TFDS ag_news_subset; Zhang et al. 2015): topic of news.

The text is the title and the description, where a layout has both. Layouts: text and
label; title, description and label; the original CSV without header (class from 1,
title, description); and text and class name without header.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_TOPICS = ("World", "Sports", "Business", "Sci/Tech")
_QUESTION = "Question: Is this article about World, Sports, Business or Sci/Tech?"


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  for number, row in enumerate(rows):
    if "2" in row and "text" not in row:
      label, text = int(row["0"]) - 1, f"{row['1']} {row['2']}"
    elif "1" in row and "text" not in row:
      text, label = row["0"], row["1"]
    else:
      label = reading.column(row, "label")
      text = " ".join(str(row[name]) for name in ("title", "description", "text") if row.get(name))
    yield formats.labelled(str(number), text.strip(), formats.class_index(label, _TOPICS, row),
                           _TOPICS, _QUESTION)


TASK = Task(
    name="ag_news", title="AG News", source="fancyzhx/ag_news",
    splits={"train": 120000, "test": 7600}, problems=_problems, grading="word", labels=_TOPICS,
)
