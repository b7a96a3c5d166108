"""Figures on fine-tuning: what it makes of the models, what they forget, how it goes."""

import math
import statistics
from collections.abc import Sequence

from wd_plasticity.report import figure_parts as parts
from wd_plasticity.report.figure import LINE, REFERENCE, Figure, Series, View
from wd_plasticity.report.study import Finetuned, Study

FINETUNING = "Fine-tuning"
_DECAY = "weight decay in pretraining"
_ALL_CURVES = 100_000  # numbers of all views of the curves together


def before_and_after(study: Study) -> Figure:
  """The base model beside the fine-tuned one, on every task and by two measures."""
  views = []
  for group in parts.groups(study):
    last = parts.select(study.finetuned, group, last=True)
    for (task, split), title in parts.tasks(last).items():
      items = [f for f in last if (f.task, f.split) == (task, split)]
      for shown in ("score", "loss"):
        measure = items[0].measure if shown == "score" else "response_loss"
        factor = parts.scale([measure])
        known = [f for f in items if measure in f.after and measure in f.before]
        base = [f for f in known if f.point == parts.rates(known)[0]] if known else []
        made = [_stage(base, "before", measure, factor, "base model", REFERENCE)] + [
            _stage([f for f in known if f.point == rate], "after", measure, factor,
                   parts.rate_name(rate, known) or "fine-tuned", LINE)
            for rate in parts.rates(known)]
        made = [s for s in made if s is not None]
        if made:
          choice = parts.with_setting(study, group, {"task": title, "measure": shown})
          views.append(View(choice, made, parts.y_label([measure]),
                            shown == "score" and sum(v.on_paper for v in views) < parts.PANELS))
  return Figure(
      "before_and_after", FINETUNING, "Before and after fine-tuning",
      parts.join(f"Means over {_seeds(study)}; bars are 95 % intervals over problems and seeds of "
                 "one weight decay by itself. Decays are tested on the same problems, so that "
                 "differences between them are known better than these bars say.",
                 "Of the loss lower is better."),
      _DECAY, views, "decay", controls=parts.controls(study, "task", "measure"),
      missing="" if views else parts.nothing_finetuned(study))


def forgetting(study: Study) -> Figure:
  """Change of the validation loss of the pretraining by fine-tuning."""
  views = []
  for group in parts.groups(study):
    last = [f for f in parts.select(study.finetuned, group, last=True)
            if f.forgetting and f.forgetting.get("value") is not None]
    several = len(parts.rates(last)) > 1
    for rate in parts.rates(last):
      here = [f for f in last if f.point == rate]
      titles = parts.tasks(here)
      common = _common_tasks(here)
      wanted = ([("average", here)] if len(common) > 1 else []) + [
          (t, [f for f in here if (f.task, f.split) == k]) for k, t in titles.items()]
      for title, items in wanted:
        if title == "average":
          name = f"average of {len(common)} tasks"
          line = _mean_over_tasks(items, common)
        else:
          name = title
          line = parts.decay_series(items, lambda f: f.forgetting["value"], "forgetting")
        choice = parts.with_setting(study, group, {"task": name} | (
            {"rate": parts.rate_name(rate, last)} if several else {}))
        views.append(View(choice, [line], "change of loss (nats per token)",
                          rate == parts.rates(last)[0] and len(views) < parts.PANELS))
  several = len(parts.rates(study.finetuned)) > 1
  return Figure(
      "forgetting", FINETUNING, "What fine-tuning forgets",
      f"Pretraining's validation loss after fine-tuning minus before, mean over {_seeds(study)}; "
      "more is more forgotten. Bars are 95 % intervals over seeds, with one "
      "spread for all weight decays.",
      _DECAY, views, "decay",
      controls=parts.controls(study, "task", *(("rate",) if several else ())),
      missing="" if views else (
          "Forgetting was not measured: it takes the data of the pretraining. Run: "
          f"{parts.command(study, 'finetune', '--config.evaluate.forgetting_sequences=256')}"))


def rate_by_decay(study: Study) -> Figure:
  """Score by learning rate of the fine-tuning, a line per weight decay."""
  views = []
  several = any(f.setting for f in study.finetuned)
  for group in parts.groups(study):
    last = parts.select(study.finetuned, group, last=True)
    for setting in sorted({f.setting for f in last}):
      here = [f for f in last if f.setting == setting]
      if len({f.learning_rate for f in here}) < 2:
        continue
      tuned = {"fine-tuning": setting or "default"} if several else {}
      for key, title in parts.tasks(here).items():
        items = [f for f in here if (f.task, f.split) == key]
        factor = parts.scale([items[0].measure])
        by_rate = {r: parts.decay_series(
            [f for f in items if f.learning_rate == r],
            lambda f: parts.value(f, "after", f.measure), "") for r in sorted(
                {f.learning_rate for f in items})}
        lines = [_over_rates(by_rate, decay, factor) for decay in parts.by_decay(items)]
        views.append(View(parts.with_setting(study, group, {"task": title, **tuned}), lines,
                          parts.y_label([items[0].measure]), len(views) < parts.PANELS))
  return Figure(
      "rate_by_decay", FINETUNING, "Which learning rate does each weight decay want?",
      f"Score after fine-tuning by its peak learning rate, a line per weight decay, mean over "
      f"{_seeds(study)}; bars are 95 % intervals over "
      "seeds, with one spread for all weight decays.",
      "learning rate of the fine-tuning", views, "log",
      controls=parts.controls(study, "task", *(("fine-tuning",) if several else ())),
      missing="" if views else (
          "There is one learning rate of fine-tuning only. Run: "
          + parts.command(study, "finetune").replace("configs/finetune.py",
                                                     "configs/books_finetune_lr.py")))


