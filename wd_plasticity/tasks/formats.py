"""What the data sets of several tasks have in common: options, classes, length rules."""

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import printed, reading
from wd_plasticity.tasks.task import Problem

LETTERS = string.ascii_uppercase

# The study drops training rows whose prompt and response are not shorter than this, so
# that few are cut off at 2048 tokens.
MAX_CHARACTERS = 2048 * 3

Options = tuple[list[str], int]  # the options of a row, and the index of the right one
# Columns of an index: from 0 in every published layout. That of an answer key may be either.
_INDEX_COLUMNS = ("gold", "label", "answer_index")
_ANSWER_COLUMNS = ("answerKey", "gold", "answer", "label", "answer_index", "answer_idx")
_HIDDEN = "test splits of some benchmarks come without labels"


def short_enough(prompt: str, response: str) -> bool:
  """Whether a training row passes the study's length filter."""
  return len(prompt) + len(response) < MAX_CHARACTERS


def key(row: dict, number: int, *names: str) -> str:
  """The identifier that a data set gives a row, else its position."""
  for name in names or ("id",):
    value = row.get(name)
    if value is not None and value == value and str(value).strip():
      count = reading.whole(value) if "." in str(value) else None
      return str(value if count is None else count)  # 3.0 where a column has gaps
  return str(number)


def lettered(question: str, options: Sequence[str]) -> str:
  """A question with its options below it, as `A. first`, `B. second`."""
  return "\n".join([question, *(f"{a}. {o}" for a, o in zip(LETTERS, options, strict=False))])


def choices(rows: Sequence[dict], *names: str) -> list[Options]:
  """The options of each row of a split and the index of the right one, in any usual layout.

  Options are a list of texts, of {text, label}, {text: [...], label: [...]}, or
  {letter: text}, or such as text (see `printed`), in the first of the columns `names` or
  in `choices`, `options` or `endings`; or they have a column each, `A`, `choice_A` or
  `option_A`. The right one is a label, a letter, a number or the text of an option, in the
  column `answerKey`, `gold`, `answer`, `label`, `answer_index` or `answer_idx`. Whether
  numbers count from 0 or from 1 follows from all rows (see `count_from`).

  Raises:
    UserError: options or answers that cannot be read, or an origin that cannot be told.
  """
  found = [_Choice(row, names) for row in rows]
  _resolve_texts([c for c in found if c.number is not None and not c.indexed])
  numbered = [c for c in found if c.number is not None]
  default = 0 if all(choice.indexed for choice in numbered) else None
  first = count_from([(c.number, len(c.options), c.row) for c in numbered], default)
  return [choice.resolved(first) for choice in found]


class _Choice:
  """The options of one row and what it says of the right one.

  Attributes:
    options: their texts.
    gold: what the row has as the right one.
    index: of the right one, where a label, a letter or a text says it; else -1.
    number: of the right one from an origin that is not known yet; None when `index` says it.
    indexed: whether that number stands in a column that counts from 0 by convention.
  """

  def __init__(self, row: dict, names: Sequence[str]):
    self.row, self.number, self.index = row, None, -1
    labels, by_letter = None, _letter_columns(row)
    if by_letter and not reading.has(row, *names, "choices", "options", "endings"):
      value = by_letter
    else:
      value = printed.structure(reading.column(row, *names, "choices", "options", "endings"))
    if isinstance(value, Mapping):
      value, labels = _of_mapping(value, row)
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
      value, labels = ([v.get(name) for v in value] for name in ("text", "label"))
    if not isinstance(value, list) or not all(isinstance(v, (str, int, float)) for v in value):
      raise UserError(f"row {reading.shown(row)} has the options {_short(value)}, which are not a "
                      "list of texts; give a list, or {letter: text}, as JSON.")
    self.options = [str(v).strip() for v in value]
    if labels is not None:
      if not isinstance(labels, list) or len(labels) != len(self.options):
        raise UserError(f"row {reading.shown(row)} has {len(self.options)} options and the labels "
                        f"{_short(labels)}; give a list with one for each.")
      labels = [_label(v) for v in labels]
    name, gold = reading.named_column(row, *_ANSWER_COLUMNS)
    self.gold = str(gold).strip()
    self.indexed = name in _INDEX_COLUMNS or row.get("_count_from") is not None
    letter = self.gold.strip("()[].: ").upper()
    label = next((v for v in (_label(gold), letter) if v in (labels or ())), None)
    if label is not None:
      self.index = labels.index(label)
    elif reading.whole(gold) is not None:
      self.number = reading.whole(gold)
    elif len(letter) == 1 and letter in LETTERS[:len(self.options)]:
      self.index = LETTERS.index(letter)
    elif self.gold and self.gold in self.options:
      self.index = self.options.index(self.gold)

  def resolved(self, first: int) -> Options:
    index = self.index if self.number is None else self.number - first
    if not 0 <= index < len(self.options):
      raise UserError(f"row {reading.shown(self.row)} has {len(self.options)} options and the "
                      f"right one is given as {_short(self.gold)}; check that this split has "
                      "answers.")
    return self.options, index


