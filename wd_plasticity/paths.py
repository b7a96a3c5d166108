"""Paths that users give: only those of a file system can be read and written.

An address such as gs://bucket/run would be taken for a local folder `gs:`, so every program
refuses it before it does anything.
"""

import os
import re
from collections.abc import Collection

from absl import flags
from ml_collections import ConfigDict

from wd_plasticity.config import flatten
from wd_plasticity.errors import UserError
from wd_plasticity.files import check_place

# Flags and fields of configurations that hold paths, several of them separated by commas.
FLAGS = ("workdir", "checkpoint", "cache_dir", "model", "tokenizer", "out")
FIELDS = ("data.train", "data.validation", "data.cache_dir", "data.tokenizer.path", "cache_dir",
          "tokenizer_dir", "include_path", "reward_model")
SECTIONS = ("sources.",)  # all of whose fields are paths

_LONGEST = 4095  # bytes, of Linux
# Flags that name a folder, and cannot name none.
_FOLDERS = ("workdir", "checkpoint", "out", "model")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/", re.ASCII)
_WINDOWS_OR_TFDS = re.compile(r"[A-Za-z]:/|tfds:/(?!/)")


def local_path(path: str | os.PathLike | None, name: str) -> None:
  """Refuses an address where a path is wanted.

  Args:
    path: as given; several may be separated by commas.
    name: of the flag or field that it is the value of.

  Raises:
    UserError: it is an address, or longer than a path can be.
  """
  if "\0" in os.fspath(path or ""):
    raise UserError(f"{name}={path!r} has a character in it that no path can have.")
  for part in os.fspath(path or "").split(","):
    part = part.strip()
    if len(os.fsencode(part)) > _LONGEST:
      raise UserError(f"{name} has {len(part)} characters, more than a path can have; give a "
                      "shorter one.")
    if _ADDRESS.match(part) and not _WINDOWS_OR_TFDS.match(part):
      raise UserError(f"{name}={part} is an address, and only paths of a file system can be read "
                      "and written; mount the bucket as a folder (gcsfuse, s3fs), or download "
                      "what is there, and give that path.")


def check_flags(except_for: Collection[str] = ()) -> None:
  """Refuses addresses, folders without a name, and places of checkpoints with a backslash.

  Raises like `local_path`.
  """
  for name in FLAGS:
    if name in flags.FLAGS and name not in except_for:
      value = flags.FLAGS[name].value
      for path in value if isinstance(value, list) else [value]:
        if isinstance(path, str):
          if name in _FOLDERS and flags.FLAGS[name].present and not path.strip():
            raise UserError(f"--{name} is empty; name a folder.")
          local_path(path, f"--{name}")
          if name in ("workdir", "checkpoint"):
            check_place(path)


def check_config(config: ConfigDict) -> None:
  """Refuses addresses in a configuration of pretraining or of an eval; like `local_path`."""
  for field, value in flatten(config.to_dict()).items():
    if isinstance(value, str) and (field in FIELDS or field.startswith(SECTIONS)):
      local_path(value, field)
