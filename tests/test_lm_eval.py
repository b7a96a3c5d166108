"""Texts scored and continued as lm-evaluation-harness asks for it; none of it needs the harness.

That scores equal those of its transformers backend is tested in tests/parity/test_lm_eval.py.
"""

import builtins
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from wd_plasticity.data.tokenizers import ByteTokenizer
from wd_plasticity.errors import UserError
from wd_plasticity.evals import lm_eval, lm_eval_tasks
from wd_plasticity.evals.config import lm_eval_config
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.interop import lm_eval_text
from wd_plasticity.interop.lm_eval_text import TextModel
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.study import plan
from wd_plasticity.training import mesh as mesh_lib

LENGTH = 24
MODEL = ModelConfig(
    num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_width=24, vocab_size=260,
    norm_position="pre", qk_norm=False, rope_theta=1e4, norm_eps=1e-5, tied_head=False,
    init="scaled", compute_dtype="float32", attention="plain", document_mask=False,
    scan_layers=True, remat="none")
EOS = 256
PAIRS = [("ab cd", " ef"), ("ab cd ", "ef"), ("", "xyz"), ("  ", "xyz"), ("one of", " A"),
         ("one of", " B"), ("long " * 20, "tail"), ("é", "ü")]


def params():
  """Weights that make some tokens far likelier than others."""
  made = decoder.init_params(MODEL, jax.random.key(3))
  return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, made)


def text_model(**sizes):
  mesh = mesh_lib.make_mesh(ConfigDict(
      dict(sweep=1, data=1, fsdp=1, tensor=1) | (sizes or dict(data=jax.device_count()))))
  specs = mesh_lib.stacked(mesh_lib.parameter_specs(decoder.param_shapes(MODEL)))
  params_M = jax.tree.map(lambda x: np.asarray(x)[None], params())
  return TextModel(MODEL, ByteTokenizer(), mesh, 1,
                   jax.device_put(params_M, mesh_lib.shardings(mesh, specs)), max_length=LENGTH)


@pytest.fixture(scope="module")
def text():
  return text_model()


def log_probabilities(ids):
  """Of every token after each of the ids, [L, V], without padding or buckets."""
  return np.asarray(jax.nn.log_softmax(decoder.logits(params(), MODEL, np.array([ids]))[0]),
                    np.float64)


def test_likelihoods_against_whole_logits(text):
  before = text.num_cut
  made = text.likelihoods(PAIRS)
  assert text.num_cut == before + 1
  for (context, continuation), (nats, greedy) in zip(PAIRS, made, strict=True):
    whole = (context + continuation).encode()
    count = len(whole) - len(context.rstrip().encode())
    ids = ([] if context.strip() else [EOS]) + list(whole)
    read, wanted = ids[-(LENGTH + 1):], ids[-count:]
    table = log_probabilities(read[:-1])[-count:]
    assert nats == pytest.approx(table[np.arange(count), wanted].sum(), abs=1e-4)
    assert greedy == (table.argmax(1) == wanted).all()
  # Moved spaces make no difference; what a greedy model writes is greedy.
  assert made[0] == made[1]
  written = text.continuations(["ab cd"], [], Sampling(3))[0]
  if "\ufffd" not in written:
    assert text.likelihoods([("ab cd", written)])[0][1]


def test_smaller_batches_read_the_same(text, monkeypatch):
  want = text.likelihoods(PAIRS)
  monkeypatch.setattr(text, "parts", 64)
  batches, rows = lm_eval_text.scoring.batches, []
  monkeypatch.setattr(lm_eval_text.scoring, "batches", lambda *args: (
      rows.append(len(made[0][0])) or made for made in batches(*args)))
  got = text.likelihoods(PAIRS)
  assert max(rows) <= max(8, 4096 // 64 // 32)
  np.testing.assert_allclose(got, want, atol=1e-4)
  monkeypatch.undo()
  contexts = ["ab cd", "x", "one of"]
  written = text.continuations(contexts, [], Sampling(3))
  monkeypatch.setattr(text, "parts", 4096)
  assert text.continuations(contexts, [], Sampling(3)) == written


def test_options_of_one_token_are_read_once(text, monkeypatch):
  read = []
  batches = lm_eval_text.scoring.batches
  monkeypatch.setattr(lm_eval_text.scoring, "batches",
                      lambda wanted, *sizes: read.extend(wanted) or batches(wanted, *sizes))
  done = []
  pairs = [("one of", c) for c in "ABCD"] + [("one o", "fE")]
  made = text.likelihoods(pairs, done.append)
  assert len(read) == 1 and len(read[0].targets) == 6 and done[-1] == 5
  monkeypatch.undo()
  assert made == [text.likelihoods([p])[0] for p in pairs]


@pytest.mark.parametrize("length", [0, 1, 23, 24, 25, 48, 61])
def test_every_token_of_a_long_text_is_predicted_once(text, length):
  ids = list(b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:length])
  want = 0.0
  for begin in range(0, length, LENGTH):
    end = min(begin + LENGTH, length)
    before = ids[max(0, end - LENGTH - 1):begin] or [EOS]
    table = log_probabilities(before + ids[begin:end - 1])
    want += table[np.arange(len(before) - 1, len(table)), ids[begin:end]].sum()
  assert text.rolling([bytes(ids).decode()])[0] == pytest.approx(want, abs=1e-3)


