"""Generation: tokens equal those found without a cache, whatever is computed together."""

import functools
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.generation import batches, generate
from wd_plasticity.generation import sampling as sampling_lib
from wd_plasticity.generation.generate import Generator
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.models import decoder
from wd_plasticity.models.config import PRESETS, ModelConfig
from wd_plasticity.training import mesh as mesh_lib

VOCAB = 32
LENGTHS = (3, 17, 1, 16, 9)  # two padded lengths, 16 and 24
NEW = 10


def model_config(family="llama2", **fields) -> ModelConfig:
  section = default_config().model
  section.update(PRESETS[family]["0.3m"])
  section.update(dict(num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=4,
                      ffn_width=24) | fields)
  return ModelConfig.from_section(section, VOCAB)


def make_mesh(**sizes):
  sizes = [sizes.get(axis, 1) for axis in mesh_lib.AXES]
  return jax.make_mesh(sizes, mesh_lib.AXES, axis_types=(AxisType.Auto,) * 4,
                       devices=jax.devices()[:int(np.prod(sizes))])


def make_params(config, seed=0):
  """Weights large enough that logits differ and continuations do not just repeat."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
  return jax.tree.map(lambda x: rng.normal(scale=0.4, size=x.shape).astype(np.float32), shapes)


def stack(*params):
  return jax.tree.map(lambda *x: np.stack(x), *params)


def shardings(mesh, params):
  specs = mesh_lib.parameter_specs(params)
  return jax.tree.map(lambda spec: mesh_lib.sharding(mesh, mesh_lib.with_members(spec)), specs,
                      is_leaf=lambda s: isinstance(s, P))


def make_prompts(lengths=LENGTHS):
  rng = np.random.default_rng(0)
  return [rng.integers(VOCAB, size=n) for n in lengths]


def run(config=None, params=None, prompts=None, mesh=None, seed=0, eos=None, memory_bytes=0,
        num_tokens=0, on_batch=None, **sampling):
  config = config or model_config()
  params = params or stack(make_params(config))
  members = len(jax.tree.leaves(params)[0])
  generator = make_generator(config, mesh or make_mesh(), members,
                             Sampling(**dict(max_new_tokens=NEW) | sampling), eos,
                             memory_bytes=memory_bytes,
                             num_tokens=num_tokens or config.vocab_size)
  return generator.generate(params, make_prompts() if prompts is None else prompts, seed,
                            on_batch)


make_generator = functools.cache(Generator)  # what was compiled for one test serves others


def by_hand(config, params, prompt, penalty=1.0, new_tokens=NEW, exempt=None):
  """Greedy continuation by the logits of the whole text, in numpy but for the model."""
  text = list(prompt)
  for _ in range(new_tokens):
    padded = np.zeros((1, 32), np.int32)
    padded[0, :len(text)] = text
    logits = np.array(_LOGITS(params, config, padded)[0, len(text) - 1])
    for token in set(text) - {exempt}:
      logits[token] *= penalty if logits[token] < 0 else 1 / penalty
    text.append(int(np.argmax(logits)))
  return text[len(prompt):]


_LOGITS = jax.jit(decoder.logits, static_argnums=1)


@pytest.mark.parametrize("family, fields, penalty", [
    ("llama2", dict(tied_head=True, num_kv_heads=4, scan_layers=False), 1.0), ("olmo2", {}, 1.3)])
def test_greedy_tokens_are_those_without_a_cache(monkeypatch, family, fields, penalty):
  monkeypatch.setattr(generate, "_FIRST_SLOTS", 5)  # so that the cache grows
  config = model_config(family, **fields)
  params = make_params(config)
  out = run(config, stack(params), repetition_penalty=penalty)
  expected = [by_hand(config, params, p, penalty) for p in make_prompts()]
  assert out.tokens_MxPxSxT.shape == (1, len(LENGTHS), 1, NEW)
  assert out.tokens_MxPxSxT[0, :, 0].tolist() == expected
  assert (out.lengths_MxPxS == NEW).all()
  assert len({token for row in expected for token in row}) > 8  # not one token over and over


@pytest.fixture(scope="module")
def sampled():
  """Samples of two stacked members, as one device makes them in one batch per length."""
  config = model_config()
  params = [make_params(config, seed) for seed in (0, 1)]
  return config, params, run(config, stack(*params), **SAMPLED)


SAMPLED = dict(temperature=1.0, repetition_penalty=1.1, num_samples=3, eos=5)


def same(a, b):
  np.testing.assert_array_equal(a.tokens_MxPxSxT, b.tokens_MxPxSxT)
  np.testing.assert_array_equal(a.lengths_MxPxS, b.lengths_MxPxS)


def test_samples_differ_and_seeds_reproduce(sampled):
  config, params, out = sampled
  tokens = out.tokens_MxPxSxT
  assert all(len({row.tobytes() for row in prompt}) == 3 for member in tokens for prompt in member)
  assert (tokens[0] != tokens[1]).any()
  other = run(config, stack(*params), seed=1, **SAMPLED)
  assert (other.tokens_MxPxSxT != tokens).any()
  same(run(config, stack(*params), seed=1, **SAMPLED), other)


def test_one_member_alone_and_one_prompt_a_batch(sampled):
  config, params, out = sampled
  prompts, others = make_prompts(), [0, 2, 3, 4]
  prompts[1] = prompts[0]
  alone = run(config, stack(params[1]), prompts, memory_bytes=1, **SAMPLED)
  np.testing.assert_array_equal(alone.tokens_MxPxSxT[0, others], out.tokens_MxPxSxT[1, others])
  np.testing.assert_array_equal(alone.lengths_MxPxS[0, others], out.lengths_MxPxS[1, others])


def test_the_other_prompts_do_not_matter(sampled):
  config, params, out = sampled
  prompts = make_prompts()
  others = [np.array([7]), prompts[1], np.arange(20), prompts[3], np.array([1, 2])]
  changed = run(config, stack(*params), others, **SAMPLED)
  np.testing.assert_array_equal(changed.tokens_MxPxSxT[:, [1, 3]], out.tokens_MxPxSxT[:, [1, 3]])


@pytest.mark.parametrize("sizes", [dict(data=4, fsdp=2), dict(sweep=2, fsdp=2, tensor=2)])
def test_meshes_give_the_same_tokens(sampled, sizes):
  config, params, out = sampled
  mesh, params = make_mesh(**sizes), stack(*params)
  same(run(config, jax.device_put(params, shardings(mesh, params)), mesh=mesh, **SAMPLED), out)


def test_end_mark():
  config = model_config()
  params = make_params(config)
  free = [by_hand(config, params, prompt) for prompt in make_prompts()]
  eos = free[1][4]
  out = run(config, stack(params), eos=eos)
  lengths = [(row + [eos]).index(eos) for row in free]
  assert out.lengths_MxPxS[0, :, 0].tolist() == lengths
  assert lengths[1] <= 4 and max(lengths) > 4
  for i, length in enumerate(lengths):
    assert out.continuation(0, i).tolist() == free[i][:length]
    assert (out.tokens_MxPxSxT[0, i, 0, length:] == eos).all()


def test_the_end_mark_is_not_penalised_where_it_stands_before_the_prompt():
  # A penalty so large that a token which was seen is never the likeliest.
  config = model_config()
  params = make_params(config)
  prompts = make_prompts()
  eos = by_hand(config, params, prompts[1], new_tokens=5, penalty=1e6)[-1]
  prompts = [np.append(eos, p) for p in prompts]
  free = [by_hand(config, params, p, 1e6, exempt=eos) for p in prompts]
  lengths = [(row + [eos]).index(eos) for row in free]
  assert min(lengths) < NEW
  out = run(config, stack(params), prompts, eos=eos, repetition_penalty=1e6)
  assert out.lengths_MxPxS[0, :, 0].tolist() == lengths
  for i, length in enumerate(lengths):
    assert out.continuation(0, i).tolist() == free[i][:length]
  # Without an end mark the same token is one like others.
  out = run(config, stack(params), prompts, repetition_penalty=1e6)
  assert out.tokens_MxPxSxT[0, :, 0].tolist() == [
      by_hand(config, params, p, 1e6) for p in prompts]
  assert (out.tokens_MxPxSxT != eos).all()


def test_samples_end_as_often_as_the_distribution_says_whatever_stands_before_the_prompt():
  config = model_config()
  params = make_params(config)
  eos, count = 5, 4000
  prompt = np.array([eos, 3, 9])
  logits = np.array(_LOGITS(params, config, np.pad(prompt, (0, 29))[None].astype(np.int32))[0, 2],
                    np.float64)
  for token in (3, 9):
    logits[token] *= 2.0 if logits[token] < 0 else 0.5
  share = np.exp(logits[eos]) / np.exp(logits).sum()
  out = run(config, stack(params), [prompt], eos=eos, temperature=1.0, repetition_penalty=2.0,
            num_samples=count, max_new_tokens=1)
  ended = float((out.lengths_MxPxS == 0).mean())
  assert abs(ended - share) < 4 * np.sqrt(share * (1 - share) / count)


def test_one_new_token_and_no_prompt():
  config = model_config()
  params = make_params(config)
  out = run(config, stack(params), max_new_tokens=1)
  expected = [by_hand(config, params, p, new_tokens=1) for p in make_prompts()]
  assert out.tokens_MxPxSxT[0, :, 0].tolist() == expected
  assert run(config, stack(params), []).tokens_MxPxSxT.shape == (1, 0, 1, NEW)


def test_tokens_beyond_the_tokenizer_are_never_chosen():
  out = run(num_tokens=6, temperature=5.0, top_p=0.99, num_samples=8, prompts=make_prompts((1, 2)))
  assert set(np.unique(out.tokens_MxPxSxT)) == set(range(6))


def test_progress_is_told_after_every_batch(sampled):
  config, params, _ = sampled
  done = []
  run(config, stack(params[1]), make_prompts((1, 5, 16)), memory_bytes=1, on_batch=done.append,
      **SAMPLED)
  assert done == [1, 2, 3]


# Choosing a token from logits.


def logits_of(rows=7, vocab=300, seed=0, scale=3.0):
  return np.random.default_rng(seed).normal(size=(rows, vocab), scale=scale).astype(np.float32)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_nucleus_against_sorting(top_p):
  logits = logits_of()
  out = np.asarray(sampling_lib.nucleus(logits, top_p))
  for row, kept in zip(logits, out, strict=True):
    probabilities = np.exp(row.astype(np.float64) - row.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    count = 1 + int(np.sum(np.cumsum(probabilities[order]) < top_p))
    assert set(np.flatnonzero(kept > -np.inf)) == set(order[:count])
    np.testing.assert_array_equal(kept[order[:count]], row[order[:count]])


def test_nucleus_of_certainty_and_of_ties():
  logits = np.array([[0.0, 200.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, -50.0]])
  kept = np.asarray(sampling_lib.nucleus(jnp.float32(logits), 0.7)) > -np.inf
  np.testing.assert_array_equal(kept, [[False, True, False, False], [True] * 4,
                                       [True, True, True, False]])


def test_draws_follow_the_distribution():
  # 400 tokens are four blocks; chi-square over those that are expected at least 5 times.
  logits = logits_of(rows=1, vocab=400, scale=1.5)
  logits[0, 100:300] = -np.inf
  count = 40_000
  tokens = np.asarray(sampling_lib.draw(
      jnp.broadcast_to(logits, (count, 400)), jax.random.split(jax.random.key(3), count)))
  expected = np.exp(logits[0].astype(np.float64))
  expected *= count / expected.sum()
  observed = np.bincount(tokens, minlength=400)
  assert observed.size == 400 and observed[100:300].sum() == 0
  often = expected >= 5
  observed = np.append(observed[often], observed[~often].sum())
  expected = np.append(expected[often], expected[~often].sum())
  degrees = expected.size - 1
  chi_square = np.sum(np.square(observed - expected) / expected)
  assert abs(chi_square - degrees) < 3.5 * np.sqrt(2 * degrees)
  assert degrees > 100


def test_most_likely_is_argmax():
  logits = np.round(logits_of(), 1)  # with ties
  logits[3] = np.nan  # of a member that has diverged: any token, but one of the vocabulary
  tokens = np.asarray(sampling_lib.most_likely(logits))
  np.testing.assert_array_equal(np.delete(tokens, 3), np.argmax(np.delete(logits, 3, 0), axis=-1))
  assert 0 <= tokens[3] < 300
  drawn = sampling_lib.draw(jnp.asarray(logits), jax.random.split(jax.random.key(0), 7))
  assert 0 <= drawn[3] < 300


# Batches.


def test_padded_lengths():
  assert [batches.padded_length(n) for n in (1, 16, 17, 25, 33, 49, 65, 97, 1024, 1025)] == [
      16, 16, 24, 32, 48, 64, 96, 128, 1024, 1536]


@pytest.mark.parametrize("memory_bytes", [1, 10**6, 10**9])
def test_every_prompt_is_in_one_batch(memory_bytes):
  prompts = make_prompts(np.random.default_rng(1).integers(1, 100, size=37))
  made = list(batches.make_batches(prompts, model_config(), Sampling(8), 3, 1, memory_bytes))
  assert sorted(np.concatenate([b.prompts for b in made])) == list(range(37))
  for batch in made:
    assert len(batch.tokens_BxL) % 3 == 0
    assert batch.is_prompt_B.sum() == len(batch.prompts)
    for row, i in enumerate(batch.prompts):
      np.testing.assert_array_equal(batch.tokens_BxL[row, :batch.lengths_B[row]], prompts[i])
      assert batch.index_B[row] == i
  if memory_bytes == 10**9:
    assert len(made) == 1


def test_more_memory_takes_more_rows():
  rows = [batches.rows_per_device(model_config(), Sampling(16), 64, 1, n)
          for n in (1, 10**6, 2 * 10**6, 4 * 10**6)]
  assert rows[0] == 1 and rows[1] > 1 and rows[3] == 2 * rows[2] == 4 * rows[1]


# Mistakes.


@pytest.mark.parametrize("fields, words", [
    (dict(max_new_tokens=0), "max_new_tokens=0 must be at least 1"),
    (dict(temperature=-1.0), "temperature=-1.0 must be 0"),
    (dict(temperature=float("nan")), "temperature=nan"),
    (dict(top_p=0.0), "top_p=0.0 must be above 0"),
    (dict(top_p=1.5), "top_p=1.5"),
    (dict(repetition_penalty=0.0), "repetition_penalty=0.0 must be a positive"),
    (dict(num_samples=0), "num_samples=0 must be at least 1"),
    (dict(num_samples=16), "num_samples=16 must be 1 at temperature 0")])
def test_settings_out_of_range(fields, words):
  with pytest.raises(UserError, match=words):
    Sampling(**dict(max_new_tokens=4) | fields)


@pytest.mark.parametrize("arguments, words", [
    (dict(prompts=[np.array([1]), np.array([], int)]), "prompt 1 has no tokens"),
    (dict(prompts=[np.array([VOCAB])]), "prompt 0 holds a token outside"),
    (dict(num_tokens=VOCAB + 1), "tokenizer of 33 tokens"),
    (dict(eos=7, num_tokens=7), "end mark 7")])
def test_prompts_and_tokenizers_that_do_not_fit(arguments, words):
  with pytest.raises(UserError, match=words):
    run(**arguments)


# Several processes.

PROCESS = """
import sys
import jax
import numpy as np
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]), initialization_timeout=300)
sys.path.insert(0, sys.argv[1])
import test_generation as t
mesh = t.make_mesh(data=2, fsdp=2)
params = t.stack(t.make_params(t.model_config()))
params = jax.tree.map(
    lambda x, s: jax.make_array_from_callback(x.shape, s, x.__getitem__), params,
    t.shardings(mesh, params))
out = t.run(params=params, mesh=mesh)
if jax.process_index() == 1:
  np.save(sys.argv[4], out.tokens_MxPxSxT)
"""


def test_two_processes_give_the_tokens_of_one(tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  file = tmp_path / "tokens.npy"
  env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                      "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
  processes = [subprocess.Popen(
      [sys.executable, "-c", PROCESS, os.path.dirname(__file__), address, str(i), str(file)],
      env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)]
  try:
    for process in processes:
      output = process.communicate()[0]
      assert process.returncode == 0, output
  finally:
    for process in processes:
      process.kill()
  config = model_config()
  params = make_params(config)
  expected = [by_hand(config, params, prompt) for prompt in make_prompts()]
  assert np.load(file)[0, :, 0].tolist() == expected
