"""What a study knows about its steps: a record of each, and whether it still holds.

`<workdir>/study/steps/<name>.json` says what a finished step was made from and which
files it left. A step is skipped when both are as they were. What was made from
something else is moved to `<workdir>/outdated`, never deleted.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from wd_plasticity import ownership
from wd_plasticity.config import as_json
from wd_plasticity.files import parse_json, write_json
from wd_plasticity.members import Member
from wd_plasticity.study.plan import Step, fingerprint
from wd_plasticity.training import run_record

DONE, FAILED, WAITING = "done", "failed", "waiting"


@dataclasses.dataclass(frozen=True)
class Record:
  """How a step ended.

  Attributes:
    name, command: of the step.
    state: DONE, FAILED, or WAITING for a step that failed.
    inputs: fingerprint of what it was made from, the results of steps before it included.
    outputs: size of every file it left, by path relative to the work directory.
    seconds: that it took.
    finished: when it ended, in seconds since 1970.
    log: path of its log, relative to the work directory.
    message: why it failed; of one that is done, what it warns of, such as members that failed.
  """
  name: str
  command: str
  state: str
  inputs: str
  outputs: Mapping[str, int]
  seconds: float
  finished: float
  log: str
  message: str = ""


class Records:
  """The records of a study in a work directory."""

  def __init__(self, workdir: str | os.PathLike):
    self.workdir = pathlib.Path(workdir)

  def path(self, name: str) -> pathlib.Path:
    return self.workdir / "study" / "steps" / f"{name}.json"

  def read(self, name: str) -> Record | None:
    """The record of a step; None when there is none, or none that can be read."""
    try:
      record = Record(**parse_json(self.path(name).read_bytes()))
    except (OSError, ValueError, TypeError):
      return None  # then the step is run, and its program skips what is done
    words = (record.name, record.command, record.state, record.inputs, record.log, record.message)
    numbers = (record.seconds, record.finished)
    is_whole = (all(isinstance(word, str) for word in words) and isinstance(record.outputs, dict)
                and all(isinstance(number, (int, float)) for number in numbers))
    return record if is_whole else None

  def write(self, record: Record) -> None:
    write_json(self.path(record.name), dataclasses.asdict(record))

  def outputs(self, step: Step) -> dict[str, int]:
    """The files that a step has left by now, with their sizes."""
    found = {}
    for pattern in step.outputs:
      for path in self.workdir.glob(pattern):
        if path.is_file() and not path.name.startswith("."):
          found[path.relative_to(self.workdir).as_posix()] = path.stat().st_size
    return dict(sorted(found.items()))

  def inputs(self, step: Step) -> str:
    """Fingerprint of what a step would be made from now."""
    before = [self.read(name) for name in step.after]
    return fingerprint(step.inputs, [r and [r.state, r.finished] for r in before])

  def holds(self, step: Step) -> Record | None:
    """The record of a step whose results are there and made from what it would be made from."""
    record = self.read(step.name)
    if record is None or record.state != DONE or record.inputs != self.inputs(step):
      return None
    now = self.outputs(step)
    return record if all(now.get(p) == size for p, size in record.outputs.items()) else None


def set_aside_changed_members(workdir: str | os.PathLike, members: Sequence[Member],
                              data_fingerprint: str) -> list[str]:
  """Moves members that were pretrained otherwise, and their results, to `outdated`.

  Returns:
    A sentence for each of them.

  Raises:
    UserError: one of them is being trained; nothing is moved.
  """
  workdir = pathlib.Path(workdir)
  reasons = {m.name: _changed(workdir / "members" / m.name / "config.json", m.config,
                              data_fingerprint) for m in members}
  changed = {name: reason for name, reason in reasons.items() if reason}
  said = []
  with ownership.hold_members(workdir, list(changed)):
    for name, reason in changed.items():
      folder = workdir / "outdated" / time.strftime("%Y%m%d-%H%M%S")
      for place in (workdir / "members" / name, *sorted(workdir.glob(f"evals/*/{name}"))):
        to = folder / place.relative_to(workdir)
        to.parent.mkdir(parents=True, exist_ok=True)
        os.replace(place, to)
      said.append(f"{name} is pretrained again: {reason}; the earlier one is in {folder}.")
  return said


def _changed(path: pathlib.Path, config: ConfigDict, data_fingerprint: str) -> str:
  """What tells a member on disk from the one that is wanted; '' for nothing."""
  try:
    before: dict[str, Any] = parse_json(path.read_bytes())
    fields = run_record.changed_fields(before["config"], as_json(config))
    fingerprint_before = before["data_fingerprint"]
  except FileNotFoundError:
    return ""
  except (ValueError, KeyError, TypeError, AttributeError):
    return "its config.json cannot be read"
  if fields:
    name, a, b = fields[0]
    return f"{name} was {json.dumps(a)} and is now {json.dumps(b)}"
  return "" if fingerprint_before == data_fingerprint else "its data have changed"
