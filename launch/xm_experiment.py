"""Jobs as units of an XManager experiment; all that is asynchronous about it."""

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xmanager import xm, xm_local

from launch import cloud
from launch.jobs import Job
from wd_plasticity.errors import UserError
from wd_plasticity.study.plan import PRETRAINING

DONE = "done"
_NOT_RUN = "not run, what it needs has not succeeded"


@dataclasses.dataclass(frozen=True)
class Unit:
  """One job, its name in the experiment, and the variables that it sees."""
  name: str
  job: Job
  environment: Mapping[str, str]


def unit_name(job: Job) -> str:
  """A name for containers and pods: lower-case letters, digits and -."""
  return re.sub(r"[^a-z0-9-]", "-", f"{job.kind}-{job.index}".lower())


def create(title: str):
  """A new experiment of XManager's own database.

  Raises:
    UserError: the database cannot be used.
  """
  try:
    return xm_local.create_experiment(experiment_title=title)
  except Exception as e:
    raise UserError(f"XManager cannot create an experiment: {_one_line(e)}") from e


def dockerfile(folder: Path, jax_extra: str) -> xm.Dockerfile:
  """An executable of the last commit.

  Args:
    folder: an empty one, into which the files of the commit are written.
    jax_extra: 'tpu', 'cuda12', or '' for CPUs.
  """
  place = folder / "wd_plasticity"  # names the image
  cloud.extract_commit(place, cloud.revision())
  # XManager passes no arguments of a build.
  text = (Path(__file__).parent / "Dockerfile").read_text(encoding="utf-8")
  (place / "Dockerfile").write_text(
      re.sub(r"(?m)^ARG JAX_EXTRA=.*$", f"ARG JAX_EXTRA={jax_extra}", text), encoding="utf-8")
  return xm.Dockerfile(path=str(place), dockerfile=str(place / "Dockerfile"))


async def run(experiment, title: str, tags: Sequence[str], notes: str, units: Sequence[Unit],
              spec, executor_spec, make_executor: Callable) -> dict[str, str]:
  """Adds the units to an experiment, each when what it needs has ended, and waits for them.

  Args:
    experiment: of XManager, not entered yet.
    title, tags, notes: that it is annotated with.
    units: every one behind those it waits for.
    spec: of the executable.
    executor_spec: of the executors, for packaging.
    make_executor: makes one for every unit.

  Returns:
    How every job has ended, by its name: DONE or a sentence.

  Raises:
    UserError: the executable cannot be packaged.
  """
  states: dict[str, str] = {}
  added: list = []
  try:
    async with experiment:
      annotations = experiment.context.annotations
      for change in (lambda: annotations.set_title(title), lambda: annotations.add_tags(*tags),
                     lambda: annotations.set_notes(notes)):
        # XManager's local experiments have no place for them.
        with contextlib.suppress(NotImplementedError, AttributeError):
          change()
      executable = _package(experiment, spec, executor_spec)
      tasks: dict[str, asyncio.Task] = {}
      for unit in units:
        waits = [tasks[a] for a in unit.job.after]
        tasks[unit.job.name] = asyncio.create_task(
            _run_unit(experiment, unit, waits, executable, make_executor, added))
      try:
        for name, task in tasks.items():
          states[name] = await task
      except asyncio.CancelledError:
        for task in tasks.values():
          task.cancel()
        await _stop(added)
        raise
  except UserError:
    raise
  except Exception as e:
    # Of a unit that could not be added, which its state has told, or of leaving.
    if len(states) < len(units):
      raise UserError(f"XManager failed: {_one_line(e)}") from e
  return states


def _package(experiment, spec, executor_spec):
  try:
    [executable] = experiment.package([xm.Packageable(spec, executor_spec)])
  except Exception as e:  # of docker, of the cloud, of the network
    raise UserError(f"the executable cannot be packaged: {_one_line(e)}") from e
  return executable


async def _run_unit(experiment, unit: Unit, waits: Sequence[asyncio.Task], executable,
                    make_executor: Callable, added: list) -> str:
  """How a unit has ended: DONE or a sentence."""
  before = [await task == DONE for task in waits]
  if not (any(before) if unit.job.any_of else all(before)):
    return _said(unit, _NOT_RUN)
  role = (xm.WorkUnitRole() if unit.job.kind == PRETRAINING
          else xm.AuxiliaryUnitRole(termination_delay_secs=0))
  try:
    job = xm.Job(executable=executable, executor=make_executor(), name=unit.name,
                 args=list(unit.job.command), env_vars=dict(unit.environment))
    adding = experiment.add(job, role=role)
    added.append((unit, adding))
    made = await asyncio.shield(adding)  # what is being started has to be known to be stopped
  except Exception as e:
    return _said(unit, f"not started: {_one_line(e)}")
  print(f"{unit.job.name}: started as {unit.name} of {made.experiment_unit_name}", flush=True)
  try:
    status, _ = await asyncio.gather(_exit_status(made), made.wait_until_complete())
  except Exception as e:
    return _said(unit, f"failed: {_one_line(e)}")
  return _said(unit, f"failed with status {status}" if status else DONE)


async def _exit_status(unit) -> int:
  """The exit status of a container on this machine, which XManager itself does not look at."""
  for handle in getattr(unit, "_local_execution_handles", ()):
    if container := getattr(handle, "model", None):
      try:
        ended = await asyncio.to_thread(container.wait)
      except Exception:  # it has ended, and was removed, already
        continue
      if ended.get("StatusCode"):
        return ended["StatusCode"]
  return 0


async def _stop(added: Sequence) -> None:
  """Stops units that may still run, so that the same command finds their work free to take."""
  for unit, adding in added:
    try:
      made = await adding
      handles = getattr(made, "_local_execution_handles", ())
      for handle in handles:
        handle.terminate()
      if not handles:
        made.stop()
    except Exception as e:  # what has ended, or what XManager cannot stop
      print(f"{unit.name} could not be stopped ({_one_line(e)}); look whether it still runs before "
            "starting the same command again.", flush=True)


def _said(unit: Unit, state: str) -> str:
  print(f"{unit.job.name}: {state}", flush=True)
  return state


def _one_line(e: BaseException) -> str:
  return " ".join((str(e) or type(e).__name__).split())[:500]
