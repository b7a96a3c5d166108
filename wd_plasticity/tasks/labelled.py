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
  for number, row in enumerate(rows):
    text = str(reading.column(row, "text", "sentence")) or " "
    label = str(reading.column(row, "label")).strip()
    if not label.isdigit():
      raise UserError(f"row {row.get('_name', '?')} has the label {label!r}; labels in text need "
                      "their names, in the order of the classes, at the end of the path, like "
                      "#labels=negative|positive.")
    names = row.get("label_names")
    if names:
      yield formats.labelled(str(number), text, int(label), names, _QUESTION)
    else:
      yield Problem(key=str(number), prompt=f"{text}\n{_QUESTION}", response=label, answer=label,
                    gold=int(label), text=text)


TASK = Task(
    name="labelled", title="labelled text", source="any labelled file",
    splits={"train": 0, "validation": 0, "test": 0}, problems=_problems, grading="word",
)