def _resolve_texts(choices: Sequence[_Choice]) -> None:
  """Takes numbers for the texts of options where they cannot be indices, or mean the same."""
  if not choices or not all(c.gold in c.options for c in choices):
    return
  texts = [c.options.index(c.gold) for c in choices]
  same = any(all(c.number - first == text for c, text in zip(choices, texts, strict=True))
             for first in (0, 1))
  if not same and all(0 <= c.number <= len(c.options) for c in choices):
    raise UserError(f"row {reading.shown(choices[0].row)} gives the right one as "
                    f"{choices[0].gold}, which may be the text of an option or its number; give a "
                    "letter.")
  for choice, text in zip(choices, texts, strict=True):
    choice.number, choice.index = None, text


def _letter_columns(row: dict) -> dict[str, str]:
  for prefix in ("", "choice_", "option_", "opt_"):
    if f"{prefix}A" in row and f"{prefix}B" in row:
      return {a: row[f"{prefix}{a}"] for a in LETTERS if row.get(f"{prefix}{a}") not in (None, "")}
  return {}


def _of_mapping(value: Mapping, row: dict) -> tuple[Any, Any]:
  """The texts and labels of options that are a dict."""
  if "text" in value:
    return (printed.structure(value["text"]), printed.structure(value.get("label")))
  letters = {str(k).strip().upper(): v for k, v in value.items() if v is not None}
  if not letters or not all(len(k) == 1 and (k in LETTERS or k.isdecimal()) for k in letters):
    raise UserError(f"row {reading.shown(row)} has the options {_short(dict(value))}, which are "
                    "not {letter: text}; give a list, or {letter: text}.")
  ordered = sorted(letters)
  return [letters[k] for k in ordered], ordered


def _label(value: Any) -> str:
  number = reading.whole(value)
  return str(value).strip() if number is None else str(number)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."


def count_from(numbers: Iterable[tuple[int, int, dict]], default: int | None) -> int:
  """Whether numbers that name one of several things count from 0 or from 1.

  What the path says (`#count_from=1`) comes first. Else a 0 among them decides, and else
  one that is the number of things. Where neither is there, the origin of the published
  layout is taken, which a note says.

  Args:
    numbers: of each row its number, how many things it may name, and the row.
    default: that origin; None where both are published, to refuse.

  Raises:
    UserError: nothing decides.
  """
  numbers = list(numbers)
  given = next((row["_count_from"] for _, _, row in numbers if "_count_from" in row), None)
  # Others, such as the -1 of a hidden label, are for the caller to refuse.
  numbers = [(number, size, row) for number, size, row in numbers if 0 <= number <= size]
  if given is not None:
    return given
  if any(number == 0 for number, _, _ in numbers):
    return 0
  if any(number == size for number, size, _ in numbers):
    return 1
  if not numbers:
    return default or 0
  number, size, row = numbers[0]
  if default is None:
    raise UserError(
        f"row {reading.shown(row)} gives the right one of {size} options as {number}, and no row "
        "has a 0 or the number of its options, so these may count from 0 or from 1; say which, "
        "with #count_from=0 or #count_from=1 at the end of the path.")
  reading.note(row, f"no label is 0 or {size}, so they may count from 0 or from 1; {default} is "
                    f"assumed, add #count_from={1 - default} to the path if that is wrong")
  return default


def cloze(name: str, question: str, options: Sequence[str], gold: int) -> Problem:
  """A question whose response is the text of an option that the prompt does not show."""
  return Problem(key=name, prompt=question, response=options[gold], options=tuple(options),
                 gold=gold)


def label(row: dict, *names: str) -> Any:
  """The label of a row; of a text file, which has no columns, the name of its folder."""
  is_file = not reading.has(row, *names) and all(k == "text" or k[:1] == "_" for k in row)
  return reading.column(row, *names, *(("_folder",) if is_file else ()))


def classes(values: Sequence[Any], names: Sequence[str], rows: Sequence[dict],
            default: int = 0, also: Mapping[str, int] | None = None) -> list[int]:
  """The class that the label of each row names, by name in any case or by number.

  Args:
    values: the label of each row.
    names: of the classes.
    rows: of a split, of which all decide where numbers begin (see `count_from`).
    default: where they begin when no label decides it.
    also: other names of classes, in lower case.

  Raises:
    UserError: a label that names no class, as in test splits that hide them.
  """
  known = {name.lower(): i for i, name in enumerate(names)} | dict(also or {})
  numbers = [reading.whole(v) for v in values]
  named = [known.get(str(v).strip().lower()) for v in values]
  first = count_from([(number, len(names), row) for number, name, row
                      in zip(numbers, named, rows, strict=True)
                      if name is None and number is not None], default)
  found = []
  for value, number, name, row in zip(values, numbers, named, rows, strict=True):
    index = name if name is not None else -1 if number is None else number - first
    if not 0 <= index < len(names):
      raise UserError(
          f"row {reading.shown(row)} has the label {str(value).strip()!r}; expected a number from "
          f"{first} to {first + len(names) - 1} or one of {', '.join(names)} ({_HIDDEN}).")
    found.append(index)
  return found


def labelled(name: str, text: str, gold: int, labels: Sequence[str], question: str) -> Problem:
  """A labelled text, with a question whose response is the name of its class."""
  text = text or " "  # some collections hold empty texts; '' would say that there is none
  return Problem(key=name, prompt=f"{text}\n{question}", response=labels[gold],
                 answer=labels[gold], options=tuple(labels), gold=gold, text=text)
