"""Checkpoints of single members: `<member>/checkpoints/<step>/`, written by orbax.

A step directory holds four items: `params` and `opt_state` (arrays), `position`
and `meta` (JSON). orbax writes it under another name and renames it when all is
on disk, so a directory named by a number is a finished save. Saves run in the
background. In runs of several processes every process makes the same calls, and
process 0 is the one that deletes.
"""

import errno
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

import wd_plasticity
from wd_plasticity.errors import UserError

FORMAT = "wd_plasticity checkpoint"
FORMAT_VERSION = 1
CONTENTS = ("_CHECKPOINT_METADATA", "params", "opt_state", "position", "meta")
# What orbax calls a save in progress. A step that is being deleted gets the same
# ending, so that one killed half way is cleaned up like an unfinished save.
_UNFINISHED = ".orbax-checkpoint-tmp"

PyTree = Any


def _is_not_orbax(record: logging.LogRecord) -> bool:
  return "orbax" not in record.pathname and "orbax" not in record.getMessage()


# What orbax logs about a failure it also raises, and its tracebacks would bury the one
# sentence that is made of it.
for _name in ("absl", "asyncio"):
  logging.getLogger(_name).addFilter(_is_not_orbax)


class MemberCheckpoints:
  """The checkpoints of one member, kept in one directory.

  Retention: the newest `keep_latest` (at least one, so the last step is always
  there) and, for good, those at `keep_steps`.
  """

  def __init__(self, directory: str | os.PathLike, *, keep_latest: int = 1,
               keep_steps: Iterable[int] = ()):
    """Opens the directory, makes it if needed and clears what killed saves left."""
    self.directory = Path(directory).absolute()
    self._keep_latest = max(1, keep_latest)
    self._keep_steps = frozenset(keep_steps)
    self._saving = None
    self._last_saved = None
    self._pruning = threading.Lock()
    if jax.process_index() == 0:
      self.directory.mkdir(parents=True, exist_ok=True)
      self._clear_unfinished()

  def steps(self) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    return finished_steps(self.directory)

  def latest(self) -> int | None:
    """The newest step with a finished checkpoint, None when there is none."""
    return max(self.steps(), default=None)

  def save(self, step: int, params: PyTree, opt_state: PyTree, position: dict,
           meta: dict) -> None:
    """Copies the state to host memory and writes it in the background.

    The caller may donate or overwrite the arrays as soon as this returns. An
    earlier save that is still being written is waited for. A step that is
    already there is left as it is: the same step of a run has the same state.

    Args:
      step: optimizer steps done.
      params, opt_state: pytrees of arrays; dtypes and bits are kept.
      position: JSON values from which the loop goes on (next step, seed, ...).
      meta: JSON values that describe the checkpoint (configuration, tokens,
        fingerprints, ...). Format, code version and step are added here.

    Raises:
      OSError: with ENOSPC, when the disk is full; older checkpoints stay.
    """
    self.wait()
    path = self.directory / str(step)
    if step == self._last_saved or _is_finished(path):
      return
    if path.exists() and jax.process_index() == 0:
      _remove(path)
    stamp = {"format": FORMAT, "format_version": FORMAT_VERSION,
             "code_version": wd_plasticity.__version__, "step": step}
    try:
      with _context():
        self._saving = ocp.save_checkpointables_async(path, {
            "params": params, "opt_state": opt_state, "position": position,
            "meta": {**meta, **stamp}})
      self._saving.on_complete(lambda _: self._prune())  # in orbax's thread
    except Exception as e:
      raise self._save_error(e) from e
    self._last_saved = step

  def wait(self) -> None:
    """Returns when the save in progress is on disk; raises what went wrong with it."""
    saving, self._saving = self._saving, None
    if saving is None:
      return
    try:
      saving.result()
    except Exception as e:
      self._last_saved = None
      raise self._save_error(e) from e
    self._prune()  # or waits for the one orbax's thread is at

  def close(self) -> None:
    """Waits for the save in progress."""
    self.wait()

  def restore(self, step: int, abstract_params: PyTree,
              abstract_opt_state: PyTree) -> tuple[PyTree, PyTree, dict, dict]:
    """Reads a checkpoint back, laid out as the abstract trees ask.

    Args:
      step: one of `steps()`.
      abstract_params, abstract_opt_state: `jax.ShapeDtypeStruct` leaves, or arrays.
        Their shardings need not be those of the run that saved; a leaf without
        one goes to the first local device.

    Returns:
      params, opt_state, position, meta.

    Raises:
      UserError: the checkpoint is damaged, of other shapes or of a newer format.
    """
    self.wait()
    path = self.directory / str(step)
    meta = read_meta(path)
    return (_load_arrays(path, "params", _placed(abstract_params)),
            _load_arrays(path, "opt_state", _placed(abstract_opt_state)),
            _load_json(path, "position"), meta)

  def read_meta(self, step: int) -> dict:
    """The `meta` item of one step; raises UserError like `restore`."""
    return read_meta(self.directory / str(step))

  def _prune(self) -> None:
    """Deletes what retention does not keep."""
    if jax.process_index() == 0:
      with self._pruning:
        for step in self.steps()[:-self._keep_latest]:
          if step not in self._keep_steps:
            _remove(self.directory / str(step))

  def _clear_unfinished(self) -> None:
    for path in self.directory.glob(f"*{_UNFINISHED}*"):
      shutil.rmtree(path, ignore_errors=True)

  def _save_error(self, error: Exception) -> Exception:
    """A full disk as OSError(ENOSPC), whichever library ran into it; else the error."""
    if jax.process_index() == 0:
      self._clear_unfinished()  # a full disk gets back what the failed save took
    if re.search("No space left on device|Disk quota exceeded", _messages(error)):
      return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
    return error


