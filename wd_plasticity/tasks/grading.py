"""Answers in generated text, and whether they are right.

A mathematical answer is compared by math-verify (Hugging Face; what lm-eval, TRL and
Open-R1 grade with), both ways round, because its comparison is not symmetric. Its own
timeout is an alarm signal, which fails outside the main thread and does not exist on
Windows; so it is switched off, and the library runs in a worker process that is ended
when it takes longer than four seconds (`math_worker`). Plain numbers need no library.
"""

import atexit
import dataclasses
import decimal
import functools
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Sequence

from wd_plasticity.errors import UserError
from wd_plasticity.tasks.task import Problem, Task

STOP_STRINGS = ("Human", "Human:", "Assistant", "Assistant:")
VOTE_CHARACTERS = 128  # votes are read from the end of a sample

_TIMEOUT_SECONDS = 4.0
_START_SECONDS = 120.0
_LETTER = re.compile(r"(?:[Oo]ption|[Cc]hoice)?[\s(\[*\"'$]*(?:\\text(?:bf)?\{)?[\s(]*"
                     r"([A-Z])(?![\w'])")
_PLAIN = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[-+]?\.\d+")
# A number and words after it that are units and neither mathematics nor part of the number.
_WITH_UNIT = re.compile(
    rf"({_PLAIN.pattern})\s+"
    r"(?!(?:or|and|to|pi|sqrt|times|over|mod|dozen|hundred|thousand|million|billion)\b)"
    r"[A-Za-z]{2,}[A-Za-z\s'.,-]*")
_ZERO = re.compile(r"[-+]?0+(?:\.0*)?")
_EQUATION = re.compile(r"(?!\s*[A-Za-z]\s*=)[^=]*=\s*0")
# Words of a sentence, as in no expression: two in a row, outside of LaTeX.
_PROSE = re.compile(r"^[^\\=^]*\b[A-Za-z]{3,}[,;:]?\s+[A-Za-z]{3,}\b[^\\=^]*$")


@dataclasses.dataclass(frozen=True)
class Graded:
  """What a text answers, None when that cannot be told, and whether it is right."""

  answer: str | None
  correct: bool


def grade(task: Task, problem: Problem, text: str) -> Graded:
  """Grades a generated text against the answer of its problem."""
  found = answer(task, text, words=len(problem.answer.split()))
  if found is None or not problem.answer:
    return Graded(found, False)
  if task.grading == "word":
    wanted = _words(problem.answer, len(problem.answer.split()))
    return Graded(found, found == wanted)
  return Graded(found, same_answer(task, problem.answer, found))


def answer(task: Task, text: str, words: int = 1) -> str | None:
  """The answer of a generated text, as the grading of its task reads it.

  Args:
    task: says what an answer is: mathematics, a letter, or words.
    text: generated, cut off at the stop strings.
    words: how many words an answer has, for tasks graded by words.
  """
  found = extract(text)
  if found is None and not task.generated:
    found = text.strip()  # the response is nothing but the answer
  if not found:
    return None
  if task.grading == "letter":
    letter = _LETTER.match(found)
    if letter:
      return letter[1]
    single = re.fullmatch(r"\W*([a-z])\W*", found)
    return single[1].upper() if single else None
  if task.grading == "word":
    return _words(found, words)
  return found


def vote(task: Task, text: str) -> str | None:
  """The answer that a sample votes for, read from its last characters."""
  return answer(task, text[-VOTE_CHARACTERS:])


def same_answer(task: Task, a: str | None, b: str | None) -> bool:
  """Whether two answers are the same; an unread answer is like none, not even another."""
  if not a or not b:
    return False
  return equivalent(a, b) if task.grading == "math" else a == b


def truncate_at_stop(text: str, stops: Sequence[str] = STOP_STRINGS) -> str:
  """The text before the first of the stop strings."""
  ends = [text.find(stop) for stop in stops]
  return text[:min((end for end in ends if end >= 0), default=len(text))]


