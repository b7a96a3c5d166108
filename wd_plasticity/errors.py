"""Errors that a user can mend: one clear sentence, no traceback."""

import errno
import sys


class UserError(Exception):
  """A wrong input. The message says what is wrong and what to do about it."""


class Interrupted(Exception):
  """The run was asked to stop (SIGTERM, SIGINT) and has saved its state."""


EXIT_USER_ERROR = 2
EXIT_KEYBOARD = 130  # 128 + SIGINT
EXIT_INTERRUPTED = 143  # 128 + SIGTERM, what schedulers expect of a preempted job


def exit_with(error: UserError):
  """Ends the program with the sentence of a user's mistake."""
  print(f"error: {error}", file=sys.stderr, flush=True)
  sys.exit(EXIT_USER_ERROR)


def run(main, argv=None):
  """Calls `main(argv)`; a user's mistake ends as one line on stderr and exit status 2."""
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
    if e.errno != errno.ENOSPC:
      raise
    print(f"error: no space is left on the disk of {e.filename or 'the work directory'}; "
          "free some and run the same command again, finished checkpoints are kept.",
          file=sys.stderr, flush=True)
    sys.exit(EXIT_USER_ERROR)
