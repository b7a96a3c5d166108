"""Starts programs by forking a process that has their imports done; `programs.py` talks to it.

What is imported is only what defines no flags, so that every program defines its own.
"""

import importlib
import json
import os
import re
import runpy
import signal
import sys

_IMPORTS = (
    "launch.jobs", "launch.local_jobs", "matplotlib.figure", "plotly.graph_objects",
    "wd_plasticity.evals.attention_rank", "wd_plasticity.evals.finetune",
    "wd_plasticity.evals.overfit", "wd_plasticity.evals.probe", "wd_plasticity.interop.export",
    "wd_plasticity.interop.import_", "wd_plasticity.report.make", "wd_plasticity.study.run",
    "wd_plasticity.training.summary", "wd_plasticity.training.sweep",
)


def _serve(commands, replies) -> dict | None:
  """Forks a process for every program asked for; returns, in that process, what was asked."""
  for line in commands:
    asked = json.loads(line)
    if "poll" in asked:
      pid, status = os.waitpid(asked["poll"], 0 if asked["wait"] else os.WNOHANG)
      answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
      answer = os.fork()
      if not answer:
        return asked
    print(json.dumps(answer), file=replies, flush=True)
  return None


def _become(asked: dict) -> None:
  """Makes of this process one that a shell has started."""
  for number, path, flags in ((0, os.devnull, os.O_RDONLY),
                              (1, asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
    file = os.open(path, flags, 0o600)
    os.dup2(file, number)
    os.close(file)
  os.dup2(1, 2)
  sys.stdin = open(0, closefd=False)
  for name in ("stdout", "stderr"):
    setattr(sys, name, open(getattr(sys, name).fileno(), "w", closefd=False, buffering=1,
                            encoding="utf-8"))
  signal.signal(signal.SIGINT, signal.default_int_handler)
  _use_environment(asked["environment"])
  sys.path[0] = os.getcwd()
  sys.path[1:1] = filter(None, asked["environment"].get("PYTHONPATH", "").split(os.pathsep))


def _use_environment(environment: dict) -> None:
  """Takes over the variables; those that JAX read when it was imported it is told again."""
  import jax

  changed = {k: v for k, v in environment.items()
             if k.startswith("JAX_") and os.environ.get(k) != v}
  os.environ.clear()
  os.environ.update(environment)
  for name, value in changed.items():
    jax.config.update(name.lower(), json.loads(value) if re.fullmatch(r"[\d.]+|true|false", value)
                      else value)


def _run(module: str, flags: list[str]) -> None:
  """Does what `python -m MODULE FLAGS` does."""
  sys.argv = [module, *flags]
  sys.modules.pop(module, None)  # or runpy would warn that it is imported
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  for module in _IMPORTS:
    importlib.import_module(module)
  replies = os.fdopen(os.dup(1), "w")
  print("ready", file=replies, flush=True)
  with open(os.dup(0)) as commands:
    asked = _serve(commands, replies)
  if asked:
    replies.close()
    _become(asked)
    _run(asked["module"], asked["flags"])
