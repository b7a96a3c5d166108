"""Runs the members of a sweep, or a whole study, on this machine, several jobs at a time.

  python -m launch.local --config=configs/quickstart.py --workdir=runs/{name}

Every job is a process of its own with its own devices: a GPU or a TPU chip each, or
--devices_per_job of them; on a CPU --jobs_at_once divides the cores. A job that fails
stops only those that need it. The same command again goes on where the last one stopped.
"""

import os
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from launch import command_line, local_devices, local_jobs, record
from launch.jobs import Job, Launch, make_jobs
from launch.local_devices import Group
from launch.local_display import DONE, FAILED, NOT_RUN, Display
from wd_plasticity import ownership
from wd_plasticity.console import Console
from wd_plasticity.study import processes
from wd_plasticity.study.plan import REPORT

_DEVICES_PER_JOB = flags.DEFINE_integer(
    "devices_per_job", None, "GPUs or TPU chips of a job; by default 1.")
_JOBS_AT_ONCE = flags.DEFINE_integer(
    "jobs_at_once", None, "Jobs at the same time; by default one for every --devices_per_job of "
    "this machine. On a CPU by default 1, and the cores are divided among them.")


def main(argv: Sequence[str]):
  del argv
  groups = local_devices.divide(
      *local_devices.find(os.environ), _DEVICES_PER_JOB.value,
      _JOBS_AT_ONCE.value, local_devices.own_cores())
  on_accelerator = any(g.label.startswith(("GPU", "TPU")) for g in groups)
  launch = command_line.read_launch(
      (_DEVICES_PER_JOB.value or 1) if on_accelerator else command_line.cpu_devices())
  jobs = make_jobs(launch)
  environment = command_line.environment(launch, "local")
  if launch.dry_run:
    _print(jobs, groups, environment)
    return
  workdir = pathlib.Path(launch.workdir)
  with ownership.hold(workdir) as lock:
    record.write(launch, "local", jobs, {})
    with Display(jobs, len(groups)) as display:
      ended = local_jobs.run(jobs, groups, workdir, environment, display, lock)
  _conclude(launch, ended, workdir)


def _print(jobs: Sequence[Job], groups: Sequence[Group], environment: Mapping[str, str]) -> None:
  """Says what would be run, and where."""
  for group in groups:
    shown = " ".join(f"{k}={shlex.quote(v)}" for k, v in group.environment.items())
    cores = f"cores {','.join(map(str, group.cores))}" if group.cores else ""
    print(f"devices {group.label}: {shown or cores or 'all that there are'}")
  for key, value in environment.items():
    print(f"export {key}={shlex.quote(value)}")
  for job in jobs:
    if job.after:
      how = "all have ended and one has succeeded of" if job.any_of else "success of"
      print(f"# {job.name}, after {how} {', '.join(job.after)}")
    else:
      print(f"# {job.name}")
    print(shlex.join([sys.executable, *job.command]))


def _conclude(launch: Launch, ended: Mapping[str, local_jobs.Ended],
              workdir: pathlib.Path) -> None:
  """Says where the report is, and what failed; exit status 1 if something did."""
  console = Console(soft_wrap=True, highlight=False)
  if launch.evals and ended[REPORT].state == DONE:
    console.print(f"report: {workdir / 'report' / 'report.html'}", markup=False)
  processes.conclude([(n, e.message, e.log) for n, e in ended.items() if e.state == FAILED],
                     [n for n, e in ended.items() if e.state == NOT_RUN],
                     [(n, e.message) for n, e in ended.items() if e.state == DONE and e.message])


if __name__ == "__main__":
  command_line.run(main)
