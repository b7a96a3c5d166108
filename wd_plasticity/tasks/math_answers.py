"""Whether two mathematical answers, in LaTeX or as people write them, are the same.

Mathematics is compared by math-verify (Hugging Face; what lm-eval, TRL and Open-R1 grade
with), both ways round, because its comparison is not symmetric. What stands around the
mathematics is taken off before: units, currency, markup and sentences. So an answer has
one or two readings, the whole and the number that it states, and two answers are the same
when a reading of one is equal to a reading of the other:

  18 km/h; 18 cm^2; $18/day; €18; USD 18; **18**; 18, in total            18
  about 18; that she has 18 apples; 3 * 6 = 18; 18, since 3 * 6 = 18      18
  9,500; 9 500 (with any space); 1.5 million; 2 1/2; 3/4 cups             9500 ... 3/4
  2x; 10 or 12; 3 to 5; 3:4; (1, 2); what is LaTeX                        the whole alone
"""

import fractions
import re
import unicodedata
from collections.abc import Sequence

from wd_plasticity.tasks.math_process import MathProcess

LONGEST = 400  # characters of an answer that math-verify is asked about
_MOST_BRACKETS = 60  # in such an answer; its parser is slow on nested ones
_MOST_KNOWN = 1 << 16  # verdicts that are kept

# Numbers.
_INTEGER = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|\.\d+)"
_NUMBER = rf"(?:\d+ +\d+ ?/ ?\d+|{_DECIMAL}(?: ?/ ?{_DECIMAL})?|\\[dt]?frac\{{\d+\}}\{{\d+\}})"
_CURRENCY = r"(?:(?:US|CA|AU)?\\?[$€£¥₹]|USD|EUR|GBP|Rs\.?)"
_STATED = re.compile(rf"(?<![\w.])([-+]?)\s?(?:{_CURRENCY} ?)?([-+]?)({_NUMBER})")
_OPERATIONS = re.compile(rf"(?: ?[-+*/×÷] ?{_CURRENCY}?{_NUMBER})+")
_PLAIN = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:/(?:\d+\.?\d*|\.\d+))?")
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_POWER = re.compile(rf"[ -]({'|'.join(_POWERS)})s?\b")

# What stands behind a number.
_FUNCTION = (r"(?:(?:sqrt|pi|sin|cos|tan|log|ln|exp|e|i)(?![A-Za-z])"
             r"|(?:times|over|mod|plus|minus) [-+(\d.$\\])")
_UNIT = (r"(?:kg|km|cm|mm|nm|m[lLg]|lbs?|oz|ft|in|yd|mi|hrs?|mins?|secs?|[ap]m|[AP]M|th|st|nd|rd"
         r"|[mk]ph|[KMGT][Bb]|USD|EUR|GBP|cents?|m|[gLlhs](?!\^))(?![A-Za-z])")
_MORE_MATHEMATICS = re.compile(  # or several numbers
    rf" ?[-+*/^<>=×÷·±≤≥–] ?(?:[-+(\d.\\]|{_CURRENCY}|[A-Za-z](?![A-Za-z])|{_FUNCTION})"
    rf"|[,;:]? ?(?:(?:and|or|to|through|versus|vs\.?) )?{_CURRENCY}?[-+]?(?:\.?\d|\\[a-z])"
    r"| ?out of\b|[.!(\[{|_&^]| ?\\(?!%|circ|\$| )| ?\^(?!\{?\\circ)"
    rf"| ?{_FUNCTION}|(?!{_UNIT})[A-Za-z]| (?![LlgmshtJNVWKCFa]\b)[A-Za-z](?![A-Za-z])")
