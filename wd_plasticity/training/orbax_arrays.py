"""Arrays of a checkpoint, through orbax: its settings, reading, and what its errors mean."""

import logging
import os
import pathlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from wd_plasticity import errors
from wd_plasticity.errors import UserError
from wd_plasticity.training.stored_state import RefusedCheckpoint

PyTree = Any


def _is_not_orbax(record: logging.LogRecord) -> bool:
  return "orbax" not in record.pathname and "orbax" not in record.getMessage()


# What orbax logs about a failure it also raises, and its tracebacks would bury the one
# sentence that is made of it.
for _name in ("absl", "asyncio"):
  logging.getLogger(_name).addFilter(_is_not_orbax)


class _LiteralPath(type(epath.Path("/"))):
  """A path whose own characters are no pattern: orbax finds files by `glob` below it."""

  def glob(self, pattern: str) -> Iterator["_LiteralPath"]:
    for path in pathlib.Path(os.fspath(self)).glob(pattern):
      yield type(self)(path)


def orbax_context() -> ocp.Context:
  """Settings for every call of orbax.

  Position and meta are JSON files, not trees of arrays; a save is made atomic by a rename,
  whatever a version of orbax would choose.
  """
  context = ocp.Context()
  registry = ocp.handlers.local_registry()
  for name in ("position", "meta"):
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
  context.checkpointables.registry = registry
  context.atomicity.mode = ocp.options.AtomicityMode.ATOMIC_RENAME
  context.file.path_class = _LiteralPath
  return context


def first_device() -> Sharding:
  return SingleDeviceSharding(jax.local_devices()[0])


def placed(abstract: PyTree) -> PyTree:
  """Gives every leaf a sharding: without one orbax takes the saving run's devices."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first_device()), abstract)


def load_arrays(directory: Path, item: str, abstract: PyTree) -> PyTree:
  """Reads one item of arrays. Items of one call would hide each other's errors."""
  try:
    with orbax_context():
      return ocp.load(directory, abstract, checkpointable_name=item)
  except Exception as e:
    raise _load_error(directory, e, item, abstract) from e


def stored_shapes(directory: Path, item: str) -> PyTree:
  """The tree of an item of arrays, with shapes and dtypes for leaves."""
  try:
    with orbax_context():
      return ocp.metadata(directory, checkpointable_name=item).metadata
  except Exception as e:
    raise _load_error(directory, e, item) from e


def _load_error(directory: Path, error: Exception, item: str,
                abstract: PyTree | None = None) -> Exception:
  """What a failed read means to the user: out of memory, other shapes, or damage."""
  if isinstance(error, UserError) or errors.is_out_of_memory(error):
    return error
  different = _first_difference(directory, item, abstract)
  if different:
    return UserError(f"the checkpoint {directory} does not fit this configuration: {different}; "
                     "use the configuration it was trained with or another --workdir.")
  return RefusedCheckpoint(directory, f"{item} cannot be read")


def _first_difference(directory: Path, item: str, abstract: PyTree | None) -> str:
  """The first array whose stored shape is not the wanted one; '' when none can be told."""
  if abstract is None:
    return ""
  try:
    stored = stored_shapes(directory, item)
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


def causes(error: BaseException | None) -> Iterator[BaseException]:
  """An error and those that caused it."""
  while error is not None:
    yield error
    yield from getattr(error, "exceptions", ())
    error = error.__cause__ or error.__context__


def messages(error: BaseException) -> str:
  return "\n".join(str(e) for e in causes(error))
