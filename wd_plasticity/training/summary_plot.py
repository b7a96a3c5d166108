"""The picture of a sweep: validation loss against weight decay, and against training loss."""

import math
from collections.abc import Sequence
from typing import BinaryIO

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from wd_plasticity.plain import visible

_INK, _FAINT, _ZERO, _BAD = "#222222", "#9a9a9a", "#8c8c8c", "#c0392b"
_LINES = ("-", "--", ":", "-.")
STYLE = {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.labelcolor": _INK, "text.color": _INK,
    "axes.edgecolor": "#777777", "xtick.color": "#555555", "ytick.color": "#555555",
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e8e8e8", "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 9.5,
}


def save(rows: Sequence[dict], settings: Sequence, file: BinaryIO) -> None:
  """Draws two panels as PNG.

  Args:
    rows: of all members (see summary.py).
    settings: the members that are done, grouped by all but the seed.
    file: opened for writing bytes.
  """
  from matplotlib import rc_context

  with rc_context(STYLE):
    figure = Figure(figsize=(12, 5), dpi=150, layout="constrained")
    by_decay, by_training = figure.subplots(1, 2, width_ratios=(1.25, 1))
    decays = sorted({r["weight_decay"] for r in rows if r["weight_decay"] is not None})
    colours = decay_colours(decays)
    shown = [r for s in settings for r in s.rows] or [
        r for r in rows if not r["status"].startswith("failed")]
    limits = _limits([r["validation_loss"] for r in shown if r["validation_loss"] is not None])
    _draw_by_decay(by_decay, rows, settings, decays, colours, limits)
    _draw_by_training(by_training, rows, colours)
    as_text(figure)
    figure.savefig(file, format="png")


def as_text(figure: Figure) -> None:
  """Shows the words of a drawing as they are: a pair of dollars is no mathematics.

  The numbers along axes stay as matplotlib writes them.
  """
  along_axes = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
                for label in axis.get_ticklabels(which="both")}
  for text in figure.findobj(Text):
    if text not in along_axes:
      text.set_parse_math(False)
      text.set_text(visible(text.get_text()))


def decay_colours(decays: Sequence[float]) -> dict:
  """Light to dark with growing decay; no decay is grey."""
  positive = [d for d in decays if d > 0]
  shades = colormaps["viridis_r"]
  places = {d: 0.12 + 0.88 * i / max(1, len(positive) - 1) for i, d in enumerate(positive)}
  return {d: shades(places[d]) if d > 0 else _ZERO for d in decays}


def _limits(losses: Sequence[float]) -> tuple[float, float] | None:
  """The range of losses to show: one ruined member must not flatten all the others."""
  if not losses:
    return None
  low, high = min(losses), max(losses)
  quartile = sorted(losses)[int(0.75 * (len(losses) - 1))]
  cap = quartile + 6 * (quartile - low)
  if len(losses) >= 4 and quartile > low:
    high = max(v for v in losses if v <= cap)
  margin = 0.08 * (high - low) or 0.02 * abs(high) or 0.1
  # Room below for the label of the minimum, above for the marks of what is not in range.
  return low - 2 * margin, high + 2 * margin


def _draw_by_decay(axes: Axes, rows, settings, decays, colours, limits) -> None:
  axes.set(title="Validation loss by weight decay", xlabel="weight decay",
           ylabel="validation loss (nats per token)")
  place = _decay_axis(axes, decays)
  if limits is None:
    _note(axes, "no losses yet")
  else:
    axes.set_ylim(limits)
  if settings:
    _draw_lines(axes, settings, place)
  top = axes.get_ylim()[1]
  above = {}  # losses of members that are done and beyond the range
  for row in rows:
    decay, loss = row["weight_decay"], row["validation_loss"]
    if decay is None:
      continue
    if row["status"].startswith("failed"):
      axes.plot(place[decay], 0.97, "x", color=_BAD, ms=8, mew=2,
                transform=axes.get_xaxis_transform())
    elif loss is not None and loss <= top:
      _point(axes, place[decay], loss, colours[decay], row["status"])
    elif loss is not None and row["status"] == "done":
      above.setdefault(decay, []).append(loss)
  for decay, losses in above.items():
    axes.plot(place[decay], 0.91, "^", color=colours[decay], ms=8,
              transform=axes.get_xaxis_transform())
    ends = sorted({f"{min(losses):.2f}", f"{max(losses):.2f}"})
    axes.annotate(" to ".join(ends), (place[decay], 0.91), (0, -8), textcoords="offset points",
                  xycoords=axes.get_xaxis_transform(), va="top", fontsize=9,
                  bbox=dict(boxstyle="square,pad=0.15", fc="white", ec="none"),
                  ha=_towards_middle(axes, place[decay]))
  _legend_of_marks(axes, rows)


