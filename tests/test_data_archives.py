"""Compressed files and tar archives: what ends early, or goes on after its end, is seen."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile

import pytest
import zstandard

from wd_plasticity.data import archives, sources
from wd_plasticity.errors import UserError

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
            ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
ERRORS = (*archives.BROKEN, OSError)
FIRST = b"".join(b"line %d %s\n" % (i, os.urandom(8).hex().encode()) for i in range(40))
BLOCK = tarfile.BLOCKSIZE


def unpack(content, compression):
  return archives.decompress(io.BytesIO(content), compression).read()


def read(path):
  return list(sources.open_source("files", str(path), "text", "data.train").documents())


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_cut_anywhere_is_seen(compression):
  compress = COMPRESS[compression]
  first, second = compress(FIRST), compress(b"second " * 9)
  assert unpack(first + second, compression) == FIRST + b"second " * 9
  whole = set()
  for n in range(len(first + second) + 1):
    try:
      unpack((first + second)[:n], compression)
      whole.add(n)
    except ERRORS as e:
      assert not isinstance(e, OSError) or e.errno is None
  assert whole == {len(first), len(first + second)}  # between two streams nothing can tell


@pytest.mark.parametrize("compression", COMPRESS)
def test_what_follows_a_stream_is_a_stream_or_zeros(compression):
  compress = COMPRESS[compression]
  assert unpack(compress(FIRST) + bytes(8), compression) == FIRST
  damaged = bytearray(compress(FIRST) + compress(FIRST))
  damaged[len(compress(FIRST)) + 1] ^= 1  # the mark at the beginning of the second stream
  for content in (compress(FIRST) + b"rest", bytes(damaged), bytes(8)):
    with pytest.raises(ERRORS):
      unpack(content, compression)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", [".jsonl", ".txt", ".parquet", ".tar"])
def test_a_compressed_file_without_a_byte_is_cut_off(tmp_path, kind, compression):
  path = tmp_path / f"a{kind}{compression}"
  path.write_bytes(b"")
  with pytest.raises(UserError, match=rf"a\{kind}\{compression} is broken or cut off"):
    read(path)


def test_lines_of_a_large_file_are_those_of_the_library(tmp_path):
  lines = [f'{{"text": "{i} {"x" * (i % 900)}"}}\n' for i in range(3000)]
  (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress("".join(lines).encode()))
  assert read(tmp_path / "a.jsonl.bz2") == [line[10:-3] for line in lines]


def frame(content, window_log, dictionary=None):
  """A zstd frame with one raw block, as RFC 8878 has it."""
  head = struct.pack("<I", 0xFD2FB528) + bytes([0 if dictionary is None else 1,
                                                (window_log - 10) << 3])
  head += b"" if dictionary is None else bytes([dictionary])
  return head + struct.pack("<I", len(content) << 3 | 1)[:3] + content


@pytest.mark.parametrize("window_log", [27, 28, 31])
def test_zst_with_a_long_window(tmp_path, window_log):
  (tmp_path / "a.jsonl.zst").write_bytes(frame(b'{"text": "long"}\n', window_log))
  assert read(tmp_path / "a.jsonl.zst") == ["long"]


def test_zst_that_needs_a_dictionary_is_not_called_broken(tmp_path):
  (tmp_path / "a.txt.zst").write_bytes(frame(b"text", 20, dictionary=7))
  with pytest.raises(UserError, match="cannot be decompressed here .*decompress it first"):
    read(tmp_path / "a.txt.zst")


def tar(names, kind=tarfile.GNU_FORMAT):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w", format=kind) as f:
    for name in names:
      info = tarfile.TarInfo(name)
      info.size = len(name) * 100
      f.addfile(info, io.BytesIO(name.encode() * 100))
  return buffer.getvalue()


def members(content):
  return [m.name for m, f in archives.tar_members(io.BytesIO(content)) if f.read()]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_cut_off_wherever_it_is_cut(kind):
  """Also between members, in a header, in padding: anywhere before the two blocks of zeros."""
  names = ["a.txt", "b.txt", "c" * (150 if kind != tarfile.USTAR_FORMAT else 50) + ".txt"]
  whole = tar(names, kind)
  end = len(whole.rstrip(b"\0"))
  end += -end % BLOCK + 2 * BLOCK
  assert members(whole) == members(whole[:end]) == names
  for n in range(0, end, 64):
    with pytest.raises(tarfile.TarError):
      members(whole[:n])


def test_a_damaged_header_after_the_first_is_seen():
  whole = tar(["a.txt", "b.txt", "c.txt"])
  second = BLOCK * 2
  assert whole[second:second + 5] == b"b.txt"
  for damage in (b"B", bytes(BLOCK), b"x" * BLOCK, bytes(2 * BLOCK)):
    with pytest.raises(tarfile.TarError):
      members(whole[:second] + damage + whole[second + len(damage):])


def test_archives_that_were_joined_are_refused(tmp_path):
  (tmp_path / "a.tar").write_bytes(tar(["a.txt"]) + tar(["b.txt"]))
  with pytest.raises(UserError, match="a.tar is broken or cut off .*archives were joined"):
    read(tmp_path / "a.tar")


def test_a_member_that_ends_early_is_named(tmp_path):
  content = gzip.compress(b'{"text": "x"}\n' * 50)
  info = tarfile.TarInfo("in/b.jsonl.gz")
  info.size = len(content) - 4
  with tarfile.open(tmp_path / "a.tar", "w") as f:
    f.addfile(info, io.BytesIO(content[:-4]))
  with pytest.raises(UserError, match="a.tar!in/b.jsonl.gz is broken or cut off"):
    read(tmp_path / "a.tar")
