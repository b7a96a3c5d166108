"""What the data sets of several tasks have in common: options, classes, length rules."""

from collections.abc import Sequence
from typing import Any

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import reading
from wd_plasticity.tasks.task import Problem

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# The study drops training rows whose prompt and response are not shorter than this, so
# that few are cut off at 2048 tokens.
MAX_CHARACTERS = 2048 * 3


def short_enough(prompt: str, response: str) -> bool:
  """Whether a training row passes the study's length filter."""
  return len(prompt) + len(response) < MAX_CHARACTERS


def key(row: dict, number: int) -> str:
  """The identifier that a data set gives a row, else its position."""
  return str(row["id"] if row.get("id") is not None else number)


def lettered(question: str, options: Sequence[str]) -> str:
  """A question with its options below it, as `A. first`, `B. second`."""
  return "\n".join([question, *(f"{a}. {o}" for a, o in zip(LETTERS, options, strict=False))])


def choices(row: dict, *names: str) -> tuple[list[str], int]:
  """The options of a row and the index of the right one, in any of the usual layouts.

  Options are a list of texts, of {text, label}, or {text: [...], label: [...]}, in the
  first of the columns `names` or in `choices`, `options` or `endings`. The right one is
  a label, a letter, or an index from 0, in the column `answerKey`, `gold`, `answer` or
  `label`.
  """
  value = reading.column(row, *names, "choices", "options", "endings")
  labels = None
  if isinstance(value, dict):
    value, labels = value["text"], value["label"]
  elif value and isinstance(value[0], dict):
    value, labels = [v["text"] for v in value], [v["label"] for v in value]
  options = [str(v).strip() for v in value]
  gold = reading.column(row, "answerKey", "gold", "answer", "label")
  return options, _index(gold, labels, len(options), row)


def _index(gold: Any, labels: Sequence | None, num: int, row: dict) -> int:
  text = str(gold).strip()
  index = -1
  if labels is not None and text in map(str, labels):
    index = list(map(str, labels)).index(text)
  elif text.isdigit():
    index = int(text)
  elif len(text) == 1 and text in LETTERS:
    index = LETTERS.index(text)
  if not 0 <= index < num:
    raise UserError(f"row {row.get('_name', '?')} has {num} options and the right one is given as "
                    f"{text!r}; check that this split has answers.")
  return index


def cloze(name: str, question: str, options: Sequence[str], gold: int) -> Problem:
  """A question whose response is the text of an option that the prompt does not show."""
  return Problem(key=name, prompt=question, response=options[gold], options=tuple(options),
                 gold=gold)


def class_index(value: Any, labels: Sequence[str], row: dict) -> int:
  """The class that a label names, by index from 0 or by name in any case."""
  text = str(value).strip()
  index = int(text) if text.isdigit() else -1
  lowered = [label.lower() for label in labels]
  if text.lower() in lowered:
    index = lowered.index(text.lower())
  if not 0 <= index < len(labels):
    raise UserError(f"row {row.get('_name', '?')} has the label {text!r}; expected an index below "
                    f"{len(labels)} or one of {', '.join(labels)} (test splits of some "
                    "benchmarks come without labels).")
  return index


def labelled(name: str, text: str, gold: int, labels: Sequence[str], question: str) -> Problem:
  """A labelled text, with a question whose response is the name of its class."""
  text = text or " "  # some collections hold empty texts; '' would say that there is none
  return Problem(key=name, prompt=f"{text}\n{question}", response=labels[gold],
                 answer=labels[gold], options=tuple(labels), gold=gold, text=text)
