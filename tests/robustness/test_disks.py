"""Disks that fail at every moment of a study: one sentence, nothing lost, and the same to the bit.

  make nightly ARGS="-k test_disks"    4 faults x 6 moments; needs root, who mounts the disk
"""

import os
import re
import signal
import time

import disks
import kills
import pytest
import worlds
from judge import Figures, finish

_SWEEP = '''
from tiny import tiny_config

def get_config():
  config = tiny_config({corpus!r})
  config.train.update(steps=60, log_every="{log}", eval_every="30 steps")
  config.checkpoint.update(every="{every}", keep_at=())
  config.sweep.members_at_once = 2
  return config

def sweep(add):
  for weight_decay in (0.0, 1.0):
    add({{"optim.weight_decay": weight_decay}})
'''
# moment: the config's log_every and checkpoint.every, and the program that meets it
MOMENTS = {"preparation": ("20 steps", "20 steps"), "first save": ("1 steps", "30 steps"),
           "later save": ("20 steps", "10 steps"), "metrics": ("1 steps", "60 steps"),
           "results": ("20 steps", "20 steps"), "report": ("20 steps", "20 steps")}
_FEW = {("full", "later save"), ("no permission", "metrics"), ("read-only", "preparation")}
_CELLS = [pytest.param(fault, moment, marks=pytest.mark.slow if (fault, moment) in _FEW
                       else pytest.mark.nightly)
          for fault in disks.FAULTS for moment in MOMENTS]


@pytest.fixture(scope="module")
def figures():
  made = Figures("disks", ("right", "wrong", "next start"))
  yield made
  made.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a disk of its own in it."""
  if os.geteuid():
    pytest.skip("a small disk can only be mounted by root")
  folder = tmp_path_factory.mktemp("disks")
  worlds.write_corpus(folder / "corpus")
  try:
    with disks.Disk(folder / "disk") as disk:
      yield folder, disk
  except PermissionError as e:
    pytest.skip(str(e))


@pytest.fixture(scope="module")
def references():
  return {}


def _commands(folder, moment):
  """Programs one after another; the last one meets the fault."""
  work = folder / "disk" / "w"
  log, every = MOMENTS[moment]
  config, rank = folder / f"{moment.replace(' ', '_')}.py", folder / "overfit.py"
  config.write_text(_SWEEP.format(corpus=str(folder / "corpus"), log=log, every=every))
  rank.write_text("from wd_plasticity.evals.config import overfit_config as get_config\n")
  made = [("wd_plasticity.main", f"--config={config}", f"--workdir={work}")]
  if moment in ("results", "report"):
    made.append(("wd_plasticity.evals.overfit", f"--config={rank}", f"--checkpoint={work}",
                 f"--workdir={work}"))
  if moment == "report":
    made.append(("wd_plasticity.report", f"--workdir={work}"))
  return work, made


def _start(command):
  """By one whom permissions bind."""
  return worlds.start("bound", *command)


def _to_the_end(command):
  process = _start(command)
  said = process.finish()
  assert process.returncode == 0, said


def _has_come(moment, work):
  """Whether a program has come to where the fault is to meet it."""
  if moment == "first save":
    return any(p.stat().st_size for p in work.glob("members/*/metrics.jsonl"))
  if moment == "later save":
    return any(p.name.isdigit() for p in work.glob("members/*/checkpoints/*"))
  if moment == "metrics":
    return any(p.read_bytes().count(b"\n") > 5 for p in work.glob("members/*/metrics.jsonl"))
  if moment == "results":
    return (work / "evals" / "overfit").is_dir()
  return True


def _with_fault(disk, fault, moment, command, work):
  """Starts a program that meets a fault; returns it, and whether it could only be started anew."""
  bring = disks.FAULTS[fault]
  if moment in ("preparation", "report"):
    work.mkdir(exist_ok=True)
    disk.mend()
    assert bring(disk)
    return _start(command), False
  process = _start(command)
  while process.poll() is None and not _has_come(moment, work):
    time.sleep(0.001)
  if process.poll() is None:
    os.kill(process.pid, signal.SIGSTOP)
    brought = bring(disk)
    if not brought:  # a disk with an open file does not become read-only
      os.kill(process.pid, signal.SIGKILL)
    os.kill(process.pid, signal.SIGCONT)
    if brought:
      return process, False
  process.wait()
  assert bring(disk)
  return _start(command), True


@pytest.mark.parametrize("fault, moment", _CELLS)
def test_a_disk_that_fails(fault, moment, place, figures, references):
  folder, disk = place
  work, commands = _commands(folder, moment)
  if moment not in references:
    disk.empty()
    for command in commands:
      _to_the_end(command)
    references[moment] = kills.study_outcome(work)
  disk.empty()
  for command in commands[:-1]:
    _to_the_end(command)
  try:
    process, anew = _with_fault(disk, fault, moment, commands[-1], work)
    kept = _stored(work)
    finish(process)
    said, problems = process.said(), []
    sentences = re.findall(r"^error: .*", said, re.MULTILINE)
    if process.returncode != 2:
      problems.append("waits for ever" if process.returncode == -signal.SIGKILL
                      else f"status {process.returncode}")
    if "Traceback" in said or len(sentences) != 1:
      problems.append(f"{len(sentences)} sentences, {said.count('Traceback')} tracebacks")
    if sentences and str(disk.folder) not in sentences[0]:
      problems.append(f"does not name the folder: {sentences[0]}")
    if lost := [k for k, v in kept.items() if _stored(work).get(k) != v]:
      problems.append(f"lost {lost}")
  finally:
    disk.mend()
  again = _start(commands[-1])
  finish(again)
  words = again.said()
  if again.returncode:
    problems.append(f"does not go on, status {again.returncode}: {words[-500:]}")
  elif unequal := worlds.differences(kills.study_outcome(work), references[moment]):
    problems.append(f"ends differently in {unequal[:5]}")
  if left := worlds.unfinished(work):
    problems.append(f"left {left[:5]}")
  figures.count(f"{fault}, {moment}", "wrong" if problems else "right")
  figures.count(f"{fault}, {moment}", "next start", int(anew))
  if problems:
    lines = [f"{fault} at {moment}: {'; '.join(problems)}", said[-1500:]]
    figures.note(lines[0])
    pytest.fail("\n".join(lines), pytrace=False)


def _stored(work):
  """What a failing disk must leave: finished checkpoints and results."""
  found = {}
  for path in work.glob("members/*/checkpoints/*"):
    if path.name.isdigit() and path.is_dir():
      found[str(path)] = path.name
  for path in work.glob("evals/*/*/*/*"):
    if not path.name.startswith("."):
      found[str(path)] = path.read_bytes()
  return found
