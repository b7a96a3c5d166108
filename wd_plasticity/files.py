"""Writing files so that a reader sees the old content or the new, never a part."""

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import filelock


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
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes UTF-8 text atomically."""
  write_atomically(path, lambda f: f.write(text.encode("utf-8")))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON atomically."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def locked(path: str | os.PathLike) -> filelock.BaseFileLock:
  """For `with`: the right to read, change and rewrite a file that several processes rewrite.

  Jobs of a launch share a work directory; without it the last to write may have read
  before the others had written.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Like the files themselves, usable by a group that shares the folder.
  return filelock.FileLock(path.with_name(f".{path.name}.lock"), mode=0o664)
