"""AdamW: trajectories of torch, of plain numpy, and the same under jit and vmap."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from wd_plasticity.config import schedule_section
from wd_plasticity.errors import UserError
from wd_plasticity.optim import adamw
from wd_plasticity.optim import groups as groups_lib
from wd_plasticity.optim.schedules import make_schedule

GOLDEN = Path(__file__).parent / "golden"


def constant(step):
  del step
  return jnp.float32(1.0)


def make(groups, convention="learning_rate", **changes):
  arguments = dict(beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0, convention=convention,
                   learning_rate_schedule=constant, decay_schedule=constant)
  return adamw.make_optimizer(groups, **(arguments | changes))


def golden(convention):
  with np.load(GOLDEN / f"adamw_{convention}.npz", allow_pickle=False) as f:
    flat = dict(f)
  tree = {}
  for prefix in ("params", "noise", "weights", "weight_decay"):
    tree[prefix] = {k.removeprefix(prefix + "/"): flat.pop(k) for k in list(flat)
                    if k.startswith(prefix + "/")}
  return flat, tree


def schedules(flat):
  steps = int(flat["steps"])
  cosine = schedule_section("cosine", f"{int(flat['warmup'])} steps", float(flat["final"]))
  linear = schedule_section("linear", "0%", 0.0)
  return make_schedule(cosine, steps, 1, "s"), make_schedule(linear, steps, 1, "s")


def trajectory(opt, params, noise, curvature, hyper, steps):
  """Weights after each step by name, and the info of each step, stacked."""
  def body(carry, step):
    params, state = carry
    grads = jax.tree.map(lambda w, n: curvature * w + n[step], params, noise)
    updates, state, info = opt.update(grads, state, params, hyper, step)
    params = optax.apply_updates(params, updates)
    return (params, state), (traverse_util.flatten_dict(params, sep="/"), info)

  _, out = jax.lax.scan(body, (params, opt.init(params)), jnp.arange(steps, dtype=jnp.int32))
  return jax.tree.map(np.asarray, out)


def setup(convention, **changes):
  """Optimizer, weights, noise, hyper and file of the golden problem."""
  file = convention if convention != "independent" else "learning_rate"
  flat, tree = golden(file)
  params = traverse_util.unflatten_dict(tree["params"], sep="/")
  noise = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(tree["noise"], sep="/"))
  groups = groups_lib.assign_groups(params)
  rate, decay = schedules(flat)
  beta1, beta2 = (float(b) for b in flat["betas"])
  opt = make(groups, convention, **(dict(
      beta1=beta1, beta2=beta2, eps=float(flat["eps"]), clip_norm=float(flat["clip"]),
      learning_rate_schedule=rate, decay_schedule=decay) | changes))
  by_group = {groups[n]: float(wd) for n, wd in tree["weight_decay"].items()}
  hyper = {"learning_rate": jnp.float32(flat["peak"]),
           "weight_decay": jnp.asarray([by_group[g] for g in opt.group_names], jnp.float32)}
  return opt, params, noise, hyper, flat, tree


@functools.cache
def golden_run(convention, beta2=0.95):
  """Trajectory and info of the golden problem, with what `setup` gives."""
  opt, params, noise, hyper, flat, tree = setup(convention, beta2=beta2)
  if convention == "independent":  # the same strength at the peak: lambda eta
    hyper["weight_decay"] *= hyper["learning_rate"]
  weights, info = trajectory(
      opt, params, noise, float(flat["curvature"]), hyper, int(flat["steps"]))
  steps = jnp.arange(int(flat["steps"]))
  rate = np.asarray(opt.learning_rate_schedule(steps), np.float64)
  decay = np.asarray(opt.decay_schedule(steps), np.float64)
  return opt, hyper, flat, tree, weights, info, rate, decay


def assert_close(got, want, tolerance=1e-5):
  """Relative to the largest entry of each tensor, at every step."""
  assert set(got) == set(want)
  for name, w in want.items():
    axes = tuple(range(1, w.ndim))
    error = np.max(np.abs(got[name] - w), axis=axes) / np.max(np.abs(w), axis=axes)
    assert np.max(error) < tolerance, (name, np.argmax(error), np.max(error))


def numpy_trajectory(convention, params, noise, curvature, wd, eta, rate, decay, steps, *,
                     betas=(0.9, 0.95), eps=1e-8, clip=1.0):
  """The three conventions from their formulas, in float64; flat dicts by name."""
  w = {n: x.astype(np.float64) for n, x in params.items()}
  m = {n: np.zeros_like(x) for n, x in w.items()}
  v = {n: np.zeros_like(x) for n, x in w.items()}
  out = {n: [] for n in w}
  b1, b2 = betas
  for t in range(steps):
    s, d = rate[t], decay[t]
    g = {n: curvature * w[n] + noise[n][t] for n in w}
    norm = np.sqrt(sum(np.sum(x ** 2) for x in g.values()))
    for n in w:
      grad = g[n] * min(1.0, clip / norm)
      if convention == "l2":
        grad = grad + wd[n] * d * w[n]
      m[n] = b1 * m[n] + (1 - b1) * grad
      v[n] = b2 * v[n] + (1 - b2) * grad ** 2
      u = (m[n] / (1 - b1 ** (t + 1))) / (np.sqrt(v[n] / (1 - b2 ** (t + 1))) + eps)
      shrink = {"learning_rate": eta * s * wd[n] * d, "independent": s * wd[n] * d, "l2": 0.0}
      w[n] = (1 - shrink[convention]) * w[n] - eta * s * u
      out[n].append(w[n].copy())
  return {n: np.stack(x) for n, x in out.items()}


@pytest.mark.parametrize("convention", ["learning_rate", "l2"])
def test_golden_torch_trajectory(convention):
  _, _, flat, tree, weights, info, _, _ = golden_run(convention)
  assert_close(weights, tree["weights"])
  np.testing.assert_allclose(info["grad_norm"], flat["grad_norm"], rtol=1e-5)
  clipped = np.mean(flat["grad_norm"] > flat["clip"])
  assert 0.2 < clipped < 0.8  # the problem tells clipping from no clipping


@pytest.mark.parametrize("convention, beta2", [
    ("learning_rate", 0.95), ("independent", 0.95), ("l2", 0.95), ("learning_rate", 0.999)])
def test_numpy_trajectory(convention, beta2):
  opt, hyper, flat, tree, weights, _, rate, decay = golden_run(convention, beta2)
  groups, by_group = opt.groups, dict(zip(opt.group_names, hyper["weight_decay"], strict=True))
  wd = {n: float(by_group[groups[n]]) for n in weights}
  want = numpy_trajectory(convention, tree["params"], tree["noise"],
                          float(flat["curvature"]), wd, float(flat["peak"]), rate, decay,
                          int(flat["steps"]), betas=(0.9, beta2))
  assert_close(weights, want)


@pytest.mark.parametrize("convention, by_hand", [
    # g = 0.5, w = 2, lambda = 0.25, eta = 0.1, s = 0.5; "Adam" is u = 3 g.
    ("learning_rate", -0.05 * (1.5 + 0.5)),
    ("independent", -(0.05 * 1.5 + 0.5 * 0.5)),
    ("l2", -0.05 * 3 * (0.5 + 0.5)),
])
def test_one_step_of_the_chain_by_hand(convention, by_hand):
  grads, params = {"a": jnp.float32(0.5)}, {"a": jnp.float32(2.0)}

  def step(wd):
    chain = adamw.adamw_chain(convention, optax.scale(3), optax.identity(),
                              {"a": jnp.float32(wd)}, 0.05, 0.5)
    return chain.update(grads, chain.init(params), params)[0]["a"]

  np.testing.assert_allclose(step(0.25), by_hand, rtol=1e-6)
  assert step(0.0) == jnp.float32(-0.05) * jnp.float32(1.5)  # exactly no decay


def test_independent_equals_learning_rate_with_decay_over_rate():
  """s_t lambda w = (eta s_t) (lambda / eta) w: equal for any schedule of the rate."""
  opt, params, noise, hyper, flat, _ = setup("independent", learning_rate_schedule=constant)
  wd = hyper["weight_decay"] * 0.02
  curvature = float(flat["curvature"])
  a, _ = trajectory(opt, params, noise, curvature, hyper | {"weight_decay": wd}, 50)
  opt, *_ = setup("learning_rate", learning_rate_schedule=constant)
  b, _ = trajectory(
      opt, params, noise, curvature, hyper | {"weight_decay": wd / hyper["learning_rate"]}, 50)
  assert_close(a, b, 2e-6)


def test_optax_adamw_is_the_learning_rate_convention():
  opt, params, noise, hyper, flat, _ = setup("learning_rate", decay_schedule=constant)
  hyper = hyper | {"weight_decay": jnp.full(len(opt.group_names), 0.7)}
  curvature = float(flat["curvature"])
  got, _ = trajectory(opt, params, noise, curvature, hyper, 50)
  tx = optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adamw(lambda t: float(flat["peak"]) * opt.learning_rate_schedule(t),
                  0.9, 0.95, 1e-8, weight_decay=0.7))

  def body(carry, t):
    params, state = carry
    grads = jax.tree.map(lambda w, n: curvature * w + n[t], params, noise)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), traverse_util.flatten_dict(params, sep="/")

  _, want = jax.lax.scan(body, (params, tx.init(params)), jnp.arange(50))
  assert_close(got, jax.tree.map(np.asarray, want), 2e-6)


def test_zero_gradients_leave_pure_decay():
  """w <- (1 - eta lambda) w, so that 1 / (eta lambda) steps leave about 1/e."""
  opt, params, noise, hyper, *_ = setup(
      "learning_rate", learning_rate_schedule=constant, decay_schedule=constant)
  noise = jax.tree.map(jnp.zeros_like, noise)
  eta, wd = 0.01, 2.0
  hyper = {"learning_rate": jnp.float32(eta),
           "weight_decay": jnp.full(len(opt.group_names), wd, jnp.float32)}
  steps = round(adamw.timescale(eta, wd, "learning_rate", 50, 1)["steps"])
  assert steps == 50
  weights, info = trajectory(opt, params, noise, 0.0, hyper, steps)
  want = traverse_util.flatten_dict(params, sep="/")
  for name, w in weights.items():
    np.testing.assert_allclose(w[-1], want[name] * (1 - eta * wd) ** steps, rtol=1e-5)
    np.testing.assert_allclose(w[-1], want[name] * np.exp(-1), rtol=0.02)
  np.testing.assert_allclose(info["update_ratio"], eta * wd, rtol=1e-5)


@pytest.mark.parametrize("convention", adamw.CONVENTIONS)
def test_info(convention):
  opt, hyper, flat, tree, weights, info, rate, decay = golden_run(convention)
  np.testing.assert_allclose(info["learning_rate"], float(flat["peak"]) * rate, rtol=1e-6)
  shrink = decay * rate if convention == "independent" else decay
  # Absolute in the multiplier: a compiled schedule may end 1e-8 beside its 0.
  largest = float(np.max(hyper["weight_decay"]))
  np.testing.assert_allclose(
      info["weight_decay"], shrink[:, None] * np.asarray(hyper["weight_decay"]), rtol=1e-6,
      atol=1e-7 * largest)
  before = {n: np.concatenate([tree["params"][n][None], w[:-1]]) for n, w in weights.items()}
  for p, group in enumerate(opt.group_names):
    members = [n for n in weights if opt.groups[n] == group]
    old, new = (np.concatenate([x[n].reshape(len(rate), -1) for n in members], axis=1)
                for x in (before, weights))
    norm = np.linalg.norm(old, axis=1)
    update = np.linalg.norm(new - old, axis=1)
    np.testing.assert_allclose(info["weight_norm"][:, p], norm, rtol=1e-5)
    np.testing.assert_allclose(info["update_norm"][:, p], update, rtol=1e-4)
    np.testing.assert_allclose(info["update_ratio"][:, p], update / norm, rtol=1e-4)


def test_zero_weights_have_ratio_zero():
  params = {"head": {"kernel": jnp.zeros((2, 3))}}
  opt = make(groups_lib.assign_groups(params))
  hyper = {"learning_rate": jnp.float32(0.1), "weight_decay": jnp.ones(1)}
  _, _, info = opt.update(jax.tree.map(jnp.ones_like, params), opt.init(params), params, hyper, 0)
  assert info["update_ratio"][0] == 0.0 and info["update_norm"][0] > 0


def adam_state(state):
  (adam,) = [s for s in state if isinstance(s, optax.ScaleByAdamState)]
  return adam


def test_state_mirrors_params_in_float32():
  _, params, *_ = setup("learning_rate")
  opt = make(groups_lib.assign_groups(params))
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  state = opt.init(half)
  for moment in (adam_state(state).mu, adam_state(state).nu):
    assert jax.tree.structure(moment) == jax.tree.structure(params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(moment))
  hyper = {"learning_rate": jnp.float32(0.1), "weight_decay": jnp.ones(len(opt.group_names))}
  _, after, _ = jax.jit(opt.update)(half, state, params, hyper, 0)  # gradients in bfloat16
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state)
  assert int(adam_state(after).count) == 1


@pytest.mark.parametrize("convention", adamw.CONVENTIONS)
def test_sweeping_hyper_compiles_once(convention):
  opt, params, noise, hyper, *_ = setup(convention)
  update = jax.jit(opt.update)
  state = opt.init(params)
  grads = jax.tree.map(lambda n: n[0], noise)
  seen = set()
  for step, factor in enumerate((0.0, 0.1, 1.0, 10.0)):
    h = jax.tree.map(lambda x, k=factor: x * jnp.float32(k), hyper)
    updates, state, _ = update(grads, state, params, h, jnp.int32(step))
    seen.add(float(jnp.sum(updates["embed"]["embedding"])))
  assert update._cache_size() == 1
  assert len(seen) == 4


@pytest.mark.parametrize("convention", adamw.CONVENTIONS)
def test_vmapped_members_equal_single_ones(convention):
  opt, params, noise, hyper, *_ = setup(convention)
  members = [jax.tree.map(lambda x, k=k: x * jnp.float32(k), hyper) for k in (0.0, 0.3, 3.0)]
  starts = [jax.tree.map(lambda x, k=k: x * jnp.float32(1 + 0.1 * k), params) for k in range(3)]

  def stack(*xs):
    return jnp.stack(xs)

  def run(params, hyper):
    state = opt.init(params)

    def body(carry, step):
      params, state = carry
      # A large and a small gradient in turn, so that members clip apart.
      grads = jax.tree.map(lambda w, n: w * (step % 2) + n[step], params, noise)
      updates, state, info = opt.update(grads, state, params, hyper, step)
      return (optax.apply_updates(params, updates), state), info
    return jax.lax.scan(body, (params, state), jnp.arange(10, dtype=jnp.int32))

  together = jax.jit(jax.vmap(run))(jax.tree.map(stack, *starts), jax.tree.map(stack, *members))
  for i, (start, member) in enumerate(zip(starts, members, strict=True)):
    alone = jax.jit(run)(start, member)
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-5, atol=2e-7),
                 together, alone)


def test_refusals():
  groups = {"head/kernel": "head"}
  with pytest.raises(UserError, match="choose one of learning_rate, independent, l2"):
    make(groups, "coupled")
  for name, value in (("beta1", 1.0), ("beta2", -0.1), ("eps", -1e-8), ("clip_norm", -1.0),
                      ("clip_norm", float("nan"))):
    with pytest.raises(UserError, match=f"optim.{name}="):
      make(groups, **{name: value})


@pytest.mark.parametrize("rate, steps, tokens, row", [
    # Peak learning rate, updates, tokens per update; tau / run for wd .1 .3 .5 1 3 10.
    (2.5e-4, 9537, 512 * 2048, (4.19, 1.40, 0.84, 0.42, 0.14, 0.04)),
    (2.0e-4, 19073, 512 * 2048, (2.62, 0.87, 0.52, 0.26, 0.09, 0.03)),
    (1.5e-4, 38147, 1024 * 2048, (1.75, 0.58, 0.35, 0.17, 0.06, 0.02)),
])
def test_timescale_of_the_paper(rate, steps, tokens, row):
  for wd, want in zip((0.1, 0.3, 0.5, 1.0, 3.0, 10.0), row, strict=True):
    tau = adamw.timescale(rate, wd, "learning_rate", steps, tokens)
    assert round(tau["fraction"], 2) == want
    assert tau["steps"] == pytest.approx(1 / (rate * wd))
    assert tau["tokens"] == pytest.approx(tau["steps"] * tokens)
    same = adamw.timescale(rate, rate * wd, "independent", steps, tokens)
    assert same == pytest.approx(tau)


def test_no_timescale():
  assert adamw.timescale(1e-3, 0.1, "l2", 100, 1) is None
  assert adamw.timescale(1e-3, 0.0, "learning_rate", 100, 1) is None
  assert adamw.timescale(1e-3, 0.0, "independent", 100, 1) is None
