"""Compressed files and tar archives that end early, or are damaged, are errors.

The readers of the standard library take much of that for the end: tarfile a header that
is bad, short or missing after the first; lzma and bz2 whatever follows their first stream;
gzip a file without a byte.
"""

import bz2
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

import zstandard

# By extension: makes what decompresses one stream.
_DECOMPRESSORS = {
    ".gz": lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    # The largest window there is, of `zstd --ultra --long=31`: memory is taken as it is used.
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
}
COMPRESSIONS = tuple(_DECOMPRESSORS)
BROKEN = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, tarfile.TarError)
_BLOCK = 16384  # compressed bytes that are read at once


def decompress(f: IO[bytes], compression: str) -> IO[bytes]:
  """The content of a compressed file, of one stream or of several joined.

  Args:
    f: the file.
    compression: one of `COMPRESSIONS`.

  Raises, when read:
    One of `BROKEN` (bz2: an OSError without a number): the file is empty, damaged, ends
    within a stream, or is followed by something else than streams and zeros.
  """
  return io.BufferedReader(_Decompressed(f, compression), 4 * _BLOCK)


class _Decompressed(io.RawIOBase):

  def __init__(self, f: IO[bytes], compression: str):
    self._file = f
    self._make = _DECOMPRESSORS[compression]
    self._stream = self._make()  # None between two streams
    self._begun = False  # whether a byte was read
    self._compressed = b""  # what the last stream has left over
    self._content = memoryview(b"")  # decompressed and not yet given

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._content and self._advance():
      pass
    n = min(len(buffer), len(self._content))
    buffer[:n] = self._content[:n]
    self._content = self._content[n:]
    return n

  def _advance(self) -> bool:
    """Decompresses a block; False at the end of the file."""
    block = self._compressed or self._file.read(_BLOCK)
    self._compressed = b""
    if not block:
      if self._stream is not None:
        raise EOFError("it ends within its compressed data" if self._begun else "it has no byte")
      return False
    self._begun = True
    if self._stream is None:
      block = block.lstrip(b"\0")  # streams may be padded
      if not block:
        return True
      self._stream = self._make()
    self._content = memoryview(self._stream.decompress(block))
    if self._stream.eof:
      self._compressed, self._stream = self._stream.unused_data, None
    return True


def tar_members(f: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
  """The regular files of a tar archive, in its order; each is to be read before the next.

  Raises:
    tarfile.TarError: the archive is damaged, ends without the two blocks of zeros that mark
      its end, or goes on after them.
  """
  with tarfile.open(fileobj=f, mode="r|", tarinfo=_Header) as tar:
    for member in tar:
      if member.isfile():
        yield member, tar.extractfile(member)


class _Header(tarfile.TarInfo):
  """A header of a member; tarfile asks it for the next, and ends at any that is not one."""

  @classmethod
  def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
    try:
      return super().fromtarfile(tar)
    except tarfile.EOFHeaderError:  # a block of zeros
      rest = tar.fileobj.read(tarfile.BLOCKSIZE)
      if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without the mark of its end") from None
      while rest:
        if rest.strip(b"\0"):
          raise tarfile.ReadError("it goes on after a block of zeros that marks the end: a member "
                                  "is damaged, or archives were joined") from None
        rest = tar.fileobj.read(tarfile.RECORDSIZE)
      raise
    except tarfile.HeaderError as e:
      raise tarfile.ReadError(f"{e} at byte {tar.offset}") from None
    except (ValueError, OverflowError) as e:  # numbers of an extended header
      raise tarfile.ReadError(f"bad header at byte {tar.offset}: {e}") from None
