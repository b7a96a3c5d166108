"""Programs as processes of their own: logs, progress, stopping in good order.

A program that is started here reports how far it is through a file, writes what it says
to a log, and is asked to stop when this process ends, in whichever way (cli.py).
"""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from wd_plasticity.cli import PARENT_VARIABLE
from wd_plasticity.training.progress import FILE_VARIABLE, read_progress

_SECONDS_TO_STOP = 300.0  # a large checkpoint takes its time


class Program:
  """A program under way.

  Args:
    command: arguments of the Python interpreter.
    log: file to which its output is appended.
    progress: file in which it says how far it is.
    lock: of `ownership.hold`, which the program inherits.
    environment: variables beside those of this process.
  """

  def __init__(self, command: Sequence[str], log: pathlib.Path, progress: pathlib.Path, lock: int,
               environment: Mapping[str, str] | None = None):
    for path in (log, progress):
      path.parent.mkdir(parents=True, exist_ok=True)
    progress.unlink(missing_ok=True)
    self.log, self._progress, self._asked = log, progress, None
    read_end, self._write_end = os.pipe()  # the program ends when this process does
    variables = os.environ | {FILE_VARIABLE: str(progress), PARENT_VARIABLE: str(read_end),
                              "PYTHONUNBUFFERED": "1"} | dict(environment or {})
    try:
      with open(log, "a", encoding="utf-8") as f:
        f.write(f"$ {shlex.join(['python', *command])}\n")
        f.flush()
        self._begin = f.tell()
        self._process = subprocess.Popen(
            [sys.executable, *command], env=variables, stdin=subprocess.DEVNULL, stdout=f,
            stderr=subprocess.STDOUT, pass_fds=(read_end, lock), start_new_session=True)
    except BaseException:
      os.close(self._write_end)
      raise
    finally:
      os.close(read_end)

  def ended(self) -> bool:
    return self._process.poll() is not None

  @property
  def status(self) -> int:
    """The exit status of a program that has ended, as a shell would give it."""
    code = self._process.returncode
    return 128 - code if code < 0 else code

  def ask_to_stop(self) -> None:
    """Has it save its state and end; kills it when that takes minutes. May be called often."""
    if self.ended():
      return
    if self._asked is None:
      self._asked = time.monotonic()
      self._process.send_signal(signal.SIGTERM)
    elif time.monotonic() - self._asked > _SECONDS_TO_STOP:
      self._process.kill()

  def progress(self) -> dict[str, Any] | None:
    """What it says of itself (training/progress.py); None for nothing yet."""
    return read_progress(self._progress)

  def last_words(self) -> str:
    """What it said last: its error, or its last line."""
    lines = self._said()
    said = next((line for line in reversed(lines) if line.startswith("error: ")),
                lines[-1] if lines else f"it ended with status {self.status} and said nothing")
    return said.removeprefix("error: ")

  def warning(self) -> str:
    """What one that has succeeded warns of, such as members that failed; '' for nothing."""
    return next((line.removeprefix("warning: ") for line in reversed(self._said())
                 if line.startswith("warning: ")), "")

  def _said(self) -> list[str]:
    with open(self.log, encoding="utf-8", errors="replace") as f:
      f.seek(self._begin)
      return [line.strip() for line in f if line.strip()]

  def close(self) -> None:
    """Lets go of it; one that still runs is asked to stop."""
    os.close(self._write_end)


def conclude(failed: Sequence[tuple[str, str, os.PathLike]], not_run: Sequence[str],
             warnings: Sequence[tuple[str, str]] = ()) -> None:
  """Says what failed and what was therefore not run; exit status 1 if something did.

  Args:
    failed: name, why, and log.
    not_run: names.
    warnings: name, and what it warns of, of those that succeeded.
  """
  for name, message in warnings:
    print(f"warning: {name}: {message}", file=sys.stderr, flush=True)
  for name, message, log in failed:
    print(f"{name} failed: {message.rstrip('.')}. Its log is {log}.", file=sys.stderr)
  if not_run:
    print(f"not run, because they need it: {', '.join(not_run)}.", file=sys.stderr)
  if failed:
    print("the same command again runs what is left.", file=sys.stderr, flush=True)
    sys.exit(1)


class Stop:
  """Notes SIGTERM and Ctrl-C instead of ending at once; `number` is the signal, or 0."""

  def __enter__(self) -> "Stop":
    self.number = 0
    self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, _) -> None:
    self.number = number
