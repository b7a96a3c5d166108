"""Scores of lm-evaluation-harness by weight decay: the base models, before any fine-tuning."""

import math
from collections.abc import Sequence

from wd_plasticity.report import figure_parts as parts
from wd_plasticity.report.figure import POINTS, Figure, Series, View
from wd_plasticity.report.study import Result, Study

HARNESS = "Base models on standard tasks"
# Measures of the harness that are shares of the problems, shown in %; the first that a task
# has is seen first.
_SHARES = {"acc_norm": "normalised accuracy", "acc": "accuracy", "exact_match": "exact match",
           "em": "exact match", "f1": "F1", "acc_mutual_info": "accuracy by mutual information"}
_Measure = tuple[str, str, str]  # task, measure, title of the task


def harness_by_decay(study: Study) -> Figure:
  """Every score of every task and group: the mean over seeds, and a point per member."""
  views = []
  for group in parts.groups(study):
    last = parts.select(study.harness, group, last=True)
    whole = _on_paper(last)
    for task, measure, title in _measures(last):
      made = _lines(last, task, measure)
      if made:
        choice = {"task": title, "measure": _name(measure)}
        is_first = not any(v.choice.get("task") == title for v in views
                           if v.choice.get("setting") in (None, group or "default"))
        views.append(View(
            parts.with_setting(study, group, choice), made, _label(last, task, measure),
            is_first and task in whole and sum(v.on_paper for v in views) < parts.PANELS))
  versions = sorted({r.values["harness"] for r in study.harness if r.values.get("harness")})
  shots = {t.get("num_fewshot") for r in study.harness for t in _entries(r.values).values()}
  words = "" if len(shots) != 1 or None in shots else (
      "Without examples before a problem." if shots == {0} else
      f"With {parts.count(next(iter(shots)), 'example')} before each problem.")
  last = [r for r in study.harness if r.last]
  points = any(s.style == POINTS for v in views for s in v.series)
  return Figure(
      "harness_by_decay", HARNESS, "Scores of lm-evaluation-harness by weight decay",
      parts.join(
          f"The models as pretrained, at their last evaluated step, over {parts.seeds(last)}.",
          "Points are members, the line is their mean." if points else "",
          "Bars are 95 % intervals over problems and seeds; decays are tested on the same problems,"
          " so that differences between them are known better than these bars say.", words,
          f"lm-evaluation-harness {', '.join(versions)}." if versions else ""),
      "weight decay in pretraining", views, "decay",
      controls=parts.controls(study, "task", "measure"),
      missing="" if views else parts.missing(study, "There are no scores.", "lm_eval"))


def _entries(values: dict) -> dict[str, dict]:
  """Groups, then tasks, by name; a task of a group has its own scores too."""
  return {**values.get("groups", {}), **values.get("tasks", {})}


def _measures(results: Sequence[Result]) -> list[_Measure]:
  """All of them, by task as they were asked for, those shown first in front."""
  found: dict[tuple[str, str], str] = {}
  for r in results:
    for task, entry in _entries(r.values).items():
      for measure in sorted(entry["measures"], key=_place):
        found.setdefault((task, measure), str(entry.get("title") or task))
  # Several tasks may have one title, such as those of a group.
  tasks = {task: title for (task, _), title in found.items()}
  clear = {task: title if list(tasks.values()).count(title) == 1 else task
           for task, title in tasks.items()}
  return [(task, measure, clear[task]) for task, measure in found]


def _place(measure: str) -> int:
  first = measure.split(",")[0]
  return list(_SHARES).index(first) if first in _SHARES else len(_SHARES)


def _on_paper(results: Sequence[Result]) -> set[str]:
  """Tasks that are not part of a group which has a score itself."""
  return {name for r in results
          for name in (r.values.get("groups") and [r.item] or r.values.get("tasks", {}))}


def _lines(results: Sequence[Result], task: str, measure: str) -> list[Series]:
  factor = 100.0 if measure.split(",")[0] in _SHARES else 1.0
  known = [(r, m) for r in results
           if (m := _entries(r.values).get(task, {}).get("measures", {}).get(measure))
           and m.get("value") is not None]
  if not known:
    return []
  value = {id(r): factor * m["value"] for r, m in known}
  error = {id(r): None if m.get("se") is None else factor * m["se"] for r, m in known}
  members = sorted((r for r, _ in known), key=lambda r: (r.weight_decay, r.seed, r.member))
  mean = parts.decay_series(members, lambda r: value[id(r)], "mean")
  half = []
  for i, same in enumerate(parts.by_decay(members).values()):
    of_problems = parts.mean(error[id(r)] for r in same)
    of_seeds = None if not mean.low or mean.low[i] is None else (mean.high[i] - mean.low[i]) / 2
    # Seeds are tested on the same problems: their part does not fall with the seeds.
    half.append(None if of_problems is None and of_seeds is None else
                math.hypot(of_seeds or 0.0, 1.96 * (of_problems or 0.0)))
  low, high = ([None if h is None else y + sign * h for y, h in zip(mean.y, half, strict=True)]
               for sign in (-1, 1))
  made = [parts.series("mean", mean.x, mean.y, low=low, high=high)]
  if len(members) > len(mean.x):
    # Bars of every member would hide each other; their errors are told beside them.
    made.append(parts.series(
        "one seed", [r.weight_decay for r in members], [value[id(r)] for r in members],
        style=POINTS, labels=[_label_of(r, error[id(r)]) for r in members]))
  return made


def _label_of(r: Result, error: float | None) -> str:
  return f"{r.member}, step {r.step:,}" + (
      "" if error is None else f", standard error {error:.2g}")


def _name(measure: str) -> str:
  """'accuracy', or 'exact match (strict-match)' of a filter."""
  first, _, kept = measure.partition(",")
  name = _SHARES.get(first, first.replace("_", " "))
  return f"{name} ({kept})" if kept else name


def _label(results: Sequence[Result], task: str, measure: str) -> str:
  name = _name(measure)
  if measure.split(",")[0] in _SHARES:
    return f"{name} (%)"
  found = next((e["measures"][measure] for r in results
                if (e := _entries(r.values).get(task)) and measure in e["measures"]), {})
  return f"{name} (lower is better)" if found.get("higher_is_better") is False else name
