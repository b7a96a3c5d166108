"""Next-token cross-entropy whose logits exist for one tile of tokens at a time.

At the sizes of this study the float32 logits [B, L, V] would be the largest array of
training. Tiles are slices along L of all rows, so that a batch divided among devices
stays divided; every tile has the whole vocabulary. When the loss is differentiated, a
tile's gradient is made while its logits are there: they are neither stored nor computed
again.
"""

import functools

import jax
import jax.numpy as jnp

from wd_plasticity.models.mesh_context import platform


def default_tile_tokens() -> int:
  """Tokens per tile on this platform: large products for GPU and TPU, the cache for CPU."""
  return 512 if platform() == "cpu" else 8192


def next_token_loss(x_BxLxD: jax.Array, w_DxV: jax.Array, targets_BxL: jax.Array,
                    weights_BxL: jax.Array, *, z_loss: float = 0.0,
                    tile_tokens: int = 0) -> tuple[jax.Array, jax.Array]:
  """Weighted sums of the cross-entropy and of the z-loss, in nats.

  The z-loss of a token is z_loss * logsumexp(logits)**2 (PaLM, Chowdhery et al. 2022).

  Args:
    x_BxLxD: hidden states; their dtype is that of the products' inputs.
    w_DxV: the head's kernel; its gradient is accumulated in float32.
    targets_BxL: int token ids.
    weights_BxL: weight of each token, 0 where it is not to be learnt.
    z_loss: coefficient.
    tile_tokens: tokens of the whole batch whose logits exist at once; 0: the platform's.

  Returns:
    (loss_sum, z_loss_sum), float32. Train on their sum: the gradient of both comes
    through the first, and the second is a measurement without gradient.
  """
  tile_length = _tile_length(targets_BxL.shape, tile_tokens)
  total, z_loss_sum = _weighted_sums(
      x_BxLxD, w_DxV, targets_BxL, weights_BxL.astype(jnp.float32), z_loss, tile_length)
  z_loss_sum = jax.lax.stop_gradient(z_loss_sum)
  return total - z_loss_sum, z_loss_sum


def token_losses(x_BxLxD: jax.Array, w_DxV: jax.Array, targets_BxL: jax.Array, *,
                 tile_tokens: int = 0) -> jax.Array:
  """Cross-entropy of each token, float32 [B, L] in nats; for evaluations, not for training.

  Args: as of `next_token_loss`.
  """
  tile_length = _tile_length(targets_BxL.shape, tile_tokens)
  return _losses_and_lse(x_BxLxD, w_DxV, targets_BxL, tile_length)[0]


