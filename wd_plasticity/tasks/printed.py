"""Lists and dicts that a table holds as text: JSON, or printed by Python or NumPy.

    ["ice", "fire"]      ['ice', 'fire']      ['ice' 'fire']
    {'text': array(['ice', 'fire'], dtype=object), 'label': ['A', 'B']}

The last two are what pandas writes for a column of arrays. Python itself would read
`['ice' 'fire']` as the one text `icefire`.
"""

import ast
import json
import re
from typing import Any

# A text in quotes, a word or number, or a mark. Linear: no part can match what the next can.
_TOKEN = re.compile(r"""\s*(?:('[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")"""
                    r"|([\w.+-]+)|([\[\]{}(),:=]))", re.DOTALL)
_WORDS = {"None": None, "null": None, "nan": None, "NaN": None, "True": True, "true": True,
          "False": False, "false": False}
_CLOSING = {"[": "]", "(": ")"}


def structure(value: Any) -> Any:
  """The list or dict that a text is; any other value, and any other text, as it is."""
  if not isinstance(value, str) or not value.lstrip().startswith(("[", "{", "array(")):
    return value
  try:
    return json.loads(value)
  except (ValueError, RecursionError):
    pass
  try:
    return _Reader(value).whole()
  except (ValueError, SyntaxError, RecursionError):
    return value


class _Reader:
  """Reads one value of Python or NumPy; a ValueError when it is none."""

  def __init__(self, text: str):
    self._text = text.strip()
    self._position = 0

  def whole(self) -> Any:
    value = self._value()
    if self._position != len(self._text):
      raise ValueError("text after the value")
    return value

  def _token(self) -> tuple[str, str, str]:
    match = _TOKEN.match(self._text, self._position)
    if match is None:
      raise ValueError("no value")
    self._position = match.end()
    return match[1] or "", match[2] or "", match[3] or ""

  def _takes(self, mark: str) -> bool:
    match = _TOKEN.match(self._text, self._position)
    if match is None or match[3] != mark:
      return False
    self._position = match.end()
    return True

  def _value(self) -> Any:
    string, word, mark = self._token()
    if string:
      return ast.literal_eval(string)
    if word == "array":
      return self._array()
    if word:
      return _WORDS[word] if word in _WORDS else _number(word)
    if mark in _CLOSING:
      return self._items(_CLOSING[mark])
    if mark == "{":
      return self._pairs()
    raise ValueError(f"a value cannot begin with {mark}")

  def _items(self, closing: str) -> list:
    items = []
    while not self._takes(closing):
      items.append(self._value())
      self._takes(",")  # NumPy leaves it out
    return items

  def _pairs(self) -> dict:
    pairs = {}
    while not self._takes("}"):
      key = self._value()
      if not self._takes(":"):
        raise ValueError("a key without a value")
      pairs[key if isinstance(key, (str, int)) else str(key)] = self._value()
      self._takes(",")
    return pairs

  def _array(self) -> list:
    """What follows `array`: its items, and perhaps its dtype."""
    if not self._takes("("):
      raise ValueError("array without brackets")
    items = self._value()
    while not self._takes(")"):
      self._token()
    return items


def _number(word: str) -> int | float:
  try:
    return int(word)
  except ValueError:
    return float(word)
