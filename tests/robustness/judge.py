"""What every program owes a user who makes a mistake, and the table of how often it is kept."""

import collections
import dataclasses
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import programs
import pytest
import worlds

# It may change by a start that is refused: locks, what a start was of, hashes of sources, logs.
_MAY_CHANGE = re.compile(r"(^|/)(\.[^/]*\.lock|[^/]*\.lock|versions\.json|source_hashes\.json|"
                         r"[^/]*\.log|ownership[^/]*|speed\.jsonl|events\.out[^/]*)$")
_REMEDY = re.compile(r"; |\b(must|can|needs?|is one|give|set|use|write|read|delete|remove|restore|"
                     r"run|choose|name|see|copy|take|make|add|pretrain|check|free|install|start|"
                     r"known are|known:|it has|there are|want|wanted|has to|have to|"
                     r"should|such as|is missing|needed|did you mean|not one of|of the form|"
                     # Where it is, in a file of the user's or among what divides another.
                     r"line \d+|does not divide)\b", re.IGNORECASE)
_OF_THE_REPOSITORY = ("launch.tpu_vm",)  # names files as they lie in it
_PROCESSOR_SECONDS = 40.0  # of a start that should have been refused
_SLEEPING_SECONDS = 60.0  # without computing anything


@dataclasses.dataclass(frozen=True)
class Case:
  """One mistake.

  Attributes:
    name: unique, says what is wrong.
    program: module that is started.
    flags: its flags; @ is the folder of the world.
    words: regular expression that the sentence must hold: what is wrong.
    damage: what is done to the world before.
    status: exit statuses that are right. With 0 a mistake may be accepted, if `same` holds.
    same: called with the world after status 0; names of what is not as it should be.
  """
  name: str
  program: str
  flags: Sequence[str]
  words: str
  damage: Callable[[pathlib.Path], object] | None = None
  status: Sequence[int] = (2,)
  same: Callable[[pathlib.Path], list[str]] | None = None

  def __str__(self):
    return re.sub(r"[^\w.=,()'<>:+-]+", "_", self.name)[:100]


def parameters(groups: Mapping[str, Callable[[], Iterable[Case]]], of: int = 3) -> list:
  """(group, case) of all cases: one in so many is slow, the others are nightly."""
  return [pytest.param(group, case, id=str(case),
                       marks=pytest.mark.nightly if number % of else pytest.mark.slow)
          for group, make in groups.items() for number, case in enumerate(make())]


def finish(process) -> int | None:
  """Its exit status; None when it goes on and on or waits for ever, in which case it is ended.

  Time is the processor's, not the clock's, because a machine may be busy with others: what
  waits is what sleeps for a minute with all its threads and has not computed since.
  """
  used, since = -1.0, time.monotonic()
  while (status := process.poll()) is None:
    now = _processor_seconds(process.pid)
    if now != used or not _sleeps(process.pid):
      used, since = now, time.monotonic()
    if used > _PROCESSOR_SECONDS or time.monotonic() - since > _SLEEPING_SECONDS:
      process.kill()
      process.wait()
      return None
    time.sleep(0.02)
  return status


def _processor_seconds(pid: int) -> float:
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return 0.0
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _sleeps(pid: int) -> bool:
  try:
    return all(task.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "S"
               for task in pathlib.Path(f"/proc/{pid}/task").iterdir())
  except OSError:
    return False