def test_continuations_end_at_stops_and_keep_room(text, monkeypatch):
  contexts = ["ab cd", "", "long " * 20, "one of"]
  whole = text.continuations(contexts, [], Sampling(12))
  assert all(whole) and len(set(whole)) > 1
  # A stop that is really written, in any stage.
  stop = whole[0][4:6]
  cut = text.continuations(contexts, ["", stop], Sampling(12))
  assert cut == [w.split(stop, 1)[0] for w in whole] and cut[0] != whole[0]
  monkeypatch.setattr(lm_eval_text, "_FIRST_TOKENS", 4)
  done = []
  assert text.continuations(contexts, [stop], Sampling(12), on_done=done.append) == cut
  assert done[-1] == 4 and done[0] >= 1
  # The last tokens of a context are read, as many as leave room.
  assert text.continuations(["long " * 20], [], Sampling(12)) == text.continuations(
      [("long " * 20)[-12:]], [], Sampling(12))
  with pytest.raises(UserError, match="24 new tokens leave no room for a prompt in the 24"):
    text.continuations(["a"], [], Sampling(24))
  drawn = [text.continuations(["a"] * 8, [], Sampling(6, temperature=1.0), seed)
           for seed in (0, 0, 1)]
  assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) > 4


def test_a_continuation_that_cannot_be_read(text):
  with pytest.raises(UserError, match="a continuation of 25 tokens is longer than the 24"):
    text.likelihoods([("a", "b" * 25)])
  assert text.likelihoods([("abc", "")]) == [(0.0, True)]
  with pytest.raises(UserError, match="max_length=0 must be at least 1"):
    TextModel(MODEL, ByteTokenizer(), text._mesh, 1, text.params_M, max_length=0)


def answers(model):
  """Everything that is asked of a model, in one list."""
  return [model.likelihoods(PAIRS), model.rolling(["abc" * 30, "x"]),
          model.continuations([c for c, _ in PAIRS], ["\n"], Sampling(8))]


def check_same(one, other):
  np.testing.assert_allclose([n for n, _ in one[0]], [n for n, _ in other[0]], atol=1e-4)
  assert [g for _, g in one[0]] == [g for _, g in other[0]] and one[2] == other[2]
  np.testing.assert_allclose(one[1], other[1], atol=1e-3)


