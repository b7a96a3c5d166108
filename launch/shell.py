"""Commands of other programs: shown or run, tried again, with failures in one sentence."""

import shlex
import subprocess
import time
from collections.abc import Callable, Sequence

from wd_plasticity.errors import UserError

_LONGEST_PAUSE_SECONDS = 600.0


class Commands:
  """Runs commands of a scheduler or a cloud; under `dry_run` it only prints them.

  Args:
    dry_run: print, run nothing.
    pause_seconds: before a command is tried again; doubled every time.
  """

  def __init__(self, dry_run: bool = False, pause_seconds: float = 5.0):
    self.dry_run = dry_run
    self._pause_seconds = pause_seconds

  def run(self, command: Sequence[str], *, retries: int = 0, text: str | None = None,
          check: bool = True, retry_if: Callable[[str], bool] | None = None,
          ) -> subprocess.CompletedProcess:
    """Runs a command and waits for it.

    Args:
      command: program and arguments; no shell reads them.
      retries: how often it is tried again when it fails.
      text: for its standard input.
      check: whether a failure is an error.
      retry_if: whether what a failed command said can pass by itself; by default it can.

    Returns:
      Its exit status and what it printed; under dry_run empty output and status 0.

    Raises:
      UserError: there is no such program, or it failed.
    """
    if self.dry_run:
      print(f"$ {shlex.join(command)}", flush=True)
      return subprocess.CompletedProcess(list(command), 0, "", "")
    pause = self._pause_seconds
    for attempt in range(retries + 1):
      try:
        done = subprocess.run(list(command), input=text, capture_output=True, text=True,
                              check=False)
      except FileNotFoundError:
        raise UserError(f"there is no program {command[0]} on this machine; install it, or see "
                        "what would be run by --dry_run.") from None
      if done.returncode == 0:
        return done
      if attempt == retries or (retry_if and not retry_if(done.stderr or done.stdout)):
        break
      time.sleep(pause)
      pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    if check:
      raise UserError(f"`{shlex.join(command)}` failed with status {done.returncode}: "
                      f"{reason(done.stderr or done.stdout)}")
    return done


def reason(text: str) -> str:
  """What an output says about a failure: its line of an error, or else its last one."""
  lines = [line.strip() for line in (text or "").splitlines()]
  return next((line for line in lines if line.startswith(("ERROR:", "error:"))), last_line(text))


def last_line(text: str) -> str:
  """The last line that says something."""
  lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
  return lines[-1] if lines else "it said nothing"
