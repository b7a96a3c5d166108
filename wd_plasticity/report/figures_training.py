"""Figures on pretraining: curves, the gap to training loss, norms of the weights, timescale."""

import math
import statistics
from collections.abc import Callable, Sequence

from wd_plasticity.report import figure_parts as parts
from wd_plasticity.report.figure import POINTS, REFERENCE, Figure, Series, View
from wd_plasticity.report.study import Member, Result, Study

PRETRAINING = "Pretraining"
_DECAY = "weight decay in pretraining"
_LOSS = "loss (nats per token)"
_MEASURES = {"validation/loss": "validation", "train/loss": "training",
             "train_subset/loss": "subset of training documents"}


def learning_curves(study: Study) -> Figure:
  """Losses over tokens, a line per weight decay, or per member when there are few."""
  views = []
  for group in parts.groups(study):
    for name, title in _MEASURES.items():
      lines = _lines(study, group, lambda m, name=name: _curve(m, name))
      if lines:
        views.append(View(parts.with_setting(study, group, {"measure": title}), lines, _LOSS,
                          name != "train_subset/loss"))
  return Figure(
      "learning_curves", PRETRAINING, "Learning curves",
      parts.join("Losses over the course of pretraining,", _line_words(study),
                 "Training loss is that of single batches.", parts.failed_members(study)),
      "training tokens", views, controls=parts.controls(study, "measure"),
      missing="" if views else _nothing(study))


def gap(study: Study) -> Figure:
  """Validation loss minus that on text trained on at the end, by weight decay."""
  views, measured, logged = [], [], False
  for group in parts.groups(study):
    results = [r for r in parts.select(study.overfit, group, last=True)
               if _gap(r).get("value") is not None]
    if results:
      measured += results
      views.append(View(parts.with_setting(study, group, {}), _measured_gap(results),
                        "gap (nats per token)"))
      continue
    members = [m for m in parts.finished(study, group) if None not in (m.validation_loss,
                                                              m.train_subset_loss)]
    if members:
      logged = True
      difference = lambda m: m.validation_loss - m.train_subset_loss
      points = parts.series("one seed", [m.weight_decay for m in members],
                            [difference(m) for m in members], style=POINTS,
                            labels=[m.name for m in members])
      views.append(View(parts.with_setting(study, group, {}),
                        [parts.decay_series(members, difference, "mean"), points],
                        "gap (nats per token)"))
  return Figure(
      "gap", PRETRAINING, "Gap between held-out and training text",
      parts.join(
          "Validation loss minus the loss on training text at the end of pretraining, "
          f"{_seeds(study)} per weight decay.", _training_side(measured),
          "Bars are 95 % intervals over documents, which are the same for all decays of a seed: "
          "differences between decays are known much better." if measured else "",
          f"{_UNREAD} Bars are 95 % intervals over seeds." if logged else "",
          parts.failed_members(study)),
      _DECAY, views, "decay", controls=parts.controls(study),
      missing="" if views else parts.missing(study, "No gap has been measured.", "overfit"))


def gap_over_training(study: Study) -> Figure:
  """The gap over tokens, a line per weight decay or member."""
  views, words, side = [], "", ""
  for group in parts.groups(study):
    results = [r for r in parts.select(study.overfit, group) if _gap(r)]
    if len({r.step for r in results}) > 1:
      lines = _over_tokens(results, lambda r: _gap(r).get("value"))
      words = words or f"a line per weight decay, mean over {_seeds(study)}."
      side = side or _training_side(results)
    else:
      lines = _lines(study, group, _gap_curve)
      words, side = words or _line_words(study), side or _UNREAD
    if lines:
      views.append(View(parts.with_setting(study, group, {}), lines, "gap (nats per token)"))
  return Figure(
      "gap_over_training", PRETRAINING, "The gap over training",
      parts.join(f"Validation loss minus the loss on training text, {words}", side,
                 parts.failed_members(study)),
      "training tokens", views, controls=parts.controls(study), missing="" if views else
      parts.missing(study, "No gap has been measured.", "overfit", "--config.steps=all"))


