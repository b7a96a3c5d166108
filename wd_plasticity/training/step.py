"""The compiled programs of pretraining: init, train step and eval step of stacked members.

All members of a chunk share one program. Its arrays have a leading member axis M,
laid on the mesh axis `sweep`; with one member the axis has size 1 and costs nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wd_plasticity.models import decoder, loss
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import adamw
from wd_plasticity.training import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """What is compiled into the train step beside model and optimizer.

  Attributes:
    accumulate_steps: micro-batches whose gradients are averaged before the update.
    z_loss: coefficient of the squared log-partition function in the objective.
    loss_tile_tokens: tokens whose logits exist at once; 0 lets the platform decide.
    end_of_document: token id after which a new document begins, or None to attend
      over whole records.
  """
  accumulate_steps: int = 1
  z_loss: float = 0.0
  loss_tile_tokens: int = 0
  end_of_document: int | None = None


class Program:
  """Jitted functions over a chunk of M members on a mesh.

  State is a dict of arrays with leading axis M: `params`, `opt_state`, `step`
  (updates made, int32) and `failed_at` (step that became non-finite, or -1).
  """

  def __init__(self, model: ModelConfig, optimizer: adamw.Optimizer, options: StepOptions,
               mesh: Mesh, num_members: int):
    self.model, self.optimizer, self.options = model, optimizer, options
    self.mesh, self.num_members = mesh, num_members
    # A tile holds the same share of every device's rows.
    self._tile_tokens = options.loss_tile_tokens or (
        loss.default_tile_tokens() * mesh_lib.row_shares(mesh))
    shapes = jax.eval_shape(lambda: _init_member(model, optimizer, jax.random.key(0)))
    self.member_shapes = shapes
    mesh_lib.check_parameters(shapes["params"], dict(mesh.shape))
    specs = state_specs(shapes)
    self._one = self._place(specs)
    self.state_sharding = self._place(mesh_lib.stacked(specs))
    per_member = self._place(P("sweep"))
    batch = self._place(mesh_lib.BATCH)
    replicated = self._place(P())  # every process reads the metrics of every member
    self.init = jax.jit(
        lambda seeds: jax.vmap(lambda s: _init_member(model, optimizer, jax.random.key(s)))(seeds),
        out_shardings=self.state_sharding)
    self.train_step = jax.jit(
        mesh_lib.over_members(self._train_member, (0, 0, 0), num_members), donate_argnums=0,
        in_shardings=(self.state_sharding, per_member, batch),
        out_shardings=(self.state_sharding, replicated))
    self.eval_step = jax.jit(
        mesh_lib.over_members(self._eval_member, (0, None, None), num_members),
        in_shardings=(self.state_sharding["params"], self._place(mesh_lib.ROWS),
                      self._place(mesh_lib.ROWS)),
        out_shardings=replicated)
    self._slice = jax.jit(lambda state, m: jax.tree.map(lambda x: x[m], state),
                          out_shardings=self._one)
    self._stack = jax.jit(lambda *members: jax.tree.map(lambda *x: jnp.stack(x), *members),
                          out_shardings=self.state_sharding)

  def member(self, state: dict, m: int) -> dict:
    """A copy of the state of member m, as a single model."""
    return self._slice(state, np.int32(m))

  def stack(self, members: list[dict]) -> dict:
    """The inverse of `member`: the state of a chunk from M single states."""
    return self._stack(*members)

  def abstract_member(self) -> dict:
    """Shapes and shardings of the state of one member, to restore a checkpoint into."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        self.member_shapes, self._one)

  def compile(self, batch_size: int, length: int):
    """Compiles the train step ahead of time; returns the executable."""
    def struct(x, s):
      return jax.ShapeDtypeStruct((self.num_members, *x.shape), x.dtype, sharding=s)
    state = jax.tree.map(struct, self.member_shapes, self.state_sharding)
    hyper = self.abstract_hyper()
    tokens = jax.ShapeDtypeStruct((self.num_members, batch_size, length + 1), jnp.int32)
    return self.train_step.lower(state, hyper, tokens).compile()

  def abstract_hyper(self) -> dict:
    m, p = self.num_members, len(self.optimizer.group_names)
    return {"learning_rate": jax.ShapeDtypeStruct((m,), jnp.float32),
            "weight_decay": jax.ShapeDtypeStruct((m, p), jnp.float32)}

  def hyper(self, learning_rates, weight_decays) -> dict:
    """Hyperparameters on the devices: learning rates [M], decay per group [M, P]."""
    return place_hyper(self.mesh, learning_rates, weight_decays)

  def _place(self, specs):
    return mesh_lib.shardings(self.mesh, specs)

  def _train_member(self, state: dict, hyper: dict, tokens_BxL: jax.Array):
    (ce, z), grads = self._loss_and_grads(state["params"], tokens_BxL)
    new, info = take_step(self.optimizer, state, hyper, ce, grads)
    return new, {"loss": ce, "z_loss": z, **info}

  def _loss_and_grads(self, params, tokens_BxL):
    grad_fn = jax.value_and_grad(self._objective, has_aux=True)
    a = self.options.accumulate_steps
    def aux_and_grads(tokens):
      (_, aux), grads = grad_fn(params, tokens)
      return aux, grads
    return jax.tree.map(lambda x: x / a, sum_over_micro_batches(aux_and_grads, tokens_BxL, a))

  def _objective(self, params, tokens_BxL):
    inputs_BxL, targets_BxL = tokens_BxL[:, :-1], tokens_BxL[:, 1:]
    ce, z = self._sums(params, inputs_BxL, targets_BxL, jnp.ones(targets_BxL.shape, jnp.float32),
                       self.options.z_loss)
    ce, z = ce / targets_BxL.size, z / targets_BxL.size
    return ce + z, (ce, z)

  def _sums(self, params, inputs_BxL, targets_BxL, weights_BxL, z_loss):
    segments_BxL = document_ids(inputs_BxL, self.options.end_of_document)
    x_BxLxD = decoder.hidden_states(params, self.model, inputs_BxL, segments_BxL)
    return loss.next_token_loss(
        x_BxLxD, decoder.head_kernel(params, self.model), targets_BxL, weights_BxL,
        z_loss=z_loss, tile_tokens=self._tile_tokens)

  def _eval_member(self, params, tokens_BxL, weights_B):
    """Sum of token losses and of weights over the records of a batch."""
    targets_BxL = tokens_BxL[:, 1:]
    weights_BxL = jnp.broadcast_to(weights_B[:, None], targets_BxL.shape).astype(jnp.float32)
    ce, _ = self._sums(params, tokens_BxL[:, :-1], targets_BxL, weights_BxL, 0.0)
    return ce, jnp.sum(weights_BxL)


