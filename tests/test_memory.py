"""Memory: what fits, and what happens when it runs out all the same."""

import json
import types

import jax
import numpy as np
import pytest
import tiny

from wd_plasticity import members as members_lib
from wd_plasticity import memory
from wd_plasticity.config import default_config
from wd_plasticity.data.prepare import prepare
from wd_plasticity.data.tokenizers import ByteTokenizer
from wd_plasticity.errors import UserError, is_out_of_memory
from wd_plasticity.models.config import preset_section
from wd_plasticity.plan import describe, make_plan
from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training import run_record, sweep
from wd_plasticity.training.loop import StopSignal

GIB = 2**30


def ran_out():
  """What jax raises."""
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.")


def _ladder(size, **train):
  config = default_config()
  config.model.update(preset_section("llama2", size), compute_dtype="bfloat16")
  config.data.tokenizer.vocab_size = 32_000
  config.data.sequence_length = 512
  config.train.update(dict(global_batch_size=64) | train)
  return config


# What fits.


@pytest.mark.parametrize("count, smallest, sizes", [
    (6, 1, [6, 3, 2, 1]), (5, 1, [5, 3, 2, 1]), (5, 2, [6, 4, 2]), (1, 4, [4]),
    (9, 1, [9, 5, 3, 2, 1])])
def test_members_are_divided_evenly(count, smallest, sizes):
  assert memory.splits(count, smallest) == sizes
  assert [memory.fewer(n, count, smallest) for n in sizes] == [*sizes[1:], None]


@pytest.mark.parametrize("limit, size", [(60, 6), (59, 3), (30, 3), (29, 2), (19, 1), (1, 1)])
def test_six_members_may_fit_three_at_once(limit, size):
  assert memory.members_that_fit(6, lambda n: 10 * n, limit=limit) == size


def test_micro_batches_divide_the_rows_of_every_device():
  assert memory.more_micro_batches(1, 64, 8) == 2
  assert memory.more_micro_batches(2, 12, 2) == 6  # 4 would leave 3 rows to 2 devices
  assert memory.more_micro_batches(8, 64, 8) is None
  assert memory.more_micro_batches(3, 9, 1) == 9


def test_activations_and_logits_count_and_remat_and_micro_batches_take_less():
  plan = make_plan(_ladder("35m"), 1)
  assert plan.memory.total(1) / GIB == pytest.approx(10.3, abs=0.1)
  assert plan.memory.total(6) / GIB == pytest.approx(61.8, abs=0.5)
  assert plan.memory.parts(6)["activations"] > plan.memory.total(6) / 2
  less = make_plan(_ladder("35m", accumulate_steps=8), 1).memory.total(1)
  config = _ladder("35m")
  config.model.remat = "dots"
  assert less < 0.5 * plan.memory.total(1)
  assert make_plan(config, 1).memory.total(1) < 0.8 * plan.memory.total(1)
  # Where attention is not fused its scores are kept.
  config = _ladder("35m")
  config.model.attention = "plain"
  scores = 10 * 8 * 64 * 512 * 512 * 4
  assert make_plan(config, 1).memory.total(1) - plan.memory.total(1) > scores


def test_dry_run_shows_one_member_and_all_that_would_be_stacked(monkeypatch):
  config = _ladder("35m")
  config.sweep.members_at_once = 0
  member = members_lib.expand(config, None)[0]
  monkeypatch.setattr(memory, "device_limit", lambda: 40 * GIB)
  text = describe(member, make_plan(config, 1), 6)
  for words in ("one member 10.3 GiB", "6 members in one program 61.8 GiB", "a device has 40.0 GiB",
                "at most 3 at once, the faster of 1 and 3 is measured"):
    assert words in text
  monkeypatch.setattr(memory, "device_limit", lambda: 5 * GIB)
  assert "it is not enough by this estimate" in describe(member, make_plan(config, 1), 6)


def test_the_host_is_the_limit_of_a_cpu_and_a_control_group_that_of_the_host(tmp_path, monkeypatch):
  whole = memory.host_memory()
  assert 2**28 < memory.device_limit() <= whole / len(jax.local_devices())
  group = tmp_path / "group"
  group.mkdir()
  (group / "memory.max").write_text(f"{2**28}\n")
  (tmp_path / "memory.max").write_text("max\n")
  monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
  monkeypatch.setattr(memory, "_own_groups", lambda: ["0::/group/of/this"])
  assert memory.host_memory() == 2**28


# What runs out all the same.


def test_what_is_of_memory_and_what_of_a_disk():
  def chained(error, cause):
    error.__cause__ = cause
    return error
  xla = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
  disk = ValueError("RESOURCE_EXHAUSTED: write failed [No space left on device]")
  assert is_out_of_memory(xla) and is_out_of_memory(chained(ValueError("x"), xla))
  assert is_out_of_memory(MemoryError()) and is_out_of_memory(OSError(12, "Cannot allocate memory"))
  assert not is_out_of_memory(disk) and not is_out_of_memory(chained(OSError(28, "full"), disk))
  assert not is_out_of_memory(chained(UserError("said"), xla)) and not is_out_of_memory(None)


