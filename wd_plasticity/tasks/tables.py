"""Rows of CSV and TSV files, as programs and spreadsheets write them.

The separator of a .csv file is a comma, a semicolon (Excel where the comma is decimal)
or a tab, whichever parts the file into rows of one length. A .tsv file keeps its
quotation marks, as GLUE and many collections have them bare, unless it was written with
quoting: then it says so by cells that cannot be read otherwise (see `_is_quoted`).

The first row is a header when it holds a name that was asked for or that tasks use, or
when it looks like one: short names, none twice, no number. Columns without a name, such
as the index that pandas writes, are left out.
"""

import csv
import io
import re
from collections.abc import Collection, Iterator

from wd_plasticity.errors import UserError

_LONGEST_CELL = 2**30
# What Excel may write before the header.
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n")
_USUAL_NAMES = frozenset((
    "text", "sentence", "label", "labels", "label_text", "title", "description", "question",
    "query", "problem", "answer", "answerkey", "solution", "response", "choices", "options",
    "endings", "gold", "passage", "context", "article", "goal", "cop"))

Line = tuple[int, list[str]]  # number of its first line in the file, and its cells


def rows(text: str, kind: str, path: str, by_number: bool,
         wanted: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
  """The rows of a table, each with the number of its line.

  Args:
    text: content of the file.
    kind: .csv or .tsv.
    path: what messages call the file.
    by_number: columns are called by number from 0; a header of usual names is passed over.
    wanted: names of columns that the user expects to find.

  Raises:
    UserError: quotes that do not close, rows of another length, two columns of one name.
  """
  names = None
  for line, cells in _lines(text, kind, path):
    if names is None:
      names, header = _names(cells, by_number, wanted, f"{path}, line {line}")
      if header:
        continue
    if len(cells) != len(names):
      raise UserError(f"{path}, line {line} has {len(cells)} cells and not {len(names)} like those "
                      "before; check the separator and the quotes.")
    yield line, {name: cell for name, cell in zip(names, cells, strict=True) if name}


def _lines(text: str, kind: str, path: str) -> Iterator[Line]:
  separator = _SEPARATOR_LINE.match(text)
  skipped = 0
  if separator:
    text, skipped = text[separator.end():], 1
  if kind == ".tsv":
    lines = _parse(text, "\t", _is_quoted(text))
  else:
    delimiter = separator[1] if separator else _delimiter(text)
    lines = _parse(text, delimiter, True)
  line = 0
  try:
    for line, cells in lines:
      yield line + skipped, cells
  except csv.Error as e:
    raise UserError(f"{path} is not {kind[1:].upper()} after line {line + skipped} ({e}); check "
                    "its quotes.") from e


def _parse(text: str, delimiter: str, quoted: bool) -> Iterator[Line]:
  """The lines that hold anything; csv.Error when quotes are wrong."""
  csv.field_size_limit(_LONGEST_CELL)
  first = text[:text.find("\n")].split(delimiter)
  spaced = quoted and len(first) > 1 and all(cell[:1] == " " for cell in first[1:])
  quoting = {"strict": True, "skipinitialspace": spaced} if quoted else {"quoting": csv.QUOTE_NONE}
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **quoting)
  line = 1
  for cells in reader:
    if any(cell.strip() for cell in cells):
      yield line, cells
    line = reader.line_num + 1


def _table(text: str, delimiter: str, quoted: bool) -> list[list[str]]:
  """All rows, empty unless they are of one length and more than one cell."""
  try:
    table = [cells for _, cells in _parse(text, delimiter, quoted)]
  except csv.Error:
    return []
  width = len(table[0]) if table else 0
  return table if width > 1 and all(len(cells) == width for cells in table) else []


def _delimiter(text: str) -> str:
  start = text[:text.find("\n")]
  others = [d for d in ";\t" if d in start]
  if "," in start and not others:
    return ","
  possible = ([","] if "," in start or not others else []) + others
  return next((d for d in possible if _table(text, d, True)), possible[0])


def _is_quoted(text: str) -> bool:
  """Whether a TSV file was written with quoting, rather than holding bare quotation marks.

  Read both ways, it was if only so its rows are of one length. Else it was not if a mark
  stands in a cell that is not quoted; and it was if a mark is doubled within a quoted
  cell, or if all cells of a column or all cells with a comma (Excel) are quoted.
  """
  if '"' not in text:
    return False
  quoted, bare = _table(text, "\t", True), _table(text, "\t", False)
  if not quoted or not bare:
    return bool(quoted)
  if len(quoted) != len(bare) or len(quoted[0]) != len(bare[0]):
    return False  # marks of two lines taken for one cell
  pairs = [list(zip(*cells, strict=True)) for cells in zip(quoted, bare, strict=True)]
  flat = [pair for line in pairs for pair in line]
  if any(q == b and '"' in q for q, b in flat):
    return False
  with_comma = [q != b for q, b in flat if "," in b]
  return (any('"' in q for q, _ in flat) or (bool(with_comma) and all(with_comma))
          or any(all(q != b for q, b in column) for column in zip(*pairs, strict=True)))


def _names(cells: list[str], by_number: bool, wanted: Collection[str],
           shown: str) -> tuple[list[str], bool]:
  """The names of the columns, and whether `cells` are a header with them."""
  names = [cell.strip("\ufeff \t\r\n\xa0").strip('"') for cell in cells]
  numbers = [str(i) for i in range(len(cells))]
  distinct = len(set(filter(None, names))) == sum(map(bool, names))
  usual = sum(name.lower() in _USUAL_NAMES for name in names)
  if by_number and usual > 1:
    return numbers, True
  if by_number:
    header = names in (numbers, ["", *numbers[:-1]])  # as pandas calls columns without names
  elif any(name in wanted for name in names):
    header = True
  elif any(_is_number(name) for name in names):
    header = False
  else:
    header = usual > 0 or (
        distinct and all(len(name) <= 40 and len(name.split()) <= 3 for name in names))
  if header and not distinct:
    twice = next(name for name in names if name and names.count(name) > 1)
    raise UserError(f"{shown}: two columns are called {twice!r}; rename one.")
  return (names, True) if header else (numbers, False)


def _is_number(cell: str) -> bool:
  return cell.lstrip("+-.")[:1].isdigit()
