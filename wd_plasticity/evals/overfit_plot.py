"""The picture of the overfit program: the gap as training goes on, and loss by frequency."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from wd_plasticity.analysis import plots, statistics
from wd_plasticity.evals.overfit_summary import Row, gap, mean_gap, minus, reference
from wd_plasticity.evals.results import setting_labels
from wd_plasticity.training.progress import format_count

_LEAST_TOKENS = 100  # of a frequency bin that is drawn
_LINES = ("-", "--", ":", "-.")


def save(rows: Sequence[Row], path: str | os.PathLike, title: str = "") -> None:
  """Draws PNG panels; bars are 95 % intervals over documents, dots are single seeds.

  One panel shows the gap. With several weight decays two more compare them with the
  smallest, paired by document.

  Args:
    rows: of the checkpoints (see overfit_summary.py).
    path: of the picture.
    title: above the panels, may be empty.
  """
  alone = len({r.weight_decay for r in rows}) == 1
  plots.save_figure(path, lambda figure: _draw(figure, rows, title), height=5.2,
                    width=7 if alone else 16)


def _draw(figure: Figure, rows: Sequence[Row], title: str) -> None:
  decays = sorted({r.weight_decay for r in rows})
  panels = figure.subplots(1, 1 if len(decays) == 1 else 3, squeeze=False)[0]
  if title:
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
  _prepare(panels, rows, f"{decays[0]:g}")
  colours = plots.decay_colours(decays)
  span = max(r.tokens for r in rows)
  settings = list(dict.fromkeys(r.setting for r in rows))
  for s, setting in enumerate(settings):
    for k, decay in enumerate(decays):
      line = [r for r in rows if r.weight_decay == decay and r.setting == setting]
      # Side by side, so that bars at one place can be told apart.
      shift = (k - (len(decays) - 1) / 2) * 0.008
      style = {"color": colours[decay], "ls": _LINES[s % len(_LINES)]}
      _draw_gaps(panels[0], line, lambda r: r.sums, shift * span, style)
      others = {id(r): reference(r, rows) for r in line}
      line = [r for r in line if others[id(r)]]
      if line:
        def against(r, others=others):
          return minus(r, others[id(r)])
        _draw_gaps(panels[1], line, against, shift * span, style)
        last = max(r.tokens for r in line)
        _draw_bins(panels[2], [r for r in line if r.tokens == last], against,
                   10 ** (3 * shift), style)
  for decay in decays:
    panels[-1].plot([], [], "o-", color=colours[decay], ms=6, label=f"{decay:g}")
  for s, label in enumerate(setting_labels(settings)):
    panels[-1].plot([], [], ls=_LINES[s % len(_LINES)], color="#9a9a9a", label=label)
  panels[-1].legend(title="weight decay", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _prepare(panels: Sequence[Axes], rows: Sequence[Row], smallest: str) -> None:
  """Titles, labels and scales."""
  panels[0].set(title="Gap: validation minus text trained on", ylabel="gap (nats per token)")
  if len(panels) > 1:
    panels[1].set(title=f"Gap, minus that of weight decay {smallest}",
                  ylabel="difference of gaps (nats per token)")
    panels[2].set(title=f"Validation loss at the end, minus that of weight decay {smallest}",
                  xlabel="share of the predicted token id in the training corpus",
                  ylabel="difference (nats per token; logarithmic away from 0)", xscale="log")
    # One ruined member must not flatten all the others.
    panels[2].set_yscale("asinh", linear_width=0.03)
    panels[2].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    for axes in panels[1:]:
      axes.axhline(0, color="#9a9a9a", lw=1, zorder=1)
  # Of an imported model the tokens may not be known, and are then 0.
  epochs = {format_count(r.tokens / r.values["epochs"]) for r in rows if r.tokens}
  label = "tokens seen" + (f" (of {epochs.pop()} in an epoch)" if len(epochs) == 1 else "")
  for axes in panels[:2]:
    axes.set(xlabel=label, xlim=(0, 1.04 * max(r.tokens for r in rows) or 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x) if x else "0"))


def _draw_gaps(axes: Axes, line: Sequence[Row], losses: Callable, shift: float,
               style: dict) -> None:
  """A line over tokens seen through the means over seeds, with their intervals."""
  tokens, points = sorted({r.tokens for r in line}), []
  for t in tokens:
    same = [r for r in line if r.tokens == t]
    gaps = [gap(r, losses(r)) for r in same]
    points.append(mean_gap(gaps))
    if len(same) > 1:
      axes.plot([t + shift] * len(same), [g["value"] for g in gaps], ".", color=style["color"],
                ms=4, alpha=0.6)
  _draw_line(axes, np.array(tokens) + shift, points, style)


@np.errstate(invalid="ignore")  # a member may have diverged
def _draw_bins(axes: Axes, same: Sequence[Row], losses: Callable, shift: float,
               style: dict) -> None:
  """A line over frequency bins of held-out losses, for seeds of one member and step."""
  counts = same[0].counts["validation"]
  sums = np.mean([losses(r)["validation"] for r in same], axis=0)
  points, places = [], []
  for k, found in enumerate(same[0].values["bins"]):
    if found["training_token_share"] > 0 and counts[:, k].sum() >= _LEAST_TOKENS:
      mean = statistics.cluster_mean(sums[:, k], counts[:, k], np.arange(len(sums)))
      half = np.nan if mean["se"] is None else 1.96 * mean["se"]
      points.append({"value": mean["mean"], "low": mean["mean"] - half,
                     "high": mean["mean"] + half})
      places.append(found["training_token_share"] / found["types"] * shift)
  _draw_line(axes, places, points, style)


def _draw_line(axes: Axes, places, points: Sequence[dict], style: dict) -> None:
  axes.plot(places, [p["value"] for p in points], marker="o", ms=4.5, lw=1.6, mec="white",
            mew=0.6, zorder=3, **style)
  for x, p in zip(places, points, strict=True):
    if p["low"] is not None:
      axes.plot([x, x], [p["low"], p["high"]], color=style["color"], lw=1.2, alpha=0.55, zorder=2)
