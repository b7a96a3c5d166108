"""Runs a sweep, or a whole study, on Cloud TPU VMs, through gcloud.

  python -m launch.tpu_vm --config=configs/quickstart.py --workdir=gs://BUCKET/{name} \\
      --project=PROJECT --zone=us-west4-a --accelerator_type=v5litepod-8 --spot

It stays in the foreground: creates the slices, installs the last commit on them, runs the jobs
and shows their logs, makes a slice again when it was preempted, and deletes everything at the
end. When it is interrupted the jobs go on, and the same command goes back to them.
"""

import dataclasses
import json
import re
import shlex
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import cloud, command_line, shell
from launch import tpu_vm_scripts as scripts
from launch.jobs import Job, Launch, make_jobs
from launch.tpu_vm_lane import Lane, Outcomes, Plan, job_folder, start_script, worker_of
from launch.tpu_vm_slice import ABSENT, Request, Slice, exists_in_words
from wd_plasticity.errors import UserError
from wd_plasticity.files import parse_json
from wd_plasticity.study.plan import REPORT

_PROJECT = flags.DEFINE_string("project", None, "Google Cloud project.")
_ZONE = flags.DEFINE_string("zone", None, "Zone of the TPUs, such as us-west4-a.")
_ACCELERATOR_TYPE = flags.DEFINE_string(
    "accelerator_type", None, "Slice of every job, such as v5litepod-8.")
_RUNTIME_VERSION = flags.DEFINE_string(
    "runtime_version", None, "Image of the machines; by default the one for the accelerator.")
_QUEUED = flags.DEFINE_bool(
    "queued", True, "Ask by queued resources, which wait for capacity; --noqueued: directly.")
_SPOT = flags.DEFINE_bool("spot", False, "Take spot capacity, cheaper and preempted at any time.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices that work side by side.")
_TPU_NAME = flags.DEFINE_string(
    "tpu_name", None, "Name of the slices; by default made from that of the launch.")
_REPOSITORY = flags.DEFINE_string(
    "repository", None, "Address that the machines clone the code from; by default the last commit "
    "of this clone is copied to them.")
_REVISION = flags.DEFINE_string(
    "revision", None, "Commit, tag or branch of --repository; by default this clone's last commit.")
_SETUP = flags.DEFINE_string(
    "setup", "", "Shell commands run on every machine first, such as the mount of a shared folder.")
_CREATE_FLAGS = flags.DEFINE_multi_string(
    "create_flag", [], "Another flag of gcloud's create, such as --network=NAME; may be repeated.")
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 50, "How often a slice is made again, or a job started again, by each slice.")
_KEEP = flags.DEFINE_bool("keep", False, "Leave the slices when everything has ended.")
_DELETE_ON_ERROR = flags.DEFINE_bool(
    "delete_on_error", True, "Also delete a slice that could not be used.")
_DELETE = flags.DEFINE_bool("delete", False, "Delete the slices of this launch, and do no more.")
_POLL_SECONDS = flags.DEFINE_float("poll_seconds", 20.0, "Time between looks at slices and jobs.")

# https://cloud.google.com/tpu/docs/runtimes
_RUNTIME_VERSIONS = {
    "v2": "tpu-ubuntu2204-base", "v3": "tpu-ubuntu2204-base", "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")


