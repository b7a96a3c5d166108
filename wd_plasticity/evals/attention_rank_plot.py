"""The picture of the attention_rank program: pseudo-rank as training goes on, and by layer."""

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from wd_plasticity.analysis import plots
from wd_plasticity.evals.attention_rank_summary import TITLES, products
from wd_plasticity.evals.results import setting
from wd_plasticity.training.progress import format_count

_LINES = ("-", "--", ":", "-.")


def save(results: Sequence[dict], path: str | os.PathLike, title: str = "") -> None:
  """Draws two panels for each product (W_QK, W_VP) as PNG.

  Args:
    results: of the checkpoints, in order of weight decay.
    path: of the picture.
    title: above the panels, may be empty.
  """
  names = products(results)
  plots.save_figure(path, lambda figure: _draw(figure, results, names, title),
                    width=1.6 + 5.4 * len(names), height=8.6)


def _draw(figure: Figure, results: Sequence[dict], names: Sequence[str], title: str) -> None:
  panels = figure.subplots(2, len(names), sharey=True, squeeze=False)
  if title:
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
  decays = sorted({r["checkpoint"]["weight_decay"] for r in results})
  colours = plots.decay_colours(decays)
  settings = list(dict.fromkeys(setting(r) for r in results))
  last = max(r["checkpoint"]["tokens"] for r in results) or 1  # 0 of an import: not known
  for column, name in enumerate(names):
    by_tokens, by_layer = panels[:, column]
    by_tokens.set(title=f"{TITLES[name]} during training", xlabel="tokens seen",
                  xlim=(0, 1.04 * last), ylim=(0, 1.02))
    by_layer.set(title=f"{TITLES[name]} at the last step", xlabel="layer")
    for k, decay in enumerate(decays):
      # Side by side, so that the heads of all decays can be seen.
      shift = 0.3 * (k - (len(decays) - 1) / 2) / len(decays)
      for s, wanted in enumerate(settings):
        line: dict[int, list[dict]] = {}  # by tokens: one per seed
        for r in results:
          c = r["checkpoint"]
          if (c["weight_decay"], setting(r)) == (decay, wanted) and name in r["values"]:
            line.setdefault(c["tokens"], []).append(r)
        if line:
          style = {"color": colours[decay], "ls": _LINES[s % len(_LINES)]}
          _draw_by_tokens(by_tokens, line, name, style)
          _draw_by_layer(by_layer, line[max(line)], name, shift, style)
    by_tokens.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x) if x else "0"))
    by_tokens.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    by_layer.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    by_layer.grid(False, axis="x")
    left, right = by_layer.get_xlim()
    by_layer.set_xlim(min(left, 0.6), max(right, by_layer.dataLim.x1 + 0.2))
  for row in panels:
    row[0].set_ylabel("pseudo-rank over the head dimension")
  for decay in decays:
    panels[0, -1].plot([], [], "o-", color=colours[decay], ms=6, mec="white", label=f"{decay:g}")
  panels[0, -1].legend(title="weight decay", loc="center left", bbox_to_anchor=(1.0, 0.5))
  marks = panels[1, -1]
  for style, label in (({"lw": 2.2}, "mean"), ({"lw": 0.9}, "one layer"),
                       ({"marker": ".", "ls": ""}, "one head")):
    marks.plot([], [], color="#777777", label=label, **style)
  marks.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _of(result: dict, name: str) -> np.ndarray:
  """Shares [N, H] of a result, NaN where there is none."""
  return np.array(result["values"][name]["heads"]["pseudo_rank_share"], float)


def _draw_by_tokens(axes: Axes, line: dict[int, list[dict]], name: str, style: dict) -> None:
  """A thick line through means over layers, heads and seeds, and a thin one for each layer."""
  tokens = sorted(line)
  layers = np.array([np.mean([_of(r, name).mean(axis=1) for r in line[t]], axis=0)
                     for t in tokens])
  for of_layer in layers.T:
    axes.plot(tokens, of_layer, lw=0.9, alpha=0.5, zorder=2, **style)
  axes.plot(tokens, layers.mean(axis=1), marker="o", ms=5.5, lw=2.2, mec="white", mew=0.7,
            zorder=3, **style)


def _draw_by_layer(axes: Axes, same: Sequence[dict], name: str, shift: float,
                   style: dict) -> None:
  """Heads of all seeds at one step as dots, a line through their means."""
  shares = np.array([_of(r, name) for r in same])  # seeds, N, H
  places = np.arange(1, shares.shape[1] + 1)
  heads = np.moveaxis(shares, 1, 0).reshape(len(places), -1)
  size = min(6, max(2, 60 / math.sqrt(heads.size)))
  axes.plot(np.repeat(places + shift, heads.shape[1]), heads.ravel(), ".", ms=size,
            color=style["color"], alpha=0.5, zorder=2)
  axes.plot(places + shift, heads.mean(axis=1), lw=2.2, zorder=3, **style)
