"""rich's console for text of others: nothing in a name is markup, an emoji or an escape code."""

import rich.console
import rich.table
from rich.segment import Segment
from rich.text import Text

from wd_plasticity.plain import visible


class Console(rich.console.Console):
  """As rich's; strings are shown as they are, and control characters are spelled.

  Styles are given by arguments and by `Text`, which works as ever.
  """

  def __init__(self, **options):
    super().__init__(**({"markup": False, "emoji": False, "highlight": False} | options))

  def render_str(self, text, **options):
    return super().render_str(visible(text), **options)

  def render(self, renderable, options=None):
    for segment in super().render(renderable, options):
      yield segment if segment.control else Segment(visible(segment.text), segment.style)

  @property
  def file(self):
    """Below all streams that clean or redirect what others print."""
    file = super().file
    while (below := getattr(file, "rich_proxied_file", None)) is not None:
      file = below
    return file

  @file.setter
  def file(self, new):
    self._file = new


def text(shown: object, style: str = "") -> Text:
  """Text of others for any console of rich."""
  return Text(visible(shown), style)


class Table(rich.table.Table):
  """As rich's; cells and heads that are strings are shown as they are, on any console."""

  def add_column(self, header="", *args, **options):
    super().add_column(text(header) if isinstance(header, str) else header, *args, **options)

  def add_row(self, *cells, **options):
    super().add_row(*(text(c) if isinstance(c, str) else c for c in cells), **options)
