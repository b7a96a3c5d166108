"""Runs a sweep, or a whole study, on a GKE cluster, through xpk.

  python -m launch.xpk --config=configs/quickstart.py --workdir=/data/runs/{name} \\
      --cluster=CLUSTER --project=PROJECT --zone=ZONE --tpu_type=v5litepod-16 \\
      --docker_image=IMAGE --storage=NAME

One workload per job. The pretrainings are queued at once; this program stays in the foreground
and creates what depends on them when they have ended. The same command again goes on.
"""

import dataclasses
import json
import re
import shlex
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from launch import cloud, command_line, shell
from launch.jobs import Job, Launch, make_jobs
from launch.tpu_vm_slice import is_transient
from wd_plasticity.errors import UserError
from wd_plasticity.study.plan import REPORT

_CLUSTER = flags.DEFINE_string("cluster", None, "Cluster that xpk has made.")
_PROJECT = flags.DEFINE_string("project", None, "Google Cloud project; by default gcloud's.")
_ZONE = flags.DEFINE_string("zone", None, "Zone of the cluster; by default gcloud's.")
_TPU_TYPE = flags.DEFINE_string("tpu_type", None, "Slice of every job, such as v5litepod-16.")
_DEVICE_TYPE = flags.DEFINE_string(
    "device_type", None, "Instead of a TPU: machines such as h100-80gb-8, one for every job.")
_NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "TPU slices of every pretraining and eval.")
_DOCKER_IMAGE = flags.DEFINE_string(
    "docker_image", None, "Image with the code and what it needs; launch/Dockerfile makes one.")
_BASE_DOCKER_IMAGE = flags.DEFINE_string(
    "base_docker_image", None, "Image with what the code needs; xpk adds the last commit to it.")
_STORAGE = flags.DEFINE_multi_string(
    "storage", [], "Storage of the cluster that the jobs mount (xpk storage list); repeatable.")
_PRIORITY = flags.DEFINE_enum(
    "priority", "medium", ["very-low", "low", "medium", "high", "very-high"], "In the queue.")
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 50, "How often the cluster starts a stopped job again.")
_WORKLOADS = flags.DEFINE_string(
    "workloads", None, "Beginning of the workloads' names; by default made from the launch.")
_CREATE_FLAGS = flags.DEFINE_multi_string(
    "create_flag", [], "Another flag of `xpk workload create`, such as --spot; may be repeated.")
_DELETE = flags.DEFINE_bool("delete", False, "Delete the workloads of this launch, no more.")
_POLL_SECONDS = flags.DEFINE_float("poll_seconds", 60.0, "Time between looks at the workloads.")

_NAME_LIMIT = 36  # 40 with the number of the job
_MOST_FAILED_POLLS = 10
_GPUS = re.compile(r"(?:h100|h200|b200|gb200|a100|l4|a3|a4).*-(\d+)")
# Exit statuses of `xpk workload list --wait-for-job-completion`; 1 stands for all else.
_SUCCEEDED, _STILL_RUNNING, _FAILED = 0, 124, 125
RUNNING, DONE, FAILED, ABSENT, UNKNOWN = "running", "done", "failed", "absent", "unknown"


