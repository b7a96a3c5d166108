"""Rows of a task's data: files of any usual format, or a TFDS data set.

A specification names files by globs, comma separated (`train-*.parquet`), or a TFDS
data set as `tfds:NAME_OR_FOLDER:SPLIT`. It may end in column names of the data's own:

    reviews.csv#text=review&label=stars      column `review` is read as `text`
    reviews.tsv#text=0&label=1               columns by number: the file has no header
    reviews.jsonl#labels=negative|positive   labels in text are read as 0 and 1
    reviews.jsonl#count_from=1               labels and answers that are numbers begin at 1

(`%26` is a `&` within a name.) Read by their extension, plain or compressed (.gz, .xz,
.zst): .jsonl and .json (one object per line, one array, one object, or objects by name),
.csv and .tsv (see `tables`), .parquet, .txt or no extension (JSON objects, or a text
each), and .neg and .pos (a text per line, labelled by the extension).
Rows tell where they come from: `_name` is the name of the row, or of the file and the
line or row, counted from 1, or the TFDS split and position; `_folder` the name of the
file's folder.
"""

import dataclasses
import io
import os
import urllib.parse
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow.parquet

from wd_plasticity import files
from wd_plasticity.data import archives, sources
from wd_plasticity.errors import UserError
from wd_plasticity.tasks import tables

_POLARITY = (".neg", ".pos")  # of label 0 and 1
_EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", "", *_POLARITY)

Positioned = tuple[int, dict]  # line or row in the file, counted from 1, and what it holds


@dataclasses.dataclass(frozen=True)
class _Columns:
  """How columns are called in the data, and what its labels are."""

  renamed: dict[str, str]  # name here: name in the data
  labels: tuple[str, ...]
  count_from: int | None

  @property
  def by_number(self) -> bool:
    return bool(self.renamed) and all(map(str.isdecimal, self.renamed.values()))

  def apply(self, row: dict, shown: str) -> dict:
    for old in self.renamed.values():
      if old not in row:
        raise UserError(f"{shown} has no column {old!r}; it has {_named(row)}.")
    if self.renamed:
      row.update({new: row[old] for new, old in self.renamed.items()})
      row["_renamed"] = frozenset(self.renamed)
    if self.count_from is not None:
      row["_count_from"] = self.count_from
    if self.labels:
      value = column(row, "label")
      number, text = whole(value), str(value).strip()
      name = next((n for n in (text, str(number)) if n in self.labels), None)
      numerals = any(whole(label) is not None for label in self.labels)
      if name is None and (number is None or number < 0 or numerals):
        raise UserError(f"{shown} has the label {text!r}, which is not one of "
                        f"{'|'.join(self.labels)}; name all of them after labels=.")
      if name is not None:
        number, row["_count_from"] = self.labels.index(name), 0
      row.update(label=number, label_names=self.labels)
    return row


def rows(spec: str, field: str, notes: list[str] | None = None) -> Iterator[dict]:
  """The rows that `spec` describes (see the module), in the order of the data.

  Args:
    spec: files or a TFDS data set.
    field: what messages call the specification.
    notes: takes what `note` says of the rows.
  """
  said = [] if notes is None else notes
  if not spec.strip(" ,"):
    raise UserError(f"{field} are not given; set their path (or tfds:NAME:SPLIT).")
  path, columns = _parse(spec, field)
  if path.startswith("tfds:"):
    for row in _tfds_rows(path.removeprefix("tfds:"), columns, field):
      yield {**row, "_notes": said}
    return
  for file in sources.find_files(path, field, _EXTENSIONS):
    folder = os.path.basename(os.path.dirname(os.path.abspath(file)))
    with sources.reading(file), open(file, "rb") as f:
      for position, row in _read(f, file, columns):
        if not isinstance(row, dict):
          raise UserError(f"{file}, entry {position} is not a JSON object but "
                          f"{type(row).__name__}; write an object with named fields for each.")
        row.setdefault("_name", f"{os.path.basename(file)}:{position}")
        row = columns.apply(row, f"{file}, {'line' if _has_lines(file) else 'row'} {position}")
        yield {**row, "_folder": folder, "_notes": said}


