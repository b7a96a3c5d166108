"""A sweep, or a whole study, as jobs that any scheduler can run.

Every job is one command that goes on where it stopped when it is run again. Jobs pass
nothing to each other but the files in the work directory.
"""

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from wd_plasticity import members as members_lib
from wd_plasticity.members import Member
from wd_plasticity.plan import check_fields, make_plan
from wd_plasticity.study.plan import PRETRAINING, REPORT, Eval

# Exit statuses of a job (wd_plasticity/errors.py).
STOPPED = (143, 130)  # asked to stop, state saved: run it again
MISTAKE = 2  # of the user's, said in one sentence: running it again would not help


@dataclasses.dataclass(frozen=True)
class Launch:
  """What is to be launched: the common flags, read and checked.

  Attributes:
    config: that the members share.
    filename: of it, as typed, with its ':arguments'.
    overrides: fields set on the command line, as flags ('--config.optim.beta2=0.99').
    workdir: of the run, its template filled in.
    name: of the launch.
    tags, notes: for people, kept with the run.
    members: of the sweep.
    indices: those of them that are launched; empty for the config without its sweep.
    members_per_job: that share a job.
    evals: what a study measures; empty when members are only pretrained.
    devices_per_job: of the backend; 0 when unknown.
    dry_run: nothing is submitted.
  """
  config: ConfigDict
  filename: str
  overrides: tuple[str, ...]
  workdir: str
  name: str
  tags: tuple[str, ...]
  notes: str
  members: tuple[Member, ...]
  indices: tuple[int, ...]
  members_per_job: int
  evals: tuple[Eval, ...]
  devices_per_job: int = 0
  dry_run: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
  """One command and what it waits for.

  Attributes:
    name: unique, of letters, digits and ._+-
    kind: 'pretraining', an eval program, or 'report'.
    command: arguments of the Python interpreter.
    after: names of jobs that have to succeed first.
    any_of: it starts when all of `after` have ended and one of them has succeeded.
    members: names of the members it works on.
    index: of the members' chunk; jobs of one index work on the same members.
  """
  name: str
  kind: str
  command: tuple[str, ...]
  after: tuple[str, ...] = ()
  any_of: bool = False
  members: tuple[str, ...] = ()
  index: int = 0


def make_jobs(launch: Launch) -> list[Job]:
  """The jobs of a launch; every job stands behind those it waits for."""
  config = (f"--config={launch.filename}", *launch.overrides)
  place = f"--workdir={launch.workdir}"
  jobs, before_report = [], []
  for index, (members, chosen) in enumerate(_chunks(launch)):
    names = tuple(m.name for m in members)
    label = names[0] if len(names) == 1 else f"{names[0]}-and-{len(names) - 1}-more"
    pretraining = Job(
        f"{PRETRAINING}-{label}", PRETRAINING,
        ("-m", "wd_plasticity.main", *config, *_sweep_axis(launch, len(members)), place, chosen),
        members=names, index=index)
    jobs.append(pretraining)
    for e in launch.evals:
      job = Job(
          f"{e.program}-{label}", e.program,
          ("-m", "wd_plasticity.study", *config, place, f"--step={e.program}", chosen),
          after=(pretraining.name,), members=names, index=index)
      jobs.append(job)
      before_report.append(job.name)
  if launch.evals:
    jobs.append(Job(
        REPORT, REPORT, ("-m", "wd_plasticity.report", place), after=tuple(before_report),
        any_of=True, members=tuple(m.name for m in _launched(launch))))
  return sorted(jobs, key=lambda j: (j.kind != PRETRAINING, j.kind == REPORT))


def check(launch: Launch) -> None:
  """Refuses what the jobs would refuse when they start, as far as it can be known now.

  Raises:
    UserError: as of `plan.make_plan`.
  """
  for members, _ in _chunks(launch):
    sizes = _override(members[0].config, _sweep_axis(launch, len(members)))
    make_plan(sizes, launch.devices_per_job or 1, len(members))
    for member in members:  # what they do not share, such as seeds
      check_fields(member.config)


def _launched(launch: Launch) -> list[Member]:
  return [launch.members[i] for i in launch.indices] or list(launch.members)


def _chunks(launch: Launch) -> list[tuple[list[Member], str]]:
  """Members of one job each, which share a program, and the flag that chooses them."""
  if not launch.indices:
    return [([m], "--sweep_index=none") for m in launch.members]
  place = {m.name: i for i, m in enumerate(launch.members)}
  made = []
  for group in members_lib.stackable(_launched(launch)):
    for chunk in members_lib.chunks(group, launch.members_per_job):
      numbers = ",".join(str(place[m.name]) for m in chunk)
      made.append((chunk, f"--sweep_index={numbers}"))
  return made


def _sweep_axis(launch: Launch, num_members: int) -> Sequence[str]:
  """Lays the members of a job on the mesh axis `sweep`, where the devices allow it."""
  given = any(o.startswith("--config.mesh.sweep=") for o in launch.overrides)
  if (num_members == 1 or given or launch.config.mesh.sweep != 1 or launch.devices_per_job < 1
      or launch.devices_per_job % num_members):
    return ()
  return (f"--config.mesh.sweep={num_members}",)


def _override(config: ConfigDict, flags: Sequence[str]) -> ConfigDict:
  if not flags:
    return config
  config = config.copy_and_resolve_references()
  config.mesh.sweep = int(flags[0].rsplit("=", 1)[1])
  return config
