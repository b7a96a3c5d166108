"""The overfit program on tiny members: pretraining's own losses, any mesh, once only."""

import collections
import dataclasses
import json
import types

import jax
import numpy as np
import pytest
import tiny

from wd_plasticity.data import loader
from wd_plasticity.errors import UserError
from wd_plasticity.evals import overfit, overfit_plot, overfit_summary, program, record_losses
from wd_plasticity.evals.config import overfit_config
from wd_plasticity.models import decoder
from wd_plasticity.training.metrics import read_metrics

SETS = overfit_summary.SETS


def _run(trained, workdir, mesh=None, **fields):
  config = overfit_config()
  config.update(dict(steps="all", sequences=8, batch_size=8) | fields)
  session = tiny.session("overfit", config, [trained], workdir, **(mesh or {}))
  program.execute(session, overfit.main)
  return session


@pytest.fixture(scope="module")
def done(trained, tmp_path_factory):
  return _run(trained, tmp_path_factory.mktemp("overfit"))


def _results(session):
  return [session.results.load(t, "losses")["values"] for t in session.targets]


def _arrays(session, target):
  with np.load(session.results.path(target, "losses", ".npz"), allow_pickle=False) as arrays:
    return dict(arrays)


def _read_in_training(prepared, target) -> np.ndarray:
  """The records that the training loop was fed, in its order."""
  source = loader.BatchSource(prepared.training_records, [target.seed], 8)
  return np.concatenate([source[step][0] for step in range(target.step)])


def _token_losses(target, records) -> np.ndarray:
  logits = decoder.logits(target.stored.load_params(), target.model, records[:, :-1])
  log_p = np.asarray(jax.nn.log_softmax(logits))
  return -np.take_along_axis(log_p, records[:, 1:, None], 2)[..., 0]


def test_validation_losses_are_those_that_pretraining_logged(done):
  """The tiny runs evaluate eval_sequences=8 records, at the steps of their checkpoints."""
  assert len(done.targets) == 4
  for target, values in zip(done.targets, _results(done), strict=True):
    logged = next(r for r in read_metrics(target.directory.parents[1] / "metrics.jsonl")
                  if r["step"] == target.step)
    assert values["validation"]["mean"] == pytest.approx(logged["validation/loss"], abs=1e-5)
    for name in SETS:
      assert values[name]["n"] == 8 * 32 and values[name]["records"] == 8
    assert values["gap"]["value"] == pytest.approx(
        values["validation"]["mean"] - values["trained_on"]["mean"])
    assert values["gap"]["low"] < values["gap"]["value"] < values["gap"]["high"]
    assert values["tokens"] == target.step * 8 * 32
    prepared = done.pretraining_data(target)
    assert values["epochs"] == pytest.approx(target.step * 8 / len(prepared.training_records))


def test_the_training_side_is_what_the_training_read(trained, done, tmp_path):
  session = _run(trained, tmp_path, sequences=0)
  for target, values in zip(session.targets, _results(session), strict=True):
    prepared = session.pretraining_data(target)
    read = _read_in_training(prepared, target)
    assert len(np.unique(read, axis=0)) == values["trained_on"]["records"] == 8 * target.step
    assert values["share_read"] == 8 * target.step / len(prepared.training_records) < 0.1
    assert values["trained_on"]["mean"] == pytest.approx(_token_losses(target, read).mean(),
                                                         abs=1e-5)
  # At an earlier step it is what was read by then, and not what other decays do not share.
  documents = [_arrays(done, t)["trained_on_documents"].tolist() for t in done.targets]
  assert documents[0] == documents[2] and documents[1] == documents[3] != documents[0]


@pytest.mark.parametrize("n,positions", [(100, 30), (100, 100), (100, 250), (20_000, 64)])
def test_records_read_are_those_of_the_batches(n, positions):
  records = np.arange(n)[:, None] + [[0, 0]]
  fed = np.concatenate([loader.BatchSource(records, [3], 1)[p][0, :, 0] for p in range(positions)])
  assert loader.read_records(positions, n, 3).tolist() == np.unique(fed).tolist()
  some = loader.read_records(positions, n, 3, 20)
  assert len(some) == 20 and np.isin(some, fed).all()
  whole = loader.read_records(positions, n, 4, 20).tolist() == some.tolist()
  assert whole == (positions >= n)  # seeds differ in what they have read, until it is everything


