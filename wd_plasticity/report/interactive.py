"""Figures as JSON for plotly.js: traces of every view and one layout.

Colours are keys of `look.palette`, which the page turns into those of its theme. Every
text is escaped, because plotly.js takes some HTML and `%{templates}` for markup.
"""

import html
from typing import Any

from wd_plasticity.report import look
from wd_plasticity.report.figure import LINE, POINTS, REFERENCE, Figure, Series, View

_MAX_UNIT_TICKS = 15


def figure_json(figure: Figure) -> dict[str, Any]:
  """What page.js draws a figure from.

  Returns:
    {'name', 'controls', 'views': [{'choice', 'y_label', 'legend', 'traces'}], 'layout'}; traces are
    those of plotly.js, but for 'colour', a key of the palette.
  """
  keys = look.colour_keys(figure)
  return {
      "name": figure.name,
      "controls": list(figure.controls),
      "views": [{"choice": dict(v.choice), "y_label": plain(v.y_label),
                 "legend": look.legend_title([v]),
                 "traces": _traces(figure, v, keys)} for v in figure.views],
      "layout": {"xaxis": _x_axis(figure), "yaxis": {"type": figure.y_axis} | (
          {"range": list(figure.y_range)} if figure.y_range else {})},
  }


def plain(text: str) -> str:
  """Text that plotly.js shows as it is: neither markup, entity, template nor mathematics."""
  text = html.escape(" ".join(str(text).splitlines()), quote=False)
  return text.replace("%", "&#37;").replace("$", "&#36;")


def _x_axis(figure: Figure) -> dict[str, Any]:
  axis: dict[str, Any] = {"title": {"text": plain(figure.x_label)}}
  values = [x for v in figure.views for s in v.series for x in s.x
            if look.finite(x) is not None]
  if figure.x_axis == "decay":
    decays = look.places(figure)
    axis |= {"type": "linear", "tickvals": list(decays.values()),
             "ticktext": [f"{d:g}" for d in decays], "range": [-0.45, len(decays) - 0.55],
             "showgrid": False}
  elif figure.x_axis == "count":
    axis |= {"type": "linear", "tickformat": ",d"}
    if values and max(values) - min(values) <= _MAX_UNIT_TICKS:
      axis |= {"dtick": 1, "tick0": 0}
  elif figure.x_axis == "log":
    ticks = look.log_ticks(values)
    axis |= {"type": "log", "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
  else:
    axis |= {"type": "linear"}
  return axis


def _traces(figure: Figure, view: View, keys: dict[str, str]) -> list[dict]:
  made = []
  decays = look.places(figure)
  for i, (series, shift, dash) in enumerate(
      zip(view.series, look.shifts(figure, view), look.dashes(view), strict=True)):
    colour = look.colour_key(series, keys)
    x = [_short(look.place(figure, decays, v, shift)) for v in series.x]
    log = figure.y_axis == "log"
    trace = {
        "type": "scatter", "name": plain(series.name), "legendgroup": str(i), "colour": colour,
        "x": x, "y": [_short(look.finite(v, log)) for v in series.y],
        "mode": _mode(series), "hoverinfo": "text", "hovertext": _hover(figure, view, series),
        "line": {"width": 1.5 if series.style == REFERENCE else 2, "dash": dash},
        "marker": {"size": 7 if len(x) <= 30 else 5},
    }
    if any(look.interval(series, k, log) for k in range(len(x))):
      if look.has_band(figure, series):
        made.append(_band(series, x, log) | {"legendgroup": str(i), "colour": colour})
      else:
        trace["error_y"] = _bars(series, log)
    made.append(trace)
  return made


def _mode(series: Series) -> str:
  if series.style == POINTS:
    return "markers"
  many = series.style == LINE and len(series.x) > 30
  return "lines" if series.style == REFERENCE or many else "lines+markers"


def _bars(series: Series, log: bool) -> dict[str, Any]:
  up, down = [], []
  for k, y in enumerate(series.y):
    ends = look.interval(series, k, log)
    known = ends is not None and look.finite(y, log) is not None
    up.append(_short(max(0.0, ends[1] - y)) if known else None)
    down.append(_short(max(0.0, y - ends[0])) if known else None)
  return {"type": "data", "symmetric": False, "array": up, "arrayminus": down,
          "thickness": 1.5, "width": 4}


def _band(series: Series, x: list, log: bool) -> dict[str, Any]:
  """Closed areas between the ends of the intervals, one for each run without a gap."""
  xs: list = []
  ys: list = []
  run: list = []
  for k in range(len(x) + 1):
    ends = look.interval(series, k, log) if k < len(x) and x[k] is not None else None
    if ends is not None:
      run.append((x[k], ends))
    elif run:
      xs += [p for p, _ in run] + [p for p, _ in reversed(run)] + [None]
      ys += [_short(e[0]) for _, e in run] + [_short(e[1]) for _, e in reversed(run)] + [None]
      run = []
  return {"type": "scatter", "mode": "none", "x": xs[:-1], "y": ys[:-1], "fill": "toself",
          "hoverinfo": "skip", "showlegend": False}


def _hover(figure: Figure, view: View, series: Series) -> list[str]:
  texts = []
  for k, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
    ends = look.interval(series, k)
    value = "" if y is None else f"{y:.4g}"
    lines = [plain(series.name), *(plain(v) for v in series.labels[k:k + 1]),
             f"{plain(view.y_label)}: {value}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]"
                                                  if ends else ""),
             f"{plain(figure.x_label)}: {x:,.6g}"]
    texts.append("<br>".join(filter(None, lines)))
  return texts


def _short(value: float | None) -> float | None:
  return None if value is None else float(f"{value:.7g}")
