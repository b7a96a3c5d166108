"""Continuations of prompts with a key/value cache, all decoding on the devices.

Prompts are padded on the right to one of a few lengths, and a batch of them is one
program: the pass over the prompts, then a loop over new tokens that ends when every row
has. Keys and values of a prompt are kept once, however many samples are drawn from it;
those of new tokens stand in a second cache with a slot per step, which grows as the loop
goes on, so that early steps do not read the slots of late ones. A row of length n has its
new tokens at the positions n, n + 1, ..., wherever they are stored.

Letters beside those of docs/architecture.md: L slots of a prompt, S samples, R rows
(B prompts times S samples), T new tokens, C slots of the cache of new tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wd_plasticity.errors import UserError
from wd_plasticity.generation import sampling as sampling_lib
from wd_plasticity.generation.batches import Batch, make_batches
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.models import decoder, layers
from wd_plasticity.models.attention import attend, row_length
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.training import mesh as mesh_lib

_FIRST_SLOTS = 128  # of the cache of new tokens; it is doubled when it is full


@dataclasses.dataclass(frozen=True)
class Generated:
  """Continuations in the order of the prompts.

  Attributes:
    tokens_MxPxSxT: int32; what follows the end of a continuation is the end mark.
    lengths_MxPxS: int32, tokens of each continuation without its end mark.
  """

  tokens_MxPxSxT: np.ndarray
  lengths_MxPxS: np.ndarray

  def continuation(self, member: int, prompt: int, sample: int = 0) -> np.ndarray:
    """The tokens of one continuation, without the end mark."""
    length = self.lengths_MxPxS[member, prompt, sample]
    return self.tokens_MxPxSxT[member, prompt, sample, :length]


class Generator:
  """Compiled generation for members of one size; `generate` may be called many times."""

  def __init__(self, model: ModelConfig, mesh: Mesh, num_members: int, sampling: Sampling,
               eos_id: int | None, *, num_tokens: int, memory_bytes: int = 0, parts: int = 1):
    """Prepares; programs are compiled when a length is first met.

    Args:
      model: sizes; `model.attention` is not used, because prompts have any length.
      mesh: as of `mesh_lib.make_mesh`; prompts are divided among the axes data and fsdp.
      num_members: members stacked in the parameters.
      sampling: how tokens are chosen.
      eos_id: the token that ends a continuation; None: all have max_new_tokens.
      num_tokens: size of the tokenizer; ids from here on, to which the model's vocabulary
        may be padded, are never chosen.
      memory_bytes: of a device, for caches and logits; 0: a share of what it has.
      parts: how many times fewer prompts than fit are read at once.

    Raises:
      UserError: `num_tokens` or `eos_id` is not in the vocabulary.
    """
    if not 0 < num_tokens <= model.vocab_size:
      raise UserError(f"a tokenizer of {num_tokens} tokens does not fit the model's vocabulary of "
                      f"{model.vocab_size}; use the tokenizer it was trained with.")
    if eos_id is not None and not 0 <= eos_id < num_tokens:
      raise UserError(f"the end mark {eos_id} is not among the {num_tokens} tokens; use the "
                      "tokenizer the model was trained with.")
    self.model, self.mesh, self.num_members = model, mesh, num_members
    self.sampling, self.eos_id = sampling, eos_id
    self._decoding = _Decoding(model, mesh, sampling, eos_id, num_tokens)
    self._memory_bytes, self._parts = memory_bytes, parts
    shapes = decoder.param_shapes(model)
    specs = mesh_lib.parameter_specs(shapes)
    gathered = jax.tree.map(
        lambda spec: NamedSharding(mesh, mesh_lib.with_members(_without_fsdp(spec))), specs,
        is_leaf=lambda s: isinstance(s, P))
    replicated = NamedSharding(mesh, P())
    self._prepare = jax.jit(functools.partial(_cast, model=model), out_shardings=gathered)
    self._run = jax.jit(
        self._generate_batch,
        in_shardings=(gathered, *[NamedSharding(mesh, mesh_lib.ROWS)] * 4, replicated),
        out_shardings=replicated)

  def generate(self, params_M: dict, prompts: Sequence[np.ndarray], seed: int = 0,
               on_batch: Callable[[int], None] | None = None) -> Generated:
    """Continues every prompt, with every member.

    A continuation is a function of the member, the prompt, its place in `prompts`, the
    sample and the seed: not of the other prompts, of the mesh or of other members, up to
    the rounding of products, which may depend on how many rows are computed together.

    Args:
      params_M: parameters stacked on a leading member axis, laid out by mesh_lib.RULES.
      prompts: int token ids of each, at least one. A prompt with its continuation may be
        longer than the records of pretraining; nothing is cut here.
      seed: of the draws; the same random numbers serve all members.
      on_batch: called with the number of prompts done so far, after every batch.

    Returns:
      What was generated, on every process.

    Raises:
      UserError: a prompt is empty or holds a token outside the vocabulary.
    """
    _check_prompts(prompts, self.model.vocab_size)
    s = self.sampling
    shape = (self.num_members, len(prompts), s.num_samples)
    tokens = np.full((*shape, s.max_new_tokens), self._decoding.filler, np.int32)
    lengths = np.zeros(shape, np.int32)
    params_M = self._prepare(params_M)
    shares = mesh_lib.row_shares(self.mesh)
    done = 0
    for batch in make_batches(prompts, self.model, s, shares,
                              -(-self.num_members // self.mesh.shape["sweep"]),
                              self._memory_bytes, self._parts):
      rows = self._run(params_M, *self._place(batch), np.uint32(seed % 2**32))
      count = len(batch.prompts)
      tokens[:, batch.prompts], lengths[:, batch.prompts] = (
          np.asarray(x)[:, :count] for x in rows)
      done += count
      if on_batch:
        on_batch(done)
    return Generated(tokens, lengths)

  def _place(self, batch: Batch):
    return [mesh_lib.put(self.mesh, a, mesh_lib.ROWS)
            for a in (batch.tokens_BxL, batch.lengths_B, batch.index_B, batch.is_prompt_B)]

  def _generate_batch(self, params_M, tokens_BxL, lengths_B, index_B, is_prompt_B, seed):
    """tokens [M, B, S, T] and lengths [M, B, S] of one batch."""
    d, members = self._decoding, self.num_members
    over = functools.partial(mesh_lib.over_members, num_members=members)
    if members == 1:
      # Without the axis from here on: XLA copies caches that gain and lose it in the loop.
      params_M = jax.tree.map(lambda x: x[0], params_M)
      over = lambda fn, in_axes: fn
    keys_R = _row_keys(seed, index_B, self.sampling.num_samples)
    prompt_M, state_M = over(d.start, (0, None, None, None, None))(
        params_M, tokens_BxL, lengths_B, is_prompt_B, keys_R)
    step = over(d.step, (0, 0, 0, None, None, None))
    # The loop is around the members, not mapped over them: as part of a mapped loop every
    # step would copy the caches to keep those of members that have ended.
    t = jnp.int32(0)
    for slots in d.cache_sizes():
      state_M = over(functools.partial(d.grow, slots=slots), (0,))(state_M)
      last = min(slots, self.sampling.max_new_tokens - 1)
      t, state_M = jax.lax.while_loop(
          lambda carry, last=last: (carry[0] < last) & ~jnp.all(carry[1]["done"]),
          lambda carry: (carry[0] + 1, step(params_M, prompt_M, carry[1], lengths_B, keys_R,
                                            carry[0])),
          (t, state_M))
    shape = (members, tokens_BxL.shape[0], self.sampling.num_samples)
    return state_M["tokens"].reshape(*shape, -1), state_M["length"].reshape(shape)


class _Decoding:
  """The functions of one member: `start` reads the prompts, `step` makes one token.

  The state is a dict: `token` [R] (the newest), `done` bool [R], `length` [R], `tokens`
  [R, T], `keys` and `values` (lists of N arrays [R, G, C, K]), and `seen` bool [R, V] under
  a repetition penalty.

  Layers are unrolled and have a cache array each: where a loop over layers takes its part
  of one array, XLA copies the part, and reading the caches is most of the work of a step.
  """

  def __init__(self, model: ModelConfig, mesh: Mesh, sampling: Sampling, eos_id: int | None,
               num_tokens: int):
    self.model = dataclasses.replace(model, scan_layers=False, remat="none")
    self.sampling, self.num_tokens = sampling, num_tokens
    self.eos_id = eos_id
    self.filler = 0 if eos_id is None else eos_id
    # XLA's bfloat16 on CPUs turns all of a cache to float32 and back in every step.
    on_cpu = jax.default_backend() == "cpu"
    self.cache_dtype = jnp.dtype("float32" if on_cpu else model.compute_dtype)
    heads = "tensor" if model.num_kv_heads % mesh.shape["tensor"] == 0 else None
    self._cache_sharding = NamedSharding(mesh, P(*mesh_lib.ROWS, heads))

  def cache_sizes(self) -> list[int]:
    """Slots of the cache of new tokens, growing; the newest token needs none."""
    needed, sizes = row_length(max(self.sampling.max_new_tokens - 1, 1)), []
    while not sizes or sizes[-1] < needed:
      sizes.append(min(needed, 2 * sizes[-1] if sizes else _FIRST_SLOTS))
    return sizes

  def start(self, params, tokens_BxL, lengths_B, is_prompt_B, keys_R):
    """Keys and values of the prompts, N pairs of [B, G, L, K]; state after the first token."""
    c, samples = self.model, self.sampling.num_samples
    rope = self._rope(tokens_BxL.shape[1])
    prompt = []

    def mix(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, _):
      k_BxLxGxK = layers.apply_rope(k_BxLxGxK, rope)
      y_BxLxHxK = attend(layers.apply_rope(q_BxLxHxK, rope), k_BxLxGxK, v_BxLxGxK)
      prompt.append([self._constrain(t.swapaxes(1, 2).astype(self.cache_dtype))
                     for t in (k_BxLxGxK, v_BxLxGxK)])
      return y_BxLxHxK, None

    x_BxLxD, _ = decoder.run_layers(params, c, decoder.embed(params, c, tokens_BxL), mix)
    last_Bx1x1 = (lengths_B - 1)[:, None, None]
    x_BxD = jnp.take_along_axis(x_BxLxD, last_Bx1x1, axis=1)[:, 0]
    logits_RxV = jnp.repeat(self._logits(params, x_BxD), samples, axis=0)
    rows = logits_RxV.shape[0]
    empty = [jnp.zeros((rows, c.num_kv_heads, 0, c.head_dim), self.cache_dtype)] * c.num_layers
    state = {
        "keys": empty, "values": empty,
        "done": jnp.repeat(~is_prompt_B, samples), "length": jnp.zeros(rows, jnp.int32),
        "tokens": jnp.full((rows, self.sampling.max_new_tokens), self.filler, jnp.int32)}
    if self.sampling.repetition_penalty != 1:
      state["seen"] = jnp.repeat(self._seen(tokens_BxL, lengths_B), samples, axis=0)
    return prompt, self._choose(state, logits_RxV, keys_R, jnp.int32(0))

  def grow(self, state, slots):
    """The state with that many slots in the cache of new tokens."""
    def pad(cache_RxGxCxK):
      more = slots - cache_RxGxCxK.shape[2]
      return self._constrain(jnp.pad(cache_RxGxCxK, ((0, 0), (0, 0), (0, more), (0, 0))))
    return state | jax.tree.map(pad, {name: state[name] for name in ("keys", "values")})

  def step(self, params, prompt, state, lengths_B, keys_R, t):
    """Reads token t, which takes slot t of the cache, and chooses token t + 1."""
    c = self.model
    prompt_length, slots = prompt[0][0].shape[2], state["keys"][0].shape[2]
    position_R = jnp.repeat(lengths_B, self.sampling.num_samples) + t
    rope = jax.tree.map(lambda table: table[position_R], self._rope(prompt_length + slots))
    in_prompt_BxL = jnp.arange(prompt_length) < lengths_B[:, None]
    is_made_C = jnp.arange(slots) <= t
    caches = {"keys": list(state["keys"]), "values": list(state["values"])}

    def mix(q_1xRxHxK, k_1xRxGxK, v_1xRxGxK, layer):
      q_RxHxK, k_RxGxK = (layers.apply_rope(x, rope)[0] for x in (q_1xRxHxK, k_1xRxGxK))
      # Written before they are read: a cache that is read first would be copied.
      for name, new in (("keys", k_RxGxK), ("values", v_1xRxGxK[0])):
        caches[name][layer] = jax.lax.dynamic_update_slice_in_dim(
            caches[name][layer], new[:, :, None].astype(self.cache_dtype), t, axis=2)
      y_RxHxK = _attend_caches(q_RxHxK, *prompt[layer], caches["keys"][layer],
                               caches["values"][layer], in_prompt_BxL, is_made_C)
      return y_RxHxK[None], None

    # One token per row: rows stand where a sequence has its length.
    x_1xRxD = decoder.embed(params, c, state["token"][None])
    x_1xRxD, _ = decoder.run_layers(params, c, x_1xRxD, mix, np.arange(c.num_layers))
    return self._choose(state | caches, self._logits(params, x_1xRxD[0]), keys_R, t + 1)

  def _choose(self, state, logits_RxV, keys_R, t):
    """The state with token t chosen and recorded."""
    keys_R = jax.vmap(jax.random.fold_in, (0, None))(keys_R, t)
    token_R = sampling_lib.choose(logits_RxV, state.get("seen"), keys_R, self.sampling)
    done_R = state["done"]
    if self.eos_id is not None:
      done_R = done_R | (token_R == self.eos_id)
    token_R = jnp.where(done_R, self.filler, token_R)
    new = {"token": token_R, "done": done_R, "length": state["length"] + ~done_R,
           "tokens": jax.lax.dynamic_update_slice_in_dim(
               state["tokens"], token_R[:, None], t, axis=1)}
    if "seen" in state:
      new["seen"] = state["seen"].at[jnp.arange(token_R.size), token_R].set(True)
    return state | new

  def _seen(self, tokens_BxL, lengths_B):
    """Which tokens [B, V] stand in a prompt, the end mark never among them.

    It may stand before a prompt, as it does before every document; were it penalised for
    that, every continuation would be kept from ending.
    """
    outside = self.num_tokens  # scatters out of bounds are dropped
    is_text = jnp.arange(tokens_BxL.shape[1]) < lengths_B[:, None]
    if self.eos_id is not None:
      is_text &= tokens_BxL != self.eos_id
    rows_Bx1 = jnp.arange(tokens_BxL.shape[0])[:, None]
    seen_BxV = jnp.zeros((tokens_BxL.shape[0], self.num_tokens), bool)
    return seen_BxV.at[rows_Bx1, jnp.where(is_text, tokens_BxL, outside)].set(True, mode="drop")

  def _logits(self, params, x_RxD):
    w_DxV = decoder.head_kernel(params, self.model)[:, :self.num_tokens].astype(x_RxD.dtype)
    return jnp.einsum("rd,dv->rv", x_RxD, w_DxV, preferred_element_type=jnp.float32)

  def _rope(self, length):
    return layers.rope_tables(length, self.model.head_dim, self.model.rope_theta,
                              self.model.rope_scaling)

  def _constrain(self, cache_RxGxLxK):
    return jax.lax.with_sharding_constraint(cache_RxGxLxK, self._cache_sharding)


def _attend_caches(q_RxHxK, prompt_k_BxGxLxK, prompt_v_BxGxLxK, keys_RxGxCxK, values_RxGxCxK,
                   in_prompt_BxL, is_made_C):
  """Attention of the newest token of every row to its prompt and to what was made, [R, H, K]."""
  rows, _, head_dim = q_RxHxK.shape
  batch, kv_heads, length, _ = prompt_k_BxGxLxK.shape
  # The queries of all samples of a prompt share its keys: one product for all of them.
  by_prompt = lambda t: (t.reshape(batch, rows // batch, kv_heads, -1, t.shape[-1])
                         .swapaxes(1, 2).reshape(batch, kv_heads, -1, t.shape[-1]))
  by_row = lambda t: (t.reshape(batch, kv_heads, rows // batch, -1, t.shape[-1])
                      .swapaxes(1, 2).reshape(rows, kv_heads, -1, t.shape[-1]))
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  q = q_RxHxK.reshape(rows, kv_heads, -1, head_dim).astype(keys_RxGxCxK.dtype)
  scores_prompt = product("bgqk,bglk->bgql", by_prompt(q), prompt_k_BxGxLxK)
  scores_prompt = jnp.where(in_prompt_BxL[:, None, None], scores_prompt, -jnp.inf)
  scores_made = product("rgqk,rgck->rgqc", q, keys_RxGxCxK)
  scores_made = jnp.where(is_made_C, scores_made, -jnp.inf)
  scores = jnp.concatenate([by_row(scores_prompt), scores_made], axis=-1)
  shares = jax.nn.softmax(scores * head_dim**-0.5, axis=-1).astype(keys_RxGxCxK.dtype)
  y = by_row(product("bgql,bglk->bgqk", by_prompt(shares[..., :length]), prompt_v_BxGxLxK))
  y += product("rgqc,rgck->rgqk", shares[..., length:], values_RxGxCxK)
  return y.reshape(q_RxHxK.shape).astype(q_RxHxK.dtype)


def _row_keys(seed, index_B, num_samples):
  """A random key for every sample of every prompt, [R], by its place among all prompts."""
  def key(index, sample):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), sample)
  return jax.vmap(jax.vmap(key, (None, 0)), (0, None))(
      index_B, jnp.arange(num_samples)).reshape(-1)


def _cast(params_M, model):
  """Parameters in the compute dtype, but for the scales of norms, which work in float32."""
  def cast(path, x):
    return x if path[-1].key == "scale" else x.astype(model.compute_dtype)
  return jax.tree_util.tree_map_with_path(cast, params_M)


def _without_fsdp(spec: P) -> P:
  """Every step reads all parameters, so they are gathered once and not in each step."""
  return P(*(None if axis == "fsdp" else axis for axis in spec))


def _check_prompts(prompts, vocab_size):
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise UserError(f"prompt {i} has no tokens; a continuation needs at least one to begin "
                      "with.")
    if np.min(prompt) < 0 or np.max(prompt) >= vocab_size:
      raise UserError(f"prompt {i} holds a token outside the model's vocabulary of {vocab_size}; "
                      "use the tokenizer the model was trained with.")
