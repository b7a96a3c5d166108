"""Parameters of a checkpoint, read one at a time and written piece by piece.

So that a model never has to fit into memory. The arrays are those that orbax keeps (zarr in an
OCDBT store), here reached by TensorStore, which orbax itself uses.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

from wd_plasticity.errors import UserError
from wd_plasticity.interop.transformers_weights import Place, parameter_shapes
from wd_plasticity.training import stored_state
from wd_plasticity.training.checkpoint import MemberCheckpoints, StoredCheckpoint
from wd_plasticity.training.orbax_arrays import orbax_context

PIECE_BYTES = 32 * 2**20  # about what is in memory at once


class ParameterReader:
  """One parameter of a checkpoint, read as rows of the tensors of transformers."""

  def __init__(self, stored: StoredCheckpoint, name: str, shape: tuple[int, ...]):
    """Opens it.

    Args:
      stored: the checkpoint.
      name: 'layers/attention/query/kernel'.
      shape: that it must have.

    Raises:
      UserError: it is not there, damaged or of another shape.
    """
    self._stored, self._name = stored, name
    stored.check_params()
    with self._errors(), orbax_context():
      tree = ocp.metadata(stored.directory, checkpointable_name="params").metadata
      leaf = _leaf(tree, name)
      if tuple(leaf.shape) != shape:
        raise UserError(
            f"the parameter {name} of {stored.directory} has the shape {tuple(leaf.shape)} and its "
            f"configuration wants {shape}; the checkpoint is damaged, take another.")
      chunk = leaf.storage_metadata.chunk_shape if leaf.storage_metadata else shape
      if 4 * math.prod(chunk) <= 2 * PIECE_BYTES < 4 * math.prod(shape):
        self._array = ts.open({"driver": "zarr3", "kvstore": _kvstore(
            (stored.directory / "params").as_uri(), name)}, open=True).result()
      else:  # a chunk is decoded as a whole, so that parts of it would cost as much each
        self._array = self._read_whole(tree, leaf)

  def rows(self, place: Place, start: int, stop: int) -> np.ndarray:
    """Rows start to stop - 1 of a tensor."""
    part = self._array if place.layer is None else self._array[place.layer]
    part = part[..., start:stop] if place.transposed else part[start:stop]
    with self._errors():
      values = part if isinstance(part, np.ndarray) else part.read().result()
    return values.T if place.transposed else values

  def _read_whole(self, tree, leaf) -> np.ndarray:
    wanted = jax.tree.map(lambda _: ocp.PLACEHOLDER, tree)
    *parents, last = self._name.split("/")
    # Says what is wanted, is not written to.
    _leaf(wanted, "/".join(parents))[last] = np.empty(leaf.shape, leaf.dtype)
    return _leaf(ocp.load(self._stored.directory, wanted, checkpointable_name="params"), self._name)

  @contextlib.contextmanager
  def _errors(self):
    try:
      yield
    except (UserError, MemoryError):
      raise
    except Exception as e:  # orbax and TensorStore have no one class of errors
      raise UserError(f"the parameter {self._name} of {self._stored.directory} cannot be read; the "
                      "checkpoint is damaged or incomplete, take another step or restore it."
                      ) from e


class ParameterWriter:
  """Writes a checkpoint whose parameters come in pieces.

  Used as a context: the checkpoint is there once `finish` has returned, and what was
  written without it is deleted.
  """

  def __init__(self, checkpoints: str | os.PathLike, step: int, places: Sequence[Place],
               position: dict, meta: dict):
    """Prepares the checkpoint under another name.

    Args:
      checkpoints: the directory of a member's checkpoints.
      step: of the checkpoint.
      places: the tensors that will be written, all that the model has.
      position, meta: as of `MemberCheckpoints.save`.
    """
    # Clears what a killed import has left, which has the name of a save that never ended.
    member = MemberCheckpoints(checkpoints)
    member.close()
    final = member.directory / str(step)
    self._final = final
    self._temporary = final.with_name(f"{final.name}.orbax-checkpoint-tmp-import")
    shapes = parameter_shapes(places)
    skeleton: dict = {}
    for name in shapes:
      *parents, last = name.split("/")
      branch = skeleton
      for part in parents:
        branch = branch.setdefault(part, {})
      branch[last] = np.zeros(1, np.float32)
    saver = MemberCheckpoints(self._temporary)
    # There is no optimizer, and orbax wants an array.
    saver.save(step, skeleton, {"none": np.zeros(1, np.float32)}, position, meta)
    saver.close()
    base = (self._temporary / str(step) / "params").as_uri()
    chunks = {place.parameter: _chunks(place) for place in places}
    self._arrays = {name: _open(base, name, shape, chunks[name]) for name, shape in shapes.items()}

  def __enter__(self) -> "ParameterWriter":
    return self

  def __exit__(self, *_) -> None:
    self._arrays = {}
    shutil.rmtree(self._temporary, ignore_errors=True)

  def write(self, place: Place, start: int, rows: np.ndarray) -> None:
    """Writes rows of a tensor into its parameter, in float32.

    Args:
      place: of the tensor.
      start: index of the first of these rows; `pieces(place)` has those that are fastest.
      rows: as in the tensor.
    """
    array = self._arrays[place.parameter]
    if place.layer is not None:
      array = array[place.layer]
    stop = start + len(rows)
    rows = np.asarray(rows, np.float32)
    if place.transposed:
      array, rows = array[..., start:stop], rows.T
    else:
      array = array[start:stop]
    array.write(np.ascontiguousarray(rows)).result()

  def finish(self) -> Path:
    """Makes the checkpoint visible; returns its directory."""
    self._arrays = {}
    stored_state.seal(self._temporary / self._final.name)
    if self._final.exists():  # without being a finished checkpoint
      shutil.rmtree(self._final)
    os.replace(self._temporary / self._final.name, self._final)
    with contextlib.suppress(OSError):
      self._temporary.rmdir()
    return self._final


def require_space(folder: Path, num_bytes: int, what: str) -> None:
  """Raises UserError when the disk of `folder` has less than `num_bytes` free."""
  existing = next(p for p in (folder, *folder.parents) if p.exists())
  free = shutil.disk_usage(existing).free
  if free < num_bytes:
    raise UserError(f"{what} needs {num_bytes / 1e9:.2f} GB and the disk of {folder} has "
                    f"{free / 1e9:.2f} GB free; free some or give a folder on another disk.")


def pieces(place: Place) -> Iterator[tuple[int, int]]:
  """(start, stop) of the rows of a tensor that are handled at once."""
  rows = place.shape[0]
  step = max(1, min(rows, PIECE_BYTES // (4 * math.prod(place.shape[1:]))))
  for start in range(0, rows, step):
    yield start, min(start + step, rows)


def _chunks(place: Place) -> list[int]:
  """The chunks in which a parameter is kept: a piece each."""
  _, size = next(pieces(place))
  own = [*place.shape[1:], size] if place.transposed else [size, *place.shape[1:]]
  return own if place.layer is None else [1, *own]


def _open(base: str, name: str, shape: tuple[int, ...], chunks: list[int]) -> ts.TensorStore:
  """A new float32 array in place of the one of that name."""
  return ts.open({
      "driver": "zarr3",
      "kvstore": _kvstore(base, name),
      "metadata": {
          "shape": list(shape), "data_type": "float32",
          "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
          "codecs": [{"name": "bytes", "configuration": {"endian": "little"}},
                     {"name": "zstd", "configuration": {"level": 1}}]},
      "store_data_equal_to_fill_value": True,  # orbax takes a piece that is not there for damage
  }, create=True, delete_existing=True).result()


def _kvstore(base: str, name: str) -> dict:
  """Where orbax keeps an array."""
  return {"driver": "ocdbt", "base": base, "path": name.replace("/", ".") + "/"}


def _leaf(tree, name: str):
  """What stands under a slash-joined name."""
  for part in name.split("/"):
    tree = tree[part]
  return tree
