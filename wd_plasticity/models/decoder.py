"""The decoder: Llama-2 (norms before the sublayers) or OLMo-2 (on their outputs).

Modules are flax.nnx; the functions at the end use them functionally, on parameters that
are a plain nested dict of float32 arrays (names and shapes in docs/architecture.md), so
that optimizers, meshes, checkpoints and `jax.vmap` over members see arrays only.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from wd_plasticity.models import layers
from wd_plasticity.models.attention import attend, row_length
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.models.mesh_context import divide_rows

Params = dict[str, Any]


class Attention(nnx.Module):
  """Projections around attention with grouped key/value heads.

  `mix(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK) -> (y_BxLxHxK, made)` is the attention itself, with
  its positions: over the sequence, or over a cache. What it makes is handed through.
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    query_size = config.num_heads * config.head_dim
    key_size = config.num_kv_heads * config.head_dim
    self.query = layers.Linear(config, config.width, query_size, rngs=rngs)
    self.key = layers.Linear(config, config.width, key_size, rngs=rngs)
    self.value = layers.Linear(config, config.width, key_size, rngs=rngs)
    self.output = layers.Linear(config, query_size, config.width, rngs=rngs, residual_output=True)
    if config.qk_norm:
      self.query_norm = layers.RMSNorm(config, query_size)
      self.key_norm = layers.RMSNorm(config, key_size)
    self.config = config

  def __call__(self, x_BxLxD, mix):
    config = self.config
    q, k, v = layers.apply_linears(x_BxLxD, self.query, self.key, self.value)
    if config.qk_norm:  # over the whole projection, before it is cut into heads
      q, k = self.query_norm(q), self.key_norm(k)
    heads = lambda t: t.reshape(*t.shape[:2], -1, config.head_dim)
    y_BxLxHxK, made = mix(heads(q), heads(k), heads(v))
    y_BxLxHxK = checkpoint_name(y_BxLxHxK, "attention")
    return self.output(y_BxLxHxK.reshape(*y_BxLxHxK.shape[:2], -1)), made


class FeedForward(nnx.Module):
  """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.gate = layers.Linear(config, config.width, config.ffn_width, rngs=rngs)
    self.up = layers.Linear(config, config.width, config.ffn_width, rngs=rngs)
    self.down = layers.Linear(config, config.ffn_width, config.width, rngs=rngs,
                              residual_output=True)

  def __call__(self, x_BxLxD):
    return self.down(layers.swiglu(*layers.apply_linears(x_BxLxD, self.gate, self.up)))


class Block(nnx.Module):
  """One layer: attention and feed-forward, each added to the residual stream."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.attention_norm = layers.RMSNorm(config, config.width)
    self.attention = Attention(config, rngs=rngs)
    self.feed_forward_norm = layers.RMSNorm(config, config.width)
    self.feed_forward = FeedForward(config, rngs=rngs)
    self.norm_position = config.norm_position

  def __call__(self, x_BxLxD, mix):
    if self.norm_position == "pre":
      y_BxLxD, made = self.attention(self.attention_norm(x_BxLxD), mix)
      x_BxLxD += y_BxLxD
      return x_BxLxD + self.feed_forward(self.feed_forward_norm(x_BxLxD)), made
    y_BxLxD, made = self.attention(x_BxLxD, mix)
    x_BxLxD += self.attention_norm(y_BxLxD)
    return x_BxLxD + self.feed_forward_norm(self.feed_forward(x_BxLxD)), made


class Decoder(nnx.Module):
  """Embedding, N blocks whose parameters are stacked on a leading axis, final norm, head."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make_blocks(rngs):
      return Block(config, rngs=rngs)

    self.embed = layers.Embedding(config, rngs=rngs)
    self.layers = make_blocks(rngs)
    self.final_norm = layers.RMSNorm(config, config.width)
    if not config.tied_head:
      self.head = layers.Linear(config, config.width, config.vocab_size, rngs=rngs)
    self.config = config

  def run_layers(self, x_BxLxD, mix, per_layer=None, observe=None):
    """The residual stream after the final norm, and what every layer made.

    Args:
      x_BxLxD: embedded tokens.
      mix: `(q, k, v, layer_input) -> (y, made)`, see Attention.
      per_layer: a tree with leading axis N; each layer's part is its `layer_input`.
      observe: what to keep of the residual stream after each layer, or None.

    Returns:
      x_BxLxD, made (leading axis N), observed (leading axis N).
    """
    config = self.config
    block_graph, stacked = nnx.split(self.layers)

    def run_block(x_BxLxD, layer):
      block_state, layer_input = layer
      block = nnx.merge(block_graph, block_state)
      x_BxLxD, made = block(divide_rows(x_BxLxD), lambda q, k, v: mix(q, k, v, layer_input))
      return x_BxLxD, (made, observe(x_BxLxD) if observe else None)

    if config.remat != "none":
      policy = None
      if config.remat == "dots":
        policy = jax.checkpoint_policies.save_only_these_names(*layers.SAVED_NAMES)
      # Inside a loop XLA cannot merge the recomputation back, so it need not be prevented.
      run_block = jax.checkpoint(run_block, policy=policy, prevent_cse=not config.scan_layers)
    if config.scan_layers:
      x_BxLxD, kept = jax.lax.scan(run_block, x_BxLxD, (stacked, per_layer))
    else:
      kept = []
      for i in range(config.num_layers):
        x_BxLxD, one = run_block(
            x_BxLxD, jax.tree.map(lambda p, i=i: p[i], (stacked, per_layer)))
        kept.append(one)
      kept = jax.tree.map(lambda *parts: jnp.stack(parts), *kept)
    return self.final_norm(x_BxLxD), *kept

  def self_attention(self, length, segment_ids_BxL=None):
    """The `mix` of whole sequences: causal attention at positions 0 to length - 1."""
    config = self.config
    rope = layers.rope_tables(length, config.head_dim, config.rope_theta, config.rope_scaling)

    def mix(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, _):
      return attend(
          layers.apply_rope(q_BxLxHxK, rope), layers.apply_rope(k_BxLxGxK, rope), v_BxLxGxK,
          segment_ids_BxL=segment_ids_BxL, implementation=config.attention), None

    return mix

  def __call__(self, tokens_BxL, segment_ids_BxL=None):
    """The residual stream [B, L, D] after the final norm."""
    mix = self.self_attention(tokens_BxL.shape[1], segment_ids_BxL)
    return self.run_layers(self.embed(tokens_BxL), mix)[0]


@functools.lru_cache(maxsize=64)
def _graph(config: ModelConfig) -> nnx.GraphDef:
  """The static part of a Decoder."""
  return nnx.graphdef(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))


def init_params(config: ModelConfig, key: jax.Array) -> Params:
  """Initial parameters (distributions: layers.weight_initializer).

  The same key gives the same values whatever the switches that only choose how a layer
  is computed.

  Args:
    config: sizes.
    key: a jax.random key.

  Returns:
    A nested dict of float32 arrays, named as in docs/architecture.md.
  """
  return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(params=key)), nnx.Param))


def param_shapes(config: ModelConfig) -> Params:
  """Shapes and dtypes of `init_params`, without making any array."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def hidden_states(params: Params, config: ModelConfig, tokens_BxL: jax.Array,
                  segment_ids_BxL: jax.Array | None = None) -> jax.Array:
  """The residual stream after the final norm.

  Args:
    params: as of `init_params`.
    config: sizes and switches.
    tokens_BxL: int token ids below the vocabulary size.
    segment_ids_BxL: int document ids of packed records; a token attends only to tokens of
      its own id. None: to all earlier ones.

  Returns:
    x_BxLxD in the compute dtype.
  """
  return nnx.merge(_graph(config), params)(tokens_BxL, segment_ids_BxL)


