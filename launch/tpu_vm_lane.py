"""The jobs of one TPU slice, one after another, through preemptions and broken connections."""

import dataclasses
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch import jobs as jobs_lib
from launch import shell
from launch import tpu_vm_scripts as scripts
from launch import tpu_vm_slice as slices_lib
from launch.cloud import short_hash
from launch.jobs import Job
from launch.tpu_vm_slice import Slice
from wd_plasticity.errors import UserError
from wd_plasticity.study.plan import REPORT
from wd_plasticity.training.distributed import PROCESSES_VARIABLE

DONE, FAILED, NOT_RUN = "done", "failed", "not run"
_CREATE_RETRIES = 12
_SSH_RETRIES = 4
_MOST_FAILED_POLLS = 10


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the slices of a launch have in common.

  Attributes:
    source: the code.
    archive: of it on this machine; None when the machines clone a repository.
    bucket: that is mounted; empty for none.
    setup: shell commands that are run on every machine before anything else.
    environment: variables of the jobs.
    max_restarts: how often a slice is made again or a job started again.
    keep: whether the slices are left when everything has ended.
    delete_on_error: whether a slice that could not be used is deleted.
    poll_seconds: between looks at a job.
  """
  source: scripts.Source
  archive: Path | None
  bucket: str
  setup: str
  environment: Mapping[str, str]
  max_restarts: int
  keep: bool
  delete_on_error: bool
  poll_seconds: float


class Outcomes:
  """How jobs have ended; shared by the threads of all lanes.

  Args:
    jobs: of the launch.
    lanes: how many there are; the last one to end runs the report.
  """

  def __init__(self, jobs: Sequence[Job], lanes: int):
    self._jobs = {j.name: j for j in jobs}
    self._ended: dict[str, tuple[str, str]] = {}
    self._lanes = lanes
    self._lock = threading.Lock()

  def set(self, name: str, state: str, words: str = "") -> None:
    with self._lock:
      self._ended[name] = (state, words)

  def may_start(self, job: Job) -> bool:
    done = [self._ended.get(name, (NOT_RUN,))[0] == DONE for name in job.after]
    return any(done) if job.any_of else all(done)

  def leave(self) -> list[Job]:
    """Called by every lane at its end; returns what the last one is to run: the report."""
    with self._lock:
      self._lanes -= 1
      last = self._lanes == 0
    return [j for j in self._jobs.values() if last and j.kind == REPORT]

  def failures(self) -> list[str]:
    """A line for every job that has not succeeded."""
    ended = {name: self._ended.get(name, (NOT_RUN, "")) for name in self._jobs}
    return [f"{name}: {state}{': ' if words else ''}{words}"
            for name, (state, words) in ended.items() if state != DONE]


def job_folder(job: Job) -> str:
  """Name of a job's folder on the machines; another command is another job."""
  return f"{job.name}-{short_hash(shlex.join(job.command))}"


def worker_of(job: Job) -> str:
  return "0" if job.kind == REPORT else "all"


def start_script(job: Job, environment: Mapping[str, str], hosts: int) -> str:
  """Starts a job; a report also when there is one, because it may lack the newest results."""
  return scripts.start(job_folder(job), job.command, _environment_of(job, environment, hosts),
                       again=job.kind == REPORT)


def _environment_of(job: Job, environment: Mapping[str, str], hosts: int) -> dict[str, str]:
  """Variables of a job; on several machines they say that its processes belong together."""
  if hosts > 1 and job.kind != REPORT:
    return {**environment, PROCESSES_VARIABLE: "on"}
  return dict(environment)


