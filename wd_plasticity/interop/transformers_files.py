"""Reads a model directory of transformers: config.json and safetensors files.

Pickle files (pytorch_model.bin) are never read: they can run any code.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  importing it teaches numpy the name bfloat16
import numpy as np
import safetensors

from wd_plasticity.errors import UserError

ARCHITECTURES = ("LlamaForCausalLM", "Olmo2ForCausalLM", "LlamaForSequenceClassification")
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # safetensors' name to numpy's
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in a file: which one, its dtype ('BF16') and its shape."""

  path: Path
  dtype: str
  shape: tuple[int, ...]


class Tensors(Mapping):
  """Names to arrays of safetensors files; a tensor is read when it is asked for.

  Arrays have the dtype of the file (bfloat16 is ml_dtypes'); nothing is kept. A file is
  opened anew for every reading: it is mapped into memory, and what was read of a mapping
  stays there as long as it is open.
  """

  def __init__(self, files: Mapping[str, Stored]):
    self._files = files

  def __getitem__(self, name: str) -> np.ndarray:
    with _open(self._files[name].path) as file:
      return file.get_tensor(name)

  def rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """A part of a tensor: its indices start to stop - 1 on the first axis."""
    with _open(self._files[name].path) as file:
      return file.get_slice(name)[start:stop]

  def stored(self, name: str) -> Stored:
    """What the header of the file says of a tensor."""
    return self._files[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._files)

  def __len__(self) -> int:
    return len(self._files)


def read_directory(path: str | os.PathLike) -> tuple[dict[str, Any], Tensors]:
  """A model that transformers' `save_pretrained` has written.

  Args:
    path: the directory, with config.json and model.safetensors, or
      model.safetensors.index.json and the files it names.

  Returns:
    The fields of config.json, and the tensors by transformers' names. All files are checked
    against their headers; the numbers are read later, one tensor at a time.

  Raises:
    UserError: a file is missing, damaged or of another format, or the architecture is not
      one of `ARCHITECTURES`.
  """
  path = Path(path)
  if not path.is_dir():
    raise UserError(f"There is no directory {path}; give one that transformers' "
                    "save_pretrained has written.")
  fields = read_json(path / "config.json")
  architecture = (fields.get("architectures") or [None])[0]
  if architecture not in ARCHITECTURES:
    raise UserError(f"{path} holds the architecture {architecture}, which is not known here; it "
                    f"can be {', '.join(ARCHITECTURES)}.")
  if (path / _SINGLE).exists():
    files = _headers(path / _SINGLE)
  elif (path / _INDEX).exists():
    files = _open_shards(path)
  elif any(path.glob("pytorch_model*.bin*")):
    raise UserError(
        f"{path} has only pickle files (pytorch_model.bin), which can run any code and are not "
        "read here; load it with transformers where you trust it and write it again by "
        "save_pretrained(..., safe_serialization=True).")
  else:
    raise UserError(f"{path} has neither {_SINGLE} nor {_INDEX}.")
  for name, stored in files.items():
    if stored.dtype not in DTYPES:
      raise UserError(f"The tensor {name} in {path} is stored as {stored.dtype}; only "
                      f"{', '.join(DTYPES)} are read, so save the model unquantized.")
  return fields, Tensors(files)


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object from a file of a model directory.

  Raises:
    UserError: it is missing or not a JSON object.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(f"{path.parent} has no {path.name}; give a directory that transformers' "
                    "save_pretrained has written.") from None
  except ValueError as e:
    raise UserError(f"{path} is not JSON ({e}); copy it again.") from e
  if not isinstance(value, dict):
    raise UserError(f"{path} does not hold a JSON object; copy it again.")
  return value


def _open(path: Path):
  """An open safetensors file, whose header fits its size."""
  try:
    return safetensors.safe_open(path, framework="np")
  except (safetensors.SafetensorError, OSError) as e:
    raise UserError(f"{path} is damaged or cut short ({e}); copy it again.") from e


def _headers(path: Path) -> dict[str, Stored]:
  """What a safetensors file holds."""
  with _open(path) as file:
    found = {}
    for name in file.keys():  # noqa: SIM118  not a dict
      part = file.get_slice(name)
      found[name] = Stored(path, part.get_dtype(), tuple(part.get_shape()))
  return found


def _open_shards(path: Path) -> dict[str, Stored]:
  """What the files of a model in several hold, by its index."""
  places = read_json(path / _INDEX).get("weight_map")
  if not (isinstance(places, dict) and places and
          all(isinstance(shard, str) for shard in places.values())):
    raise UserError(f"{path / _INDEX} names no tensors; copy it again.")
  shards = {}
  for shard in sorted(set(places.values())):
    if os.path.basename(shard) != shard:
      raise UserError(f"{path / _INDEX} names {shard}, which is outside of its directory.")
    if not (path / shard).exists():
      raise UserError(f"{path} lacks {shard}, one of the {len(set(places.values()))} files that "
                      f"{_INDEX} names; copy it again.")
    shards[shard] = _headers(path / shard)
  for shard, held in shards.items():
    for name in (name for name, place in places.items() if place == shard and name not in held):
      raise UserError(f"{path / shard} lacks the tensor {name} that {_INDEX} places there; copy "
                      "both again.")
  return {name: shards[shard][name] for name, shard in places.items()}
