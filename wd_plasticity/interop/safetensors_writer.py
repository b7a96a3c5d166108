"""Safetensors files of a model, written row by row: nothing is kept in memory.

The format (github.com/huggingface/safetensors): the length of the header as a little-endian
uint64, the header in JSON with name, dtype, shape and place of each tensor, then their bytes.
The library itself writes a file from tensors that are all in memory.
"""

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401  importing it teaches numpy the name bfloat16
import numpy as np

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_ALIGNMENT = 8  # of the first tensor, in bytes


def num_bytes(shape: Sequence[int], dtype: str) -> int:
  """Bytes of a tensor."""
  return math.prod(shape) * np.dtype(dtype).itemsize


class ShardedWriter:
  """Writes model.safetensors, or several files and their index.

  Used as a context, at the end of which all rows must have been written.
  """

  def __init__(self, directory: Path, tensors: Mapping[str, tuple[tuple[int, ...], str]],
               shard_bytes: int):
    """Makes the files in their full size.

    Args:
      directory: where they go.
      tensors: names to shape and dtype, in the order in which they fill the files.
      shard_bytes: a file has no more, but for a tensor that is larger by itself.
    """
    self._tensors, self._files, self._offsets = dict(tensors), {}, {}
    shards = _shards(tensors, shard_bytes)
    self._file_of = {}
    for i, names in enumerate(shards):
      file = "model.safetensors" if len(shards) == 1 else (
          f"model-{i + 1:05}-of-{len(shards):05}.safetensors")
      self._file_of |= dict.fromkeys(names, file)
      self._files[file] = open(directory / file, "wb")  # noqa: SIM115  closed by __exit__
      self._start(self._files[file], names)
    if len(shards) > 1:
      index = {"metadata": {"total_parameters": sum(math.prod(s) for s, _ in tensors.values()),
                            "total_size": sum(num_bytes(*t) for t in tensors.values())},
               "weight_map": dict(sorted(self._file_of.items()))}
      (directory / "model.safetensors.index.json").write_text(
          json.dumps(index, indent=2) + "\n", encoding="utf-8")

  def __enter__(self) -> "ShardedWriter":
    return self

  def __exit__(self, error, *_) -> None:
    for file in self._files.values():
      if error is None:
        file.flush()
        os.fsync(file.fileno())
      file.close()

  def write(self, name: str, start: int, rows: np.ndarray) -> None:
    """Writes rows of a tensor, from the one with this index on, in the tensor's dtype."""
    shape, dtype = self._tensors[name]
    file = self._files[self._file_of[name]]
    file.seek(self._offsets[name] + start * num_bytes(shape[1:], dtype))
    file.write(np.ascontiguousarray(rows, dtype).view(np.uint8).data)

  def _start(self, file, names: Sequence[str]) -> None:
    """The header, and where each tensor begins."""
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    # As the library orders them: aligned as long as wide numbers come first.
    for name in sorted(names, key=lambda n: (-np.dtype(self._tensors[n][1]).itemsize, n)):
      shape, dtype = self._tensors[name]
      begin, end = end, end + num_bytes(shape, dtype)
      header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
      self._offsets[name] = begin
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
      self._offsets[name] += 8 + len(text)
    file.truncate(8 + len(text) + end)


def _shards(tensors: Mapping[str, tuple], shard_bytes: int) -> list[list[str]]:
  """Names by file, in order, each file as full as it may be."""
  shards, size = [[]], 0
  for name, tensor in tensors.items():
    own = num_bytes(*tensor)
    if shards[-1] and size + own > shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += own
  return shards
