"""Figures on the choice of weight decay: loss, accuracy after fine-tuning, and both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wd_plasticity.report import figure_parts as parts
from wd_plasticity.report import scores as scores_lib
from wd_plasticity.report.figure import POINTS, REFERENCE, Figure, Series, View
from wd_plasticity.report.study import Finetuned, Study
from wd_plasticity.report.wording import rate as rate_words

if TYPE_CHECKING:
  from wd_plasticity.report.answer import Answer, Comparison, Interval

CHOICE = "What to choose"
_DECAY = "weight decay in pretraining"
_LOSS = "validation loss (nats per token)"


def accuracy_by_decay(study: Study, answers: Sequence[Answer]) -> Figure:
  """The measure after fine-tuning of every task and rate, beside the base model."""
  views = []
  for answer in answers:
    last = parts.select(study.finetuned, answer.group, last=True, setting=answer.setting)
    for c in answer.comparisons:
      factor = _scale(last, c)
      x = [e.weight_decay for e in c.estimates]
      made = [parts.series(
          "fine-tuned", x, parts.scaled([e.value for e in c.estimates], factor),
          low=parts.scaled([e.low for e in c.estimates], factor),
          high=parts.scaled([e.high for e in c.estimates], factor),
          labels=[parts.count(e.seeds, "seed") + (f", {e.items:,} problems" if e.items else "")
                  for e in c.estimates])]
      base = _base(last, c)
      views.append(View(_choice(study, answers, answer, c), [*made, *base],
                        _label(last, c), len(views) < parts.PANELS and _is_first_rate(answer, c)))
  bars = any(s.low for v in views for s in v.series)
  return Figure(
      "accuracy_by_decay", CHOICE, "After fine-tuning, by weight decay of the pretraining",
      parts.join(
          f"Score on the tests of the tasks after fine-tuning, over {_seeds(study)}.",
          "Bars are 95 % intervals over seeds and problems, of each decay by itself." if bars else
          "There is no interval: that takes two seeds and the scores of each problem.",
          "Dashed: the same models before fine-tuning, options compared by their likelihood.",
          _best_rate_words(study)),
      _DECAY, views, "decay", controls=_controls(study, answers),
      missing="" if views else parts.nothing_finetuned(study))


def probability_best(study: Study, answers: Sequence[Answer]) -> Figure:
  """The probability of every decay to be the best of the grid, by task and rate."""
  views = []
  for answer in answers:
    for c in answer.comparisons:
      known = [e for e in c.estimates if e.best is not None]
      if known:
        views.append(View(
            _choice(study, answers, answer, c),
            [parts.series("best", [e.weight_decay for e in known],
                          parts.scaled([e.best for e in known], 100.0))],
            "probability (%)", len(views) < parts.PANELS and _is_first_rate(answer, c)))
    known = [e for e in answer.loss.estimates if e.best is not None] if answer.loss else []
    if known and any(v.choice.get("task") for v in views):
      choice = parts.with_setting(study, answer.group, {
          "task": "pretraining loss", **_tuned(answer, answers)})
      for rate in _rate_names(answers):
        views.append(View(
            choice | rate, [parts.series("best", [e.weight_decay for e in known],
                                         parts.scaled([e.best for e in known], 100.0))],
            "probability (%)", False))
  return Figure(
      "probability_best", CHOICE, "How sure is the best weight decay?",
      "Probability that a weight decay is the best of those tried, given the seeds and problems "
      f"tested; over {_seeds(study)}. Where it is spread over several decays, this study cannot "
      "tell which of them is best.",
      _DECAY, views, "decay", y_range=(0, 100), controls=_controls(study, answers),
      missing="" if views else (
          "These probabilities take fine-tuning of two or more weight decays with scores of each "
          f"problem. Run: {parts.command(study, 'finetune')}"))


def loss_by_decay(study: Study, answers: Sequence[Answer]) -> Figure:
  """Validation loss of the pretraining: means, intervals and single seeds."""
  of = {a.group: a.loss for a in answers}
  views = []
  for group in parts.groups(study):
    members = parts.finished(study, group)
    if not members:
      continue
    points = parts.series(
        "one seed", [m.weight_decay for m in members], [m.validation_loss for m in members],
        style=POINTS, labels=[m.name for m in members])
    loss = of.get(group)
    if loss and loss.estimates:
      mean = parts.series(
          "mean", [e.weight_decay for e in loss.estimates], [e.value for e in loss.estimates],
          low=[e.low for e in loss.estimates], high=[e.high for e in loss.estimates])
    else:
      mean = parts.decay_series(members, lambda m: m.validation_loss, "mean")
    views.append(View(parts.with_setting(study, group, {}), [mean, points], _LOSS,
                      len(views) < parts.PANELS))
  bars = any(s.low for v in views for s in v.series)
  done = [m for m in study.members if m.status == "done"]
  return Figure(
      "loss_by_decay", CHOICE, "Pretraining loss by weight decay",
      parts.join(f"Validation loss at the end of pretraining, {parts.seeds(done)} per "
                 "weight decay: points are members, the line is their mean.",
                 "Bars are 95 % intervals." if bars else "", parts.failed_members(study)),
      _DECAY, views, "decay", controls=parts.controls(study), missing="" if views else (
          "No pretraining with a validation loss is in this work directory. Run: "
          f"python -m wd_plasticity.main --config=configs/quickstart.py --workdir={study.workdir}"))


def loss_and_accuracy(study: Study, answers: Sequence[Answer]) -> Figure:
  """Accuracy after fine-tuning against pretraining loss, a point per member."""
  views = []
  for answer in answers:
    losses = {(m.weight_decay, m.seed): (m.name, m.validation_loss)
              for m in parts.finished(study, answer.group)}
    last = parts.select(study.finetuned, answer.group, last=True, setting=answer.setting)
    for c in answer.comparisons:
      factor = _scale(last, c)
      points = _points([(*losses[decay, seed], decay, factor * value)
                        for decay, seed, value in c.members if (decay, seed) in losses])
      if points:
        views.append(View(_choice(study, answers, answer, c), points, _label(last, c),
                          not views or len(views) < parts.PANELS and _is_first_rate(answer, c)))
  with_r = [(a, c) for a in answers for c in a.comparisons if c.correlation is not None]
  words = ""
  if with_r:
    answer, c = with_r[0]
    where = f" ({answer.group})" if answer.group else ""
    words = (f"Correlation over the {c.correlation.n} weight decays, {c.title}{where}: "
             f"r = {_interval(c.correlation)}; a negative r means that lower loss goes with "
             "better scores.")
  return Figure(
      "loss_and_accuracy", CHOICE, "Does a lower pretraining loss mean more after fine-tuning?",
      parts.join("Each point is a member, coloured by weight decay; the dashed line joins the "
                 f"means of the decays in growing order ({_seeds(study)}).", words,
                 _best_rate_words(study), parts.failed_members(study)),
      f"pretraining {_LOSS}", views, controls=_controls(study, answers),
      missing="" if views else (
          "This takes members with a validation loss and a fine-tuning of them. "
          f"Run: {parts.command(study, 'finetune')}"))


# Parts of them.


def _of_task(items: Sequence[Finetuned], c: Comparison) -> list[Finetuned]:
  """Those a comparison is of."""
  return [f for f in items if (f.task, f.split) in c.tasks]


def _base(last: Sequence[Finetuned], c: Comparison) -> list[Series]:
  """The base model's score by decay: mean over seeds, and over tasks for an average.

  Splits of a task count by their problems; decays without one of the tasks have none.
  """
  wanted = {task for task, _ in c.tasks}
  x, y = [], []
  items = [f for f in _of_task(last, c)
           if c.rate in ("best", "", scores_lib.rate_name(f.learning_rate))]
  for decay, same in parts.by_decay(items).items():
    tasks: dict[str, list[tuple[float, int]]] = {}
    for f in same:
      value = parts.value(f, "before", f.measure)
      if value is not None:
        tasks.setdefault(f.task, []).append((value, f.before[f.measure].get("n") or 1))
    means = [sum(v * n for v, n in pairs) / sum(n for _, n in pairs) for pairs in tasks.values()]
    if means and set(tasks) == wanted:
      x.append(decay)
      y.append(_scale(last, c) * statistics.fmean(means))
  return [parts.series("base model", x, y, style=REFERENCE)] if x else []


def _points(of: Sequence[tuple[str, float, float, float]]) -> list[Series]:
  """Points of members (name, loss, decay, score) by decay, and a line through the means."""
  decays: dict[float, list[tuple[str, float, float]]] = {}
  for name, loss, decay, score in of:
    decays.setdefault(decay, []).append((name, loss, score))
  decays = dict(sorted(decays.items()))
  made = [parts.series(f"{decay:g}", [p[1] for p in points], [p[2] for p in points],
                       weight_decay=decay, style=POINTS, labels=[p[0] for p in points])
          for decay, points in decays.items()]
  if len(decays) > 1:
    made.append(parts.series(
        "means", [statistics.fmean(p[1] for p in v) for v in decays.values()],
        [statistics.fmean(p[2] for p in v) for v in decays.values()], style=REFERENCE,
        labels=[f"weight decay {d:g}" for d in decays]))
  return made


def _choice(study: Study, answers: Sequence[Answer], answer: Answer, c: Comparison
            ) -> dict[str, str]:
  choice = {"task": c.title, **_tuned(answer, answers)}
  if any(o.rate for a in answers for o in a.comparisons):
    choice["rate"] = _rate_label(c.rate)
  return parts.with_setting(study, answer.group, choice)


def _tuned(answer: Answer, answers: Sequence[Answer]) -> dict[str, str]:
  """Which setting of the fine-tuning, where there are several."""
  return {"fine-tuning": answer.setting or "default"} if any(a.setting for a in answers) else {}


def _rate_label(rate: str) -> str:
  return {"best": "each at its best rate", "": "the only learning rate"}.get(rate, rate_words(rate))


def _rate_names(answers: Sequence[Answer]) -> list[dict[str, str]]:
  rates = dict.fromkeys(c.rate for a in answers for c in a.comparisons)
  return [{"rate": _rate_label(r)} for r in rates] if any(rates) else [{}]


def _controls(study: Study, answers: Sequence[Answer]) -> tuple[str, ...]:
  has_rates = any(c.rate for a in answers for c in a.comparisons)
  has_settings = any(a.setting for a in answers)
  return parts.controls(study, "task", *(("fine-tuning",) if has_settings else ()),
                        *(("rate",) if has_rates else ()))


def _is_first_rate(answer: Answer, c: Comparison) -> bool:
  return c.rate == answer.comparisons[0].rate


def _measures(last: Sequence[Finetuned], c: Comparison) -> list[str]:
  return sorted({f.measure for f in _of_task(last, c)} or {c.measure})


def _scale(last: Sequence[Finetuned], c: Comparison) -> float:
  return parts.scale(_measures(last, c))


def _label(last: Sequence[Finetuned], c: Comparison) -> str:
  return parts.y_label(_measures(last, c))


def _interval(i: Interval) -> str:
  ends = "" if None in (i.low, i.high) else f" (95 % interval {i.low:.2f} to {i.high:.2f})"
  return f"{i.value:.2f}{ends}"


def _seeds(study: Study) -> str:
  return parts.seeds([f for f in study.finetuned if f.last] or study.members)


def _best_rate_words(study: Study) -> str:
  if len(parts.rates(study.finetuned)) < 2:
    return ""
  return ("Where it says best rate, every weight decay is at the learning rate that suits it, "
          "chosen per task on other seeds and problems.")
