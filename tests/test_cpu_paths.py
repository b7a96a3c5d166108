"""The formulations made for CPUs against plain ones: attention in blocks, products, SwiGLU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wd_plasticity.models import attention, decoder, layers
from wd_plasticity.models.config import ModelConfig


def relative_error(got, want):
  got, want = (np.concatenate([np.asarray(t, np.float64).ravel() for t in jax.tree.leaves(tree)])
               for tree in (got, want))
  return np.linalg.norm(got - want) / np.linalg.norm(want)


def attention_and_gradients(implementation, dtype, kv_heads, packed, length=192):
  rng = np.random.default_rng(0)
  q = rng.normal(size=(2, length, 4, 8))
  k, v = rng.normal(size=(2, 2, length, kv_heads, 8))
  weights = rng.normal(size=q.shape).astype(np.float32)
  ids = np.cumsum(rng.random((2, length)) < 0.05, axis=1).astype(np.int32) if packed else None

  def total(q, k, v):
    y = attention.attend(q, k, v, segment_ids_BxL=ids, implementation=implementation)
    return jnp.sum(y.astype(jnp.float32) * weights), y
  # Rounded here, so that the dtypes of the products are all that differs.
  q, k, v = (jnp.asarray(t, jnp.bfloat16).astype(dtype) for t in (q, k, v))
  (_, y), grads = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
  return (y, *grads)


@pytest.mark.parametrize("length", [192, 100, 1])  # three blocks, one, one
@pytest.mark.parametrize("kv_heads, packed", [(4, False), (2, True), (1, False)])
def test_blocks_in_float32(kv_heads, packed, length):
  args = (jnp.float32, kv_heads, packed, length)
  for got, want in zip(attention_and_gradients("blocks", *args),
                       attention_and_gradients("plain", *args), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("kv_heads, packed", [(4, False), (2, True)])
def test_blocks_in_bfloat16(kv_heads, packed):
  exact = attention_and_gradients("plain", jnp.float32, kv_heads, packed)
  for got, want in zip(attention_and_gradients("blocks", jnp.bfloat16, kv_heads, packed), exact,
                       strict=True):
    assert got.dtype == jnp.bfloat16
    assert relative_error(got, want) < 6e-3  # bfloat16 has a relative spacing of 2**-8 to 2**-7


def test_bfloat16_products_round_inputs_and_outputs_only():
  rng = np.random.default_rng(0)
  x, weights = rng.normal(size=(2, 5, 24)), rng.normal(size=(2, 5, 32))
  x16 = jnp.asarray(x, jnp.bfloat16)
  kernels = [jnp.asarray(rng.normal(size=(24, n)), jnp.float32) for n in (32, 8)]
  y16 = jnp.asarray(weights, jnp.bfloat16)
  ys, pull = jax.vjp(lambda x, ws: layers.matmuls(x, ws, jnp.bfloat16), x16, kernels)
  dx, dkernels = pull((y16, y16[..., :8]))
  x64, g64 = np.asarray(x16, np.float64), np.asarray(y16, np.float64)
  w64 = [np.asarray(w.astype(jnp.bfloat16), np.float64) for w in kernels]
  assert all(y.dtype == jnp.bfloat16 for y in ys) and dx.dtype == jnp.bfloat16
  for y, w in zip(ys, w64, strict=True):
    np.testing.assert_allclose(np.asarray(y, np.float64), x64 @ w, rtol=2**-8, atol=1e-5)
  np.testing.assert_allclose(np.asarray(dx, np.float64), g64 @ w64[0].T + g64[..., :8] @ w64[1].T,
                             rtol=2**-8, atol=1e-4)
  for dw, g in zip(dkernels, (g64, g64[..., :8]), strict=True):
    assert dw.dtype == jnp.float32
    np.testing.assert_allclose(dw, np.einsum("bli,blo->io", x64, g), rtol=1e-5, atol=1e-5)


def test_swiglu_is_its_plain_formula():
  gate, up, dy = np.random.default_rng(0).normal(scale=3, size=(3, 4, 16)).astype(np.float32)
  got, pull = jax.vjp(layers.swiglu, gate, up)
  want, pull_plain = jax.vjp(lambda gate, up: gate / (1 + jnp.exp(-gate)) * up, gate, up)
  np.testing.assert_allclose(got, want, rtol=2e-6)
  for a, b in zip(pull(dy), pull_plain(dy), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("members, switches", [
    (0, {}), (0, {"scan_layers": False}), (2, {"remat": "full"})])
def test_every_way_to_run_layers_compiles_and_agrees(switches, members):
  # XLA on CPU can reject a bfloat16 product only when it runs, depending on what it fused.
  def gradients(**fields):
    config = ModelConfig(**dict(
        num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_width=40,
        vocab_size=64, norm_position="pre", qk_norm=False, rope_theta=1e4, norm_eps=1e-5,
        tied_head=False, init="scaled", attention="auto", document_mask=False, scan_layers=True,
        remat="none", compute_dtype="bfloat16") | fields)
    tokens = np.random.default_rng(0).integers(64, size=(2, 128), dtype=np.int32)
    params = decoder.init_params(config, jax.random.key(0))
    f = jax.grad(lambda p: jnp.mean(jnp.square(decoder.hidden_states(p, config, tokens)[..., :5]
                                               .astype(jnp.float32))))
    if members:
      return jax.jit(jax.vmap(f))(jax.tree.map(lambda p: jnp.stack([p] * members), params))
    return jax.jit(f)(params)
  assert relative_error(gradients(**switches),
                        gradients(compute_dtype="float32", attention="plain")) < 0.03