def test_an_attempt_lets_go_what_it_held():
  def run():
    kept = jax.numpy.ones(12345)
    ran_out()
    return kept
  assert memory.attempt(run) == (False, None)
  assert not [x for x in jax.live_arrays() if x.shape == (12345,)]
  assert memory.attempt(lambda: 3) == (True, 3)
  with pytest.raises(ZeroDivisionError):
    memory.attempt(lambda: 1 / 0)


def _fitting(workdir, corpus, say, at_once=0, members=4):
  """Of members on a mesh that has two of them at a time, with batches of 16 rows."""
  config = tiny.tiny_config(corpus)
  config.mesh.update(data=4, sweep=2)
  config.train.global_batch_size = 16
  config.sweep.members_at_once = at_once
  members = members_lib.expand(config, lambda add: [add({"seed": s}) for s in range(members)])
  prepared = types.SimpleNamespace(tokenizer=ByteTokenizer())
  return sweep.Fitting(members, make_plan(config, 8), prepared, mesh_lib.make_mesh(config.mesh),
                       workdir, say)


def _limited(monkeypatch, most):
  """A trial whose programs hold `most` rows of all members; larger ones are faster."""
  def seconds(self, fit):
    self._program(fit)
    if 16 * fit.members // fit.accumulate_steps > most:
      ran_out()
    return 1 / fit.members
  monkeypatch.setattr(sweep.Fitting, "_seconds", seconds)
  monkeypatch.setattr(sweep, "Program", lambda *args: args)


@pytest.mark.parametrize("most, limit, fit, words", [
    (96, 1e12, (6, 1), "6 member(s) in one program"),
    (64, 1e12, (4, 1), "memory ran out with 6 members in one program; 4 members in one program is"),
    (96, 1.0, (2, 1), "of the 1 B of a device, by estimate; at most 2 at once are tried"),
    (16, 1e12, (2, 2), "2 members in one program and 2 micro-batches a step is tried")])
def test_a_trial_takes_the_size_that_runs(corpus, tmp_path, monkeypatch, most, limit, fit, words):
  monkeypatch.setattr(memory, "device_limit", lambda: limit)
  _limited(monkeypatch, most)
  said = []
  fitting = _fitting(tmp_path, corpus, said.append, members=6)
  assert fitting.now == sweep.Fit(*fit) and any(words in line for line in said)
  assert list(json.loads((tmp_path / "members_at_once.json").read_text()).values()) == [
      {"members": fit[0], "accumulate_steps": fit[1]}]


class _Trainer:
  """In place of the training of a chunk: runs out of memory on more than `most` rows."""
  most, log = 0, []

  def __init__(self, chunk, progress, stop, done):
    self.chunk, self.done = chunk, done

  def run(self):
    _, _, options, _, members = self.chunk.program
    self.log.append((members, options.accumulate_steps, [m.name for m in self.chunk.members],
                     self.done))
    if 16 * members // options.accumulate_steps > self.most:
      ran_out()


def _train(corpus, workdir, monkeypatch, most, at_once=3):
  config = tiny.tiny_config(corpus)
  config.mesh.data = 8
  config.train.global_batch_size = 16
  config.sweep.members_at_once = at_once
  members = members_lib.expand(config, lambda add: [add({"seed": s}) for s in range(3)])
  prepared = types.SimpleNamespace(tokenizer=ByteTokenizer())
  monkeypatch.setattr(_Trainer, "most", most)
  monkeypatch.setattr(_Trainer, "log", [])
  monkeypatch.setattr(sweep, "ChunkTrainer", _Trainer)
  monkeypatch.setattr(sweep, "Program", lambda *args: args)
  sweep.train([(members, [make_plan(m.config, 8) for m in members], prepared)], workdir,
              StopSignal())
  return _Trainer.log


def test_training_goes_on_with_fewer_members_and_then_micro_batches(
    corpus, tmp_path, monkeypatch, capsys):
  names = ["seed0", "seed1", "seed2"]
  alone = [(1, 2, [name], 24 * i) for i, name in enumerate(names)]
  assert _train(corpus, tmp_path, monkeypatch, most=8) == [
      (3, 1, names, 0), (2, 1, names[:2], 0), (1, 1, names[:1], 0), *alone]
  said = capsys.readouterr().out
  assert "memory ran out with 3 members in one program; going on from the last" in said
  assert "one member in one program and 2 micro-batches a step" in said
  # Started again it is in that division from the beginning.
  assert _train(corpus, tmp_path, monkeypatch, most=8) == alone
  assert "memory ran out" not in capsys.readouterr().out


