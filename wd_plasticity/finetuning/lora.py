"""LoRA (Hu et al. 2021, 2106.09685): low-rank updates of chosen kernels.

The kernel that a step uses is W + (alpha / rank) A B. It is formed anew in every step,
which keeps the decoder free of a second way to multiply; memory is saved where it
counts, in the moments of the optimizer.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wd_plasticity.errors import UserError
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import groups

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
_PARENT = {name: "attention" for name in TARGETS[:4]} | {name: "feed_forward"
                                                         for name in TARGETS[4:]}


def check(rank: int, targets: Sequence[str]) -> None:
  """Refuses impossible settings.

  Raises:
    UserError: a negative rank, or targets that are none or unknown.
  """
  if rank < 0:
    raise UserError(f"lora.rank={rank} must be 0 (no LoRA) or more.")
  unknown = [t for t in targets if t not in TARGETS]
  if unknown or (rank and not targets):
    raise UserError(f"lora.targets={tuple(targets)!r} must be some of {', '.join(TARGETS)}.")


def init(params: Any, rank: int, targets: Sequence[str], key: jax.Array) -> dict[str, Any]:
  """The trainable factors of one model: A uniform as in peft, B zero, so nothing changes yet.

  Args:
    params: the parameters that are adapted; only shapes are read.
    rank: of the update.
    targets: some of `TARGETS`.
    key: of the random numbers.

  Returns:
    layers/<part>/<target>/{lora_a [N, I, rank], lora_b [N, rank, O]}.
  """
  factors: dict[str, Any] = {"layers": {}}
  for target in targets:
    part = _PARENT[target]
    n, inputs, outputs = params["layers"][part][target]["kernel"].shape
    key, own = jax.random.split(key)
    bound = 1 / math.sqrt(inputs)  # peft's kaiming_uniform with a = sqrt(5)
    factors["layers"].setdefault(part, {})[target] = {
        "lora_a": jax.random.uniform(own, (n, inputs, rank), jnp.float32, -bound, bound),
        "lora_b": jnp.zeros((n, rank, outputs), jnp.float32)}
  return factors


def trained_shapes(model: ModelConfig, rank: int, targets: Sequence[str]) -> Any:
  """Shapes of what is trained: all parameters, or with a rank the factors."""
  shapes = decoder.param_shapes(model)
  if not rank:
    return shapes
  return jax.eval_shape(lambda: init(shapes, rank, targets, jax.random.key(0)))


def trained_groups(model: ModelConfig, rank: int, targets: Sequence[str],
                   rules: Sequence[str]) -> dict[str, str]:
  """The parameter group of everything that is trained; factors are the group `lora`."""
  own = (r".*/lora_[ab]=lora",) if rank else ()
  return groups.assign_groups(trained_shapes(model, rank, targets), (*rules, *own))


def merge(params: Any, factors: Any, scale: float) -> Any:
  """The parameters with `scale` * A B added to the adapted kernels."""
  layers = dict(params["layers"])
  for part, targets in factors["layers"].items():
    layers[part] = dict(layers[part])
    for target, f in targets.items():
      update = jnp.einsum("nir,nro->nio", f["lora_a"], f["lora_b"])
      layers[part][target] = {"kernel": layers[part][target]["kernel"] + scale * update}
  return {**params, "layers": layers}


def is_factor(name: str) -> bool:
  """Whether a parameter's name is that of a LoRA factor."""
  return re.search(r"/lora_[ab]$", name) is not None