_WORD = re.compile(rf"(?<![A-Za-z\\])(?!{_FUNCTION})[A-Za-z]{{2,}}")
_TWO_WORDS = re.compile(r"\b[A-Za-z]{3,}[,;:]?\s+[A-Za-z]{3,}\b")
_VARIABLE = re.compile(r"(?<![A-Za-z/])(?<!\d )[A-Za-z](?![A-Za-z])|\\[a-z]")
_ZERO = re.compile(r"-?0+(?:\.0*)?")
_EQUATION = re.compile(r"(?! ?[A-Za-z] ?=)[^=]*= ?0")
_TWICE_READ = re.compile(r"%|\d,\d{1,2}(?!\d)|\\")

# What stands around an answer.
_CHARACTERS = str.maketrans(
    dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\u205f\t\n\r", " ")
    | dict.fromkeys("\u2212\ufe63\uff0d\u2011", "-")
    | dict.fromkeys("“”„«»", '"') | dict.fromkeys("‘’", "'")
    | {"²": "^2", "³": "^3", "\u200b": "", "\ufeff": ""})
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_MINUS = re.compile(r"(?<![^\s(=$])[–‒](?=[\d.$(\\])")
_LATEX_SPACE = re.compile(r"(?<!\\)\\[,!; ]|~|\{(?=,\})|(?<=\{,)\}")
_LATEX_TEXT = re.compile(r"\\(?:text|math)[a-z]* ?\{([^{}]*)\}")
_AROUND = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"),
           ("*", "*"), ("_", "_"), ("`", "`"), ('"', '"'), ("'", "'"))

PROCESS = MathProcess()
_known: dict[tuple[str, str], bool] = {}


def equivalent(a: str, b: str) -> bool:
  """Whether two answers are the same mathematically."""
  return equivalent_all([(a, b)])[0]


def equivalent_all(pairs: Sequence[tuple[str, str]]) -> list[bool]:
  """`equivalent` of many pairs, with those that need math-verify asked in one go."""
  read = [(readings(a), readings(b)) for a, b in pairs]
  questions = [_questions(a, b) for a, b in read]
  verdicts = {pair: _known.get(pair) for asked in questions for pair in asked}
  new = [pair for pair, verdict in verdicts.items() if verdict is None]
  verdicts.update(zip(new, PROCESS.same(new) if new else (), strict=True))
  if len(_known) > _MOST_KNOWN:
    _known.clear()
  _known.update(verdicts)
  return [_plainly_same(a, b) or any(verdicts[pair] for pair in asked)
          for (a, b), asked in zip(read, questions, strict=True)]


def readings(text: str) -> tuple[str, ...]:
  """What an answer can be read as: cleaned of what stands around it, and numbers it states."""
  text = _clean(text)
  if not text or len(text) > LONGEST:
    return (text,) if text else ()
  if re.fullmatch(r"-?\d+,\d{1,2}", text):
    return text, text.replace(",", ".")  # two numbers, or one as in German
  stated = _stated(text)
  if stated and _STATED.fullmatch(text):
    return tuple(stated)
  return tuple(dict.fromkeys((text, *stated)))


