"""The process in which `math_process` runs math-verify: pairs of answers in, verdicts out.

A line of standard input is a JSON list of two answers, a line of standard output
`true` or `false`; the arguments are the processor time in seconds that one pair may take, and the
memory in bytes that the process may have. Runs as a file of its own, so that it imports nothing
else.

SymPy parses text by evaluating it as Python. What a model has written gets there only as digits,
operators and brackets, or as a single word; math-verify asks for no more today.
"""

import functools
import json
import logging
import re
import signal
import sys

_ARITHMETIC = re.compile(r"[\d\s.+\-*/()]*|[A-Za-z][A-Za-z0-9]*", re.ASCII)


def main():
  """Answers until standard input ends."""
  _guard_evaluation()
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
    except Exception:  # whatever an answer makes sympy do, memory included: it is not equal
      return False

  _limit_memory(int(sys.argv[2]))
  print("ready", file=replies, flush=True)
  for line in sys.stdin:
    _limit(limit)
    verdict = same(*json.loads(line))
    _limit(0)
    print(json.dumps(verdict), file=replies, flush=True)


def _guard_evaluation():
  """Has SymPy evaluate nothing but arithmetic and single words."""
  import sympy.parsing  # pylint: disable=g-import-not-at-top
  from sympy.parsing import sympy_parser  # pylint: disable=g-import-not-at-top

  parse = sympy_parser.parse_expr

  @functools.wraps(parse)
  def guarded(text, *args, **kwargs):
    if not (isinstance(text, str) and _ARITHMETIC.fullmatch(text)):
      raise ValueError("more than arithmetic")
    return parse(text, *args, **kwargs)

  sympy_parser.parse_expr = sympy.parsing.parse_expr = guarded


def _limit_memory(num_bytes: int):
  """Lets this process have so much memory; Windows has no such limit."""
  try:
    import resource  # pylint: disable=g-import-not-at-top
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
  except (ImportError, OSError, ValueError):  # or a lower one that is set already
    pass


def _limit(seconds: float):
  """Lets the operating system end this process after that much processor time; 0: never."""
  if hasattr(signal, "ITIMER_PROF"):
    signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
  main()
