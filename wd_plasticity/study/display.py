"""One progress display for all steps of a study."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from wd_plasticity.console import Console, Table, text
from wd_plasticity.plain import visible
from wd_plasticity.study.plan import Step
from wd_plasticity.study.records import DONE, FAILED, WAITING
from wd_plasticity.training.progress import format_seconds

_SECONDS_BETWEEN_LINES = 30.0
_STYLES = {DONE: "green", FAILED: "bold red", WAITING: "yellow", "running": "bold", "to do": "dim"}
# What a step without an expected time counts, in minutes, to draw the bar.
_UNKNOWN_MINUTES = 2.0


class LiveTable:
  """Something that is drawn over and over in a terminal, and is lines elsewhere.

  Args:
    console: standard output by default; it decides between the two.
  """

  def __init__(self, console: Console | None):
    self._console = console or Console()
    self._live = None

  def __enter__(self):
    if self._console.is_terminal and not self._console.is_dumb_terminal:
      self._live = Live(self._render(), console=self._console, refresh_per_second=2,
                        get_renderable=self._render)
      self._live.start()
    return self

  def __exit__(self, *_) -> None:
    if self._live is not None:
      self._live.stop()

  def _line(self, line: str) -> None:
    """Writes a line where there is no table."""
    if self._live is None:
      self._console.file.write(visible(line) + "\n")  # past rich, which would wrap it at 80 columns
      self._console.file.flush()

  def _render(self) -> Group:
    """What is drawn now."""
    raise NotImplementedError


class Display(LiveTable):
  """Shows the state of every step, how far the study is, and the time left.

  The time left is that of the running step by its own speed, and for those after it the
  minutes that the study's config expects, scaled by how the steps so far compare.

  Args:
    steps: of the study.
    console: standard output by default; it decides between a live table and lines.
    clock: seconds that never go back.
  """

  def __init__(self, steps: Sequence[Step], console: Console | None = None,
               clock: Callable[[], float] = time.monotonic):
    self._steps = {s.name: s for s in steps}
    self._state = dict.fromkeys(self._steps, "to do")
    self._note = dict.fromkeys(self._steps, "")
    self._seconds: dict[str, float] = {}  # of the steps that were run, by this start
    self._begun: dict[str, float] = {}
    self._now: dict[str, Any] | None = None  # what the running step says
    super().__init__(console)
    self._clock = clock
    self._printed_at = None

  def __enter__(self) -> "Display":
    self._started = self._clock()
    return super().__enter__()

  def skip(self, name: str, seconds: float) -> None:
    """A step that is done already, in so many seconds."""
    self._state[name] = DONE
    self._note[name] = f"as before ({format_seconds(seconds)})"
    self._line(f"{name}: done before, skipped")

  def start(self, name: str) -> None:
    self._state[name], self._begun[name], self._now = "running", self._clock(), None
    self._line(f"{name}: {self._steps[name].shown()}")

  def update(self, name: str, progress: dict[str, Any] | None) -> None:
    """What the running step says of itself (training/progress.py), None for nothing yet."""
    self._now = progress
    self._note[name] = progress["status"] if progress else ""
    now = self._clock()
    if self._live is None and progress and (
        self._printed_at is None or now - self._printed_at >= _SECONDS_BETWEEN_LINES):
      self._line(f"{name}: {progress['status']}  |  study: {self.summary()}")

  def end(self, name: str, state: str, message: str) -> None:
    """A step that has ended, or that is not run because of one that failed."""
    self._now, self._state[name] = None, state
    if name in self._begun:
      self._seconds[name] = self._clock() - self._begun[name]
    taken = format_seconds(self._seconds.get(name, 0.0))
    self._note[name] = message or taken
    self._line(f"{name}: {state}" + (f" in {taken}" if state == DONE else "")
               + (f": {message}" if message else ""))

  def print(self, line: str) -> None:
    self._console.print(visible(line), markup=False, emoji=False, highlight=False, soft_wrap=True)

  @property
  def seconds_left(self) -> float | None:
    """Estimated seconds to the end of the study; None while a part of it is unknown."""
    left = 0.0
    for name, step in self._steps.items():
      if self._state[name] == "running":
        own = self._now and self._now["seconds_left"]
        if own is None and step.minutes:
          own = max(0.0, self._expected(step) - (self._clock() - self._begun[name]))
        if own is None:
          return None
        left += own
      elif self._state[name] == "to do":
        if not step.minutes:
          return None
        left += self._expected(step)
    return left

  def _expected(self, step: Step) -> float:
    """Seconds of a step, from its minutes and how those that have ended compare to theirs."""
    known = [n for n in self._seconds if self._steps[n].minutes and self._state[n] == DONE]
    planned = sum(60 * self._steps[n].minutes for n in known)
    scale = sum(self._seconds[n] for n in known) / planned if planned else 1.0
    return 60 * step.minutes * scale

  def fraction(self) -> float:
    """Of the study that is done, steps weighed by their expected minutes."""
    done = total = 0.0
    for name, step in self._steps.items():
      weight = step.minutes or _UNKNOWN_MINUTES
      total += weight
      if self._state[name] == "running" and self._now and self._now["total"]:
        done += weight * min(1.0, self._now["done"] / self._now["total"])
      elif self._state[name] not in ("to do", "running"):
        done += weight
    return done / total if total else 1.0

  def summary(self) -> str:
    """'34 %, step 2 of 6, 1:05 elapsed, 4:20 left'."""
    at = sum(s != "to do" for s in self._state.values())
    elapsed = format_seconds(self._clock() - self._started)
    left = format_seconds(self.seconds_left)
    return (f"{self.fraction():.0%}, step {at} of {len(self._steps)}, {elapsed} elapsed, "
            f"{left} left")

  def _line(self, line: str) -> None:
    self._printed_at = self._clock()
    super()._line(line)

  def _render(self) -> Group:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("step", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
    for name, state in self._state.items():
      table.add_row(name, Text(state, _STYLES[state]), text(self._note[name]))
    return Group(table, ProgressBar(total=1.0, completed=self.fraction()), Text(self.summary()))