def main(argv: Sequence[str]):
  del argv
  if not _CLUSTER.value:
    raise UserError("--cluster=CLUSTER is missing; `xpk cluster list` shows them.")
  if _WORKLOADS.value and not re.fullmatch(r"[a-z]([-a-z0-9]{0,34}[a-z0-9])?", _WORKLOADS.value):
    raise UserError(f"--workloads={_WORKLOADS.value} has to be at most {_NAME_LIMIT} lower-case "
                    "letters, digits and -, a letter first.")
  if _DELETE.value and _WORKLOADS.value:
    _delete(shell.Commands(flags.FLAGS.dry_run, _POLL_SECONDS.value / 10), _WORKLOADS.value)
    return
  if not _DELETE.value:
    _check_flags()
  launch = command_line.read_launch(_num_devices())
  if "://" in launch.workdir:
    raise UserError(f"--workdir={launch.workdir} is not a folder; give the one at which a storage "
                    "of the cluster is mounted, and --storage=NAME (xpk storage list).")
  commands = shell.Commands(launch.dry_run, _POLL_SECONDS.value / 10)
  jobs = make_jobs(launch)
  base = _WORKLOADS.value or _base_name(launch, jobs)
  if _DELETE.value:
    _delete(commands, base)
    return
  names = {job.name: f"{base}-{i:03d}" for i, job in enumerate(jobs)}
  environment = command_line.environment(launch, "xpk")
  with tempfile.TemporaryDirectory() as folder:
    script_dir = ""
    if not _DOCKER_IMAGE.value:
      for line in cloud.check_source(launch.filename):
        print(f"note: {line}", flush=True)
      environment = cloud.with_revision(environment, cloud.revision())
      script_dir = "COMMIT" if launch.dry_run else str(Path(folder) / "code")
      if not launch.dry_run:
        cloud.extract_commit(Path(script_dir), cloud.revision())
    workloads = [Workload(names[j.name], j, _create_command(names[j.name], j, environment,
                                                            script_dir)) for j in jobs]
    if launch.dry_run:
      _show(workloads, names, commands)
      return
    if not _STORAGE.value:
      print(f"note: without --storage, {launch.workdir} has to be a folder that the cluster mounts "
            "into every job by itself.", flush=True)
    _run(workloads, commands, base)


@dataclasses.dataclass(frozen=True)
class Workload:
  """One job and the command that submits it."""
  name: str
  job: Job
  create: tuple[str, ...]


def _check_flags() -> None:
  if bool(_TPU_TYPE.value) == bool(_DEVICE_TYPE.value):
    raise UserError("give one of --tpu_type, such as v5litepod-16, and --device_type, such as "
                    "h100-80gb-8.")
  if bool(_DOCKER_IMAGE.value) == bool(_BASE_DOCKER_IMAGE.value):
    raise UserError("give one of --docker_image, which has the code, and --base_docker_image, "
                    "which has only what the code needs; launch/Dockerfile makes the former.")
  if _DEVICE_TYPE.value and _NUM_SLICES.value != 1:
    raise UserError("--num_slices is for --tpu_type; a job on --device_type has one machine.")
  if _NUM_SLICES.value < 1 or _MAX_RESTARTS.value < 0 or _POLL_SECONDS.value < 0:
    raise UserError("--num_slices must be at least 1; --max_restarts and --poll_seconds at least "
                    "0.")


def _num_devices() -> int:
  if _TPU_TYPE.value:
    return cloud.num_devices(_TPU_TYPE.value) * _NUM_SLICES.value
  match = _GPUS.fullmatch(_DEVICE_TYPE.value or "")
  return int(match[1]) if match else 0


def _base_name(launch: Launch, jobs: Sequence[Job]) -> str:
  key = json.dumps([launch.name, [j.command for j in jobs]])
  return cloud.resource_name(launch.name, key, _NAME_LIMIT)


# Commands.


def quote(word: str) -> str:
  """A word for bash, on one line and without what xpk's YAML or the cluster would read.

  xpk puts the command into an indented block of YAML, for GPUs also between double quotes,
  and Kubernetes replaces $(NAME).
  """
  if not re.search(r"[\x00-\x1f\x7f\"'$\\]", word):
    return shlex.quote(word)
  special = lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode())
  return "$'" + re.sub(r"[\x00-\x1f\x7f\"'$\\]", special, word) + "'"


