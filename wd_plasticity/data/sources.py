"""Where documents come from: files, TFDS data sets, the embedded corpus.

A source knows the files whose content decides its documents (`files`, so that a
cache can be addressed by content) and iterates its documents as raw text.

Files are named by globs, comma separated (`**` descends into folders), and read by
their extension: .txt .text .md .markdown hold one document each, .jsonl and .json
one JSON object per line, .parquet one row per document; any of them may end in .gz,
.xz or .zst, or be a member of a .tar (.tgz, .txz and the endings above too).
"""

import contextlib
import dataclasses
import functools
import glob
import gzip
import io
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Protocol

import pyarrow as pa
import pyarrow.parquet

from wd_plasticity.data import embedded
from wd_plasticity.errors import UserError

_TEXT = (".txt", ".text", ".md", ".markdown")
_JSON = (".jsonl", ".json")
_SHORT_TAR = {".tgz": ".tar.gz", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
_COMPRESSED = (".gz", ".xz", ".zst")
_EXTENSIONS = (*_TEXT, *_JSON, ".parquet", ".tar")
_BROKEN = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, tarfile.TarError,
           pa.ArrowException)


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
      with open(path, "rb") as f:
        yield from _read(f, path, path, self.text_field)

  def text_bytes(self) -> int:
    # Text compresses about four times.
    return sum(os.path.getsize(path) * (4 if file_format(path)[1] or kind == ".parquet" else 1)
               for kind, path in self.files)


def find_files(spec: str, field: str, extensions: tuple[str, ...] = _EXTENSIONS) -> list[str]:
  """The files that comma-separated globs match, sorted within a glob, each once.

  Their extension, before that of a compression, must be one of `extensions`.
  """
  found = {}
  for pattern in filter(None, (p.strip() for p in spec.split(","))):
    pattern = os.path.expanduser(pattern)
    matches = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
    matches = sorted(m for m in matches if os.path.isfile(m))
    if not matches:
      raise UserError(f"{field}: no file matches {pattern!r}; check the path (it is relative to "
                      f"{os.getcwd()}).")
    found.update(dict.fromkeys(matches))
  for path in found:
    if file_format(path)[0] not in extensions:
      raise UserError(f"{field}: {path} has an unknown extension; known are {_known(extensions)}.")
  return list(found)


def _known(extensions: tuple[str, ...] = _EXTENSIONS) -> str:
  return f"{' '.join(filter(None, extensions))}, and these with {' '.join(_COMPRESSED)} appended"


def file_format(name: str) -> tuple[str, str]:
  """(extension of the content, extension of the compression), each '' when there is none."""
  name = os.path.basename(name).lower()
  for short, full in _SHORT_TAR.items():
    if name.endswith(short):
      name = name.removesuffix(short) + full
  compression = next((c for c in _COMPRESSED if name.endswith(c)), "")
  return os.path.splitext(name.removesuffix(compression))[1], compression


def decompressed(f: IO[bytes], compression: str) -> IO[bytes]:
  """An open file read through the decompression that `file_format` names."""
  if compression == ".gz":
    return gzip.GzipFile(fileobj=f)
  if compression == ".xz":
    return lzma.LZMAFile(f)
  if compression == ".zst":
    # Unlike other readers, this one reports a file that was cut off.
    return pa.CompressedInputStream(pa.PythonFile(f, mode="r"), "zstd")
  return f


@contextlib.contextmanager
def reading(shown: str) -> Iterator[None]:
  """Turns what goes wrong in reading the file that messages call `shown` into UserErrors."""
  try:
    yield
  except UnicodeDecodeError as e:
    raise UserError(f"{shown} is not UTF-8 text (byte {e.start}: {e.reason}); convert it, for "
                    "example with iconv.") from e
  except (*_BROKEN, OSError) as e:
    # pyarrow reports broken streams as plain OSError, without a number.
    if isinstance(e, OSError) and e.errno is not None:
      raise
    raise UserError(f"{shown} is broken or cut off ({str(e).splitlines()[0] if str(e) else e!r}); "
                    "fetch it again or leave it out.") from e


def _read(f: IO[bytes], name: str, shown: str, text_field: str) -> Iterator[str]:
  """The documents of an open file; `shown` names it in messages."""
  kind, compression = file_format(name)
  with reading(shown):
    f = decompressed(f, compression)
    if kind == ".tar":
      yield from _read_tar(f, shown, text_field)
    elif kind == ".parquet":
      yield from _read_parquet(f, shown, text_field, seekable=shown == name and not compression)
    elif kind in _JSON:
      yield from _read_json_lines(io.BufferedReader(f), shown, text_field)
    else:
      yield f.read().decode("utf-8-sig")


def _read_tar(f: IO[bytes], shown: str, text_field: str) -> Iterator[str]:
  num_files = 0
  with tarfile.open(fileobj=f, mode="r|") as tar:
    for member in tar:
      hidden = os.path.basename(member.name).startswith(".")
      # Archives often hold a licence or an index beside the data: unknown members are no error.
      known = file_format(member.name)[0] in _EXTENSIONS
      if member.isfile() and not hidden and known:
        num_files += 1
        yield from _read(tar.extractfile(member), member.name, f"{shown}!{member.name}", text_field)
  if not num_files:
    raise UserError(f"{shown} holds no file that can be read; known extensions are {_known()}.")


def _read_parquet(f: IO[bytes], shown: str, text_field: str, seekable: bool) -> Iterator[str]:
  file = pa.parquet.ParquetFile(f if seekable else io.BytesIO(f.read()))
  names = file.schema_arrow.names
  if text_field not in names:
    raise missing_field(shown, text_field, names)
  kind = file.schema_arrow.field(text_field).type
  if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
    raise UserError(f"{shown}: column {text_field!r} holds {kind}, not text; set data.text_field "
                    f"to one of {', '.join(names)}.")
  for batch in file.iter_batches(batch_size=256, columns=[text_field]):
    for value in batch.column(0):
      text = value.as_py()
      if text is not None:
        yield text


def _read_json_lines(f: IO[bytes], shown: str, text_field: str) -> Iterator[str]:
  for number, line in enumerate(f, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as e:
      raise UserError(f"{shown}, line {number} is not JSON ({e.msg}); write one JSON object per "
                      "line.") from e
    if not isinstance(record, dict):
      raise UserError(f"{shown}, line {number} is not a JSON object; write one object with the "
                      f"field {text_field!r} per line.")
    text = record.get(text_field)
    if not isinstance(text, str):
      raise missing_field(f"{shown}, line {number}", text_field, list(record))
    yield text


def missing_field(shown: str, text_field: str, names: list[str]) -> UserError:
  """The error for a record without its text."""
  return UserError(f"{shown} has no text in a field {text_field!r}; set data.text_field to one of "
                   f"{', '.join(map(str, names)) or 'its fields (it has none)'}.")
