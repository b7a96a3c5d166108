"""Launchers as users start them, without paying for the imports at every start."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[1]

# Imports a launcher once and forks for every start, so that each has flags of its own.
_SERVER = """
import importlib, json, os, signal, sys
module = importlib.import_module(sys.argv[1])
from launch import command_line
replies = os.fdopen(os.dup(1), "w")
print("ready", file=replies, flush=True)
for line in sys.stdin:
  asked = json.loads(line)
  if "wait" in asked:
    status = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
    print(json.dumps(status), file=replies, flush=True)
    continue
  pid = os.fork()
  if pid:
    print(json.dumps(pid), file=replies, flush=True)
    continue
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
  os.dup2(1, 2)
  os.environ.clear()
  os.environ.update(asked["env"])
  sys.argv = [sys.argv[1], *asked["arguments"]]
  sys.modules["__main__"].__doc__ = module.__doc__
  command_line.run(module.main)
"""


class LauncherProcess:
  """A launcher of which any number can be started.

  Args:
    module: such as 'launch.xpk'.
  """

  def __init__(self, module: str):
    self._server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, module], cwd=_ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert self._server.stdout.readline() == "ready\n"

  def _ask(self, **asked):
    print(json.dumps(asked), file=self._server.stdin, flush=True)
    return json.loads(self._server.stdout.readline())

  def start(self, arguments, env, output: pathlib.Path) -> int:
    """Starts the launcher; returns its process id."""
    return self._ask(arguments=list(arguments), env=dict(env), output=str(output))

  def wait(self, pid: int) -> int:
    """Exit status of a launcher."""
    return self._ask(wait=pid)

  def run(self, arguments, env, output: pathlib.Path) -> tuple[int, str]:
    """Exit status and everything printed."""
    status = self.wait(self.start(arguments, env, output))
    return status, output.read_text()

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._server.stdin.close()
    self._server.wait(timeout=30)
