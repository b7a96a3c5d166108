"""Whether the report's intervals hold what they promise: simulated studies with known answers.

  python -m wd_plasticity.bench.coverage --studies=1000 --seed=1 --out=docs/results/coverage

A study (`simulated_study.py`) has five decays, some seeds and tasks of 200 to 500 problems. Every
fourth has one of four truths: one decay far ahead, all level, two close ones ahead, and the one
that is best for pretraining loss (decay 0 in all of them) ahead. What the report does is done to
it: learning rates are chosen, tasks that are not learnt left out, the lowest loss found.

The ways of `analysis/` were chosen among several by simulations like this one with --seed=0;
another --seed gives studies not yet seen. --out gets all numbers as coverage.json.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from wd_plasticity import cli, files
from wd_plasticity.analysis import decay_choice, seed_variance, two_way
from wd_plasticity.bench import simulated_study
from wd_plasticity.bench.simulated_study import Setting, Simulated

_STUDIES = flags.DEFINE_integer("studies", 1000, "Simulated studies of every setting.",
                                lower_bound=4)
_SEED = flags.DEFINE_integer("seed", 0, "Of the simulation.")
_OUT = flags.DEFINE_string("out", "", "Folder for coverage.json, all numbers; empty: none.")

NUM_DRAWS = 1000  # a quarter of what the report takes
QUANTITIES = ("mean", "difference", "difference to 0", "best mean", "cost", "best or tied")
_TENTHS = np.linspace(0.0, 1.0, 11)


def fitted(study: Simulated) -> tuple[two_way.Fit, np.ndarray, np.ndarray]:
  """What the report makes of a study.

  Returns:
    the fit over the tasks that are learnt, and the true means [D] at the learning rates that were
    chosen and at the best ones. None for a study without a task that is learnt.
  """
  tasks, choices, truths, best_truths = [], [], [], []
  for task in study.tasks:
    scores_RxDxSxI = task.scores_RxDxSxI
    fold_I = np.arange(scores_RxDxSxI.shape[-1]) % 2
    choice = None
    if len(scores_RxDxSxI) > 1:
      made_DxSxI, picked_DxSx2 = decay_choice.cross_fit(scores_RxDxSxI, fold_I)
      choice = seed_variance.Choice(scores_RxDxSxI.mean(-1))
    else:
      made_DxSxI = scores_RxDxSxI[0]
      picked_DxSx2 = np.where(np.isnan(made_DxSxI).any(-1), -1, 0)[..., None]
    if not decay_choice.is_learnt(made_DxSxI, task.base_DxSxI, task.chance):
      continue
    tasks.append(made_DxSxI)
    choices.append(choice)
    truths.append([[task.truth_RxD[p, d].mean() if p.min() >= 0 else np.nan
                    for p in picked_Sx2] for d, picked_Sx2 in enumerate(picked_DxSx2)])
    best_truths.append(task.truth_RxD.max(0))
  if not tasks:
    return None
  valid_DxS = np.all([~np.isnan(x).all(-1) for x in tasks], axis=0)
  if not valid_DxS.any(1).all():
    return None
  fit = two_way.draws(tasks, choices=choices, num_draws=NUM_DRAWS)
  truth_DxS = np.where(valid_DxS, np.mean(truths, axis=0), np.nan)
  return fit, np.nanmean(truth_DxS, axis=1), np.mean(best_truths, axis=0)


def covered(fit: two_way.Fit, truth_D: np.ndarray, loss_best: int) -> dict[str, float]:
  """Shares of intervals that hold the truth, in one study."""
  low_D, high_D = decay_choice.intervals(fit.draws_BxD)
  i, j = np.triu_indices(len(truth_D), 1)
  low_P, high_P = decay_choice.intervals(fit.draws_BxD[:, j] - fit.draws_BxD[:, i])
  gain_P = truth_D[j] - truth_D[i]
  in_P = (low_P <= gain_P) & (gain_P <= high_P)
  named = int(np.argmax(fit.mean_D))
  best_low, best_high = decay_choice.best_interval(fit.mean_D, fit.draws_BxD)
  _, cost_low, cost_high = decay_choice.cost(fit.mean_D, fit.draws_BxD, loss_best)
  true_cost = truth_D.max() - truth_D[loss_best]
  best = np.flatnonzero(truth_D >= truth_D.max() - 1e-9)
  level = {named, *decay_choice.ties(fit.mean_D, fit.draws_BxD)}
  return {
      "mean": np.mean((low_D <= truth_D) & (truth_D <= high_D)),
      "difference": np.mean(in_P),
      "difference to 0": np.mean(in_P[i == 0]),
      "best mean": float(best_low <= truth_D[named] <= best_high),
      "cost": float(cost_low <= true_cost + 1e-12 and true_cost <= cost_high + 1e-12),
      # the share of the truly best decays that are the best or tie with it
      "best or tied": np.mean([b in level for b in best]),
      "width": np.mean(high_P - low_P),
      "bias": np.mean(fit.mean_D - truth_D),
      "bias of the best": fit.mean_D[named] - truth_D[named],
  }


def simulate(setting: Setting, num_studies: int, seed: int) -> dict[str, dict[str, float]]:
  """Coverage of each quantity by truth; by 'best rate' against the means at the best rates."""
  found: dict[str, list] = {}
  for number, (truth, effects) in enumerate(simulated_study.TRUTHS.items()):
    rng = np.random.default_rng([seed, number, *setting.key])
    for _ in range(num_studies // len(simulated_study.TRUTHS)):
      study = simulated_study.make(rng, setting, np.array(effects) * setting.effect)
      made = fitted(study)
      if made is None:
        continue
      fit, truth_D, best_truth_D = made
      found.setdefault(truth, []).append(covered(fit, truth_D, study.loss_best))
      if setting.rates > 1:
        found.setdefault("best rate", []).append(covered(fit, best_truth_D, study.loss_best))
  return {truth: {name: float(np.mean([f[name] for f in rows])) for name in rows[0]}
          | {"studies": len(rows)} for truth, rows in found.items()}


def calibration(setting: Setting, num_studies: int, seed: int, spread: float
                ) -> tuple[np.ndarray, np.ndarray]:
  """Claims 'best with probability p' and whether each is right, of all decays of all studies.

  True means are normal with this standard deviation.
  """
  rng = np.random.default_rng([seed, round(1e4 * spread), *setting.key])
  said, right = [], []
  for _ in range(num_studies):
    mu_D = np.clip(rng.normal(0, spread, len(simulated_study.LOSSES)), -0.12, 0.12)
    made = fitted(simulated_study.make(rng, setting, mu_D))
    if made is not None:
      fit, truth_D, _ = made
      said.append(decay_choice.probability_best(fit.mean_D, fit.draws_BxD, fit.scale_BxD))
      right.append(np.arange(len(truth_D)) == np.argmax(truth_D))
  return np.concatenate(said), np.concatenate(right)


def by_tenth(said: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
  """Claims by the tenth that they are in: mean claim, share that is right, its error, number."""
  place = np.clip(np.digitize(said, _TENTHS) - 1, 0, 9)
  made = []
  for tenth in range(10):
    here = place == tenth
    if here.any():
      share = float(right[here].mean())
      made.append({"said": float(said[here].mean()), "right": share, "claims": int(here.sum()),
                   "error": float(np.sqrt(max(share * (1 - share), 1e-9) / here.sum()))})
  return made


def correlations(num_studies: int, seed: int, decays: int, truth: float) -> float:
  """Coverage of the interval of Pearson's r, decays drawn from a bivariate normal."""
  rng = np.random.default_rng([seed, decays, 9])
  x = rng.standard_normal((num_studies, decays))
  y = truth * x + np.sqrt(1 - truth**2) * rng.standard_normal(x.shape)
  found = [decay_choice.correlation(a, b) for a, b in zip(x, y, strict=True)]
  return float(np.mean([low <= truth <= high for _, low, high in found]))


