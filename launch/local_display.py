"""The table of jobs that run on this machine."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.text import Text

from launch.jobs import Job
from wd_plasticity.console import Console, Table, text
from wd_plasticity.study.display import LiveTable
from wd_plasticity.training.progress import format_seconds

RUNNING, WAITING, DONE, FAILED, NOT_RUN = "running", "waiting", "done", "failed", "not run"
_STYLES = {DONE: "green", FAILED: "bold red", NOT_RUN: "yellow", RUNNING: "bold", WAITING: "dim"}
_ORDER = (RUNNING, FAILED, WAITING, NOT_RUN, DONE)  # what is left out first comes last
_SECONDS_BETWEEN_LINES = 30.0


class Display(LiveTable):
  """Shows every job: members, devices, state, progress, time left, log.

  Args:
    jobs: in their order.
    num_groups: jobs that run at the same time.
    console: standard output by default; it decides between a live table and lines.
    clock: seconds that never go back.
  """

  def __init__(self, jobs: Sequence[Job], num_groups: int, console: Console | None = None,
               clock: Callable[[], float] = time.monotonic):
    self._jobs = {j.name: j for j in jobs}
    self._state = dict.fromkeys(self._jobs, WAITING)
    self._note = dict.fromkeys(self._jobs, "")
    self._place = dict.fromkeys(self._jobs, "")
    self._progress: dict[str, dict[str, Any]] = {}
    self._begun: dict[str, float] = {}
    self._seconds: dict[str, float] = {}
    self._num_groups = num_groups
    super().__init__(console)
    self._clock = clock
    self._started, self._printed_at = clock(), None

  def start(self, name: str, devices: str, log: str) -> None:
    self._state[name], self._begun[name] = RUNNING, self._clock()
    self._place[name], self._note[name] = devices, log
    self._line(f"{name}: started on {devices}, log {log}")

  def update(self, name: str, progress: dict[str, Any] | None) -> None:
    """What a running job says of itself (training/progress.py), None for nothing yet."""
    if progress:
      self._progress[name] = progress
    now = self._clock()
    if self._live is None and progress and (
        self._printed_at is None or now - self._printed_at >= _SECONDS_BETWEEN_LINES):
      self._printed_at = now
      for other, state in self._state.items():
        if state == RUNNING and other in self._progress:
          self._line(f"{other}: {self._progress[other]['status']}")
      self._line(self.summary())

  def end(self, name: str, state: str, message: str = "") -> None:
    """A job that has ended, or that is not run because of one that failed."""
    self._state[name] = state
    if name in self._begun:
      self._seconds[name] = self._clock() - self._begun[name]
    self._note[name] = message or self._note[name]
    taken = f" in {format_seconds(self._seconds.get(name))}"
    self._line(f"{name}: {state}" + (taken if state == DONE else "")
               + (f": {message}" if message else ""))

  def summary(self) -> str:
    """'3 of 8 jobs done, 2 running, 1:05 elapsed, 4:20 left'."""
    count = list(self._state.values()).count
    parts = [f"{count(DONE)} of {len(self._state)} jobs done", f"{count(RUNNING)} running"]
    parts += [f"{count(FAILED)} failed"] if count(FAILED) else []
    return ", ".join([*parts, f"{format_seconds(self._clock() - self._started)} elapsed",
                      f"{format_seconds(self.seconds_left)} left"])

  @property
  def seconds_left(self) -> float | None:
    """Estimated seconds to the end of all jobs; None while a kind of job is unknown.

    Jobs that wait take as long as those of their kind, on as many devices as are used now.
    """
    by_kind: dict[str, list[float]] = {}
    left = [self._left(n) for n, state in self._state.items() if state == RUNNING]
    for name, job in self._jobs.items():
      whole = self._seconds.get(name) if self._state[name] == DONE else None
      if self._state[name] == RUNNING and self._left(name) is not None:
        whole = self._clock() - self._begun[name] + self._left(name)
      if whole is not None:
        by_kind.setdefault(job.kind, []).append(whole)
    for name, state in self._state.items():
      if state == WAITING:
        known = by_kind.get(self._jobs[name].kind)
        left.append(sum(known) / len(known) if known else None)
    if None in left:
      return None
    return max(sum(left) / self._num_groups, max(left, default=0.0))

  def _left(self, name: str) -> float | None:
    return self._progress.get(name, {}).get("seconds_left")

  def fraction(self) -> float:
    """Of all jobs that is done, a job in parts."""
    done = 0.0
    for name, state in self._state.items():
      if state == RUNNING:
        now = self._progress.get(name, {})
        done += min(1.0, now["done"] / now["total"]) if now.get("total") else 0.0
      elif state != WAITING:
        done += 1
    return done / max(1, len(self._state))

  def _render(self) -> Group:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for name in ("job", "members", "on", ""):
      table.add_column(name, no_wrap=True)
    table.add_column("progress", no_wrap=True)
    table.add_column("left", no_wrap=True, justify="right")
    table.add_column("log, or why not", ratio=1, no_wrap=True, overflow="ellipsis")
    # A terminal shows no more lines than it has.
    room = max(4, self._console.height - 7)
    first = sorted(self._jobs, key=lambda n: _ORDER.index(self._state[n]))[:room]
    for name, job in self._jobs.items():
      if name in first:
        table.add_row(name, str(len(job.members)), self._place[name], *self._cells(name))
    rows = [table]
    if left_out := len(self._jobs) - len(first):
      rows.append(Text(f"and {left_out} more", "dim"))
    return Group(*rows, ProgressBar(total=1.0, completed=self.fraction()), Text(self.summary()))

  def _cells(self, name: str) -> list:
    state, now = self._state[name], self._progress.get(name, {})
    percent = f"{min(1.0, now['done'] / now['total']):.0%}" if now.get("total") else ""
    if state == DONE:
      left = format_seconds(self._seconds[name])
    else:
      left = format_seconds(now.get("seconds_left")) if state == RUNNING else ""
    return [Text(state, _STYLES[state]), percent if state == RUNNING else "", left,
            text(self._note[name])]
