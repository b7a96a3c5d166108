"""Log-likelihood of given responses after given prompts, for stacked members.

Where every response of a prompt is a single token, the prompt is read once for all of
them. The end of sequence is not part of a response, as in lm-evaluation-harness.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wd_plasticity.models import decoder, loss
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.training import mesh as mesh_lib

_CPU_TOKENS, _TOKENS = 4096, 65_536  # of a batch, per device


@dataclasses.dataclass(frozen=True)
class Request:
  """One sequence to read, and tokens whose probability is wanted.

  Attributes:
    inputs: int32 ids.
    positions: indices into `inputs` after which a wanted token stands.
    targets: the wanted tokens.
    owners: for each of them the number of the response it is part of.
  """
  inputs: np.ndarray
  positions: np.ndarray
  targets: np.ndarray
  owners: np.ndarray


def requests(prompts: Sequence[np.ndarray], responses: Sequence[Sequence[np.ndarray]],
             ) -> list[Request]:
  """What has to be read to score the responses of each prompt.

  Responses are numbered through: those of the first prompt, then those of the second, ...
  """
  made, number = [], 0
  for prompt, options in zip(prompts, responses, strict=True):
    last = len(prompt) - 1
    if options and all(len(o) == 1 for o in options):
      made.append(Request(prompt, np.full(len(options), last), np.concatenate(options),
                          np.arange(number, number + len(options))))
    else:
      for k, option in enumerate(options):
        made.append(Request(np.concatenate([prompt, option[:-1]]), last + np.arange(len(option)),
                            option, np.full(len(option), number + k)))
    number += len(options)
  return made


class Scorer:
  """Scores responses of M stacked members."""

  def __init__(self, model: ModelConfig, mesh: Mesh, num_members: int, parts: int = 1):
    self._mesh, self._num_members = mesh, num_members
    self._tokens = batch_tokens(mesh, num_members, parts)

    def log_probabilities(params, inputs_BxL, positions_BxT, targets_BxT):
      x_BxLxD = decoder.hidden_states(params, model, inputs_BxL)
      x_BxTxD = jnp.take_along_axis(x_BxLxD, positions_BxT[..., None], axis=1)
      return -loss.token_losses(x_BxTxD, decoder.head_kernel(params, model), targets_BxT)

    self._run = jax.jit(
        mesh_lib.over_members(log_probabilities, (0, None, None, None), num_members),
        out_shardings=mesh_lib.sharding(mesh, P()))

  def score(self, params_M, wanted: Sequence[Request], num_responses: int,
            on_batch: Callable[[int], None] | None = None) -> np.ndarray:
    """Log-likelihoods [M, num_responses] in nats, summed over the tokens of each response.

    Args:
      params_M: stacked parameters on the mesh.
      wanted: of `requests`.
      num_responses: how many responses they are of.
      on_batch: told the number of requests done.
    """
    total = np.zeros((self._num_members, num_responses), np.float64)
    done = 0
    for made, chosen in run_batches(functools.partial(self._run, params_M), wanted, self._mesh,
                                    self._tokens):
      self._add(total, made, chosen)
      done += len(chosen)
      if on_batch:
        on_batch(done)
    return total

  def _add(self, total, made, chosen):
    values_MxBxT = np.asarray(made, np.float64)
    for row, request in enumerate(chosen):
      # A response may own several tokens of a row, so plain indexed addition would lose some.
      np.add.at(total, (slice(None), request.owners), values_MxBxT[:, row, :len(request.owners)])


def batch_tokens(mesh: Mesh, num_members: int, parts: int = 1) -> int:
  """Tokens of a batch on one device, for each of the members that are stacked there.

  Args:
    mesh: of the program.
    num_members: stacked in it.
    parts: how many times fewer than is usual.
  """
  if jax.default_backend() == "cpu":
    return max(1, _CPU_TOKENS // parts)
  return max(1, _TOKENS // (parts * -(-num_members // mesh.shape["sweep"])))


def run_batches(run: Callable[..., Any], wanted: Sequence[Request], mesh: Mesh,
                tokens: int) -> Iterator[tuple[Any, list[Request]]]:
  """What `run` makes of the batches of `batches`, and the requests of each.

  A batch is handed out when the next one has been started, so that the devices do not wait
  for the one who reads it.

  Args:
    run: (inputs_BxL, positions_BxT, targets_BxT), laid on the mesh, to arrays.
    wanted: requests.
    mesh: whose devices divide the rows.
    tokens: of a batch on one device.
  """
  pending = None
  for arrays, chosen in batches(wanted, mesh_lib.row_shares(mesh), tokens):
    started = run(*(mesh_lib.put(mesh, a, mesh_lib.ROWS) for a in arrays)), chosen
    if pending is not None:
      yield pending
    pending = started
  if pending is not None:
    yield pending


def batches(wanted: Sequence[Request], shares: int, tokens: int) -> Iterator[
    tuple[list[np.ndarray], list[Request]]]:
  """Requests of similar length together, in few shapes, because each is compiled.

  Args:
    wanted: in any order.
    shares: the number of rows is a multiple of this (devices they are divided among).
    tokens: of a batch on one device.

  Yields:
    inputs [B, L], positions and targets [B, T], padded with 0, and the requests of the
    first rows.
  """
  alike: dict[tuple[int, int], list[Request]] = {}
  for request in wanted:
    shape = (_power(2, max(32, len(request.inputs))), _power(4, max(4, len(request.targets))))
    alike.setdefault(shape, []).append(request)
  for (length, targets), same in sorted(alike.items()):
    rows = max(1, tokens // length)
    rows = min(_power(2, rows + 1) // 2, _power(2, -(-len(same) // shares)))
    rows *= shares
    for begin in range(0, len(same), rows):
      chosen = same[begin:begin + rows]
      arrays = [np.zeros((rows, size), np.int32) for size in (length, targets, targets)]
      for row, request in enumerate(chosen):
        for array, values in zip(arrays, (request.inputs, request.positions, request.targets),
                                 strict=True):
          array[row, :len(values)] = values
      yield arrays, chosen


def _power(base: int, n: int) -> int:
  """The smallest power of `base` that is at least n."""
  power = 1
  while power < n:
    power *= base
  return power
