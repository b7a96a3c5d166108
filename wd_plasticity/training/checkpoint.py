"""Checkpoints of single members: `<member>/checkpoints/<step>/`, written by orbax.

orbax writes a step directory under another name and renames it when all is on disk;
`stored_state.py` says what then makes it count. Saves run in the background. In runs
of several processes every process makes the same calls, and process 0 is the one that
writes checksums and deletes.
"""

import concurrent.futures
import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding
from orbax.checkpoint import v1 as ocp

import wd_plasticity
from wd_plasticity import errors
from wd_plasticity.errors import UserError
from wd_plasticity.files import HeldFolder, check_place
from wd_plasticity.training import distributed, stored_state
from wd_plasticity.training.orbax_arrays import (
    causes,
    first_device,
    load_arrays,
    messages,
    orbax_context,
    placed,
    stored_shapes,
)
from wd_plasticity.training.stored_state import (
    CONTENTS,
    FORMAT,
    FORMAT_VERSION,
    finished_steps,
    read_meta,
)

# What orbax calls a save in progress.
_UNFINISHED = ".orbax-checkpoint-tmp"
# Failures of the system that TensorStore tells in words only.
_IN_WORDS = {os.strerror(n): n for n in (*errors.NO_SPACE, *errors.NOT_WRITABLE, errno.ENOENT,
                                         errno.EIO, errno.ESTALE, errno.ENOTDIR)}

PyTree = Any