class StoredCheckpoint:
  """One finished checkpoint, for programs that evaluate it.

  Attributes:
    directory: its step directory.
    step: optimizer steps done.
    meta: what the run wrote about it (configuration, tokens, fingerprints, ...).
  """

  def __init__(self, directory: Path):
    self.directory = directory
    self.meta = read_meta(directory)
    self.step = self.meta["step"]

  def load_params(self, shardings: PyTree | Sharding | None = None) -> PyTree:
    """Reads the parameters alone: a nested dict of arrays with the dtypes they had.

    Args:
      shardings: one sharding for all, a tree of them like the parameters, or None
        for the first local device.
    """
    try:
      with _context():
        stored = ocp.metadata(self.directory, checkpointable_name="params").metadata
    except Exception as e:
      raise _load_error(self.directory, e, "params") from e
    if shardings is None or isinstance(shardings, Sharding):
      one = shardings
      shardings = jax.tree.map(lambda _: one or _first_device(), stored)
    abstract = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        stored, shardings)
    return _load_arrays(self.directory, "params", abstract)


def open_checkpoint(path: str | os.PathLike, step: int | None = None) -> StoredCheckpoint:
  """Finds a checkpoint by a step directory, a checkpoints directory or a member directory.

  Args:
    path: any of the three.
    step: which step, for the last two; None: the newest.

  Raises:
    UserError: nothing there, not a checkpoint of this project, damaged, or newer
      than this code.
  """
  path = Path(path).absolute()
  if not path.exists():
    raise UserError(f"the checkpoint path {path} does not exist; give a step directory, "
                    "a checkpoints directory or a member directory.")
  if _UNFINISHED in path.name:
    raise UserError(f"{path} is a save that was never finished; give one of the step "
                    "directories beside it.")
  directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
  if (path / "members").is_dir():
    raise UserError(f"{path} is the work directory of a sweep; give one of its members, such "
                    f"as {next((path / 'members').iterdir(), path / 'members' / '<name>')}.")
  if _looks_like_step(directory):
    return StoredCheckpoint(directory)
  steps = finished_steps(directory)
  if not steps:
    raise UserError(f"{path} holds no finished wd_plasticity checkpoint; give a step "
                    "directory, a checkpoints directory or a member directory.")
  if step is not None and step not in steps:
    raise UserError(f"{directory} has no checkpoint of step {step}; it has "
                    f"{', '.join(map(str, steps))}.")
  return StoredCheckpoint(directory / str(steps[-1] if step is None else step))


def read_meta(directory: str | os.PathLike) -> dict:
  """The `meta` item of a step directory, checked to be of this project and readable here.

  Unlike reading arrays, one process of several may do this alone.
  """
  directory = Path(directory).absolute()
  if not directory.is_dir():
    raise UserError(f"there is no checkpoint at {directory}.")
  if _is_foreign(directory):
    raise UserError(f"{directory} is not a wd_plasticity checkpoint; give one that "
                    "this project's pretraining wrote.")
  meta = _load_json(directory, "meta")
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise UserError(f"{directory} is not a wd_plasticity checkpoint; give one that "
                    "this project's pretraining wrote.")
  if meta["format_version"] > FORMAT_VERSION:
    raise UserError(
        f"{directory} has checkpoint format {meta['format_version']} (written by wd_plasticity "
        f"{meta.get('code_version')}) and this code reads up to {FORMAT_VERSION}; "
        "update wd_plasticity.")
  return meta


