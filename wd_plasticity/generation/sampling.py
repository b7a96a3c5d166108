"""From logits to the next token: repetition penalty, temperature, top-p, then a draw.

The steps and their order are those of transformers' logits processors, so that settings
mean the same in both. Letters: R rows (prompts times samples), V vocabulary.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from wd_plasticity.errors import UserError

_BLOCK = 128  # tokens of the vocabulary that are summed before one of them is drawn


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How continuations are chosen.

  Attributes:
    max_new_tokens: most tokens of a continuation, its end mark not counted among them.
    temperature: divides the logits; 0 takes the most likely token (greedy).
    top_p: draws among the fewest tokens whose probabilities sum to at least this (nucleus
      sampling, Holtzman et al. 2020); 1 draws among all.
    repetition_penalty: logits of tokens that stand in the prompt or in what was generated
      are divided by it where positive and multiplied where negative (CTRL, Keskar et al.
      2019, section 4.1, in the form that transformers uses); 1 changes nothing. The end
      mark is exempt: it may stand before a prompt, where other tokenizers have a mark of
      its own for the beginning.
    num_samples: continuations drawn for each prompt.

  Raises:
    UserError: at construction, for a value out of range.
  """

  max_new_tokens: int
  temperature: float = 0.0
  top_p: float = 1.0
  repetition_penalty: float = 1.0
  num_samples: int = 1

  def __post_init__(self):
    def refuse(name, wanted):
      raise UserError(f"{name}={getattr(self, name)} must be {wanted}.")
    for name in ("max_new_tokens", "num_samples"):
      if getattr(self, name) < 1:
        refuse(name, "at least 1")
    if not 0 <= self.temperature < math.inf:
      refuse("temperature", "0 (greedy) or a positive number")
    if not 0 < self.top_p <= 1:
      refuse("top_p", "above 0 and at most 1 (all tokens)")
    if not 0 < self.repetition_penalty < math.inf:
      refuse("repetition_penalty", "a positive number, 1 for none")
    if self.num_samples > 1 and self.temperature == 0:
      refuse("num_samples", "1 at temperature 0, where all samples would be the same")


def penalise(logits_RxV: jax.Array, seen_RxV: jax.Array, penalty: float) -> jax.Array:
  """Logits with those of seen tokens (bool) made less likely; see `Sampling`."""
  penalised = jnp.where(logits_RxV < 0, logits_RxV * penalty, logits_RxV / penalty)
  return jnp.where(seen_RxV, penalised, logits_RxV)


def nucleus(logits_RxV: jax.Array, top_p: float) -> jax.Array:
  """Float32 logits with those outside the nucleus at -inf.

  A token is dropped when it and all that are no more likely have at most 1 - top_p of the
  probability; the most likely token always stays. Tokens that are equally likely stay or
  fall together.

  Nothing is sorted: the largest probability whose token is dropped is found bit by bit,
  because float32 numbers above 0 are ordered as the integers of the same bits.
  """
  probs_RxV = jax.nn.softmax(logits_RxV, axis=-1)
  bits_RxV = jax.lax.bitcast_convert_type(probs_RxV, jnp.int32)

  def try_bit(i, threshold_R):
    raised_R = threshold_R | (1 << (29 - i))  # probabilities are at most 1, bits 30 and 31 are 0
    below_RxV = bits_RxV <= raised_R[:, None]
    mass_R = jnp.sum(jnp.where(below_RxV, probs_RxV, 0.0), axis=-1)
    return jnp.where(mass_R <= 1 - top_p, raised_R, threshold_R)

  threshold_R = jax.lax.fori_loop(0, 30, try_bit, jnp.zeros(logits_RxV.shape[:1], jnp.int32))
  keep_RxV = (bits_RxV > threshold_R[:, None]) | (
      logits_RxV == jnp.max(logits_RxV, axis=-1, keepdims=True))
  return jnp.where(keep_RxV, logits_RxV, -jnp.inf)


def draw(logits_RxV: jax.Array, keys_R: jax.Array) -> jax.Array:
  """One token of every row by softmax(logits): inversion of the cumulative probabilities.

  In two stages with a number of their own, the block of the vocabulary and the token in
  it: this needs one pass over the vocabulary, where a draw by Gumbel noise would need as
  many random numbers as there are tokens (30 times slower on a CPU at V = 4096).
  """
  rows, vocab_size = logits_RxV.shape
  padding = -vocab_size % _BLOCK
  logits_RxV = jnp.pad(logits_RxV, ((0, 0), (0, padding)), constant_values=-jnp.inf)
  weights_RxV = jnp.exp(logits_RxV - jnp.max(logits_RxV, axis=-1, keepdims=True))
  weights_RxCxI = weights_RxV.reshape(rows, -1, _BLOCK)
  uniform_Rx2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_R)
  block_R = _invert(jnp.sum(weights_RxCxI, axis=-1), uniform_Rx2[:, 0])
  weights_RxI = jnp.take_along_axis(weights_RxCxI, block_R[:, None, None], axis=1)[:, 0]
  return block_R * _BLOCK + _invert(weights_RxI, uniform_Rx2[:, 1])


def _invert(weights_RxI, uniform_R):
  """The first index whose cumulative weight is above uniform times the total."""
  # Weights of 0 are never taken, even where rounding moves the cumulative sum.
  sums_RxI = jnp.where(weights_RxI > 0, jnp.cumsum(weights_RxI, axis=-1), 0.0)
  target_R = uniform_R * jnp.max(sums_RxI, axis=-1)
  return jnp.argmax(sums_RxI > target_R[:, None], axis=-1).astype(jnp.int32)


def most_likely(logits_RxV: jax.Array) -> jax.Array:
  """The first of the largest logits of every row; jnp.argmax, but fast on CPUs."""
  vocab_size = logits_RxV.shape[-1]
  largest_R = jnp.max(logits_RxV, axis=-1, keepdims=True)
  index_RxV = jnp.where(logits_RxV == largest_R, jnp.arange(vocab_size), vocab_size - 1)
  return jnp.min(index_RxV, axis=-1).astype(jnp.int32)


def warp(logits_RxV: jax.Array, seen_RxV: jax.Array | None, sampling: Sampling) -> jax.Array:
  """The logits whose softmax is drawn from, at a temperature above 0; arguments of `choose`."""
  if seen_RxV is not None:
    logits_RxV = penalise(logits_RxV, seen_RxV, sampling.repetition_penalty)
  logits_RxV = logits_RxV / sampling.temperature
  return nucleus(logits_RxV, sampling.top_p) if sampling.top_p < 1 else logits_RxV


def choose(logits_RxV: jax.Array, seen_RxV: jax.Array | None, keys_R: jax.Array,
           sampling: Sampling) -> jax.Array:
  """The next token of every row, int32.

  Args:
    logits_RxV: float32.
    seen_RxV: bool, tokens of the prompt and of what was generated that are penalised; None
      without penalty.
    keys_R: jax.random keys, one per row; not used at temperature 0.
    sampling: the settings.
  """
  if sampling.temperature > 0:
    return draw(warp(logits_RxV, seen_RxV, sampling), keys_R)
  if seen_RxV is not None:
    logits_RxV = penalise(logits_RxV, seen_RxV, sampling.repetition_penalty)
  return most_likely(logits_RxV)
