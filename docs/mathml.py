"""Formulas as MathML, which browsers draw by themselves: pages need no network."""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert


def _inline(writer, node):
  writer.body.append(convert(node.astext()))
  raise SkipNode


def _display(writer, node):
  writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
  raise SkipNode


def setup(app):
  app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
  return {"parallel_read_safe": True, "parallel_write_safe": True}
