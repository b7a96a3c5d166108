"""What was submitted, kept in the work directory."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.jobs import Job, Launch
from wd_plasticity import errors
from wd_plasticity.errors import UserError
from wd_plasticity.files import read_json, write_json


def folder(launch: Launch) -> Path:
  return Path(launch.workdir) / "launch"


def submitted(launch: Launch, backend: str) -> list[dict[str, Any]]:
  """What earlier launches in this work directory have submitted, as `write` was told."""
  found = []
  for path in sorted(folder(launch).glob(f"*-{backend}.json")):
    advice = "restore it, or delete it when none of its jobs waits or runs any more"
    jobs = read_json(path, "the record of a launch", advice, {"jobs": list})["jobs"]
    if not all(isinstance(j, dict) and "submitted" in j for j in jobs):
      raise UserError(f"{path} is not the record of a launch; {advice}.")
    found += [j["submitted"] for j in jobs if j["submitted"] is not None]
  return found


def write(launch: Launch, backend: str, jobs: Sequence[Job],
          submitted: Mapping[str, Any]) -> Path:
  """Writes WORKDIR/launch/<time>-<backend>.json, for a work directory that this machine sees.

  Args:
    launch: what was launched.
    backend: such as 'slurm'.
    jobs: its jobs.
    submitted: what the backend knows of each, by name, such as its id there.

  Raises:
    UserError: the work directory cannot be written to.
  """
  path = folder(launch) / f"{datetime.datetime.now():%Y-%m-%d-%H-%M-%S-%f}-{backend}.json"
  try:
    write_json(path, {
        "backend": backend, "name": launch.name, "tags": list(launch.tags), "notes": launch.notes,
        "jobs": [{"name": j.name, "command": shlex.join(["python", *j.command]),
                  "after": list(j.after), "members": list(j.members),
                  "submitted": submitted.get(j.name)} for j in jobs]})
  except OSError as e:
    raise UserError(f"{errors.describe(e, launch.workdir)}.") from e
  return path
