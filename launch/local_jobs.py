"""Runs jobs on this machine, as many at a time as there are groups of devices."""

import dataclasses
import os
import pathlib
import signal
import time
from collections.abc import Mapping, Sequence

from launch.jobs import STOPPED, Job
from launch.local_devices import Group
from launch.local_display import DONE, FAILED, NOT_RUN, Display
from wd_plasticity.errors import Interrupted
from wd_plasticity.study.processes import Program, Stop

_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a job ended.

  Attributes:
    state: DONE, FAILED, or NOT_RUN because of one that failed.
    message: why; of one that is done, what it warns of.
    log: its log; None when it was not run.
  """
  state: str
  message: str = ""
  log: pathlib.Path | None = None


def run(jobs: Sequence[Job], groups: Sequence[Group], workdir: pathlib.Path,
        environment: Mapping[str, str], display: Display, lock: int) -> dict[str, Ended]:
  """Runs jobs in their order, each as soon as those before it have ended and devices are free.

  Args:
    jobs: every one behind those it waits for.
    groups: of devices.
    workdir: of the run; logs go to launch/logs.
    environment: variables for all jobs.
    display: is told what happens.
    lock: of the work directory (`ownership.hold`), which the jobs inherit.

  Returns:
    How each ended, by name.

  Raises:
    Interrupted, KeyboardInterrupt: SIGTERM, Ctrl-C, after the running jobs have saved their
      state.
  """
  ended: dict[str, Ended] = {}
  running: dict[str, tuple[Program, Group]] = {}
  waiting, free = list(jobs), list(groups)
  with Stop() as stop:
    try:
      while running or (waiting and not stop.number):
        if not stop.number:
          for job in list(waiting):
            if _cannot_start(job, ended, display):
              waiting.remove(job)
            elif free and all(name in ended for name in job.after):
              waiting.remove(job)
              group = free.pop(0)
              running[job.name] = _start(job, group, workdir, environment, lock, display), group
        for name, (program, group) in list(running.items()):
          if stop.number:
            program.ask_to_stop()
          over = program.ended()
          display.update(name, program.progress())
          if over:
            ended[name] = _how(program, stop)
            display.end(name, ended[name].state, ended[name].message)
            program.close()
            del running[name]
            free.append(group)
        time.sleep(_POLL_SECONDS)
    finally:
      for program, _ in running.values():
        program.close()
    if stop.number == signal.SIGINT:
      raise KeyboardInterrupt
    if stop.number:
      raise Interrupted("stopped by SIGTERM; what is done is kept, run the same command again to "
                        "go on.")
  return ended


def _cannot_start(job: Job, ended: dict[str, Ended], display: Display) -> bool:
  """Whether jobs that failed keep a job from being run, which is noted."""
  failed = [name for name in job.after if name in ended and ended[name].state != DONE]
  if not failed or (job.any_of and len(failed) < len(job.after)):
    return False
  more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
  ended[job.name] = Ended(NOT_RUN, f"it needs {failed[0]}{more}")
  display.end(job.name, NOT_RUN, ended[job.name].message)
  return True


def _start(job: Job, group: Group, workdir: pathlib.Path, environment: Mapping[str, str],
           lock: int, display: Display) -> Program:
  log = workdir / "launch" / "logs" / f"{job.name}.log"
  progress = workdir / "launch" / "progress" / f"{job.name}.json"
  before = None
  if group.cores:  # a process takes them over from the one that starts it
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, group.cores)
  try:
    program = Program(job.command, log, progress, lock, {**environment, **group.environment})
  finally:
    if before is not None:
      os.sched_setaffinity(0, before)
  display.start(job.name, group.label, str(log))
  return program


def _how(program: Program, stop: Stop) -> Ended:
  if program.status == 0:
    return Ended(DONE, program.warning(), program.log)
  if program.status in STOPPED:
    why = "its state is saved" if stop.number else "something else asked it to stop"
    return Ended(FAILED, f"stopped, {why}", program.log)
  return Ended(FAILED, program.last_words(), program.log)
