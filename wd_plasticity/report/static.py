"""Figures on paper: the views that have a place there as panels, PNG and PDF."""

import os
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from wd_plasticity.analysis.plots import save_figure
from wd_plasticity.report import look
from wd_plasticity.report.figure import POINTS, REFERENCE, Figure, Series, View
from wd_plasticity.training.progress import format_count

MAX_PANELS = 6
_WIDTH, _DPI = 6.5, 200  # inches: the text width of a paper
_STYLE = {
    "font.size": 8, "figure.labelsize": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "axes.linewidth": 0.6,
    "grid.linewidth": 0.5, "axes.titleweight": "normal",  # one font to embed, not two
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.2,
    "axes.formatter.useoffset": False,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
}
_CHARACTERS = 110  # in a line of the legend, with 6 for the mark and the space of each name
_STEPS = (1, 2, 2.5, 5, 10)
_LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def save(figure: Figure, folder: str | os.PathLike, colours: dict[str, str]) -> list[Path]:
  """Writes <name>.png and <name>.pdf.

  Args:
    figure: its first `MAX_PANELS` views that are on paper become panels.
    folder: is made when it does not exist.
    colours: `look.palette` of a white background.

  Returns:
    The paths; none when no view is on paper.
  """
  views = [v for v in figure.views if v.on_paper][:MAX_PANELS]
  if not views:
    return []
  Path(folder).mkdir(parents=True, exist_ok=True)
  rows, columns = shape(len(views))
  path = Path(folder) / f"{figure.name}.png"
  save_figure(path, lambda drawing: _draw(drawing, figure, views, colours), width=_WIDTH,
              height=2.8 if rows == 1 and columns > 1 else 3.1 if rows == 1 else 2.1 * rows + 0.4,
              dpi=_DPI, style=_STYLE, also=("pdf",))
  return [path, path.with_suffix(".pdf")]


def shape(panels: int) -> tuple[int, int]:
  """Rows and columns of panels."""
  columns = {1: 1, 2: 2, 3: 3, 4: 2}.get(panels, 3)
  return -(-panels // columns), columns


def _draw(drawing: Drawing, figure: Figure, views: list[View], colours: dict[str, str]) -> None:
  rows, columns = shape(len(views))
  axes = drawing.subplots(rows, columns, squeeze=False).ravel()
  keys = look.colour_keys(figure)
  one_label = len({v.y_label for v in views}) == 1
  in_grid = len(views) > 1
  varying = [c for c in figure.controls if len({v.choice.get(c) for v in views}) > 1]
  handles: dict = {}
  for ax, view in zip(axes, views, strict=False):
    for series, shift, dash in zip(view.series, look.shifts(figure, view), look.dashes(view),
                                   strict=True):
      colour = colours[look.colour_key(series, keys)]
      handle = _draw_series(ax, figure, series, shift, colour, _LINES[dash])
      if len(view.series) > 1 or in_grid:
        handles.setdefault(series.name, handle)
    _set_axes(ax, figure)
    title = ", ".join(_choice(c, view.choice[c]) for c in varying)
    if title:
      ax.set_title(_plain(title, 30))
    if not one_label:
      ax.set_ylabel("\n".join(textwrap.wrap(_plain(view.y_label, 80), 30)))
  (drawing.supxlabel if in_grid else axes[0].set_xlabel)(_plain(figure.x_label, 90))
  if one_label:
    (drawing.supylabel if in_grid else axes[0].set_ylabel)(
        "\n".join(textwrap.wrap(_plain(views[0].y_label, 90), 40 if rows == 1 else 70)))
  for ax in axes[len(views):]:
    ax.set_axis_off()
  if len(handles) > 1:
    names = [_plain(name, 40) for name in handles]
    rows = -(-sum(len(name) + 6 for name in names) // _CHARACTERS)
    # Above, because the label of all x axes has the place below.
    drawing.legend(handles.values(), names, loc="outside upper center",
                   ncols=-(-len(names) // rows), columnspacing=1.2, handlelength=1.8,
                   title=look.legend_title(views) or None, title_fontsize=7)


def _choice(control: str, value: str) -> str:
  """'SST-2', but 'weight decay 0.1': a number alone does not tell what it is."""
  return f"{control} {value}" if value[:1].isdigit() else value


def _draw_series(ax: Axes, figure: Figure, series: Series, shift: float, colour: str, line: str):
  log = figure.y_axis == "log"
  decays = look.places(figure)
  x = np.array([_nan(look.place(figure, decays, v, shift)) for v in series.x])
  y = np.array([_nan(look.finite(v, log)) for v in series.y])
  ends = [look.interval(series, k, log) or (np.nan, np.nan) for k in range(len(x))]
  low, high = np.array(ends).reshape(-1, 2).T
  if np.isfinite(low).any():
    if look.has_band(figure, series):
      ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    else:
      ax.errorbar(x, y, yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt="none",
                  ecolor=colour, elinewidth=0.9, capsize=2)
  marks = series.style != REFERENCE and len(x) <= 30 or series.style == POINTS
  return ax.plot(x, y, color=colour, linestyle="" if series.style == POINTS else line,
                 marker="o" if marks else None, markersize=2.8,
                 zorder=1.5 if series.style == REFERENCE else 2.5)[0]


def _nan(value: float | None) -> float:
  return np.nan if value is None else value


def _set_axes(ax: Axes, figure: Figure) -> None:
  if figure.x_axis == "decay":
    decays = look.places(figure)
    ax.set_xticks(list(decays.values()), [f"{d:g}" for d in decays])
    ax.set_xlim(-0.45, len(decays) - 0.55)
    ax.grid(False, axis="x")
  elif figure.x_axis == "count":
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  elif figure.x_axis == "log":
    ax.set_xscale("log")
    ticks = look.log_ticks(x for v in figure.views for s in v.series for x in s.x)
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
  else:
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
  if figure.y_range:
    ax.set_ylim(*figure.y_range)
  if figure.y_axis == "log":
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
  else:
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
  if figure.x_axis == "linear" and max(map(abs, ax.get_xlim())) >= 1e4:
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: format_count(v)))


def _plain(text: str, longest: int) -> str:
  """One line."""
  text = "".join(c if c.isprintable() else " " for c in text)
  return text if len(text) <= longest else text[:longest - 1] + "…"
