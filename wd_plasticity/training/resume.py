"""From where the members of a sweep go on: the newest checkpoint of each that can be believed.

A checkpoint is compared with the run it is to go on in: its step, member, configuration, data and
tokenizer, the checksums of its files, and the metrics that were written before it. One that
differs is refused by name and moved to `<workdir>/outdated`; the run says from which earlier one
it goes on, and ends when there is none, because to begin again is for the user to decide.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wd_plasticity.data.prepare import Prepared
from wd_plasticity.errors import UserError
from wd_plasticity.files import read_json
from wd_plasticity.members import Member
from wd_plasticity.training import distributed, metrics, run_record, stored_state
from wd_plasticity.training.stored_state import RefusedCheckpoint


def parts(members: Sequence[Member], steps: int, prepared: Prepared, workdir: Path,
          tell: Callable[[str], Any]) -> list[tuple[int, list[Member]]]:
  """Members that go on together: (the step they stand at, members), the furthest first.

  They stand apart when a sweep has grown or its jobs were stopped one by one. Those that a kill
  has parted in the midst of a save go on together from the save before, which all of them have.

  Args:
    members: of one chunk.
    steps: of the whole training.
    prepared: the data they are trained on.
    workdir: of the run.
    tell: called with a sentence on each checkpoint that is passed over.

  Raises:
    UserError: a member has checkpoints, but none that can be believed.
  """
  stand: dict[int, list[Member]] = {}
  for member in members:
    step = distributed.first_does(
        f"where member {member.name} stands",
        lambda member=member: _newest(member, steps, prepared, workdir, tell))
    stand.setdefault(step, []).append(member)
  for step, lower in zip(sorted(stand, reverse=True), sorted(stand, reverse=True)[1:],
                         strict=False):
    if 0 < lower and step < steps and distributed.first_does(
        "where members can go on together", lambda step=step, lower=lower: int(all(
            _has_before(member, step, lower, steps, prepared, workdir)
            for member in stand[step]))):
      tell(f"{', '.join(m.name for m in stand[step])} is at step {step} and goes back to step "
           f"{lower}, the save before, from which all of its group go on together.")
      stand[lower] = [m for m in members if m in stand[step] or m in stand[lower]]
      del stand[step]
  return sorted(stand.items(), key=lambda item: item[0], reverse=True)


def read_failure(directory: Path) -> dict | None:
  """Step and reason of a member that became non-finite; None for the others."""
  path = directory / "FAILED.json"
  try:
    return read_json(path, "the record of a member that failed",
                     "delete it to have the member tried again from its last checkpoint",
                     {"step": int})
  except FileNotFoundError:
    return None


def _newest(member: Member, steps: int, prepared: Prepared, workdir: Path,
            tell: Callable[[str], Any]) -> int:
  """The newest step that can be believed; 0 when there is no checkpoint."""
  directory = workdir / "members" / member.name
  if read_failure(directory):
    return steps  # there is nothing to do for it, as for one that is done
  refused, unfinished, good = [], [], 0
  for step, path in reversed(list(stored_state.step_directories(directory / "checkpoints"))):
    if stored_state.is_being_deleted(path):
      continue
    if stored_state.was_interrupted(path):  # and is written again
      unfinished.append(step)
      continue
    why = _why_not(path, step, member, steps, prepared, directory)
    if not why:
      good = step
      break
    refused.append((step, path, why))
  if refused and not good:
    raise UserError(
        f"{directory} has no checkpoint to go on from: that of step {refused[0][0]} is refused, "
        f"because {refused[0][2]}{_and_more(refused[1:])}; restore what is missing from a copy, "
        f"or move {directory} elsewhere to train this member from the beginning.")
  go_on = f"goes on from step {good}" if good else "starts from the beginning"
  for step, path, why in refused:
    aside = _set_aside(path, workdir)
    tell(f"{member.name}: its checkpoint of step {step} is refused, because {why}; it is now in "
         f"{aside}, and the member {go_on}.")
  for step in unfinished:
    tell(f"{member.name}: its save of step {step} was interrupted; the member {go_on}.")
  return good


def _and_more(refused: Sequence) -> str:
  return f" (and of step {', '.join(str(r[0]) for r in refused)})" if refused else ""


def _has_before(member, step, lower, steps, prepared, workdir) -> bool:
  """Whether the checkpoint before that of `step` is of step `lower`, and can be believed."""
  directory = workdir / "members" / member.name
  before = [s for s in stored_state.finished_steps(directory / "checkpoints") if s < step]
  return bool(before) and before[-1] == lower and not _why_not(
      directory / "checkpoints" / str(lower), lower, member, steps, prepared, directory)


def _why_not(path: Path, step: int, member: Member, steps: int, prepared: Prepared,
             directory: Path) -> str:
  """Why a checkpoint is not believed, as a clause; '' when it is."""
  try:
    meta = stored_state.read_meta(path)
    position = stored_state.read_item(path, "position")
    different = _different(meta, position, step, member, prepared)
    if different:
      return f"it is of another run: {different}"
    lacks = metrics.lacks(directory / "metrics.jsonl", step, position.get("metrics"))
    if lacks:
      return lacks
    # Nobody goes on from the last step; whoever reads its arrays compares them.
    stored_state.verify(path, stored_state.CONTENTS, contents=step < steps, alone=True)
  except RefusedCheckpoint as e:
    return e.why
  return ""


def _different(meta: dict, position: Any, step: int, member: Member, prepared: Prepared) -> str:
  """The first thing in which a checkpoint is not of this member and run; '' for nothing."""
  if not isinstance(position, dict) or not isinstance(position.get("metrics", {}),
                                                      (dict, type(None))):
    return "its position is no object"
  for what, there, here in (
      ("member", meta["member"], member.name),
      ("step", position.get("next_step"), step),
      ("seed", position.get("seed"), member.config.seed),
      ("tokenizer (fingerprint)", meta["tokenizer_fingerprint"], prepared.tokenizer_fingerprint),
      ("data (fingerprint)", meta["data_fingerprint"], prepared.fingerprint),
      ("data (fingerprint)", position.get("data_fingerprint"), prepared.fingerprint)):
    if there != here:
      return f"its {what} is {there} and that of this run {here}"
  changed = run_record.changed_fields(meta["config"], member.config)
  return "" if not changed else (
      f"its {changed[0][0]} is {changed[0][1]} and that of this run {changed[0][2]}")


def _set_aside(path: Path, workdir: Path) -> Path:
  """Moves a checkpoint out of the way; returns where it is then."""
  folder = workdir / "outdated" / path.relative_to(workdir).parent
  folder.mkdir(parents=True, exist_ok=True)
  to = next(p for i in range(1, 10_000)
            if not (p := folder / (path.name if i == 1 else f"{path.name}-{i}")).exists())
  os.replace(path, to)
  return to
