"""What all eval programs do alike: finding checkpoints, results, members together."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from wd_plasticity.errors import UserError
from wd_plasticity.evals import program, targets
from wd_plasticity.evals.config import shared_config
from wd_plasticity.models import decoder


def _config(**fields):
  config = shared_config("toy")
  config.size = 1
  config.update(fields)
  return config


def _toy(session):
  """Writes the sum of all parameters."""
  def total(params):
    return sum(x.sum() for x in jax.tree.leaves(params))
  todo = [t for t in session.targets if not session.results.is_done(t, "sum", session.settings())]
  for group in session.groups(todo):
    sums_M = session.compile(total, (0,), session.num_members(group))(session.load(group))
    for m, target in enumerate(group):
      values = {"sum": sums_M[m], "acc": {"value": 0.5, "se": np.nan, "n": 4},
                "layers": [{"text": 1.0}, np.float32(2)]}
      session.results.write(target, "sum", session.settings(), values,
                            records=[{"a": 1}, {"a": 2}], arrays={"x": np.arange(3)})
  return len(todo)


def _run(trained, workdir, paths=None, mesh=None, **fields):
  session = tiny.session("toy", _config(**fields), paths or [trained], workdir, **(mesh or {}))
  done = []
  program.execute(session, lambda s: done.append(_toy(s)))
  return session, done[0]


def test_a_sweep_a_member_a_step_and_all_steps(trained):
  names = lambda *args, **kwargs: [t.name for t in targets.find(*args, **kwargs)[0]]
  member = trained / "members" / "wd3-seed0"
  assert names([trained]) == ["wd0-seed0/12", "wd3-seed0/12"]
  assert names([trained], "all") == ["wd0-seed0/6", "wd0-seed0/12", "wd3-seed0/6", "wd3-seed0/12"]
  assert names([trained], "6") == ["wd0-seed0/6", "wd3-seed0/6"]
  assert names([member]) == names([member / "checkpoints"]) == ["wd3-seed0/12"]
  assert names([member / "checkpoints" / "6"], "all") == ["wd3-seed0/6"]
  assert names([member, trained, member]) == ["wd0-seed0/12", "wd3-seed0/12"]
  found = targets.find([member])[0][0]
  assert (found.weight_decay, found.seed, found.tokens) == (3.0, 0, 12 * 8 * 32)
  assert found.tokenizer.decode(found.tokenizer.encode_batch(["decay"])[0]) == "decay"


def test_results_are_kept_and_made_once(trained, tmp_path):
  session, done = _run(trained, tmp_path, steps="all")
  assert done == 4
  made = session.results.load(session.targets[0], "sum")
  assert made["schema"] == "wd_plasticity.toy" and made["settings"]["size"] == 1
  assert made["checkpoint"]["weight_decay"] == 0.0 and made["checkpoint"]["step"] == 6
  params = session.targets[0].stored.load_params()
  want = sum(float(x.sum()) for x in jax.tree.leaves(params))
  assert made["values"]["sum"] == pytest.approx(want, abs=1e-3)
  lines = (tmp_path / "evals/toy/results.jsonl").read_text().splitlines()
  assert [json.loads(line)["checkpoint"]["step"] for line in lines] == [6, 12, 6, 12]
  table = list(csv.DictReader((tmp_path / "evals/toy/results.csv").open()))
  assert [(r["member"], r["step"], r["measure"]) for r in table[::3]] == [
      ("wd0-seed0", "6", "sum"), ("wd0-seed0", "12", "sum"),
      ("wd3-seed0", "6", "sum"), ("wd3-seed0", "12", "sum")]
  assert float(table[0]["value"]) == made["values"]["sum"] and table[0]["n"] == ""
  assert [(r["measure"], r["value"], r["se"], r["n"]) for r in table[1:3]] == [
      ("acc", "0.5", "", "4"), ("layers/1", "2.0", "", "")]
  path = session.results.path(session.targets[0], "sum")
  assert len(path.with_suffix(".jsonl").read_text().splitlines()) == 2
  assert np.load(path.with_suffix(".npz"))["x"].tolist() == [0, 1, 2]
  # Again: nothing; without one result: that one; with other settings: refused.
  assert _run(trained, tmp_path, steps="all")[1] == 0
  path.unlink()
  assert _run(trained, tmp_path, steps="all")[1] == 1
  with pytest.raises(UserError, match="made with size=1 and now it is 2"):
    _run(trained, tmp_path, size=2)
  path.write_text("{")
  with pytest.raises(UserError, match="not a readable result"):
    _run(trained, tmp_path, steps="all")


@pytest.mark.parametrize("mesh", [dict(sweep=2, data=2, fsdp=2, tensor=1),
                                  dict(sweep=4, data=1, fsdp=1, tensor=2)])
def test_members_together_on_any_mesh(trained, tmp_path, mesh):
  session, _ = _run(trained, tmp_path / "a", members_at_once=2, mesh=mesh)
  one, _ = _run(trained, tmp_path / "b")
  for t, u in zip(session.targets, one.targets, strict=True):
    assert session.results.load(t, "sum")["values"]["sum"] == pytest.approx(
        one.results.load(u, "sum")["values"]["sum"], abs=1e-3)
  group = session.groups(session.targets)[0]
  params = session.load(group)
  tokens = session.put(np.arange(32).reshape(8, 4))
  together = session.compile(lambda p, t: decoder.logits(p, group[0].model, t), (0, None),
                             session.num_members(group))(params, tokens)
  for m, target in enumerate(group):
    alone = decoder.logits(target.stored.load_params(), target.model, np.arange(32).reshape(8, 4))
    np.testing.assert_allclose(together[m], alone, atol=1e-5)


def test_pretraining_data_are_found_or_made_again(trained, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(trained, copy)
  session = tiny.session("toy", _config(), [copy], tmp_path / "w")
  assert session.pretraining_data(session.targets[0]).directory.startswith(str(copy))
  shutil.rmtree(copy / "cache")
  session = tiny.session("toy", _config(), [copy], tmp_path / "w")
  made = session.pretraining_data(session.targets[0])
  assert made.directory.startswith(str(tmp_path / "w"))
  assert made.fingerprint == session.targets[0].meta["data_fingerprint"]


def test_mistakes_are_one_sentence(trained, tmp_path):
  def refused(match, *paths, steps="last"):
    with pytest.raises(UserError, match=match):
      targets.find([str(p) for p in paths], steps)
  refused("does not exist", tmp_path / "nothing")
  (tmp_path / "foreign").mkdir()
  (tmp_path / "foreign" / "model.safetensors").write_text("x")
  refused("no finished wd_plasticity checkpoint", tmp_path / "foreign")
  (tmp_path / "empty" / "members" / "wd0").mkdir(parents=True)
  refused("no member of .* has a finished checkpoint", tmp_path / "empty")
  refused("has no checkpoint of step 7", trained, steps="7")
  refused("must be last, all, or numbers", trained, steps="newest")
  refused("--checkpoint=PATH is missing")
  shutil.copytree(trained, tmp_path / "copy")
  refused("are both called wd0-seed0/12", trained, tmp_path / "copy")
  # A tokenizer that does not fit.
  folder = tmp_path / "copy" / "members" / "wd0-seed0"
  shutil.rmtree(folder / "tokenizer")
  shutil.rmtree(tmp_path / "copy" / "cache")
  with pytest.raises(UserError, match="copy it there"):
    targets.find([folder])[0][0].tokenizer  # noqa: B018
  from wd_plasticity.data.tokenizers import train_bpe
  train_bpe(["some text"], 260).save(folder / "tokenizer")
  with pytest.raises(UserError, match="is not the one that wd0-seed0/12 was trained with"):
    targets.find([folder])[0][0].tokenizer  # noqa: B018


def test_a_member_that_is_not_finished_is_told(trained, tmp_path):
  shutil.copytree(trained, tmp_path / "copy")
  shutil.rmtree(tmp_path / "copy" / "members" / "wd0-seed0" / "checkpoints" / "12")
  shutil.rmtree(tmp_path / "copy" / "members" / "wd3-seed0" / "checkpoints")
  found, notes = targets.find([tmp_path / "copy"])
  assert [t.name for t in found] == ["wd0-seed0/6"]
  assert "its last checkpoint is of step 6 of 12" in notes[0]
  assert "wd3-seed0 has no finished checkpoint" in notes[1]


def test_results_of_other_settings_are_set_aside_when_asked_to(trained, tmp_path):
  _run(trained, tmp_path)
  session = tiny.session("toy", _config(size=2), [trained], tmp_path, replace=True)
  done = []
  program.execute(session, lambda s: done.append(_toy(s)))
  assert done == [2]
  kept = tmp_path / "outdated/evals/toy/wd0-seed0/12/sum.json"
  assert json.loads(kept.read_text())["settings"]["size"] == 1
  assert kept.with_suffix(".jsonl").exists() and kept.with_suffix(".npz").exists()
  assert session.results.load(session.targets[0], "sum")["settings"]["size"] == 2
