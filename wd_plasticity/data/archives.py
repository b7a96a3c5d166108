"""Compressed files and tar archives that end early, or are damaged, are errors.

The readers of the standard library take much of that for the end: tarfile a header that
is bad, short or missing after the first; lzma and bz2 whatever follows their first stream;
gzip a file without a byte.

A small file may spell a large one, so nothing is held that has no end: files are decompressed
a piece at a time, and lines, whole files and headers have a largest size.
"""

import bz2
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

import zstandard

from wd_plasticity.errors import UserError

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
_ZST_BLOCK = 1024  # zstandard gives all that its input spells, up to 32,000 times as much
_PIECE = 1 << 20  # bytes that the others give at once
LONGEST_LINE = 1 << 28  # bytes
LARGEST_FILE = 1 << 30  # bytes of a file that is read as a whole, decompressed
LARGEST_TABLE = 1 << 32  # bytes of a Parquet file that is compressed or in an archive
_LARGEST_HEADER = 1 << 20  # bytes of a long name or extended header of tar
_HEADS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
          tarfile.GNUTYPE_LONGLINK)


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
    self._make, self._is_zst = _DECOMPRESSORS[compression], compression == ".zst"
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
    """Decompresses a piece; False at the end of the file."""
    # bz2 and lzma keep input of which they have not given all.
    inside = not getattr(self._stream, "needs_input", True)
    block = b"" if inside else self._compressed or self._file.read(_BLOCK)
    self._compressed = b""
    if not block and not inside:
      if self._stream is not None:
        raise EOFError("it ends within its compressed data" if self._begun else "it has no byte")
      return False
    self._begun = True
    if self._stream is None:
      block = block.lstrip(b"\0")  # streams may be padded
      if not block:
        return True
      self._stream = self._make()
    rest = b""
    if self._is_zst:
      block, rest = block[:_ZST_BLOCK], block[_ZST_BLOCK:]
      self._content = memoryview(self._stream.decompress(block))
    else:
      self._content = memoryview(self._stream.decompress(block, _PIECE))
      rest = getattr(self._stream, "unconsumed_tail", b"")  # of zlib
    self._compressed = rest
    if self._stream.eof:
      self._compressed, self._stream = self._stream.unused_data + rest, None
    return True


def lines(f: IO[bytes], shown: str) -> Iterator[bytes]:
  """The lines of a file.

  Raises:
    UserError: a line is longer than `LONGEST_LINE`; `shown` names the file.
  """
  number = 0
  while line := f.readline(LONGEST_LINE + 1):
    number += 1
    if len(line) > LONGEST_LINE:
      raise UserError(f"{shown}, line {number} has more than {LONGEST_LINE:,} bytes; part it, or "
                      "leave it out.")
    yield line


def whole(f: IO[bytes], shown: str, largest: int = LARGEST_FILE) -> bytes:
  """The content of a file that is read at once.

  Raises:
    UserError: it is larger than `largest` bytes; `shown` names the file.
  """
  content = f.read(largest + 1)
  if len(content) > largest:
    raise UserError(f"{shown} has more than {largest:,} bytes, more than is read at once; part "
                    "it, for example into a JSONL file of a document per line.")
  return content


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
  def frombuf(cls, *args) -> tarfile.TarInfo:
    header = super().frombuf(*args)
    if header.type in _HEADS and header.size > _LARGEST_HEADER:  # it is read into memory
      raise tarfile.InvalidHeaderError("a header that has no end")
    return header

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