def _tile_length(shape, tile_tokens):
  batch, length = shape
  return min(length, max(1, (tile_tokens or default_tile_tokens()) // batch))


def _over_tiles(step, carry, length, tile_length):
  """Runs step(carry, start, size) -> carry over [0, length), the last tile being shorter."""
  full = length // tile_length
  if full > 1:
    starts = jnp.arange(full) * tile_length
    carry, _ = jax.lax.scan(lambda c, start: (step(c, start, tile_length), None), carry, starts)
  elif full:
    carry = step(carry, 0, tile_length)
  if rest := length - full * tile_length:
    carry = step(carry, full * tile_length, rest)
  return carry


def _cut(array, start, size):
  return jax.lax.dynamic_slice_in_dim(array, start, size, axis=1)


def _paste(array, tile, start):
  return jax.lax.dynamic_update_slice_in_dim(array, tile.astype(array.dtype), start, axis=1)


def _tile_losses(x, w, targets):
  """Logits [B, T, V], logsumexp and cross-entropy [B, T] of one tile, float32."""
  logits = jnp.einsum("btd,dv->btv", x, w, preferred_element_type=jnp.float32)
  lse = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return logits, lse, lse - picked


def _losses_and_lse(x_BxLxD, w_DxV, targets_BxL, tile_length):
  w = w_DxV.astype(x_BxLxD.dtype)

  def step(carry, start, size):
    _, lse, losses = _tile_losses(
        _cut(x_BxLxD, start, size), w, _cut(targets_BxL, start, size))
    return _paste(carry[0], losses, start), _paste(carry[1], lse, start)

  zeros_BxL = jnp.zeros(targets_BxL.shape, jnp.float32)
  return _over_tiles(step, (zeros_BxL, zeros_BxL), targets_BxL.shape[1], tile_length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _weighted_sums(x_BxLxD, w_DxV, targets_BxL, weights_BxL, z_loss, tile_length):
  """(sum of cross-entropy and z-loss, sum of z-loss); only the first has a gradient."""
  losses_BxL, lse_BxL = _losses_and_lse(x_BxLxD, w_DxV, targets_BxL, tile_length)
  z_loss_sum = jnp.sum(weights_BxL * z_loss * jnp.square(lse_BxL))
  return jnp.sum(weights_BxL * losses_BxL) + z_loss_sum, z_loss_sum


def _weighted_sums_forward(x_BxLxD, w_DxV, targets_BxL, weights_BxL, z_loss, tile_length):
  w = w_DxV.astype(x_BxLxD.dtype)
  # On CPU only products that contract the last axis of their left side are fast in
  # bfloat16; transposed outside the loop, XLA cannot fold the transpose into the product.
  x_DxBxL = jnp.moveaxis(x_BxLxD, 2, 0)

  def step(carry, start, size):
    losses_BxL, lse_BxL, dx_BxLxD, dw_DxV = carry
    x, targets = _cut(x_BxLxD, start, size), _cut(targets_BxL, start, size)
    logits, lse, losses = _tile_losses(x, w, targets)
    # d(loss + z)/dlogits = weight * (softmax * (1 + 2 z lse) - onehot(target))
    probabilities = jnp.exp(logits - lse[..., None])
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])
    dlogits = probabilities * (1 + 2 * z_loss * lse)[..., None] - is_target
    dlogits = (dlogits * _cut(weights_BxL, start, size)[..., None]).astype(x.dtype)
    dx = jnp.einsum("btv,dv->btd", dlogits, w, preferred_element_type=jnp.float32)
    x_DxBxT = jax.lax.dynamic_slice_in_dim(x_DxBxL, start, size, axis=2)
    dw_DxV += jnp.einsum("dbt,btv->dv", x_DxBxT, dlogits, preferred_element_type=jnp.float32)
    return (_paste(losses_BxL, losses, start), _paste(lse_BxL, lse, start),
            _paste(dx_BxLxD, dx, start), dw_DxV)

  zeros_BxL = jnp.zeros(targets_BxL.shape, jnp.float32)
  carry = (zeros_BxL, zeros_BxL, jnp.zeros_like(x_BxLxD), jnp.zeros(w_DxV.shape, jnp.float32))
  losses_BxL, lse_BxL, dx_BxLxD, dw_DxV = _over_tiles(
      step, carry, targets_BxL.shape[1], tile_length)
  z_losses_BxL = z_loss * jnp.square(lse_BxL)
  z_loss_sum = jnp.sum(weights_BxL * z_losses_BxL)
  total = jnp.sum(weights_BxL * losses_BxL) + z_loss_sum
  residuals = dx_BxLxD, dw_DxV.astype(w_DxV.dtype), losses_BxL + z_losses_BxL
  return (total, z_loss_sum), residuals


def _weighted_sums_backward(z_loss, tile_length, residuals, cotangents):
  del z_loss, tile_length
  dx_BxLxD, dw_DxV, dweights_BxL = residuals
  scale = cotangents[0]
  return ((dx_BxLxD * scale).astype(dx_BxLxD.dtype), dw_DxV * scale, None, dweights_BxL * scale)


_weighted_sums.defvjp(_weighted_sums_forward, _weighted_sums_backward)
