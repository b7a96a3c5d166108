"""The devices of this machine, divided among jobs, found without starting JAX.

JAX takes all devices that it sees, and keeps them: so the launcher must not start it,
and every job is shown only its own.
"""

import dataclasses
import glob
import importlib.util
import os
import subprocess
from collections.abc import Mapping, Sequence

from wd_plasticity.errors import UserError

# Chips of one host as a box, for a process that has them to itself (jax/_src/test_multiprocess.py).
_TPU_BOXES = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


@dataclasses.dataclass(frozen=True)
class Group:
  """Devices of one job.

  Attributes:
    label: for people, such as 'GPU 0,1'.
    environment: variables that show a program these devices alone.
    cores: that its threads may use; empty for all.
  """
  label: str
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  cores: tuple[int, ...] = ()


def find(environ: Mapping[str, str]) -> tuple[str, list[str]]:
  """The platform of programs started with these variables, and its devices: none for 'cpu'."""
  wanted = environ.get("JAX_PLATFORMS", "").split(",")[0].lower()
  if wanted in ("", "gpu", "cuda") and (wanted or _installed("jax_cuda12_plugin",
                                                             "jax_cuda13_plugin")):
    if gpus := _gpus(environ):
      return "gpu", gpus
  if wanted in ("", "tpu") and (wanted or _installed("libtpu")):
    if chips := glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"):
      shown = environ.get("TPU_VISIBLE_CHIPS", "")
      return "tpu", shown.split(",") if shown else [str(i) for i in range(len(chips))]
  return "cpu", []


def _installed(*modules: str) -> bool:
  return any(importlib.util.find_spec(m) is not None for m in modules)


def _gpus(environ: Mapping[str, str]) -> list[str]:
  if "CUDA_VISIBLE_DEVICES" in environ:
    shown = [d.strip() for d in environ["CUDA_VISIBLE_DEVICES"].split(",")]
    return [d for d in shown if d and d != "-1"]
  try:
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True,
                          timeout=60).stdout
  except (OSError, subprocess.SubprocessError):
    return []
  return [str(i) for i in range(sum(line.startswith("GPU ") for line in said.splitlines()))]


def divide(platform: str, devices: Sequence[str], devices_per_job: int | None,
           jobs_at_once: int | None, cores: Sequence[int]) -> list[Group]:
  """Groups of devices, one for each job at a time.

  Args:
    platform, devices: of this machine, from `find`.
    devices_per_job: GPUs or TPU chips; None for one.
    jobs_at_once: None for as many as the devices allow, which on a CPU is one.
    cores: that this process may use; on a CPU they are divided.

  Raises:
    UserError: there are not as many.
  """
  if jobs_at_once is not None and jobs_at_once < 1:
    raise UserError(f"--jobs_at_once={jobs_at_once} must be at least 1.")
  if platform == "cpu":
    return _divide_cores(devices_per_job, jobs_at_once or 1, cores)
  size = 1 if devices_per_job is None else devices_per_job
  name = "GPU" if platform == "gpu" else "TPU chip"
  if not 1 <= size <= len(devices):
    raise UserError(f"--devices_per_job={size} must be from 1 to the {len(devices)} {name}(s) of "
                    "this machine.")
  if platform == "tpu" and size not in _TPU_BOXES:
    raise UserError(f"--devices_per_job={size} is not a part of a TPU host that one process can "
                    f"have; {', '.join(map(str, _TPU_BOXES))} are.")
  parts = [devices[i:i + size] for i in range(0, len(devices) - size + 1, size)]
  if (jobs_at_once or 1) > len(parts):
    raise UserError(f"--jobs_at_once={jobs_at_once} with {size} {name}(s) each are more than the "
                    f"{len(devices)} of this machine.")
  return [_group(platform, part, len(parts) == 1 and size == len(devices))
          for part in parts[:jobs_at_once]]


def _group(platform: str, devices: Sequence[str], all_of_them: bool) -> Group:
  names = ",".join(devices)
  if platform == "gpu":
    return Group(f"GPU {names}", {"CUDA_VISIBLE_DEVICES": names})
  if all_of_them:
    return Group(f"TPU {names}")
  return Group(f"TPU {names}", {
      "TPU_VISIBLE_CHIPS": names, "TPU_PROCESS_BOUNDS": "1,1,1",
      "TPU_CHIPS_PER_PROCESS_BOUNDS": _TPU_BOXES[len(devices)],
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"})


def _divide_cores(devices_per_job: int | None, jobs: int, cores: Sequence[int]) -> list[Group]:
  if devices_per_job is not None:
    raise UserError(f"--devices_per_job={devices_per_job} needs GPUs or TPU chips, and JAX would "
                    "compute on the CPU here; --jobs_at_once divides its cores.")
  if jobs == 1 or not cores:
    return [Group("CPU")] * jobs
  if jobs > len(cores):
    raise UserError(f"--jobs_at_once={jobs} is more than the {len(cores)} cores of this machine; "
                    "give fewer.")
  bounds = [round(i * len(cores) / jobs) for i in range(jobs + 1)]
  groups = []
  for a, b in zip(bounds, bounds[1:], strict=False):
    part = tuple(cores[a:b])
    label = f"core {part[0]}" if len(part) == 1 else f"cores {part[0]}-{part[-1]}"
    groups.append(Group(label, cores=part))
  return groups


def own_cores() -> list[int]:
  """Cores that this process may use; empty where the system does not tell."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
