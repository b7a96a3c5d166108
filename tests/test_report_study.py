"""Reading a study from disk: what is there, and what is missing, failed or broken."""

import json
import os
import shutil

import numpy as np
import pytest
import synthetic_study

from wd_plasticity.errors import UserError
from wd_plasticity.report import answer, arrays, study
from wd_plasticity.training import summary


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """Two decays by two seeds, with two learning rates of fine-tuning."""
  workdir = tmp_path_factory.mktemp("study")
  synthetic_study.write(workdir, decays=(0.0, 0.1), rates=(1e-3, 3e-3), problems=40)
  return workdir


@pytest.fixture
def workdir(written, tmp_path):
  """A copy that a test may damage."""
  return shutil.copytree(written, tmp_path / "study")


def test_members(written):
  read = study.read(written)
  assert [m.name for m in read.members] == ["wd0-seed0", "wd0-seed1", "wd0.1-seed0",
                                            "wd0.1-seed1"]
  m = read.members[2]
  assert (m.weight_decay, m.seed, m.group, m.status, m.steps, m.total_steps, m.tokens) == (
      0.1, 0, "", "done", 100, 100, 6400)
  stored = [json.loads(line) for line in
            (written / "members" / m.name / "metrics.jsonl").read_text().splitlines()]
  assert m.curve == stored and m.validation_loss == stored[-1]["validation/loss"]
  assert m.plan["timescale"]["fraction"] == pytest.approx(1 / (0.004 * 0.1) / 100)
  assert (m.data_fingerprint, m.tokenizer_fingerprint) == ("d", "t")
  assert read.name == "synthetic" and read.notes == []


def test_finetuned_equals_what_is_on_disk(written):
  read = study.read(written)
  assert len(read.finetuned) == 4 * 2 * 2 and all(f.last for f in read.finetuned)
  f = next(f for f in read.finetuned
           if (f.member, f.task, f.rate) == ("wd0.1-seed1", "arc_easy", "lr0.003"))
  path = written / "evals/finetune/wd0.1-seed1/100/arc_easy-lr0.003.json"
  values = json.loads(path.read_text())["values"]
  assert f.measure == "acc_per_byte" and f.learning_rate == 3e-3 and f.title == "ARC-Easy"
  assert f.split == "test" and f.tokens == 6400 and f.item == "arc_easy-lr0.003"
  assert f.after == {k: v for k, v in values["after"]["test"].items() if isinstance(v, dict)}
  assert f.curve == values["curve"] and f.forgetting == values["forgetting"]
  with np.load(path.with_suffix(".npz")) as stored:
    assert list(f.keys) == list(stored["test/keys"])
    np.testing.assert_array_equal(f.scores["after"]["acc"], stored["test/after/acc"])
  assert f.scores["after"][f.measure].mean() == pytest.approx(f.after[f.measure]["value"])


def test_results_of_other_programs(written):
  read = study.read(written)
  assert [len(x) for x in (read.probed, read.ranked, read.overfit)] == [8, 8, 8]
  assert [(r.step, r.last) for r in read.ranked[:2]] == [(50, False), (100, True)]
  for r in read.overfit:
    assert set(r.arrays) == ({f"{s}_{a}" for s in ("validation", "trained_on") for a in (
        "documents", "document_sums", "document_counts")} if r.last else set())
    if r.last:
      assert r.arrays["validation_document_sums"].sum() / r.arrays[
          "validation_document_counts"].sum() == pytest.approx(r.values["validation"]["mean"])
  assert [name for name, _ in read.commands] == list(study.PROGRAMS)
  assert read.code_versions == [synthetic_study.VERSION]


def test_other_swept_fields_are_groups(tmp_path):
  synthetic_study.write(tmp_path, decays=(0.0,), pretraining_rates=(0.001, 0.004), problems=20)
  read = study.read(tmp_path)
  assert [m.group for m in read.members] == [
      "learning_rate=0.001"] * 2 + ["learning_rate=0.004"] * 2
  assert {f.group for f in read.finetuned} == {r.group for r in read.ranked} == {
      "learning_rate=0.001", "learning_rate=0.004"}


def test_results_alone(tmp_path):
  synthetic_study.write(tmp_path, decays=(0.0,), pretraining_rates=(0.001, 0.004), problems=20,
                        pretraining=False)
  read = study.read(tmp_path)
  assert read.members == [] and read.notes[0].startswith("The pretraining is not in this")
  assert {f.group for f in read.finetuned} == {"learning_rate=0.001", "learning_rate=0.004"}


