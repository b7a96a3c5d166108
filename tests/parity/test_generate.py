"""Generation equals transformers': the tokens of `generate`, and what samples are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity suite needs torch")
transformers = pytest.importorskip("transformers", reason="the parity suite needs transformers")

from scipy import stats  # noqa: E402
from transformers.generation import logits_process  # noqa: E402

from tests.parity import test_transformers as models  # noqa: E402
from wd_plasticity.config import default_config  # noqa: E402
from wd_plasticity.generation import sampling as sampling_lib  # noqa: E402
from wd_plasticity.generation.generate import Generator  # noqa: E402
from wd_plasticity.generation.sampling import Sampling  # noqa: E402
from wd_plasticity.interop import transformers_weights  # noqa: E402
from wd_plasticity.training import mesh as mesh_lib  # noqa: E402

LENGTHS = (4, 25, 1, 11, 16)
NEW = 40


def prompts_of(config):
  rng = np.random.default_rng(2)
  return [rng.integers(config.vocab_size, size=n) for n in LENGTHS]


def ours(config, model, prompts, eos=None, seed=0, **settings):
  params = transformers_weights.from_transformers(models.their_tensors(model), config)
  generator = Generator(config, mesh_lib.make_mesh(default_config().mesh), 1,
                        Sampling(**dict(max_new_tokens=NEW) | settings), eos,
                        num_tokens=config.vocab_size)
  return generator.generate(jax.tree.map(lambda x: x[None], params), prompts, seed)


class PenaltyButOfTheEnd(logits_process.RepetitionPenaltyLogitsProcessor):
  """Their repetition penalty, with the end mark exempt from it."""

  def __init__(self, penalty, eos):
    super().__init__(penalty)
    self.eos = eos

  def __call__(self, input_ids, scores):
    made = super().__call__(input_ids, scores.clone())
    made[:, self.eos] = scores[:, self.eos]
    return made


def theirs(model, prompts, eos=None, processors=(), **settings):
  """Greedy continuations of all prompts in one batch, padded on the left."""
  longest = max(map(len, prompts))
  tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
  mask = torch.zeros_like(tokens)
  for i, prompt in enumerate(prompts):
    tokens[i, longest - len(prompt):] = torch.tensor(prompt)
    mask[i, longest - len(prompt):] = 1
  config = transformers.GenerationConfig(
      max_new_tokens=NEW, do_sample=False, eos_token_id=eos, pad_token_id=0,
      **settings)
  out = model.generate(tokens, attention_mask=mask, generation_config=config,
                       logits_processor=transformers.LogitsProcessorList(processors))
  return out[:, longest:].numpy()


def model_of(case):
  config = models.our_config(**models.CASES[case])
  model = models.their_model(config)
  model.generation_config = transformers.GenerationConfig()  # no end mark of Llama's
  return config, model


@pytest.mark.parametrize("case", models.CASES)
def test_greedy_tokens(case):
  config, model = model_of(case)
  prompts = prompts_of(config)
  expected = theirs(model, prompts)
  assert np.unique(expected).size > 20  # not one token over and over
  np.testing.assert_array_equal(ours(config, model, prompts).tokens_MxPxSxT[0, :, 0], expected)


@pytest.mark.parametrize("case", models.CASES)
def test_greedy_tokens_with_repetition_penalty(case):
  config, model = model_of(case)
  prompts = prompts_of(config)
  out = ours(config, model, prompts, repetition_penalty=1.1).tokens_MxPxSxT[0, :, 0]
  assert (out != ours(config, model, prompts).tokens_MxPxSxT[0, :, 0]).any()
  for prompt, row in zip(prompts, out, strict=True):  # in a batch they would penalise padding
    np.testing.assert_array_equal(row, theirs(model, [prompt], repetition_penalty=1.1)[0])


@pytest.mark.parametrize("case", models.CASES)
def test_end_mark(case):
  config, model = model_of(case)
  prompts = prompts_of(config)
  eos = int(theirs(model, prompts)[1, 7])
  expected = theirs(model, prompts, eos=eos)
  out = ours(config, model, prompts, eos=eos)
  stopped = 0
  for i, row in enumerate(expected.tolist()):
    length = row.index(eos) if eos in row else len(row)
    stopped += length < NEW
    assert out.continuation(0, i).tolist() == row[:length]
  assert stopped


@pytest.mark.parametrize("case", models.CASES)
def test_end_mark_before_the_prompt_with_repetition_penalty(case):
  config, model = model_of(case)
  prompts = prompts_of(config)
  eos = int(theirs(model, prompts[:1], repetition_penalty=1.1)[0, 7])
  prompts = [np.append(eos, p) for p in prompts]
  shorter = 0
  for i, prompt in enumerate(prompts):  # in a batch they would penalise padding
    row, penalised = (theirs(model, [prompt], eos=eos, **settings)[0].tolist() for settings in (
        dict(processors=[PenaltyButOfTheEnd(3.0, eos)]), dict(repetition_penalty=3.0)))
    length = row.index(eos) if eos in row else len(row)
    shorter += row != penalised
    out = ours(config, model, [prompt], eos=eos, repetition_penalty=3.0)
    assert out.continuation(0, 0).tolist() == row[:length], i
  print(f"{case}: {shorter} of {len(prompts)} differ from a penalised end")


def filtered(logits, seen, settings):
  """Their logits after penalty, temperature and top-p."""
  scores = torch.tensor(logits)
  ids = torch.tensor(seen)
  if settings.repetition_penalty != 1:
    penalty = logits_process.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)
    scores = penalty(ids, scores)
  scores = logits_process.TemperatureLogitsWarper(settings.temperature)(ids, scores)
  if settings.top_p < 1:
    scores = logits_process.TopPLogitsWarper(settings.top_p)(ids, scores)
  return scores


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.1, 2.0])
def test_logits_are_filtered_as_theirs(temperature, top_p, penalty):
  rng = np.random.default_rng(4)
  logits = rng.normal(scale=2.0, size=(64, 1000)).astype(np.float32)
  seen = rng.integers(1000, size=(64, 50))
  settings = Sampling(1, temperature=temperature, top_p=top_p, repetition_penalty=penalty)
  expected = filtered(logits.copy(), seen, settings)
  mask = np.zeros(logits.shape, bool)
  np.put_along_axis(mask, seen, True, axis=1)
  out = sampling_lib.warp(jnp.asarray(logits), mask, settings)
  np.testing.assert_array_equal(np.isneginf(out), np.isneginf(expected.numpy()))
  np.testing.assert_allclose(jax.nn.softmax(out, axis=-1), expected.softmax(-1).numpy(),
                             atol=1e-6)


def test_samples_follow_their_distribution():
  """The first two tokens of many samples against the probabilities of transformers."""
  config = models.our_config(**models.CASES["olmo2_grouped"] | dict(vocab_size=7))
  model = models.their_model(config)
  settings = Sampling(2, temperature=1.3, top_p=0.97, repetition_penalty=1.2, num_samples=20_000)
  prompt = np.array([3, 1, 3])
  out = ours(config, model, [prompt], max_new_tokens=2, temperature=1.3, top_p=0.97,
             repetition_penalty=1.2, num_samples=20_000).tokens_MxPxSxT[0, 0]

  def probabilities(text):
    logits = models.their_logits(model, text)[:, -1]
    return filtered(logits, text, settings).softmax(-1).double().numpy()

  first = probabilities(prompt[None])[0]
  texts = np.concatenate([np.tile(prompt, (7, 1)), np.arange(7)[:, None]], axis=1)
  expected = (first[:, None] * probabilities(texts)).ravel() * len(out)
  observed = np.bincount(out[:, 0] * 7 + out[:, 1], minlength=49)
  possible = expected > 0
  assert observed[~possible].sum() == 0 and possible.sum() > 15
  often = expected >= 5
  observed = np.append(observed[often], observed[~often].sum())
  expected = np.append(expected[often], expected[~often].sum())
  keep = expected > 0
  assert stats.chisquare(observed[keep], expected[keep] * (observed.sum() / expected.sum())
                         ).pvalue > 0.001