def judge(case: Case, template: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """Makes the mistake in a copy of a world; returns what is wrong with how it was met."""
  world = folder / "w"
  shutil.copytree(template, world, symlinks=True)
  try:
    if case.damage:
      case.damage(world)
    before = worlds.hashes(world)
    flags = [flag.replace("@", str(world)) for flag in case.flags]
    place = programs.ROOT if case.program in _OF_THE_REPOSITORY else world
    process = worlds.start("elsewhere", place, case.program, *flags)
    status = finish(process)
    return _complaints(case, world, before, status, process.said())
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _complaints(case, world, before, status, said) -> list[str]:
  found = []
  errors = re.findall(r"^error: .*", said, re.MULTILINE)
  sentence = errors[-1] if errors else ""
  shown = " | ".join(said.strip().splitlines()[-3:])[-300:]
  if "Traceback (most recent" in said:
    found.append(f"a traceback: {shown}")
  if status is None:
    return [*found, "goes on without end, or waits for ever"]
  if status not in case.status:
    found.append(f"{'accepted' if status == 0 else f'status {status}'}: {shown}")
  if status:
    if len(errors) != 1:
      found.append(f"{len(errors)} sentences: {shown}")
    if errors and not re.search(case.words, sentence):
      found.append(f"does not say {case.words!r}: {sentence[:300]}")
    if errors and not _REMEDY.search(sentence):
      found.append(f"no remedy: {sentence[:300]}")
    after = worlds.hashes(world)
    lost = [n for n, h in before.items() if after.get(n) != h and not _MAY_CHANGE.search(n)]
    if lost:
      found.append(f"changed or lost: {lost[:5]}")
  elif 0 in case.status:
    if case.same and (wrong := _differences(case, world)):
      found.append(f"accepted, and wrong in {wrong[:5]}: {shown}")
    elif not case.same and not re.search(case.words, said):
      found.append(f"does not say {case.words!r}: {shown}")
  return [re.sub(re.escape(str(world)), "@", line) for line in found]


def _differences(case, world) -> list[str]:
  try:
    return case.same(world)
  except Exception as e:  # what was stored cannot be read
    return [f"{type(e).__name__}: {e}"[:200]]


def meet(case: Case, world: pathlib.Path, folder: pathlib.Path, figures: "Figures",
         group: str) -> None:
  """Judges a case, counts it among those of its group, and fails with what is wrong."""
  complaints = judge(case, world, folder)
  figures.count(group, "tried")
  figures.count(group, kind(complaints))
  for complaint in complaints:
    figures.note(f"{case.name}: {complaint}")
  if complaints:
    pytest.fail("\n".join([case.name, *complaints]), pytrace=False)


class Figures:
  """Counts by group, printed at the end and kept in a folder for a report.

  WD_PLASTICITY_FIGURES names the folder; each table is a file there, as far as it has come.
  """

  def __init__(self, name: str, columns: Sequence[str]):
    self._name, self._columns = name, columns
    self._rows: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    self._notes: list[str] = []

  def count(self, row: str, column: str, n: int = 1) -> None:
    self._rows[row][column] += n
    self._keep()

  def note(self, line: str) -> None:
    self._notes.append(line)
    self._keep()

  def text(self) -> str:
    rows = [*self._rows.items()]
    total = sum((c for _, c in rows), collections.Counter())
    width = max([len(r) for r in self._rows] + [3])
    lines = [f"{self._name:{width}} " + " ".join(f"{c:>11}" for c in self._columns)]
    for row, counts in [*rows, ("all", total)]:
      lines.append(f"{row:{width}} " + " ".join(f"{counts[c]:>11}" for c in self._columns))
    return "\n".join([*lines, *self._notes]) + "\n"

  def close(self) -> None:
    print("\n" + self.text())

  def _keep(self) -> None:
    if folder := os.environ.get("WD_PLASTICITY_FIGURES"):
      pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
      (pathlib.Path(folder) / f"{self._name}.txt").write_text(self.text())


COLUMNS = ("tried", "right", "traceback", "silent", "misleading", "lost")


def kind(complaints: Sequence[str]) -> str:
  """The gravest of some complaints, as a column of the table."""
  text = "\n".join(complaints)
  for column, words in (("lost", "changed or lost"), ("silent", "accepted"),
                        ("silent", "without end"), ("traceback", "a traceback")):
    if words in text:
      return column
  return "misleading" if complaints else "right"
