"""Where documents come from: files, TFDS data sets, the embedded corpus.

A source knows the files whose content decides its documents (`files`, so that a
cache can be addressed by content) and iterates its documents as raw text.

Files are named by globs, comma separated (`**` descends into folders), and read by
their extension: .txt .text .md .markdown hold one document each, .jsonl and .json
one JSON object per line, .parquet one row per document; any of them may end in .gz,
.bz2, .xz or .zst, or be a member of a .tar (.tgz, .txz and the endings above too), of which
three may lie in each other.
A text that is null is an empty document.
"""

import codecs
import contextlib
import dataclasses
import functools
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet

from wd_plasticity import files
from wd_plasticity.data import archives, embedded
from wd_plasticity.errors import UserError

_TEXT = (".txt", ".text", ".md", ".markdown")
_JSON = (".jsonl", ".json")
_SHORT_TAR = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
_EXTENSIONS = (*_TEXT, *_JSON, ".parquet", ".tar")
_DEEPEST = 3  # archives within each other


class Source(Protocol):
  """Documents, and the files that they are made of."""

  files: list[tuple[str, str]]  # (label, path); labels and contents decide the documents

  def documents(self) -> Iterator[str]:
    """The raw text of each document, always in the same order."""

  def text_bytes(self) -> int:
    """About how many bytes of text there are, known without reading them."""


def open_source(kind: str, spec: str, text_field: str, field: str) -> Source:
  """The source of kind `embedded`, `files` or `tfds` that `spec` describes.

  Args:
    kind: the value of `data.source`.
    spec: globs, or TFDS names or folders, comma separated; unused by `embedded`.
    text_field: the field of JSONL, Parquet and TFDS records that holds the text.
    field: name of the configuration field of `spec`, for messages.
  """
  if kind == "embedded":
    return EmbeddedSource(embedded.module_files())
  if kind not in ("files", "tfds"):
    raise UserError(f"data.source={kind!r} is unknown; choose embedded, files or tfds.")
  if not spec.strip(" ,"):
    raise UserError(f"data.source={kind!r} needs {field}; set it to "
                    + ("the files to read." if kind == "files" else "a data set's name or folder."))
  if kind == "files":
    return FileSource(find_files(spec, field), text_field)
  from wd_plasticity.data import tfds_source  # pylint: disable=g-import-not-at-top

  return tfds_source.TfdsSource(spec, text_field, field)


@dataclasses.dataclass
class EmbeddedSource:
  """The docstrings of installed packages (see `embedded`)."""

  modules: list[tuple[str, str]]

  @property
  def files(self) -> list[tuple[str, str]]:
    kept_out = embedded.held_out(self.modules)  # their text decides what else is left out
    return [(f"held out: {module}" if module in kept_out else module, path)
            for module, path in self.modules]

  @functools.cached_property
  def _documents(self) -> list[str]:
    # Small, and parsing again for a second pass would take longer than to tokenise it.
    return list(embedded.documents(self.modules))

  def documents(self) -> Iterator[str]:
    return iter(self._documents)

  def text_bytes(self) -> int:
    return sum(os.path.getsize(path) for _, path in self.modules) // 3


@dataclasses.dataclass
class FileSource:
  """Text, Markdown, JSONL and Parquet files, plain, compressed or in tar files."""

  paths: list[str]
  text_field: str

  @property
  def files(self) -> list[tuple[str, str]]:
    return [("".join(file_format(path)), path) for path in self.paths]

  def documents(self) -> Iterator[str]:
    for path in self.paths:
      with reading(path), open(path, "rb") as f:
        yield from _read(f, path, path, self.text_field)

  def text_bytes(self) -> int:
    # Text compresses about four times.
    return sum(os.path.getsize(path) * (4 if file_format(path)[1] or kind == ".parquet" else 1)
               for kind, path in self.files)


def _matches(pattern: str) -> list[str]:
  """What a glob matches. As far as it is the path of a file or folder, it is no pattern."""
  if os.path.isfile(pattern):
    return [pattern]
  folder, rest = pattern, ""
  while folder and not os.path.isdir(folder):
    folder, name = os.path.split(folder)
    rest = os.path.join(name, rest) if rest else name
  return [os.path.join(folder, m) for m in glob.glob(rest, root_dir=folder or None, recursive=True)
          ] or glob.glob(pattern, recursive=True)


