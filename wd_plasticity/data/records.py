"""Fixed-length records of token ids in .npy files, and the hashes of source files."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from wd_plasticity import files
from wd_plasticity.errors import UserError
from wd_plasticity.files import parse_json, write_json

STATS = "stats.json"


class RecordWriter:
  """Cuts a stream of tokens into records of `length` and appends them to a .npy file.

  The header is written last over a placeholder of the same size; until then the file
  says that it holds no record.
  """

  def __init__(self, path: str, length: int, dtype: np.dtype):
    self._length = length
    self._dtype = np.dtype(dtype)
    self._num_tokens = 0
    self._file = open(path, "wb")
    with files.named(path):
      self._header_size = self._write_header(0)

  def add(self, ids: np.ndarray) -> None:
    """Appends the ids of a document."""
    with files.named(self._file.name):
      self._file.write(np.ascontiguousarray(ids, self._dtype).data)
    self._num_tokens += len(ids)

  def close(self) -> tuple[int, int]:
    """Drops the incomplete last record; returns (records, tokens dropped)."""
    num_records, remainder = divmod(self._num_tokens, self._length)
    with files.named(self._file.name):
      self._file.truncate(
          self._header_size + num_records * self._length * self._dtype.itemsize)
      self._file.seek(0)
      if self._write_header(num_records) != self._header_size:
        raise RuntimeError("the .npy header changed its size")
      self._file.flush()
      os.fsync(self._file.fileno())
      self._file.close()
    return num_records, remainder

  def abort(self) -> None:
    """Closes the file as it is, also on a full disk; does nothing after `close`."""
    with contextlib.suppress(OSError):
      self._file.close()

  def _write_header(self, num_records: int) -> int:
    # numpy pads headers so that the first axis can grow in place.
    np.lib.format.write_array_header_1_0(self._file, {
        "descr": np.lib.format.dtype_to_descr(self._dtype),
        "fortran_order": False,
        "shape": (num_records, self._length),
    })
    return self._file.tell()


class JoinedRecords:
  """Several record arrays [n_i, L+1] as one, without copying them."""

  def __init__(self, parts: Sequence[np.ndarray]):
    self._parts = list(parts)
    self._ends = np.cumsum([len(p) for p in self._parts])
    self.shape = (int(self._ends[-1]), self._parts[0].shape[1])
    self.dtype = self._parts[0].dtype

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index) -> np.ndarray:
    """The record of an int [L+1], or the records of an int array [k] as [k, L+1]."""
    index = np.asarray(index)
    if index.dtype.kind not in "iu":
      raise TypeError(f"records are indexed by integers, not {index.dtype}")
    flat = index.reshape(-1)
    flat = np.where(flat < 0, flat + len(self), flat)
    if len(flat) and not 0 <= flat.min() <= flat.max() < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    which = np.searchsorted(self._ends, flat, side="right")
    out = np.empty((len(flat), self.shape[1]), self.dtype)
    for i, part in enumerate(self._parts):
      chosen = which == i
      if chosen.any():
        out[chosen] = part[flat[chosen] - (self._ends[i] - len(part))]
    return out.reshape(index.shape + self.shape[1:])


class FileHashes:
  """sha256 of files, remembered in a JSON file by path, size and times of change."""

  def __init__(self, path: str):
    self._path = path
    self._changed = False
    self._known = {}  # only saves time: begun anew when it is missing or damaged
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
      with open(path, "rb") as f:
        stored = parse_json(f.read())
      if stored["checksum"] == combined_hash([stored["files"]]):
        self._known = dict(stored["files"])

  def __call__(self, path: str) -> str:
    path = os.path.abspath(path)
    try:
      return self._digest(path)
    except OSError as e:
      raise UserError(f"{path} cannot be read ({e.strerror}); check that it is there and "
                      "readable.") from e

  def _digest(self, path: str) -> str:
    stat = os.stat(path)
    key = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    known = self._known.get(path)
    if isinstance(known, list) and len(known) == 2 and known[0] == key:
      return known[1]
    digest = files.sha256(path)
    # Within the resolution of the clock a file may change again without a new time.
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 2_000_000_000:
      self._known[path] = [key, digest]
      self._changed = True
    return digest

  def save(self) -> None:
    """Writes what was learnt, in one step."""
    if self._changed:
      # It only saves time, and a read-only cache of finished data is as good.
      with contextlib.suppress(OSError):
        write_json(self._path, {"files": self._known, "checksum": combined_hash([self._known])})


def checksums(directory: str, stats: Mapping) -> dict[str, str]:
  """sha256 of every file of records in a directory, and of the statistics that go with them."""
  names = sorted(name for name in os.listdir(directory) if name.endswith(".npy"))
  return {name: files.sha256(os.path.join(directory, name)) for name in names} | {
      STATS: combined_hash([{k: v for k, v in stats.items() if k != "checksums"}])}


def damaged_file(directory: str, stats: Mapping) -> str:
  """The first file that is not what `stats["checksums"]` says; '' for none.

  All bytes are read, at 1 to 2 GB/s: seconds before a training that takes hours of them.
  """
  now = checksums(directory, stats)
  return next((os.path.join(directory, name) for name in sorted(now | stats["checksums"])
               if now.get(name) != stats["checksums"].get(name)), "")


def smallest_dtype(vocab_size: int) -> np.dtype:
  """uint16 when every id fits, else int32."""
  return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def combined_hash(parts: Iterable) -> str:
  """sha256 of JSON-able parts."""
  return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()
