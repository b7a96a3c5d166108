"""The table and the plot after fine-tuning: what each weight decay became."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from wd_plasticity.analysis.plots import save_figure
from wd_plasticity.tasks import registry
from wd_plasticity.training.summary import wide_console

_MEASURES = {"greedy_pass@1": "greedy pass@1", "acc": "accuracy", "acc_per_byte":
             "accuracy (per byte)", "response_loss": "loss of the response"}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One task, split and point at one weight decay: means over seeds.

  Attributes:
    before, after: the headline measure of the base model and of the fine-tuned one.
    error: standard error of `after`, over problems and seeds.
    forgetting: change of the validation loss of the pretraining, nats per token.
  """
  task: str
  split: str
  point: str
  weight_decay: float
  seeds: int
  measure: str
  before: float
  after: float
  error: float | None
  loss_before: float | None
  loss_after: float | None
  forgetting: float | None


def headline(task: str, values: dict[str, Any]) -> str:
  """The measure that a task is judged by: what is generated, else the likeliest option.

  Options that are names of classes are compared as they are, others per byte.
  """
  wanted = ("greedy_pass@1", "acc" if registry.get(task).labels else "acc_per_byte",
            "response_loss")
  return next(name for name in wanted if name in values)


def cells(results: Sequence[dict]) -> list[Cell]:
  """Results of the last steps by task, split, point and weight decay, over seeds."""
  alike: dict[tuple, list[tuple[dict, dict, dict]]] = {}
  for result in results:
    values, settings = result["values"], result["settings"]
    for split, after in values["after"].items():
      key = (values["task"], split, settings["point"], result["checkpoint"]["weight_decay"],
             result["checkpoint"]["step"])
      alike.setdefault(key, []).append((values["before"][split], after, values))
  made = []
  for (task, split, point, weight_decay, _), same in alike.items():
    measure = headline(task, same[0][1])
    made.append(Cell(
        task, split, point, weight_decay, len(same), measure,
        before=_mean(b[measure]["value"] for b, _, _ in same),
        after=_mean(a[measure]["value"] for _, a, _ in same),
        error=_error([a[measure] for _, a, _ in same]),
        loss_before=_mean(b.get("response_loss", {}).get("value") for b, _, _ in same),
        loss_after=_mean(a.get("response_loss", {}).get("value") for _, a, _ in same),
        forgetting=_mean((v["forgetting"] or {}).get("value") for _, _, v in same)))
  return sorted(made, key=lambda c: (c.task, c.split, c.point, c.weight_decay))


def _mean(values) -> float | None:
  known = [v for v in values if v is not None]
  return statistics.fmean(known) if known else None


def _error(measures: Sequence[dict]) -> float | None:
  """Standard error of a mean over seeds that are tested on the same problems.

  Their part of the error does not fall with the number of seeds, so it is added whole.
  """
  values = [m["value"] for m in measures if m["value"] is not None]
  errors = [m["se"] for m in measures if m["se"] is not None]
  seeds = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
  return math.hypot(seeds, statistics.fmean(errors)) if errors else None


def write(session) -> None:
  """Prints the table and writes finetune.png beside the results of the session."""
  wanted = {(t.member, t.step) for t in session.targets}
  newest = {t.member: t.step for t in session.targets}
  results = [r for r in session.results.all()
             if (r["checkpoint"]["member"], r["checkpoint"]["step"]) in wanted
             and r["values"]["task"] in session.config.tasks
             and newest[r["checkpoint"]["member"]] == r["checkpoint"]["step"]]
  if not results:
    return
  made = cells(results)
  _print(made)
  failed = [r for r in results if r["values"]["failed_at"] is not None]
  for r in failed:
    session.print(f"{r['checkpoint']['member']} on {r['item']} was not finite at step "
                  f"{r['values']['failed_at']}; its figures are of the step before.")
  path = session.results.directory / "finetune.png"
  panels = list(dict.fromkeys((c.task, c.split) for c in made))
  columns = 2 if len(panels) < 4 else 3
  rows = -(-(len(panels) + 1) // columns)
  save_figure(path, lambda figure: _draw(figure, made, panels, (rows, columns)),
              width=4 * columns, height=3.6 * rows)
  session.print(f"results: {session.results.directory / 'results.jsonl'}  plot: {path}")


def _number(value: float | None, form: str = ".3f") -> str:
  return "-" if value is None else format(value, form)


def _print(made: Sequence[Cell]) -> None:
  table = Table(title="Before and after fine-tuning", title_justify="left", box=box.SIMPLE_HEAD,
                pad_edge=False)
  points = any(c.point for c in made)
  names = ("task", "split", *(("point",) if points else ()), "measure", "weight decay", "seeds",
           "before", "after", "± se", "response loss", "forgetting")
  for name in names:
    table.add_column(name, justify="left" if name in ("task", "split", "point", "measure")
                     else "right", no_wrap=True)
  last = None
  for c in made:
    if last not in (None, (c.task, c.split, c.point)):
      table.add_section()
    last = c.task, c.split, c.point
    table.add_row(c.task, c.split, *((c.point,) if points else ()), _MEASURES[c.measure],
                  f"{c.weight_decay:g}", str(c.seeds), _number(c.before), _number(c.after),
                  _number(c.error), f"{_number(c.loss_before)} → {_number(c.loss_after)}",
                  _number(c.forgetting, "+.3f"))
  wide_console().print(table)


def _draw(figure, made: Sequence[Cell], panels, shape: tuple[int, int]) -> None:
  axes = figure.subplots(*shape, squeeze=False).ravel()
  decays = sorted({c.weight_decay for c in made})
  place = {w: i for i, w in enumerate(decays)}
  colours = {}
  for ax, (task, split) in zip(axes, panels, strict=False):
    here = [c for c in made if (c.task, c.split) == (task, split)]
    for point in dict.fromkeys(c.point for c in here):
      line = [c for c in here if c.point == point]
      x = [place[c.weight_decay] for c in line]
      ax.plot(x, [c.before for c in line], color="0.6", marker="o", markersize=3,
              linestyle="--", label="base model")
      drawn = ax.errorbar(x, [c.after for c in line],
                          yerr=np.array([c.error or 0.0 for c in line]), marker="o", capsize=3,
                          color=colours.get(point), label=point or "fine-tuned")
      colours.setdefault(point, drawn[0].get_color())
    ax.set_title(f"{registry.get(task).title}, {split}" if split != "test"
                 else registry.get(task).title)
    ax.set_ylabel(_MEASURES[here[0].measure])
  forgotten = axes[len(panels)]
  shown = [c for c in made if c.forgetting is not None]
  for task, point in dict.fromkeys((c.task, c.point) for c in shown):
    line = list({c.weight_decay: c for c in shown if (c.task, c.point) == (task, point)}.values())
    label = registry.get(task).title + (f", {point}" if point else "")
    forgotten.plot([place[c.weight_decay] for c in line], [c.forgetting for c in line],
                   marker="o", label=label)
  forgotten.set_title("Forgetting")
  forgotten.set_ylabel("change of validation loss")
  for ax in axes[:len(panels) + 1]:
    ax.set_xticks(range(len(decays)), [f"{w:g}" for w in decays])
    ax.set_xlabel("weight decay in pretraining")
  for ax in axes[len(panels) + 1:]:
    ax.set_axis_off()
  handles, labels = axes[0].get_legend_handles_labels()
  named = dict(zip(labels, handles, strict=True))
  axes[0].legend(named.values(), named.keys(), fontsize=8)
  if shown:
    forgotten.legend(fontsize=7)
