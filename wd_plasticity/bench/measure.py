"""Timing of training steps in processes of their own, in rounds that take turns.

A worker is a process that builds one training step, says that it is ready, and then runs
as many steps as it is asked for. Taking turns lets a change in the machine's load fall on
all competitors alike. Parent and worker exchange JSON lines.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

from wd_plasticity.errors import UserError
from wd_plasticity.models.config import PRESETS

WARMUP_STEPS = 2


def check_size(family: str, size: str) -> None:
  """Refuses a --size that the family does not have."""
  if size not in PRESETS[family]:
    raise UserError(f"--size={size} is not a size of {family}; known are "
                    f"{', '.join(PRESETS[family])}.")


class Worker:
  """One competitor. Use as a context manager; leaving it ends the process.

  Attributes:
    name: for the table.
    seconds: time of each step so far, without the warm-up.
    info: what the worker said when it was ready.
  """

  def __init__(self, name: str, module: str, spec: dict, environment: dict | None = None):
    """Starts the worker and waits until its step is compiled and warm.

    Args:
      name: for the table.
      module: what to run with `python -m`; it calls `serve`.
      spec: its argument, JSON-able.
      environment: variables to set beside the parent's.

    Raises:
      UserError: the worker ended before it was ready.
    """
    self.name, self.seconds = name, []
    self._log = tempfile.TemporaryFile("w+")
    self._process = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(spec)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=self._log, text=True, env=os.environ | (environment or {}))
    self.info = self._receive()

  def run(self, steps: int):
    self.seconds += self._ask(steps)["seconds"]

  def peak_memory(self) -> int:
    """Most bytes that the worker has held so far (of the device, where it is not a CPU)."""
    return self._ask(0)["peak_memory"]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.stdin.close()
    try:
      self._process.wait(timeout=20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()
    self._log.close()

  def _ask(self, steps):
    self._process.stdin.write(f"{steps}\n")
    self._process.stdin.flush()
    return self._receive()

  def _receive(self) -> dict:
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    self._process.wait()
    self._log.seek(0)
    lines = self._log.read().strip().splitlines() or ["it said nothing"]
    raise UserError(f"the benchmark process of {self.name} ended with status "
                    f"{self._process.returncode}: {lines[-1]}")


def serve(build: Callable[[dict], tuple[Callable[[], object], dict, Callable[[], int]]]):
  """The main function of a worker.

  Args:
    build: from the spec to (a function that makes one step and waits for it, what to tell
      the parent, a function that gives the peak memory in bytes).
  """
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print must not stand among the answers
  def answer(value):
    answers.write(json.dumps(value) + "\n")
    answers.flush()
  step, info, peak_memory = build(json.loads(sys.argv[1]))
  for _ in range(WARMUP_STEPS):
    step()
  answer(info)
  for line in sys.stdin:
    seconds = []
    for _ in range(int(line)):
      begin = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - begin)
    answer({"seconds": seconds, "peak_memory": peak_memory()})


def take_turns(workers: Sequence[Worker], steps: int, rounds: int):
  """Runs `steps` steps of every worker, `rounds` times over."""
  for _ in range(rounds):
    for worker in workers:
      worker.run(steps)


def resident_peak() -> int:
  """Most bytes of memory that this process has held."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def spread(seconds: Sequence[float]) -> str:
  """Median, least and largest in milliseconds."""
  ms = np.asarray(seconds) * 1e3
  return f"{np.median(ms):.0f} [{ms.min():.0f}..{ms.max():.0f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Columns with two spaces between; all but the first to the right."""
  cells = [tuple(header), *map(tuple, rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
  lines = ("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                     for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
           for row in cells)
  return "\n".join(line.rstrip() for line in lines)
