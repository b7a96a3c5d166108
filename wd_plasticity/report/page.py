"""The report as one HTML file that needs nothing beside it and no network."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from wd_plasticity.report import interactive, look, provenance
from wd_plasticity.report.answer import Answer, Comparison, Estimate
from wd_plasticity.report.figure import Figure
from wd_plasticity.report.scores import is_loss
from wd_plasticity.report.study import Study
from wd_plasticity.report.wording import number

_HERE = Path(__file__).parent
_INK = {"light": {"paper": look.LIGHT, "ink": "#1d2125", "grid": "#e6e9ec", "axis": "#8a929b"},
        "dark": {"paper": look.DARK, "ink": "#e4e6e9", "grid": "#2b3138", "axis": "#77808a"}}
# What would end a script, and what ends a line of JavaScript but not of JSON.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render(study: Study, answers: Sequence[Answer], figures: Sequence[Figure]) -> str:
  """The whole page.

  Args:
    study: tells the name and how it was made.
    answers: stand first, in words and as tables.
    figures: in their order; sections are in the order of their first figure. One that
      cannot be drawn is a note on the page.
  """
  drawings, entries, notes = [], {}, list(study.notes)
  for index, figure in enumerate(figures):
    drawing = None
    if figure.views:
      try:
        drawing = interactive.figure_json(figure)
      except Exception as e:  # one figure must not take down the report
        logging.exception("the figure %s cannot be drawn", figure.name)
        notes.append(undrawn(figure, e))
    drawings.append(drawing)
    entries.setdefault(figure.section, []).append(_entry(index, figure, drawing is not None))
  decays = look.decays_of(figures)
  data = {"figures": drawings,
          "themes": {name: ink | {"colours": look.palette(decays, ink["paper"])}
                     for name, ink in _INK.items()}}
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined,
                                   trim_blocks=True)
  page = environment.from_string(_text("page.html")).render(
      study=study, answers=[_answer_entry(a) for a in answers], notes=notes,
      sections=[{"title": title, "figures": inside} for title, inside in entries.items()],
      tables=provenance.tables(study),
      commands=[(name, provenance.folded(line)) for name, line in study.commands],
      css=Markup(_text("page.css")), js=Markup(_text("page.js")),
      plotly=Markup(get_plotlyjs()), data=Markup(script_json(data)))
  # Lone surrogates, which a damaged name may hold, cannot be written as UTF-8.
  return page.encode("utf-8", "backslashreplace").decode("utf-8")


def script_json(value: Any) -> str:
  """JSON that can stand in a script element whatever its strings say."""
  text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
  return text.translate(_ESCAPES)


def undrawn(figure: Figure, error: Exception) -> str:
  """The note about a figure that could not be drawn."""
  return f"The figure \"{figure.title}\" could not be drawn ({type(error).__name__})."


def _text(name: str) -> str:
  return (_HERE / name).read_text(encoding="utf-8")


def _entry(index: int, figure: Figure, drawn: bool) -> dict[str, Any]:
  on_paper = any(v.on_paper for v in figure.views)
  files = [f"figures/{figure.name}.{kind}" for kind in ("png", "pdf") if on_paper]
  return {
      "index": index, "title": figure.title, "caption": figure.caption, "drawn": drawn,
      "missing": figure.missing or "There is nothing to show here.",
      "files": ", ".join([*files, f"tables/{figure.name}.csv"]),
      "controls": [{"name": c, "options": list(dict.fromkeys(v.choice[c] for v in figure.views))}
                   for c in figure.controls] if drawn else [],
  }


def _answer_entry(answer: Answer) -> dict[str, Any]:
  """An answer with the table of its decays: loss, and the average after fine-tuning."""
  after = next((c for c in answer.comparisons if c.rate in ("best", "")),
               answer.comparisons[0] if answer.comparisons else None)
  columns, heads, caption = [], [], []
  if answer.loss is not None:
    columns.append(answer.loss)
    heads += ["pretraining validation loss", "95 % interval", "probability best"]
    caption.append("validation loss in nats per token")
  if after is not None:
    columns.append(after)
    rate = "" if after.rate == "" else " at the best rate" if after.rate == "best" else (
        f" at {after.rate}")
    heads += [f"after fine-tuning{rate}", "95 % interval", "probability best"]
    unit = "nats per token" if is_loss(after.measure) else "%"
    caption.append(f"after fine-tuning: {after.title}, {after.measure} in {unit}")
  decays = sorted({e.weight_decay for c in columns for e in c.estimates})
  level = {columns[-1].best, *columns[-1].ties} if columns else set()
  shaded = ("Intervals are of each decay by itself. Shaded: the best mean of the last measure, and "
            "what cannot be told from it.")
  return {
      "group": answer.name, "sentences": answer.sentences, "cautions": answer.cautions,
      "heads": heads, "caption": f"{'; '.join(caption).capitalize()}. {shaded}",
      "rows": [{"decay": f"{d:g}", "best": d in level,
                "cells": [cell for c in columns for cell in _cells(c, d)]}
               for d in decays],
  }


def _cells(comparison: Comparison, decay: float) -> list[str]:
  found: Estimate | None = next((e for e in comparison.estimates if e.weight_decay == decay), None)
  if found is None:
    return ["-", "-", "-"]
  known = found.low is not None and found.high is not None
  value, low, high = (_number(v, comparison.measure)
                      for v in (found.value, found.low, found.high))
  return [value, f"{low} to {high}" if known else "-",
          "-" if found.best is None else _percent(found.best)]


def _number(value: float | None, measure: str) -> str:
  if value is None:
    return "-"
  # With the zeros at the end, so that digits stand below each other.
  return f"{value:#.4g}" if is_loss(measure) else number(value, measure, unit=False)


def _percent(share: float) -> str:
  """A probability without claiming certainty."""
  return "< 1 %" if share < 0.01 else "> 99 %" if share > 0.99 else f"{100 * share:.0f} %"
