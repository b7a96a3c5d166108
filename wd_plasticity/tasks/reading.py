"""Rows of a task's data: files of any usual format, or a TFDS data set.

A specification names files by globs, comma separated (`train-*.parquet`), or a TFDS
data set as `tfds:NAME_OR_FOLDER:SPLIT`. It may end in column names of the data's own:

    reviews.csv#text=review&label=stars      column `review` is read as `text`
    reviews.tsv#text=0&label=1               columns by number: the file has no header
    reviews.jsonl#labels=negative|positive   labels in text are read as 0 and 1

Read by their extension, plain or compressed (.gz, .xz, .zst): .jsonl and .json (one
object per line, one array, one object, or objects by name), .csv and .tsv (with a
header or without), .parquet, .txt or no extension (JSON, or a text each), and .neg and
.pos (a text per line, labelled by the extension).
Rows tell where they come from: `_name` is the name of the row, the file, or the TFDS
split and position; `_folder` the name of the file's folder.
"""

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow.parquet

from wd_plasticity.data import sources
from wd_plasticity.errors import UserError

_POLARITY = (".neg", ".pos")  # of label 0 and 1
_EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", "", *_POLARITY)
# What a cell of a header looks like: a short name, not a sentence and not a number.
_HEADER_CELL = re.compile(r"[A-Za-z_#][\w#/.()-]{0,31}( [\w#/.()-]{1,15}){0,2}")
_LONGEST_CELL = 2**30


@dataclasses.dataclass(frozen=True)
class _Columns:
  """How columns are called in the data, and the names of classes."""

  renamed: dict[str, str]  # name here: name in the data
  labels: tuple[str, ...]

  @property
  def by_number(self) -> bool:
    return any(column.isdigit() for column in self.renamed.values())

  def apply(self, row: dict, shown: str) -> dict:
    for new, old in self.renamed.items():
      if old not in row:
        raise UserError(f"{shown} has no column {old!r}; it has {_named(row)}.")
      row[new] = row[old]
    if self.labels:
      row["label"] = self._label(column(row, "label"), shown)
      row["label_names"] = self.labels
    return row

  def _label(self, value: Any, shown: str) -> int:
    text = str(value).strip()
    if text in self.labels:
      return self.labels.index(text)
    if text.isdigit() and int(text) < len(self.labels):
      return int(text)
    raise UserError(f"{shown} has the label {text!r}, which is not one of "
                    f"{'|'.join(self.labels)}; name all of them after labels=.")


def rows(spec: str, field: str) -> Iterator[dict]:
  """The rows that `spec` describes (see the module), in the order of the data.

  Args:
    spec: files or a TFDS data set.
    field: what messages call the specification.
  """
  if not spec.strip(" ,"):
    raise UserError(f"{field} are not given; set their path (or tfds:NAME:SPLIT).")
  path, columns = _parse(spec, field)
  if path.startswith("tfds:"):
    yield from _tfds_rows(path.removeprefix("tfds:"), columns, field)
    return
  for file in sources.find_files(path, field, _EXTENSIONS):
    folder = os.path.basename(os.path.dirname(os.path.abspath(file)))
    with open(file, "rb") as f, sources.reading(file):
      for number, row in enumerate(_read(f, file, columns.by_number)):
        row = columns.apply(row, file)
        row.setdefault("_name", f"{os.path.basename(file)}:{number}")
        row["_folder"] = folder
        yield row


def column(row: dict, *names: str) -> Any:
  """The value of the first of `names` that a row has; a UserError when it has none."""
  for name in names:
    if row.get(name) is not None:
      return row[name]
  wanted = " or ".join(map(repr, names))
  raise UserError(f"row {row.get('_name', '?')} has no {wanted}; it has {_named(row)}. "
                  "Name a column of another name at the end of the path, like "
                  f"#{names[0]}=COLUMN.")


def _named(row: dict) -> str:
  return ", ".join(repr(name) for name in row if not str(name).startswith("_")) or "no column"


def _parse(spec: str, field: str) -> tuple[str, _Columns]:
  path, _, fragment = spec.partition("#")
  renamed, labels = {}, ()
  for part in filter(None, fragment.split("&")):
    name, equals, value = part.partition("=")
    if not equals or not name or not value:
      raise UserError(f"{field}: {part!r} in {spec!r} is not of the form name=column.")
    if name == "labels":
      labels = tuple(value.split("|"))
    else:
      renamed[name] = value
  return path, _Columns(renamed, labels)


