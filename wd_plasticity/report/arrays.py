"""Arrays of small .npz files, without what makes numpy.load slow on thousands of them."""

import functools
import io
import os
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

_LARGEST = 1 << 31  # bytes of an array


def read_npz(path: str | os.PathLike,
             wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
  """Reads the arrays whose names are `wanted`, as `numpy.load` without pickles does.

  Raises:
    OSError, ValueError: it cannot be read.
  """
  made = {}
  try:
    with open(path, "rb") as f:
      content = io.BytesIO(f.read())
    with zipfile.ZipFile(content) as archive:
      for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if wanted(name):
          if info.file_size > _LARGEST:
            raise ValueError(f"{info.filename} would take {info.file_size:,} bytes")
          made[name] = _array(archive.read(info))
  except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError) as e:
    raise ValueError(f"{path} is not a readable .npz file") from e
  return made


def _array(content: bytes) -> np.ndarray:
  # Not numpy's own reader, which makes room for what the header says before it looks.
  if content[:6] != b"\x93NUMPY" or content[6:7] not in (b"\1", b"\2", b"\3"):
    raise ValueError("it is no array of NumPy")
  width = 2 if content[6] == 1 else 4  # bytes of the length of the header
  start = 8 + width + int.from_bytes(content[8:8 + width], "little")
  dtype, shape, is_fortran = _header(content[:start])
  array = np.frombuffer(content, dtype, offset=start)
  return array.reshape(shape, order="F" if is_fortran else "C")


@functools.lru_cache(maxsize=4096)
def _header(content: bytes) -> tuple[np.dtype, tuple, bool]:
  """dtype, shape and order; alike in most files, and slow to read."""
  stream = io.BytesIO(content[8:])
  read = (np.lib.format.read_array_header_1_0 if content[6] == 1
          else np.lib.format.read_array_header_2_0)  # 3 differs in names of fields alone
  shape, is_fortran, dtype = read(stream)
  if dtype.hasobject:
    raise ValueError("the array holds objects")
  return dtype, shape, is_fortran
