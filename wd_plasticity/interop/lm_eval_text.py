"""Texts scored and continued as lm-evaluation-harness asks for it, without the harness.

How texts become tokens, what is cut when they are too long and what counts as greedy are
those of the harness's own backend for transformers (`lm_eval.models.huggingface`), so that
scores mean the same. One model is read at a time; rows are divided among the devices.

Letters beside those of docs/architecture.md: T targets of a row.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wd_plasticity.data.tokenizers import Tokenizer
from wd_plasticity.errors import UserError
from wd_plasticity.finetuning import scoring
from wd_plasticity.generation.generate import Generator
from wd_plasticity.generation.sampling import Sampling, most_likely
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.models.loss import default_tile_tokens
from wd_plasticity.training import mesh as mesh_lib

# Continuations are looked through for stops after so many tokens: most tasks ask for short
# answers, and allow for long ones.
_FIRST_TOKENS = 64


class TextModel:
  """Log-likelihoods and continuations of texts under one model.

  Attributes:
    params_M: parameters on the mesh, stacked; the first member is read. May be replaced by
      those of another checkpoint, compiled programs stay.
    max_length: tokens that are read at most.
    num_cut: contexts that lost their beginning so far; may be set back.
    parts: how many times smaller batches are than is usual; may be set.
  """

  def __init__(self, model: ModelConfig, tokenizer: Tokenizer, mesh: Mesh, num_members: int,
               params_M: dict, *, max_length: int, add_bos_token: bool = False):
    """Prepares; programs are compiled when a shape is first met.

    Args:
      model: sizes.
      tokenizer: of the model.
      mesh: as of `mesh_lib.make_mesh`.
      num_members: size of the member axis of the parameters.
      params_M: see the attributes.
      max_length: see the attributes.
      add_bos_token: whether the end of sequence, which stands before a document in
        pretraining, is put before every context; one that is empty always gets it.

    Raises:
      UserError: `max_length` is not positive.
    """
    if max_length < 1:
      raise UserError(f"max_length={max_length} must be at least 1.")
    self.params_M, self.max_length, self.num_cut, self.parts = params_M, max_length, 0, 1
    self._model, self._tokenizer, self._mesh = model, tokenizer, mesh
    self._num_members, self._add_bos_token = num_members, add_bos_token
    self._generators: dict[tuple[Sampling, int], Generator] = {}
    self._run = jax.jit(
        mesh_lib.over_members(self._token_scores, (0, None, None, None), num_members),
        out_shardings=mesh_lib.sharding(mesh, P()))

  # Log-likelihoods.

  def likelihoods(self, pairs: Sequence[tuple[str, str]],
                  on_done: Callable[[int], None] | None = None) -> list[tuple[float, bool]]:
    """Of each (context, continuation): nats, and whether greedy decoding would write it.

    Spaces at the end of a context are read as the beginning of the continuation. What is
    longer than `max_length` loses its beginning.

    Args:
      pairs: texts.
      on_done: told the number of pairs done.

    Raises:
      UserError: a continuation alone is longer than `max_length`.
    """
    contexts, wholes = [], []
    for context, continuation in pairs:
      read = context.rstrip()
      contexts.append(read)
      wholes.append(context + continuation)
    ids = self._encode_once(contexts + wholes)
    wanted = []
    for read, whole in zip(contexts, wholes, strict=True):
      before = ids[read]
      after = ids[whole][len(before):]
      if read and not len(after) and len(whole) > len(read):
        # The continuation has become part of the context's last token.
        after = self._encode([whole[len(read):]])[0]
      wanted.append((self._context(before), after))
    return self.token_likelihoods(wanted, on_done)

  def rolling(self, texts: Sequence[str],
              on_done: Callable[[int], None] | None = None) -> list[float]:
    """The log-likelihood of each whole text, in nats.

    A text begins after the end of sequence; one longer than `max_length` is read in windows
    that predict every token once, the last with as much context as there is room for.

    Args:
      texts: any length.
      on_done: told the number of windows done.
    """
    windows, owners = [], []
    for i, ids in enumerate(self._encode(texts)):
      made = list(self._windows(ids))
      windows += made
      owners += [i] * len(made)
    total = np.zeros(len(texts), np.float64)
    scored = self.token_likelihoods(windows, on_done)
    np.add.at(total, np.array(owners, np.int64), [nats for nats, _ in scored])
    return total.tolist()

  def token_likelihoods(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]],
                        on_done: Callable[[int], None] | None = None) -> list[tuple[float, bool]]:
    """As `likelihoods`, of token ids; contexts have one at least."""
    wanted = self._requests(pairs)
    nats = np.zeros(len(pairs), np.float64)
    greedy = np.ones(len(pairs), bool)
    done = 0

    tokens = scoring.batch_tokens(self._mesh, self._num_members, self.parts)

    def run(*arrays):
      with jax.set_mesh(self._mesh):  # hand-written kernels find the mesh by its context
        return self._run(self.params_M, *arrays)

    for made, chosen in scoring.run_batches(run, wanted, self._mesh, tokens):
      nats_BxT, greedy_BxT = (np.asarray(x)[0] for x in made)
      for row, request in enumerate(chosen):
        n = len(request.owners)
        np.add.at(nats, request.owners, nats_BxT[row, :n].astype(np.float64))
        np.logical_and.at(greedy, request.owners, greedy_BxT[row, :n])
        done += len(np.unique(request.owners))
      if on_done:
        on_done(done)
    return list(zip(nats.tolist(), greedy.tolist(), strict=True))

  def _requests(self, pairs) -> list[scoring.Request]:
    """One request for all pairs that read the same tokens, such as options of one token."""
    alike: dict[bytes, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for i, (context, continuation) in enumerate(pairs):
      if len(continuation) > self.max_length:
        raise UserError(
            f"a continuation of {len(continuation)} tokens is longer than the {self.max_length} "
            f"that the model reads; give max_length={len(continuation)} or more.")
      self.num_cut += len(context) + len(continuation) > self.max_length + 1
      if len(continuation):
        inputs = np.concatenate([context, continuation])[-(self.max_length + 1):-1]
        alike.setdefault(inputs.tobytes(), []).append((i, inputs, continuation))
    made = []
    for same in alike.values():
      inputs = same[0][1]
      made.append(scoring.Request(
          inputs,
          np.concatenate([np.arange(len(inputs) - len(c), len(inputs)) for _, _, c in same]),
          np.concatenate([c for _, _, c in same]),
          np.concatenate([np.full(len(c), i) for i, _, c in same])))
    return made

  def _token_scores(self, params, inputs_BxL, positions_BxT, targets_BxT):
    """Log-probability of every target and whether it is the most likely token, both [B, T]."""
    x_BxLxD = decoder.hidden_states(params, self._model, inputs_BxL)
    x_BxTxD = jnp.take_along_axis(x_BxLxD, positions_BxT[..., None], axis=1)
    w_DxV = decoder.head_kernel(params, self._model).astype(x_BxTxD.dtype)
    batch, length = targets_BxT.shape  # a power of four
    tile = 1
    while 2 * tile <= min(length, max(1, default_tile_tokens() // batch)):
      tile *= 2

    def score(part):  # the logits of all targets at once would be too large
      x_BxtxD, targets_Bxt = part
      logits = jnp.einsum("btd,dv->btv", x_BxtxD, w_DxV, preferred_element_type=jnp.float32)
      picked = jnp.take_along_axis(logits, targets_Bxt[..., None], axis=-1)[..., 0]
      return (picked - jax.nn.logsumexp(logits, axis=-1), most_likely(logits) == targets_Bxt)

    def cut(array):
      return jnp.moveaxis(array.reshape(batch, length // tile, tile, *array.shape[2:]), 1, 0)

    made = jax.lax.map(score, (cut(x_BxTxD), cut(targets_BxT)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, length), made)

  def _windows(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(context, continuation) pairs in which every id is predicted once."""
    size = self.max_length
    first = ids[:size]
    if len(first):
      yield self._eos, first
    for begin in range(len(first), len(ids), size):
      end = min(begin + size, len(ids))
      yield ids[end - size - 1:begin], ids[begin:end]

  # Continuations.

  def continuations(self, contexts: Sequence[str], stops: Sequence[str], sampling: Sampling,
                    seed: int = 0, on_done: Callable[[int], None] | None = None) -> list[str]:
    """What follows each context, up to the first stop or the end of sequence.

    A context keeps as many of its last tokens as leave room for `max_new_tokens`.

    Args:
      contexts: texts.
      stops: texts that end a continuation and are not part of it.
      sampling: how tokens are chosen, one sample per context.
      seed: of the draws; equal contexts at different places are drawn independently.
      on_done: told the number of contexts done.

    Raises:
      UserError: `max_new_tokens` leaves no room for a context.
    """
    room = prompt_room(self.max_length, sampling.max_new_tokens)
    whole = [self._context(ids) for ids in self._encode(contexts)]
    self.num_cut += sum(len(ids) > room for ids in whole)
    prompts = [ids[-room:] for ids in whole]
    made: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    texts = [""] * len(prompts)
    waiting = list(range(len(prompts)))
    for stage, size in enumerate(_stages(sampling.max_new_tokens)):
      if not waiting:
        break
      # Places among all contexts, and the stage, decide the draws.
      generator = self._generator(dataclasses.replace(sampling, max_new_tokens=size))
      with jax.set_mesh(self._mesh):
        generated = generator.generate(
            self.params_M, [np.concatenate([prompts[i], made[i]]) for i in waiting], seed + stage)
      left = []
      for place, i in enumerate(waiting):
        new = generated.continuation(0, place)
        made[i] = np.concatenate([made[i], new])
        whole = self._tokenizer.decode(made[i])
        texts[i] = _before_stop(whole, stops)
        if len(new) == size and texts[i] == whole:
          left.append(i)
      waiting = left
      if on_done:
        on_done(len(prompts) - len(waiting))
    return texts

  def _generator(self, sampling: Sampling) -> Generator:
    key = sampling, self.parts
    if key not in self._generators:
      self._generators[key] = Generator(
          self._model, self._mesh, self._num_members, sampling, self._tokenizer.eos_id,
          num_tokens=self._tokenizer.vocab_size, parts=self.parts)
    return self._generators[key]

  # Tokens.

  @property
  def _eos(self) -> np.ndarray:
    return np.array([self._tokenizer.eos_id], np.int32)

  def _context(self, ids: np.ndarray) -> np.ndarray:
    """With the end of sequence before it where that is wanted, or nothing else is there."""
    return np.concatenate([self._eos, ids]) if self._add_bos_token or not len(ids) else ids

  def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return self._tokenizer.encode_batch(list(texts))

  def _encode_once(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Ids by text: the options of a problem share their context."""
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, self._encode(distinct), strict=True))


def prompt_room(max_length: int, max_new_tokens: int) -> int:
  """Tokens of a context that are read before so many new ones.

  Raises:
    UserError: none are.
  """
  if max_length <= max_new_tokens:
    raise UserError(
        f"{max_new_tokens} new tokens leave no room for a prompt in the {max_length} that the "
        "model reads; give a smaller max_gen_toks, in the generation_kwargs of the task or, where "
        "it has none, to this program, or a larger max_length.")
  return max_length - max_new_tokens


def _stages(max_new_tokens: int) -> list[int]:
  """Tokens that are made before the text is looked through for stops."""
  if max_new_tokens < 2 * _FIRST_TOKENS:
    return [max_new_tokens]
  return [_FIRST_TOKENS, max_new_tokens - _FIRST_TOKENS]


def _before_stop(text: str, stops: Sequence[str]) -> str:
  for stop in filter(None, stops):
    text = text.split(stop, 1)[0]
  return text
