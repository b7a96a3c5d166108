"""Which package a paragraph of documentation comes from; needs no files.

Four balanced classes; the names of packages are taken out of the text.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import embedded_text, formats
from wd_plasticity.tasks.task import Problem, Task

# What the packages of `embedded_text.PACKAGES` are about.
_TOPICS = ("plotting", "hosting", "checkpoints", "networks")
_QUESTION = "Question: Is this about plotting, hosting, checkpoints or networks?"


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del rows
  by_class = [[] for _ in _TOPICS]
  for paragraph in embedded_text.paragraphs(split):
    by_class[paragraph.package].append(paragraph)
  # As many of each class, by turns, so that every prefix is balanced too.
  for number, group in enumerate(zip(*by_class, strict=False)):
    for paragraph in group:
      yield formats.labelled(f"{number}-{paragraph.package}", paragraph.text, paragraph.package,
                             _TOPICS, _QUESTION)


TASK = Task(
    name="embedded_topic", title="topic (embedded)", source="embedded",
    splits=embedded_text.SPLITS, problems=_problems, grading="word", labels=_TOPICS,
)