def calibrated(name: str, num_studies: int, seed: int) -> list[dict[str, float]]:
  """Claims by tenth over the settings of a name and the spreads of true means."""
  pairs = [calibration(setting, num_studies, seed, spread)
           for setting in simulated_study.CALIBRATED[name] for spread in simulated_study.SPREADS]
  return by_tenth(*(np.concatenate(p) for p in zip(*pairs, strict=True)))


def show_coverage(name: str, rows: dict[str, dict[str, float]]) -> None:
  """A line of the table, and one against the best rates where rates were chosen."""
  for label, truths in ((name, list(simulated_study.TRUTHS)),
                        ("  against the best rates", ["best rate"])):
    same = [rows[t] for t in truths if t in rows]
    if same:
      print(f"{label:<52}" + "".join(f"{100 * np.mean([r[q] for r in same]):>17.1f}"
                                     for q in QUANTITIES), flush=True)


def main(argv: Sequence[str]):
  del argv
  n, seed = _STUDIES.value, _SEED.value
  made = {"studies": n, "seed": seed, "coverage": {}, "correlation": {}, "calibration": {}}
  print(f"Coverage of 95 % intervals, %, of {n} studies a setting")
  print(f"{'':<52}" + "".join(f"{name:>17}" for name in QUANTITIES), flush=True)
  for setting in simulated_study.SETTINGS:
    made["coverage"][setting.name] = simulate(setting, n, seed)
    show_coverage(setting.name, made["coverage"][setting.name])
  print("\nCorrelation, Fisher's z")
  for decays in (4, 5, 8):
    for truth in (0.0, 0.7, -0.9):
      found = made["correlation"][f"{decays} decays, r = {truth}"] = correlations(
          n, seed, decays, truth)
      print(f"{decays:>6} decays, r = {truth:>4}: {100 * found:.1f}")
  print("\nProbability of being the best, %: said, right, standard error, claims", flush=True)
  for name in simulated_study.CALIBRATED:
    made["calibration"][name] = calibrated(name, n, seed)
    print(f"  {name}")
    for row in made["calibration"][name]:
      print("".join(f"{100 * row[k]:>10.1f}" for k in ("said", "right", "error"))
            + f"{row['claims']:>10}", flush=True)
  if _OUT.value:
    files.write_json(Path(_OUT.value) / "coverage.json", made)


if __name__ == "__main__":
  cli.run(main)
