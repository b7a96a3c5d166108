"""Runs a sweep, or a whole study, as an XManager experiment.

  python -m launch.xm --config=configs/quickstart.py --workdir=gs://BUCKET/{name} \\
      --executor=vertex --accelerator=A100=8

`xmanager launch launch/xm.py -- FLAGS` does the same. One work unit per member pretrains it;
the evals and the report are auxiliary units, added when what they need has ended.
"""
# ruff: noqa: E402 -- `xmanager launch` imports this file without the repository on sys.path

import os
import pathlib
import sys


def _start_as_program() -> None:
  """Becomes `python -m launch.xm`: XManager's own start would not know configs and their flags."""
  root = str(pathlib.Path(__file__).resolve().parents[1])
  given = sys.argv[sys.argv.index("launch") + 2:] if "launch" in sys.argv else sys.argv[1:]
  path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
  os.execve(sys.executable, [sys.executable, "-m", "launch.xm", *given[given[:1] == ["--"]:]],
            {**os.environ, "PYTHONPATH": path})


if __name__ == "xm":  # the name under which `xmanager launch launch/xm.py` imports it
  _start_as_program()

import asyncio
import dataclasses
import shlex
import signal
import tempfile
from collections.abc import Sequence

from absl import flags

from launch import cloud, command_line
from launch.jobs import Job, Launch, make_jobs
from wd_plasticity import errors
from wd_plasticity.errors import UserError
from wd_plasticity.study.plan import PRETRAINING

try:
  from xmanager import xm, xm_local

  from launch import xm_experiment
except ImportError:
  xm = None
  _MISSING = ("XManager is not installed here; `pip install -e .[xmanager]` installs it, in an "
              "environment of its own because it needs protobuf<7.")
  __doc__ = f"{_MISSING}\n\n{__doc__}"

_EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ["local", "vertex", "kubernetes"], "Where the work units run.")
_ACCELERATOR = flags.DEFINE_string(
    "accelerator", None, "Of a work unit, as XManager names it: A100=8, v5e=4x4, local_gpu=1.")
_CPU = flags.DEFINE_float("cpu", None, "CPUs of a work unit.")
_RAM = flags.DEFINE_float("ram", None, "Memory of a work unit in GiB.")
_IMAGE = flags.DEFINE_string(
    "image", None, "Image with the code; by default one is made of the last commit.")
_PUSH_IMAGE_TAG = flags.DEFINE_string(
    "push_image_tag", None, "Where the image that is made is pushed to, for vertex and kubernetes.")
_VOLUMES = flags.DEFINE_multi_string(
    "volume", [], "FOLDER:FOLDER_IN_THE_CONTAINER of this machine, for local; may be repeated.")


def main(argv: Sequence[str]):
  del argv
  if xm is None:
    raise UserError(_MISSING)
  requirements = _requirements()
  launch = command_line.read_launch(_num_devices(requirements))
  workdir = launch.workdir
  bucket, path = cloud.split_bucket(workdir)
  if bucket and _EXECUTOR.value == "kubernetes":
    raise UserError("XManager mounts no bucket on Kubernetes; give a --workdir that the cluster "
                    "mounts into every pod, or use launch.xpk.")
  if not bucket and _EXECUTOR.value == "vertex":
    raise UserError(f"--workdir={workdir} would be lost with the machine; give gs://BUCKET/FOLDER.")
  launch = dataclasses.replace(
      launch, workdir=path if bucket or _EXECUTOR.value != "local" else os.path.abspath(workdir))
  jobs = make_jobs(launch)
  make_executor = _executor_of(launch, bucket, requirements)
  environment = command_line.environment(launch, "xmanager")
  with tempfile.TemporaryDirectory() as folder:
    if _IMAGE.value:
      spec = xm.Container(image_path=_IMAGE.value)
    else:
      for line in cloud.check_source(launch.filename):
        print(f"note: {line}", flush=True)
      environment = cloud.with_revision(environment, cloud.revision())
      extra = _jax_extra(requirements)
      spec = xm_experiment.dockerfile(pathlib.Path(folder), extra)
    units = [xm_experiment.Unit(xm_experiment.unit_name(j), j, environment) for j in jobs]
    if launch.dry_run:
      _show(launch, units, spec, make_executor)
      return
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if _EXECUTOR.value == "local" and not bucket:
      _make_folder(launch.workdir)
    states = asyncio.run(xm_experiment.run(
        xm_experiment.create(launch.name), launch.name, launch.tags, _notes(launch, jobs), units,
        spec, _executor_spec(), make_executor))
  failures = [f"  {name}: {s}" for name, s in states.items() if s != xm_experiment.DONE]
  if failures:
    print("\n".join(["not all jobs are done:", *failures,
                     "the same command again runs what is left."]), flush=True)
    raise SystemExit(1)
  print("all jobs are done.", flush=True)


