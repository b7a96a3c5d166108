"""Programs as a user starts them, without paying for their imports at every start.

`start` and `run` behave as `python -m MODULE FLAGS` in a process of its own: it is forked from one
that has JAX and the package imported (`program_server.py`), which takes milliseconds.
"""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]


class Process:
  """A program under way, with the methods of `subprocess.Popen` that tests need."""

  def __init__(self, module, flags, environment, output):
    self.returncode = None
    self._output = pathlib.Path(output)
    self.pid = _server().ask(module=module, flags=flags, environment=environment,
                             output=str(output))

  def poll(self, wait=False) -> int | None:
    """Exit status, or None while it runs."""
    if self.returncode is None:
      self.returncode = _server().ask(poll=self.pid, wait=wait)
    return self.returncode

  def wait(self) -> int:
    return self.poll(wait=True)

  def said(self) -> str:
    """Everything it has printed so far."""
    return self._output.read_text(encoding="utf-8", errors="replace")

  def finish(self, expect: int | None = None) -> str:
    """Waits for its end; returns all that it printed, its exit status being `expect`."""
    status, said = self.wait(), self.said()
    assert expect in (None, status), said
    return said

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)


class _Server:
  """The process that programs are forked from."""

  def __init__(self):
    self._process = subprocess.Popen(
        [sys.executable, "-W", "ignore:.*fork", str(pathlib.Path(__file__).with_name(
            "program_server.py"))],
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert self._process.stdout.readline() == "ready\n"
    self.folder = tempfile.TemporaryDirectory(prefix="programs-")  # of what they print

  def ask(self, **what):
    print(json.dumps(what), file=self._process.stdin, flush=True)
    return json.loads(self._process.stdout.readline())

  def close(self):
    with contextlib.suppress(OSError):
      self._process.stdin.close()
    self._process.wait()
    self.folder.cleanup()


@functools.cache
def _server() -> _Server:
  server = _Server()
  atexit.register(server.close)
  return server


def user_environment() -> dict[str, str]:
  """That of a user who computes on the CPU; the tests' own modules can be imported."""
  return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
                       "PYTHONUNBUFFERED": "1", "JAX_ENABLE_COMPILATION_CACHE": "true"}


def start(module, *flags, output=None, environment=None, **variables) -> Process:
  """Starts `python -m module flags`.

  Args:
    module: such as 'wd_plasticity.main'.
    *flags: of the program.
    output: file that gets what it prints; a temporary one by default.
    environment: all of its variables; those of `user_environment` by default.
    **variables: of its environment, beside those.
  """
  if output is None:
    number, output = tempfile.mkstemp(dir=_server().folder.name)
    os.close(number)
  return Process(module, list(map(str, flags)), (environment or user_environment()) | variables,
                 output)


def run(module, *flags, expect=0, **kwargs) -> str:
  """Runs a program to its end; returns what it printed, its exit status being `expect`."""
  return start(module, *flags, **kwargs).finish(expect)