def _decay_axis(axes: Axes, decays: Sequence[float]) -> dict:
  """Places of the decays on a logarithmic axis, with 0 on its left behind a break."""
  place = {d: math.log10(d) for d in decays if d > 0}
  left, right = min(place.values(), default=0.0), max(place.values(), default=0.0)
  span = max(right - left, 0.5)
  if 0 in decays:
    place[0.0] = left - max(0.16 * span, 0.25)
    if len(decays) > 1:
      middle = (left + place[0.0]) / 2
      axes.annotate("//", (middle, 0), xycoords=axes.get_xaxis_transform(), ha="center",
                    va="center", color="#777777", fontsize=12,
                    bbox=dict(boxstyle="square,pad=0.02", fc="white", ec="none"))
    left = place[0.0]
  axes.set_xlim(left - 0.08 * span, right + 0.08 * span)
  ticks = []
  for d in decays:  # from the left, those with room for their label
    if ticks:
      characters = (len(f"{d:g}") + len(f"{ticks[-1]:g}")) / 2 + 1
      if place[d] - place[ticks[-1]] < 0.011 * characters * (right - left + 0.16 * span):
        continue
    ticks.append(d)
  axes.set_xticks([place[d] for d in ticks], [f"{d:g}" for d in ticks])
  axes.grid(False, axis="x")
  return place


def _draw_lines(axes: Axes, settings, place) -> None:
  """A line through the means of each set of other swept fields, its minimum ringed."""
  lines = {}
  for s in settings:
    others = {k: v for k, v in s.values.items() if k != "weight_decay"}
    label = ", ".join(f"{k.rsplit('.', 1)[-1].replace('_', ' ')} {v}" for k, v in others.items())
    lines.setdefault(label, []).append(s)
  for i, (label, line) in enumerate(lines.items()):
    axes.plot([place[s.values["weight_decay"]] for s in line], [s.loss for s in line],
              _LINES[i % len(_LINES)], color=_FAINT, lw=1.6, zorder=2,
              label=label or ("mean over seeds" if any(len(s.rows) > 1 for s in line) else None))
  best = min(settings, key=lambda s: s.loss)
  spot = place[best.values["weight_decay"]], best.loss
  axes.plot(*spot, "o", ms=15, mfc="none", mec=_INK, mew=1.4, zorder=5)
  axes.annotate(f"lowest: {best.loss:.3f} at {best.values['weight_decay']:g}", spot, (0, -13),
                textcoords="offset points", va="top", fontsize=10, fontweight="bold",
                ha=_towards_middle(axes, spot[0]))


def _towards_middle(axes: Axes, x: float) -> str:
  """Alignment of a label at x that keeps it within the panel."""
  left, right = axes.get_xlim()
  share = (x - left) / (right - left)
  return "left" if share < 0.2 else "right" if share > 0.8 else "center"


def _point(axes: Axes, x: float, y: float, colour, status: str) -> None:
  done = status == "done"
  axes.plot(x, y, "o", ms=7.5, mfc=colour if done else "white", mec="white" if done else colour,
            mew=0.8 if done else 1.6, zorder=4, clip_on=False)


def _legend_of_marks(axes: Axes, rows) -> None:
  if any(r["status"].startswith("failed") for r in rows):
    axes.plot([], [], "x", color=_BAD, ms=8, mew=2, label="failed")
  if any(r["status"] == "unfinished" and r["validation_loss"] is not None
         for r in rows):
    axes.plot([], [], "o", ms=7.5, mfc="white", mec=_FAINT, mew=1.6, label="unfinished")
  labels = axes.get_legend_handles_labels()[1]
  if labels:  # below the title, where it hides nothing
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=4, columnspacing=1.4)
    rows = math.ceil(len(labels) / 4)
    axes.set_title(axes.get_title(loc="left"), pad=8 + 17 * rows)


def _draw_by_training(axes: Axes, rows, colours) -> None:
  axes.set(title="Validation against training loss", ylabel="validation loss (nats per token)",
           xlabel="loss on a subset of the training documents (nats per token)")
  drawn = [r for r in rows if None not in
           (r["weight_decay"], r["validation_loss"], r["train_subset_loss"])
           and not r["status"].startswith("failed")]
  if not drawn:
    _note(axes, "no losses yet")
    axes.set_xticks([])
    return
  both = [r[name] for r in drawn for name in ("validation_loss", "train_subset_loss")]
  margin = 0.06 * (max(both) - min(both)) or 0.1
  low, high = min(both) - margin, max(both) + margin
  axes.set(xlim=(low, high), ylim=(low, high), box_aspect=1)
  axes.plot([low, high], [low, high], color=_FAINT, lw=1.2, zorder=1)
  axes.annotate("no gap", (0.97, 0.97), (-4, -16), xycoords="axes fraction",
                textcoords="offset points", ha="right", va="top", color="#777777", fontsize=9,
                rotation=45, rotation_mode="anchor")
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(MaxNLocator(6))
  for row in drawn:
    _point(axes, row["train_subset_loss"], row["validation_loss"], colours[row["weight_decay"]],
           row["status"])
  for decay in colours:
    axes.plot([], [], "o", ms=7.5, color=colours[decay], label=f"{decay:g}")
  axes.legend(title="weight decay", loc="center left", bbox_to_anchor=(1.0, 0.5),
              handletextpad=0.2)


def _note(axes: Axes, text: str) -> None:
  axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color="#777777")
  axes.set_yticks([])
  axes.grid(False)
