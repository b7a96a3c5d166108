"""Writing files so that a reader sees the old content or the new, never a part."""

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON through a temporary file beside `path`; makes the folder if need be."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Unlike tempfile's, readable by a group that shares the folder.
  temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
  try:
    with open(temporary, "w", encoding="utf-8") as f:
      json.dump(value, f, indent=2)
      f.write("\n")
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise
