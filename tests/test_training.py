"""The compiled step: meshes, stacked members, accumulation, failing members."""

import jax
import numpy as np
import optax
import pytest
import tiny

from wd_plasticity.plan import make_plan
from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training.step import Program, StepOptions

BATCH, LENGTH, STEPS = 8, 32, 4
_PLAIN = StepOptions()


def _config(**mesh):
  config = tiny.tiny_config("nowhere")
  config.model.update(num_layers=2, num_kv_heads=2, vocab_size=260)
  config.mesh.update(dict(sweep=1, data=1, fsdp=1, tensor=1) | mesh)
  return config


def _program(config, num_members, options):
  sizes = mesh_lib.axis_sizes(config.mesh, int(np.prod([config.mesh[a] for a in mesh_lib.AXES])))
  devices = np.array(jax.devices()[:int(np.prod(list(sizes.values())))])
  mesh = jax.sharding.Mesh(devices.reshape(tuple(sizes.values())), mesh_lib.AXES)
  plan = make_plan(config, devices.size)
  return plan, Program(plan.model, plan.optimizer, options, mesh, num_members)


def _losses(config, decays=(0.1,), options=_PLAIN, learning_rates=None, steps=STEPS):
  """Losses [steps, M] and the last state of members that differ in weight decay."""
  m = len(decays)
  plan, program = _program(config, m, options)
  state = program.init(np.zeros(m, np.int32))
  groups = len(plan.optimizer.group_names)
  rates = learning_rates or [1e-2] * m
  hyper = program.hyper(rates, np.tile(np.array(decays)[:, None], (1, groups)))
  place = mesh_lib.BatchPlacer(program.mesh, m, BATCH)
  losses = []
  for step in range(steps):
    tokens = np.random.default_rng(step).integers(0, 257, (BATCH, LENGTH + 1)).astype(np.int32)
    local = np.broadcast_to(tokens[place.rows],
                            (len(place.members), len(place.rows), LENGTH + 1))
    state, metrics = program.train_step(state, hyper, place(np.ascontiguousarray(local)))
    losses.append(jax.device_get(metrics["loss"]))
  return np.array(losses), state


@pytest.fixture(scope="module")
def one_device():
  return _losses(_config())[0]


@pytest.mark.parametrize("mesh", [
    dict(data=8), dict(fsdp=8), dict(tensor=2), dict(data=2, fsdp=2, tensor=2),
], ids=str)
def test_meshes_give_the_losses_of_one_device(one_device, mesh):
  losses, _ = _losses(_config(**mesh))
  np.testing.assert_allclose(losses, one_device, atol=1e-5, rtol=0)


def test_accumulated_gradients_give_the_same_losses(one_device):
  losses, _ = _losses(_config(data=2), options=StepOptions(accumulate_steps=2))
  np.testing.assert_allclose(losses, one_device, atol=1e-5, rtol=0)


def test_members_are_the_same_stacked_sharded_or_alone(one_device):
  decays = (0.1, 0.0, 1.0, 10.0)
  stacked, _ = _losses(_config(), decays)
  sharded, _ = _losses(_config(sweep=2, data=2, tensor=2), decays)
  np.testing.assert_allclose(stacked[:, :1], one_device, atol=1e-5, rtol=0)
  np.testing.assert_allclose(sharded, stacked, atol=1e-5, rtol=0)
  assert abs(stacked[-1, 3] - stacked[-1, 1]) > 1e-3  # decay does something


def test_a_member_that_is_not_finite_stops_alone(one_device):
  losses, state = _losses(_config(), (0.1, 0.1), learning_rates=[1e-2, 1e38])
  np.testing.assert_allclose(losses[:, :1], one_device, atol=1e-5, rtol=0)
  failed = jax.device_get(state["failed_at"])
  assert failed[0] == -1 and 1 <= failed[1] <= STEPS
  assert all(np.isfinite(x[1]).all() for x in jax.tree.leaves(jax.device_get(state["params"])))
  assert jax.device_get(state["step"]).tolist() == [STEPS, failed[1] - 1]


def test_every_parameter_is_split_on_a_mixed_mesh():
  _, program = _program(_config(fsdp=2, tensor=2), 1, StepOptions())
  state = program.init(np.zeros(1, np.int32))
  (adam,) = [x for x in state["opt_state"] if isinstance(x, optax.ScaleByAdamState)]
  for tree in (state["params"], adam.mu, adam.nu):
    for name, leaf in mesh_lib.flat_names(tree).items():
      share = leaf.addressable_shards[0].data.size / leaf.size
      assert share == (1.0 if name.endswith("scale") else 0.25), name


def test_a_process_brings_only_the_rows_of_its_devices():
  mesh = jax.make_mesh((2, 2, 2, 1), mesh_lib.AXES,
                       axis_types=(jax.sharding.AxisType.Auto,) * 4)
  place = mesh_lib.BatchPlacer(mesh, 4, 8)
  assert place.members.tolist() == [0, 1, 2, 3] and place.rows.tolist() == list(range(8))
  tokens = np.arange(4 * 8 * 3).reshape(4, 8, 3)
  np.testing.assert_array_equal(np.asarray(place(tokens)), tokens)


def test_documents_are_masked_when_asked_for():
  """A token must not see what stands before the end of the last document."""
  config = _config()
  plan, program = _program(config, 1, StepOptions(end_of_document=7))
  params = jax.tree.map(lambda x: x[0], program.init(np.zeros(1, np.int32))["params"])
  first = np.random.default_rng(0).integers(10, 200, (1, LENGTH + 1)).astype(np.int32)
  first[0, 10] = 7
  second = first.copy()
  second[0, :10] += 1  # another first document
  weights = np.zeros((1, LENGTH), np.float32)
  weights[:, 11:] = 1  # targets of the second document
  sums = [program._sums(params, t[:, :-1], t[:, 1:], weights, 0.0)[0] for t in (first, second)]
  np.testing.assert_allclose(sums[0], sums[1], rtol=1e-6)
  _, whole = _program(config, 1, StepOptions())
  sums = [whole._sums(params, t[:, :-1], t[:, 1:], weights, 0.0)[0] for t in (first, second)]
  assert abs(sums[0] - sums[1]) > 1e-4