def note(row: dict, sentence: str) -> None:
  """Says something about the data that a row is of; `registry.load` has it in its note."""
  if sentence not in row.get("_notes", [sentence]):
    row["_notes"].append(sentence)


def column(row: dict, *names: str) -> Any:
  """The value of `named_column`."""
  return named_column(row, *names)[1]


def named_column(row: dict, *names: str) -> tuple[str, Any]:
  """The first of `names` that a row has, those that the path names before others; its value.

  Columns `choices.text` and `choices.label` are a dict `choices`.

  Raises:
    UserError: the row has none of them, or no value in any.
  """
  renamed = row.get("_renamed", ())
  ordered = sorted(names, key=lambda name: name not in renamed) if renamed else names
  for name in ordered:
    if not _is_null(row.get(name)):
      return name, row[name]
  for name in ordered:
    parts = {key[len(name) + 1:]: value for key, value in row.items()
             if str(key).startswith(f"{name}.") and not _is_null(value)}
    if parts:
      return name, parts
  wanted = " or ".join(map(repr, names))
  if has(row, *names):
    raise UserError(f"row {shown(row)} has no value in {wanted} (null); give it one, or leave the "
                    "row out.")
  raise UserError(f"row {shown(row)} has no {wanted}; it has {_named(row)}. "
                  "Name a column of another name at the end of the path, like "
                  f"#{names[0]}=COLUMN.")


def text(row: dict, *names: str) -> str:
  """The value of `column` as text; a UserError when it is a list, a dict or bytes."""
  value = column(row, *names)
  if isinstance(value, (list, tuple, dict, bytes)):
    kind = "bytes that are not UTF-8" if isinstance(value, bytes) else f"a {type(value).__name__}"
    raise UserError(f"row {shown(row)} holds {kind} where a text is wanted "
                    f"({' or '.join(map(repr, names))}); name a column of text at the end of the "
                    f"path, like #{names[0]}=COLUMN.")
  return str(value)


def optional_text(row: dict, name: str) -> str:
  """The text of a column that may be empty or null, but not left out."""
  return "" if name in row and _is_null(row[name]) else text(row, name)


def has(row: dict, *names: str) -> bool:
  """Whether a row has a column of one of these names, even without a value."""
  return any(name in row for name in names)


def whole(value: Any) -> int | None:
  """The whole number that a cell holds, such as 3, 3.0, '3' or '3.0'; else None."""
  digits, point, zeros = str(value).strip().partition(".")
  unsigned = digits.removeprefix("-")
  # At most nine digits: no label is larger, and int() refuses thousands of them.
  if not (unsigned.isascii() and unsigned.isdigit() and len(unsigned) < 10) or zeros.strip("0"):
    return None
  return int(digits)


def shown(row: dict) -> str:
  """What messages call a row."""
  return str(row.get("_name", "?"))


def _is_null(value: Any) -> bool:
  return value is None or (isinstance(value, float) and value != value)


def _named(row: dict) -> str:
  return ", ".join(repr(name) for name in row if not str(name).startswith("_")) or "no column"


def _parse(spec: str, field: str) -> tuple[str, _Columns]:
  path, _, fragment = spec.partition("#")
  renamed, labels, count_from = {}, (), None
  for part in filter(None, fragment.split("&")):
    name, equals, value = part.partition("=")
    value = urllib.parse.unquote(value)
    if not equals or not name or not value:
      raise UserError(f"{field}: {part!r} in {spec!r} is not of the form name=column.")
    if name == "labels":
      labels = tuple(value.split("|"))
    elif name == "count_from":
      if value not in ("0", "1"):
        raise UserError(f"{field}: count_from={value} in {spec!r} must be 0 or 1.")
      count_from = int(value)
    else:
      renamed[name] = value
  return path, _Columns(renamed, labels, count_from)


def _has_lines(path: str) -> bool:
  return sources.file_format(path)[0] not in (".parquet", ".json")


