"""Ends programs at chosen and at random moments, and compares what they leave."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import time

import numpy as np
import programs
import worlds

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
SWEEP = '''
from tiny import tiny_config

def get_config():
  config = tiny_config({corpus!r})
  config.train.steps = 12
  config.train.eval_every = "4 steps"
  config.checkpoint.every = "1 steps"
  config.checkpoint.keep_at = (0.5,)
  config.sweep.members_at_once = 2
  return config

def sweep(add):
  for weight_decay in (0.0, 0.3, 1.0, 3.0):
    add({{"optim.weight_decay": weight_decay}})
'''
# Where a kill is aimed, and how many of a hundred.
AIMS = {"start": 20, "any": 20, "save": 20, "rename": 15, "deletion": 10, "metrics": 15}


def processor_seconds(pid: int, children: bool = False) -> float:
  """Of a process so far, and of the ones it has started and waited for or that still run."""
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return 0.0
  ticks = sum(map(int, fields[11:15] if children else fields[11:13]))
  used = ticks / os.sysconf("SC_CLK_TCK")
  return used + sum(processor_seconds(c, True) for c in children_of(pid)) if children else used


def children_of(pid: int) -> list[int]:
  found = []
  with contextlib.suppress(OSError):
    for path in pathlib.Path(f"/proc/{pid}/task").iterdir():
      with contextlib.suppress(OSError):
        found += map(int, (path / "children").read_text().split())
  return found


def _names(workdir: pathlib.Path) -> set[str]:
  """Of everything in the folders of checkpoints."""
  return {f"{p.parent.parent.name}/{p.name}"
          for p in workdir.glob("members/*/checkpoints/*")}


def _metrics_size(workdir: pathlib.Path) -> int:
  size = 0
  for path in workdir.glob("members/*/metrics.jsonl"):
    with contextlib.suppress(OSError):
      size += path.stat().st_size
  return size


def _is_step(name: str) -> bool:
  return name.rpartition("/")[2].isdigit()


def happened(aim: str, workdir: pathlib.Path, rng, whole: float):
  """A function of a process that says whether the moment to end it has come.

  Args:
    aim: one of AIMS.
    workdir: that it works in.
    rng: draws how many occasions pass, and the time.
    whole: processor seconds of a run that nothing interrupts.
  """
  before, size = _names(workdir), _metrics_size(workdir)
  passes = int(rng.integers(0, 8))
  limit = float(rng.uniform(0, 0.25 * whole if aim == "start" else whole))
  delay = float(rng.uniform(0, 0.02))
  state = {"before": before, "size": size, "passes": passes}

  def occasion(process) -> bool:
    if aim in ("start", "any"):
      return processor_seconds(process.pid) >= limit
    if aim == "metrics":
      now = _metrics_size(workdir)
      came, state["size"] = now != state["size"], now
      return came
    now = _names(workdir)
    if aim == "save":
      came = any(not _is_step(n) for n in now - state["before"])
    elif aim == "rename":
      came = any(map(_is_step, now - state["before"]))
    else:
      came = any(map(_is_step, state["before"] - now))
    state["before"] = now
    return came

  def come(process) -> bool:
    if not occasion(process):
      return False
    state["passes"] -= 1
    if aim not in ("start", "any") and state["passes"] >= 0:
      return False
    if aim == "save":
      time.sleep(delay)  # somewhere within it
    return True
  return come


def end(process, come, number: int, target=None) -> bool:
  """Ends a program when the moment has come; whether it did not end by itself before.

  Args:
    process: of `programs`.
    come: of `happened`.
    number: of the signal.
    target: gives the process that gets it; the program itself by default, None for none.
  """
  while process.poll() is None:
    if come(process):
      pid = target() if target else process.pid
      if pid is None:
        continue
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
      return True
    time.sleep(0.001)
  return False


def complain_of_end(process, name: str, said: str) -> list[str]:
  """What is wrong with how a program has ended that was sent a signal."""
  number = SIGNALS[name]
  status = process.returncode
  right = (-number, 128 + number, 143, 0) if name != "KILL" else (-number, 0)
  found = [] if status in right else [f"status {status} after {name}"]
  if name != "KILL" and "Traceback" in said:
    found.append(f"a traceback after {name}: {said[-600:]}")
  return found


def study_outcome(workdir: pathlib.Path) -> dict[str, object]:
  """Metrics, results, arrays, tables and the answer of a study."""
  found = {f"members/{k}": v for k, v in worlds.outcome(workdir).items()}
  for path in sorted((workdir / "evals").glob("*/*/*/*")):
    name = str(path.relative_to(workdir))
    if path.suffix == ".json":
      made = json.loads(path.read_text())
      found[name] = {k: made.get(k) for k in ("values", "settings", "checkpoint")}
    elif path.suffix == ".npz":
      with np.load(path) as arrays:
        found[name] = {k: arrays[k].tobytes() for k in arrays.files}
    else:
      found[name] = path.read_bytes()
  for path in [*workdir.glob("report/tables/*.csv"), *workdir.glob("report/answer.json")]:
    found[str(path.relative_to(workdir))] = path.read_bytes()
  return found


def fresh(workdir: pathlib.Path) -> pathlib.Path:
  shutil.rmtree(workdir, ignore_errors=True)
  return workdir


def start(module: str, config, workdir, *flags):
  return programs.start(module, f"--config={config}", f"--workdir={workdir}", *flags)
