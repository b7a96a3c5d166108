"""Errors that a user can mend: one clear sentence, no traceback.

Failures of the system are told apart by class, never by a single number: a full disk and
an exhausted quota are one thing, as are a missing permission and a read-only file system.
"""

import errno
import os
import re
import select
import sys

from absl import logging

from wd_plasticity import plain


class UserError(Exception):
  """A wrong input. The message says what is wrong and what to do about it."""


class Interrupted(Exception):
  """The run was asked to stop (SIGTERM, SIGINT) and has saved its state."""


EXIT_USER_ERROR = 2
EXIT_KEYBOARD = 130  # 128 + SIGINT
EXIT_PIPE = 141  # 128 + SIGPIPE, of `| head`
EXIT_INTERRUPTED = 143  # 128 + SIGTERM, what schedulers expect of a preempted job

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# The path itself cannot be: a file where a folder should be, a name that is too long, ...
BAD_PATH = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
                      errno.ELOOP, errno.EINVAL, errno.EXDEV})
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})  # of file systems


def describe(error: OSError, place: str | os.PathLike | None = None) -> str:
  """What a failure of the system means and what to do, as one sentence without its full stop.

  Args:
    error: with its errno.
    place: named when the error itself does not name a file.
  """
  path = error.filename or place or "the work directory"
  if isinstance(path, bytes):
    path = os.fsdecode(path)
  reason = error.strerror or str(error)
  if error.errno in NO_SPACE:
    return (f"no space is left for {path} ({reason}); free some and run the same command again, "
            "finished checkpoints and results are kept")
  if error.errno in NOT_WRITABLE:
    return f"{path} cannot be used ({reason}); give a path that this user can read and write"
  if error.errno in BAD_PATH:
    return f"{path} cannot be used ({reason}); give another path, or restore what was there"
  if error.errno in NO_LOCKS:
    return f"the file system of {path} has no locks ({reason}); give a folder on another one"
  return f"{path} cannot be read or written ({reason}); mend that and run the same command again"


def is_out_of_memory(error: BaseException | None) -> bool:
  """Whether an error, or one that caused it, is of memory that the host or a device has not.

  XLA says RESOURCE_EXHAUSTED; so do libraries of a full disk, which is another thing.
  """
  while error is not None:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
      return True
    if isinstance(error, (UserError, Interrupted, OSError)):
      return False
    if "RESOURCE_EXHAUSTED" in str(error):
      return not re.search("No space left|[Qq]uota", str(error))
    error = error.__cause__ or error.__context__
  return False


def _nobody_reads() -> bool:
  """Whether what is printed goes into a pipe that nobody reads; then it is thrown away."""
  try:
    out = sys.stdout.fileno()
  except (OSError, ValueError, AttributeError):  # not a file of the system
    return False
  pipe = select.poll()
  pipe.register(out, 0)
  if not any(event & select.POLLERR for _, event in pipe.poll(0)):
    return False
  os.dup2(os.open(os.devnull, os.O_WRONLY), out)
  return True


def exit_with(error: object):
  """Ends the program with the sentence of a user's mistake."""
  print(f"error: {plain.one_line(error)}", file=sys.stderr, flush=True)
  sys.exit(EXIT_USER_ERROR)


def run(main, argv=None):
  """Calls `main(argv)`; what a user can mend ends as one line on stderr and exit status 2.

  `--verbosity=1` shows the traceback of a failure of the system as well.
  """
  with plain.output():
    _run(main, argv)


def _run(main, argv):
  try:
    return main(argv)
  except UserError as e:
    exit_with(e)
  except Interrupted as e:
    print(str(e), file=sys.stderr, flush=True)
    sys.exit(EXIT_INTERRUPTED)
  except KeyboardInterrupt:
    print("interrupted; run the same command again to go on.", file=sys.stderr, flush=True)
    sys.exit(EXIT_KEYBOARD)
  except OSError as e:
    if e.errno is None:  # not of the system
      raise
    if e.errno == errno.EPIPE and _nobody_reads():
      sys.exit(EXIT_PIPE)
    logging.debug("a call of the system failed", exc_info=True)
    exit_with(f"{describe(e)}.")
  except Exception as e:
    if not is_out_of_memory(e):
      raise
    logging.debug("memory ran out", exc_info=True)
    exit_with("memory ran out; run fewer members at once (members_at_once), more micro-batches "
              "(train.accumulate_steps) or a smaller batch, and the same command goes on.")