class Lane:
  """One slice and its jobs.

  Args:
    slice_: of this lane.
    jobs: in the order in which they are run; what they wait for is among them.
    plan: of all lanes.
    outcomes: of all lanes.
    say: shows a line of this lane.
  """

  def __init__(self, slice_: Slice, jobs: Sequence[Job], plan: Plan, outcomes: Outcomes,
               say: Callable[[str], None]):
    self._slice = slice_
    self._jobs = list(jobs)
    self._plan = plan
    self._outcomes = outcomes
    self._say = say
    self._restarts = 0
    self._shown: dict[str, int] = {}  # bytes of every job's log

  def run(self) -> None:
    """Runs the jobs; problems end up in the outcomes and in what is said."""
    problem = ""
    try:
      if self._jobs:
        self._prepare()
      for job in self._jobs:
        self._run(job)
    except UserError as e:
      problem = str(e)
    except Exception as e:  # a thread must not end without a word
      problem = f"{type(e).__name__}: {e}"
    report = self._outcomes.leave()
    try:
      for job in report if not problem else []:
        self._run(job)
    except UserError as e:
      problem = str(e)
    except Exception as e:
      problem = f"{type(e).__name__}: {e}"
    if problem:
      self._say(f"error: {problem}")
    if report and problem:
      self._say("the report was not made; `python -m wd_plasticity.report` makes it from the "
                "results alone.")
    if self._slice.may_exist and not (self._plan.keep or (problem and
                                                         not self._plan.delete_on_error)):
      self._slice.delete()

  # The slice.

  def _prepare(self) -> None:
    """Makes the slice ready to run jobs, or goes on with one that is there."""
    state, words = self._slice.state()
    while True:
      if state in (slices_lib.LOST, slices_lib.FAILED):
        self._again(f"the slice is gone ({words})")
        if not self._slice.delete():
          raise UserError("what is left of the slice is in the way of a new one.")
        self._shown.clear()
        state = slices_lib.ABSENT
      if state == slices_lib.ABSENT:
        self._say("creating the slice")
        self._slice.create(_CREATE_RETRIES)
      state, words = self._slice.wait()
      if state == slices_lib.FAILED:
        raise UserError(f"{self._slice.name} was not created: {words}")
      if state == slices_lib.READY and self._install():
        return
      state, words = self._slice.state()

  def _install(self) -> bool:
    """Installs the code on all machines; False when they are gone meanwhile."""
    plan = self._plan
    self._say(f"installing {plan.source.revision[:12]} on {self._slice.hosts} machines"
              if self._slice.hosts > 1 else f"installing {plan.source.revision[:12]}")
    done = self._slice.copy(plan.archive, _SSH_RETRIES) if plan.archive else None
    if done is None or done.returncode == 0:
      script = scripts.install(plan.source, plan.bucket, plan.setup)
      done = self._slice.ssh(script, retries=_SSH_RETRIES)
    if done.returncode == 0:
      return True
    if self._slice.state()[0] != slices_lib.READY:
      return False
    raise UserError(f"the code could not be installed on {self._slice.name}: "
                    f"{shell.last_line(done.stderr or done.stdout)}")

  def _again(self, why: str) -> None:
    """Counts a restart.

    Raises:
      UserError: there were too many.
    """
    self._restarts += 1
    if self._restarts > self._plan.max_restarts:
      raise UserError(f"{why}, after {self._plan.max_restarts} restarts; the same command goes on "
                      "from the last checkpoints.")
    self._say(f"{why}; restart {self._restarts} of at most {self._plan.max_restarts}")

  # The jobs.

  def _run(self, job: Job) -> None:
    if not self._outcomes.may_start(job):
      self._outcomes.set(job.name, NOT_RUN, "what it needs has not succeeded")
      self._say(f"{job.name}: not run, what it needs has not succeeded")
      return
    folder = job_folder(job)
    self._say(f"{job.name}: started")
    while True:
      ended = self._start_and_follow(job, folder)
      if ended is None:  # the machines are gone
        self._prepare()
        continue
      if all(s == "0" for s in ended):
        self._outcomes.set(job.name, DONE)
        self._say(f"{job.name}: done")
        return
      if words := _no_use_to_repeat(ended):
        self._outcomes.set(job.name, FAILED, words)
        self._say(f"{job.name}: failed, {words}")
        return
      try:
        self._again(f"{job.name} was stopped (status {', '.join(ended)})")
      except UserError:
        self._outcomes.set(job.name, FAILED, "stopped too often")
        raise
      self._slice.ssh(scripts.stop(folder), worker_of(job), retries=_SSH_RETRIES)

  def _start_and_follow(self, job: Job, folder: str) -> list[str] | None:
    """Exit statuses of a job on its machines, once it has ended; None when they are gone."""
    script = start_script(job, self._plan.environment, self._slice.hosts)
    if self._slice.ssh(script, worker_of(job), retries=_SSH_RETRIES).returncode:
      return self._gone_or_raise(job)
    rest, failed_polls = b"", 0
    while True:
      done = self._slice.ssh(scripts.poll(folder, self._shown.get(folder, 0)), "0")
      log, statuses = scripts.read_poll(done.stdout)
      if done.returncode or not statuses:
        failed_polls += 1
        if self._slice.state()[0] != slices_lib.READY:
          return None
        if failed_polls >= _MOST_FAILED_POLLS:
          return self._gone_or_raise(job)
        time.sleep(self._plan.poll_seconds)
        continue
      failed_polls = 0
      self._shown[folder] = self._shown.get(folder, 0) + len(log)
      *lines, rest = (rest + log).split(b"\n")
      for line in lines:
        self._say(line.decode("utf-8", "replace"))
      if statuses[0] == scripts.RUNNING:
        time.sleep(self._plan.poll_seconds)
      elif len(log) < scripts.BYTES_PER_POLL:
        break
    if rest:
      self._say(rest.decode("utf-8", "replace"))
    if self._slice.hosts > 1 and worker_of(job) == "all":
      done = self._slice.ssh(scripts.statuses(folder), "all", retries=_SSH_RETRIES)
      others = scripts.read_poll(done.stdout)[1]
      # A machine that does not answer has not succeeded.
      statuses = others + [scripts.LOST] * (self._slice.hosts - len(others))
    return statuses

  def _gone_or_raise(self, job: Job) -> None:
    if self._slice.state()[0] == slices_lib.READY:
      raise UserError(f"{job.name}: the machines of {self._slice.name} do not answer although they "
                      "are ready.")


def _no_use_to_repeat(statuses: Sequence[str]) -> str:
  """Why a job that has ended so would end so again; empty for one that was stopped."""
  if str(jobs_lib.MISTAKE) in statuses:
    return "its log says what has to be changed"
  errors = [s for s in statuses if s.isdigit() and 0 < int(s) < 128]
  return f"with status {errors[0]}" if errors else ""
