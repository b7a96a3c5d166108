"""The decoder against golden logits of transformers, and its switches against each other."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.interop import transformers_config, transformers_weights
from wd_plasticity.models import decoder, layers, loss
from wd_plasticity.models.config import PRESETS, ModelConfig

GOLDEN = sorted(pathlib.Path(__file__).parent.glob("golden/transformers_*.npz"))


def config_of(family="llama2", **changes) -> ModelConfig:
  section = default_config().model
  section.update(PRESETS[family]["0.3m"])
  section.update(dict(num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=6,
                      ffn_width=22, vocab_size=31) | changes)
  return ModelConfig.from_section(section, 31)


def tokens_of(batch=2, length=12, seed=0):
  return np.random.default_rng(seed).integers(31, size=(batch, length)).astype(np.int32)


init_params = jax.jit(decoder.init_params, static_argnums=0)
logits_of = jax.jit(decoder.logits, static_argnums=1)


def far_params(config):
  """Parameters away from initialisation, norms included."""
  return jax.tree.map(lambda p: np.asarray(p) * np.float32(1.5),
                      init_params(config, jax.random.key(0)))


def objective(params, config, tokens_BxL):
  x_BxLxD = decoder.hidden_states(params, config, tokens_BxL[:, :-1])
  weights_BxL = jnp.ones(tokens_BxL[:, 1:].shape)
  return loss.next_token_loss(
      x_BxLxD, decoder.head_kernel(params, config), tokens_BxL[:, 1:], weights_BxL)[0]


@functools.partial(jax.jit, static_argnums=1)
def loss_and_grads(params, config, tokens_BxL):
  return jax.value_and_grad(objective)(params, config, tokens_BxL)


def assert_trees_close(got, want, **tolerance):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


def test_golden_files_are_there():
  assert len(GOLDEN) == 5


def read_golden(path):
  tensors = dict(np.load(path))
  fields = json.loads(str(tensors.pop("config")))
  section = default_config().model
  section.update(transformers_config.section_from_transformers(fields))
  config = ModelConfig.from_section(section, section.vocab_size)
  return config, tensors.pop("tokens"), tensors.pop("logits"), tensors


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_logits_of_transformers(path):
  config, tokens, logits, tensors = read_golden(path)
  params = transformers_weights.from_transformers(tensors, config)
  np.testing.assert_allclose(logits_of(params, config, tokens), logits, atol=1e-4)
  back = transformers_weights.to_transformers(params, config)
  assert back.keys() == tensors.keys()
  for name, array in back.items():
    np.testing.assert_array_equal(array, tensors[name])


@pytest.mark.parametrize("spoil, message", [
    (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
     "lacks the tensor model.layers.1.mlp.up_proj.weight"),
    (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(3)}),
     "no place for, such as model.layers.0.self_attn.q_proj.bias"),
    (lambda t: t.update({"model.norm.weight": np.zeros(3)}), "has the shape (3,)"),
])
def test_wrong_checkpoints_are_refused(spoil, message):
  config, _, _, tensors = read_golden(GOLDEN[0])
  spoil(tensors)
  with pytest.raises(UserError) as error:
    transformers_weights.from_transformers(tensors, config)
  assert message in str(error.value)


@pytest.mark.parametrize("fields, message", [
    (dict(model_type="gpt2"), "model_type='gpt2' is not known"),
    (dict(model_type="llama", attention_bias=True), "attention_bias"),
    (dict(model_type="llama", rope_scaling={"type": "linear", "factor": 2}),
     "rope scaling 'linear'"),
    (dict(model_type="llama", rope_parameters={"partial_rotary_factor": 0.5}), "partial rotary"),
    (dict(model_type="llama", hidden_size=8), "lacks a field .*num_attention_heads"),
    (dict(model_type="olmo2", hidden_act="gelu"), "hidden_act"),
])
def test_architectures_that_differ_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    transformers_config.section_from_transformers(fields)


def test_mixed_architectures_have_no_transformers_name():
  with pytest.raises(UserError, match="neither Llama"):
    transformers_config.family(config_of("llama2", qk_norm=True))


@pytest.mark.parametrize("family, tied", [("llama2", False), ("llama2", True), ("olmo2", False)])
def test_names_and_shapes(family, tied):
  config = config_of(family, tied_head=tied)
  shapes = jax.tree.map(
      jnp.shape, jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0))))
  n, d, f, v, q, k = 2, 16, 22, 31, 24, 12
  expected = {
      "embed": {"embedding": (v, d)},
      "final_norm": {"scale": (d,)},
      "layers": {
          "attention_norm": {"scale": (n, d)},
          "feed_forward_norm": {"scale": (n, d)},
          "attention": {
              "query": {"kernel": (n, d, q)}, "key": {"kernel": (n, d, k)},
              "value": {"kernel": (n, d, k)}, "output": {"kernel": (n, q, d)},
          },
          "feed_forward": {
              "gate": {"kernel": (n, d, f)}, "up": {"kernel": (n, d, f)},
              "down": {"kernel": (n, f, d)},
          },
      },
  }
  if not tied:
    expected["head"] = {"kernel": (d, v)}
  if family == "olmo2":
    expected["layers"]["attention"] |= {
        "query_norm": {"scale": (n, q)}, "key_norm": {"scale": (n, k)}}
  assert shapes == expected


def relative_errors(got, want):
  return [np.linalg.norm(a - b) / np.linalg.norm(b)
          for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)]


@pytest.mark.parametrize("family, switches", [
    ("llama2", [(True, "none"), (True, "dots"), (False, "full")]),
    ("olmo2", [(True, "full"), (False, "dots")]),
])
def test_loop_and_recomputation_change_nothing(family, switches):
  reference = config_of(family, scan_layers=False)
  params, tokens = far_params(reference), tokens_of()
  expected = loss_and_grads(params, reference, tokens)
  initial = init_params(reference, jax.random.key(0))
  for scan_layers, remat in switches:
    config = config_of(family, scan_layers=scan_layers, remat=remat)
    assert_trees_close(init_params(config, jax.random.key(0)), initial, rtol=0)
    assert_trees_close(loss_and_grads(params, config, tokens), expected, rtol=1e-4, atol=1e-5)


def test_recomputation_keeps_what_it_says():
  """Floating-point residuals of a layer: everything, the products, or only its input."""
  tokens = tokens_of()
  sizes = {}
  for remat in ("none", "dots", "full"):
    config = config_of(remat=remat)
    params = far_params(config)
    residuals = jax.eval_shape(
        lambda p: jax.vjp(lambda p: decoder.hidden_states(p, config, tokens), p)[1],  # noqa: B023
        params)
    sizes[remat] = sum(r.size for r in jax.tree.leaves(residuals)) - sum(
        p.size for p in jax.tree.leaves(params))
  assert sizes["full"] < sizes["dots"] < sizes["none"]
  # Of the products (24 + 12 + 12 + 16 + 22 + 22 + 16), attention (24) and the input (16);
  # the residual stream after attention is the input plus a product.
  per_token_layer = (sizes["dots"] - sizes["full"]) / (2 * tokens.size)
  assert per_token_layer <= 24 + 12 + 12 + 16 + 22 + 22 + 16 + 24


@pytest.mark.parametrize("family", ["llama2", "olmo2"])
def test_bfloat16_is_close_and_keeps_float32_parameters(family):
  """Gradients move by about as much as when the weights are rounded to bfloat16 (1.4 %)."""
  config, tokens = config_of(family), tokens_of()
  params = init_params(config, jax.random.key(0))
  exact, exact_grads = loss_and_grads(params, config, tokens)
  rounded = config_of(family, compute_dtype="bfloat16")
  assert decoder.hidden_states(params, rounded, tokens).dtype == jnp.bfloat16
  value, grads = loss_and_grads(params, rounded, tokens)
  np.testing.assert_allclose(value, exact, rtol=1e-3)
  assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
  assert max(relative_errors(grads, exact_grads)) < 0.03


def test_bfloat16_products_on_cpu_have_float32_outputs():
  """A product with a bfloat16 output, forward or backward, is a hundred times slower on CPU."""
  config = config_of(compute_dtype="bfloat16", remat="dots", attention="plain")
  text = jax.jit(jax.grad(objective), static_argnums=1).lower(
      far_params(config), config, tokens_of()).as_text()
  products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
  assert len(products) > 20
  assert all(line.rstrip().split("->")[-1].strip().startswith("tensor<") for line in products)
  assert not [line for line in products if line.split("->")[-1].split(" loc")[0].endswith("bf16>")]


def test_members_under_vmap():
  config, tokens = config_of(remat="dots"), tokens_of(batch=4).reshape(2, 2, -1)
  keys = jax.random.split(jax.random.key(5), 2)
  params = jax.vmap(lambda key: decoder.init_params(config, key))(keys)
  assert params["layers"]["attention"]["query"]["kernel"].shape == (2, 2, 16, 24)
  together = jax.vmap(loss_and_grads, in_axes=(0, None, 0))(params, config, tokens)
  for m in range(2):
    alone = init_params(config, keys[m])
    assert_trees_close(jax.tree.map(lambda p: p[m], params), alone, rtol=1e-6)  # noqa: B023
    assert_trees_close(jax.tree.map(lambda g: g[m], together),  # noqa: B023
                       loss_and_grads(alone, config, tokens[m]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama2", "olmo2"])
def test_packed_documents_do_not_see_each_other(family):
  """A packed record gives each document the logits it has alone, wherever it lies."""
  config = config_of(family)
  params, tokens = far_params(config), tokens_of(batch=1, length=12)
  segments = np.repeat([[0, 1, 2]], [5, 4, 3], axis=1)
  packed = logits_of(params, config, tokens, segments)
  for start, end in [(0, 5), (5, 9), (9, 12)]:
    np.testing.assert_allclose(
        packed[:, start:end], logits_of(params, config, tokens[:, start:end]), atol=2e-5)
  assert np.abs(packed - logits_of(params, config, tokens))[:, 5:].max() > 0.01


def test_no_token_sees_the_future():
  config, tokens = config_of("olmo2"), tokens_of()
  params = far_params(config)
  changed = tokens.copy()
  changed[:, 7] = (changed[:, 7] + 1) % 31
  before, after = (logits_of(params, config, t) for t in (tokens, changed))
  np.testing.assert_array_equal(before[:, :7], after[:, :7])
  assert np.abs(before - after)[:, 7:].max(axis=(0, 2)).min() > 0


def test_token_outside_the_vocabulary_is_not_taken_for_another():
  config, tokens = config_of(), tokens_of()
  tokens[1, 3] = 31
  logits = logits_of(far_params(config), config, tokens)
  assert np.isfinite(logits[0]).all() and np.isnan(logits[1, 3:]).all()


@pytest.mark.parametrize("init", ["scaled", "truncated"])
def test_initial_distributions(init):
  config = config_of(init=init, width=128, num_layers=3, num_heads=4, num_kv_heads=4, head_dim=32,
                     ffn_width=256, vocab_size=512)
  params = init_params(config, jax.random.key(0))
  residual = {"layers/attention/output/kernel", "layers/feed_forward/down/kernel"}
  for path, p in jax.tree.leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name.endswith("scale"):
      np.testing.assert_array_equal(p, 1.0)
      continue
    if init == "truncated":
      assert np.abs(p).max() <= 0.06
      std = 0.02 * 0.98658  # of the standard normal cut at 3 sigma
    else:
      std = 1 / (np.sqrt(128) * 3) if name in residual else np.sqrt(2 / (5 * 128))
      assert np.abs(p).max() > 3.2 * std
    np.testing.assert_allclose(np.std(p), std, rtol=0.02, err_msg=name)
    assert abs(np.mean(p)) < 5 * std / np.sqrt(p.size)
  stacked = params["layers"]["attention"]["query"]["kernel"]
  assert np.abs(stacked[0] - stacked[1]).min(axis=None) >= 0
  assert np.corrcoef(stacked[0].ravel(), stacked[1].ravel())[0, 1] < 0.05  # own draw per layer


def test_rotary_positions():
  """Against complex rotation in float64 at a position where float32 angles are large."""
  length, head_dim, theta = 700, 6, 10_000.0
  x = np.random.default_rng(0).normal(size=(1, length, 2, head_dim)).astype(np.float32)
  got = layers.apply_rope(jnp.asarray(x), layers.rope_tables(length, head_dim, theta))
  angles = np.arange(length)[:, None] * theta ** (-np.arange(0, head_dim, 2) / head_dim)
  turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angles)[:, None]
  np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=5e-4)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)) * 100, jnp.bfloat16)
  scale = np.random.default_rng(1).normal(size=64).astype(np.float32)
  wide = np.asarray(x, np.float64)
  expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * scale
  got = layers.rms_norm(x, scale, 1e-5)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2**-8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_with_weights_and_its_gradient(dtype):
  rng = np.random.default_rng(0)
  linear = layers.Linear(config_of(compute_dtype=dtype), 48, 7, rngs=nnx.Rngs(0))
  graph, _ = nnx.split(linear)
  x = jnp.asarray(rng.normal(size=(2, 5, 48)), dtype)
  w = rng.normal(size=(48, 7)).astype(np.float32)
  dy = jnp.asarray(rng.normal(size=(2, 5, 7)), dtype)
  y, pull = jax.vjp(lambda x, w: nnx.merge(graph, {"kernel": w})(x), x, w)
  dx, dw = pull(dy)
  assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, jnp.float32)
  x64, w64, dy64 = (np.asarray(jnp.asarray(a, dtype), np.float64) for a in (x, w, dy))
  tolerance = dict(rtol=2e-5, atol=2e-5) if dtype == "float32" else dict(rtol=2**-8, atol=1e-5)
  np.testing.assert_allclose(np.asarray(y, np.float64), x64 @ w64, **tolerance)
  np.testing.assert_allclose(np.asarray(dx, np.float64), dy64 @ w64.T, **tolerance)
  np.testing.assert_allclose(dw, np.einsum("bli,blo->io", x64, dy64), rtol=2e-5, atol=2e-5)
