"""Text of others, shown as nothing but text: on a terminal, and in a table.

Names come from folders, configurations, results and models, and error messages quote them. A
terminal obeys escape codes in them, and text that runs from right to left hides what stands
there; a spreadsheet computes a cell that begins like a formula. Both are dealt with where text
leaves the program, not where it comes in: a file keeps what it was given.
"""

import contextlib
import csv
import io
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Control characters but tab and line feed, marks of direction, separators of lines, invisible
# tags, and halves of surrogate pairs, which cannot be written at all.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
                     "\ud800-\udfff\U000e0000-\U000e007f]")
_FORMULA = tuple("=+-@\t\n\uff1d\uff0b\uff0d\uff20")  # the last four: their wide forms
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)", re.ASCII)


def visible(text: object) -> str:
  """Text in which what a terminal would obey is spelled, such as \\x1b; lines stay lines."""
  return _UNSEEN.sub(_spelled, str(text))


def one_line(text: object) -> str:
  """`visible`, with line ends as spaces."""
  return visible(" ".join(str(text).splitlines()))


def _spelled(match: re.Match) -> str:
  code = ord(match[0])
  return f"\\x{code:02x}" if code < 0x100 else (
      f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def cell(value: Any) -> Any:
  """A value as a table keeps it: text as of `visible`, that a spreadsheet does not compute.

  What would be a formula gets a quote before it. Numbers stay numbers, also those that are
  given as text.
  """
  if not isinstance(value, str) or _NUMBER.fullmatch(value):
    return value
  shown = visible(value)  # a return alone would end a row
  return f"'{shown}" if shown.lstrip(" ").startswith(_FORMULA) else shown


def csv_text(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
  """A CSV file of these columns, each value as of `cell`; None is an empty one."""
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  writer.writerows([cell(value) for value in row] for row in (columns, *rows))
  return stream.getvalue()


class _Stream:
  """A text stream that shows text alone; what else it has is that of the stream below.

  rich writes past it (`rich_proxied_file`): it has codes of its own, and its text is cleaned by
  `console.Console`.
  """

  def __init__(self, stream):
    self.rich_proxied_file = stream

  def write(self, text: str) -> int:
    # Bars of libraries begin with the return to the start of their line.
    start = "\r" if text.startswith("\r") else ""
    shown = start + visible(text[len(start):])
    try:
      self.rich_proxied_file.write(shown)
    except UnicodeEncodeError:  # a terminal that has not the letters of a name
      encoding = self.rich_proxied_file.encoding
      self.rich_proxied_file.write(shown.encode(encoding, "backslashreplace").decode(encoding))
    return len(text)

  def writelines(self, lines: Iterable[str]) -> None:
    for line in lines:
      self.write(line)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def output() -> Iterator[None]:
  """Within, whatever is printed or logged, by whatever library, is shown as `visible` has it."""
  before = sys.stdout, sys.stderr
  if any(stream is None or isinstance(stream, _Stream) for stream in before):
    yield
    return
  shown = _Stream(sys.stdout), _Stream(sys.stderr)
  sys.stdout, sys.stderr = shown
  handlers = [h for h in _handlers() if getattr(h, "stream", None) is before[1]]
  for handler in handlers:
    handler.stream = shown[1]
  try:
    yield
  finally:
    for handler in handlers:
      handler.stream = before[1]
    if sys.stdout is shown[0]:
      sys.stdout = before[0]
    if sys.stderr is shown[1]:
      sys.stderr = before[1]


def _handlers() -> list[logging.Handler]:
  """Of the root logger; absl's hides the one that writes."""
  handlers = [*logging.getLogger().handlers, logging.lastResort]
  return [h for handler in handlers for h in (handler, getattr(handler, "python_handler", None))
          if h is not None]
