"""AdamW with the weight decay of every parameter group as a traced number.

The chain is: clip by global norm -> Adam -> weight decay -> learning rate. Weight
decay is applied in `adamw_chain`, and nowhere else.

Learning rate and weight decay are arguments of `update`, not constants of the
program: members of a sweep share one compiled step, and `jax.vmap` over the
member axis gives each its own values.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_plasticity.errors import UserError
from wd_plasticity.optim.groups import group_names, name_of
from wd_plasticity.optim.schedules import make_schedule

CONVENTIONS = ("learning_rate", "independent", "l2")


def adamw_chain(convention, adam, clip, decay, learning_rate, multiplier):
  """The optax chain of one step. THIS IS WHERE WEIGHT DECAY IS APPLIED.

  Args:
    convention: one of `CONVENTIONS`.
    adam: optax transformation from gradients g to the Adam direction u.
    clip: optax transformation that clips gradients.
    decay: lambda of every parameter, a tree of scalars.
    learning_rate: of this step, eta * s_t.
    multiplier: s_t, the learning-rate schedule without the peak eta.
  """
  step_size = optax.scale(-learning_rate)
  if convention == "l2":
    # g <- g + lambda w before the moments, w <- w - eta s_t u: decay is divided by
    # sqrt(nu) like any gradient. torch.optim.Adam(weight_decay=lambda).
    return optax.chain(clip, add_decay(decay), adam, step_size)
  if convention == "learning_rate":
    # w <- w - eta s_t (u + lambda w). torch.optim.AdamW, optax.adamw.
    return optax.chain(clip, adam, add_decay(decay), step_size)
  # "independent" of the peak eta: w <- w - s_t (eta u + lambda w). Loshchilov and
  # Hutter (1711.05101, algorithm 2), Wortsman et al. (2309.14322), big_vision.
  return optax.chain(clip, adam, step_size, add_decay(decay, -multiplier))


def add_decay(decay, factor=1.0):
  """Adds factor * lambda * w to the update of each weight w.

  `optax.add_decayed_weights` with a lambda for every parameter, a tree of scalars, in
  place of one lambda and a mask.
  """
  def update(updates, params):
    return jax.tree.map(lambda u, wd, w: u + factor * wd * w, updates, decay, params)
  return optax.stateless(update)


def scale_by_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
  """u = mu^ / (sqrt(nu^) + eps) of Adam (Kingma and Ba, 1412.6980).

  Like `optax.scale_by_adam`, whose state it has, but for the bias corrections
  1 - beta^n: in float32 the first is off by 1.3e-5 for beta 0.999, which takes weights
  up to 2e-5 away from those of torch within 50 steps. -expm1(n log beta) does not cancel.
  """
  def update(grads, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(grads, state.mu, beta1, 1)
    nu = optax.tree.update_moment(grads, state.nu, beta2, 2)

    def correction(beta):
      return -jnp.expm1(count * math.log(beta)) if beta else jnp.float32(1.0)

    mean, square = correction(beta1), correction(beta2)
    u = jax.tree.map(lambda m, v: (m / mean) / (jnp.sqrt(v / square) + eps), mu, nu)
    return u, optax.ScaleByAdamState(count, mu, nu)

  def init(params):
    mu, nu = (optax.tree.zeros_like(params, dtype=jnp.float32) for _ in range(2))
    return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)

  return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW over parameter groups; build it with `make_optimizer`.

  `group_names` is the order of the P entries of `hyper['weight_decay']` and of
  the per-group values in `info`.
  """
  groups: Mapping[str, str]
  beta1: float
  beta2: float
  eps: float
  clip_norm: float
  convention: str
  learning_rate_schedule: Callable[[Any], jax.Array]
  decay_schedule: Callable[[Any], jax.Array]

  @property
  def group_names(self) -> tuple[str, ...]:
    return group_names(self.groups)

  def init(self, params: Any) -> optax.OptState:
    """The state of the optax chain before the first update."""
    return self._chain(jax.tree.map(lambda _: 0.0, params), 0.0, 0.0).init(params)

  def _chain(self, decay, learning_rate, multiplier) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
    adam = scale_by_adam(self.beta1, self.beta2, self.eps)
    return adamw_chain(self.convention, adam, clip, decay, learning_rate, multiplier)

  def update(
      self, grads: Any, opt_state: optax.OptState, params: Any, hyper: Mapping[str, jax.Array],
      step: jax.Array | int,
  ) -> tuple[Any, optax.OptState, dict[str, jax.Array]]:
    """One update.

    Args:
      grads: gradients, a tree like `params`.
      opt_state: from `init` or the last update.
      params: the weights.
      hyper: 'learning_rate' float32[], the peak; 'weight_decay' float32[P], of each
        group with its multiplier already in it.
      step: updates made so far, where the schedules are read.

    Returns:
      updates: to be added to `params`.
      opt_state: the new state.
      info: float32 values: 'learning_rate' [] of this step; 'weight_decay' [P] the
        lambda of this step, after its schedule (for `independent` also times the
        learning-rate schedule: the fraction by which weights shrink); 'grad_norm' []
        over all gradients before clipping; 'weight_norm', 'update_norm' [P], L2
        norms of weights before the update and of the update with its decay;
        'update_ratio' [P], the second over the first (0 where all weights are 0).
    """
    multiplier = self.learning_rate_schedule(step)
    learning_rate = hyper["learning_rate"] * multiplier
    weight_decay_P = hyper["weight_decay"] * self.decay_schedule(step)
    members = self._members(params)
    decay = jax.tree.map(lambda p: weight_decay_P[p], members)

    grads = optax.tree.cast(grads, jnp.float32)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = self._chain(decay, learning_rate, multiplier).update(
        grads, opt_state, params)

    if self.convention == "independent":
      weight_decay_P = weight_decay_P * multiplier
    weight_norm_P = self._norms(params, members)
    update_norm_P = self._norms(updates, members)
    nonzero_P = jnp.where(weight_norm_P == 0, 1.0, weight_norm_P)
    info = {
        "learning_rate": learning_rate,
        "weight_decay": weight_decay_P,
        "grad_norm": grad_norm,
        "weight_norm": weight_norm_P,
        "update_norm": update_norm_P,
        "update_ratio": jnp.where(weight_norm_P == 0, 0.0, update_norm_P / nonzero_P),
    }
    return updates, opt_state, info

  def _members(self, params: Any) -> Any:
    """The index of every parameter's group, a tree like `params`."""
    index = {group: p for p, group in enumerate(self.group_names)}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: index[self.groups[name_of(path)]], params)

  def _norms(self, tree: Any, members: Any) -> jax.Array:
    """L2 norm of every group's part of `tree`, float32[P]."""
    squares = [jnp.zeros([], jnp.float32)] * len(self.group_names)
    for p, x in zip(jax.tree.leaves(members), jax.tree.leaves(tree), strict=True):
      squares[p] += jnp.sum(jnp.square(x.astype(jnp.float32)))
    return jnp.sqrt(jnp.stack(squares))