def finetuning_curves(study: Study) -> Figure:
  """Training loss of the fine-tuning, a line per weight decay."""
  wanted = []
  for group in parts.groups(study):
    last = [f for f in parts.select(study.finetuned, group, last=True) if f.curve]
    several = len(parts.rates(last)) > 1
    for (task, split), title in parts.tasks(last).items():
      of_task = [f for f in last if (f.task, f.split) == (task, split)]
      for rate in parts.rates(of_task):
        choice = {"task": title} | ({"rate": parts.rate_name(rate, last)} if several else {})
        wanted.append((parts.with_setting(study, group, choice), rate == parts.rates(of_task)[0],
                       [f for f in of_task if f.point == rate]))
  lines = sum(len(parts.by_decay(items)) for _, _, items in wanted)
  most = max(20, min(parts.POINTS_OF_A_LINE, _ALL_CURVES // (2 * max(1, lines))))
  views: list[View] = []
  for choice, is_first, items in wanted:
    made = parts.decay_lines(items, _training_loss, most=most)
    if made:
      views.append(View(choice, made, "training loss (nats per token)",
                        is_first and len(views) < parts.PANELS))
  several = len(parts.rates(study.finetuned)) > 1
  return Figure(
      "finetuning_curves", FINETUNING, "Loss while fine-tuning",
      f"Training loss on the responses, a line per weight decay, mean over {_seeds(study)}; at "
      f"most {most} steps of a line are shown.",
      "step of the fine-tuning", views, y_axis="log",
      controls=parts.controls(study, "task", *(("rate",) if several else ())),
      missing="" if views else parts.nothing_finetuned(study))


def _training_loss(f: Finetuned) -> list[tuple[float, float | None]]:
  # A log axis has no place for 0.
  return [(c["step"], c["loss"] if c["loss"] is None or c["loss"] > 0 else None) for c in f.curve]


def _over_rates(by_rate: dict[float, Series | None], decay: float, factor: float) -> Series:
  """The line of one decay from the lines of single learning rates."""
  found = [(rate, line, list(line.x).index(decay)) for rate, line in by_rate.items()
           if line is not None and decay in line.x]
  def of(name):
    return parts.scaled([getattr(line, name)[i] if len(getattr(line, name)) else None
                         for _, line, i in found], factor)
  return parts.series(f"{decay:g}", [rate for rate, _, _ in found], of("y"), low=of("low"),
                      high=of("high"), weight_decay=decay)


def _stage(items: Sequence[Finetuned], stage: str, measure: str, factor: float, name: str,
           style: str) -> Series | None:
  """Mean by decay with the interval over problems and seeds."""
  line = parts.decay_series(items, lambda f: parts.value(f, stage, measure), name)
  if line is None:
    return None
  errors = {decay: parts.mean(getattr(f, stage)[measure].get("se") for f in same)
            for decay, same in parts.by_decay(items).items()}
  half = []
  for i, decay in enumerate(line.x):
    of_seeds = (line.high[i] - line.low[i]) / 2 if line.low else 0.0
    # Seeds are tested on the same problems: their part does not fall with the seeds.
    half.append(None if errors[decay] is None else math.hypot(of_seeds, 1.96 * errors[decay]))
  def shifted(sign):
    return parts.scaled([None if h is None else y + sign * h
                         for y, h in zip(line.y, half, strict=True)], factor)
  return parts.series(name, line.x, parts.scaled(line.y, factor), low=shifted(-1),
                      high=shifted(1), style=style)


def _common_tasks(items: Sequence[Finetuned]) -> set[str]:
  """Tasks that all members have."""
  return set.intersection(*({f.task for f in same} for same in parts.by_member(items).values()))


def _mean_over_tasks(items: Sequence[Finetuned], tasks: set[str]) -> Series:
  """Forgetting by decay, mean over the same tasks of each seed, interval over seeds."""
  means = {name: statistics.fmean(
      parts.mean(f.forgetting["value"] for f in same if f.task == task) for task in tasks)
      for name, same in parts.by_member(items).items()}
  return parts.decay_series([same[0] for same in parts.by_member(items).values()],
                            lambda f: means[f.member], "forgetting")


def _seeds(study: Study) -> str:
  return parts.seeds(f for f in study.finetuned if f.last)