@pytest.mark.slow
def test_one_device_and_eight_give_the_same(text):
  """This process has eight devices, the other one."""
  assert text._mesh.size == 8
  code = ("import sys, json; sys.path[:0] = ['tests', '.']; import test_lm_eval as t; "
          "print(json.dumps(t.answers(t.text_model())))")
  env = os.environ | {"JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tiny.ROOT, text=True,
                        capture_output=True)
  assert done.returncode == 0, done.stderr
  check_same(answers(text), json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_parameters_divided_among_devices(text):
  check_same(answers(text), answers(text_model(data=2, fsdp=2, tensor=2)))


# The program's own checks; none needs the harness.


def refused(match, **fields):
  config = lm_eval_config()
  config.update(fields)
  with pytest.raises(UserError, match=match) as e:
    lm_eval_tasks.check(config)
  assert "\n" not in str(e.value)


def test_mistakes_are_one_sentence(tmp_path):
  lm_eval_tasks.check(lm_eval_config())
  refused("tasks names no task", tasks=())
  refused("names a task twice", tasks=("piqa", "piqa"))
  refused("num_fewshot=-2 must be 0 or more, or -1", num_fewshot=-2)
  refused("limit=-1 must be 0 or more", limit=-1)
  refused("max_length=-1 must be 0 or more", max_length=-1)
  refused("max_gen_toks=0 must be at least 1", max_gen_toks=0)
  refused("include_path=.*gone is not a folder", include_path=str(tmp_path / "gone"))


def test_without_the_harness_the_program_says_what_to_install(trained, tmp_path, monkeypatch):
  find = lm_eval_tasks.importlib.util.find_spec
  monkeypatch.setattr(lm_eval_tasks.importlib.util, "find_spec",
                      lambda name, *a: None if name == "lm_eval" else find(name, *a))
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name.split(".")[0] == "lm_eval":
      raise ModuleNotFoundError(f"No module named {name!r}")
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  session = tiny.session("lm_eval", lm_eval_config(), [trained], tmp_path)
  with pytest.raises(UserError, match=r"run pip install -e '\.\[lm_eval\]'"):
    lm_eval.main(session)
  with pytest.raises(UserError, match="lm-evaluation-harness is not installed"):
    plan.read_tasks(plan.load_evals(lambda add: add(lm_eval_config()), None)[0])


def test_what_is_kept_of_the_harness_results():
  """A results object as `simple_evaluate` returns one, of a group with one task."""
  results = {
      "results": {
          "both": {"alias": "both", "name": "both", "sample_len": 7, "acc,none": 0.5,
                   "acc_stderr,none": 0.1},
          "sums": {"alias": " - sums", "name": "sums", "sample_len": 7,
                   "exact_match,strict": np.float64(0.25), "exact_match_stderr,strict": "N/A",
                   "acc,none": 0.5, "acc_stderr,none": 0.1, "bypass,none": "text"}},
      "groups": {"both": {}}, "versions": {"sums": 2.0}, "n-shot": {"sums": 5, "both": 5},
      "higher_is_better": {"sums": {"exact_match": True, "acc": True}, "both": {"acc": True}},
      "samples": {"sums": [{
          "doc_id": 3, "doc_hash": "h", "filter": "strict", "target": np.int64(4),
          "resps": [[(-1.5, True)], ["text"]], "metrics": ["exact_match"], "exact_match": 1.0}]}}
  made = lm_eval_tasks.summarise("both", results, "0.4.13")
  assert (made["task"], made["harness"]) == ("both", "0.4.13")
  assert set(made["tasks"]) == {"sums"} and set(made["groups"]) == {"both"}
  sums = made["tasks"]["sums"]
  assert (sums["title"], sums["version"], sums["num_fewshot"], sums["documents"]) == (
      "sums", "2.0", 5, 7)
  assert sums["measures"] == {
      "exact_match,strict": {"value": 0.25, "se": None, "n": 7, "higher_is_better": True},
      "acc": {"value": 0.5, "se": 0.1, "n": 7, "higher_is_better": True}}
  assert lm_eval_tasks.records(results) == [
      {"task": "sums", "doc_id": 3, "doc_hash": "h", "filter": "strict", "target": 4,
       "responses": [[[-1.5, True]], ["text"]], "exact_match": 1.0}]
  json.dumps(lm_eval_tasks.records(results))


def test_the_config_of_a_study_step_is_written():
  config = lm_eval_config()
  config.tasks = ("sciq",)
  (e,) = plan.load_evals(lambda add: add(config), None)
  text_of = plan.config_text(e)
  assert "from wd_plasticity.evals.config import lm_eval_config" in text_of
  assert "config.tasks = ('sciq',)" in text_of


def test_a_measure_is_over_the_problems_that_have_it():
  """A task may score some of its problems by one measure and others by another."""
  samples = [{"filter": "none", "metrics": ["acc"]}] * 3 + [
      {"filter": "none", "metrics": ["acc", "f1"]}] * 2
  made = lm_eval_tasks.summarise("t", {
      "results": {"t": {"acc,none": 0.5, "f1,none": 0.4, "sample_len": 5}}, "n-shot": {"t": 0},
      "higher_is_better": {}, "versions": {}, "samples": {"t": samples}}, "0")
  measures = made["tasks"]["t"]["measures"]
  assert (measures["acc"]["n"], measures["f1"]["n"]) == (5, 2)
