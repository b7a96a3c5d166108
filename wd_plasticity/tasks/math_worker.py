"""The process in which `math_process` runs math-verify: pairs of answers in, verdicts out.

A line of standard input is a JSON list of two answers, a line of standard output
`true` or `false`; the argument is the processor time in seconds that one pair may take.
Runs as a file of its own, so that it imports nothing else.
"""

import functools
import json
import logging
import signal
import sys


def main():
  """Answers until standard input ends."""
  import math_verify  # pylint: disable=g-import-not-at-top  # slow

  limit = float(sys.argv[1])
  logging.disable(logging.CRITICAL)  # it logs every answer that it cannot parse
  replies = sys.stdout
  sys.stdout = sys.stderr

  @functools.lru_cache(maxsize=1 << 14)
  def parse(text: str) -> list:
    # LaTeX is parsed between delimiters only.
    delimited = text.count("$") >= 2 or "\\(" in text or "\\[" in text
    return math_verify.parse(text if delimited else f"${text}$", parsing_timeout=None)

  def same(a: str, b: str) -> bool:
    try:
      a, b = parse(a), parse(b)
      return any(bool(x) and bool(y) and math_verify.verify(x, y, timeout_seconds=None)
                 for x, y in ((a, b), (b, a)))
    except (Exception, RecursionError):  # whatever an answer makes sympy do, it is not equal
      return False

  print("ready", file=replies, flush=True)
  for line in sys.stdin:
    _limit(limit)
    verdict = same(*json.loads(line))
    _limit(0)
    print(json.dumps(verdict), file=replies, flush=True)


def _limit(seconds: float):
  """Lets the operating system end this process after that much processor time; 0: never."""
  if hasattr(signal, "ITIMER_PROF"):
    signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
  main()