def test_failed_unfinished_and_missing(tmp_path):
  synthetic_study.write(tmp_path, failed={"wd1-seed0": 60}, without=["wd0.1-seed1"],
                        problems=20)
  lines = (tmp_path / "members/wd0-seed1/metrics.jsonl").read_text().splitlines()
  (tmp_path / "members/wd0-seed1/metrics.jsonl").write_text("\n".join(lines[:5]) + "\n")
  (tmp_path / "members/empty").mkdir()
  read = study.read(tmp_path)
  of = {m.name: m for m in read.members}
  assert of["wd1-seed0"].status == "failed at step 60" and of["wd1-seed0"].reason
  assert of["wd1-seed0"].validation_loss is None and of["wd0-seed1"].status == "unfinished"
  assert {f.member for f in read.finetuned} == {"wd0-seed0", "wd0-seed1", "wd0.1-seed0",
                                                "wd1-seed1"}
  text = " ".join(read.notes)
  for sentence in ("Pretraining failed: wd1-seed0 failed at step 60 (the loss is nan).",
                   "Pretraining has not finished: wd0-seed1.", "left out: empty."):
    assert sentence in text


@pytest.mark.parametrize("name", [
    "versions.json", "members/wd0-seed0/config.json", "members/wd0-seed0/plan.json",
    "evals/finetune/wd0-seed0/100/sst2-lr0.001.json",
    "evals/finetune/wd0-seed0/100/sst2-lr0.001.npz", "evals/probe/wd0-seed0/100/sst2.json",
    "evals/overfit/wd0-seed0/100/losses.npz"])
def test_a_broken_file_is_a_note(workdir, name):
  before = study.read(workdir)
  synthetic_study.damage(workdir / name)
  read = study.read(workdir)
  assert any(f"left out: {name}" in note for note in read.notes), read.notes
  assert len(read.members) == 4 - name.startswith("members")
  whole = name.endswith(".npz") or "finetune" not in name
  assert len(read.finetuned) == len(before.finetuned) - (not whole)


@pytest.mark.parametrize("content", ["[]", "{}", '{"values": 3}', '{"values": {}}'])
def test_json_that_is_no_result_is_a_note(workdir, content):
  path = workdir / "evals/finetune/wd0-seed0/100/sst2-lr0.001.json"
  path.write_text(content)
  read = study.read(workdir)
  assert len(read.finetuned) == 15 and "sst2-lr0.001.json" in read.notes[0]


def test_results_without_scores(tmp_path):
  synthetic_study.write(tmp_path, scores=False, problems=20)
  read = study.read(tmp_path)
  assert all(f.scores == {} and f.keys.shape == (0,) for f in read.finetuned)
  assert "12 results of fine-tuning have no scores per problem" in read.notes[0]


def test_steps_of_the_study(workdir):
  folder = workdir / "study/steps"
  command = "python -m wd_plasticity.main --config=configs/books.py"
  synthetic_study.write_json(folder / "1.json", {"name": "pretrain", "state": "done",
                                                 "command": command})
  synthetic_study.write_json(folder / "2.json", {"name": "probe", "state": "failed",
                                                 "command": ["python", "x"], "message": "no data"})
  synthetic_study.write_json(folder / "3.json", {"name": "report", "state": "waiting"})
  (folder / "4.json").write_text("{")
  read = study.read(workdir)
  assert read.commands[:2] == [("pretrain", command), ("probe", "python x")]
  assert "The step probe failed: no data." in read.notes
  assert "The step report has not run yet." in read.notes


def test_nothing_and_no_directory(tmp_path):
  read = study.read(tmp_path)
  assert (read.members, read.finetuned, read.notes) == ([], [], []) and read.name == tmp_path.name
  with pytest.raises(UserError, match="there is no work directory"):
    study.read(tmp_path / "nowhere")


def test_arrays_are_those_of_numpy(tmp_path):
  rng = np.random.default_rng(0)
  stored = {"a/b": rng.random((3, 4)), "keys": np.array(["x", "yz"]), "none": np.zeros(0),
            "scalar": np.float32(3), "fortran": np.asfortranarray(rng.random((2, 3)))}
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / "a.npz", **stored)
    read = arrays.read_npz(tmp_path / "a.npz")
    assert set(read) == set(stored)
    for name, array in stored.items():
      np.testing.assert_array_equal(read[name], array)
      assert read[name].dtype == array.dtype
  assert set(arrays.read_npz(tmp_path / "a.npz", lambda name: name == "keys")) == {"keys"}
  np.savez(tmp_path / "o.npz", o=np.array([{}], dtype=object))
  with pytest.raises(ValueError):
    arrays.read_npz(tmp_path / "o.npz")


