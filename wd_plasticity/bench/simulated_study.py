"""Studies whose truth is known: problems solved or not by members, for `coverage.py`.

Problem i of task t is solved by the member of decay d and seed s, fine-tuned at rate r, with
probability

  level + loading_i (mu_d + g_rd + a_s + n_d (b_ds + c_tds + e_trds)) + difficulty_i + v_di,

where a is the effect of a seed on all decays, b on one, c of it on one task, e of a single
fine-tuning run; n_d is how much noisier a decay's runs are. difficulty and v have mean 0 and
loading mean 1 over problems, so that the true means are level + mu_d + g_rd. A task that is not
learnt is solved at chance by all.

Letters: R learning rates, D weight decays, S seeds, I problems.
"""

import dataclasses
import zlib

import numpy as np

TRUTHS = {  # mu_d in units of the effect; decay 0 is the best for pretraining loss
    "one clear best": (0.0, -2.0, 6.0, -1.0, -4.0),
    "all level": (0.0, 0.0, 0.0, 0.0, 0.0),
    "two close": (0.0, -2.0, 3.0, 2.5, -1.0),
    "loss-best is best": (0.0, -2.0, -3.0, -1.0, -4.0),
}
LOSSES = (0.0, 0.005, 0.02, 0.04, 0.08)  # of pretraining, nats; those of members vary by 0.01
SPREADS = (0.01, 0.02, 0.05)  # standard deviations of true means, for calibration
SIZES = (300, 200, 400, 500)  # problems of the tasks
LEVEL, CHANCE = 0.6, 0.25
SEED_DEVIATION = 0.01  # of a_s and of b_ds
TASK_DEVIATION = 0.005  # of c_tds
RUN_DEVIATION = 0.015  # of e_trds, where there are several rates


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is simulated.

  Attributes:
    seeds, tasks: how many.
    rates: learning rates, 1 for no choice.
    peaked: whether one rate is best, another for every other decay; else all are alike.
    noise: how many times as noisy the runs of decay 0 are.
    missing: share of the members, and of single runs, that are missing.
    extreme: whether three of four problems are always or never solved.
    unlearnt: tasks of which nothing is learnt, of all `tasks`.
  """
  seeds: int
  tasks: int = 1
  rates: int = 1
  peaked: bool = False
  noise: float = 1.0
  missing: float = 0.0
  extreme: bool = False
  unlearnt: int = 0

  @property
  def effect(self) -> float:
    return 0.005 if self.extreme else 0.01

  @property
  def name(self) -> str:
    words = [f"{self.seeds} seeds", f"{self.tasks} task" + ("s" if self.tasks > 1 else "")]
    if self.unlearnt:
      words[-1] += f", {self.unlearnt} not learnt"
    if self.rates > 1:
      words.append(f"{self.rates} rates, " + ("one best" if self.peaked else "all alike"))
    if self.noise > 1:
      words.append(f"decay 0 {self.noise:g} x noise")
    if self.missing:
      words.append("members missing")
    if self.extreme:
      words.append("extreme problems")
    return ", ".join(words)

  @property
  def key(self) -> tuple[int, ...]:
    """Seeds of the random numbers."""
    return (zlib.crc32(self.name.encode()),)


_SEEDS = (2, 3, 5)
SETTINGS = (
    *(Setting(s, t) for s in _SEEDS for t in (1, 4)),
    *(Setting(s, rates=4) for s in _SEEDS),
    *(Setting(s, rates=4, peaked=True) for s in _SEEDS),
    *(Setting(s, noise=3.0) for s in _SEEDS),
    *(Setting(s, rates=4, noise=3.0) for s in _SEEDS),
    *(Setting(s, missing=0.2) for s in _SEEDS[1:]),
    *(Setting(s, rates=4, missing=0.1) for s in _SEEDS[1:]),
    *(Setting(s, extreme=True) for s in _SEEDS),
    *(Setting(s, tasks=4, unlearnt=2, rates=3, peaked=True) for s in _SEEDS),
)
CALIBRATED = {
    f"{s} seeds": (Setting(s), Setting(s, tasks=4), Setting(s, rates=4)) for s in _SEEDS
} | {"decay 0 with 3 x noise": tuple(Setting(s, noise=3.0) for s in _SEEDS)}


@dataclasses.dataclass(frozen=True)
class Task:
  """One simulated task.

  Attributes:
    scores_RxDxSxI: zeros and ones, all NaN for runs that are missing.
    base_DxSxI: before fine-tuning.
    chance: share solved by guessing.
    truth_RxD: true means.
  """
  scores_RxDxSxI: np.ndarray
  base_DxSxI: np.ndarray
  chance: float
  truth_RxD: np.ndarray


@dataclasses.dataclass(frozen=True)
class Simulated:
  """A study: its tasks, and the decay with the lowest mean pretraining loss."""
  tasks: list[Task]
  loss_best: int


def make(rng: np.random.Generator, setting: Setting, mu_D: np.ndarray) -> Simulated:
  """One study with these true effects of the decays."""
  shape = len(mu_D), setting.seeds
  # Problems that hardly any effect changes leave all of it to the others.
  size = 0.5 if setting.extreme else 1.0
  noise_Dx1 = np.where(np.arange(len(mu_D)) == 0, setting.noise, 1.0)[:, None]
  own_DxS = rng.normal(0, 1, shape)
  member_DxS = SEED_DEVIATION * size * (rng.normal(0, 1, setting.seeds) + noise_Dx1 * own_DxS)
  # A better seed has a lower loss too.
  loss_DxS = np.array(LOSSES)[:len(mu_D), None] + 0.01 * (
      0.5**0.5 * rng.normal(0, 1, shape) - 0.5**0.5 * own_DxS)
  gone_DxS = rng.random(shape) < setting.missing
  gone_DxS[np.arange(len(mu_D)), rng.integers(setting.seeds, size=len(mu_D))] = False
  tasks = [_task(rng, setting, mu_D, member_DxS, noise_Dx1, gone_DxS, t, size)
           for t in range(setting.tasks)]
  loss_D = np.nanmean(np.where(gone_DxS, np.nan, loss_DxS), axis=1)
  return Simulated(tasks, int(np.argmin(loss_D)))


def _task(rng, setting: Setting, mu_D, member_DxS, noise_Dx1, gone_DxS, t: int, size: float
          ) -> Task:
  num, (decays, seeds) = SIZES[t], member_DxS.shape
  is_learnt = t >= setting.unlearnt
  if setting.extreme:
    kind_I = rng.random(num)
    loading_I = np.where(kind_I < 0.25, 4.0, 0.0)
    difficulty_I = np.select([kind_I < 0.25, kind_I < 0.7], [rng.uniform(-0.2, 0.2, num), 0.38],
                             -0.57)
    own_Dx1xI = 0.0
  else:
    loading_I = 1.0
    difficulty_I = 0.25 * np.sin(rng.uniform(-np.pi / 2, np.pi / 2, num))
    own_Dx1xI = rng.uniform(-0.04, 0.04, (decays, 1, num))
  rate_RxD = np.zeros((setting.rates, decays))
  if setting.peaked:
    away_RxD = np.abs(np.arange(setting.rates)[:, None] - (np.arange(decays) + t) % setting.rates)
    rate_RxD = -0.02 * away_RxD.astype(np.float64)
  task_DxS = member_DxS + TASK_DEVIATION * size * noise_Dx1 * rng.normal(0, 1, (decays, seeds))
  effect_RxDxS = task_DxS + (mu_D + rate_RxD)[..., None]
  if setting.rates > 1:
    effect_RxDxS = effect_RxDxS + (
        RUN_DEVIATION * size * noise_Dx1 * rng.normal(0, 1, (setting.rates, decays, seeds)))
  p_RxDxSxI = LEVEL + loading_I * effect_RxDxS[..., None] + difficulty_I + own_Dx1xI
  truth_RxD = LEVEL + mu_D + rate_RxD
  if setting.extreme:  # 0.25 * 0 + 0.45 * 0.38 - 0.3 * 0.57 = 0
    p_RxDxSxI = np.clip(p_RxDxSxI, 0.0, 1.0)
  if not is_learnt:
    p_RxDxSxI = np.full((setting.rates, decays, seeds, num), CHANCE)
    truth_RxD = np.full((setting.rates, decays), CHANCE)
  scores_RxDxSxI = (rng.random(p_RxDxSxI.shape, np.float32) < p_RxDxSxI).astype(np.float64)
  scores_RxDxSxI[:, gone_DxS] = np.nan
  if setting.missing and setting.rates > 1:
    lost_RxDxS = rng.random(scores_RxDxSxI.shape[:3]) < setting.missing
    scores_RxDxSxI[lost_RxDxS] = np.nan
  base_DxSxI = (rng.random((decays, seeds, num), np.float32) < CHANCE).astype(np.float64)
  return Task(scores_RxDxSxI, base_DxSxI, CHANCE, truth_RxD)
