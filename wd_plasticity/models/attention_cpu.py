"""Causal attention for training on CPUs, in blocks of queries.

Queries are cut into blocks, each of which sees only the keys up to its end, so that
little of the masked half of the scores is computed. Scores are not kept: the backward
pass makes them again from the logarithm of their sum (Dao et al. 2022, algorithm 4).

XLA's fast bfloat16 product on CPU contracts the last axis of its left side and has
float32 outputs; any other is converted to float32 first. So the backward pass works on
transposed scores, keys first, and keeps a transposed copy of the keys.
"""

import jax
import jax.numpy as jnp

_SMALLEST_BLOCK = 64
_MOST_BLOCKS = 8  # each is compiled by itself


def block_attention(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array,
                    segment_ids_BxL: jax.Array | None = None) -> jax.Array:
  """Causal attention; arguments and result as of `attention.attend`.

  Products have inputs in the dtype of the queries, all else is float32.
  """
  batch, length, num_heads, head_dim = q_BxLxHxK.shape
  num_kv_heads = k_BxLxGxK.shape[2]
  if segment_ids_BxL is None:
    segment_ids_BxL = jnp.zeros((batch, 1), jnp.int32)  # one document
  q_BxGxRxLxK = q_BxLxHxK.swapaxes(1, 2).reshape(batch, num_kv_heads, -1, length, head_dim)
  y_BxGxRxLxK = _attend(q_BxGxRxLxK, k_BxLxGxK.swapaxes(1, 2), v_BxLxGxK.swapaxes(1, 2),
                        segment_ids_BxL)
  y_BxLxHxK = y_BxGxRxLxK.reshape(batch, num_heads, length, head_dim).swapaxes(1, 2)
  return y_BxLxHxK.astype(q_BxLxHxK.dtype)


def _blocks(length: int) -> list[slice]:
  """The blocks of queries, all of one size."""
  count = max(n for n in range(1, _MOST_BLOCKS + 1)
              if length % n == 0 and (n == 1 or length // n >= _SMALLEST_BLOCK))
  size = length // count
  return [slice(start, start + size) for start in range(0, length, size)]


def _dot(a, b, contract_b):
  """Contracts the last axis of a [B, G, ...] with one of b, in float32."""
  return jax.lax.dot_general(a, b, (((3,), (contract_b,)), ((0, 1), (0, 1))),
                             preferred_element_type=jnp.float32)


def _rows(t_BxGxRxLxK, block):
  """Queries of a block, of all R heads that share a key head: [B, G, R * L', K]."""
  t = t_BxGxRxLxK[:, :, :, block]
  return t.reshape(*t.shape[:2], -1, t.shape[-1])


def _mask(block, repeats, segment_ids_BxL):
  """Which keys [L''] a query [R * L'] sees: bool [B or 1, 1, R * L', L'']."""
  mask = jnp.arange(block.start, block.stop)[:, None] >= jnp.arange(block.stop)
  if segment_ids_BxL.shape[1] > 1:
    ids = segment_ids_BxL[:, None, :block.stop]
    mask = mask & (ids[..., block, None] == ids[..., None, :])
  else:
    mask = mask[None, None]
  return jnp.tile(mask, (1, 1, repeats, 1))


@jax.custom_vjp
def _attend(q_BxGxRxLxK, k_BxGxLxK, v_BxGxLxK, segment_ids_BxL):
  return _attend_forward(q_BxGxRxLxK, k_BxGxLxK, v_BxGxLxK, segment_ids_BxL)[0]


def _attend_forward(q, k, v, segment_ids_BxL):
  batch, kv_heads, repeats, length, head_dim = q.shape
  outputs, lses = [], []
  for block in _blocks(length):
    seen = slice(0, block.stop)
    scores = _dot(_rows(q, block), k[:, :, seen], 3) * head_dim**-0.5
    scores = jnp.where(_mask(block, repeats, segment_ids_BxL), scores, -jnp.inf)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    shares = jnp.exp(scores - largest)
    total = jnp.sum(shares, axis=-1, keepdims=True)
    y = _dot(shares.astype(v.dtype), v[:, :, seen], 2) / total
    outputs.append(y.reshape(batch, kv_heads, repeats, -1, head_dim))
    lses.append((largest + jnp.log(total)).reshape(batch, kv_heads, repeats, -1))
  y, lse = jnp.concatenate(outputs, axis=3), jnp.concatenate(lses, axis=3)
  return y, (q, k, jnp.swapaxes(k, 2, 3), v, y, lse, segment_ids_BxL)


def _attend_backward(residuals, dy):
  q, k, k_BxGxKxL, v, y, lse, segment_ids_BxL = residuals
  batch, kv_heads, repeats, length, head_dim = q.shape
  scale = head_dim**-0.5
  # d(scores) = shares * (dy v^T - rowsum(dy * y))
  rowsum = jnp.sum(dy * y, axis=-1)
  dy = dy.astype(q.dtype)
  dq_blocks, dk, dv = [], 0.0, 0.0
  for block in _blocks(length):
    seen = slice(0, block.stop)
    by_query = lambda t, block=block: t[..., block].reshape(batch, kv_heads, 1, -1)
    q_rows, dy_rows = _rows(q, block), _rows(dy, block)
    scores = _dot(k[:, :, seen], q_rows, 3) * scale  # [B, G, L'', R * L'], as all below
    mask = jnp.swapaxes(_mask(block, repeats, segment_ids_BxL), 2, 3)
    shares = jnp.where(mask, jnp.exp(scores - by_query(lse)), 0.0)
    dshares = _dot(v[:, :, seen], dy_rows, 3)
    dscores = (shares * (dshares - by_query(rowsum)) * scale).astype(q.dtype)
    later = ((0, 0), (0, 0), (0, length - block.stop), (0, 0))
    dv += jnp.pad(_dot(shares.astype(q.dtype), dy_rows, 2), later)
    dk += jnp.pad(_dot(dscores, q_rows, 2), later)
    dq = _dot(k_BxGxKxL[..., seen], dscores, 2)  # [B, G, K, R * L']
    dq_blocks.append(dq.reshape(batch, kv_heads, head_dim, repeats, -1))
  dq = jnp.moveaxis(jnp.concatenate(dq_blocks, axis=4), 2, 4)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)
