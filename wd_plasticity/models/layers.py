"""Parts of the decoder: products, norms, rotary positions, initialisation.

Parameters are float32 and are cast where they are used; norms and rotary angles are
computed in float32 whatever the compute dtype.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from wd_plasticity.models.config import ModelConfig
from wd_plasticity.models.mesh_context import platform

# What `remat="dots"` keeps: names work alike for one member and under vmap, where
# policies that look at batch dimensions do not.
SAVED_NAMES = ("matmul", "attention")


def _dot(x, w, output_dtype):
  """Contracts the last axis of x with the first of w, accumulating in float32."""
  return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())),
                             preferred_element_type=output_dtype)


@jax.custom_vjp
def _bfloat16_products(x, kernels):
  """Products of bfloat16 x with several kernels, fast on CPUs in both directions.

  XLA on CPU has a fast bfloat16 product only for float32 outputs and for a left side
  whose last axis is contracted; the others, which plain differentiation would make in
  the backward pass, are two to a hundred times slower. So the three products here have
  float32 outputs, and x is kept transposed, once for all kernels.
  """
  return _bfloat16_products_forward(x, kernels)[0]


def _bfloat16_products_forward(x, kernels):
  ys = tuple(_dot(x, w.astype(jnp.bfloat16), jnp.float32).astype(jnp.bfloat16) for w in kernels)
  x_IxP = x.reshape(-1, x.shape[-1]).T
  return ys, (x_IxP, kernels)


def _bfloat16_products_backward(residuals, dys):
  x_IxP, kernels = residuals
  dx = sum(_dot(dy, w.astype(jnp.bfloat16).T, jnp.float32)
           for dy, w in zip(dys, kernels, strict=True))
  dkernels = tuple(_dot(x_IxP, dy.reshape(-1, dy.shape[-1]), jnp.float32).astype(w.dtype)
                   for dy, w in zip(dys, kernels, strict=True))
  return dx.astype(x_IxP.dtype), dkernels


_bfloat16_products.defvjp(_bfloat16_products_forward, _bfloat16_products_backward)


def matmuls(x: jax.Array, kernels: Sequence[jax.Array], dtype: jnp.dtype) -> tuple[jax.Array, ...]:
  """x[..., I] @ w[I, O] for each w, in `dtype`; all products with weights of the decoder.

  Args:
    x: activations [..., I].
    kernels: float32 weights [I, O] each, cast here.
    dtype: of the inputs of the products and of the results.

  Returns:
    [..., O] for each kernel in `dtype`, accumulated in float32.
  """
  if dtype == jnp.bfloat16 and platform() == "cpu":
    ys = _bfloat16_products(x.astype(dtype), tuple(kernels))
  else:
    ys = (_dot(x.astype(dtype), w.astype(dtype), dtype) for w in kernels)
  return tuple(checkpoint_name(y, "matmul") for y in ys)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """silu(gate) * up (Shazeer 2020), computed in float32; keeps only its two arguments."""
  return _swiglu_forward(gate, up)[0]


def _swiglu_forward(gate, up):
  y = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
  return y.astype(gate.dtype), (gate, up)


def _swiglu_backward(residuals, dy):
  gate, up, dy = (t.astype(jnp.float32) for t in (*residuals, dy))
  share = jax.nn.sigmoid(gate)
  dgate = dy * up * share * (1 + gate * (1 - share))
  dup = dy * gate * share
  return dgate.astype(residuals[0].dtype), dup.astype(residuals[1].dtype)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) * scale over the last axis, in float32; returns x's dtype."""
  x32 = x.astype(jnp.float32)
  inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
  return (x32 * inverse_rms * scale_D).astype(x.dtype)


def rope_tables(length: int, head_dim: int, theta: float,
                scaling: tuple[float, ...] = ()) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines [L, K/2] in float32 of positions 0..L-1 (Su et al. 2021, eq. 15).

  Positions run through a packed record: attention within a document sees only
  differences of positions.

  Args:
    length: L.
    head_dim: K.
    theta: the base of the frequencies.
    scaling: (factor, low, high, original length) of Llama 3.1 (rope_type "llama3" of
      transformers): a pair that turns at most `low` times in the original length becomes
      slower by `factor`, one that turns at least `high` times stays, and those between
      are interpolated. Empty: none.
  """
  frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  if scaling:
    factor, low, high, original_length = scaling
    turns = original_length * frequencies / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    frequencies *= kept + (1 - kept) / factor
  angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x_BxLxHxK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Turns the pairs (i, i + K/2) by their position, the half-split layout of transformers."""
  cos, sin = (table[:, None, :] for table in tables)
  first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BxLxHxK.dtype)


def weight_initializer(config: ModelConfig, residual_output: bool = False):
  """The initial distribution of a weight matrix; norm scales begin at 1.

  | init      | all matrices, embedding and head         | attention/output, feed_forward/down |
  |-----------|------------------------------------------|-------------------------------------|
  | scaled    | normal, std sqrt(2 / (5 D))              | normal, std 1 / (sqrt(D) N)         |
  | truncated | normal, std 0.02, cut at 3 sigma (0.06)  | the same                            |

  `scaled` is what the Llama-2 models of arXiv 2602.11137 used (GPT-NeoX's small
  initialisation, Nguyen and Salazar 2019, with Wang's residual outputs); `truncated` is
  OLMo-2's. The std of `truncated` is that of the normal before it is cut.
  """
  if config.init == "truncated":
    # jax's own initializer rescales to the std after the cut; this one does not.
    return lambda key, shape: 0.02 * jax.random.truncated_normal(key, -3.0, 3.0, shape)
  std = math.sqrt(2 / (5 * config.width))
  if residual_output:
    std = 1 / (math.sqrt(config.width) * config.num_layers)
  return nnx.initializers.normal(std)


class Linear(nnx.Module):
  """A product with a `kernel` [I, O], without bias."""

  def __init__(self, config: ModelConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs,
               residual_output: bool = False):
    self.kernel = nnx.Param(
        weight_initializer(config, residual_output)(rngs.params(), (inputs, outputs)))
    self.dtype = jnp.dtype(config.compute_dtype)

  def __call__(self, x):
    return apply_linears(x, self)[0]


def apply_linears(x: jax.Array, *linears: Linear) -> tuple[jax.Array, ...]:
  """The outputs of several `Linear`s with one input."""
  return matmuls(x, [linear.kernel[...] for linear in linears], linears[0].dtype)


class RMSNorm(nnx.Module):
  """RMSNorm with a `scale` over the last axis."""

  def __init__(self, config: ModelConfig, size: int):
    self.scale = nnx.Param(jnp.ones(size, jnp.float32))
    self.eps = config.norm_eps

  def __call__(self, x):
    return rms_norm(x, self.scale[...], self.eps)


class Embedding(nnx.Module):
  """Rows of `embedding` [V, D]; a token outside the vocabulary gives NaN, not another row."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.embedding = nnx.Param(
        weight_initializer(config)(rngs.params(), (config.vocab_size, config.width)))
    self.dtype = jnp.dtype(config.compute_dtype)

  def __call__(self, tokens_BxL):
    return jnp.take(self.embedding[...], tokens_BxL, axis=0, mode="fill").astype(self.dtype)
