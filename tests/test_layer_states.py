"""Hidden states of every layer, and layers run with an attention of the caller's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wd_plasticity.models import decoder, layers
from wd_plasticity.models.attention import attend
from wd_plasticity.models.config import ModelConfig


def _model(**changes):
  return ModelConfig(**dict(
      num_layers=3, width=16, num_heads=4, num_kv_heads=2, head_dim=4, ffn_width=24, vocab_size=50,
      norm_position="pre", qk_norm=False, rope_theta=1e4, norm_eps=1e-5, tied_head=False,
      init="scaled", compute_dtype="float32", attention="plain", document_mask=False,
      scan_layers=True, remat="none") | changes)


@pytest.mark.parametrize("changes", [{}, dict(norm_position="post", qk_norm=True),
                                     dict(scan_layers=False)])
def test_layer_states_follow_the_residual_stream(changes):
  config = _model(**changes)
  params = decoder.init_params(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 50)
  states = decoder.layer_states(params, config, tokens, lambda x: {"all": x, "mean": x.mean(1)})
  assert states["all"].shape == (4, 2, 7, 16)
  np.testing.assert_allclose(states["all"][0], params["embed"]["embedding"][tokens], atol=1e-6)
  np.testing.assert_allclose(states["all"][-1], decoder.hidden_states(params, config, tokens),
                             atol=1e-6)
  np.testing.assert_allclose(states["mean"], states["all"].mean(2), atol=1e-6)
  # A model cut after its first layer ends where the second state is, up to the final norm.
  first = jax.tree.map(lambda p: p[:1], params["layers"])
  cut = decoder.hidden_states({**params, "layers": first}, _model(**changes, num_layers=1), tokens)
  scale = params["final_norm"]["scale"]
  np.testing.assert_allclose(layers.rms_norm(states["all"][1], scale, config.norm_eps), cut,
                             atol=1e-5)


def test_layers_with_an_attention_of_the_callers():
  config = _model()
  params = decoder.init_params(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 50)
  rope = layers.rope_tables(7, config.head_dim, config.rope_theta)

  def mix(q, k, v, factor):
    y = attend(layers.apply_rope(q, rope), layers.apply_rope(k, rope), v, implementation="plain")
    return y * factor, k.sum()

  x = decoder.embed(params, config, tokens)
  same, made = decoder.run_layers(params, config, x, mix, jnp.ones(3))
  np.testing.assert_allclose(same, decoder.hidden_states(params, config, tokens), atol=1e-6)
  assert made.shape == (3,)
  other, _ = decoder.run_layers(params, config, x, mix, jnp.array([1.0, 0.0, 1.0]))
  assert np.abs(other - same).max() > 1e-3
