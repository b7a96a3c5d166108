"""The table and the plot after fine-tuning: what each weight decay became."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box

from wd_plasticity.analysis.plots import save_figure
from wd_plasticity.console import Table
from wd_plasticity.evals.results import setting, setting_labels
from wd_plasticity.tasks import registry
from wd_plasticity.training.summary import wide_console

_MEASURES = {"greedy_pass@1": "greedy pass@1", "acc": "accuracy", "acc_per_byte":
             "accuracy (per byte)", "response_loss": "loss of the response"}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One task, split and point at one weight decay: means over seeds of the pretraining.

  Attributes:
    setting: what tells its members from others of that decay, in words; '' for nothing.
    before, after: the headline measure of the base model and of the fine-tuned one.
    error: standard error of `after`, over problems and seeds.
    forgetting: change of the validation loss of the pretraining, nats per token.
  """
  task: str
  split: str
  point: str
  setting: str
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

  Options that are names of classes are compared as they are, others per byte. Which they are
  follows from the problems: names are the same for all of them.

  Args:
    task: its name.
    values: the figures of one split, before or after.
  """
  classes = values.get("class_options")
  if classes is None:  # a result from before this was written; those tasks name classes
    classes = registry.get(task).grading == "word"
  wanted = ("greedy_pass@1", "acc" if classes else "acc_per_byte", "response_loss")
  return next(name for name in wanted if name in values)


def cells(results: Sequence[dict]) -> list[Cell]:
  """Results of the last steps by task, split, point, setting and decay, over seeds."""
  settings = list(dict.fromkeys(map(setting, results)))
  words = dict(zip(settings, setting_labels(settings), strict=True))
  alike: dict[tuple, list[tuple[dict, dict, dict]]] = {}
  for result in results:
    values = result["values"]
    for split, after in values["after"].items():
      key = (values["task"], split, result["settings"]["point"], words[setting(result)],
             result["checkpoint"]["weight_decay"], result["checkpoint"]["step"])
      alike.setdefault(key, []).append((values["before"][split], after, values))
  made = []
  for (*names, _), same in alike.items():
    measure = headline(names[0], same[0][1])
    made.append(Cell(
        *names, len(same), measure,
        before=_mean(b[measure]["value"] for b, _, _ in same),
        after=_mean(a[measure]["value"] for _, a, _ in same),
        error=_error([a[measure] for _, a, _ in same]),
        loss_before=_mean(b.get("response_loss", {}).get("value") for b, _, _ in same),
        loss_after=_mean(a.get("response_loss", {}).get("value") for _, a, _ in same),
        forgetting=_mean((v["forgetting"] or {}).get("value") for _, _, v in same)))
  return sorted(made, key=lambda c: (c.task, c.split, c.point, c.setting, c.weight_decay))


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
  shared = {(r["values"]["task"], split, test["in_training"], test["problems"])
            for r in results for split, test in r["values"]["after"].items()
            if test.get("in_training")}
  for task, split, count, of in sorted(shared):
    session.print(f"note: {count:,} of {of:,} problems of {task} {split} are also learnt from.")
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
  told = [name for name in ("point", "setting") if any(getattr(c, name) for c in made)]
  left = ("task", "split", *told, "measure")
  for name in (*left, "weight decay", "seeds", "before", "after", "± se", "response loss",
               "forgetting"):
    table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
  last = None
  for c in made:
    if last not in (None, (c.task, c.split, c.point, c.setting)):
      table.add_section()
    last = c.task, c.split, c.point, c.setting
    table.add_row(c.task, c.split, *(getattr(c, name) for name in told), _MEASURES[c.measure],
                  f"{c.weight_decay:g}", str(c.seeds), _number(c.before), _number(c.after),
                  _number(c.error), f"{_number(c.loss_before)} → {_number(c.loss_after)}",
                  _number(c.forgetting, "+.3f"))
  wide_console().print(table)


def _line(c: Cell) -> str:
  return ", ".join(filter(None, (c.point, c.setting)))


def _draw(figure, made: Sequence[Cell], panels, shape: tuple[int, int]) -> None:
  axes = figure.subplots(*shape, squeeze=False).ravel()
  decays = sorted({c.weight_decay for c in made})
  place = {w: i for i, w in enumerate(decays)}
  colours = {}
  for ax, (task, split) in zip(axes, panels, strict=False):
    here = [c for c in made if (c.task, c.split) == (task, split)]
    for name in dict.fromkeys(map(_line, here)):
      line = [c for c in here if _line(c) == name]
      x = [place[c.weight_decay] for c in line]
      ax.plot(x, [c.before for c in line], color="0.6", marker="o", markersize=3,
              linestyle="--", label="base model")
      drawn = ax.errorbar(x, [c.after for c in line],
                          yerr=np.array([c.error or 0.0 for c in line]), marker="o", capsize=3,
                          color=colours.get(name), label=name or "fine-tuned")
      colours.setdefault(name, drawn[0].get_color())
    ax.set_title(f"{registry.get(task).title}, {split}" if split != "test"
                 else registry.get(task).title)
    ax.set_ylabel(_MEASURES[here[0].measure])
  forgotten = axes[len(panels)]
  shown = [c for c in made if c.forgetting is not None]
  for task, name in dict.fromkeys((c.task, _line(c)) for c in shown):
    line = list({c.weight_decay: c for c in shown if (c.task, _line(c)) == (task, name)}.values())
    label = registry.get(task).title + (f", {name}" if name else "")
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
