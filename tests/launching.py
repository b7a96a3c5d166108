"""Launchers as a user starts them, many times from one process, because JAX is slow to import."""

import json
import os
import subprocess
import sys

import tiny

_MANY = """
import importlib, json, os, sys, tempfile
from wd_plasticity import cli
run = cli.run
if sys.argv[1].startswith("launch."):
  from launch import command_line
  run = command_line.run
module = importlib.import_module(sys.argv[1])
for arguments in json.loads(sys.argv[2]):
  out = tempfile.TemporaryFile()
  child = os.fork()
  if not child:
    os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
    while arguments and not arguments[0].startswith("-"):
      name, _, value = arguments.pop(0).partition("=")
      os.environ[name] = value
    sys.argv = [sys.argv[1], *arguments]
    run(module.main)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  out.seek(0)
  print(json.dumps([status, out.read().decode()]), flush=True)
"""

STUDY = """
from tiny import tiny_config
from wd_plasticity.evals.config import attention_rank_config, overfit_config

def get_config():
  return tiny_config({corpus!r})

def sweep(add):
  for point in {points!r}:
    add(point)

def evals(add):
  add(attention_rank_config())
  if {overfit!r}:
    add(overfit_config())
"""
POINTS = tuple({"optim.weight_decay": w, "seed": 1} for w in (0.0, 1.0))


def write_study(folder, corpus, points=POINTS, overfit=False):
  """A config file of a study in `folder`."""
  path = folder / "tiny_study.py"
  path.write_text(STUDY.format(corpus=str(corpus), points=list(points), overfit=overfit))
  return path


def environment(**variables):
  """That of a launcher: it finds this code and computes on the CPU."""
  return os.environ | {
      "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{tiny.ROOT}{os.pathsep}{tiny.ROOT / 'tests'}",
      "PYTHONWARNINGS": "ignore:os.fork"} | variables


def many(program, *commands, **variables):
  """Runs `python -m program` with each list of flags; returns [(exit status, output)].

  In front of the flags there may be variables: PATH=/bin.
  """
  made = subprocess.run(
      [sys.executable, "-c", _MANY, program, json.dumps([list(map(str, c)) for c in commands])],
      env=environment(**variables), cwd=tiny.ROOT, text=True, stdout=subprocess.PIPE, timeout=120,
      check=True)
  return [json.loads(line) for line in made.stdout.splitlines()]


def start(launcher, *flags, **variables):
  """Starts a launcher in a process of its own."""
  return subprocess.Popen(
      [sys.executable, "-m", launcher, *map(str, flags)], env=environment(**variables),
      cwd=tiny.ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(launcher, *flags, expect=0, timeout=300, **variables):
  """Runs a launcher to its end; returns what it printed."""
  process = start(launcher, *flags, **variables)
  said = process.communicate(timeout=timeout)[0]
  assert process.returncode == expect, said
  return said
