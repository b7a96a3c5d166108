"""Answers in generated text, and whether they are right.

What a text answers is the content of its last `\\boxed{}`, else what follows the last
"answer is", as the paper's evaluator has it, or a last line `#### answer`, as in
GSM8K. That evaluator reads all of the rest of the text; here a sentence ends. Then a letter
is read as the letter of an option of the problem, words as one of the classes of the
problem, and mathematics as in `math_answers`.
"""

import dataclasses
import re
from collections.abc import Sequence

from wd_plasticity.tasks import math_answers
from wd_plasticity.tasks.math_answers import equivalent
from wd_plasticity.tasks.task import Problem, Task

# Of Han et al.: around every problem, and what ends a response to it.
TEMPLATE = "Human: {prompt}\nAssistant:"
STOP_STRINGS = ("Human", "Human:", "Assistant", "Assistant:")
VOTE_CHARACTERS = 128  # the answer of a vote is stated among that many at the end of a sample

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LONGEST = 1000  # characters that are read of what is stated
_MARKS = ("answer is", "####")
_SENTENCE_END = re.compile(
    r"(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bSt)(?<!\bNo)(?<!\bvs)(?<!\bMrs)(?<!\bProf)"
    r"[.!?][*_`\"'”’)\]}$]*\s+(?=[\"'“‘(\[*_$\\]*[A-Z])")
_COLON = re.compile(r":(?!\d)|(?<!\d):")  # but not that of a ratio
_ANSWER_BEGINS = re.compile(
    r"[\s*_`\"'“‘(\[{~≈=]*(?:[A-Za-z]\s*=|[-+−]?\s*[\d.$€£¥₹\\]|[A-Za-z]\W*$)")
_MATHEMATICS = re.compile(r"\d|\\[a-z]|[A-Za-z] ?=|[¼-¾⅐-⅞]")
_BRACE = re.compile(r"[{}]")
_DISPLAYS = (("\\[", "\\]"), ("$$", "$$"), ("```", "```"))

# What may stand before a letter or a word: LaTeX, quotes, brackets, markup.
_OPENING = r"(?:\\(?:text|math|operatorname)[a-z]*|\\[(\[,;! ]|[\s*_`\"'“”‘’«({\[$<~])*+"
_CLOSING = r"[\s*_`\"'“”‘’»)\]}$>\\.,;:!?]*"
_LETTER = re.compile(
    _OPENING + r"(?:(?:therefore|thus|hence|clearly|probably|most likely|likely|definitely),?\s)?"
    r"(?:(?:the\s)?(?:(?:correct|right|best|final)\s)?(?:[Oo]ption|[Cc]hoice|[Ll]etter|answer)\b"
    r"[\s:]*)?" + _OPENING + r"([A-Za-z])(?!_*[^\W_]|['’][^\W_]|[-/&<>][^\W_]|\.[^\W_]"
    r"|\s*[=+^⊃∨∧→≤≥])")  # but not of "B12", "C-reactive", "i.e.", "C = 8"
_NAMED_LETTER = re.compile(
    r"\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)[\s(*\"'“]+([A-Z])(?!_*[^\W_]|['’]\w)")
_AFTER_LETTER = re.compile(  # "A is right", "A Aspirin", but not "A possible cause"
    r"\s+(?:is|as|because|since|for|with|which|and|or|not|but|based|due|given|in|on|rather|so|from"
    r"|according|that|if|by)\b|\s*[^\sa-zB-DF-HJ-NP-TV-Z]|\s*$")
_PUNCTUATION = ".,;:!?\"'()[]{}*_`“”‘’«»$"


@dataclasses.dataclass(frozen=True)
class Graded:
  """What a text answers, None when that cannot be told, and whether it is right.

  `correct` is None where the problem has no answer to compare with.
  """

  answer: str | None
  correct: bool | None


def grade(task: Task, problem: Problem, text: str) -> Graded:
  """Grades a generated text against the answer of its problem."""
  return grade_all(task, [(problem, text)])[0]


