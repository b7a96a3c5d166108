"""Frozen hidden states of texts, pooled over their tokens: what a linear probe reads.

States are those at the embedding and after every layer (transformers' `hidden_states`).
They are pooled where they are made, so that nothing of the size of all tokens is stored.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from wd_plasticity.models import attention, decoder
from wd_plasticity.models.config import ModelConfig

POOLINGS = ("mean", "last")  # over the text's tokens; its last token
_LENGTHS = (8, 4, 2, 1)  # parts of the longest text that batches are padded to


def pooled_states(params: decoder.Params, config: ModelConfig, tokens_BxL: jax.Array,
                  lengths_B: jax.Array) -> jax.Array:
  """Pooled states of one member.

  Args:
    params, config: of the model.
    tokens_BxL: texts padded on the right, which no earlier token sees.
    lengths_B: tokens of each text, at least 1.

  Returns:
    float32 [N + 1, 2, B, D]: by layer and pooling.
  """
  places_L = jnp.arange(tokens_BxL.shape[1])
  inside_BxL = places_L < lengths_B[:, None]
  last_BxL = places_L == lengths_B[:, None] - 1

  def pool(x_BxLxD):
    # Sums, not indexing: rows stay on their devices, and padding may hold anything finite.
    weights_2xBxL = jnp.stack([inside_BxL / lengths_B[:, None], last_BxL]).astype(jnp.float32)
    return jnp.einsum("pbl,bld->pbd", weights_2xBxL, x_BxLxD.astype(jnp.float32),
                      precision=jax.lax.Precision.HIGHEST)

  return decoder.layer_states(params, config, tokens_BxL, pool)


def batches(lengths: np.ndarray, tokens_per_batch: int,
            row_multiple: int = 1) -> Iterator[tuple[np.ndarray, int, int]]:
  """Texts of similar length together, in few static shapes.

  Args:
    lengths: tokens of every text, at least 1.
    tokens_per_batch: about how many tokens a batch has, padding included.
    row_multiple: what the number of rows is a multiple of.

  Yields:
    (indices of at most `rows` texts, rows, padded length).
  """
  order = np.argsort(lengths, kind="stable")
  longest = int(lengths.max())
  start = 0
  for padded in sorted({attention.row_length(-(-longest // part), 8) for part in _LENGTHS}):
    end = int(np.searchsorted(lengths[order], padded, side="right"))
    rows = max(1, min(tokens_per_batch // padded, end - start))
    rows = -(-rows // row_multiple) * row_multiple
    for first in range(start, end, rows):
      yield order[first:min(first + rows, end)], rows, padded
    start = end


def collect(states: Callable, texts: Sequence[np.ndarray], tokens_per_batch: int,
            row_multiple: int = 1,
            report: Callable[[int], None] = lambda done: None) -> np.ndarray:
  """Pooled states of many texts and all members.

  Args:
    states: (tokens_BxL, lengths_B) to arrays [M, N + 1, 2, B, D], `pooled_states` mapped over
      members; it may return before they are computed.
    texts: token ids of each text, at least one.
    tokens_per_batch, row_multiple: as of `batches`.
    report: called with the number of texts done so far.

  Returns:
    float32 [M, N + 1, 2, n, D] in the order of `texts`.
  """
  out, pending, done = None, None, 0

  def store(indices, made):
    nonlocal out, done
    made = np.asarray(made)[:, :, :, :len(indices)]
    if out is None:
      out = np.empty((*made.shape[:3], len(texts), made.shape[-1]), np.float32)
    out[:, :, :, indices] = made
    done += len(indices)
    report(done)

  lengths = np.array([len(t) for t in texts])
  for indices, rows, padded in batches(lengths, tokens_per_batch, row_multiple):
    tokens_BxL, lengths_B = np.zeros((rows, padded), np.int32), np.ones(rows, np.int32)
    for row, i in enumerate(indices):
      tokens_BxL[row, :lengths[i]], lengths_B[row] = texts[i], lengths[i]
    made = states(tokens_BxL, lengths_B)
    if pending is not None:  # read while the next batch is computed
      store(*pending)
    pending = indices, made
  store(*pending)
  return out
