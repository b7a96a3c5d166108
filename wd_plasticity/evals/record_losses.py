"""Losses of pretraining records under stacked members, as in pretraining."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from wd_plasticity.evals.program import Session
from wd_plasticity.models import decoder, loss
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.training.step import document_ids


def compile_losses(session: Session, model: ModelConfig, num_members: int,
                   end_of_document: int) -> Callable:
  """A function (params_M, tokens [B, L+1]) -> losses_MxBxL, float32 in nats."""
  # A tile holds the same share of every device's rows.
  tile_tokens = loss.default_tile_tokens() * session.row_shares

  def token_losses(params, tokens_BxL):
    inputs_BxL, targets_BxL = tokens_BxL[:, :-1], tokens_BxL[:, 1:]
    segments_BxL = document_ids(inputs_BxL, end_of_document if model.document_mask else None)
    x_BxLxD = decoder.record_states(params, model, inputs_BxL, segments_BxL)
    return loss.token_losses(x_BxLxD, decoder.head_kernel(params, model), targets_BxL,
                             tile_tokens=tile_tokens)

  return session.compile(token_losses, (0, None), num_members)


def batches(session: Session, token_losses: Callable, records: np.ndarray, indices: np.ndarray,
            rows: int) -> Iterator[tuple[int, np.ndarray]]:
  """The losses of chosen records, in batches.

  Args:
    session: of the program.
    token_losses: tokens [B, L+1] to losses_MxBxL, on the devices.
    records: [n, L+1].
    indices: which of them.
    rows: B, a multiple of `session.row_shares`.

  Yields:
    (place in `indices` of the first row, losses_MxBxL); the last batch is filled up with
    copies. One batch is computed while another is read.
  """
  pending = None
  for start in range(0, len(indices), rows):
    chosen = indices[start:start + rows]
    filled = np.concatenate([chosen, np.repeat(chosen[:1], rows - len(chosen))])
    made = start, token_losses(session.put(np.asarray(records[filled], np.int32)))
    if pending is not None:
      yield pending[0], jax.device_get(pending[1])
    pending = made
  if pending is not None:
    yield pending[0], jax.device_get(pending[1])