def test_results_of_other_settings_are_not_mixed(tmp_path):
  synthetic_study.write(tmp_path, tasks=("sst2",), rates=(1e-3, 3e-3))
  path = sorted((tmp_path / "evals" / "finetune").glob("*/*/sst2-lr0.001.json"))[0]
  older = json.loads(path.read_text())
  assert len(study.read(tmp_path).finetuned) == 12  # rates are not other settings
  older["settings"]["epochs"] = 99
  path.write_text(json.dumps(older))
  os.utime(path, (1, 1))
  read = study.read(tmp_path)
  assert len(read.finetuned) == 11
  assert any("1 results of finetune on sst2 were made with other settings" in n for n in read.notes)


def _change(workdir, point, **fields):
  """Makes the results of a point of the sweep those of another, in name and in fields."""
  for path in workdir.glob(f"evals/finetune/*/*/*-{point}.json"):
    document = json.loads(path.read_text())
    overrides = {}
    for name, value in fields.items():
      section, _, last = name.rpartition("__")
      (document["settings"].setdefault(section, {}) if section else document["settings"])[
          last] = value
      overrides[name.replace("__", ".")] = value
    document["settings"] |= {"overrides": overrides, "point": "any name"}
    path.write_text(json.dumps(document))


def test_points_are_told_apart_by_their_fields(workdir):
  _change(workdir, "lr0.001", seed=42, optim__learning_rate=1e-3)
  _change(workdir, "lr0.003", seed=8107, optim__learning_rate=1e-3)
  read = study.read(workdir)
  assert {(f.rate, f.setting, f.finetune_seed) for f in read.finetuned} == {
      ("", "", 42), ("", "", 8107)}
  made, = answer.answers(read)
  assert {(c.rate, c.runs) for c in made.comparisons} == {("", 2)}
  _change(workdir, "lr0.003", seed=42, epochs=9)
  read = study.read(workdir)
  assert {(f.rate, f.setting) for f in read.finetuned} == {("", "epochs=None"), ("", "epochs=9")}
  assert [a.setting for a in answer.answers(read)] == ["epochs=9", "epochs=None"]


def test_a_point_without_a_field_is_not_one_of_other_settings(workdir):
  """add({}) beside add({'seed': 1}): the first has the default seed."""
  _change(workdir, "lr0.001")
  _change(workdir, "lr0.003", seed=1, optim__learning_rate=1e-3)
  read = study.read(workdir)
  assert len(read.finetuned) == 16 and not read.notes


def test_copies_of_members_are_no_seeds(workdir):
  shutil.copytree(workdir / "members" / "wd0.1-seed0", workdir / "members" / "a-copy")
  shutil.copytree(workdir / "members" / "wd0-seed1", workdir / "members" / "stale")
  stale = workdir / "members" / "stale" / "metrics.jsonl"
  stale.write_text("".join(stale.read_text().splitlines(True)[:5]))
  read = study.read(workdir)
  assert [m.name for m in read.members] == ["wd0-seed0", "wd0-seed1", "wd0.1-seed0",
                                            "wd0.1-seed1"]
  assert {f.member for f in read.finetuned} == {m.name for m in read.members}
  told = next(n for n in read.notes if "no seeds of their own" in n)
  assert "a-copy (wd0.1-seed0), stale (wd0-seed1)" in told
  # The table after a sweep says the same.
  rows = {r["member"]: r["status"] for r in summary.summarise(workdir)}
  assert rows["stale"] == "copy of wd0-seed1"
  counted = {name for name, status in rows.items() if status == "done"}
  assert counted == {m.name for m in read.members}
  settings = summary.settings(summary.summarise(workdir))
  assert [len(s.rows) for s in settings] == [2, 2]


def test_copies_among_results_without_their_pretraining(workdir):
  shutil.rmtree(workdir / "members")
  shutil.copytree(workdir / "evals/finetune/wd0.1-seed0", workdir / "evals/finetune/wd0.1-twice")
  for path in workdir.glob("evals/finetune/wd0.1-twice/*/*.json"):
    document = json.loads(path.read_text())
    document["checkpoint"]["member"] = "wd0.1-twice"
    path.write_text(json.dumps(document))
  read = study.read(workdir)
  assert "wd0.1-twice" not in {f.member for f in read.finetuned}
  assert any("wd0.1-twice (wd0.1-seed0)" in n for n in read.notes)
