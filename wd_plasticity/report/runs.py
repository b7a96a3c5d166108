"""Scores of single fine-tuning runs, by problem where they are known, as arrays.

Letters: D weight decays, S pretraining seeds, F fine-tuning seeds, I items.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from wd_plasticity.report.study import Finetuned
from wd_plasticity.tasks import registry


@dataclasses.dataclass(frozen=True)
class Cell:
  """Scores of one run: its place, the keys of its items, and what it was before fine-tuning."""
  weight_decay: float
  seed: int
  run: int
  keys: list[str]
  scores: np.ndarray
  base: np.ndarray | None
  error: float | None


def weighted(parts: Sequence[Finetuned], count: np.ndarray, measure: str, what: str
              ) -> float | None:
  """Mean over splits by their problems of a value, that of the base model, or its error."""
  if what == "base":
    values = [f.before.get(measure, {}).get("value") for f in parts]
    # Scores by problem without those of the base model: then that is not known.
    if any(f.scores.get("after") and not f.scores.get("before") for f in parts):
      return None
  else:
    values = [f.after[measure].get(what) for f in parts]
  if None in values:
    return None
  weight = count / count.sum()
  if what == "se":
    return float(np.sqrt(np.sum((weight * np.array(values)) ** 2)))
  return float(np.sum(weight * np.array(values)))


def of_problems(parts: Sequence[Finetuned], measure: str, sign: float):
  """Keys, scores and those of the base model by problem; None where they are not known."""
  keys, scores, bases = [], [], []
  for f in parts:
    after, before = (f.scores.get(stage, {}).get(measure) for stage in ("after", "before"))
    if after is None or not len(f.keys) or len(after) != len(f.keys):
      return None
    after = np.asarray(after, np.float64)
    counts = np.isfinite(after)
    if not counts.any():
      return None
    named = registry.distinct([str(k) for k in f.keys])
    prefix = f"{f.split}/" if len(parts) > 1 else ""
    keys += [prefix + k for k, c in zip(named, counts, strict=True) if c]
    scores.append(after[counts])
    bases.append(None if before is None or len(before) != len(after)
                 else np.asarray(before, np.float64)[counts])
  base = None if any(b is None for b in bases) else sign * np.concatenate(bases)
  return keys, sign * np.concatenate(scores), base


def arrays(decays: Sequence[float], seeds: Sequence[int], cells: Sequence[Cell]
           ) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Keys that all cells have, scores_DxSxFxI and errors_DxSxF, NaN where there is no cell."""
  common = set.intersection(*(set(c.keys) for c in cells)) if cells else set()
  names = sorted(common)
  shape = len(decays), len(seeds), max((c.run + 1 for c in cells), default=1)
  scores_DxSxFxI = np.full((*shape, len(names)), np.nan)
  errors_DxSxF = np.full(shape, np.nan)
  for c in cells:
    place = decays.index(c.weight_decay), seeds.index(c.seed), c.run
    row = dict(zip(c.keys, c.scores, strict=True))
    scores_DxSxFxI[place] = [row[name] for name in names]
    if c.error is not None:
      errors_DxSxF[place] = c.error
  return names, scores_DxSxFxI, errors_DxSxF


def over_runs(x_DxSxFxI: np.ndarray | None, seeds: int) -> np.ndarray | None:
  """[D, S, I] means over fine-tuning seeds; [D, F, I] where those are all the seeds there are."""
  if x_DxSxFxI is None:
    return None
  axis = 1 if seeds == 1 and x_DxSxFxI.shape[2] > 1 else 2
  there = ~np.isnan(x_DxSxFxI).all(-1, keepdims=True)
  total = np.sum(np.where(there, x_DxSxFxI, 0.0), axis)
  count = there.sum(axis)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)
