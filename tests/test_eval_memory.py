"""Memory of evaluations and fine-tuning: what is counted, and what follows when it runs out."""

import importlib
import types
import weakref

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from test_finetuning import _config, write_task
from test_memory import GIB, ran_out

from wd_plasticity import memory
from wd_plasticity.analysis import pooled_states
from wd_plasticity.errors import UserError
from wd_plasticity.evals import (
  attention_rank,
  config,
  finetune_plan,
  overfit,
  program,
  record_losses,
  targets,
)
from wd_plasticity.finetuning import batches, scoring
from wd_plasticity.finetuning.examples import Example
from wd_plasticity.finetuning.step import TuneProgram
from wd_plasticity.generation import batches as generation_batches
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.models import attention, decoder
from wd_plasticity.models.config import ModelConfig, preset_section
from wd_plasticity.training import checkpoint

ALONE = dict(sweep=1, data=1, fsdp=1, tensor=1)


def _model(size, **changes):
  section = config.default_config().model
  section.update(preset_section("llama2", size), compute_dtype="bfloat16", vocab_size=32_000)
  section.update(changes)
  return ModelConfig.from_section(section, 32_000)


def _session(trained, workdir, at_once=2):
  c = config.shared_config("toy")
  c.members_at_once = at_once
  return tiny.session("toy", c, [trained], workdir)


# What is counted.


def test_fine_tuning_counts_what_it_keeps_for_the_backward_pass():
  """Of 64 sequences of 512 tokens: 8.4 GiB of a 35m model, 25.3 GiB of a 150m one."""
  def needed(size, members, micro_batches=1, **changes):
    f = memory.Finetuning(_model(size, **changes), ALONE, rows=64, length=512, targets=256)
    return f.parts(members, micro_batches)
  for size, gib in (("35m", 8.4), ("150m", 25.3)):
    assert needed(size, 1)["activations"] / GIB == pytest.approx(gib, abs=0.1)
    assert needed(size, 6)["activations"] == 6 * needed(size, 1)["activations"]
    assert needed(size, 1, 8)["activations"] == needed(size, 1)["activations"] / 8
    kept = [needed(size, 1, remat=r)["activations"] for r in ("none", "dots", "full")]
    assert kept[0] > 1.3 * kept[1] > 2 * kept[2]
  # By parameters alone 44 and 10 would be put on 80 GB.
  for size, count, fitting in (("35m", 44, 7), ("150m", 10, 2)):
    most = memory.members_that_fit(count, lambda n, s=size: memory.total(needed(s, n)), limit=80e9)
    assert most == fitting
  full, factors = needed("150m", 1), memory.Finetuning(
      _model("150m"), ALONE, rows=64, length=512, targets=256, trained=10**6).parts(1)
  assert full["optimizer"] > 100 * factors["optimizer"]
  replay = memory.Finetuning(_model("35m"), ALONE, rows=64, length=512, targets=256,
                             replay_rows=64, replay_length=512).parts(1)
  assert replay["activations"] == 2 * needed("35m", 1)["activations"]


def test_micro_batches_follow_from_memory():
  f = memory.Finetuning(_model("150m"), ALONE | {"data": 2}, rows=64, length=512, targets=256)
  need = lambda n: memory.total(f.parts(1, n))
  assert f.micro_batches(1, need(1)) == 1
  assert f.micro_batches(1, need(1) - 1) == 2
  assert f.micro_batches(1, need(8)) == 8
  assert f.micro_batches(1, 1.0) == 32  # a row of each device


