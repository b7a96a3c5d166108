"""Small disks that fill up, become read-only, or on which a user loses the permission to write."""

import contextlib
import os
import pathlib
import shutil
import subprocess

NOBODY = 65534
_SIZE = "32m"
_FILLER = "filler"


class Disk:
  """A file system of its own, which only root can mount; for `with`."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def __enter__(self):
    self.folder.mkdir(parents=True)
    made = _mount("-t", "tmpfs", "-o", f"size={_SIZE},mode=0777", "tmpfs", self.folder)
    if made is None or made.returncode:
      raise PermissionError("a small disk can only be mounted by root")
    return self

  def __exit__(self, *_):
    subprocess.run(["umount", "-l", self.folder], check=True)
    self.folder.rmdir()

  def empty(self) -> None:
    for path in self.folder.iterdir():
      shutil.rmtree(path) if path.is_dir() else path.unlink()

  # Faults. Each returns whether it could be brought about.

  def fill(self, left: int = 0) -> bool:
    """Fills the disk but for `left` bytes."""
    block = b"\0" * 4096
    with contextlib.suppress(OSError), open(self.folder / _FILLER, "wb", buffering=0) as f:
      while True:
        f.write(block)
    if left:
      os.truncate(self.folder / _FILLER, (self.folder / _FILLER).stat().st_size - left)
    return True

  def make_read_only(self) -> bool:
    """Fails while a file is open for writing."""
    return not _mount("-o", "remount,ro", self.folder).returncode

  def take_away(self) -> bool:
    """Gives everything to another user, and nobody else may write."""
    self._give(NOBODY, 0o555, 0o444)
    return True

  def mend(self) -> None:
    _mount("-o", "remount,rw", self.folder)
    (self.folder / _FILLER).unlink(missing_ok=True)
    self._give(0, 0o755, 0o644)

  def _give(self, user: int, folder_mode: int, file_mode: int) -> None:
    for path in [self.folder, *self.folder.rglob("*")]:
      os.chown(path, user, user)
      path.chmod(folder_mode if path.is_dir() else file_mode)


FAULTS = {"full": Disk.fill, "60 kB left": lambda disk: disk.fill(60_000),
          "no permission": Disk.take_away, "read-only": Disk.make_read_only}


def _mount(*arguments):
  if not shutil.which("mount") or os.geteuid():
    return None
  return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False)
