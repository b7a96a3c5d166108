"""Waiting for something to happen, however long a machine takes over it."""

import time


def until(condition, what, process=None):
  """Waits for a condition, as long as a process runs that can bring it about.

  pytest's own limit (pytest.ini) ends what waits for ever.

  Args:
    condition: is called until it returns something true, which is returned.
    what: words for it, or a function that returns them.
    process: has `poll()`, which is None while it runs; without one there is nothing to watch.
  """
  while True:
    ended = process is not None and process.poll() is not None  # asked first: its last deed counts
    if value := condition():
      return value
    assert not ended, f"{what() if callable(what) else what} did not come"
    time.sleep(0.01)
