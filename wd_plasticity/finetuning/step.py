"""The compiled programs of fine-tuning: start, train step and loss of stacked members.

Full fine-tuning trains the parameters themselves. With LoRA the state holds the factors,
and the parameters stay beside it as `frozen`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wd_plasticity.finetuning import lora
from wd_plasticity.models import decoder, loss
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import adamw
from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class TuneOptions:
  """What is compiled into the step beside model and optimizer.

  Attributes:
    lora_rank: 0 trains all parameters.
    lora_alpha: the update is scaled by alpha / rank.
    lora_targets: kernels that have an update.
    replay_fraction: share of the objective that is pretraining loss on replayed records.
    replay_rows: how many records are replayed in a step, the first ones of those given; 0: all.
    end_of_document: as in pretraining, for replayed records.
    micro_batches: that the rows of a step are divided into; the gradient is that of the
      whole batch, in which every target weighs the same.
  """
  lora_rank: int = 0
  lora_alpha: float = 16.0
  lora_targets: tuple[str, ...] = lora.TARGETS
  replay_fraction: float = 0.0
  replay_rows: int = 0
  end_of_document: int | None = None
  micro_batches: int = 1


def response_sums(params: Any, model: ModelConfig, batch: dict) -> tuple[jax.Array, jax.Array]:
  """Sum of the losses of the targets of a batch, in nats, and their number.

  Args:
    params: of one member.
    model: its sizes.
    batch: of `batches.lay_out`.
  """
  x_RxLxD = decoder.hidden_states(params, model, batch["inputs"], batch["segments"])
  x_RxTxD = jnp.take_along_axis(x_RxLxD, batch["positions"][..., None], axis=1)
  total, _ = loss.next_token_loss(
      x_RxTxD, decoder.head_kernel(params, model), batch["targets"], batch["weights"])
  return total, jnp.sum(batch["weights"])


class TuneProgram:
  """Jitted functions over M stacked members on a mesh."""

  def __init__(self, model: ModelConfig, optimizer: adamw.Optimizer, options: TuneOptions,
               mesh: Mesh, num_members: int):
    self.model, self.optimizer, self.options = model, optimizer, options
    self.mesh, self.num_members = mesh, num_members
    params = decoder.param_shapes(model)
    shapes = jax.eval_shape(self._start_member, params, np.int32(0))
    state = mesh_lib.shardings(mesh, mesh_lib.stacked(step_lib.state_specs(shapes)))
    replicated = mesh_lib.sharding(mesh, P())
    over = lambda fn, axes: mesh_lib.over_members(fn, axes, num_members)
    self.start = jax.jit(over(self._start_member, (0, 0)), out_shardings=state)
    self.train_step = jax.jit(over(self._train_member, (0, 0, 0, 0, 0)), donate_argnums=0,
                              out_shardings=(state, replicated))
    merged = mesh_lib.stacked(mesh_lib.parameter_specs(params))
    self._merged = jax.jit(over(self._parameters, (0, 0)),
                           out_shardings=mesh_lib.shardings(mesh, merged))

  @property
  def row_shares(self) -> int:
    """The rows of a batch must be a multiple of this."""
    return mesh_lib.row_shares(self.mesh) * self.options.micro_batches

  @property
  def uses_lora(self) -> bool:
    return self.options.lora_rank > 0

  def parameters(self, state: dict, frozen: Any) -> Any:
    """The parameters [M, ...] that a state means, for evaluation."""
    return self._merged(state["params"], frozen) if self.uses_lora else state["params"]

  def hyper(self, learning_rates: Sequence[float], weight_decays: Sequence) -> dict:
    """Learning rates [M] and decays [M, P] on the devices."""
    return step_lib.place_hyper(self.mesh, learning_rates, weight_decays)

  def put(self, array: np.ndarray, spec: P) -> jax.Array:
    return mesh_lib.put(self.mesh, array, spec)

  def _start_member(self, params, seed):
    if self.uses_lora:
      params = lora.init(params, self.options.lora_rank, self.options.lora_targets,
                         jax.random.key(seed))
    return {"params": params, "opt_state": self.optimizer.init(params), "step": jnp.int32(0),
            "failed_at": jnp.int32(-1)}

  def _parameters(self, trained, frozen):
    if not self.uses_lora:
      return trained
    return lora.merge(frozen, trained, self.options.lora_alpha / self.options.lora_rank)

  def _train_member(self, state, frozen, hyper, batch, replay):
    mean, grads = self._loss_and_grads(state["params"], frozen, batch, replay)
    new, info = step_lib.take_step(self.optimizer, state, hyper, mean, grads)
    return new, {"loss": mean, "learning_rate": info["learning_rate"],
                 "grad_norm": info["grad_norm"], "failed_at": info["failed_at"]}

  def _loss_and_grads(self, trained, frozen, batch, replay):
    """Mean loss of the targets of a batch, and the gradient of the objective."""
    # Over the whole batch: micro-batches have more targets or fewer.
    count = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
    share = self.options.replay_fraction
    rows = {"batch": batch}
    if share:
      wanted = self.options.replay_rows or replay.shape[0]
      # Rows that only fill up have no weight.
      rows["replay"] = replay, (jnp.arange(replay.shape[0]) < wanted).astype(jnp.float32)

    def objective(trained, rows):
      params = self._parameters(trained, frozen)
      mean = response_sums(params, self.model, rows["batch"])[0] / count
      if not share:
        return mean, mean
      replayed = self._replay_sum(params, *rows["replay"]) / (wanted * (replay.shape[1] - 1))
      return (1 - share) * mean + share * replayed, mean

    def mean_and_grads(rows):
      (_, mean), grads = jax.value_and_grad(objective, has_aux=True)(trained, rows)
      return mean, grads

    return step_lib.sum_over_micro_batches(mean_and_grads, rows, self.options.micro_batches)

  def _replay_sum(self, params, tokens_BxL, weights_B):
    """Sum of the losses of pretraining records."""
    inputs, targets = tokens_BxL[:, :-1], tokens_BxL[:, 1:]
    segments = step_lib.document_ids(inputs, self.options.end_of_document)
    x_BxLxD = decoder.record_states(params, self.model, inputs, segments)
    weights = jnp.broadcast_to(weights_B[:, None], targets.shape)
    return loss.next_token_loss(x_BxLxD, decoder.head_kernel(params, self.model), targets,
                                weights)[0]