def finished_steps(directory: str | os.PathLike) -> list[int]:
  """Steps with a finished checkpoint in a checkpoints directory, ascending."""
  directory = Path(directory)
  if not directory.is_dir():
    return []
  return sorted(int(p.name) for p in directory.iterdir()
                if re.fullmatch("0|[1-9][0-9]*", p.name) and _is_finished(p))


def check_space(directory: str | os.PathLike, bytes_needed: int) -> None:
  """Raises UserError when the disk of `directory` has less than `bytes_needed` free."""
  directory = Path(directory).absolute()
  existing = next(p for p in (directory, *directory.parents) if p.exists())
  free = shutil.disk_usage(existing).free
  if free < bytes_needed:
    raise UserError(
        f"the checkpoints need {bytes_needed / 1e9:.2f} GB and the disk of {directory} has "
        f"{free / 1e9:.2f} GB free; free some, give another --workdir or keep fewer "
        "checkpoints (--config.checkpoint.keep_at).")


def _context() -> ocp.Context:
  """orbax settings: position and meta are JSON files, not trees of arrays."""
  context = ocp.Context()
  registry = ocp.handlers.local_registry()
  for name in ("position", "meta"):
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
  context.checkpointables.registry = registry
  return context


def _first_device() -> Sharding:
  return SingleDeviceSharding(jax.local_devices()[0])


def _placed(abstract: PyTree) -> PyTree:
  """Gives every leaf a sharding: without one orbax takes the saving run's devices."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=getattr(x, "sharding", None) or _first_device()), abstract)


def _load_arrays(directory: Path, item: str, abstract: PyTree) -> PyTree:
  """Reads one item of arrays. Items of one call would hide each other's errors."""
  try:
    with _context():
      return ocp.load(directory, abstract, checkpointable_name=item)
  except Exception as e:
    raise _load_error(directory, e, item, abstract) from e


def _load_json(directory: Path, item: str) -> dict:
  """Reads a JSON item. orbax would wait for the other processes, which need not read it."""
  try:
    return json.loads((directory / item / "data.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as e:
    raise _load_error(directory, e, item) from e


def _load_error(directory: Path, error: Exception, item: str,
                abstract: PyTree | None = None) -> Exception:
  """What a failed read means to the user: out of memory, other shapes, or damage."""
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in _messages(error):
    return error
  different = _first_difference(directory, item, abstract)
  if different:
    return UserError(f"the checkpoint {directory} does not fit this configuration: {different}; "
                     "use the configuration it was trained with or another --workdir.")
  earlier = [s for s in finished_steps(directory.parent) if s < _step_number(directory)]
  go_on = f"step {earlier[-1]}" if earlier else "the beginning"
  return UserError(f"the checkpoint {directory} is damaged or incomplete ({item} cannot be "
                   "read); delete that directory and start again, the run then goes on from "
                   f"{go_on}.")


def _first_difference(directory: Path, item: str, abstract: PyTree | None) -> str:
  """The first array whose stored shape is not the wanted one; '' when none can be told."""
  if abstract is None:
    return ""
  try:
    with _context():
      stored = ocp.metadata(directory, checkpointable_name=item).metadata
  except Exception:  # what names the shapes is damaged too
    return ""
  if stored is None:
    return ""
  have, want = ({jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
                 for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
                for tree in (stored, abstract))
  for name in want | have:
    if want.get(name) != have.get(name):
      return (f"{item} {name} has shape {have.get(name, 'nothing')} there and "
              f"{want.get(name, 'nothing')} here")
  return ""


def _messages(error: BaseException | None) -> str:
  """The messages of an error and of those that caused it."""
  seen = []
  while error is not None:
    seen.append(str(error))
    seen += [str(e) for e in getattr(error, "exceptions", ())]
    error = error.__cause__ or error.__context__
  return "\n".join(seen)


def _is_finished(path: Path) -> bool:
  # The rename makes this true at once; orbax's own test takes any directory for a checkpoint.
  return all((path / name).exists() for name in CONTENTS)


def _looks_like_step(path: Path) -> bool:
  return any((path / name).exists() for name in CONTENTS)


def _is_foreign(path: Path) -> bool:
  return not (path / "position").exists() and not (path / "meta").exists()


def _step_number(path: Path) -> int:
  return int(path.name) if path.name.isdigit() else -1


def _remove(path: Path) -> None:
  """Deletes a step so that a kill half way leaves no finished-looking directory."""
  doomed = path.with_name(f"{path.name}{_UNFINISHED}-deleted")
  os.replace(path, doomed)
  shutil.rmtree(doomed, ignore_errors=True)
