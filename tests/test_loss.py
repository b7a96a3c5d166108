"""Tiled cross-entropy against a dense one in float64 and its gradient by autodiff."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wd_plasticity.models import loss

B, L, D, V = 3, 10, 8, 37
Z_LOSS = 0.01


def inputs(seed=0, lead=()):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(*lead, B, L, D)).astype(np.float32)
  w = rng.normal(size=(*lead, D, V)).astype(np.float32)
  targets = rng.integers(V, size=(*lead, B, L)).astype(np.int32)
  weights = (rng.random((*lead, B, L)) * (rng.random((*lead, B, L)) > 0.3)).astype(np.float32)
  return x, w, targets, weights


def dense_losses(x, w, targets):
  """Cross-entropy and logsumexp of each token, numpy float64."""
  logits = x.astype(np.float64) @ w.astype(np.float64)
  top = logits.max(-1, keepdims=True)
  lse = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
  return lse - np.take_along_axis(logits, targets[..., None], -1)[..., 0], lse


def dense_total(x, w, targets, weights, z_loss):
  logits = jnp.einsum("bld,dv->blv", x, w)
  logp = jax.nn.log_softmax(logits)
  nll = -jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
  return jnp.sum(weights * (nll + z_loss * jax.nn.logsumexp(logits, -1) ** 2))


def tiled_total(x, w, targets, weights, z_loss=Z_LOSS, tile_tokens=9):
  return sum(loss.next_token_loss(x, w, targets, weights, z_loss=z_loss, tile_tokens=tile_tokens))


# One tile; tiles of 1, 3 (the last shorter) and 5 positions; fewer tokens than rows.
TILES = [0, 1, 3, 9, 15, 1000]


def test_values():
  x, w, targets, weights = inputs()
  nll, lse = dense_losses(x, w, targets)
  for tile_tokens in TILES:
    loss_sum, z_sum = jax.jit(functools.partial(
        loss.next_token_loss, z_loss=Z_LOSS, tile_tokens=tile_tokens))(x, w, targets, weights)
    assert loss_sum.dtype == z_sum.dtype == jnp.float32
    np.testing.assert_allclose(loss_sum, (weights * nll).sum(), rtol=2e-6)
    np.testing.assert_allclose(z_sum, Z_LOSS * (weights * lse**2).sum(), rtol=2e-6)
    np.testing.assert_allclose(
        jax.jit(functools.partial(loss.token_losses, tile_tokens=tile_tokens))(x, w, targets),
        nll, atol=5e-6)


@pytest.mark.parametrize("z_loss", [0.0, Z_LOSS])
def test_gradients(z_loss):
  arrays = inputs()
  with jax.enable_x64(True):
    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    expected_value, expected = jax.value_and_grad(
        functools.partial(dense_total, z_loss=z_loss), (0, 1, 3))(*wide)
  for tile_tokens in TILES:
    value, grads = jax.jit(jax.value_and_grad(functools.partial(
        tiled_total, z_loss=z_loss, tile_tokens=tile_tokens), (0, 1, 3)))(*arrays)
    np.testing.assert_allclose(value, expected_value, rtol=2e-6)
    for got, want in zip(grads, expected, strict=True):
      np.testing.assert_allclose(got, want, atol=1e-5)


def test_gradient_scales_with_the_cotangent():
  arrays = inputs()
  one = jax.grad(tiled_total, (0, 1))(*arrays)
  mean = jax.grad(lambda *a: tiled_total(*a) / 7.0, (0, 1))(*arrays)
  for a, b in zip(one, mean, strict=True):
    np.testing.assert_allclose(a / 7.0, b, rtol=1e-6, atol=1e-8)


def test_loss_without_gradient_equals_the_one_with():
  arrays = inputs()
  np.testing.assert_allclose(
      tiled_total(*arrays), jax.value_and_grad(tiled_total)(*arrays)[0], rtol=1e-6)


def test_large_logits_stay_finite():
  x, w, targets, weights = inputs()
  value, grads = jax.value_and_grad(tiled_total, (0, 1))(x * 100, w, targets, weights)
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)
  np.testing.assert_allclose(value, dense_total(x * 100, w, targets, weights, Z_LOSS), rtol=1e-5)


def test_bfloat16_inputs_keep_float32_sums_and_weight_gradients():
  x, w, targets, weights = inputs()
  x16 = jnp.asarray(x, jnp.bfloat16)
  w16 = np.asarray(jnp.asarray(w, jnp.bfloat16), np.float32)
  nll, lse = dense_losses(np.asarray(x16, np.float32), w16, targets)
  value, (dx, dw) = jax.jit(jax.value_and_grad(tiled_total, (0, 1)))(x16, w, targets, weights)
  # Exact products of bfloat16 inputs: only the accumulation rounds.
  np.testing.assert_allclose(value, (weights * (nll + Z_LOSS * lse**2)).sum(), rtol=2e-6)
  assert dx.dtype == jnp.bfloat16 and dw.dtype == jnp.float32
  expected = jax.grad(dense_total, (0, 1))(x, w, targets, weights, Z_LOSS)
  np.testing.assert_allclose(dx.astype(np.float32), expected[0], atol=0.03)
  np.testing.assert_allclose(dw, expected[1], atol=0.03)


def test_logits_are_never_whole():
  """No array of the compiled program has B * L * V elements, and each product appears once."""
  x, w, targets, weights = inputs()
  text = jax.jit(jax.grad(tiled_total, (0, 1))).lower(x, w, targets, weights).as_text()
  assert f"tensor<{B}x3x{V}xf32>" in text  # a tile of 9 tokens: 3 rows of 3
  assert f"{B}x{L}x{V}x" not in text
  # Logits, dx and dw in the loop and again in the shorter last tile.
  assert text.count("stablehlo.dot_general") == 6


def test_vmapped_members():
  members = inputs(lead=(2,))
  step = jax.value_and_grad(tiled_total, (0, 1))
  together = jax.jit(jax.vmap(step, spmd_axis_name="sweep"))(*members)
  for m in range(2):
    alone = jax.jit(step)(*(a[m] for a in members))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
      np.testing.assert_allclose(a, b[m], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices "
                    "(XLA_FLAGS=--xla_force_host_platform_device_count=2)")
def test_sharded_batch():
  mesh = Mesh(mesh_utils.create_device_mesh((2,), jax.devices()[:2]), ("data",),
              axis_types=(AxisType.Auto,))
  x, w, targets, weights = (np.concatenate([a, a]) if i != 1 else a
                            for i, a in enumerate(inputs()))
  expected = jax.value_and_grad(tiled_total, (0, 1))(x, w, targets, weights)
  rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
  got = jax.jit(jax.value_and_grad(tiled_total, (0, 1)),
                in_shardings=(rows, whole, rows, rows))(x, w, targets, weights)
  assert got[1][0].sharding.is_equivalent_to(rows, 3)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
