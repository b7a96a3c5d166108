"""Start of `jax.distributed`: explicit, with a timeout, and told in one line."""

import functools
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
from jax._src.clusters import SlurmCluster
from jax._src.distributed import global_state  # the keys of the coordinator have no public name
from ml_collections import ConfigDict

from wd_plasticity.errors import UserError
from wd_plasticity.limits import choose
from wd_plasticity.training import rendezvous

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
  check(section)
  if section.mode == "on" or (section.mode == "auto" and (section.coordinator or _in_cluster())):
    _connect(section)
  return (f"process {jax.process_index()} of {jax.process_count()}: "
          f"{jax.local_device_count()} of {jax.device_count()} devices "
          f"({jax.devices()[0].device_kind}, {jax.default_backend()})")


def check(section: ConfigDict) -> None:
  """Refuses fields that mean nothing together.

  Raises:
    UserError: with the field and what it can be.
  """
  choose("distributed.mode", section.mode, MODES)
  if section.mode != "off" and section.coordinator and not (
      0 <= section.process_id < section.num_processes):
    raise UserError(f"distributed.coordinator={section.coordinator} needs "
                    "distributed.num_processes and a distributed.process_id from 0 to "
                    "num_processes - 1.")


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
    arguments.update(coordinator_address=section.coordinator,
                     num_processes=section.num_processes, process_id=section.process_id)
  if where := _where_to_meet(section):  # JAX would abort the process when the others do not come
    rendezvous.meet(*where, section.timeout_seconds)
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


def _where_to_meet(section) -> tuple[str, int, int] | None:
  """Coordinator, number of processes and which one this is; None where only JAX finds out."""
  if section.coordinator:
    return section.coordinator, section.num_processes, section.process_id
  if not SlurmCluster.is_env_present() or "JAX_COORDINATOR_ADDRESS" in os.environ:
    return None
  address = SlurmCluster.get_coordinator_address(None, os.environ.get("JAX_COORDINATOR_PORT"))
  if not rendezvous.is_known(address):
    return None
  return address, SlurmCluster.get_process_count(), SlurmCluster.get_process_id()


def _alone_on_node() -> bool:
  """Whether every node of a SLURM step or an Open MPI job runs one of its processes."""
  return bool(re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
              or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1")


def is_first() -> bool:
  """Whether this process writes the records of the run."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits for all processes; says once a minute which ones are missing."""
  first_does(name, lambda: None)


def first_does(name: str, do: Callable[[], Any]) -> Any:
  """Has process 0 do something while the others wait for it; all are here before it begins.

  Args:
    name: of what is done, for people.
    do: in process 0.

  Returns:
    What `do` returns in process 0; in the others the same if it is a whole number, else None.

  Raises:
    UserError: in the other processes as well, when `do` raises in process 0.
  """
  if jax.process_count() == 1:
    return do()
  here = f"wd_plasticity/{next(_number)}"
  if is_first():
    return _as_first(here, name, do)
  def arrive():
    _client().key_value_set(f"{here}/arrived/{jax.process_index()}", "")
    return _value(f"{here}/done")
  made, failure = json.loads(_wait_for(arrive, name, lambda: _first_is_missing(here)))
  if failure:
    leave()
    raise UserError(f"process 0 says: {failure}")
  return made


def _as_first(here: str, name: str, do: Callable[[], Any]) -> Any:
  """What process 0 does in `first_does`, at keys that begin with `here`."""
  others = {i: f"{here}/arrived/{i}" for i in range(1, jax.process_count())}
  def missing():
    arrived = {key for key, _ in _client().key_value_dir_get(f"{here}/arrived/")}
    return [i for i, key in others.items() if key not in arrived]
  _client().key_value_set(f"{here}/first", "waits")
  for key in others.values():
    _wait_for(functools.partial(_value, key), name, missing)
  _client().key_value_set(f"{here}/first", "works", allow_overwrite=True)
  try:
    made = do()
  except Exception as e:
    failure = " ".join(str(e).split()) or type(e).__name__
    _client().key_value_set(f"{here}/done", json.dumps([None, failure]))
    leave()
    raise
  told = made if isinstance(made, int) else None
  _client().key_value_set(f"{here}/done", json.dumps([told, ""]))
  return made


def leave() -> None:
  """Parts from the other processes, which do so as well; to end without aborting them."""
  if jax.process_count() > 1:
    jax.distributed.shutdown()


def _first_is_missing(here: str) -> list[int]:
  """Process 0, for one of the others to say; none while process 0 says who is missing."""
  if jax.process_index() != 1:
    return []
  try:
    asked = _in_thread(lambda: _client().blocking_key_value_get(f"{here}/first", 1000))
    waits = asked.result(timeout=5.0) == "waits"
  except (TimeoutError, jax.errors.JaxRuntimeError):
    waits = False
  return [] if waits else [0]


_number = itertools.count()
_SECONDS_BETWEEN_LINES = 60.0
_MILLISECONDS_AT_MOST = 30 * 86_400_000  # something else ends a run that waits for so long


def _client():
  """The connection to the coordinator, which keeps keys and values for all processes."""
  return global_state.client


def _value(key: str) -> str:
  """The value of a key, once a process has given it one."""
  return _client().blocking_key_value_get(key, _MILLISECONDS_AT_MOST)


def _in_thread(do: Callable[[], str]) -> Future:
  """What `do` returns; a coordinator that is stopped does not even say that time is over."""
  made = Future()
  def run():
    try:
      made.set_result(do())
    except Exception as e:
      made.set_exception(e)
  threading.Thread(target=run, daemon=True).start()
  return made


def _wait_for(do: Callable[[], str], name: str, missing: Callable[[], Sequence[int]]) -> str:
  """What `do` returns, which waits for other processes; says who is missing meanwhile."""
  begun, answer = time.monotonic(), _in_thread(do)
  while True:
    try:
      return answer.result(timeout=_SECONDS_BETWEEN_LINES)
    except TimeoutError:
      if names := ", ".join(map(str, missing())):
        print(f"process {jax.process_index()} has waited {time.monotonic() - begun:.0f} s at "
              f"{name!r} for process {names} of {jax.process_count()}", file=sys.stderr, flush=True)
    except jax.errors.JaxRuntimeError as e:
      raise UserError(f"the coordinator, process 0, does not answer at {name!r} any more; its "
                      "own log says why; run the same command again to go on.") from e