class MemberCheckpoints:
  """The checkpoints of one member, kept in one directory, which nothing else writes to.

  Retention: the newest, the newest `keep_latest` of the regular ones and, for good, those at
  `keep_steps`. Regular are multiples of `every`: what a run saved because it was stopped goes
  when it has gone on, so that an interrupted run leaves what an uninterrupted one does.
  """

  def __init__(self, directory: str | os.PathLike, *, keep_latest: int = 1,
               keep_steps: Iterable[int] = (), every: int = 1):
    """Opens the directory, makes it if needed and clears what killed saves left."""
    check_place(directory)
    self.directory = Path(directory).absolute()
    self._keep_latest = max(1, keep_latest)
    self._keep_steps = frozenset(keep_steps)
    self._every = every
    self._saving = None
    self._last_saved = None
    self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
    self._held = None
    if jax.process_index() == 0:
      self.directory.mkdir(parents=True, exist_ok=True)
      self._held = HeldFolder(self.directory)
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
      OSError: a failure of the system, such as a full disk; older checkpoints stay.
      UserError: the directory was moved or deleted, or what was written cannot be read.
    """
    self.wait()
    if self._held:
      self._held.check()
    path = self.directory / str(step)
    if step == self._last_saved or stored_state.is_finished(path):
      return
    if path.exists() and jax.process_index() == 0:
      stored_state.remove(path)
    stamp = {"format": FORMAT, "format_version": FORMAT_VERSION, "checksums": "sha256",
             "code_version": wd_plasticity.__version__, "step": step}
    try:
      with orbax_context():
        saving = ocp.save_checkpointables_async(path, {
            "params": params, "opt_state": opt_state, "position": position,
            "meta": {**meta, **stamp}})
      self._saving = self._background.submit(self._finish, saving, path)
    except Exception as e:
      raise self._save_error(e) from e
    self._last_saved = step

  def _finish(self, saving, path: Path) -> None:
    """What follows when orbax is done: checksums, a look at the result, retention."""
    saving.result()
    if jax.process_index() == 0:
      stored_state.seal(path)
      why = stored_state.why_unfinished(path)
      if why:
        raise UserError(f"the checkpoint {path} was saved, but no reader could open it ({why}); "
                        "look at its disk, then run the same command again.")
      self._prune()

  def wait(self) -> None:
    """Returns when the save in progress counts; raises what went wrong with it."""
    if self._wait():
      distributed.barrier(f"checkpoints in {self.directory} are saved")  # process 0 does the rest

  def close(self) -> None:
    """Waits for this process's part of the save in progress, and lets the directory go."""
    try:
      self._wait()
    finally:
      if self._held:
        self._held.close()

  def _wait(self) -> bool:
    """Waits for this process's part of the save in progress; whether there was one."""
    saving, self._saving = self._saving, None
    if saving is None:
      return False
    try:
      saving.result()
    except Exception as e:
      self._last_saved = None
      raise self._save_error(e) from e
    if self._held:
      self._held.check()
    return True

  def restore(self, step: int, abstract_params: PyTree, abstract_opt_state: PyTree, *,
              verify: bool = True) -> tuple[PyTree, PyTree, dict, dict]:
    """Reads a checkpoint back, laid out as the abstract trees ask.

    Args:
      step: one of `steps()`.
      abstract_params, abstract_opt_state: `jax.ShapeDtypeStruct` leaves, or arrays.
        Their shardings need not be those of the run that saved; a leaf without
        one goes to the first local device.
      verify: compare its files with their checksums first.

    Returns:
      params, opt_state, position, meta.

    Raises:
      UserError: the checkpoint is damaged, of other shapes or of a newer format.
    """
    self.wait()
    path = self.directory / str(step)
    meta = read_meta(path)
    if verify:
      stored_state.verify(path, CONTENTS)
    return (load_arrays(path, "params", placed(abstract_params)),
            load_arrays(path, "opt_state", placed(abstract_opt_state)),
            stored_state.read_item(path, "position"), meta)

  def read_meta(self, step: int) -> dict:
    """The `meta` item of one step; raises UserError like `restore`."""
    return read_meta(self.directory / str(step))

  def _prune(self) -> None:
    """Deletes what retention does not keep."""
    steps = self.steps()
    regular = [s for s in steps if s % self._every == 0 or s in self._keep_steps]
    kept = self._keep_steps.union(regular[-self._keep_latest:], steps[-1:])
    for step in steps:
      if step not in kept:
        stored_state.remove(self.directory / str(step))

  def _clear_unfinished(self) -> None:
    """Deletes what a kill has left of saves and of deletions, and nothing else."""
    for path in self.directory.iterdir():
      if re.match(rf"\d+{re.escape(_UNFINISHED)}", path.name) or (
          path.name.isdigit() and stored_state.is_being_deleted(path)):
        shutil.rmtree(path, ignore_errors=True)

  def _save_error(self, error: Exception) -> Exception:
    """What a failed save means: a failure of the system as OSError, else the error itself."""
    if jax.process_index() == 0:
      if not self._held.is_there():
        self._clear_remade()
        try:
          self._held.check()
        except UserError as e:
          return e
      self._clear_unfinished()  # a full disk gets back what the failed save took
    if isinstance(error, UserError):
      return error
    for e in causes(error):
      if isinstance(e, OSError) and e.errno:
        return OSError(e.errno, os.strerror(e.errno), str(e.filename or self.directory))
    for words, number in _IN_WORDS.items():
      if words in messages(error):
        return OSError(number, words, str(self.directory))
    return error

  def _clear_remade(self) -> None:
    """Deletes what a save has made again of a work directory that is no longer there."""
    with contextlib.suppress(OSError):
      self._clear_unfinished()
      for folder in (self.directory, *self.directory.parents[:3]):
        folder.rmdir()  # only if there is nothing in it


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
    self._checked = False

  def check_params(self) -> None:
    """Compares the files of the parameters with their checksums, at the first call.

    Raises:
      UserError: one is not as it was written.
    """
    if not self._checked:
      stored_state.verify(self.directory, ("params",))
      self._checked = True

  def load_params(self, shardings: PyTree | Sharding | None = None) -> PyTree:
    """Reads the parameters alone: a nested dict of arrays with the dtypes they had.

    Args:
      shardings: one sharding for all, a tree of them like the parameters, or None
        for the first local device.
    """
    self.check_params()
    stored = stored_shapes(self.directory, "params")
    if shardings is None or isinstance(shardings, Sharding):
      one = shardings
      shardings = jax.tree.map(lambda _: one or first_device(), stored)
    abstract = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        stored, shardings)
    return load_arrays(self.directory, "params", abstract)


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
  check_place(path)
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
  if step is None:
    _refuse_damaged(directory, newer_than=steps[-1])
  return StoredCheckpoint(directory / str(steps[-1] if step is None else step))


def _refuse_damaged(directory: Path, newer_than: int) -> None:
  """An earlier checkpoint is not taken in silence for the newest, which is damaged.

  One whose save was killed, or is just ending, may be passed over.

  Raises:
    RefusedCheckpoint: there is a newer one, of which a part is missing.
  """
  for step, path in stored_state.step_directories(directory):
    if step > newer_than and not (stored_state.was_interrupted(path)
                                  or stored_state.is_being_deleted(path)):
      raise stored_state.RefusedCheckpoint(path, stored_state.why_unfinished(path))


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


def _looks_like_step(path: Path) -> bool:
  return any((path / name).exists() for name in CONTENTS)