def test_what_cannot_fit_at_all_is_one_sentence(corpus, tmp_path, monkeypatch):
  with pytest.raises(UserError, match="not enough for one member in one program and 2 micro-") as e:
    _train(corpus, tmp_path, monkeypatch, most=1)
  assert "\n" not in str(e.value)


def test_other_failures_end_the_training(corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(_Trainer, "run", lambda self: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    _train(corpus, tmp_path, monkeypatch, most=99)


@pytest.mark.parametrize("content", [
    "{", "[]", "null", pytest.param("[" * 10**5, id="deep"), '{"KEY": "three"}', '{"KEY": -3}',
    '{"KEY": true}',     '{"KEY": {"members": 10000000}}', '{"KEY": {"accumulate_steps": 2}}',
    '{"KEY": {"members": 1, "accumulate_steps": 7}}', '{"KEY": null}', '{"KEY": 1e3}'])
def test_a_record_that_cannot_be_is_found_out_again(tmp_path, monkeypatch, content, corpus):
  monkeypatch.setattr(sweep.Fitting, "_trial", lambda self: sweep.Fit(4, 1))
  said = []
  key = _fitting(tmp_path, corpus, said.append)._key
  assert not said
  record = tmp_path / "members_at_once.json"
  record.write_text(content.replace("KEY", key))
  assert _fitting(tmp_path, corpus, said.append).now == sweep.Fit(4, 1)
  assert said and all("\n" not in line for line in said) and record.name in said[0]
  assert json.loads(record.read_text())[key] == {"members": 4, "accumulate_steps": 1}


def test_a_record_of_members_alone_holds(tmp_path, corpus, monkeypatch):
  monkeypatch.setattr(sweep.Fitting, "_trial", lambda self: sweep.Fit(2, 1))
  first = _fitting(tmp_path, corpus, print)
  assert first.now == sweep.Fit(2, 1)
  (tmp_path / "members_at_once.json").write_text(json.dumps({first._key: 4, "other": 1}))
  assert _fitting(tmp_path, corpus, print).now == sweep.Fit(4, 1)
  # Where another process had an answer first, that one holds; after memory ran out the less.
  assert first._remember(sweep.Fit(2, 1)) == sweep.Fit(4, 1)
  assert first._remember(sweep.Fit(2, 1), instead_of=sweep.Fit(4, 1)) == sweep.Fit(2, 1)
  assert json.loads((tmp_path / "members_at_once.json").read_text())["other"] == 1


def test_what_takes_less_memory_may_be_changed_on_the_way(tmp_path):
  config = tiny.tiny_config("nowhere")
  check = lambda: run_record.check_member(tmp_path, config, tokenizer_fingerprint="t",
                                          data_fingerprint="d")
  check()
  config.train.accumulate_steps = 4
  config.model.update(remat="full", attention="plain")
  check()
  config.train.global_batch_size = 4
  with pytest.raises(UserError, match="train.global_batch_size was 8 and is now 4"):
    check()


# Whole programs.


class _Small(sweep.Program):
  """A program on a device that holds 8 rows of all members, but for its first three steps."""

  def __init__(self, *args):
    super().__init__(*args)
    step, self.calls = self.train_step, 0

    def limited(state, hyper, tokens):
      self.calls += 1
      rows = self.num_members * tokens.shape[1] // self.options.accumulate_steps
      if rows > 8 and self.calls > 3:
        ran_out()
      return step(state, hyper, tokens)

    self.train_step = limited


@pytest.mark.slow
def test_a_sweep_that_went_on_with_less_has_the_losses_of_one_that_did_not(
    corpus, tmp_path, monkeypatch):
  decays = (0.0, 1.0)
  config = tiny.tiny_config(corpus)
  config.mesh.data = 8
  config.train.update(steps=6, global_batch_size=16, eval_every="6 steps")
  config.checkpoint.every = "2 steps"
  config.sweep.members_at_once = 2
  members = members_lib.expand(
      config, lambda add: [add({"optim.weight_decay": w}) for w in decays])
  prepared = prepare(config.data, tmp_path / "cache", lambda line: None)

  def losses(workdir):
    sweep.train([(members, [make_plan(m.config, 8) for m in members], prepared)], workdir,
                StopSignal())
    lines = [[json.loads(line) for line in (workdir / "members" / m.name / "metrics.jsonl").open()]
             for m in members]
    assert all([x["step"] for x in of] == list(range(7)) for of in lines)
    return [[x.get("train/loss", 0) for x in of] for of in lines]

  want = losses(tmp_path / "a")
  monkeypatch.setattr(sweep, "Program", _Small)
  np.testing.assert_allclose(losses(tmp_path / "b"), want, atol=1e-5, rtol=0)
  assert list(json.loads((tmp_path / "b/members_at_once.json").read_text()).values()) == [
      {"members": 1, "accumulate_steps": 2}]
