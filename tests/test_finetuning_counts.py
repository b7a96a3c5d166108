"""What a fine-tuning step learns: every response and its end once, however rows are divided."""

import collections

import jax
import numpy as np
import pytest
import test_finetuning as t

from wd_plasticity.data.tokenizers import ByteTokenizer
from wd_plasticity.errors import UserError
from wd_plasticity.finetuning import batches, tuner
from wd_plasticity.finetuning import step as step_lib
from wd_plasticity.finetuning.examples import SHORTEST, Example, Template
from wd_plasticity.models import decoder
from wd_plasticity.tasks.task import Problem

RECORDS = np.random.default_rng(0).integers(0, 256, (16, 1, 8, 17)).astype(np.int32)


def _uneven(n=8):
  """Examples that fill a row each, with 1 to 30 targets."""
  rng = np.random.default_rng(3)
  return [Example(rng.integers(0, 256, 33).astype(np.int32), prompt)
          for prompt in np.linspace(3, 32, n).astype(int)]


@pytest.mark.parametrize("options", [
    dict(replay_fraction=0.5, replay_rows=3), dict(lora_rank=2)], ids=["replay", "lora"])
def test_micro_batches_have_the_gradient_of_the_batch(options):
  shape = batches.shape_of(iter([_uneven()]), 32, 1)
  assert shape.rows == 8
  batch = batches.lay_out(_uneven(), shape)
  assert batch["weights"].sum(1).max() >= 30 and batch["weights"].sum(1).min() == 1
  params = decoder.init_params(t.MODEL, jax.random.key(0))
  made = []
  for count in (1, 4):
    program = t._program(t._mesh(), micro_batches=count, **options)
    trained, frozen = params, {}
    if program.uses_lora:
      trained, frozen = program._start_member(params, np.int32(0))["params"], params
    with jax.default_matmul_precision("highest"):
      made.append(jax.jit(program._loss_and_grads)(trained, frozen, batch, RECORDS[0, 0]))
  (loss, want), (other, grads) = made
  assert float(other) == pytest.approx(float(loss), rel=1e-6)
  flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  error = np.linalg.norm(flat(grads) - flat(want)) / np.linalg.norm(flat(want))
  assert error < 1e-6


def _problems():
  words = ["yes", "", "a b c", "no", "x" * 300, "y" * 25, "z", "12", "four", "", "six", "seven"]
  return [Problem(str(i), "" if i == 3 else f"question {i}" * (1 + i % 3), w)
          for i, w in enumerate(words)]


@pytest.mark.parametrize("options", [
    {}, dict(micro_batches=2, lora_rank=2, replay_fraction=0.5, replay_rows=3)],
    ids=["packed", "micro-batches, LoRA and replay"])
def test_every_response_and_its_end_is_learnt_once_an_epoch(options, monkeypatch):
  """Counted within the compiled steps, as the loss is given them."""
  examples, cut = Template("Q: {prompt}\nA:", ByteTokenizer(), 80).examples(_problems())
  assert cut == 1
  seen, replayed = collections.Counter(), []
  real = step_lib.loss.next_token_loss

  def spy(x, w, targets, weights):
    def note(targets, weights):
      if targets.shape[-1] == RECORDS.shape[-1] - 1:
        replayed.append(weights.sum())
      else:
        seen.update(targets[weights > 0].tolist())
    jax.debug.callback(note, targets, weights)
    return real(x, w, targets, weights)

  monkeypatch.setattr(step_lib.loss, "next_token_loss", spy)
  mesh = t._mesh()
  program = t._program(mesh, **options)
  rows = 8 * options.get("micro_batches", 1)
  replay = np.tile(RECORDS, (1, 1, 2, 1))[:, :, :rows] if "replay_rows" in options else None
  with jax.set_mesh(mesh):
    tuned = tuner.tune(
        program, t._params(mesh), examples, batch_size=5, epochs=2, seeds=[1],
        learning_rates=[1e-3], replay=replay,
        weight_decays=np.zeros((1, len(program.optimizer.group_names))))
    jax.effects_barrier()
  want = collections.Counter()
  for problem, example in zip(_problems(), examples, strict=True):
    learnt = example.tokens[example.prompt_length:].tolist()
    text = " " + problem.response
    if len(text) < 40:  # not cut
      assert learnt == [*text.encode(), 256]
    assert learnt[-1] == 256
    want.update(2 * learnt)
  assert seen == want
  assert sum(replayed) == (0 if replay is None else 3 * 16 * 6)  # 6 steps
  assert np.isfinite([c["loss"] for c in tuned.curve]).all() and tuned.failed_at == [-1]


@pytest.mark.parametrize("length", [SHORTEST, 6, 32])
def test_examples_longer_than_a_row_are_cut_and_learnt(length):
  template = Template("{prompt}", ByteTokenizer(), length)
  problems = [Problem("0", "p" * 300, "r" * 300), Problem("1", "", ""), Problem("2", "p", ""),
              Problem("3", "", "r" * 300), Problem("4", "p" * 300, "")]
  examples, cut = template.examples(problems)
  assert cut == 3
  for problem, example in zip(problems, examples, strict=True):
    assert 2 <= len(example.tokens) <= length + 1 and example.tokens[-1] == 256
    assert len(example.tokens) > example.prompt_length >= 1
    assert (example.prompt_length > 1) == bool(problem.prompt)  # something of a prompt is left
  for few in (0, 1, SHORTEST - 1):
    with pytest.raises(UserError, match=f"max_length={few} tokens leave none to a prompt"):
      Template("{prompt}", ByteTokenizer(), few)


def test_examples_without_prompt_or_response_of_a_tokenizer_that_brings_its_space():
  class Spaced(ByteTokenizer):
    adds_space = True
  (empty, one), cut = Template("{prompt}", Spaced(), 8).examples(
      [Problem("0", "", ""), Problem("1", "", "r")])
  assert cut == 0 and empty.tokens.tolist() == [256, 256] and empty.prompt_length == 1
  assert one.tokens.tolist() == [256, ord("r"), 256]
  rows = batches.lay_out([empty, one], batches.shape_of(iter([[empty, one]]), 32, 1))
  assert rows["weights"].sum() == 3