def make_optimizer(
    groups: Mapping[str, str], *, beta1: float, beta2: float, eps: float, clip_norm: float,
    convention: str, learning_rate_schedule: Callable[[Any], jax.Array],
    decay_schedule: Callable[[Any], jax.Array],
) -> Optimizer:
  """AdamW for the parameters in `groups`.

  Args:
    groups: {parameter name: group}, from `groups.assign_groups`.
    beta1: decay rate of the mean of gradients.
    beta2: decay rate of the mean of squared gradients.
    eps: added to the square root of the second moment, after bias correction.
    clip_norm: global gradient norm above which gradients are scaled down; 0: never.
    convention: what weight decay means, see `adamw_chain`.
    learning_rate_schedule: step to multiplier of the peak learning rate.
    decay_schedule: step to multiplier of the weight decay.

  Raises:
    UserError: an unknown convention or a constant outside its range.
  """
  if convention not in CONVENTIONS:
    raise UserError(f"optim.decay.convention={convention!r} is unknown; "
                    f"choose one of {', '.join(CONVENTIONS)}.")
  for name, beta in (("beta1", beta1), ("beta2", beta2)):
    if not 0 <= beta < 1:
      raise UserError(f"optim.{name}={beta} must be at least 0 and below 1.")
  for name, value in (("eps", eps), ("clip_norm", clip_norm)):
    if not (math.isfinite(value) and value >= 0):
      raise UserError(f"optim.{name}={value} must be a number of at least 0.")
  return Optimizer(dict(groups), beta1, beta2, eps, clip_norm, convention,
                   learning_rate_schedule, decay_schedule)


def from_section(optim: Any, groups: Mapping[str, str], total_steps: int,
                 tokens_per_step: int) -> Optimizer:
  """The optimizer of an `optim` section of a configuration, schedules included.

  Args:
    optim: the section.
    groups: {parameter name: group}, from `groups.assign_groups`.
    total_steps: updates of the whole training.
    tokens_per_step: to read lengths in tokens.
  """
  def schedule(section, field):
    return make_schedule(section, total_steps, tokens_per_step, field)
  return make_optimizer(
      groups, beta1=optim.beta1, beta2=optim.beta2, eps=optim.eps, clip_norm=optim.clip_norm,
      convention=optim.decay.convention,
      learning_rate_schedule=schedule(optim.schedule, "optim.schedule"),
      decay_schedule=schedule(optim.decay.schedule, "optim.decay.schedule"))


def timescale(
    learning_rate: float, weight_decay: float, convention: str, steps: int, tokens_per_step: int,
) -> dict[str, float] | None:
  """How long a weight remembers: updates after which decay alone leaves 1/e of it.

  1 / (learning_rate * weight_decay) steps at the peak of the schedules (Wang and
  Aitchison, 2405.13698), 1 / weight_decay with `independent`.

  Args:
    learning_rate: the peak.
    weight_decay: with its group's multiplier in it.
    convention: one of `CONVENTIONS`.
    steps: updates of the whole training.
    tokens_per_step: tokens of one update.

  Returns:
    {'steps', 'tokens', 'fraction'}, the last of the training; None where there is
    no timescale: with `l2`, whose decay depends on the gradients, or without decay.
  """
  if convention == "l2":
    return None
  rate = weight_decay if convention == "independent" else learning_rate * weight_decay
  if rate == 0:
    return None
  return {"steps": 1 / rate, "tokens": tokens_per_step / rate, "fraction": 1 / rate / steps}