def record_states(params: Params, config: ModelConfig, tokens_BxL: jax.Array,
                  segment_ids_BxL: jax.Array | None = None) -> jax.Array:
  """As `hidden_states`, of records of any length, read in rows that suit attention."""
  length = tokens_BxL.shape[1]
  more = ((0, 0), (0, row_length(length) - length))  # no earlier token sees what is added
  if segment_ids_BxL is not None:
    segment_ids_BxL = jnp.pad(segment_ids_BxL, more, mode="edge")
  return hidden_states(params, config, jnp.pad(tokens_BxL, more), segment_ids_BxL)[:, :length]


def layer_states(params: Params, config: ModelConfig, tokens_BxL: jax.Array,
                 reduce: Callable[[jax.Array], Any],
                 segment_ids_BxL: jax.Array | None = None) -> Any:
  """A reduction of the residual stream at the embedding and after every layer.

  Args:
    params, config, tokens_BxL, segment_ids_BxL: as of `hidden_states`.
    reduce: x_BxLxD to a tree of arrays, such as its mean over L; only that is stored.

  Returns:
    The tree with a leading axis N + 1: the embedding, then each layer, the last one
    after the final norm (the `hidden_states` of transformers).
  """
  model = nnx.merge(_graph(config), params)
  x_BxLxD = model.embed(tokens_BxL)
  first = reduce(x_BxLxD)
  mix = model.self_attention(tokens_BxL.shape[1], segment_ids_BxL)
  x_BxLxD, _, layers_N = model.run_layers(x_BxLxD, mix, observe=reduce)
  last = reduce(x_BxLxD)
  return jax.tree.map(lambda a, n, z: jnp.concatenate([a[None], n[:-1], z[None]]),
                      first, layers_N, last)


def embed(params: Params, config: ModelConfig, tokens_BxL: jax.Array) -> jax.Array:
  """The embedded tokens x_BxLxD in the compute dtype."""
  return nnx.merge(_graph(config), params).embed(tokens_BxL)


def run_layers(params: Params, config: ModelConfig, x_BxLxD: jax.Array, mix: Callable,
               per_layer: Any = None) -> tuple[jax.Array, Any]:
  """Runs the layers with an attention of the caller's, such as one over a cache.

  Args:
    params, config: as of `hidden_states`.
    x_BxLxD: as of `embed`.
    mix: `(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, layer_input) -> (y_BxLxHxK, made)`; queries and
      keys come after QK-norm and before rotary positions, which are the caller's too.
    per_layer: a tree with leading axis N, each layer's part being its `layer_input`.

  Returns:
    x_BxLxD after the final norm, and what `mix` made in each layer on a leading axis N.
  """
  x_BxLxD, made, _ = nnx.merge(_graph(config), params).run_layers(x_BxLxD, mix, per_layer)
  return x_BxLxD, made


def head_kernel(params: Params, config: ModelConfig) -> jax.Array:
  """The float32 kernel w_DxV of the output head; with a tied head the embedding's transpose."""
  return params["embed"]["embedding"].T if config.tied_head else params["head"]["kernel"]


def logits(params: Params, config: ModelConfig, tokens_BxL: jax.Array,
           segment_ids_BxL: jax.Array | None = None) -> jax.Array:
  """Float32 logits [B, L, V]; training uses `loss.next_token_loss`, which never stores them."""
  x_BxLxD = hidden_states(params, config, tokens_BxL, segment_ids_BxL)
  w_DxV = head_kernel(params, config).astype(x_BxLxD.dtype)
  return jnp.einsum("bld,dv->blv", x_BxLxD, w_DxV, preferred_element_type=jnp.float32)