def _read(f: IO[bytes], path: str, columns: _Columns) -> Iterator[Positioned]:
  kind, compression = sources.file_format(path)
  f = sources.decompressed(f, compression)
  if kind == ".parquet":
    yield from _parquet_rows(pyarrow.parquet.ParquetFile(
        io.BytesIO(archives.whole(f, path, archives.LARGEST_TABLE)) if compression else f))
  elif kind in (".csv", ".tsv"):
    content = sources.decode(archives.whole(f, path), path, utf16=True)
    yield from tables.rows(content, kind, path, columns.by_number, columns.renamed.values())
  elif kind == ".jsonl":
    yield from _json_lines(io.BufferedReader(f), path)
  elif kind == ".json":
    yield from _json_rows(archives.whole(f, path), path)
  elif kind in _POLARITY:
    # Not splitlines, which also ends lines at characters of older encodings.
    content = _decode(archives.whole(f, path)).removesuffix("\n")
    for number, line in enumerate(content.split("\n") if content else (), 1):
      yield number, {"text": line.removesuffix("\r"), "label": _POLARITY.index(kind)}
  else:
    yield from _text_rows(_decode(archives.whole(f, path)), path)


def _parquet_rows(file: pyarrow.parquet.ParquetFile) -> Iterator[Positioned]:
  # Other writers than pandas store text as bytes.
  plain = _plain if "binary" in str(file.schema_arrow) else lambda row: row
  position = 0
  for batch in file.iter_batches(batch_size=1024):
    for row in batch.to_pylist():
      position += 1
      yield position, plain(row)


def _json_lines(lines: IO[bytes], path: str) -> Iterator[Positioned]:
  for number, line in enumerate(archives.lines(lines, path), 1):
    if not line.strip():
      continue
    row = _parse_json(line, path, number)
    if not isinstance(row, dict):
      raise UserError(f"{path}, line {number} is not a JSON object; write one object per line.")
    yield number, row


def _json_rows(content: bytes, path: str) -> Iterator[Positioned]:
  # A file whose first line is an object of its own has one per line.
  line, _, rest = content.lstrip().partition(b"\n")
  if rest.strip() and isinstance(_json_or_none(line), dict):
    yield from _json_lines(io.BytesIO(content), path)
    return
  value = _parse_json(content, path)
  if isinstance(value, list):
    yield from enumerate(value, 1)
  elif isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
    for number, (name, row) in enumerate(value.items(), 1):
      yield number, {**row, "_name": name}
  else:
    yield 1, value


def _parse_json(content: bytes, path: str, line: int | None = None) -> Any:
  """The value of a file, or of one of its lines."""
  text = sources.decode(content, path, line or 1, utf16=True)
  shown = path if line is None else f"{path}, line {line}"
  return sources.parse_json(text, shown, "check that the file is whole")


def _json_or_none(content: str | bytes) -> Any:
  try:
    return files.parse_json(content)
  except ValueError:
    return None


def _decode(content: bytes) -> str:
  try:
    return sources.decode(content, "", utf16=True)
  except UserError:
    return content.decode("latin-1")  # older collections, such as 20 Newsgroups


def _text_rows(content: str, path: str) -> Iterator[Positioned]:
  # Passages of RACE are JSON; a review may begin with a brace as well.
  if content.lstrip()[:1] == "{":
    lines = [line for line in content.split("\n") if line.strip()]
    for objects in ([_json_or_none(content)], [_json_or_none(line) for line in lines]):
      if all(isinstance(row, dict) for row in objects):
        yield from enumerate(objects, 1)
        return
  name = f"{os.path.basename(os.path.dirname(path))}/{os.path.basename(path)}"
  yield 1, {"text": content, "_name": name}


def _tfds_rows(spec: str, columns: _Columns, field: str) -> Iterator[dict]:
  from wd_plasticity.data import tfds_source  # pylint: disable=g-import-not-at-top

  source = tfds_source.TfdsSource(spec, "", field)
  for builder, split in source.splits:
    shown = f"{builder.info.full_name}:{split}"
    for number, record in enumerate(source.records(builder, split, shown)):
      row = _plain(record)
      row.setdefault("_name", f"{split}:{number}")
      row = columns.apply(row, f"{shown}, record {number}")
      row["_folder"] = split
      yield row


def _plain(value: Any) -> Any:
  """NumPy values and bytes of TFDS and Parquet as Python values and text."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, bytes):
    try:
      return value.decode("utf-8")
    except UnicodeDecodeError:
      return value  # an image, or a text that `text` refuses
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, (np.ndarray, list, tuple)):
    return [_plain(v) for v in value]
  return value
