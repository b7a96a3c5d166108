"""Programs as a user starts them, without paying for their imports at every start.

`start` and `run` behave as `python -m MODULE FLAGS` in a process of its own: it is forked from one
that has JAX and the package imported (`program_server.py`), which takes milliseconds.
"""

import atexit
import contextlib
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

  def __init__(self, arguments, environment, output):
    self.returncode = None
    self._output = pathlib.Path(output)
    self.pid = _server().ask(arguments=arguments, environment=environment, output=str(output))

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

  def finish(self) -> str:
    """Waits for its end; returns all that it printed."""
    self.wait()
    return self.said()

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

  def ask(self, **what):
    print(json.dumps(what), file=self._process.stdin, flush=True)
    return json.loads(self._process.stdout.readline())

  def close(self):
    with contextlib.suppress(OSError):
      self._process.stdin.close()
    self._process.wait()


_started: list[_Server] = []


def _server() -> _Server:
  if not _started:
    _started.append(_Server())
    atexit.register(_started[0].close)
  return _started[0]


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
    number, output = tempfile.mkstemp(prefix="program-", dir=os.environ.get("PYTEST_TMP"))
    os.close(number)
  return Process(["-m", module, *map(str, flags)],
                 (environment or user_environment()) | variables, output)


def run(module, *flags, expect=0, **kwargs) -> str:
  """Runs a program to its end; returns what it printed, its exit status being `expect`."""
  process = start(module, *flags, **kwargs)
  said = process.finish()
  assert process.returncode == expect, said
  return said