def weight_norms(study: Study) -> Figure:
  """L2 norms of the parameters over tokens, by group of parameters."""
  views = []
  for group in parts.groups(study):
    names = list(dict.fromkeys(
        n for m in parts.select(study.members, group) for r in m.curve[:5] for n in r
        if n.startswith("weight_norm/")))
    for name in ([""] if names else []) + names:
      curve = ((lambda m, names=names: _total(m, names)) if not name
               else (lambda m, name=name: _curve(m, name)))
      lines = _lines(study, group, curve, most=75)
      if lines:
        title = name.split("/", 1)[1].replace("_", " ") if name else "all parameters"
        views.append(View(parts.with_setting(study, group, {"parameters": title}), lines,
                          "L2 norm", len(views) < parts.PANELS))
  return Figure(
      "weight_norms", PRETRAINING, "Norms of the weights",
      parts.join("L2 norm of the parameters over pretraining,", _line_words(study)),
      "training tokens", views, controls=parts.controls(study, "parameters"),
      missing="" if views else _nothing(study))


def timescale(study: Study) -> Figure:
  """1 / (learning rate x weight decay) as a fraction of the run, by weight decay."""
  views = []
  for group in parts.groups(study):
    found = {m.weight_decay: m.plan["timescale"]["fraction"]
             for m in parts.select(study.members, group) if _fraction(m)}
    if found:
      x = sorted(found)
      views.append(View(parts.with_setting(study, group, {}), [
          parts.series("timescale", x, [found[w] for w in x]),
          parts.series("length of the run", x, [1.0] * len(x), style=REFERENCE)],
          "timescale over length of the run"))
  return Figure(
      "timescale", PRETRAINING, "Timescale of the decay",
      "AdamW averages its updates over 1 / (learning rate x weight decay) steps, here at the peak "
      "learning rate and as a fraction of the run (Wang and Aitchison 2405.13698). No decay has "
      "none.", _DECAY, views, "decay", "log", controls=parts.controls(study),
      missing="" if views else "No member has a timescale: weight decay is 0 or the plan is "
      f"missing. {_run(study)}")


def loss_by_timescale(study: Study) -> Figure:
  """Validation loss at the end against the timescale."""
  views = []
  for group in parts.groups(study):
    lines = []
    members = [m for m in parts.finished(study, group) if _fraction(m)]
    for decay, same in parts.by_decay(members).items():
      lines.append(parts.series(
          f"{decay:g}", [m.plan["timescale"]["fraction"] for m in same],
          [m.validation_loss for m in same], weight_decay=decay, style=POINTS,
          labels=[m.name for m in same]))
    if lines:
      means = parts.series(
          "mean", [line.x[0] for line in lines], [statistics.fmean(line.y) for line in lines],
          style=REFERENCE)
      views.append(View(parts.with_setting(study, group, {}), [*lines, means],
                        f"validation {_LOSS}"))
  return Figure(
      "loss_by_timescale", PRETRAINING, "Loss by timescale",
      parts.join("Validation loss at the end of pretraining against the timescale of the decay; "
                 "points are members, dashed their mean. Weight decay 0 has no timescale and is "
                 "left out.", parts.failed_members(study)),
      "timescale over length of the run", views, "log", controls=parts.controls(study),
      missing="" if views else f"No finished member has a timescale. {_run(study)}")


# Parts of them.


def _fraction(m: Member) -> float | None:
  found = m.plan.get("timescale")
  return found.get("fraction") if isinstance(found, dict) else None


def _curve(m: Member, name: str) -> list[tuple[float, float | None]]:
  return [(r.get("tokens", r["step"]), r[name]) for r in m.curve if name in r]


def _gap_curve(m: Member) -> list[tuple[float, float | None]]:
  found = []
  for r in m.curve:
    if "validation/loss" in r and "train_subset/loss" in r:
      both = r["validation/loss"], r["train_subset/loss"]
      found.append((r.get("tokens", r["step"]), None if None in both else both[0] - both[1]))
  return found