def command_text(job: Job, environment: Mapping[str, str]) -> str:
  """The job as one line of bash; python takes the place of bash, so that it is told to stop."""
  exports = "".join(f"export {k}={quote(v)}; " for k, v in environment.items())
  if job.kind == REPORT and _TPU_TYPE.value and cloud.num_hosts(_TPU_TYPE.value) > 1:
    exports = f'[ "${{TPU_WORKER_ID:-0}}" = 0 ] || exit 0; {exports}'  # one machine is enough
  return f"{exports}exec python {' '.join(quote(word) for word in job.command)}"


def _where() -> list[str]:
  return [f"--cluster={_CLUSTER.value}",
          *([f"--project={_PROJECT.value}"] if _PROJECT.value else []),
          *([f"--zone={_ZONE.value}"] if _ZONE.value else [])]


def _create_command(name: str, job: Job, environment: Mapping[str, str],
                    script_dir: str) -> tuple[str, ...]:
  if _TPU_TYPE.value:
    slices = 1 if job.kind == REPORT else _NUM_SLICES.value
    device = [f"--tpu-type={_TPU_TYPE.value}", f"--num-slices={slices}"]
  else:
    device = [f"--device-type={_DEVICE_TYPE.value}"]
  image = ([f"--docker-image={_DOCKER_IMAGE.value}"] if _DOCKER_IMAGE.value else
           [f"--base-docker-image={_BASE_DOCKER_IMAGE.value}", f"--script-dir={script_dir}"])
  return ("xpk", "workload", "create", f"--workload={name}", *_where(), *device, *image,
          *(f"--storage={s}" for s in _STORAGE.value), f"--priority={_PRIORITY.value}",
          f"--max-restarts={_MAX_RESTARTS.value}", *_CREATE_FLAGS.value,
          f"--command={command_text(job, environment)}")


def _look_command(name: str) -> list[str]:
  return ["xpk", "workload", "list", *_where(), f"--wait-for-job-completion={name}",
          "--timeout=0"]


def _delete_command(base: str) -> list[str]:
  # xpk takes every workload whose name contains the text; the hash in it is nobody else's.
  return ["xpk", "workload", "delete", *_where(), f"--filter-by-job={base}-", "--force"]


def _state(name: str, commands: shell.Commands) -> str:
  done = commands.run(_look_command(name), text="", check=False)
  if done.returncode in (_SUCCEEDED, _STILL_RUNNING, _FAILED):
    return {_SUCCEEDED: DONE, _STILL_RUNNING: RUNNING, _FAILED: FAILED}[done.returncode]
  return ABSENT if "does not exist" in done.stdout + done.stderr else UNKNOWN


# What is done with them.


def _show(workloads: Sequence[Workload], names: Mapping[str, str],
          commands: shell.Commands) -> None:
  if not _DOCKER_IMAGE.value:
    print("# COMMIT is a temporary folder with the files of the last commit")
  for w in workloads:
    after = ", ".join(names[a] for a in w.job.after)
    ended = "ended, and one of them well" if w.job.any_of else "ended well"
    print(f"# {w.job.name}" + (f", after {after} {ended}" if after else ""))
    commands.run(w.create)
  print("# until each has ended:")
  commands.run(_look_command(workloads[0].name))