def test_of_an_imported_model_it_is_not_known_what_it_read(done):
  target = done.targets[0]
  prepared = done.pretraining_data(target)
  assert overfit._reading(prepared, target).share(100) == 48 / 100
  for kept, known in (({}, False), ({"order_known": False}, False), ({"order_known": True}, True)):
    meta = {**target.meta, "imported": kept}
    stored = types.SimpleNamespace(meta=meta, step=target.step)
    reading = overfit._reading(prepared, dataclasses.replace(target, stored=stored))
    assert (reading.known, reading.share(100) is None) == (known, not known)
    assert known or len(reading.indices(len(prepared.training_records), 0)) == len(
        prepared.training_records)


def test_bins_and_balanced_means_equal_brute_force(done):
  target = done.targets[-1]
  values, arrays = done.results.load(target, "losses")["values"], _arrays(done, target)
  prepared, params = done.pretraining_data(target), target.stored.load_params()
  training = collections.Counter(
      np.concatenate([prepared.records[n] for n in ("train", "train_subset")]).reshape(-1).tolist())
  total = sum(training.values())
  for name in SETS:
    records = np.concatenate([t for t, _ in loader.eval_batches(prepared.records[name], 8, 8)]) if (
        name == "validation") else _read_in_training(prepared, target)[::target.step]
    logits = decoder.logits(params, target.model, records[:, :-1])
    targets = records[:, 1:]
    log_p = np.asarray(jax.nn.log_softmax(logits))
    losses = -np.take_along_axis(log_p, targets[..., None], 2)[..., 0]
    found = values[name]
    types = [v for v in np.unique(targets) if (targets == v).sum() >= 10]
    assert found["balanced"]["n"] == len(types) > 5
    assert found["balanced"]["mean"] == pytest.approx(
        np.mean([losses[targets == v].mean() for v in types]), abs=1e-5)
    seen = 0
    for b in values["bins"]:
      inside = [v for v in range(257) if (b["low"] - 1e-12 <= training[v] / total < b["high"]
                                          or training[v] == b["low"] == 0)]
      assert b["types"] == len(inside)
      mask = np.isin(targets, inside)
      assert b[name]["n"] == mask.sum()
      if mask.any():
        assert b[name]["mean"] == pytest.approx(losses[mask].mean(), abs=1e-5)
      seen += mask.sum()
      assert b["training_token_share"] == pytest.approx(sum(training[v] for v in inside) / total)
    assert seen == targets.size
    np.testing.assert_allclose(arrays[f"{name}_type_sums"][types[0]],
                               losses[targets == types[0]].sum(), rtol=1e-5)
    np.testing.assert_allclose(arrays[f"{name}_document_sums"],
                               arrays[f"{name}_bin_sums"].sum(1), rtol=1e-12)
    assert arrays[f"{name}_document_counts"].sum() == targets.size
  assert sum(b["types"] for b in values["bins"]) == 257  # and not the padded vocabulary


@pytest.mark.parametrize("mesh", [dict(sweep=2, data=2, fsdp=1, tensor=2),
                                  dict(sweep=4, data=1, fsdp=2, tensor=1)])
def test_members_together_on_any_mesh_give_the_same(trained, done, tmp_path, mesh):
  # A batch size that neither the devices nor the records are a multiple of.
  session = _run(trained, tmp_path, mesh, members_at_once=3, batch_size=3)
  for a, b in zip(_results(session), _results(done), strict=True):
    flat = [jax.tree.flatten(x)[0] for x in (a, b)]
    assert len(flat[0]) == len(flat[1]) > 50
    np.testing.assert_allclose(*(np.array(x, np.float64) for x in flat), atol=1e-5)