def grade_all(task: Task, texts: Sequence[tuple[Problem, str]]) -> list[Graded]:
  """`grade` of many texts, which takes less time than one by one."""
  found = [answer(task, text, problem) for problem, text in texts]
  wanted = [_gold(task, problem) for problem, _ in texts]
  pairs = [(w, f) for w, f in zip(wanted, found, strict=True) if w and f]
  same = iter(math_answers.equivalent_all(pairs) if task.grading == "math"
              else [w == f for w, f in pairs])
  return [Graded(f, None if not w else bool(f) and next(same))
          for w, f in zip(wanted, found, strict=True)]


def answer(task: Task, text: str, problem: Problem | None = None) -> str | None:
  """The answer of a generated text, as the grading of its task reads it.

  Args:
    task: says what an answer is: mathematics, a letter, or words.
    text: generated, cut off at the stop strings.
    problem: whose letters and classes can be answers; None: any letter, one word.
  """
  stated = _statement(text)
  if stated is None and task.generated:
    return None
  said = text.strip()[:_LONGEST] if stated is None else stated[1]  # else nothing but the answer
  if task.grading == "math":
    return extract(text) if stated else said or None
  sentence = said if stated and stated[2] else next(iter(_sentences(said)), "")
  if task.grading == "letter":
    return _first(_letter, sentence, problem)
  return _first(_class, sentence, problem) or _words(_parts(sentence)[-1], problem)


def vote(task: Task, text: str, problem: Problem | None = None) -> str | None:
  """The answer that a sample votes for: what is graded, if it is stated at the end.

  A sample that goes on for more than 128 characters after its answer does not vote, as in
  the paper; nor does one that states none.
  """
  stated = _statement(text)
  if task.generated and stated and stated[0] < len(text) - VOTE_CHARACTERS:
    return None
  return answer(task, text, problem)


def same_answer(task: Task, a: str | None, b: str | None) -> bool:
  """Whether two answers are the same; an unread answer is like none, not even another."""
  if not a or not b:
    return False
  return equivalent(a, b) if task.grading == "math" else a == b


def truncate_at_stop(text: str, stops: Sequence[str] = STOP_STRINGS) -> str:
  """The text before the first of the stop strings; one may begin with the end of a line."""
  text = "\n" + text  # a line begins here, too
  ends = [text.find(stop) for stop in stops]
  return text[1:max(1, min((end for end in ends if end >= 0), default=len(text)))]


def extract(text: str) -> str | None:
  """The final answer that a text states; None when it states none.

  The content of the last `\\boxed{}`; else what follows the last "answer is" in its
  sentence, or a later last line `#### ...`. What stands before a colon is the answer if it
  can be one ("5: that is all"), else what comes after it ("as follows: 5").
  """
  stated = _statement(text)
  if stated is None:
    return None
  _, said, boxed = stated
  if boxed:
    return said
  sentence, *others = _sentences(said)
  if not any(map(_ANSWER_BEGINS.match, _parts(sentence))):  # a derivation: what it comes to
    sentence = next((s for s in reversed(others) if "=" in s), sentence)
    if len(sentence.split()) > 3 and not _MATHEMATICS.search(sentence):
      sentence = next(filter(_MATHEMATICS.search, others), sentence)
  parts = _parts(sentence)
  part = next((p for p in parts if _ANSWER_BEGINS.match(p)), None) or next(
      (p for p in reversed(parts) if _MATHEMATICS.search(p)), parts[-1])
  return part.strip(" *_`").rstrip(".,;!?").strip() or None


def last_boxed(text: str) -> str | None:
  """The content of the last `\\boxed{}` or `\\fbox{}`; None when there is none or it is open."""
  found = _last_boxed(text)
  return found and found[1]


def _last_boxed(text: str) -> tuple[int, str] | None:
  start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
  if start < 0:
    return None
  opening = re.compile(r"\\(?:boxed|fbox)\s*").match(text, start).end()
  if text[opening:opening + 1] != "{":  # `\boxed 5`
    content = text[opening:].split("$")[0].split("\n")[0].strip()
    return (start, content) if content else None
  depth = 0
  for brace in _BRACE.finditer(text, opening):
    depth += 1 if brace[0] == "{" else -1
    if depth == 0:
      content = text[opening + 1:brace.start()].strip()
      return (start, content) if content else None
  return None