def find_files(spec: str, field: str, extensions: tuple[str, ...] = _EXTENSIONS) -> list[str]:
  """The files that comma-separated globs match, sorted within a glob, each once.

  Their extension, before that of a compression, must be one of `extensions`.
  """
  found = {}
  for pattern in filter(None, (p.strip() for p in spec.split(","))):
    pattern = os.path.expanduser(pattern)
    matches = sorted(m for m in _matches(pattern) if os.path.isfile(m))
    if not matches and os.path.isdir(pattern):
      raise UserError(f"{field}: {pattern} is a folder; name the files in it, like "
                      f"{os.path.join(pattern, '**', '*.jsonl')}.")
    if not matches:
      raise UserError(f"{field}: no file matches {pattern!r}; check the path (it is relative to "
                      f"{os.getcwd()}).")
    found.update(dict.fromkeys(matches))
  for path in found:
    if file_format(path)[0] not in extensions:
      raise UserError(f"{field}: {path} has an unknown extension; known are {_known(extensions)}.")
  return list(found)


def _known(extensions: tuple[str, ...] = _EXTENSIONS) -> str:
  return (f"{' '.join(filter(None, extensions))}, and these with "
          f"{' '.join(archives.COMPRESSIONS)} appended")


def file_format(name: str) -> tuple[str, str]:
  """(extension of the content, extension of the compression), each '' when there is none."""
  name = os.path.basename(name).lower()
  for short, full in _SHORT_TAR.items():
    if name.endswith(short):
      name = name.removesuffix(short) + full
  compression = next((c for c in archives.COMPRESSIONS if name.endswith(c)), "")
  return os.path.splitext(name.removesuffix(compression))[1], compression


def decompressed(f: IO[bytes], compression: str) -> IO[bytes]:
  """An open file read through the decompression that `file_format` names."""
  return archives.decompress(f, compression) if compression else f


@contextlib.contextmanager
def reading(shown: str) -> Iterator[None]:
  """Turns what goes wrong in reading the file that messages call `shown` into UserErrors."""
  try:
    yield
  except UnicodeDecodeError as e:
    raise UserError(f"{shown} is not UTF-8 text (byte {e.start}: {e.reason}); convert it, for "
                    "example with iconv.") from e
  except pa.ArrowNotImplementedError as e:
    raise UserError(f"{shown} cannot be read ({_first_line(e)}); write it in another way, for "
                    "example as JSONL.") from e
  except (*archives.BROKEN, pa.ArrowException, OSError, ValueError, ArithmeticError) as e:
    if isinstance(e, OSError) and e.errno is not None:  # bz2 and pyarrow raise it without
      raise UserError(f"{shown} cannot be read ({e.strerror}); check that it is there and "
                      "readable.") from e
    if isinstance(e, archives.BROKEN) and re.search("dictionary|memory", str(e), re.IGNORECASE):
      raise UserError(f"{shown} cannot be decompressed here ({_first_line(e)}); decompress it "
                      "first, with its dictionary or where there is more memory.") from e
    raise UserError(f"{shown} is broken or cut off ({_first_line(e)}); fetch it again or leave it "
                    "out.") from e


def _first_line(e: Exception) -> str:
  return (str(e).splitlines() or [repr(e)])[0]


def _read(f: IO[bytes], name: str, shown: str, text_field: str, depth: int = 1) -> Iterator[str]:
  """The documents of an open file; `shown` names it in messages, `depth` counts archives."""
  kind, compression = file_format(name)
  with reading(shown):
    f = decompressed(f, compression)
    if kind == ".tar":
      yield from _read_tar(f, shown, text_field, depth)
    elif kind == ".parquet":
      yield from _read_parquet(f, shown, text_field, seekable=shown == name and not compression)
    elif kind in _JSON:
      yield from _read_json_lines(f, shown, text_field)
    else:
      yield decode(archives.whole(f, shown), shown)


def _read_tar(f: IO[bytes], shown: str, text_field: str, depth: int) -> Iterator[str]:
  if depth > _DEEPEST:
    raise UserError(f"{shown} is an archive within {_DEEPEST} others; unpack the outer ones.")
  num_files = 0
  for member, content in archives.tar_members(f):
    hidden = os.path.basename(member.name).startswith(".")
    # Archives often hold a licence or an index beside the data: unknown members are no error.
    if not hidden and file_format(member.name)[0] in _EXTENSIONS:
      num_files += 1
      yield from _read(content, member.name, f"{shown}!{member.name}", text_field, depth + 1)
  if not num_files:
    raise UserError(f"{shown} holds no file that can be read; known extensions are {_known()}.")


