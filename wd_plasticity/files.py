"""Files: written so that a reader sees the old content or the new, never a part; JSON read
so that whatever is wrong with it is one sentence."""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from wd_plasticity.errors import NO_LOCKS, UserError


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], Any]) -> None:
  """Calls `write` on a temporary file beside `path` that replaces it when all is on disk.

  Makes the folder if need be; leaves nothing behind when `write` fails.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Unlike tempfile's, readable by a group that shares the folder.
  temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
  try:
    with open(temporary, "wb") as f:
      write(f)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except BaseException as e:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    if isinstance(e, OSError):
      e.filename, e.filename2 = str(path), None  # what the caller knows it by
    raise


def clear_temporaries(folder: str | os.PathLike, before: float) -> None:
  """Deletes what killed writes of `write_atomically` have left in a folder.

  Args:
    folder: may be missing.
    before: only what was last written before this time, in seconds since 1970: when the program
      started that is now ending, so that no write under way is older.
  """
  for path in Path(folder).glob(".*.tmp-????????"):
    with contextlib.suppress(OSError):
      if path.stat().st_mtime < before:
        path.unlink()


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
  """Has failures of the system say of which file they are; writing into one does not tell."""
  try:
    yield
  except OSError as e:
    if e.errno is not None and e.filename is None:
      e.filename = os.fspath(path)
    raise


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes UTF-8 text atomically; halves of surrogate pairs, which it has not, are spelled."""
  write_atomically(path, lambda f: f.write(text.encode("utf-8", "backslashreplace")))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON atomically."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: str | os.PathLike) -> str:
  """Of a file's content, in hexadecimal digits."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def parse_json(content: str | bytes) -> Any:
  """The value that JSON spells; bytes are UTF-8.

  Raises:
    ValueError: whatever is wrong with it: no JSON, not UTF-8, nested too deeply, numbers of
      more digits than can be read. The message says which, as 'is not JSON (...)'.
  """
  try:
    return json.loads(content)
  except json.JSONDecodeError as e:
    raise ValueError(f"is not JSON ({e.msg}: line {e.lineno}, column {e.colno})") from e
  except UnicodeDecodeError as e:
    raise ValueError(f"is not UTF-8 text (byte {e.object[e.start]:#04x} at {e.start})") from e
  except RecursionError as e:
    raise ValueError("holds lists or objects that are nested too deeply") from e
  except ValueError as e:
    raise ValueError("holds a whole number of more digits than can be read "
                     f"({sys.get_int_max_str_digits()})") from e


def read_json(path: str | os.PathLike, what: str, advice: str,
              fields: Mapping[str, type | tuple[type, ...]] | None = None) -> Any:
  """The value in a JSON file that this project wrote.

  Args:
    path: the file.
    what: it should be, such as 'the record of a member'.
    advice: what to do when it is not.
    fields: it must be an object with these, each of its type or one of its types.

  Raises:
    FileNotFoundError: there is no such file.
    UserError: it cannot be read, is not JSON, or lacks a field.
  """
  try:
    value = parse_json(Path(path).read_bytes())
  except FileNotFoundError:
    raise
  except OSError as e:
    raise _wrong(path, what, e.strerror, advice) from e
  except ValueError as e:
    raise _wrong(path, what, f"it {e}", advice) from e
  if fields is not None:
    check_fields(value, path, what, advice, fields)
  return value


def check_fields(value: Any, path: str | os.PathLike, what: str, advice: str,
                 fields: Mapping[str, type | tuple[type, ...]]) -> None:
  """Raises UserError, as `read_json`, when a value of a file is no object with these fields."""
  if not isinstance(value, dict):
    raise _wrong(path, what, "not an object", advice)
  for name, kind in fields.items():
    if name not in value:
      raise _wrong(path, what, f"it has no {name!r}", advice)
    # JSON's true and false are numbers to Python.
    if not isinstance(value[name], kind) or (isinstance(value[name], bool) and kind is not bool):
      raise _wrong(path, what, f"its {name!r} is of the wrong type", advice)


def _wrong(path, what, why, advice) -> UserError:
  return UserError(f"{path} is not {what} ({why}); {advice}.")


@contextlib.contextmanager
def locked(path: str | os.PathLike, waiting: Callable[[], Any] | None = None) -> Iterator[None]:
  """For `with`: the right to read, change and rewrite a file that several processes rewrite.

  Jobs of a launch share a work directory; without it the last to write may have read
  before the others had written. Waits while another process has it.

  Args:
    path: of the file; the lock is a hidden file beside it.
    waiting: called once when another process has it.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  lock = open_lock(path.with_name(f".{path.name}.lock"))
  try:
    if waiting is not None and not lock_at_once(lock, path):
      waiting()
    while not lock_at_once(lock, path):
      time.sleep(_SECONDS_BETWEEN_TRIES)
    yield
  finally:
    os.close(lock)  # and with it the lock


def open_lock(path: str | os.PathLike) -> int:
  """A file descriptor to lock; the file is made if need be, and stays."""
  # Like the files themselves, usable by a group that shares the folder.
  return os.open(path, os.O_RDWR | os.O_CREAT, 0o664)


def lock_at_once(lock: int, path: str | os.PathLike) -> bool:
  """Locks an open file for this process, and those that inherit it; False when others have it.

  The lock ends with the last process that has the file open, in whichever way. Where the
  file system has no locks this is said once, and everyone gets it.

  Args:
    lock: from `open_lock`.
    path: what is locked, named when the file system has no locks.
  """
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as e:
    if e.errno not in NO_LOCKS:
      raise
    _say_without_locks(os.fspath(path), e.strerror)
  return True


_SECONDS_BETWEEN_TRIES = 0.05
_said_without_locks = []


def _say_without_locks(path: str, reason: str) -> None:
  if not _said_without_locks:
    _said_without_locks.append(path)
    print(f"note: the file system of {path} has no locks ({reason}), so two runs in one work "
          "directory cannot be told apart there; start only one at a time.", file=sys.stderr,
          flush=True)


def is_plain_name(text: Any) -> bool:
  """Whether a text can be one name in a folder: no path, nothing hidden, nothing unprintable."""
  return (isinstance(text, str) and text.isprintable() and 0 < len(os.fsencode(text)) <= 200
          and not text.startswith(".") and "/" not in text and "\\" not in text)


def check_place(folder: str | os.PathLike) -> None:
  """Refuses a folder in which checkpoints cannot be kept.

  Raises:
    UserError: a backslash is in its path: TensorStore, which writes the arrays, takes it for a
      slash, and they would lie elsewhere.
  """
  if "\\" in os.path.abspath(folder):
    raise UserError(f"{os.path.abspath(folder)} has a backslash in its path, with which "
                    "checkpoints cannot be written or read; give a folder without.")


class HeldFolder:
  """A folder that must stay where it was when this was made."""

  def __init__(self, path: str | os.PathLike):
    self.path = Path(path).absolute()
    # Open, so that no other folder can be taken for this one by its number.
    self._open = os.open(self.path, os.O_RDONLY)

  def is_there(self) -> bool:
    if self._open is None:  # closed
      return self.path.is_dir()
    try:
      return os.path.samestat(os.fstat(self._open), os.stat(self.path))
    except OSError:
      return False

  def check(self) -> None:
    """Raises UserError when it was moved, deleted or replaced."""
    if not self.is_there():
      raise UserError(f"{self.path} was moved or deleted while the run was under way; bring it "
                      "back and run the same command again, which goes on from what is saved.")

  def close(self) -> None:
    if self._open is not None:
      os.close(self._open)
      self._open = None