def sum_over_micro_batches(fn: Callable, batch: Any, count: int) -> Any:
  """The sum of what `fn` makes of the micro-batches of a batch, one after another.

  Args:
    fn: from a micro-batch to a tree of arrays.
    batch: a tree of arrays [B, ...].
    count: micro-batches, which divides B. Their rows are taken with this stride, so that
      each device keeps its share.
  """
  if count == 1:
    return fn(batch)
  micro = jax.tree.map(
      lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
  shapes = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], micro))
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  add = lambda total, one: (jax.tree.map(jnp.add, total, fn(one)), None)
  return jax.lax.scan(add, zero, micro)[0]


def place_hyper(mesh: Mesh, learning_rates, weight_decays) -> dict:
  """Learning rates [M] and decay per group [M, P] on the devices of their members."""
  values = {"learning_rate": learning_rates, "weight_decay": weight_decays}
  return {k: mesh_lib.put(mesh, np.asarray(v, np.float32), mesh_lib.MEMBERS)
          for k, v in values.items()}


def document_ids(tokens_BxL: jax.Array, end_of_document: int | None) -> jax.Array | None:
  """Ids [B, L] of the documents of packed records; None to attend over whole records."""
  if end_of_document is None:
    return None
  ends = (tokens_BxL == end_of_document).astype(jnp.int32)
  return jnp.cumsum(ends, axis=1) - ends  # the end mark closes its own document


def take_step(optimizer: adamw.Optimizer, state: dict, hyper: dict, loss: jax.Array,
              grads: Any) -> tuple[dict, dict]:
  """One update of one member's state; a step that is not finite is not taken, and none after it.

  Args:
    optimizer: of `adamw.make_optimizer`.
    state: `params`, `opt_state`, `step` and `failed_at`.
    hyper: learning rate and weight decays, see `Optimizer.update`.
    loss: whose gradients these are.
    grads: a tree like the parameters.

  Returns:
    The new state, and what to log: norms, rates and `failed_at`.
  """
  updates, opt_state, info = optimizer.update(
      grads, state["opt_state"], state["params"], hyper, state["step"])
  # A member that has failed keeps its last good state while the others go on.
  good = (jnp.isfinite(loss) & jnp.isfinite(info["grad_norm"])
          & jnp.all(jnp.isfinite(info["update_norm"])) & (state["failed_at"] < 0))
  new = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state,
         "step": state["step"] + 1}
  old = {k: state[k] for k in new}
  failed_at = jnp.where((state["failed_at"] < 0) & ~good, new["step"], state["failed_at"])
  new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
  return new | {"failed_at": failed_at}, info | {"failed_at": failed_at}


def _init_member(model: ModelConfig, optimizer: adamw.Optimizer, key: jax.Array) -> dict[str, Any]:
  params = decoder.init_params(model, key)
  return {"params": params, "opt_state": optimizer.init(params),
          "step": jnp.int32(0), "failed_at": jnp.int32(-1)}


def state_specs(shapes: dict) -> dict:
  """Specs of a single member's state; optimizer moments follow their parameters."""
  specs = mesh_lib.parameter_specs(shapes["params"])
  by_shape = jax.tree.structure(shapes["params"])
  def follow(tree):
    if jax.tree.structure(tree) == by_shape:
      return specs
    if isinstance(tree, jax.ShapeDtypeStruct):
      return P()
    return jax.tree.map(follow, tree, is_leaf=lambda t: t is not tree)
  return {"params": specs, "opt_state": follow(shapes["opt_state"]), "step": P(), "failed_at": P()}
