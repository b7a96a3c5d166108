"""The picture of the overfit program: the gap as training goes on, and loss by frequency."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from wd_plasticity.analysis import plots, statistics
from wd_plasticity.evals.overfit_summary import SETS, Row, gap, minus, reference
from wd_plasticity.training.progress import format_count

_LEAST_TOKENS = 100  # of a frequency bin that is drawn
_LINES = ("-", "--", ":", "-.")


def save(rows: Sequence[Row], path: str | os.PathLike, title: str = "") -> None:
  """Draws three panels as PNG; bars are 95 % intervals over documents, dots single seeds.

  Args:
    rows: of the checkpoints (see overfit_summary.py).
    path: of the picture.
    title: above the panels, may be empty.
  """
  plots.save_figure(path, lambda figure: _draw(figure, rows, title), width=16, height=5.2)


def _draw(figure: Figure, rows: Sequence[Row], title: str) -> None:
  gaps, paired, frequency = figure.subplots(1, 3)
  if title:
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
  decays = sorted({r.weight_decay for r in rows})
  colours = plots.decay_colours(decays)
  settings = list(dict.fromkeys(r.setting for r in rows))
  smallest = f"{decays[0]:g}"
  span = max(r.tokens for r in rows)
  epochs = {format_count(r.tokens / r.values["epochs"]) for r in rows}
  seen = "tokens seen" + (f" (of {epochs.pop()} in an epoch)" if len(epochs) == 1 else "")
  gaps.set(title="Gap: validation minus train subset", ylabel="gap (nats per token)", xlabel=seen)
  paired.set(title=f"Gap, minus that of weight decay {smallest}", xlabel=seen,
             ylabel="difference of gaps (nats per token)")
  frequency.set(
      title=f"Validation loss at the end, minus that of weight decay {smallest}",
      xlabel="share of the predicted token id in the training corpus",
      ylabel="difference of losses (nats per token)", xscale="log")
  for axes in (paired, frequency):
    axes.axhline(0, color="#9a9a9a", lw=1, zorder=1)
  for k, decay in enumerate(decays):
    # Side by side, so that bars at one place can be told apart.
    shift = (k - (len(decays) - 1) / 2) * 0.008
    for s, setting in enumerate(settings):
      line: dict[int, list[Row]] = {}
      for r in rows:
        if r.weight_decay == decay and r.setting == setting:
          line.setdefault(r.tokens, []).append(r)
      if not line:
        continue
      style = {"color": colours[decay], "ls": _LINES[s % len(_LINES)]}
      _draw_gaps(gaps, line, lambda r: r.sums, shift * span, style)
      others = {id(r): reference(r, rows) for same in line.values() for r in same}
      line = {t: [r for r in same if others[id(r)]] for t, same in line.items()}
      line = {t: same for t, same in line.items() if same}
      if line:
        def against(r, others=others):
          return minus(r, others[id(r)])
        _draw_gaps(paired, line, against, shift * span, style)
        _draw_bins(frequency, line[max(line)], against, 10 ** (3 * shift), style)
  for axes in (gaps, paired):
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x) if x else "0"))
    axes.set_xlim(0, 1.04 * span)
  for decay in decays:
    frequency.plot([], [], "o-", color=colours[decay], ms=6, label=f"{decay:g}")
  frequency.legend(title="weight decay", loc="center left", bbox_to_anchor=(1.0, 0.5))
  if len(decays) == 1:
    for axes in (paired, frequency):
      axes.text(0.5, 0.5, "only one weight decay", transform=axes.transAxes, ha="center",
                color="#777777")


def _draw_gaps(axes: Axes, line: dict[int, list[Row]], losses: Callable, shift: float,
               style: dict) -> None:
  """A line over tokens seen through the means over seeds, with their intervals."""
  tokens = sorted(line)
  points = [gap({n: np.mean([losses(r)[n] for r in line[t]], axis=0) for n in SETS},
                line[t][0].counts) for t in tokens]
  _draw_line(axes, np.array(tokens) + shift, points, style)
  for t in tokens:
    if len(line[t]) > 1:
      values = [gap(losses(r), r.counts)["value"] for r in line[t]]
      axes.plot([t + shift] * len(values), values, ".", color=style["color"], ms=4, alpha=0.6)


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
      axes.plot([x, x], [p["low"], p["high"]], color=style["color"], lw=1.3, alpha=0.65, zorder=2)