def extract(text: str) -> str | None:
  """The final answer that a text states; None when it states none.

  The content of the last `\\boxed{}`; else what follows the last "answer is" in its
  sentence, after a colon if there is one; else what follows the last `####`, as in GSM8K.
  """
  boxed = last_boxed(text)
  if boxed:
    return boxed
  for mark in ("answer is", "####"):
    _, found, rest = text.rpartition(mark)
    line = rest.lstrip(" :\n\t").partition("\n")[0]
    if mark == "answer is":
      line = re.split(r":(?!\d)|(?<!\d):", line)[-1]  # but not at the colon of a ratio
    line = re.split(r"\.\s+(?=[A-Z])", line)[0].strip().rstrip(".").strip()
    if found and line:
      return line
  return None


def last_boxed(text: str) -> str | None:
  """The content of the last `\\boxed{}` or `\\fbox{}`; None when there is none or it is open."""
  start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
  if start < 0:
    return None
  opening = re.compile(r"\\(?:boxed|fbox)\s*").match(text, start).end()
  if text[opening:opening + 1] != "{":  # `\boxed 5`
    return text[opening:].split("$")[0].split("\n")[0].strip() or None
  depth = 0
  for end in range(opening, len(text)):
    depth += {"{": 1, "}": -1}.get(text[end], 0)
    if depth == 0:
      return text[opening + 1:end].strip() or None
  return None


def equivalent(a: str, b: str) -> bool:
  """Whether two answers, in LaTeX or plain, are the same mathematically."""
  a, b = _normalised(a), _normalised(b)
  if not a or not b:
    return False
  return a == b or _equivalent(*sorted((a, b)))


@functools.lru_cache(maxsize=1 << 16)
def _equivalent(a: str, b: str) -> bool:
  if _PLAIN.fullmatch(a) and _PLAIN.fullmatch(b):
    return _number(a) == _number(b)
  if _PROSE.search(a) or _PROSE.search(b):
    # math-verify would take every letter for a variable, which is as slow as it is wrong.
    return a.lower() == b.lower()
  if any(_ZERO.fullmatch(x) and _EQUATION.fullmatch(y) for x, y in ((a, b), (b, a))):
    return False  # math-verify takes `x + y = 0` for the value 0
  return _WORKER.ask(a, b)


def _number(text: str) -> decimal.Decimal:
  return decimal.Decimal(text.replace(",", ""))


def _normalised(text: str) -> str:
  text = text.strip().rstrip(".").strip()
  for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
    inner = text[len(opening):len(text) - len(closing)]
    if text.startswith(opening) and text.endswith(closing) and "$" not in inner:
      text = inner.strip()
  text = re.sub(r"(?<!\\)\\[,!; ]|~", "", text)  # spaces within numbers
  text = re.sub(r"^(\\?\$)(?=\s*[-+.\d])", "", text).strip()  # currency
  with_unit = _WITH_UNIT.fullmatch(text)
  return with_unit[1] if with_unit else text


def _words(text: str, num: int) -> str | None:
  words = [word.strip(".,;:!?\"'()[]*").lower() for word in text.split()]
  return " ".join([word for word in words if word][:max(num, 1)]) or None


class _Worker:
  """A process that compares answers one after another, ended when it takes too long."""

  def __init__(self):
    self._lock = threading.Lock()
    self._process = None
    self._replies = None
    atexit.register(self._stop)

  def ask(self, a: str, b: str) -> bool:
    with self._lock:
      try:
        if self._process is None:
          self._start()
        self._process.stdin.write(json.dumps([a, b]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._replies.get(timeout=_TIMEOUT_SECONDS))
      except (queue.Empty, OSError, ValueError):
        self._stop()
        return False

  def _start(self):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "math_worker.py")
    # -P: the modules of this folder must not hide any of the library's.
    self._process = subprocess.Popen(
        [sys.executable, "-P", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
    self._replies = queue.SimpleQueue()
    threading.Thread(target=_forward, args=(self._process.stdout, self._replies),
                     daemon=True).start()
    try:
      ready = self._replies.get(timeout=_START_SECONDS)
    except queue.Empty:
      ready = ""
    if ready.strip() != "ready":
      self._stop()
      raise UserError(f"math-verify cannot be imported by {sys.executable}; install it (pip "
                      "install 'math-verify[antlr4_13_2]').")

  def _stop(self):
    process, self._process = self._process, None
    if process is not None:
      process.kill()
      process.wait()
      process.stdin.close()


def _forward(lines, replies: queue.SimpleQueue):
  for line in lines:
    replies.put(line)
  replies.put("")  # the process has ended: no valid reply


_WORKER = _Worker()
