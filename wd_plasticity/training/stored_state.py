"""One checkpoint on disk: of what it is made, when it counts, and whether it is as it was written.

`<member>/checkpoints/<step>/` holds four items, `params` and `opt_state` (arrays, by orbax),
`position` and `meta` (JSON), and two marks: orbax's `commit_success.txt`, and `checksums.json`
with size and sha256 of every file, written by process 0 after all else is on disk. A step counts
when a reader could open it: both marks, the items and the manifests of the arrays are there.
What earlier versions wrote has no checksums; it is accepted, and that is said once.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wd_plasticity.errors import UserError
from wd_plasticity.files import is_plain_name, parse_json, sha256, write_json

FORMAT = "wd_plasticity checkpoint"
FORMAT_VERSION = 1
COMMIT = "commit_success.txt"
CHECKSUMS = "checksums.json"
ARRAYS = ("params", "opt_state")
CONTENTS = ("_CHECKPOINT_METADATA", *ARRAYS, "position", "meta")
# What makes arrays and JSON items readable.
_NEEDED = ("_CHECKPOINT_METADATA", *(f"{item}/manifest.ocdbt" for item in ARRAYS),
           "position/data.json", "meta/data.json")
_DELETED = "deleted.json"  # what position/data.json is called once a step is being deleted
_NUMBER = (int, float)
# Fields of meta that programs read, and their types.
META_FIELDS: Mapping[str, Any] = {
    "format_version": int, "member": str, "step": int, "steps": int, "tokens": int,
    "weight_decay": _NUMBER, "parameters.total": int, "tokenizer_fingerprint": str,
    "data_fingerprint": str, "model.vocab_size": int, "config.name": str, "config.seed": int,
    "config.model": dict, "config.optim": dict, "config.train.steps": None,
    "config.train.tokens_per_parameter": None, "config.train.global_batch_size": int,
    "config.data.sequence_length": int}


class RefusedCheckpoint(UserError):
  """A checkpoint that is not believed; `why` is a clause without a full stop."""

  def __init__(self, directory: Path, why: str):
    earlier = [s for s in finished_steps(directory.parent)
               if directory.name.isdigit() and s < int(directory.name)]
    other = f"take an earlier one (step {earlier[-1]})" if earlier else "train it again elsewhere"
    super().__init__(f"the checkpoint {directory} is refused: {why}; restore it from a copy, or "
                     f"{other}.")
    self.directory, self.why = directory, why


# What counts.


def finished_steps(directory: str | os.PathLike) -> list[int]:
  """Steps with a finished checkpoint in a checkpoints directory, ascending."""
  return [step for step, path in step_directories(directory) if is_finished(path)]


def step_directories(directory: str | os.PathLike) -> Iterator[tuple[int, Path]]:
  """(step, path) of all that is named like a step, finished or not, ascending."""
  directory = Path(directory)
  if directory.is_dir():
    yield from sorted((int(p.name), p) for p in directory.iterdir()
                      if re.fullmatch("0|[1-9][0-9]*", p.name))


def is_finished(path: Path) -> bool:
  """Whether a step directory is a finished checkpoint."""
  return not why_unfinished(path)


def why_unfinished(path: Path) -> str:
  """What a step directory lacks of a finished checkpoint, as a clause; '' when nothing."""
  missing = [name for name in _NEEDED if not (path / name).exists()]
  if not missing and not _is_older(path):
    missing = [name for name in (COMMIT, CHECKSUMS) if not (path / name).exists()]
  return f"its {missing[0]} is not there, so its save was never finished or it is damaged" if (
      missing) else ""


def was_interrupted(path: Path) -> bool:
  """Whether a save was killed between orbax's end and its checksums: all else is there."""
  return (not (path / CHECKSUMS).exists() and not _is_older(path)
          and all((path / name).exists() for name in (*_NEEDED, COMMIT)))


def _is_older(path: Path) -> bool:
  """Whether it was written before there were checksums."""
  if (path / CHECKSUMS).exists():
    return False
  try:
    return "checksums" not in parse_json((path / "meta" / "data.json").read_bytes())
  except (OSError, ValueError, TypeError):
    return True  # reading it will say what is wrong


def remove(path: Path) -> None:
  """Deletes a step, so that a kill half way leaves nothing that looks finished.

  Nothing is renamed but one small file: buckets rename a directory by copying it.
  """
  position = path / "position"
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):
    os.replace(position / "data.json", position / _DELETED)
  for entry in path.iterdir() if path.is_dir() else ():
    if entry != position:  # last: it tells what this is
      shutil.rmtree(entry, ignore_errors=True)
      with contextlib.suppress(OSError):
        entry.unlink()
  shutil.rmtree(path, ignore_errors=True)


def is_being_deleted(path: Path) -> bool:
  """Whether a step directory is what a kill has left of `remove`."""
  return (path / "position" / _DELETED).exists()


# Checksums.


def seal(directory: Path) -> None:
  """Writes the checksums of all files of a checkpoint, which makes it count."""
  files = {}
  for path in sorted(directory.rglob("*")):
    name = path.relative_to(directory).as_posix()
    if path.is_file() and name not in (COMMIT, CHECKSUMS):
      files[name] = [path.stat().st_size, sha256(path)]
  write_json(directory / CHECKSUMS, {"algorithm": "sha256", "files": files})


