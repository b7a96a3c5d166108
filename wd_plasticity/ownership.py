"""The right to change a folder: one program at a time, taken before anything in it is changed.

A work directory has one study or local launcher, a member one pretraining or import. The right
is a lock of the system on `<folder>/.lock`: it ends with the program that holds it, however that
ends. What the file says about its holder is for people. Where the file system has no locks this
is said once, and the program goes on; a mounted bucket has locks of each machine alone.
"""

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wd_plasticity import errors
from wd_plasticity.errors import UserError
from wd_plasticity.files import lock_at_once, open_lock, parse_json

NAME = ".lock"
_SECONDS_TO_END = 60  # of what a program had started that was killed
_SECONDS_OF_A_REQUEUE = 300  # of a job that was started again before it had quite ended
_SECONDS_BETWEEN_TRIES = 0.2


@contextlib.contextmanager
def hold(folder: str | os.PathLike, what: str = "the work directory") -> Iterator[int]:
  """Holds a folder, which is made if need be, for the body of a `with`.

  Args:
    folder: to be changed.
    what: it is, such as 'member wd0.1-seed0'.

  Yields:
    The descriptor of the lock. A program that inherits it holds the folder as well, also when
    this one is killed; a program that this one becomes (exec) does not.

  Raises:
    UserError: another program holds it, or it cannot be written to.
  """
  folder = Path(folder)
  path = folder / NAME
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = open_lock(path)
  except OSError as e:
    raise UserError(f"{errors.describe(e, folder)}.") from e
  try:
    _take(lock, path, what)
    yield lock
    with contextlib.suppress(OSError):  # a full disk
      os.ftruncate(lock, 0)
  finally:
    os.close(lock)


@contextlib.contextmanager
def hold_members(workdir: str | os.PathLike, names: Sequence[str]) -> Iterator[None]:
  """Holds members of a work directory, all or none; raises like `hold`."""
  with contextlib.ExitStack() as stack:
    for name in names:
      stack.enter_context(hold(Path(workdir) / "members" / name, f"member {name}"))
    yield


def _take(lock: int, path: Path, what: str) -> None:
  """Locks, at once or, where a holder is known to be ending, when it has ended."""
  began, told = time.monotonic(), False
  while not lock_at_once(lock, path):
    holder = _holder(path)
    seconds, why = _patience(holder)
    if time.monotonic() - began >= seconds:
      raise UserError(f"{what} is in use: {_described(holder)} holds {path.parent}; wait until it "
                      "has ended and run the same command again, or give another --workdir.")
    if not told:
      print(f"{what} is in use: {why}; waiting for its end", flush=True)
      told = True
    time.sleep(_SECONDS_BETWEEN_TRIES)
  if not _is_at(lock, path):
    raise UserError(f"{path.parent} was moved or deleted just now; run the same command again.")
  _sign(lock)


def _is_at(lock: int, path: Path) -> bool:
  try:
    return os.path.samestat(os.fstat(lock), os.stat(path))
  except OSError:
    return False


def _sign(lock: int) -> None:
  """Notes in the lock who has it."""
  job, restarts = _job()
  about = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "restarts": restarts,
           "since": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")}
  with contextlib.suppress(OSError):  # a full disk: then nobody can be named
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(about).encode(), 0)


def _holder(path: Path) -> Mapping:
  """What the holder has noted; nothing when it has not, or not yet."""
  try:
    about = parse_json(path.read_bytes())
  except (OSError, ValueError):
    return {}
  return about if isinstance(about, dict) else {}


def _described(holder: Mapping) -> str:
  if not holder:
    return "another program"
  return (f"process {holder.get('pid')!r} on {holder.get('host')!r}, since "
          f"{holder.get('since')!r},").replace("'", "")


def _patience(holder: Mapping) -> tuple[float, str]:
  """Seconds to wait for a holder, and why: 0 but for one that is known to be ending."""
  job, restarts = _job()
  before = holder.get("restarts")
  if job and holder.get("job") == job and isinstance(before, int) and before < restarts:
    return _SECONDS_OF_A_REQUEUE, f"job {job} was started again before it had ended"
  if holder.get("host") == socket.gethostname() and not _is_alive(holder.get("pid")):
    return _SECONDS_TO_END, "a program was killed, and what it had started is ending"
  return 0, ""


def _is_alive(pid: object) -> bool:
  if not isinstance(pid, int) or pid <= 0:
    return True
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except (PermissionError, OverflowError):  # of another user
    return True
  # One that has ended may stay on the list of processes until its parent looks at it.
  with contextlib.suppress(OSError):
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1] != [b"Z"]
  return True


def _job() -> tuple[str, int]:
  """The job of SLURM that this is, and how often it was started again; '' outside of one."""
  restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
  return os.environ.get("SLURM_JOB_ID", ""), int(restarts) if restarts.isdigit() else 0
