"""Any labelled text: a column `text` and a column `label`, in any file that can be read.

Columns of other names and the names of the classes are given at the end of the path
(see `reading`): `reviews.csv#text=review&label=stars&labels=bad|fair|good`. Without
names, labels are integers from 0.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_QUESTION = "Question: Which class is this?"


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # a path is a split
  rows = list(rows)
  if rows and "label_names" in rows[0]:
    yield from _named(rows, rows[0]["label_names"])
    return
  for number, row in enumerate(rows):
    text = reading.text(row, "text", "sentence") or " "
    value = reading.column(row, "label")
    label = reading.whole(value)
    if label is None or label < 0:
      raise UserError(f"row {reading.shown(row)} has the label {str(value).strip()!r}; labels are "
                      "whole numbers from 0 (test splits of some benchmarks hide them), and labels "
                      "in text need their names, in the order of the classes, at the end of the "
                      "path, like #labels=negative|positive.")
    yield Problem(key=str(number), prompt=f"{text}\n{_QUESTION}", response=str(label),
                  answer=str(label), gold=label, text=text)


def _named(rows: list[dict], names: tuple[str, ...]) -> Iterator[Problem]:
  # Where a label is a name, its row has the index of that.
  values = [names[row["label"]] if row.get("_count_from") == 0 and row["label"] < len(names)
            else row["label"] for row in rows]
  golds = formats.classes(values, names, rows)
  for number, (row, gold) in enumerate(zip(rows, golds, strict=True)):
    yield formats.labelled(str(number), reading.text(row, "text", "sentence"), gold, names,
                           _QUESTION)


TASK = Task(
    name="labelled", title="labelled text", source="any labelled file",
    splits={"train": 0, "validation": 0, "test": 0}, problems=_problems, grading="word",
)