def _total(m: Member, names: Sequence[str]) -> list[tuple[float, float | None]]:
  """Norm of all parameters: groups are disjoint, so their squares add up."""
  found = []
  for r in m.curve:
    if all(n in r for n in names):
      norms = [r[n] for n in names]
      found.append((r.get("tokens", r["step"]), None if None in norms else math.hypot(*norms)))
  return found


def _lines(study: Study, group: str, curve: Callable,
           most: int = parts.POINTS_OF_A_LINE) -> list[Series]:
  """A line per member of few, else per decay; one that failed is a line of its own."""
  members = parts.select(study.members, group)
  if len(members) > parts.FEW_MEMBERS:
    # A failed seed would cut the mean short.
    sound = _sound(members)
    rest = {m.weight_decay for m in members} - {m.weight_decay for m in sound}
    sound += [m for m in members if m.weight_decay in rest]
    return parts.decay_lines(sound, curve, most=most)
  several = len({m.seed for m in members}) > 1
  lines = []
  for m in members:
    points = parts.thin(curve(m), most)
    if any(y is not None for _, y in points):
      name = f"{m.weight_decay:g}" + (f", seed {m.seed}" if several else "") + (
          " (failed)" if m.status.startswith("failed") else "")
      lines.append(parts.series(name, [p[0] for p in points], [p[1] for p in points],
                                weight_decay=m.weight_decay))
  return lines


def _line_words(study: Study) -> str:
  if len(study.members) <= parts.FEW_MEMBERS:
    return "a line per member, coloured by weight decay."
  return f"a line per weight decay, mean over {parts.seeds(_sound(study.members))}."


def _sound(members: Sequence[Member]) -> list[Member]:
  return [m for m in members if not m.status.startswith("failed")] or list(members)


def _seeds(study: Study) -> str:
  return parts.seeds(study.overfit or _sound(study.members))


def _gap(r: Result) -> dict:
  found = r.values.get("gap")
  return found if isinstance(found, dict) else {}


_UNREAD = (
    "From the evaluations of the pretraining itself, whose training side is a fixed subset of the "
    "training documents: a run of less than an epoch has read only a part of them, and the gap is "
    "then smaller than to text that was read, which the overfit program finds.")


def _training_side(results: Sequence[Result]) -> str:
  """What the loss of the overfit program is compared with."""
  if not results:
    return ""
  if any("share_read" not in r.values for r in results):  # from before it was written
    read = max(r.values.get("epochs") or 0.0 for r in results)
    return (f"The training side is of documents of which about {100 * read:.2g} % had been read, "
            "so that the gap is smaller than to text that was read; run the overfit program "
            "again with --replace." if read < 1 else "")
  shares = sorted({r.values["share_read"] for r in results} - {None})
  words = " to ".join(f"{100 * s:.3g}" for s in dict.fromkeys((*shares[:1], *shares[-1:])))
  return parts.join(
      f"The training side is of text that had been read: {words} % of the training records."
      if shares else "",
      "Which records an imported model has read is not known, so its training side is of all."
      if any(r.values["share_read"] is None for r in results) else "")


def _measured_gap(results: Sequence[Result]) -> list[Series]:
  x, y, low, high = [], [], [], []
  for decay, same in parts.by_decay(results).items():
    x.append(decay)
    y.append(parts.mean(_gap(r)["value"] for r in same))
    low.append(parts.mean(_gap(r).get("low") for r in same))
    high.append(parts.mean(_gap(r).get("high") for r in same))
  points = parts.series("one seed", [r.weight_decay for r in results],
                        [_gap(r)["value"] for r in results], style=POINTS,
                        labels=[r.member for r in results])
  return [parts.series("mean", x, y, low=low, high=high), points]


def _over_tokens(results: Sequence[Result], value: Callable) -> list[Series]:
  """A line per decay over the tokens of its checkpoints, mean over seeds."""
  return parts.decay_lines(*parts.as_members(results, value))


def _run(study: Study) -> str:
  return ("Run: python -m wd_plasticity.main --config=configs/quickstart.py "
          f"--workdir={study.workdir}")


def _nothing(study: Study) -> str:
  return f"No pretraining has written metrics to this work directory. {_run(study)}"
