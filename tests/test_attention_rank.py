"""Spectra of attention products against numpy's SVD of the whole product; measures; program."""

import jax
import numpy as np
import pytest

from wd_plasticity.analysis import attention_rank as ar
from wd_plasticity.interop import transformers_weights
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig, preset_section


@pytest.fixture(autouse=True)
def one_lapack_thread():
  with ar.one_lapack_thread():
    yield


def model(family="llama2", **sizes):
  section = preset_section(family, "0.3m") | dict(
      vocab_size=16, compute_dtype="float32", attention="auto", document_mask=False,
      scan_layers=True, remat="none", num_layers=2, width=48, num_heads=4, num_kv_heads=4,
      head_dim=8, ffn_width=8) | sizes
  return ModelConfig.from_section(section, 16)


def random_params(config, seed=0):
  """Weights with spectra that fall over three orders of magnitude, and gains that are not 1."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
  params = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
  for part in params["layers"]["attention"].values():
    if "kernel" in part:
      part["kernel"] *= rng.permutation(np.geomspace(1, 1e-3, part["kernel"].shape[-1]))
  return params


def full_products(params, config, fold=False):
  """numpy, float64, the whole product of every head: {"qk", "vp"} [N, H, min(K, D)]."""
  attention = params["layers"]["attention"]
  w = {n: np.asarray(attention[n]["kernel"], np.float64)
       for n in ("query", "key", "value", "output")}
  size, group = config.head_dim, config.num_heads // config.num_kv_heads
  found = {"qk": [], "vp": []}
  for n in range(config.num_layers):
    for h in range(config.num_heads):
      q, kv = slice(h * size, (h + 1) * size), slice(h // group * size, (h // group + 1) * size)
      query, key = w["query"][n][:, q], w["key"][n][:, kv]
      if fold:
        query = query @ np.diag(attention["query_norm"]["scale"][n][q].astype(np.float64))
        key = key @ np.diag(attention["key_norm"]["scale"][n][kv].astype(np.float64))
      products = {"qk": query @ key.T, "vp": w["value"][n][:, kv] @ w["output"][n][q]}
      for name, product in products.items():
        found[name].append(np.linalg.svd(product, compute_uv=False)[:min(size, config.width)])
  shape = config.num_layers, config.num_heads, -1
  return {name: np.reshape(values, shape) for name, values in found.items()}


def assert_close(found, expected):
  for name in expected:
    largest = expected[name].max(axis=-1, keepdims=True)
    assert found[name].shape == expected[name].shape
    assert np.abs(found[name] - expected[name]).max() > 0  # float32 against float64
    assert (np.abs(found[name] - expected[name]) / largest).max() < 1e-5


@pytest.mark.parametrize("sizes", [
    dict(), dict(num_kv_heads=2), dict(num_kv_heads=1), dict(width=6, head_dim=8),
    dict(width=200, head_dim=64, num_heads=2, num_kv_heads=1, num_layers=1)],
    ids=["mha", "gqa", "mqa", "heads wider than the model", "wide"])
def test_equals_svd_of_the_whole_product(sizes):
  config = model(**sizes)
  params = random_params(config)
  found = jax.jit(ar.attention_spectra, static_argnums=1)(params, config)
  assert_close(found, full_products(params, config))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_gains_of_the_qk_norm(fold, num_kv_heads):
  config = model("olmo2", num_kv_heads=num_kv_heads)
  params = random_params(config)
  found = ar.attention_spectra(params, config, fold)
  assert_close(found, full_products(params, config, fold))
  other = ar.attention_spectra(params, config, not fold)
  assert not np.allclose(found["qk"], other["qk"], rtol=0.01)
  np.testing.assert_array_equal(found["vp"], other["vp"])


def test_trailing_values_of_a_nearly_singular_product():
  config = model(width=64, head_dim=16, num_heads=1, num_kv_heads=1, num_layers=1)
  params = random_params(config)
  rng = np.random.default_rng(1)
  u = np.linalg.qr(rng.standard_normal((16, 16)))[0]
  for name in ("query", "key"):  # values of the product from 1 to 1e-12
    q = np.linalg.qr(rng.standard_normal((64, 16)))[0]
    params["layers"]["attention"][name]["kernel"][0] = q * np.geomspace(1, 1e-6, 16) @ u.T
  found = np.asarray(ar.query_key_spectra(params, config))[0, 0]
  np.testing.assert_allclose(found, np.geomspace(1, 1e-12, 16), atol=1e-6)


def test_stacked_members_equal_single_ones():
  config = model("olmo2", num_kv_heads=2)
  members = [random_params(config, seed) for seed in (1, 2, 3)]
  stacked = jax.tree.map(lambda *x: np.stack(x), *members)
  fn = lambda p: ar.attention_spectra(p, config, True)
  axes, mapped = fn(stacked), jax.vmap(fn)(stacked)
  for m, params in enumerate(members):
    single = fn(params)
    for name in single:
      np.testing.assert_allclose(axes[name][m], single[name], rtol=2e-6, atol=1e-7)
      np.testing.assert_allclose(mapped[name][m], single[name], rtol=2e-6, atol=1e-7)


def test_zero_weights():
  config = model()
  params = jax.tree.map(np.zeros_like, random_params(config))
  for s in ar.attention_spectra(params, config).values():
    found = ar.measures(s)
    assert set(found) == {"pseudo_rank", "effective_rank", "stable_rank", "participation_ratio",
                          "spectral_norm", "frobenius_norm", "nuclear_norm"}
    for value in found.values():
      np.testing.assert_array_equal(value, np.zeros((2, 4)))


@pytest.mark.parametrize("family", ["llama2", "olmo2"])
def test_imported_weights(family):
  config = model(family)
  params = random_params(config)
  tensors = transformers_weights.to_transformers(params, config)
  imported = transformers_weights.from_transformers(tensors, config)
  # Heads and gains as transformers cuts them: a weight is [outputs, inputs].
  heads = tensors["model.layers.1.self_attn.q_proj.weight"].reshape(4, 8, 48)
  keys = tensors["model.layers.1.self_attn.k_proj.weight"].reshape(4, 8, 48)
  product = heads[2].T.astype(np.float64) @ keys[2]
  expected = np.linalg.svd(product, compute_uv=False)[:8]
  found = np.asarray(ar.attention_spectra(imported, config)["qk"])[1, 2]
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected[0])


# Measures.

def test_measures_of_known_spectra():
  s = np.array([8.0, 4.0, 2.0, 1.0, 1.0])
  found = ar.measures(s)
  p = s / 16
  assert found["pseudo_rank"] == 5  # 15/16 is 93.75 %
  assert found["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
  assert found["effective_rank"] == pytest.approx(2**1.875)  # by hand: entropy of 1.875 bits
  assert found["stable_rank"] == pytest.approx(86 / 64)
  assert found["participation_ratio"] == pytest.approx(86**2 / (4096 + 256 + 16 + 2))
  assert found["spectral_norm"] == 8
  assert found["frobenius_norm"] == pytest.approx(np.sqrt(86))
  assert found["nuclear_norm"] == 16


def test_measures_of_matrices():
  rng = np.random.default_rng(0)
  rank_one = np.outer(rng.standard_normal(9), rng.standard_normal(9))
  matrices = np.stack([np.eye(9), rank_one, 1e-30 * np.eye(9), 1e30 * rank_one])
  s = np.linalg.svd(matrices, compute_uv=False)
  found = ar.measures(s)
  for name in ("pseudo_rank", "effective_rank", "stable_rank", "participation_ratio"):
    np.testing.assert_allclose(found[name], [9, 1, 9, 1], rtol=1e-9)
  np.testing.assert_allclose(found["frobenius_norm"], np.linalg.norm(matrices, axis=(1, 2)))
  np.testing.assert_allclose(found["spectral_norm"], np.linalg.norm(matrices, 2, axis=(1, 2)))
  np.testing.assert_allclose(found["nuclear_norm"], np.linalg.norm(matrices, "nuc", axis=(1, 2)))


@pytest.mark.parametrize("threshold, power, expected", [
    (0.5, 1, 1), (0.75, 1, 2), (0.7500001, 1, 2), (0.751, 1, 3), (0.95, 1, 5), (1.0, 1, 5),
    (0.95, 2, 3), (0.90, 2, 2)])
def test_pseudo_rank(threshold, power, expected):
  # 8, 12, 14, 15, 16 of 16; squares 64, 80, 84, 85, 86 of 86.
  s = np.array([1.0, 8.0, 2.0, 1.0, 4.0])  # any order
  assert ar.pseudo_rank(s, threshold, power) == expected
  assert ar.pseudo_rank(1e-25 * s, threshold, power) == expected


def test_a_tie_is_not_decided_by_rounding():
  rng = np.random.default_rng(0)
  s = 1 + 2e-7 * rng.standard_normal((100, 20))  # equal values as float32 knows them
  np.testing.assert_array_equal(ar.pseudo_rank(s, 0.95), np.full(100, 19))
  assert ar.pseudo_rank(np.ones(20), 1.0) == 20


def test_measures_agree_with_a_loop():
  s = np.sort(np.random.default_rng(3).lognormal(size=(2, 3, 16)))[..., ::-1]
  found = ar.pseudo_rank(s, 0.9, 2)
  for index in np.ndindex(2, 3):
    squares, total, k = s[index]**2, 0.0, 0
    while total < 0.9 * squares.sum():
      total, k = total + squares[k], k + 1
    assert found[index] == k


def test_what_is_not_finite_has_no_rank():
  found = ar.measures(np.array([[1.0, np.nan], [np.inf, 1.0], [2.0, 1.0]]))
  for value in found.values():
    np.testing.assert_array_equal(np.isnan(value), [True, True, False])
