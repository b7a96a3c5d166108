"""Reads a model directory of transformers: config.json and safetensors files.

Pickle files (pytorch_model.bin) are never read: they can run any code.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  importing it teaches numpy the name bfloat16
import numpy as np
import safetensors

from wd_plasticity.errors import UserError
from wd_plasticity.files import parse_json

ARCHITECTURES = ("LlamaForCausalLM", "Olmo2ForCausalLM", "LlamaForSequenceClassification")
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # safetensors' name to numpy's
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"
_ADAPTER = "adapter_config.json"


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
    path = self._files[name].path
    with _reading(path), _open(path) as file:
      return file.get_tensor(name)

  def rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """A part of a tensor: its indices start to stop - 1 on the first axis."""
    path = self._files[name].path
    with _reading(path), _open(path) as file:
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
    path: the directory, with config.json and model.safetensors, or several files
      model-00001-of-00003.safetensors and the index that names them, which is not needed
      where all are there.

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
  if (path / _ADAPTER).exists():
    raise UserError(f"{path} holds an adapter ({_ADAPTER}), which is not read here; merge it into "
                    "its model, as merge_and_unload() of peft does, and save that.")
  fields = read_json(path / "config.json")
  named = fields.get("architectures")
  architecture = named[0] if isinstance(named, list) and named else None
  if architecture not in ARCHITECTURES:
    raise UserError(f"{path} holds the architecture {architecture or named}, which is not known "
                    f"here; it can be {', '.join(ARCHITECTURES)}, in a list.")
  files = _files(path)
  for name, stored in files.items():
    if stored.dtype in DTYPES or is_buffer(name):
      continue
    what = f"The tensor {name} in {path} is stored as {stored.dtype}"
    if stored.dtype == "F64":
      raise UserError(f"{what}, which the float32 of a checkpoint does not hold; save the model in "
                      "one of float32, bfloat16 and float16.")
    raise UserError(f"{what}; only {', '.join(DTYPES)} are read, so save the model unquantized, or "
                    "without it if it is no weight.")
  return fields, Tensors(files)


def is_buffer(name: str) -> bool:
  """Whether a tensor is a table that transformers computes itself and does not read."""
  return name.endswith("rotary_emb.inv_freq")


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object from a file of a model directory.

  Raises:
    UserError: it is missing or not a JSON object.
  """
  try:
    value = parse_json(path.read_bytes())
  except FileNotFoundError:
    raise UserError(f"{path.parent} has no {path.name}; give a directory that transformers' "
                    "save_pretrained has written.") from None
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror}); copy it again.") from e
  except ValueError as e:
    raise UserError(f"{path} is not JSON that can be read (it {e}); copy it again.") from e
  if not isinstance(value, dict):
    raise UserError(f"{path} does not hold a JSON object; copy it again.")
  return value


def _open(path: Path):
  """An open safetensors file, whose header fits its size."""
  with _reading(path):
    return safetensors.safe_open(path, framework="np")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
  """Whatever the library finds wrong with a file, or cannot hold, as one sentence."""
  try:
    yield
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror or e}); copy it again.") from e
  except (safetensors.SafetensorError, ValueError, TypeError, OverflowError) as e:
    raise UserError(f"{path} is damaged or cut short ({e}); copy it again.") from e


def _headers(path: Path) -> dict[str, Stored]:
  """What a safetensors file holds."""
  with _reading(path), _open(path) as file:
    found = {}
    for name in file.keys():  # noqa: SIM118  not a dict
      part = file.get_slice(name)
      found[name] = Stored(path, part.get_dtype(), tuple(part.get_shape()))
  return found


def _files(path: Path) -> dict[str, Stored]:
  """What the safetensors files of a directory hold."""
  if (path / _SINGLE).exists():
    return _headers(path / _SINGLE)
  if (path / _INDEX).exists():
    return _indexed(path)
  found = sorted(p.name for p in path.glob(_SHARDS))
  if found and found == [f"model-{i + 1:05}-of-{len(found):05}.safetensors"
                         for i in range(len(found))]:
    return _merged(path, {shard: _headers(path / shard) for shard in found})
  if found:
    raise UserError(f"{path} has no {_INDEX} and not every file of {_SHARDS}, but "
                    f"{', '.join(found[:3])}; copy it again.")
  if any(path.glob("pytorch_model*.bin*")):
    raise UserError(
        f"{path} has only pickle files (pytorch_model.bin), which can run any code and are not "
        "read here; load it with transformers where you trust it and write it again as "
        "safetensors by save_pretrained(..., safe_serialization=True).")
  raise UserError(f"{path} has neither {_SINGLE} nor {_INDEX}; give a directory that transformers' "
                  "save_pretrained has written.")


def _indexed(path: Path) -> dict[str, Stored]:
  """What the files of a model in several hold, by its index."""
  places = read_json(path / _INDEX).get("weight_map")
  if not (isinstance(places, dict) and places and
          all(isinstance(shard, str) for shard in places.values())):
    raise UserError(f"{path / _INDEX} names no tensors; copy it again.")
  shards = {}
  for shard in sorted(set(places.values())):
    if os.path.basename(shard) != shard or shard in ("", ".", ".."):
      raise UserError(f"{path / _INDEX} names {shard}, which is outside of its directory; "
                      "get the model from another place.")
    if not (path / shard).exists():
      raise UserError(f"{path} lacks {shard}, one of the {len(set(places.values()))} files that "
                      f"{_INDEX} names; copy it again.")
    shards[shard] = _headers(path / shard)
  for name, shard in places.items():
    if name not in shards[shard]:
      raise UserError(f"{path / shard} lacks the tensor {name} that {_INDEX} places there; copy "
                      "both again.")
  return _merged(path, shards)


def _merged(path: Path, shards: Mapping[str, Mapping[str, Stored]]) -> dict[str, Stored]:
  """All tensors of all files, as transformers reads them: also those that no index names."""
  files: dict[str, Stored] = {}
  for shard, held in shards.items():
    for name, stored in held.items():
      if name in files:
        raise UserError(f"The tensor {name} stands in {files[name].path.name} and in {shard} of "
                        f"{path}, so it is not clear which is the model's; copy it again.")
      files[name] = stored
  return files
