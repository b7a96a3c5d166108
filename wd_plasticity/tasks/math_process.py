"""The process that runs math-verify, seen from `math_answers`.

math-verify's own time limit is an alarm signal, which fails outside the main thread and
does not exist on Windows, and nothing in Python ends a product of huge numbers. So the
library runs in a process of its own, which the operating system ends when it has computed
for longer than the limit; processor time is counted, because a busy machine must not
change a grade. Its memory has a limit as well. What does not come to an end is not equal.
"""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence

from wd_plasticity.errors import UserError

LIMIT_SECONDS = 4.0  # of processor time, for one pair
LIMIT_BYTES = 2 << 30  # of memory, for the process
_PATIENCE_SECONDS = 600.0  # where no processor time can be limited (Windows), and for the start
_AHEAD = 8  # pairs that are sent before their replies; as many fit into a pipe


class MathProcess:
  """Compares pairs of answers one after another; started when first asked."""

  def __init__(self):
    self._lock = threading.Lock()
    self._process = None
    self._replies = None
    atexit.register(self.stop)

  def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether math-verify takes the answers of each pair for the same."""
    verdicts, sent = [], 0
    with self._lock:
      while len(verdicts) < len(pairs):
        if self._process is None:
          self._start()
          sent = len(verdicts)
        try:
          new = pairs[sent:len(verdicts) + _AHEAD]
          self._process.stdin.writelines(json.dumps(pair) + "\n" for pair in new)
          self._process.stdin.flush()
          sent += len(new)
          verdicts.append(bool(json.loads(self._replies.get(timeout=_PATIENCE_SECONDS))))
        except (queue.Empty, OSError, ValueError):  # it has ended, or does not end
          self.stop()
          verdicts.append(False)
    return verdicts

  def _start(self):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "math_worker.py")
    # -P: the modules of this folder must not hide any of the library's.
    self._process = subprocess.Popen(
        [sys.executable, "-P", path, str(LIMIT_SECONDS), str(LIMIT_BYTES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
    self._replies = queue.SimpleQueue()
    threading.Thread(target=_forward, args=(self._process.stdout, self._replies),
                     daemon=True).start()
    try:
      ready = self._replies.get(timeout=_PATIENCE_SECONDS)
    except queue.Empty:
      ready = ""
    if ready.strip() != "ready":
      self.stop()
      raise UserError(f"math-verify cannot be imported by {sys.executable}; install it (pip "
                      "install 'math-verify[antlr4_13_2]').")

  def stop(self):
    """Ends the process; the next question starts another."""
    process, self._process = self._process, None
    if process is not None:
      process.kill()
      process.wait()
      try:
        process.stdin.close()
      except OSError:  # what was not read any more
        pass


def _forward(lines, replies: queue.SimpleQueue):
  for line in lines:
    replies.put(line)
  replies.put("")  # the process has ended: no valid reply