class _Study:
  """The workloads of a launch on their way."""

  def __init__(self, workloads: Sequence[Workload], commands: shell.Commands):
    self.states: dict[str, str] = {}  # of jobs that have ended: DONE or why not
    self.running: dict[str, Workload] = {}
    self._waiting = {w.job.name: w for w in workloads}
    self._failed_polls: dict[str, int] = {}
    self._commands = commands

  @property
  def ended(self) -> bool:
    return not self._waiting and not self.running

  def step(self) -> None:
    """Submits what can be, then looks once at everything that runs."""
    for workload in list(self._waiting.values()):
      states = [self.states.get(a) for a in workload.job.after]
      if None in states:
        continue
      succeeded = [s == DONE for s in states]
      if any(succeeded) if workload.job.any_of else all(succeeded):
        self._submit(workload)
      else:
        self._end(workload, "not run, what it needs has not succeeded")
    for workload in list(self.running.values()):
      self._look(workload)

  def _submit(self, workload: Workload) -> None:
    state = _state(workload.name, self._commands)
    if state == UNKNOWN:  # never submitted twice
      self._count(workload, "xpk does not say whether there is a workload {} already")
      return
    if state == DONE and workload.job.kind != REPORT:  # by the same command before
      self._end(workload, DONE)
      return
    if state in (DONE, FAILED):  # an earlier report, or a job that goes on where it failed
      self._commands.run(["xpk", "workload", "delete", *_where(), f"--workload={workload.name}",
                          "--force"], retries=2, text="")
    if state != RUNNING:
      done = self._commands.run(workload.create, retries=3, text="", check=False,
                                retry_if=is_transient)
      if done.returncode and _state(workload.name, self._commands) not in (RUNNING, DONE):
        self._end(workload, f"not created: {shell.reason(done.stderr or done.stdout)}")
        return
    del self._waiting[workload.job.name]
    self._failed_polls.pop(workload.name, None)
    self.running[workload.job.name] = workload
    print(f"{workload.job.name}: {'runs' if state == RUNNING else 'submitted'} as {workload.name}",
          flush=True)

  def _look(self, workload: Workload) -> None:
    state = _state(workload.name, self._commands)
    if state == RUNNING:
      self._failed_polls.pop(workload.name, None)
    elif state == DONE:
      self._end(workload, DONE)
    elif state == FAILED:
      self._end(workload, f"failed; its log is in the Cloud console, as workload {workload.name}")
    else:
      self._count(workload, "{} is gone" if state == ABSENT else
                  "xpk does not say how {} is; it may still run")

  def _count(self, workload: Workload, words: str) -> None:
    """Counts an answer that says nothing; too many of them end the job."""
    self._failed_polls[workload.name] = self._failed_polls.get(workload.name, 0) + 1
    if self._failed_polls[workload.name] >= _MOST_FAILED_POLLS:
      self._end(workload, words.format(workload.name))

  def _end(self, workload: Workload, state: str) -> None:
    self._waiting.pop(workload.job.name, None)
    self.running.pop(workload.job.name, None)
    self.states[workload.job.name] = state
    print(f"{workload.job.name}: {state}", flush=True)


def _run(workloads: Sequence[Workload], commands: shell.Commands, base: str) -> None:
  study = _Study(workloads, commands)
  delete = shlex.join(_delete_command(base))
  signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
  print(f"workloads: {base}-000 to {workloads[-1].name}; deleted by\n  {delete}", flush=True)
  try:
    while True:
      study.step()
      if study.ended:
        break
      time.sleep(_POLL_SECONDS.value)
  except BaseException:
    names = ", ".join(w.name for w in study.running.values())
    print(f"what has been submitted goes on ({names or 'none runs'}); the same command goes on "
          f"with the rest. All workloads of this launch are deleted by\n  {delete}", flush=True)
    raise
  failures = [f"  {name}: {s}" for name, s in study.states.items() if s != DONE]
  if failures:
    print("\n".join(["not all jobs are done:", *failures,
                     "the same command again runs what is left."]), flush=True)
    raise SystemExit(1)
  print("all jobs are done; the cluster removes their workloads by itself.", flush=True)


def _delete(commands: shell.Commands, base: str) -> None:
  done = commands.run(_delete_command(base), retries=2, text="", check=False,
                      retry_if=is_transient)
  if done.returncode:
    raise UserError(f"the workloads {base}-... could NOT be deleted "
                    f"({shell.reason(done.stderr or done.stdout)}); delete them by "
                    f"{shlex.join(_delete_command(base))}.")
  if not commands.dry_run:
    print(f"the workloads {base}-... are deleted.", flush=True)


if __name__ == "__main__":
  command_line.run(main, addresses=("workdir",))
