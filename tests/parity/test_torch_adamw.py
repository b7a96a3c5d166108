"""Trajectories of torch.optim.AdamW and Adam, run side by side; needs torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

import write_golden_adamw as reference  # noqa: E402

from wd_plasticity.config import schedule_section  # noqa: E402
from wd_plasticity.optim import adamw  # noqa: E402
from wd_plasticity.optim import groups as groups_lib  # noqa: E402
from wd_plasticity.optim.schedules import make_schedule  # noqa: E402


def nested(arrays, prefix):
  tree = {}
  for name in reference.SHAPES:
    *parents, leaf = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = jnp.asarray(arrays[f"{prefix}/{name}"])
  return tree


def our_trajectory(arrays, convention, betas=reference.BETAS):
  params, noise = nested(arrays, "params"), nested(arrays, "noise")
  groups = groups_lib.assign_groups(params)
  steps = reference.STEPS
  opt = adamw.make_optimizer(
      groups, beta1=betas[0], beta2=betas[1], eps=reference.EPS,
      clip_norm=reference.CLIP, convention=convention,
      learning_rate_schedule=make_schedule(
          schedule_section("cosine", f"{reference.WARMUP} steps", reference.FINAL), steps, 1, "s"),
      decay_schedule=make_schedule(schedule_section("linear", "0%", 0.0), steps, 1, "s"))
  by_group = {groups[n]: wd for n, wd in reference.WEIGHT_DECAY.items()}
  hyper = {"learning_rate": jnp.float32(reference.PEAK),
           "weight_decay": jnp.asarray([by_group[g] for g in opt.group_names], jnp.float32)}

  def body(carry, step):
    params, state = carry
    grads = jax.tree.map(lambda w, n: reference.CURVATURE * w + n[step], params, noise)
    updates, state, info = opt.update(grads, state, params, hyper, step)
    params = optax.apply_updates(params, updates)
    return (params, state), (params, info["grad_norm"])

  start = (params, opt.init(params))
  _, (weights, norms) = jax.jit(lambda c: jax.lax.scan(body, c, jnp.arange(steps)))(start)
  flat = {f"weights/{groups_lib.name_of(path)}": np.asarray(x)
          for path, x in jax.tree_util.tree_leaves_with_path(weights)}
  return flat | {"grad_norm": np.asarray(norms)}


def assert_trajectories_close(got, want, tolerance):
  """Each step of each tensor, relative to its largest entry."""
  assert set(got) == set(want)
  for name, w in want.items():
    axes = tuple(range(1, w.ndim))
    error = np.max(np.abs(got[name] - w), axis=axes) / np.max(np.abs(w), axis=axes)
    assert np.max(error) < tolerance, (name, int(np.argmax(error)), float(np.max(error)))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999)])
@pytest.mark.parametrize("convention", ["learning_rate", "l2"])
def test_trajectory(convention, betas, seed):
  arrays = reference.problem(seed)
  want = reference.torch_trajectory(arrays, reference.OPTIMIZERS[convention], betas)
  assert_trajectories_close(our_trajectory(arrays, convention, betas), want, 1e-5)


@pytest.mark.parametrize("convention", ["learning_rate", "l2"])
def test_golden_file_is_what_torch_computes(convention):
  with np.load(reference.GOLDEN / f"adamw_{convention}.npz", allow_pickle=False) as f:
    golden = dict(f)
  arrays = reference.problem(seed=0)
  now = arrays | reference.torch_trajectory(arrays, reference.OPTIMIZERS[convention])
  assert set(golden) == set(now) | set(reference.settings())
  for name, value in reference.settings().items():
    np.testing.assert_array_equal(golden[name], value)
  assert_trajectories_close({n: golden[n] for n in now}, now, 1e-6)


def test_wrong_convention_is_seen():
  arrays = reference.problem(seed=0)
  want = reference.torch_trajectory(arrays, torch.optim.Adam)
  with pytest.raises(AssertionError):
    assert_trajectories_close(our_trajectory(arrays, "learning_rate"), want, 1e-2)
