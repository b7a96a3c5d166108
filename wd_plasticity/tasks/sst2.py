"""SST-2 (stanfordnlp/sst2, GLUE sst2, TFDS glue/sst2; Socher et al. 2013): sentiment.

As in lm-eval, the sentence and a question as prompt and the word as response. The test
split of GLUE has no labels; its validation split is the usual test.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

SENTIMENTS = ("negative", "positive")
QUESTION = "Question: Is this negative or positive?"


def reviews(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  """Problems of rows with a `sentence` or `text`, and a `label` of 0 or 1, neg or pos."""
  del split  # rows of all splits are alike
  rows = list(rows)
  golds = formats.classes([formats.label(row, "label") for row in rows], SENTIMENTS, rows,
                          also={"neg": 0, "pos": 1})
  for number, (row, gold) in enumerate(zip(rows, golds, strict=True)):
    yield formats.labelled(str(number), reading.text(row, "sentence", "text").strip(), gold,
                           SENTIMENTS, QUESTION)


TASK = Task(
    name="sst2", title="SST-2", source="stanfordnlp/sst2",
    splits={"train": 67349, "validation": 872}, problems=reviews, grading="word",
    labels=SENTIMENTS,
)
