"""Progress of a long job: a bar on a terminal, plain lines anywhere else."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import progress as rich_progress
from rich.table import Column
from rich.text import Text

from wd_plasticity.console import Console, text
from wd_plasticity.files import parse_json, write_json
from wd_plasticity.plain import visible

# Names a file in which a program that runs as a step of a study says how far it is.
FILE_VARIABLE = "WD_PLASTICITY_PROGRESS_FILE"
_SECONDS_BETWEEN_WRITES = 1.0
# Plain lines come no faster than this, and thin out as the job goes on: a tenth of
# the time elapsed apart, up to five minutes.
_FIRST_SECONDS_BETWEEN_LINES = 10.0
_LAST_SECONDS_BETWEEN_LINES = 300.0
# On a terminal with fewer columns the bar leaves out the time elapsed.
_NARROW = 100


def read_progress(path: str | os.PathLike) -> dict[str, Any] | None:
  """What a program says of itself in its `FILE_VARIABLE`; None for nothing that can be read."""
  kinds = {"done": (int, float), "total": (int, float), "unit": str,
           "seconds_left": (int, float, type(None)), "status": str}
  try:
    said = parse_json(Path(path).read_bytes())
  except (OSError, ValueError):
    return None
  known = isinstance(said, dict) and all(
      name in said and isinstance(said[name], kind) for name, kind in kinds.items())
  return said if known else None


def format_seconds(seconds: float | None) -> str:
  """'1:02:03', '2 d 1:02:03', or '-:--' for None."""
  if seconds is None:
    return "-:--"
  minutes, second = divmod(max(0, round(seconds)), 60)
  hours, minute = divmod(minutes, 60)
  days, hour = divmod(hours, 24)
  clock = f"{hour}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
  return f"{days} d {clock}" if days else clock


def format_count(value: float) -> str:
  """A count in four characters or so: '950', '12.3k', '4.56M', '1.20B'."""
  for scale, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if value >= scale * 0.9995:
      return f"{value / scale:.3g}{suffix}"
  return f"{value:.3g}"


def format_fields(fields: dict) -> str:
  """'loss 2.345  12.3k tokens/s', then any other fields by name; None is left out."""
  words = []
  for name, value in fields.items():
    if value is None:
      continue
    if name == "tokens_per_second":
      words.append(f"{format_count(value)} tokens/s")
    elif isinstance(value, str):
      words.append(f"{name} {value}")
    elif name.endswith("loss"):
      words.append(f"{name} {value:.3f}")
    else:
      words.append(f"{name} {value:.4g}")
  return "  ".join(words)


class Progress:
  """Shows how far a job is; the total may span several chunks of a sweep.

  The time left follows from the speed between updates of this start. Not counted are
  the time until the first update, which holds the compilation, and work that `skip`
  reports as done already.

  Example:
    with Progress(total=1000, unit="steps", description="pretraining") as progress:
      progress.update(120, loss=3.21, tokens_per_second=4.2e3)
  """

  def __init__(self, total: int, unit: str = "steps", description: str = "", *,
               enabled: bool = True, console: Console | None = None,
               clock: Callable[[], float] = time.monotonic):
    """Prepares the display, which `with` starts.

    Args:
      total: units of work in all, those done before a resume included.
      unit: name of a unit of work.
      description: of the job.
      enabled: False shows nothing, as on every process but the first.
      console: to write to, standard output by default; it decides between bar and lines.
      clock: seconds that never go back.
    """
    self._total, self._unit, self._description = total, unit, description
    self._enabled, self._clock = enabled, clock
    self._console = console or Console()
    self._done, self._fields = 0, {}
    self._started = clock()
    self._baseline = None  # (done, time) of the update from which the next is measured
    self._work, self._seconds = 0, 0.0  # measured so far
    self._printed_at, self._printed_done = None, None
    self._bar = None
    self._file, self._written_at = os.environ.get(FILE_VARIABLE) if enabled else None, None

  def __enter__(self) -> "Progress":
    self._started = self._clock()
    if self._enabled and self._console.is_terminal and not self._console.is_dumb_terminal:
      self._bar = rich_progress.Progress(
          rich_progress.TextColumn("{task.description}", style="bold", markup=False),
          rich_progress.BarColumn(bar_width=None, table_column=Column(ratio=1)),
          _StatusColumn(self),
          console=self._console,
          refresh_per_second=2,  # the training shares the processor
          get_time=self._clock,
          expand=True,
      )
      self._task = self._bar.add_task(visible(self._description), total=self._total)
      self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    if self._bar is not None:
      self._bar.stop()
    elif self._printed_done is not None and self._printed_done != self._done:
      self._print_line()
    self._write_file(self._clock(), now_or_never=True)

  def update(self, done: int, **fields) -> None:
    """Reports units of work done in all, and what to show beside them.

    Args:
      done: units of work done, those before a resume included.
      **fields: numbers or strings to show, such as loss=2.3, tokens_per_second=4e3;
        they stay until they are given again, and None takes one away.
    """
    now = self._clock()
    if self._baseline is not None and done >= self._baseline[0]:
      self._work += done - self._baseline[0]
      self._seconds += now - self._baseline[1]
    self._baseline = (done, now)
    self._done = done
    self._fields.update(fields)
    if self._bar is not None:
      self._bar.update(self._task, completed=done)
    elif self._enabled and self._line_is_due(now):
      self._print_line()
    self._write_file(now)

  def skip(self, done: int) -> None:
    """Moves to `done` without counting the way there as work of this start.

    For members found finished or resumed, and before anything that compiles again.
    """
    self._baseline = None
    self._done = done
    if self._bar is not None:
      self._bar.update(self._task, completed=done)

  def print(self, line: str) -> None:
    """Prints a line above the bar, or among the plain lines."""
    if self._bar is not None:
      self._bar.console.print(visible(line), markup=False, emoji=False, highlight=False,
                              soft_wrap=True)
    elif self._enabled:
      self._write(line)

  @property
  def seconds_left(self) -> float | None:
    """Estimated seconds to the end, None while no speed is known."""
    if self._done >= self._total:
      return 0.0
    if not self._work or self._seconds <= 0:
      return None
    left = (self._total - self._done) * self._seconds / self._work
    since_update = self._clock() - self._baseline[1] if self._baseline else 0.0
    return max(0.0, left - since_update)

  def status(self) -> str:
    """'120/1,000 steps  0:35 elapsed  4:20 left  loss 3.210  4.2k tokens/s'."""
    parts = [
        f"{self._done:,}/{self._total:,} {self._unit}",
        f"{format_seconds(self._clock() - self._started)} elapsed",
        f"{format_seconds(self.seconds_left)} left",
        format_fields(self._fields),
    ]
    if self._bar is not None and self._console.width < _NARROW:
      del parts[1]
    return "  ".join(p for p in parts if p)

  def _write_file(self, now: float, now_or_never: bool = False) -> None:
    if self._file and (now_or_never or self._written_at is None
                       or now - self._written_at >= _SECONDS_BETWEEN_WRITES):
      self._written_at = now
      write_json(self._file, {"done": self._done, "total": self._total, "unit": self._unit,
                              "seconds_left": self.seconds_left, "status": self.status()})

  def _line_is_due(self, now: float) -> bool:
    if self._printed_at is None:
      return True
    if self._done >= self._total:
      return self._printed_done != self._done
    pause = min(max(0.1 * (now - self._started), _FIRST_SECONDS_BETWEEN_LINES),
                _LAST_SECONDS_BETWEEN_LINES)
    return now - self._printed_at >= pause

  def _print_line(self) -> None:
    self._printed_at, self._printed_done = self._clock(), self._done
    self._write(f"{self._description}  {self.status()}".strip())

  def _write(self, line: str) -> None:
    # Past rich, which would wrap the line at 80 columns.
    self._console.file.write(visible(line) + "\n")
    self._console.file.flush()


class _StatusColumn(rich_progress.ProgressColumn):
  """The status, rendered at every refresh so that its times run on between updates."""

  def __init__(self, owner: Progress):
    # What does not fit is cut: a second line would make the bar jump.
    super().__init__(table_column=Column(no_wrap=True, overflow="ellipsis"))
    self._owner = owner

  def render(self, task: rich_progress.Task) -> Text:
    return text(self._owner.status())
