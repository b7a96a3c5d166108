"""Learning-rate and decay schedules: a multiplier of the peak for every update.

With T updates in all, W of warmup, D of final decay (wsd) and f the final
fraction, update n = 1 .. T is multiplied by

  all        n / W                                      for n <= W
  constant   1                                          after
  linear     1 - (1 - f) (n - W) / (T - W)              after
  cosine     f + (1 - f) (1 + cos(pi (n-W)/(T-W))) / 2  after
  wsd        1 until n = T - D, then 1 - (1 - f) (n - T + D) / D

The schedule is read at n = step + 1, where `step` counts the updates already
made. So the first update has 1/W of the peak, update W the peak, and the last
f (to float32 rounding). The schedulers of torch and transformers are read at n = step:
their first update with warmup has learning rate 0, and their last is one step
above the floor. The values are theirs, one update earlier.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import schedules as optax_schedules

from wd_plasticity.config import exact_length, parse_length
from wd_plasticity.errors import UserError

NAMES = ("cosine", "wsd", "linear", "constant")

Schedule = Callable[[int | jax.Array], jax.Array]


def check(section: Any, field: str = "optim.schedule") -> None:
  """Refuses what no training can have: names, lengths and fractions that mean nothing.

  Raises:
    UserError: as of `make_schedule`.
  """
  _check_words(section, field)
  percent = 0.0
  for name in ("warmup", "decay") if section.name == "wsd" else ("warmup",):
    length = exact_length(section[name], 100, 1, f"{field}.{name}")
    percent += length if section[name].strip().endswith("%") else 0.0
  if percent > 100 * (1 + 1e-9):
    raise UserError(f"{field}: {percent:g} % of the training is longer than the training; shorten "
                    f"the warmup{' or the decay' if section.name == 'wsd' else ''}.")


def _check_words(section: Any, field: str) -> None:
  if section.name not in NAMES:
    raise UserError(f"{field}.name={section.name!r} is unknown; choose one of {', '.join(NAMES)}.")
  if not 0 <= section.final_fraction <= 1:
    raise UserError(f"{field}.final_fraction={section.final_fraction} must be between 0 and 1.")
  for name in ("warmup", "decay"):  # also where it decides nothing
    exact_length(section[name], 1, 1, f"{field}.{name}")


def make_schedule(
    section: Any, total_steps: int, tokens_per_step: int, field: str = "optim.schedule",
) -> Schedule:
  """The schedule of a configuration section.

  Args:
    section: `name`, `warmup`, `decay` (wsd), `final_fraction`; lengths as in
      `config.parse_length`, rounded up to whole steps. Where both parts of a wsd that fits are
      rounded up and no longer fit, the decay gives way.
    total_steps: T, the updates of the whole training.
    tokens_per_step: to read lengths in tokens.
    field: where the section stands in the configuration, for messages.

  Returns:
    f(step) -> float32 multiplier in [0, 1]; `step`, the updates made so far, may
    be traced and of any shape. After the last update the final value holds. A
    warmup as long as the training leaves nothing to decay and ends at 1.

  Raises:
    UserError: an unknown name, lengths that do not fit into the training, or a
      final fraction outside [0, 1].
  """
  _check_words(section, field)
  final = section.final_fraction
  def exact(name):
    return exact_length(section[name], total_steps, tokens_per_step, f"{field}.{name}")
  def rounded(name):
    return parse_length(section[name], total_steps, tokens_per_step, f"{field}.{name}")
  # Compared before parts are rounded up. The tokens of a run are rounded to whole steps too.
  parts = (section.warmup, section.decay) if section.name == "wsd" else (section.warmup,)
  fitting = total_steps * (1 + 1e-9) + any(p.strip().endswith("tokens") for p in parts)
  warmup = rounded("warmup")
  if exact("warmup") > fitting:
    raise UserError(f"{field}.warmup={section.warmup!r} is {warmup} steps, longer than the "
                    f"training of {total_steps}; shorten it.")
  warmup = min(warmup, total_steps)
  decay = total_steps - warmup
  if section.name == "wsd":
    if exact("warmup") + exact("decay") > fitting:
      raise UserError(f"{field}: the warmup of {warmup} and the decay of {rounded('decay')} steps "
                      f"are together longer than the training of {total_steps}; shorten one of "
                      "them.")
    decay = min(decay, rounded("decay"))

  if section.name == "constant" or decay == 0:
    falling = optax_schedules.constant_schedule(1.0)
  elif section.name == "cosine":
    falling = optax_schedules.cosine_decay_schedule(1.0, decay, alpha=final)
  else:
    stable = total_steps - warmup - decay  # 0 unless wsd
    falling = optax_schedules.linear_schedule(1.0, final, decay, transition_begin=stable)
  curve = falling
  if warmup:
    rising = optax_schedules.linear_schedule(0.0, 1.0, warmup)
    curve = optax_schedules.join_schedules((rising, falling), (warmup,))
  # Compiled, 1 - n / T may round to just below 0, which would turn the update round.
  return lambda step: jnp.clip(jnp.asarray(curve(jnp.asarray(step) + 1), jnp.float32), 0, 1)