def test_nothing_is_done_twice(trained, done, monkeypatch, capfd):
  workdir = done.workdir
  with monkeypatch.context() as m:
    for name in ("_evaluate", "_open_data"):
      m.setattr(overfit, name, lambda *args: pytest.fail("it was evaluated again"))
    _run(trained, workdir, batch_size=16)
  printed = capfd.readouterr().out
  assert "wd3-seed0" in printed and "balanced" in printed and "±" in printed
  assert (workdir / "evals/overfit/overfit.png").stat().st_size > 20_000
  # One that is missing is made again, without counting the corpus again.
  target = done.targets[1]
  before = done.results.load(target, "losses")["values"]
  done.results.path(target, "losses").unlink()
  with monkeypatch.context() as m:
    m.setattr(overfit.tf, "count_tokens", lambda *args: pytest.fail("counted again"))
    _run(trained, workdir)
  assert done.results.load(target, "losses")["values"] == before
  with pytest.raises(UserError, match="made with sequences=8 and now it is 4"):
    _run(trained, workdir, sequences=4)
  with pytest.raises(UserError, match="frequency.binning=\"log\" and now"):
    _run(trained, workdir, frequency=dict(binning="types"))


def test_a_damaged_count_is_made_again(trained, tmp_path):
  path = tmp_path / "evals/overfit"
  path.mkdir(parents=True)
  session = _run(trained, tmp_path, steps="last")
  [counts] = path.glob("token_counts_*.json")
  good = json.loads(counts.read_text())
  counts.write_text("{}")
  session.results.path(session.targets[0], "losses").unlink()
  _run(trained, tmp_path, steps="last")
  assert json.loads(counts.read_text()) == good


@pytest.mark.parametrize("fields,match", [
    (dict(sequences=-1), "sequences=-1 must"), (dict(batch_size=0), "batch_size=0 must"),
    (dict(frequency=dict(min_count=-1)), "frequency.min_count=-1"),
    (dict(frequency=dict(binning="words")), "binning='words' is unknown")])
def test_mistakes_are_one_sentence(trained, tmp_path, fields, match):
  with pytest.raises(UserError, match=match):
    _run(trained, tmp_path, **fields)


def test_attention_stays_within_documents_where_pretraining_kept_it(done):
  target, end = done.targets[-1], ord(" ")  # a space ends a document here
  model = dataclasses.replace(target.model, document_mask=True)
  prepared, params = done.pretraining_data(target), target.stored.load_params()
  records = np.asarray(prepared.records["validation"][:8], np.int32)
  token_losses = record_losses.compile_losses(done, model, 1, end)
  losses = token_losses(done.load([target]), done.put(records))[0]
  for row, found in zip(records[:2], np.asarray(losses), strict=False):
    ends = np.flatnonzero(row[:-1] == end) + 1
    assert len(ends) > 2
    document = row[ends[0]:ends[1] + 1]  # alone, at the positions that it has in the record
    padded = np.concatenate([np.full(ends[0], end), document])[None]
    segments = np.concatenate([np.zeros(ends[0]), np.ones(len(document))]).astype(int)[None]
    logits = decoder.logits(params, target.model, padded, segments)[0, ends[0]:-1]
    want = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(logits)), document[1:]]
    np.testing.assert_allclose(found[ends[0]:ends[1]], want, atol=1e-5)


def test_a_member_that_diverged_is_written_and_drawn(done, tmp_path):
  target, other = done.targets[2], done.targets[0]
  data = overfit._open_data(done, target)
  sums = {name: np.full(len(s.cell_counts), np.inf) for name, s in data.sets.items()}
  values, arrays = overfit._summarise(done, data, target, sums)
  assert values["gap"]["value"] is None and values["validation"]["balanced"]["mean"] is None
  results = type(done.results)(tmp_path, "overfit", "test")
  results.write(target, "losses", {}, values, arrays=arrays)
  results.write(other, "losses", {}, done.results.load(other, "losses")["values"],
                arrays=_arrays(done, other))
  rows = overfit_summary.read(results, [other, target], "losses")
  overfit_summary.print_table(rows)
  overfit_plot.save(rows, tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size > 20_000


def test_members_are_paired_with_the_smallest_decay(done):
  rows = overfit_summary.read(done.results, done.targets, "losses")
  assert [overfit_summary.reference(r, rows) for r in rows[:2]] == [None, None]
  for row, other in ((rows[2], rows[0]), (rows[3], rows[1])):
    assert overfit_summary.reference(row, rows) is other
    found = overfit_summary.contrast(row, rows)
    assert found["value"] == pytest.approx(
        row.values["gap"]["value"] - other.values["gap"]["value"], abs=1e-9)
    # Differences between documents fall out.
    assert found["se"] < 0.7 * row.values["gap"]["se"]