def _make_folder(workdir: str) -> None:
  """Makes the work directory, which docker would make as one of root's."""
  try:
    os.makedirs(workdir, exist_ok=True)
  except OSError as e:
    raise UserError(f"{errors.describe(e, workdir)}.") from e


def _requirements():
  """What a work unit asks for.

  Raises:
    UserError: XManager does not understand it.
  """
  resources = {}
  if _CPU.value:
    resources["cpu"] = _CPU.value * xm.vCPU
  if _RAM.value:
    resources["ram"] = _RAM.value * xm.GiB
  if _ACCELERATOR.value:
    name, equals, amount = _ACCELERATOR.value.partition("=")
    name = f"tpu_{name}" if name.lower().startswith("v") and name[1:2].isdigit() and (
        f"TPU_{name.upper()}" in xm.ResourceType.__members__) else name
    if not equals or name.upper() not in xm.AcceleratorType.__dict__:
      known = sorted(n for n in xm.AcceleratorType.__dict__ if n.isupper() and n[0] != "_")
      raise UserError(f"--accelerator={_ACCELERATOR.value} is not NAME=AMOUNT with one of "
                      f"{', '.join(known)}; A100=8 and v5e=4x4 are examples.")
    resources[name] = amount
  try:
    made = xm.JobRequirements(resources)
  except Exception as e:  # of several kinds
    raise UserError(f"XManager does not accept --accelerator={_ACCELERATOR.value}: "
                    f"{' '.join(str(e).split())}") from e
  on_vertex = (xm.ResourceType.TPU_V2, xm.ResourceType.TPU_V3)
  if made.accelerator in xm.TpuType and not (
      _EXECUTOR.value == "vertex" and made.accelerator in on_vertex):
    raise UserError(f"XManager cannot ask --executor={_EXECUTOR.value} for "
                    f"--accelerator={_ACCELERATOR.value}; launch.tpu_vm and launch.xpk can.")
  return made


def _num_devices(requirements) -> int:
  if requirements.topology is None:
    return 1 if _EXECUTOR.value == "local" else 0
  chips = requirements.topology.chip_count
  return chips * (2 if requirements.accelerator in (xm.ResourceType.TPU_V2,
                                                    xm.ResourceType.TPU_V3) else 1)


def _jax_extra(requirements) -> str:
  if requirements.accelerator is None:
    return ""
  return "tpu" if requirements.accelerator in xm.TpuType else "cuda12"


def _executor_spec():
  if _EXECUTOR.value == "local":
    return xm_local.LocalSpec()
  kind = xm_local.VertexSpec if _EXECUTOR.value == "vertex" else xm_local.KubernetesSpec
  return kind(push_image_tag=_PUSH_IMAGE_TAG.value)


def _executor_of(launch: Launch, bucket: str, requirements):
  """A function that makes the executor of one work unit.

  Raises:
    UserError: a --volume cannot be used.
  """
  if _EXECUTOR.value == "vertex":
    return lambda: xm_local.Vertex(requirements=requirements)
  if _EXECUTOR.value == "kubernetes":
    return lambda: xm_local.Kubernetes(requirements=requirements)
  volumes = {} if bucket else {launch.workdir: launch.workdir}
  for volume in _VOLUMES.value:
    outside, colon, inside = volume.rpartition(":")
    if not colon or not os.path.isabs(inside) or not os.path.exists(outside):
      raise UserError(f"--volume={volume} is not FOLDER:FOLDER_IN_THE_CONTAINER with a folder that "
                      "exists and an absolute path.")
    volumes[os.path.abspath(outside)] = inside
  return lambda: xm_local.Local(
      requirements=requirements, docker_options=xm_local.DockerOptions(volumes=dict(volumes)))


def _notes(launch: Launch, jobs: Sequence[Job]) -> str:
  """The notes, and which work unit pretrains which members."""
  lines = [f"{xm_experiment.unit_name(j)}: {', '.join(j.members)}" for j in jobs
           if j.kind == PRETRAINING]
  return "\n".join(filter(None, [launch.notes, f"work directory: {launch.workdir}", *lines]))


def _show(launch: Launch, units, spec, make_executor) -> None:
  print(f"experiment: {launch.name}\ntags: {', '.join(launch.tags)}")
  print("notes:\n  " + _notes(launch, [u.job for u in units]).replace("\n", "\n  "))
  print(f"executable: {spec}\nexecutor: {make_executor()}")
  for name, value in units[0].environment.items():
    print(f"variable: {name}={value}")
  for unit in units:
    role = "work unit" if unit.job.kind == PRETRAINING else "auxiliary unit"
    names = {u.job.name: u.name for u in units}
    after = ", ".join(names[a] for a in unit.job.after)
    ended = "ended, and one of them well" if unit.job.any_of else "ended well"
    print(f"{role} {unit.name}" + (f", after {after} {ended}" if after else "")
          + f":\n  {shlex.join(unit.job.command)}")


if __name__ == "__main__":
  command_line.run(main, addresses=("workdir",))
