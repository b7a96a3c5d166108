"""The process in which `grading` runs math-verify: pairs of answers in, verdicts out.

A line of standard input is a JSON list of two answers, a line of standard output
`true` or `false`. Runs as a file of its own, so that it imports nothing else.
"""

import functools
import json
import logging
import sys


def main():
  """Answers until standard input ends."""
  import math_verify  # pylint: disable=g-import-not-at-top  # slow

  logging.disable(logging.CRITICAL)  # it logs every answer that it cannot parse
  replies = sys.stdout
  sys.stdout = sys.stderr

  @functools.lru_cache(maxsize=1 << 14)
  def parse(text: str) -> list:
    # LaTeX is parsed between dollar signs only.
    text = text if text.count("$") >= 2 else f"${text}$"
    return math_verify.parse(text, parsing_timeout=None)

  def same(a: str, b: str) -> bool:
    try:
      a, b = parse(a), parse(b)
      return any(bool(x) and bool(y) and math_verify.verify(x, y, timeout_seconds=None)
                 for x, y in ((a, b), (b, a)))
    except (Exception, RecursionError):  # whatever an answer makes sympy do, it is not equal
      return False

  print("ready", file=replies, flush=True)
  for line in sys.stdin:
    print(json.dumps(same(*json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
  main()