def _statement(text: str) -> tuple[int, str, bool] | None:
  """Where an answer is stated, what follows or is in the box, and whether it is a box."""
  boxed = _last_boxed(text)
  if boxed:
    return *boxed, True
  phrase, hashes = (text.rfind(mark) for mark in _MARKS)
  # After "answer is", `####` is a heading unless it is the last line.
  last_line = "\n" not in text[hashes:].strip()
  order = [hashes, phrase] if hashes > phrase and (last_line or phrase < 0) else [phrase, hashes]
  for place in order:
    if place < 0:
      continue
    rest = text[place + len(_MARKS[place == hashes]):][:_LONGEST].lstrip(" :#\n\t*_").strip()
    for opening, closing in _DISPLAYS:
      if rest.startswith(opening):
        rest = rest.removeprefix(opening).partition(closing)[0].strip()
    if rest.strip(_PUNCTUATION + " \n"):
      return place, rest, False
  return None


def _sentences(text: str) -> list[str]:
  """The sentences of a text, at least one; a line that only announces goes on in the next."""
  text = re.sub(r"(:|follows|following|below)[.:*]*\n\s*", r"\1: ", text)
  found = [s.strip() for line in text.split("\n") for s in _SENTENCE_END.split(line)]
  return [s for s in found if s.strip(_PUNCTUATION)] or [text]


def _parts(sentence: str) -> list[str]:
  return [p.strip() for p in _COLON.split(sentence) if p.strip(_PUNCTUATION + " ")] or [sentence]


def _first(read, sentence: str, problem: Problem | None) -> str | None:
  """What is read from the sentence, or else after one of its colons."""
  return next(filter(None, (read(part, problem) for part in [sentence, *_parts(sentence)[1:]])),
              None)


def _letter(text: str, problem: Problem | None) -> str | None:
  """The letter of an option that a text begins with, or that it names as "option X"."""
  letters = _LETTERS[:len(problem.options) if problem else 0] or _LETTERS
  match = _LETTER.match(text)
  if match:
    rest, letter = text[match.end():], match[1]
    alone = re.match(_CLOSING + "$", rest) or re.match(
        r"[\s*_`\"'”’}]*(?:[):\]]|[.,;](?:\s|$))", rest)
    if letter.islower() and not alone:
      return None
    if letter in "AI" and not alone and not _AFTER_LETTER.match(rest):
      return None
    return letter.upper() if letter.upper() in letters else None
  named = {m for m in _NAMED_LETTER.findall(text) if m in letters}
  return named.pop() if len(named) == 1 else None


def _gold(task: Task, problem: Problem) -> str:
  return _plain(problem.answer) if task.grading == "word" else problem.answer


def _class(text: str, problem: Problem | None) -> str | None:
  """The longest name of a class of the problem that a text begins with."""
  text = _plain(text)
  for name in sorted(_classes(problem), key=len, reverse=True):
    if name and re.match(re.escape(name) + r"(?!-?[^\W_])", text):
      return name
  return None


def _classes(problem: Problem | None) -> list[str]:
  if problem is None:
    return []
  return [_plain(extract(option) or option) for option in problem.options] + [
      _plain(problem.answer)]


def _words(text: str, problem: Problem | None) -> str | None:
  """As many words of a text as the names of the classes have."""
  num = max([len(name.split()) for name in _classes(problem)], default=1)
  words = [word.strip(_PUNCTUATION) for word in _plain(text).split()]
  return " ".join([word for word in words if word][:max(num, 1)]) or None


def _plain(text: str) -> str:
  """Lower case with single spaces, without what stands around it."""
  text = text[re.match(_OPENING, text).end():]
  return " ".join(text.casefold().split()).rstrip(_PUNCTUATION + " ")