def _read(f: IO[bytes], path: str, by_number: bool) -> Iterator[dict]:
  kind, compression = sources.file_format(path)
  f = sources.decompressed(f, compression)
  if kind == ".parquet":
    file = pyarrow.parquet.ParquetFile(io.BytesIO(f.read()) if compression else f)
    for batch in file.iter_batches(batch_size=1024):
      yield from batch.to_pylist()
  elif kind in (".csv", ".tsv"):
    yield from _table_rows(f, path, kind, by_number)
  elif kind == ".jsonl":
    yield from _json_lines(io.BufferedReader(f), path, 1)
  elif kind == ".json":
    yield from _json_rows(io.BufferedReader(f), path)
  elif kind in _POLARITY:
    for line in _decode(f.read()).splitlines():
      yield {"text": line, "label": _POLARITY.index(kind)}
  else:
    yield from _text_rows(f.read(), path)


def _json_lines(f: IO[bytes], path: str, first: int) -> Iterator[dict]:
  for number, line in enumerate(f, first):
    if not line.strip():
      continue
    row = _parse_json(line, f"{path}, line {number}")
    if not isinstance(row, dict):
      raise UserError(f"{path}, line {number} is not a JSON object; write one object per line.")
    yield row


def _json_rows(f: IO[bytes], path: str) -> Iterator[dict]:
  # A file whose first line is an object of its own has one per line.
  line = f.readline()
  try:
    row = json.loads(line.decode("utf-8-sig"))
  except json.JSONDecodeError:
    row = _parse_json(line + f.read(), path)
  else:
    if isinstance(row, dict) and f.peek(1):
      yield row
      yield from _json_lines(f, path, 2)
      return
  if isinstance(row, list):
    yield from row
  elif isinstance(row, dict) and row and all(isinstance(v, dict) for v in row.values()):
    for name, value in row.items():
      yield {**value, "_name": name}
  else:
    yield row


def _parse_json(text: bytes, shown: str) -> Any:
  try:
    return json.loads(text.decode("utf-8-sig"))
  except json.JSONDecodeError as e:
    raise UserError(f"{shown} is not JSON ({e.msg}); check that the file is whole.") from e


def _table_rows(f: IO[bytes], path: str, kind: str, by_number: bool) -> Iterator[dict]:
  csv.field_size_limit(_LONGEST_CELL)
  lines = io.TextIOWrapper(io.BufferedReader(f), encoding="utf-8-sig", newline="")
  # Tab-separated data sets, those of GLUE among them, hold bare quotation marks.
  quoting = {"quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
  table = csv.reader(lines, delimiter="\t" if kind == ".tsv" else ",", **quoting)
  names = None
  try:
    for cells in table:
      if not cells:
        continue
      if names is None:
        header = not by_number and _is_header(cells)
        names = cells if header else [str(i) for i in range(len(cells))]
        if header:
          continue
      if len(cells) != len(names):
        raise UserError(f"{path}, line {table.line_num} has {len(cells)} cells and not "
                        f"{len(names)} like those before; check the separator and the quotes.")
      yield dict(zip(names, cells, strict=True))
  except csv.Error as e:
    raise UserError(f"{path}, line {table.line_num} is not {kind[1:].upper()} ({e}); check its "
                    "quotes.") from e


def _is_header(cells: list[str]) -> bool:
  return len(set(cells)) == len(cells) and all(_HEADER_CELL.fullmatch(c) for c in cells)


def _decode(content: bytes) -> str:
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError:
    return content.decode("latin-1")  # older collections, such as 20 Newsgroups


def _text_rows(content: bytes, path: str) -> Iterator[dict]:
  text = _decode(content)
  if text.lstrip()[:1] == "{":
    yield _parse_json(content, path)  # such as passages of RACE
  else:
    yield {"text": text, "_name": f"{os.path.basename(os.path.dirname(path))}/"
                                  f"{os.path.basename(path)}"}


def _tfds_rows(spec: str, columns: _Columns, field: str) -> Iterator[dict]:
  from wd_plasticity.data import tfds_source  # pylint: disable=g-import-not-at-top

  source = tfds_source.TfdsSource(spec, "", field)
  for builder, split in source.splits:
    shown = f"{builder.info.full_name}:{split}"
    for number, record in enumerate(source.records(builder, split, shown)):
      row = columns.apply(_plain(record), shown)
      row.setdefault("_name", f"{split}:{number}")
      row["_folder"] = split
      yield row


def _plain(value: Any) -> Any:
  """TFDS's NumPy values and bytes as Python values and text."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, (np.ndarray, list, tuple)):
    return [_plain(v) for v in value]
  return value