@pytest.mark.parametrize("platform, tokens", [("cpu", 4096), ("tpu", 65_536 // 4)])
def test_forward_passes_read_less_at_once_when_more_members_do(monkeypatch, platform, tokens):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  mesh = types.SimpleNamespace(shape=dict(ALONE, sweep=2))
  assert scoring.batch_tokens(mesh, 8) == tokens
  assert scoring.batch_tokens(mesh, 8, 2) == tokens // 2


def test_generation_counts_parameters_beside_its_caches(monkeypatch):
  model, sampling = _model("150m"), Sampling(512, temperature=1.0, num_samples=16)
  assert generation_batches.rows_per_device(model, sampling, 512, 1, 10**11) == 2 * (
      generation_batches.rows_per_device(model, sampling, 512, 1, 10**11, parts=2))
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(memory, "device_limit", lambda: int(40 * GIB))
  rows = [generation_batches.rows_per_device(model, sampling, 512, n, 0) for n in (1, 8, 20)]
  assert rows[0] > 4 * rows[1] > 4 * rows[2] > 0


def test_members_in_a_group_are_those_that_fit(trained, tmp_path, monkeypatch):
  session = tiny.session("toy", config.shared_config("toy"), [trained], tmp_path)
  session.targets = [session.targets[0]] * 6
  monkeypatch.setattr(memory, "device_limit", lambda: 35)
  sizes = lambda need: [len(g) for g in session.groups(session.targets, need)]
  assert sizes(lambda t, n: 10 * n) == [1] * 6  # a CPU gains nothing by more
  monkeypatch.setattr(program.jax, "default_backend", lambda: "gpu")
  assert sizes(lambda t, n: 10 * n) == [3, 3] and sizes(lambda t, n: 100) == [1] * 6
  assert sizes(lambda t, n: 1) == [6]


def test_a_plan_of_fine_tuning_knows_what_it_needs(trained, tmp_path, monkeypatch):
  write_task(tmp_path)
  def plan(**fields):
    session = tiny.session("finetune", _config(tmp_path, **fields), [trained], tmp_path / "w")
    work = finetune_plan.waiting(session, finetune_plan.load_splits(session))
    return session, finetune_plan.plans(session, work)[0]
  session, one = plan()
  assert one.need(session, 4) > 3 * one.need(session, 1) > 0
  small = one.training_memory(session).parts(1)["activations"]
  assert plan(batch_size=24)[1].shape.rows > 2 * one.shape.rows
  session, lora = plan(lora=ConfigDict(dict(rank=2, alpha=1.0, targets=("query",))))
  assert lora.training_memory(session).trained == 1 * (16 * 2 + 2 * 16)
  assert small > 0 and one.micro_batches(session, 1) == 1
  monkeypatch.setattr(memory, "device_limit", lambda: 1)
  session.mesh = types.SimpleNamespace(shape=ALONE)
  assert one.micro_batches(session, 1) == one.shape.rows


def test_one_member_is_held_beside_the_stack(trained, tmp_path):
  session, alive = _session(trained, tmp_path), []
  def one_by_one():
    for target in session.targets * 2:
      assert not any(ref() is not None for ref in alive)
      params = target.stored.load_params(session._shardings(target))
      alive.extend(weakref.ref(x) for x in jax.tree.leaves(params))
      yield params
      del params
  stacked = session.stack(one_by_one(), 5)
  singles = [t.stored.load_params() for t in session.targets]
  for m, want in enumerate((0, 1, 0, 1, 1)):  # the last fills up
    jax.tree.map(lambda a, b, m=m: np.testing.assert_array_equal(a[m], b), stacked, singles[want])


# What runs out all the same.


def test_evaluations_go_on_with_fewer_members_and_then_smaller_batches(trained, tmp_path, capsys):
  session, log, done = _session(trained, tmp_path), [], []

  def run(group, what):
    log.append((len(group), session.parts))
    if len(group) > 1 or what == "large" and session.parts < 4:
      ran_out()
    done.append((group[0].name, what))

  work = [(g, what) for what in ("small", "large") for g in session.groups(session.targets)]
  session.evaluate(work, run)
  names = [t.name for t in session.targets]
  assert done == [(n, w) for w in ("small", "large") for n in names]
  assert log == [(2, 1), (1, 1), (1, 1), (1, 1), (1, 2), (1, 4), (1, 4)]
  said = capsys.readouterr().out
  assert "memory ran out with 2 members at once; going on with 1." in said
  assert "going on with batches of 1/4." in said
  assert session.rows(64) == 16 and session.rows(1) == 8  # of eight devices


def test_a_member_that_never_fits_is_one_sentence(trained, tmp_path):
  session = _session(trained, tmp_path)
  with pytest.raises(UserError, match="not enough for toy of wd0-seed0/12; divide") as e:
    session.evaluate([(session.targets, 1)], lambda group, _: ran_out())
  assert "\n" not in str(e.value) and session.parts == 64
  session = _session(trained, tmp_path)
  with pytest.raises(UserError):
    session.evaluate([(session.targets,)], lambda group: ran_out(), divisible=False)
  assert session.parts == 1
  with pytest.raises(ZeroDivisionError):
    session.evaluate([(session.targets,)], lambda group: 1 / 0)


def test_programs_go_on_where_memory_runs_out(trained, tmp_path, monkeypatch):
  """Two members at once, and more rows than there are devices, do not fit."""
  programs = (("attention_rank", {}), ("overfit", dict(batch_size=16)))
  whole = [_run(name, trained, tmp_path / "a", fields) for name, fields in programs]
  stack, read = program.Session.stack, record_losses.batches
  monkeypatch.setattr(program.Session, "stack", lambda self, params, size: (
      ran_out() if size > 1 else stack(self, params, size)))
  monkeypatch.setattr(record_losses, "batches", lambda *args: (
      ran_out() if args[-1] > 8 else read(*args)))
  less = [_run(name, trained, tmp_path / "b", fields) for name, fields in programs]
  for item, one, other in zip((attention_rank.ITEM, overfit.ITEM), whole, less, strict=True):
    _same(one, other, item, rtol=1e-4, atol=1e-5)


# How it is computed follows from where.


@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_a_checkpoint_of_another_attention_is_evaluated_here(trained, tmp_path, monkeypatch, name):
  real = checkpoint.open_checkpoint

  def opened(*args):
    stored = real(*args)
    stored.meta["model"] |= {"attention": name, "remat": "dots"}
    return stored

  monkeypatch.setattr(targets.checkpoint, "open_checkpoint", opened)
  found, _ = targets.find([trained])
  assert {(t.model.attention, t.model.remat) for t in found} == {("auto", "none")}
  assert {(t.trained_model.attention, t.trained_model.remat) for t in found} == {("auto", "dots")}
  session = _session(trained, tmp_path)
  run = record_losses.compile_losses(session, session.targets[0].model, 1, 256)
  losses = run(session.load(session.targets[:1]), session.put(np.zeros((8, 33), np.int32)))
  assert np.isfinite(losses).all()


@pytest.mark.parametrize("platform, row, prompt", [("tpu", 1024, 256), ("gpu", 1024, 256),
                                                  ("cpu", 928, 192)])
def test_rows_suit_the_attention_of_the_platform(monkeypatch, platform, row, prompt):
  monkeypatch.setattr(attention, "platform", lambda: platform)
  examples = [Example(np.zeros(n, np.int32), 3) for n in (20, 901)]
  assert batches.row_length(examples) == row and batches.row_length(examples[:1]) == 32
  assert generation_batches.padded_length(150) == prompt
  assert generation_batches.padded_length(90) == 96
  lengths = np.array([30, 100, 200, 300, 904])
  padded = [n for _, _, n in pooled_states.batches(lengths, 4096)]
  for n in (row, prompt, *padded, *(2**k for k in range(5, 12))):
    if platform == "tpu" and n > 128:
      assert attention.choose("auto", length=n, head_dim=64, dtype=np.float32, packed=True
                              ) == "splash"
  assert padded[-1] == (904 if platform == "cpu" else 1024)


def test_records_are_read_in_rows_that_suit_attention(trained, tmp_path, monkeypatch):
  session = _session(trained, tmp_path)
  target, params = session.targets[0], session.load(session.targets[:1])
  tokens = session.put(np.random.default_rng(0).integers(0, 256, (8, 33)).astype(np.int32))
  made = []
  for more in (0, 31):
    monkeypatch.setattr(decoder, "row_length", lambda n, more=more: n + more)
    run = record_losses.compile_losses(session, target.model, 1, 256)
    made.append(np.asarray(run(params, tokens)))
  assert made[0].shape == made[1].shape == (1, 8, 32)
  np.testing.assert_allclose(made[1], made[0], atol=1e-5)


# Whole programs.


def _run(name, trained, workdir, fields):
  c = getattr(config, f"{name}_config")() if isinstance(fields, dict) else fields
  c.members_at_once = 2
  if isinstance(fields, dict):
    c.update(fields)
  session = tiny.session(name, c, [trained], workdir)
  program.execute(session, importlib.import_module(f"wd_plasticity.evals.{name}").main)
  return session


def _same(one, other, item, **tolerance):
  for target in one.targets:
    a, b = (s.results.load(target, item)["values"] for s in (one, other))
    def compare(x, y):
      if isinstance(x, (int, float)):
        np.testing.assert_allclose(x, y, **tolerance)
      else:
        assert x == y
    jax.tree.map(compare, a, b)


@pytest.mark.slow
def test_fine_tuning_goes_on_in_micro_batches(trained, tmp_path, monkeypatch, capsys):
  write_task(tmp_path)
  fields = dict(epochs=2, batch_size=24, max_length=40, replay=ConfigDict(dict(fraction=0.25)))
  want = _run("finetune", trained, tmp_path / "a", _config(tmp_path, **fields))
  init, made = TuneProgram.__init__, []

  def limited(self, model, optimizer, options, mesh, num_members):
    init(self, model, optimizer, options, mesh, num_members)
    made.append((num_members, options.micro_batches))
    if num_members > 1 or options.micro_batches < 2:
      self.train_step = lambda *args: ran_out()

  monkeypatch.setattr(TuneProgram, "__init__", limited)
  got = _run("finetune", trained, tmp_path / "b", _config(tmp_path, **fields))
  assert made == [(2, 1), (1, 1), (1, 2)] and got.parts == 2
  said = capsys.readouterr().out
  assert "note: 24 of 24 training examples are longer than is read, and were cut." in said
  for target in want.targets:
    a, b = (s.results.load(target, "labelled")["values"] for s in (want, got))
    for x, y in zip(a["curve"], b["curve"], strict=True):
      assert x["loss"] == pytest.approx(y["loss"], abs=1e-4)
    assert a["before"]["test"]["acc"] == b["before"]["test"]["acc"]
    for stage in ("before", "after"):
      assert a[stage]["test"]["response_loss"]["value"] == pytest.approx(
          b[stage]["test"]["response_loss"]["value"], abs=1e-3)
    assert a["forgetting"]["value"] == pytest.approx(b["forgetting"]["value"], abs=1e-3)


@pytest.mark.slow
def test_probes_go_on_with_smaller_batches(trained, tmp_path, monkeypatch):
  fields = dict(tasks=("embedded_topic",), max_train=200, max_test=100, batch_tokens=2048)
  want = _run("probe", trained, tmp_path / "a", fields)
  read = pooled_states.collect
  monkeypatch.setattr(pooled_states, "collect", lambda states, texts, tokens, *args: (
      ran_out() if tokens > 1024 else read(states, texts, tokens, *args)))
  got = _run("probe", trained, tmp_path / "b", fields)
  assert got.parts == 2
  _same(want, got, "embedded_topic", atol=0.02)
