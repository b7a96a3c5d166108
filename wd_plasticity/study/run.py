"""Runs the steps of a study, each as a process of its own with a log."""

import signal
import time
from collections.abc import Sequence

from wd_plasticity.errors import Interrupted
from wd_plasticity.study.display import Display
from wd_plasticity.study.plan import Step
from wd_plasticity.study.processes import Program, Stop
from wd_plasticity.study.records import DONE, FAILED, WAITING, Record, Records

_POLL_SECONDS = 0.2


def run(steps: Sequence[Step], records: Records, display: Display, lock: int) -> list[Record]:
  """Runs what does not hold any more; a step that fails stops only those that need it.

  Args:
    steps: every one behind those it needs.
    records: of the study.
    display: is told what happens.
    lock: of the work directory (`ownership.hold`), which the programs inherit.

  Returns:
    The record of every step.

  Raises:
    Interrupted: SIGTERM or Ctrl-C, after the running step has saved its state.
  """
  made: dict[str, Record] = {}
  with Stop() as stop:
    for step in steps:
      record = records.holds(step)
      if record is not None:
        display.skip(step.name, record.seconds)
      elif missing := _missing(step, made):
        record = Record(step.name, step.shown(), WAITING, "", {}, 0.0, 0.0, "",
                        f"needs {' and '.join(missing)}")
        display.end(step.name, WAITING, record.message)
      else:
        display.start(step.name)
        record = _run_step(step, records, display, stop, lock)
        display.end(step.name, record.state, record.message)
      made[step.name] = record
      if record.state != DONE or records.read(step.name) != record:
        records.write(record)
  return list(made.values())


def _missing(step: Step, made: dict[str, Record]) -> list[str]:
  """Steps without which this one cannot be run."""
  failed = [name for name in step.after if made[name].state != DONE]
  return [] if step.any_of and len(failed) < len(step.after) else failed


def _run_step(step: Step, records: Records, display: Display, stop: Stop, lock: int) -> Record:
  folder = records.workdir / "study"
  log = folder / "logs" / f"{step.name}.log"
  inputs, begun = records.inputs(step), time.monotonic()
  program = Program(step.command, log, folder / "progress" / f"{step.name}.json", lock)
  try:
    while not program.ended():
      if stop.number:
        program.ask_to_stop()
      display.update(step.name, program.progress())
      time.sleep(_POLL_SECONDS)
    display.update(step.name, program.progress())
  finally:
    program.close()
  if stop.number:
    raise Interrupted(f"stopped by {signal.Signals(stop.number).name} in {step.name}; what is done "
                      "is kept, run the same command again to go on.")
  state = DONE if program.status == 0 else FAILED
  message = program.warning() if state == DONE else program.last_words()
  return Record(step.name, step.shown(), state, inputs, records.outputs(step),
                round(time.monotonic() - begun, 1), time.time(),
                log.relative_to(records.workdir).as_posix(), message)
