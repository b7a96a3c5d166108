"""Causal attention in four implementations with one meaning.

| name   | where       | needs                                                          |
|--------|-------------|----------------------------------------------------------------|
| plain  | everywhere  | nothing; stores the scores [B, H, L, L]; the reference         |
| cudnn  | NVIDIA GPU  | bfloat16, head dim a multiple of 8 and at most 128 (Hopper: 256);|
|        |             | packed rows: an even length                                    |
| splash | TPU         | length a multiple of 128                                       |
| blocks | CPU         | nothing; skips most of the masked scores and stores none       |

`auto` takes the fused one of the platform where it can be used, else plain. Packed rows
(`segment_ids_BxL`) mean the same in all: a token attends to earlier tokens of its own id.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from wd_plasticity.errors import UserError
from wd_plasticity.models.attention_cpu import block_attention
from wd_plasticity.models.mesh_context import platform, row_axes

_SPLASH_BLOCK = 128  # lanes of the TPU's vector unit


def attend(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, *,
           segment_ids_BxL: jax.Array | None = None, implementation: str = "auto") -> jax.Array:
  """Causal attention; query head h reads key/value head h // (H / G).

  Args:
    q_BxLxHxK: queries, unscaled (scores are divided by sqrt(K) here).
    k_BxLxGxK: keys; G divides H.
    v_BxLxGxK: values.
    segment_ids_BxL: int document ids of packed rows, or None.
    implementation: auto, plain, cudnn, splash or blocks.

  Returns:
    y_BxLxHxK in the dtype of the queries.

  Raises:
    UserError: the implementation asked for does not exist here or for this shape.
  """
  _, length, _, head_dim = q_BxLxHxK.shape
  name = choose(implementation, length=length, head_dim=head_dim, dtype=q_BxLxHxK.dtype,
                packed=segment_ids_BxL is not None)
  run = {"plain": _plain, "cudnn": _cudnn, "splash": _splash, "blocks": block_attention}[name]
  return run(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL)


def row_length(longest: int, multiple: int = 1) -> int:
  """The least length of rows that is not below `longest` and suits the attention of the platform.

  On accelerators rows of more than 128 tokens have a multiple of 128, without which `splash`
  cannot be used and `cudnn` is slower; a CPU would only have more to compute.

  Args:
    longest: tokens of the longest row.
    multiple: of which the length is a multiple anyway.
  """
  length = -(-longest // multiple) * multiple
  if platform() == "cpu" or length <= _SPLASH_BLOCK:
    return length
  return -(-length // _SPLASH_BLOCK) * _SPLASH_BLOCK


def choose(implementation: str, *, length: int, head_dim: int, dtype: jnp.dtype,
           packed: bool) -> str:
  """The implementation that `attend` uses: plain, cudnn, splash or blocks.

  Raises:
    UserError: as `attend`.
  """
  obstacles = {"plain": lambda: "", "cudnn": lambda: _cudnn_obstacle(
      length, head_dim, dtype, packed), "splash": lambda: _splash_obstacle(length),
      "blocks": _blocks_obstacle}
  if implementation == "auto":
    return next(name for name in ("cudnn", "splash", "blocks", "plain") if not obstacles[name]())
  if implementation not in obstacles:
    raise UserError(f"model.attention={implementation!r} is unknown; use auto, "
                    f"{', '.join(obstacles)}.")
  if obstacle := obstacles[implementation]():
    raise UserError(f"model.attention={implementation!r} {obstacle}; use auto or plain.")
  return implementation


def _cudnn_obstacle(length, head_dim, dtype, packed) -> str:
  # A plan may be for devices that are not here, which are then taken to be NVIDIA's.
  here = jax.devices()[0] if jax.default_backend() == "gpu" else None
  if platform() != "gpu" or here and "cuda" not in here.client.platform_version:
    return f"needs an NVIDIA GPU and this process computes on {platform()}"
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f"needs model.compute_dtype='bfloat16', not {jnp.dtype(dtype).name}"
  largest = 256 if here and float(here.compute_capability) >= 9 else 128
  if head_dim % 8 or head_dim > largest:
    return f"needs a head dim that is a multiple of 8 and at most {largest}, not {head_dim}"
  if packed and length % 2:
    return f"needs an even length for packed documents, not {length}"
  return ""


def _splash_obstacle(length) -> str:
  if platform() != "tpu":
    return f"needs a TPU and this process computes on {platform()}"
  if length % _SPLASH_BLOCK:
    return f"needs a length that is a multiple of {_SPLASH_BLOCK}, not {length}"
  return ""


def _blocks_obstacle() -> str:
  if platform() != "cpu":
    return f"is made for CPUs and this process computes on {platform()}"
  return ""


def _same_document(segment_ids_BxL):
  """Bool mask [B, 1, L, L]."""
  return segment_ids_BxL[:, None, :, None] == segment_ids_BxL[:, None, None, :]


def _plain(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL):
  # In float32 throughout: this is what the others are tested against.
  length, num_heads, head_dim = q_BxLxHxK.shape[1:]
  num_kv_heads = k_BxLxGxK.shape[2]
  q, k, v = (t.astype(jnp.float32) for t in (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK))
  q = q.reshape(-1, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
  scores_BxGxRxLxL = jnp.einsum("blgrk,bmgk->bgrlm", q * head_dim**-0.5, k)
  mask = jnp.tril(jnp.ones((length, length), bool))
  if segment_ids_BxL is not None:
    mask = (mask & _same_document(segment_ids_BxL))[:, :, None]
  scores_BxGxRxLxL = jnp.where(mask, scores_BxGxRxLxL, jnp.finfo(jnp.float32).min)
  shares = jax.nn.softmax(scores_BxGxRxLxL, axis=-1)
  y = jnp.einsum("bgrlm,bmgk->blgrk", shares, v)
  return y.reshape(q_BxLxHxK.shape).astype(q_BxLxHxK.dtype)


def _cudnn(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL):
  # A mask becomes a dense bias [B, 1, L, L]: slower than without documents, but exact.
  mask = None if segment_ids_BxL is None else _same_document(segment_ids_BxL)
  return jax.nn.dot_product_attention(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, mask=mask, is_causal=True,
                                      implementation="cudnn")


def _splash_kernel(length: int, num_heads: int, interpret: bool):
  block = max(size for size in (512, 256, _SPLASH_BLOCK) if length % size == 0)
  blocks = splash_attention.BlockSizes(
      block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block,
      block_kv_dq=block)
  mask = splash_attention.MultiHeadMask(
      [splash_attention.CausalMask((length, length))] * num_heads)
  return splash_attention.make_splash_mha(
      mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)


def _splash(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL, interpret: bool = False):
  def rows(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL):
    length, num_heads, head_dim = q_BxLxHxK.shape[1:]
    kernel = _splash_kernel(length, num_heads, interpret)
    heads_first = lambda t: jnp.swapaxes(t, 1, 2)
    ids = None
    if segment_ids_BxL is not None:
      ids = splash_attention.SegmentIds(segment_ids_BxL, segment_ids_BxL)
    y_BxHxLxK = jax.vmap(kernel)(
        heads_first(q_BxLxHxK * np.asarray(head_dim**-0.5, q_BxLxHxK.dtype)),
        heads_first(k_BxLxGxK), heads_first(v_BxLxGxK), ids)
    return heads_first(y_BxHxLxK)

  # XLA cannot divide a hand-written kernel among devices by itself: under a mesh
  # (jax.set_mesh) each device runs it on its own rows and heads.
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return rows(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL)
  batch = row_axes(mesh)
  tensor = "tensor" if k_BxLxGxK.shape[2] % mesh.shape.get("tensor", 1) == 0 else None
  tensor = tensor if "tensor" in mesh.shape else None
  by_head = PartitionSpec(batch, None, tensor, None)
  return jax.shard_map(
      rows, in_specs=(by_head, by_head, by_head, PartitionSpec(batch, None)),
      out_specs=by_head, check_vma=False)(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL)