def verify(directory: Path, items: Sequence[str], *, contents: bool = True,
           alone: bool = False) -> None:
  """Compares files of a checkpoint with its checksums.

  Args:
    directory: of the step.
    items: only files of these.
    contents: False: only that the files are there, and of their sizes.
    alone: this process reads all of them; else all processes make the same call, each reads
      its share, and all hear of what one has found.

  Raises:
    RefusedCheckpoint: it is not finished, or a file is not as it was written.
  """
  why = why_unfinished(directory)
  if why:
    raise RefusedCheckpoint(directory, why)
  files = _checksums(directory)
  if files is None:
    _say_once(f"note: {directory} was written before checkpoints had checksums; damage that "
              "reading does not show is not seen there.")
    return
  names = sorted(name for name in files if name.split("/")[0] in items)
  share = range(len(names)) if alone else range(jax.process_index(), len(names),
                                                jax.process_count())
  bad = next((i for i in share if _difference(directory, names[i], files, contents)), len(names))
  if jax.process_count() > 1 and not alone:
    from jax.experimental import multihost_utils
    bad = int(np.min(multihost_utils.process_allgather(np.int32(bad))))
  if bad < len(names):
    what = _difference(directory, names[bad], files, contents)
    raise RefusedCheckpoint(directory, f"its file {names[bad]} {what or 'cannot be trusted'}")


def read_item(directory: Path, item: str) -> Any:
  """The value of a JSON item, compared with its checksum; one process may do this alone."""
  name = f"{item}/data.json"
  try:
    content = (directory / name).read_bytes()
    value = parse_json(content)
  except OSError as e:
    raise RefusedCheckpoint(directory, f"its {name} cannot be read ({e.strerror})") from e
  except ValueError as e:
    raise RefusedCheckpoint(directory, f"its {name} is damaged: it {e}") from e
  files = _checksums(directory)
  if files is not None:
    what = _difference(directory, name, files)
    if what:
      raise RefusedCheckpoint(directory, f"its file {name} {what}")
  return value


def _checksums(directory: Path) -> dict[str, list] | None:
  """{name: [bytes, sha256]}; None where an earlier version wrote none."""
  try:
    value = parse_json((directory / CHECKSUMS).read_bytes())
    files = value["files"]
    if value["algorithm"] != "sha256" or not all(
        isinstance(size, int) and isinstance(digest, str) for size, digest in files.values()):
      raise ValueError("fields of other types")
  except FileNotFoundError:
    return None
  except OSError as e:
    raise RefusedCheckpoint(directory, f"its {CHECKSUMS} cannot be read ({e.strerror})") from e
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise RefusedCheckpoint(directory, f"its {CHECKSUMS} is damaged") from e
  return files


def _difference(directory: Path, name: str, files: Mapping, contents: bool = True) -> str:
  """What tells a file from the one that was written, as the end of a sentence; '' for nothing."""
  path = directory / name
  if name not in files:
    return "was not there when it was saved"
  size, digest = files[name]
  try:
    now = path.stat().st_size
    if now != size:
      return f"has {now} bytes and had {size} when it was saved"
    if contents and sha256(path) != digest:
      return "is not what was saved (its checksum differs)"
  except FileNotFoundError:
    return "is missing"
  except OSError as e:
    return f"cannot be read ({e.strerror})"
  return ""


_said = set()


def _say_once(line: str) -> None:
  if not _said and jax.process_index() == 0:
    _said.add(line)
    print(line, flush=True)


# What it says of itself.


def read_meta(directory: str | os.PathLike) -> dict:
  """The `meta` item of a step directory, checked to be of this project and readable here.

  Unlike reading arrays, one process of several may do this alone.

  Raises:
    UserError: it is not a checkpoint of this project, damaged or newer than this code, a field
      that programs read is missing or of another type, or the directory is named by another step.
  """
  directory = Path(directory).absolute()
  if not directory.is_dir():
    raise UserError(f"there is no checkpoint at {directory}.")
  foreign = UserError(f"{directory} is not a wd_plasticity checkpoint; give one that this "
                      "project's pretraining wrote.")
  if not (directory / "position").exists() and not (directory / "meta").exists():
    raise foreign
  meta = read_item(directory, "meta")
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise foreign
  _check_fields(directory, meta, {"format_version": int})
  if meta["format_version"] > FORMAT_VERSION:
    raise UserError(
        f"{directory} has checkpoint format {meta['format_version']} (written by wd_plasticity "
        f"{meta.get('code_version')}) and this code reads up to {FORMAT_VERSION}; "
        "update wd_plasticity.")
  _check_fields(directory, meta, META_FIELDS)
  if not is_plain_name(meta["member"]):
    raise RefusedCheckpoint(directory, f"its meta names the member {meta['member']!r}, which is "
                            "no plain name")
  for field in ("data_fingerprint", "tokenizer_fingerprint"):
    if not re.fullmatch("[0-9a-f]*", meta[field]):
      raise RefusedCheckpoint(directory, f"{field} in its meta is {meta[field]!r}, no sha256")
  if directory.name.isdigit() and int(directory.name) != meta["step"]:
    raise RefusedCheckpoint(directory, f"it is of step {meta['step']} by its meta, and its "
                            "directory is named by another")
  return meta


def _check_fields(directory: Path, meta: dict, fields: Mapping[str, Any]) -> None:
  for field, kind in fields.items():
    value: Any = meta
    for part in field.split("."):
      if not isinstance(value, dict) or part not in value:
        raise RefusedCheckpoint(directory, f"its meta has no {field}")
      value = value[part]
    if kind and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
      raise RefusedCheckpoint(directory, f"{field} in its meta is {value!r:.60}, which is of the "
                              "wrong type")
