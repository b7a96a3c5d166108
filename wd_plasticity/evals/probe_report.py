"""Results of the probe program side by side: the table and the picture."""

import json
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box

from wd_plasticity.analysis import plots
from wd_plasticity.console import Console, Table
from wd_plasticity.evals import results as results_lib
from wd_plasticity.training.summary import wide_console

_LINES = ("-", "--", ":", "-.")
_REFERENCE = "#333333"  # no decay is grey already


def print_table(results: Sequence[dict], console: Console | None = None) -> None:
  """One line per task and checkpoint; +- is one standard error over the test texts."""
  table = Table(title="Test accuracy in %, ± standard error [95 % interval], of the layer and "
                "pooling of the least loss on held-out texts", title_justify="left",
                box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column("task")
  table.add_column("member", no_wrap=True)
  for name in ("step", "majority", "control", "untrained", "probe", "layer", "pooling"):
    table.add_column(name, justify="right")
  before = None
  for r in results:
    v, c = r["values"], r["checkpoint"]
    if before not in (None, v["title"]):
      table.add_section()
    best = v["best"]
    table.add_row(
        v["title"] if before != v["title"] else "", c["member"], f"{c['step']:,}",
        f"{100 * v['majority']['value']:.1f}", f"{100 * best['control_accuracy']:.1f}",
        _accuracy(v["untrained"]["best"]),
        f"{_accuracy(best)} [{100 * best['low']:.1f}, {100 * best['high']:.1f}]",
        "embedding" if best["layer"] == 0 else str(best["layer"]), best["pooling"])
    before = v["title"]
  (console or wide_console(150)).print(table)


def _accuracy(found: dict) -> str:
  return f"{100 * found['value']:.1f}" + (
      "" if found["se"] is None else f" ± {100 * found['se']:.1f}")


def save_plot(results: Sequence[dict], path: str | os.PathLike, title: str = "") -> None:
  """Draws accuracy by layer of every member's last step, a row per task, as PNG.

  Lines are means over seeds, bars 95 % intervals over the test texts, dots single seeds.

  Args:
    results: as stored.
    path: of the picture.
    title: above the panels, may be empty.
  """
  tasks: dict[str, list[dict]] = {}
  for r in _last_steps(results):
    tasks.setdefault(r["values"]["title"], []).append(r)
  plots.save_figure(path, lambda figure: _draw(figure, tasks, title), width=12,
                    height=0.7 + 3.8 * len(tasks))


def _last_steps(results: Sequence[dict]) -> list[dict]:
  last: dict[tuple, dict] = {}
  for r in results:
    key = r["item"], r["checkpoint"]["member"]
    if key not in last or r["checkpoint"]["step"] > last[key]["checkpoint"]["step"]:
      last[key] = r
  return list(last.values())


def _draw(figure: Figure, tasks: dict[str, list[dict]], title: str) -> None:
  if title:
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
  everything = [r for results in tasks.values() for r in results]
  poolings = everything[0]["values"]["poolings"]
  decays = sorted({r["checkpoint"]["weight_decay"] for r in everything})
  colours = plots.decay_colours(decays)
  panels = figure.subplots(len(tasks), len(poolings), sharey="row", squeeze=False)
  for row, (name, results) in zip(panels, tasks.items(), strict=True):
    for i, (axes, pooling) in enumerate(zip(row, poolings, strict=True)):
      axes.set_title(f"{name}: {'mean over tokens' if pooling == 'mean' else 'last token'}")
      _draw_panel(axes, results, i, colours)
    row[0].set_ylabel("test accuracy (%)")
  for axes in panels[-1]:
    axes.set_xlabel("layer (0: embedding)")
  legend = panels[0][-1]
  for decay in decays:
    legend.plot([], [], "o-", color=colours[decay], ms=5.5, label=f"{decay:g}")
  first = legend.legend(title="weight decay", loc="upper left", bbox_to_anchor=(1.0, 1.02),
                        alignment="left")
  legend.add_artist(first)
  references = [legend.plot([], [], color=_REFERENCE, ls=ls, label=name)[0]
                for name, ls in (("untrained", "--"), ("majority class", ":"))]
  panels[-1][-1].legend(handles=references, loc="lower left", bbox_to_anchor=(1.0, 0.0))


def _draw_panel(axes: Axes, results: Sequence[dict], pooling: int, colours: dict) -> None:
  def curve(values, name="accuracy"):
    return 100 * np.array([layer[pooling] for layer in values[name]], float)

  axes.axhline(100 * results[0]["values"]["majority"]["value"], color=_REFERENCE, ls=":", lw=1.2)
  # A network untrained is the same for all decays of a seed.
  untrained: dict[str, dict[int, np.ndarray]] = {}
  lines: dict[tuple, list[dict]] = {}
  for r in results:
    c = r["checkpoint"]
    untrained.setdefault(json.dumps(c["pretraining"]["model"], sort_keys=True), {})[c["seed"]] = (
        curve(r["values"]["untrained"]))
    lines.setdefault((results_lib.setting(r), c["weight_decay"]), []).append(r)
  for by_seed in untrained.values():
    mean = np.mean(list(by_seed.values()), axis=0)
    axes.plot(range(len(mean)), mean, color=_REFERENCE, ls="--", lw=1.4, zorder=2)
  settings, decays = list(dict.fromkeys(s for s, _ in lines)), list(colours)
  for (setting, decay), same in lines.items():
    curves = np.array([curve(r["values"]) for r in same])
    # Side by side, so that bars at one place can be told apart.
    x = np.arange(curves.shape[1]) + 0.05 * (decays.index(decay) - (len(decays) - 1) / 2)
    axes.plot(x, curves.mean(0), marker="o", ms=5, mec="white", mew=0.6, lw=1.8, zorder=4,
              color=colours[decay], ls=_LINES[settings.index(setting) % len(_LINES)])
    low, high = (np.mean([curve(r["values"], f"accuracy_{k}") for r in same], axis=0)
                 for k in ("low", "high"))
    axes.vlines(x, low, high, color=colours[decay], lw=1.2, alpha=0.55, zorder=3)
    if len(same) > 1:
      axes.plot(np.tile(x, len(same)), curves.ravel(), ".", color=colours[decay], ms=4,
                alpha=0.7, zorder=3)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.grid(False, axis="x")