def main(argv: Sequence[str]):
  del argv
  _check_flags()
  if _DELETE.value:
    _delete()
    return
  launch = command_line.read_launch(cloud.num_devices(_ACCELERATOR_TYPE.value))
  _check_slices(launch)
  source = _source(launch)
  base = _base_name(launch.name)
  bucket, workdir = cloud.split_bucket(launch.workdir)
  launch = dataclasses.replace(launch, workdir=workdir)
  commands = shell.Commands(launch.dry_run, pause_seconds=_POLL_SECONDS.value / 4)
  num = min(_SLICES.value, 1 + max(j.index for j in make_jobs(launch)))
  names = [base if num == 1 else f"{base}-{i}" for i in range(num)]
  if not launch.dry_run:
    launch, source = _as_begun(launch, source, names, base, commands)
  request = _request(base, launch, source)
  jobs = make_jobs(launch)
  environment = cloud.with_revision(command_line.environment(launch, "tpu_vm"), source.revision)
  if launch.dry_run:
    _show(names, request, commands, jobs, source, bucket, environment)
    return
  print(f"work directory: {launch.workdir}"
        + (f" (gs://{bucket})" if bucket else "") + f"; slices: {', '.join(names)}", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    archive = None
    if not source.repository:
      archive = Path(folder) / source.archive
      cloud.write_archive(archive, source.revision)
    plan = Plan(source=source, archive=archive, bucket=bucket, setup=_SETUP.value,
                environment=environment, max_restarts=_MAX_RESTARTS.value, keep=_KEEP.value,
                delete_on_error=_DELETE_ON_ERROR.value, poll_seconds=_POLL_SECONDS.value)
    _run(names, request, commands, jobs, plan)


def _check_flags() -> None:
  if not _PROJECT.value or not _ZONE.value:
    raise UserError("--project=PROJECT and --zone=ZONE of Google Cloud are needed.")
  if _TPU_NAME.value and not _NAME.fullmatch(_TPU_NAME.value):
    raise UserError(f"--tpu_name={_TPU_NAME.value} has to be at most 50 lower-case letters, digits "
                    "and -, a letter first.")
  if _SLICES.value < 1 or _MAX_RESTARTS.value < 0 or _POLL_SECONDS.value < 0:
    raise UserError("--slices must be at least 1; --max_restarts and --poll_seconds at least 0.")
  if _DELETE.value:
    return
  if not _ACCELERATOR_TYPE.value:
    raise UserError("--accelerator_type=TYPE is missing; v5litepod-8 is eight chips of a v5e.")
  if not _runtime_version():
    raise UserError(f"--runtime_version is needed for --accelerator_type={_ACCELERATOR_TYPE.value};"
                    " `gcloud compute tpus tpu-vm versions list` shows them.")


def _runtime_version() -> str:
  kind = (_ACCELERATOR_TYPE.value or "").rpartition("-")[0]
  return _RUNTIME_VERSION.value or _RUNTIME_VERSIONS.get(kind, "")


def _check_slices(launch: Launch) -> None:
  """Refuses a work directory that would be lost, or that not all machines would see."""
  if launch.workdir.startswith("gs://") or _SETUP.value:
    return
  if cloud.num_hosts(_ACCELERATOR_TYPE.value) > 1 or _SLICES.value > 1:
    raise UserError(f"--workdir={launch.workdir} would be another folder on every machine; give "
                    "gs://BUCKET/FOLDER, or mount a shared folder by --setup.")
  if _SPOT.value or not _KEEP.value:
    raise UserError(f"--workdir={launch.workdir} would be deleted with the slice; give "
                    "gs://BUCKET/FOLDER, mount a shared folder by --setup, or add --keep without "
                    "--spot.")


def _source(launch: Launch) -> scripts.Source:
  if _REPOSITORY.value:
    return scripts.Source(_REVISION.value or cloud.revision(), _REPOSITORY.value)
  if _REVISION.value:
    raise UserError("--revision names a commit of --repository, which is missing.")
  for line in cloud.check_source(launch.filename):
    print(f"note: {line}", flush=True)
  return scripts.Source(cloud.revision())


def _base_name(name: str) -> str:
  """Name of the slices, the same whenever the same command is typed."""
  if _TPU_NAME.value:
    return _TPU_NAME.value
  key = [name, flags.FLAGS.workdir, _PROJECT.value, _ZONE.value, _ACCELERATOR_TYPE.value or ""]
  return cloud.resource_name(name, json.dumps(key), 50)


def _request(base: str, launch: Launch, source: scripts.Source) -> Request:
  begun = json.dumps({"workdir": launch.workdir, "revision": source.revision})
  return Request(
      project=_PROJECT.value, zone=_ZONE.value, accelerator_type=_ACCELERATOR_TYPE.value,
      runtime_version=_runtime_version(), queued=_QUEUED.value, spot=_SPOT.value,
      labels=cloud.labels(base, launch.tags), description=begun,
      create_flags=tuple(_CREATE_FLAGS.value))


def _as_begun(launch: Launch, source: scripts.Source, names: Sequence[str], base: str,
              commands: shell.Commands) -> tuple[Launch, scripts.Source]:
  """The launch and the code of slices that exist already, with which they go on."""
  request = _request(base, launch, source)
  for name in names:
    text = Slice(name, request, commands, print).description()
    if text is None:
      continue
    try:
      begun = parse_json(text)
      workdir, revision = begun["workdir"], begun["revision"]
      if not isinstance(workdir, str) or not re.fullmatch("[0-9a-f]{7,64}", revision):
        raise ValueError("not as we write it")
    except (ValueError, KeyError, TypeError):
      raise UserError(f"{name} exists but was not made by this program; give another --tpu_name."
                      ) from None
    if workdir != launch.workdir and not re.search(r"{date}|{time}", flags.FLAGS.workdir):
      raise UserError(f"{name} exists and works in {workdir}; give another --tpu_name, or delete "
                      "it first by --delete.")
    print(f"going on with {name}, at revision {revision[:12]} and in {workdir}", flush=True)
    return (dataclasses.replace(launch, workdir=workdir),
            dataclasses.replace(source, revision=revision))
  return launch, source


def _lanes(jobs: Sequence[Job], num: int) -> list[list[Job]]:
  """Jobs of every slice: those on the same members together, each pretraining first."""
  work = [j for j in jobs if j.kind != REPORT]
  order = sorted(work, key=lambda j: j.index)  # stable: a pretraining stays before its evals
  return [[j for j in order if j.index % num == lane] for lane in range(num)]


def _run(names: Sequence[str], request: Request, commands: shell.Commands, jobs: Sequence[Job],
         plan: Plan) -> None:
  """Runs all lanes side by side and says what became of jobs and slices."""
  outcomes = Outcomes(jobs, len(names))
  slices, threads = [], []
  for name, lane_jobs in zip(names, _lanes(jobs, len(names)), strict=True):
    say = lambda text, name=name: print(f"[{name}] {text}", flush=True)
    slices.append(Slice(name, request, commands, say, plan.poll_seconds))
    lane = Lane(slices[-1], lane_jobs, plan, outcomes, say)
    threads.append(threading.Thread(target=lane.run, daemon=True))
  signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
  try:
    for thread in threads:
      thread.start()
    for thread in threads:
      while thread.is_alive():
        thread.join(0.5)
  except KeyboardInterrupt:
    print(exists_in_words(slices), flush=True)
    print("what has been started there goes on by itself; the same command comes back to it, and "
          "with --delete it deletes the slices.", flush=True)
    raise
  if any(s.may_exist for s in slices):
    print(exists_in_words(slices), flush=True)
  if failures := outcomes.failures():
    raise SystemExit(_failed(failures))
  print("all jobs are done.", flush=True)


def _failed(failures: Sequence[str]) -> int:
  print("\n".join(["not all jobs are done:", *(f"  {line}" for line in failures),
                   "the same command again runs what is left."]), flush=True)
  return 1


def _delete() -> None:
  """Deletes the slices of a launch, however many there are.

  Raises:
    SystemExit: one could not be deleted.
  """
  name = flags.FLAGS.name
  if not _TPU_NAME.value and flags.FLAGS.config is None and name is None:
    raise UserError("--delete needs the --tpu_name, or the --config and --workdir, of the launch.")
  base = _base_name(name or (flags.FLAGS.config.name if flags.FLAGS.config else ""))
  # Its own commands are wanted here: nothing is deleted without a look at whose it is.
  looking = shell.Commands(pause_seconds=_POLL_SECONDS.value / 4)
  deleting = shell.Commands(flags.FLAGS.dry_run, pause_seconds=_POLL_SECONDS.value / 4)
  found, kept, index = 0, 0, -1
  while True:
    name = base if index < 0 else f"{base}-{index}"
    there = _find(name, base, looking)
    if there:
      found += 1
      there = Slice(name, there, deleting, lambda text, name=name: print(f"[{name}] {text}"))
      kept += not there.delete()
    elif index >= _SLICES.value:
      break
    index += 1
  if not found:
    print(f"there is no TPU slice {base} in {_ZONE.value}.", flush=True)
  if kept:
    raise SystemExit(1)


def _find(name: str, base: str, commands: shell.Commands) -> Request | None:
  """How a slice was made, if there is one."""
  for queued in (True, False):
    request = Request(
        project=_PROJECT.value, zone=_ZONE.value, accelerator_type="", runtime_version="",
        queued=queued, spot=False, labels={"wd-plasticity": base}, description="")
    if Slice(name, request, commands, print).state()[0] != ABSENT:
      return request
  return None


def _show(names: Sequence[str], request: Request, commands: shell.Commands, jobs: Sequence[Job],
          source: scripts.Source, bucket: str, environment: dict[str, str]) -> None:
  """Prints every command of a launch in which nothing goes wrong."""
  if not source.repository:
    print(f"$ {shlex.join(['git', 'archive', '--output=' + source.archive, source.revision])}")
  hosts = cloud.num_hosts(request.accelerator_type)
  lanes = _lanes(jobs, len(names))
  lanes[-1] += [j for j in jobs if j.kind == REPORT]
  for name, lane_jobs in zip(names, lanes, strict=True):
    slice_ = Slice(name, request, commands, print)
    print(f"\n# {name}: {len(lane_jobs)} jobs, one after another")
    commands.run(slice_.create_command())
    print("# until it is ready:")
    for queued in ([True, False] if request.queued else [False]):
      commands.run(slice_.describe_command(queued))
    if not source.repository:
      slice_.copy(Path(source.archive))
    slice_.ssh(scripts.install(source, bucket, _SETUP.value))
    for job in lane_jobs:
      print(f"# {job.name}" + (", when all slices have ended" if job.kind == REPORT else ""))
      slice_.ssh(start_script(job, environment, hosts), worker_of(job))
      print("# until it has ended:")
      slice_.ssh(scripts.poll(job_folder(job), 0), "0")
      if hosts > 1 and worker_of(job) == "all":
        slice_.ssh(scripts.statuses(job_folder(job)))
    if not _KEEP.value:
      commands.run(slice_.delete_command())


if __name__ == "__main__":
  command_line.run(main, addresses=("workdir",))