def _plainly_same(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
  """Whether they are the same texts or numbers."""
  names = [x.casefold() for x in a if re.search("[A-Za-z]{3}", x)]
  if set(a) & set(b) or any(y.casefold() in names for y in b):
    return True
  return not {_value(x) for x in a}.isdisjoint({_value(y) for y in b} - {None})


def _questions(a: tuple[str, ...], b: tuple[str, ...]) -> list[tuple[str, str]]:
  """The pairs of readings that math-verify has to compare."""
  if not a or not b or _plainly_same(a, b):
    return []
  if not any(_TWICE_READ.search(x) for x in (a[0], b[0])):
    numbers = [["/" in x for x in readings if _PLAIN.fullmatch(x)] for readings in (a, b)]
    if all(numbers) and any(numbers[0]) == any(numbers[1]):
      return []  # they differ, and rounding is a question of fractions alone
  return [tuple(sorted((x, y))) for x in a for y in b if _comparable(x, y) and _comparable(y, x)]


def _comparable(x: str, y: str) -> bool:
  if len(x) > LONGEST or sum(map(x.count, "([{")) > _MOST_BRACKETS:
    return False
  if _TWO_WORDS.search(x) and not set("\\=^$") & set(x):
    # math-verify would take every letter for a variable, which is as slow as it is wrong.
    return False
  # It takes `x + y = 0` for the value 0.
  return not (_EQUATION.fullmatch(x) and _ZERO.fullmatch(y))


def _value(text: str) -> fractions.Fraction | None:
  """The value of a plain number or fraction, None of anything else."""
  if len(text) > LONGEST or not _PLAIN.fullmatch(text):
    return None
  top, _, bottom = text.partition("/")
  bottom = fractions.Fraction(bottom or 1)
  return fractions.Fraction(top) / bottom if bottom else None


def _clean(text: str) -> str:
  text = text.strip()
  if len(text) > 4 * LONGEST:
    return text
  text = _VULGAR.sub(
      lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/"), text)
  text = re.sub(" {2,}", " ", _LATEX_SPACE.sub("", text.translate(_CHARACTERS)))
  text = _MINUS.sub("-", text)
  before = None
  while text != before:
    before = text
    text = text.strip().rstrip(".,;:?").lstrip("≈~=≃≅").strip()
    for opening, closing in _AROUND:
      inner = text[len(opening):len(text) - len(closing)]
      if text.startswith(opening) and text.endswith(closing) and opening not in inner:
        text = inner.strip()
    whole = _LATEX_TEXT.fullmatch(text)
    text = whole[1] if whole else text
  return text


def _stated(text: str) -> list[str]:
  """The number, or sum or product of numbers, that a text states in words or with a unit."""
  text = re.sub(r"(?<=\d) ?x ?(?=\d)", "*", _LATEX_TEXT.sub(r"\1", text)).strip()
  head, equals, tail = text.rpartition("=")
  match = _STATED.match(tail.lstrip(" *_"))
  if equals and match and (_WORD.search(text) or not _VARIABLE.search(head)):
    numbers, _ = _numbers_at(match)
    if numbers:
      return numbers
  match = _STATED.match(text)
  if match:
    numbers, end = _numbers_at(match)
    # An answer may be in millions, so "4 million dollars" is 4, too, unlike "4 million".
    return numbers[-1:] if end == len(text) else numbers
  if "\\" in text.replace("\\$", "") or not _WORD.search(text):
    return []
  numbers, match = [], _STATED.search(text)
  while match:
    numbers, end = _numbers_at(match)
    match = _STATED.search(text, end)
  return numbers


def _numbers_at(match: re.Match) -> tuple[list[str], int]:
  """The number at a place of a text, none if it is a part of mathematics; where it ends."""
  number, text = _canonical(match), match.string
  rest = text[match.end():].lstrip("*_`\"'")
  operations = _OPERATIONS.match(rest)
  if operations:
    rest = rest[operations.end():]
    number = match[0] + operations[0].replace("×", "*").replace("÷", "/")
    number = re.sub(_CURRENCY, "", number)
  numbers = [number]
  power = _POWER.match(rest)
  if power:
    numbers.append(_times(number, 10**_POWERS[power[1]]))
    rest = rest[power.end():]
  return [] if _MORE_MATHEMATICS.match(rest) else numbers, len(text) - len(rest)


def _canonical(match: re.Match) -> str:
  """A matched number as -1234.5 or -3/4."""
  sign = "-" if "-" in match[1] + match[2] else ""
  number = match[3].replace(",", "")
  if number.startswith("\\"):
    return sign + "/".join(re.findall(r"\d+", number))
  mixed = re.fullmatch(r"(\d+) +(\d+) ?/ ?(\d+)", number)
  if mixed:
    whole, over, under = map(int, mixed.groups())
    return f"{sign}{whole * under + over}/{under}"
  return sign + number.replace(" ", "")


def _times(number: str, factor: int) -> str:
  value = _value(number)
  return f"({number})*{factor}" if value is None else str(value * factor)