def _read_parquet(f: IO[bytes], shown: str, text_field: str, seekable: bool) -> Iterator[str]:
  file = pa.parquet.ParquetFile(f if seekable else io.BytesIO(
      archives.whole(f, shown, archives.LARGEST_TABLE)),
                                page_checksum_verification=True)
  names = file.schema_arrow.names
  if text_field not in names:
    raise missing_field(shown, text_field, names)
  kind = file.schema_arrow.field(text_field).type
  if not _is_text(kind):
    others = [field.name for field in file.schema_arrow if _is_text(field.type)]
    raise not_text(f"{shown}: column {text_field!r} holds {kind}", others)
  row = 0
  for batch in file.iter_batches(batch_size=256, columns=[text_field]):
    for value in batch.column(0):
      try:
        text = value.as_py()
        yield text.decode("utf-8") if isinstance(text, bytes) else text or ""
      except UnicodeDecodeError as e:
        raise UserError(f"{shown}, row {row} (from 0): column {text_field!r} is not UTF-8 text "
                        f"({e.reason}); convert it or set data.text_field to another.") from e
      row += 1
  if row != file.metadata.num_rows:
    raise EOFError(f"it has {row} of {file.metadata.num_rows} rows")


def _is_text(kind: pa.DataType) -> bool:
  """Whether a column holds text or the bytes of text, in any way that Arrow stores them."""
  if isinstance(kind, pa.BaseExtensionType):
    return _is_text(kind.storage_type)
  if pa.types.is_dictionary(kind):
    return _is_text(kind.value_type)
  return any(is_kind(kind) for is_kind in (
      pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
      pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null))


def _read_json_lines(f: IO[bytes], shown: str, text_field: str) -> Iterator[str]:
  for number, line in enumerate(archives.lines(io.BufferedReader(f), shown), 1):
    if not line.strip():
      continue
    place = f"{shown}, line {number}"
    record = parse_json(decode(line, shown, number), place, "write one JSON object per line, "
                        "an array for example by jq -c '.[]'")
    if not isinstance(record, dict):
      raise UserError(f"{place} is not a JSON object; write one object with the field "
                      f"{text_field!r} per line.")
    if text_field not in record:
      raise missing_field(place, text_field, list(record))
    text = record[text_field]
    if text is not None and not isinstance(text, str):
      others = [name for name, value in record.items() if isinstance(value, str)]
      raise not_text(f"{place}: field {text_field!r} holds {type(text).__name__}", others)
    yield text or ""


def decode(content: bytes, shown: str, first_line: int = 1, utf16: bool = False) -> str:
  """UTF-8 text, without a byte order mark.

  Args:
    content: of the file, or of some of its lines.
    shown: what messages call the file.
    first_line: the number of the first line of `content`.
    utf16: whether UTF-16 that says so by its mark is read too.

  Raises:
    UserError: it is not; names the line, and the byte of the line, both from 1.
  """
  is_utf16 = utf16 and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  try:
    return content.decode("utf-16" if is_utf16 else "utf-8-sig")
  except UnicodeDecodeError as e:
    if is_utf16:
      raise UserError(f"{shown} begins as UTF-16 and is not ({e.reason}); convert it to UTF-8, for "
                      "example with iconv.") from e
    before = e.object[:e.start]
    line, byte = first_line + before.count(b"\n"), e.start - before.rfind(b"\n")
    raise UserError(f"{shown} is not UTF-8 text (line {line}, byte {byte} of it: {e.reason}); "
                    "convert it, for example with iconv.") from e


def parse_json(text: str, shown: str, advice: str) -> Any:
  """The value that JSON spells.

  Args:
    text: the JSON.
    shown: what messages call it, such as 'FILE, line 3'.
    advice: what to do when it is not JSON.

  Raises:
    UserError: it is not JSON, or none that Python reads.
  """
  try:
    return files.parse_json(text)
  except ValueError as e:
    advice = advice if str(e).startswith("is not") else "write it in another way, or leave it out"
    raise UserError(f"{shown} {e}; {advice}.") from e


def missing_field(shown: str, text_field: str, names: Iterable[str]) -> UserError:
  """The error for a record or a table that has no field of that name."""
  return UserError(f"{shown} has no text in a field {text_field!r}; set data.text_field to one of "
                   f"{', '.join(map(str, names)) or 'its fields (it has none)'}.")


def not_text(what: str, others: Iterable[str]) -> UserError:
  """The error for a field that holds something else; `others` are fields that hold text."""
  others = ", ".join(others)
  return UserError(f"{what}, not text; "
                   + (f"set data.text_field to one of {others}." if others else
                      "write text there (no other field holds any)."))
