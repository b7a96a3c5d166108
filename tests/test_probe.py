"""Pooled hidden states, and the probe program on tiny members."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from sklearn.linear_model import LogisticRegression

from wd_plasticity.analysis import pooled_states, statistics
from wd_plasticity.errors import UserError
from wd_plasticity.evals import probe, probe_report, program
from wd_plasticity.evals.config import probe_config
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.training import mesh as mesh_lib

MODEL = ModelConfig(num_layers=3, width=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_width=24,
                    vocab_size=50, norm_position="pre", qk_norm=False, rope_theta=1e4,
                    norm_eps=1e-5, tied_head=False, init="scaled", compute_dtype="float32",
                    attention="plain", document_mask=False, scan_layers=True, remat="none")
TASK = "embedded_topic"


def _texts(count=23, longest=16):
  random = np.random.default_rng(0)
  lengths = np.concatenate([[1, longest], random.integers(1, longest, count - 2)])
  return [random.integers(0, 50, n).astype(np.int32) for n in lengths]


def _params(*seeds):
  made = [decoder.init_params(MODEL, jax.random.key(s)) for s in seeds]
  return jax.tree.map(lambda *x: jnp.stack(x), *made)


@functools.cache
def _compiled(num_members):
  return jax.jit(mesh_lib.over_members(
      lambda p, t, n: pooled_states.pooled_states(p, MODEL, t, n), (0, None, None), num_members))


def _states(params_M):
  fn = _compiled(jax.tree.leaves(params_M)[0].shape[0])
  return lambda tokens, lengths: fn(params_M, tokens, lengths)


def test_pooled_states_equal_single_texts_without_padding():
  texts, params = _texts(), _params(0)
  found = pooled_states.collect(_states(params), texts, tokens_per_batch=100)
  assert found.shape == (1, 4, 2, 23, 16) and found.dtype == np.float32
  one = jax.tree.map(lambda x: x[0], params)
  whole = jax.jit(lambda t: (decoder.layer_states(one, MODEL, t, lambda x: x),
                             decoder.hidden_states(one, MODEL, t)))
  for i in (0, 1, 7):  # the first has one token, the second is the longest
    states, last = whole(texts[i][None])
    np.testing.assert_allclose(found[0, :, 0, i], states[:, 0].mean(1), atol=1e-5)
    np.testing.assert_allclose(found[0, :, 1, i], states[:, 0, -1], atol=1e-5)
    np.testing.assert_allclose(found[0, -1, 1, i], last[0, -1], atol=1e-5)
    np.testing.assert_allclose(found[0, 0, 1, i], one["embed"]["embedding"][texts[i][-1]],
                               atol=1e-6)


def test_stacked_members_equal_single_ones_and_batches_do_not_matter():
  texts = _texts()
  together = pooled_states.collect(_states(_params(0, 1)), texts, tokens_per_batch=100,
                                   row_multiple=2)
  for m in range(2):
    alone = pooled_states.collect(_states(_params(m)), texts, tokens_per_batch=100)
    np.testing.assert_allclose(together[m], alone[0], atol=1e-5)


def test_batches_cover_every_text_once_in_few_shapes():
  lengths = np.random.default_rng(0).integers(1, 200, 1000)
  seen, shapes, padded_tokens = [], set(), 0
  for indices, rows, padded in pooled_states.batches(lengths, 2048, row_multiple=8):
    assert len(indices) <= rows and rows % 8 == 0 and np.all(lengths[indices] <= padded)
    shapes.add((rows, padded))
    seen += indices.tolist()
    padded_tokens += rows * padded
  assert sorted(seen) == list(range(1000)) and len(shapes) <= 4
  assert padded_tokens < 1.6 * lengths.sum()


def _run(trained, workdir, mesh=None, **fields):
  config = probe_config()
  config.update(dict(tasks=(TASK,), max_train=240, max_test=150, batch_tokens=2048,
                     inverse_strengths=(1e-3, 1e-1), steps="all") | fields)
  session = tiny.session("probe", config, [trained], workdir, **(mesh or {}))
  program.execute(session, probe.main)
  return session


@pytest.fixture(scope="module")
def done(trained, tmp_path_factory):
  return _run(trained, tmp_path_factory.mktemp("probe"))


def _values(session, task=TASK):
  return [session.results.load(t, task)["values"] for t in session.targets]


def _arrays(session, target, task=TASK):
  with np.load(session.results.path(target, task, ".npz"), allow_pickle=False) as arrays:
    return dict(arrays)


def _reference(task, target, params, strengths):
  """Accuracies [N + 1, 2] by scikit-learn on states of one text at a time."""
  tokenizer, length = target.tokenizer, target.sequence_length
  ids = [i[:length] for i in tokenizer.encode_batch(task.texts)]
  padded = np.array([np.pad(i, (0, length - len(i))) for i in ids])
  states = np.asarray(decoder.layer_states(params, target.model, padded, lambda x: x), np.float64)
  accuracies = []
  n = task.num_train
  for layer, x_TxLxD in enumerate(states):
    row = []
    for pooling in range(2):
      x = np.array([one[:len(i)].mean(0) if pooling == 0 else one[len(i) - 1]
                    for one, i in zip(x_TxLxD, ids, strict=True)])
      x = (x - x[:n].mean(0)) / np.maximum(x[:n].std(0), 1e-12)
      model = LogisticRegression(C=strengths[layer][pooling], tol=1e-6, max_iter=5000)
      row.append(model.fit(x[:n], task.train_2xN[0]).score(x[n:], task.test_2xT[0]))
    accuracies.append(row)
  return np.array(accuracies)


def test_accuracies_are_those_of_scikit_learn(done):
  target, values = done.targets[1], _values(done)[1]
  task = probe.probe_data.load(done, TASK)
  for found, params in ((values, target.stored.load_params()),
                        (values["untrained"], decoder.init_params(
                            target.model, jax.random.key(target.seed)))):
    assert {c for row in found["inverse_strength"] for c in row} <= {1e-3, 1e-1}
    want = _reference(task, target, params, found["inverse_strength"])
    np.testing.assert_allclose(found["accuracy"], want, atol=0.007)  # one of 150 texts


def test_values_and_arrays_agree(done):
  for target, values in zip(done.targets, _values(done), strict=True):
    arrays = _arrays(done, target)
    assert arrays["predictions"].shape == (2, 2, 150) and arrays["predictions"].dtype == np.int8
    for found, name in ((values, "predictions"), (values["untrained"], "untrained_predictions")):
      right = (arrays[name] == arrays["labels"]).sum(-1)
      interval = statistics.proportion(int(right[1, 0]), 150)
      assert found["accuracy"][1][0] == interval["value"]
      assert found["accuracy_low"][1][0] == interval["low"]
      assert found["accuracy_se"][1][0] == interval["se"]
      best = found["best"]
      pooling = values["poolings"].index(best["pooling"])
      assert best["value"] == found["accuracy"][best["layer"]][pooling]
      assert found["held_out_loss"][best["layer"]][pooling] == np.min(found["held_out_loss"])
      assert np.max(found["gradient_norm"]) <= 1e-5
      # Permuted labels are right by chance.
      assert np.max(found["control_accuracy"]) < 0.25 + 4 * np.sqrt(0.25 * 0.75 / 150)
      np.testing.assert_allclose(
          np.array(found["accuracy"]) - found["control_accuracy"], found["selectivity"])
    assert values["majority"]["value"] == np.mean(arrays["labels"] == 0)
    assert values["train"] == {"n": 240, "cut": values["train"]["cut"]}
    assert 0 < values["train"]["cut"] <= 240  # records are 32 bytes long
  found = _values(done)
  assert all(v["untrained"] == found[0]["untrained"] for v in found)  # of one seed
  for first, last in (found[:2], found[2:]):  # step 6 and step 12 of each decay
    assert np.abs(np.subtract(first["held_out_loss"], last["held_out_loss"])).max() > 1e-4


@pytest.mark.parametrize("mesh", [dict(sweep=2, data=2, fsdp=1, tensor=2)])
def test_members_together_on_any_mesh_give_the_same(trained, done, tmp_path, mesh):
  session = _run(trained, tmp_path, mesh, members_at_once=3, batch_tokens=700)
  for target in session.targets:
    a, b = _arrays(session, target), _arrays(done, target)
    assert a.keys() == b.keys()
    for name in a:
      assert np.mean(a[name] != b[name]) < 0.005


def test_nothing_is_done_twice(trained, done, monkeypatch, capfd):
  with monkeypatch.context() as m:
    m.setattr(probe, "_evaluate", lambda *args: pytest.fail("it was evaluated again"))
    _run(trained, done.workdir, batch_tokens=1000)
  printed = capfd.readouterr().out
  assert "wd3-seed0" in printed and "untrained" in printed and "±" in printed
  assert (done.workdir / "evals/probe/probe.png").stat().st_size > 20_000
  target = done.targets[0]
  before = done.results.load(target, TASK)["values"]
  done.results.path(target, TASK).unlink()
  _run(trained, done.workdir)
  assert done.results.load(target, TASK)["values"] == before
  with pytest.raises(UserError, match="made with max_train=240 and now it is 200"):
    _run(trained, done.workdir, max_train=200)


def _write_reviews(folder, train, test):
  paths = {}
  for split, rows in (("train", train), ("test", test)):
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": k}) + "\n" for t, k in rows))
    paths[split] = str(path)
  return {"labelled": paths}


def test_labels_of_any_file_and_a_class_that_training_lacks(trained, tmp_path):
  # Class 0 does not occur in training; class 300 needs more than one byte.
  words = {2: "aaaa", 300: "zzzz"}
  train = [(f"{words[k]} {i}", k) for i in range(20) for k in words]
  test = [(f"{words[k]} {i + 50}", k) for i in range(10) for k in words] + [("aaaa", 0)] * 5
  sources = _write_reviews(tmp_path, train, test)
  session = _run(trained, tmp_path, tasks=("labelled",), sources=sources, steps="last")
  [target], [values] = session.targets[:1], _values(session, "labelled")[:1]
  arrays = _arrays(session, target, "labelled")
  assert values["classes"] == [2, 300] and arrays["labels"].dtype == np.int16
  assert arrays["labels"].tolist() == [2, 300] * 10 + [-1] * 5
  assert set(np.unique(arrays["predictions"])) <= {2, 300}
  # What training has no example of is never right.
  assert values["accuracy"][0][0] == pytest.approx(20 / 25)
  assert values["majority"]["value"] == pytest.approx(10 / 25)
  assert values["train_accuracy"][0][0] == 1.0 and values["control_train_accuracy"][0][0] < 0.9
  assert values["selectivity"][0][0] > 0.2


def test_texts_that_occur_again_are_counted_and_said(trained, tmp_path):
  texts = [(f"{'ab'[i % 2] * 4} {i}", i % 2) for i in range(12)]
  sources = _write_reviews(tmp_path, [*texts[:8], *texts[:3]], texts[6:])
  config = probe_config()
  config.update(dict(tasks=("labelled",), sources=sources))
  task = probe.probe_data.load(tiny.session("probe", config, [trained], tmp_path), "labelled")
  assert task.in_training == 2
  assert task.notes == ["2 of 6 test texts of labelled are also training texts",
                        "3 of 11 training texts of labelled repeat another one"]


@pytest.mark.parametrize("fields,match", [
    (dict(tasks=()), "tasks is empty"), (dict(tasks=("sst3",)), "no task 'sst3'"),
    (dict(tasks=("embedded_arithmetic",)), "not one of labelled text"),
    (dict(max_train=-1), "max_train=-1 must"), (dict(held_out=1.0), "held_out=1.0 must"),
    (dict(inverse_strengths=(0.0,)), "and 0.0 is not"),
    (dict(inverse_strengths=()), "inverse_strengths is empty"),
    (dict(batch_tokens=0), "batch_tokens=0"),
    (dict(max_train=1), "examples of at least two")])
def test_mistakes_are_one_sentence(trained, tmp_path, fields, match):
  with pytest.raises(UserError, match=match):
    _run(trained, tmp_path, **fields)


def test_seeds_and_steps_in_table_and_picture(done, tmp_path):
  results = [done.results.load(t, TASK) for t in done.targets]
  other = json.loads(json.dumps(results[0]))
  other["checkpoint"] |= {"seed": 1, "member": "wd0-seed1"}
  early = json.loads(json.dumps(results[1]))
  early["checkpoint"]["step"] = 3
  early["values"]["accuracy"] = [[0.0, 0.0]] * 2
  assert early not in probe_report._last_steps([early, *results, other])
  assert len(probe_report._last_steps([early, *results, other])) == 3
  probe_report.print_table([early, *results, other])
  probe_report.save_plot([early, *results, other], tmp_path / "plot.png", "tiny")
  assert (tmp_path / "plot.png").stat().st_size > 20_000


def test_states_that_are_not_finite_are_refused(done):
  target, task = done.targets[0], probe.probe_data.load(done, TASK)
  params = jax.tree.map(lambda x: x * np.nan, done.load([target]))
  with done.progress(1, "texts") as progress, pytest.raises(UserError, match="wd0.* not finite"):
    probe._Probing(done, progress).probe(
        params, target.model, task, [np.arange(4)] * len(task.texts),
        [target.name])
