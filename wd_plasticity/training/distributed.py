"""Start of `jax.distributed`: explicit, with a timeout, and told in one line."""

import os
import re

import jax
import numpy as np
from ml_collections import ConfigDict

from wd_plasticity.errors import UserError

MODES = ("auto", "on", "off")
# Set to 'on' by launchers whose machines JAX can tell apart though no variable shows it, such
# as those of a Cloud TPU slice.
PROCESSES_VARIABLE = "WD_PLASTICITY_DISTRIBUTED"


def initialise(section: ConfigDict) -> str:
  """Connects the processes of a run when there are several; returns the line to print.

  mode 'off' never connects, 'on' always, 'auto' when a coordinator is given or the
  environment is that of a cluster with more than one task, or a launcher says that it is.

  Raises:
    UserError: bad fields, or no answer from the coordinator within the timeout.
  """
  if section.mode not in MODES:
    raise UserError(f"distributed.mode={section.mode!r} is not one of {', '.join(MODES)}.")
  if section.mode == "on" or (section.mode == "auto" and (section.coordinator or _in_cluster())):
    _connect(section)
  return (f"process {jax.process_index()} of {jax.process_count()}: "
          f"{jax.local_device_count()} of {jax.device_count()} devices "
          f"({jax.devices()[0].device_kind}, {jax.default_backend()})")


def _in_cluster() -> bool:
  env = os.environ
  hosts = [h for h in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]
  # Of the job step, which srun sets: a batch script sees SLURM_NTASKS too, but is one process.
  return (int(env.get("SLURM_STEP_NUM_TASKS", "1") or 1) > 1 and "SLURM_PROCID" in env
          or int(env.get("OMPI_COMM_WORLD_SIZE", "1") or 1) > 1
          or env.get(PROCESSES_VARIABLE) == "on"
          or len(hosts) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in env)


def _connect(section):
  arguments = dict(initialization_timeout=section.timeout_seconds)
  if section.coordinator:
    if section.num_processes < 1 or not 0 <= section.process_id < section.num_processes:
      raise UserError(
          f"distributed.coordinator={section.coordinator} needs distributed.num_processes and a "
          "distributed.process_id from 0 to num_processes - 1.")
    arguments.update(coordinator_address=section.coordinator,
                     num_processes=section.num_processes, process_id=section.process_id)
  try:
    jax.distributed.initialize(**arguments)
  except (RuntimeError, ValueError) as e:
    reason = " ".join(str(e).split())[:200]
    raise UserError(
        f"the processes did not connect within {section.timeout_seconds} s "
        f"(coordinator {section.coordinator or 'found by JAX'}): {reason}; check the address and "
        "that all processes are started, or set distributed.mode=off for one process.") from e
  if not section.coordinator and _alone_on_node() and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
    # In a cluster JAX takes every process for one of a single GPU.
    for field in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
      jax.config.update(field, "all")


def _alone_on_node() -> bool:
  """Whether every node of a SLURM step or an Open MPI job runs one of its processes."""
  return bool(re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
              or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1")


def is_first() -> bool:
  """Whether this process writes the records of the run."""
  return jax.process_index() == 0


def barrier(name: str):
  """Waits for all processes."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)


def told_by_first(decide) -> int:
  """The whole number that `decide()` gives in the first process, in all processes.

  Raises:
    UserError: in all processes, when `decide` raised in the first.
  """
  if jax.process_count() == 1:
    return decide()
  from jax.experimental import multihost_utils
  value, error = -1, None
  if is_first():
    try:
      value = decide()
    except Exception as e:  # the others wait for an answer
      error = e
  value = int(multihost_utils.broadcast_one_to_all(np.int32(value)))
  if error is not None:
    raise error
  if value < 0:
    raise UserError("the first process cannot go on; it says why.")
  return value
