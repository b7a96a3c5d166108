"""Runs the steps of a study, each as a process of its own with a log."""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from wd_plasticity.cli import PARENT_VARIABLE
from wd_plasticity.errors import Interrupted, UserError
from wd_plasticity.study.display import Display
from wd_plasticity.study.plan import Step
from wd_plasticity.study.records import DONE, FAILED, WAITING, Record, Records
from wd_plasticity.training.progress import FILE_VARIABLE

_POLL_SECONDS = 0.2
_SECONDS_TO_STOP = 300.0  # a large checkpoint takes its time


def run(steps: Sequence[Step], records: Records, display: Display) -> list[Record]:
  """Runs what does not hold any more; a step that fails stops only those that need it.

  Returns:
    The record of every step.

  Raises:
    Interrupted: SIGTERM or Ctrl-C, after the running step has saved its state.
  """
  made: dict[str, Record] = {}
  with _only_one(records.workdir) as lock, _Stop() as stop:
    for step in steps:
      record = records.holds(step)
      if record is not None:
        display.skip(step.name, record.seconds)
      elif missing := _missing(step, made):
        record = Record(step.name, step.shown(), WAITING, "", {}, 0.0, 0.0, "",
                        f"needs {' and '.join(missing)}")
        display.end(step.name, WAITING, record.message)
      else:
        display.start(step.name)
        record = _run_step(step, records, display, stop, lock)
        display.end(step.name, record.state, record.message)
      made[step.name] = record
      if record.state != DONE or records.read(step.name) != record:
        records.write(record)
  return list(made.values())


def _missing(step: Step, made: dict[str, Record]) -> list[str]:
  """Steps without which this one cannot be run."""
  failed = [name for name in step.after if made[name].state != DONE]
  return [] if step.any_of and len(failed) < len(step.after) else failed


def _run_step(step: Step, records: Records, display: Display, stop: "_Stop", lock: int) -> Record:
  folder = records.workdir / "study"
  log, progress = folder / "logs" / f"{step.name}.log", folder / "progress" / f"{step.name}.json"
  for path in (log, progress):
    path.parent.mkdir(parents=True, exist_ok=True)
  progress.unlink(missing_ok=True)
  inputs, begun = records.inputs(step), time.monotonic()
  read_end, write_end = os.pipe()  # the step ends when this process does, see cli.py
  environment = os.environ | {FILE_VARIABLE: str(progress), PARENT_VARIABLE: str(read_end),
                              "PYTHONUNBUFFERED": "1"}
  with open(log, "a", encoding="utf-8") as f:
    f.write(f"$ {step.shown()}\n")
    f.flush()
    begin = f.tell()
    process = subprocess.Popen(
        [sys.executable, *step.command], env=environment, stdin=subprocess.DEVNULL, stdout=f,
        stderr=subprocess.STDOUT, pass_fds=(read_end, lock), start_new_session=True)
    os.close(read_end)
    try:
      _wait(process, stop, lambda: display.update(step.name, _read(progress)))
    finally:
      os.close(write_end)
  if stop.number:
    raise Interrupted(f"stopped by {signal.Signals(stop.number).name} in {step.name}; what is done "
                      "is kept, run the same command again to go on.")
  state = DONE if process.returncode == 0 else FAILED
  message = "" if state == DONE else _last_words(log, begin, process.returncode)
  return Record(step.name, step.shown(), state, inputs, records.outputs(step),
                round(time.monotonic() - begun, 1), time.time(),
                log.relative_to(records.workdir).as_posix(), message)


def _wait(process: subprocess.Popen, stop: "_Stop", report) -> None:
  """Waits for a step to end; asks it to, when this process is asked to."""
  asked = None
  while process.poll() is None:
    if stop.number and asked is None:
      process.send_signal(signal.SIGTERM)
      asked = time.monotonic()
    if asked is not None and time.monotonic() - asked > _SECONDS_TO_STOP:
      process.kill()
    report()
    time.sleep(_POLL_SECONDS)
  report()


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None


def _last_words(log: pathlib.Path, begin: int, code: int) -> str:
  """What a failed step said last: its error, or its last line."""
  with open(log, encoding="utf-8", errors="replace") as f:
    f.seek(begin)
    lines = [line.strip() for line in f if line.strip()]
  said = next((line for line in reversed(lines) if line.startswith("error: ")),
              lines[-1] if lines else f"it ended with status {code} and said nothing")
  return said.removeprefix("error: ")


@contextlib.contextmanager
def _only_one(workdir: pathlib.Path) -> Iterator[int]:
  """Holds the work directory for this study and the steps it starts.

  A step inherits the lock: should this process be killed, it is held until its step,
  which notices, has ended as well.
  """
  path = workdir / "study" / "lock"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  except OSError as e:
    raise UserError(f"--workdir={workdir} cannot be written to ({e.strerror}); give a folder that "
                    "can.") from e
  try:
    for waited in range(61):
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if waited == 0:
          print("a study is running in this work directory; waiting a minute for its step to end",
                flush=True)
        time.sleep(1)
    else:
      raise UserError(f"another study is running in {workdir}; wait for it, or give another "
                      "--workdir.")
    yield lock
  finally:
    os.close(lock)


class _Stop:
  """Notes SIGTERM and Ctrl-C instead of ending at once."""

  def __enter__(self) -> "_Stop":
    self.number = 0
    self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, _) -> None:
    self.number = number
