"""Prepared records, hashes of files and results are believed by their content."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tiny

from wd_plasticity.data import records as records_lib
from wd_plasticity.data import sources
from wd_plasticity.data.prepare import prepare
from wd_plasticity.errors import UserError
from wd_plasticity.evals import program, results, targets
from wd_plasticity.evals.config import shared_config
from wd_plasticity.training import run_record, stored_state


@pytest.fixture(scope="module")
def cache(corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp("cache")
  prepare(tiny.tiny_config(corpus).data, folder, lambda line: None)
  return folder


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2 + 100] ^= 1
  path.write_bytes(content)


# Prepared data.


@pytest.mark.parametrize("name", ["train.npy", "train_subset.npy", "validation.npy"])
def test_a_flipped_bit_in_records_is_seen_named_and_mended(corpus, cache, tmp_path, name):
  copy = shutil.copytree(cache, tmp_path / "cache")
  data, said = tiny.tiny_config(corpus).data, []
  first = prepare(data, copy, said.append)
  assert said == []
  wanted = np.array(first.training_records[np.arange(len(first.training_records))])
  path = pathlib.Path(first.directory) / name
  flip(path)
  again = prepare(data, copy, said.append)
  assert said[0] == (f"data: {path} is not what was written (its checksum differs); the data are "
                     "prepared again")
  np.testing.assert_array_equal(
      again.training_records[np.arange(len(again.training_records))], wanted)
  assert again.fingerprint == first.fingerprint
  flip(path)
  prepare(data, copy, said.append, verify=False)  # another process of the run has looked


@pytest.mark.parametrize("change", [
    dict(bytes_per_token=3.0), dict(splits={}), dict(notes=None), dict(checksums={}),
    dict(checksums=None), dict(tokenizer_fingerprint="x")])
def test_statistics_that_were_changed_are_made_again(corpus, cache, tmp_path, change):
  copy = shutil.copytree(cache, tmp_path / "cache")
  data = tiny.tiny_config(corpus).data
  first = prepare(data, copy, lambda line: None)
  path = pathlib.Path(first.directory) / "stats.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  assert prepare(data, copy, lambda line: None).stats["splits"] == first.stats["splits"]
  assert json.loads(path.read_text())["checksums"].keys() == first.stats["checksums"].keys()


def test_data_without_checksums_are_accepted_and_that_is_said(corpus, cache, tmp_path):
  copy = shutil.copytree(cache, tmp_path / "cache")
  path = next(copy.glob("*/stats.json"))
  stats = json.loads(path.read_text())
  del stats["checksums"]
  path.write_text(json.dumps(stats))
  said = []
  prepare(tiny.tiny_config(corpus).data, copy, said.append)
  assert said == [f"data: {path.parent} was prepared before there were checksums; damage is not "
                  "seen"]


def test_known_hashes_that_were_changed_are_made_again(tmp_path, monkeypatch):
  path = tmp_path / "x"
  path.write_text("content")
  now = records_lib.time.time_ns()
  monkeypatch.setattr(records_lib.time, "time_ns", lambda: now + 10**10)
  hashes = records_lib.FileHashes(str(tmp_path / "h.json"))
  digest = hashes(str(path))
  hashes.save()
  known = (tmp_path / "h.json").read_text()
  (tmp_path / "h.json").write_text(known.replace(digest, digest[::-1]))
  assert records_lib.FileHashes(str(tmp_path / "h.json"))(str(path)) == digest


# Paths.


def test_a_path_that_is_there_is_no_pattern(tmp_path):
  for folder in ("v[1]", "v1", "st*ar", "star"):
    (tmp_path / folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "c[2].txt", "c2.txt"):
      (tmp_path / folder / name).write_text(folder)
  def found(spec):
    return [str(pathlib.Path(p).relative_to(tmp_path))
            for p in sources.find_files(f"{tmp_path}/{spec}", "data.train")]
  assert found("v[1]/*.txt") == ["v[1]/a.txt", "v[1]/c2.txt", "v[1]/c[2].txt"]
  assert found("v[1]/**/*.txt") == ["v[1]/a.txt", "v[1]/c2.txt", "v[1]/c[2].txt", "v[1]/sub/b.txt"]
  assert found("v[1]/c[2].txt") == ["v[1]/c[2].txt"]
  assert found("st*ar/a.txt") == ["st*ar/a.txt"]
  assert found("v[12]/a.txt") == ["v1/a.txt"]  # what is not there is a pattern
  assert found("v*/a.txt") == ["v1/a.txt", "v[1]/a.txt"]
  with pytest.raises(UserError, match="no file matches"):
    found("v[1]/*.json")


# What evals read.


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / "run")


def names(found):
  return [t.name for t in found[0]]


def test_a_copy_of_a_member_is_left_out_as_by_summary_and_report(workdir):
  from wd_plasticity.training import summary
  shutil.copytree(workdir / "members/wd0-seed0", workdir / "members/wd0-seed0-copy")
  found = targets.find([str(workdir)])
  assert names(found) == ["wd0-seed0/12", "wd3-seed0/12"]
  assert "wd0-seed0-copy (wd0-seed0); move them out of members/" in found[1][0]
  assert all("members/wd0-seed0-copy" not in str(t.directory) for t in found[0])
  left_out = [r["member"] for r in summary.summarise(workdir) if "copy of" in r["status"]]
  assert left_out == ["wd0-seed0-copy"]


def test_a_checkpoint_of_another_member_in_its_place_is_refused(workdir):
  place = workdir / "members/wd0-seed0/checkpoints/12"
  shutil.rmtree(place)
  shutil.copytree(workdir / "members/wd3-seed0/checkpoints/12", place)
  for path in (workdir, workdir / "members/wd0-seed0", place):
    with pytest.raises(stored_state.RefusedCheckpoint,
                       match="it is of another run than .*config.json: its optim.weight_decay is "
                             "3.0 and should be 0.0"):
      targets.find([str(path)])


def test_a_member_that_was_moved_keeps_its_name(workdir):
  (workdir / "members/wd0-seed0").rename(workdir / "members/renamed")
  assert names(targets.find([str(workdir)])) == ["wd0-seed0/12", "wd3-seed0/12"]


def toy(workdir, out):
  return tiny.session("toy", shared_config("toy"), [workdir / "members/wd0-seed0"], out)


def test_a_name_of_a_result_leads_nowhere_else(trained, tmp_path):
  session = toy(trained, tmp_path)
  target = session.targets[0]
  for item in ("../x", "a/b", "", "..", "a\nb"):
    with pytest.raises(UserError, match="cannot be part of a file name"):
      session.results.write(target, item, {}, {})
  assert not list(tmp_path.rglob("*.json"))


def test_results_whose_folder_vanishes_are_not_written_elsewhere(trained, tmp_path):
  session = toy(trained, tmp_path / "out")
  def move(session):
    (tmp_path / "out").rename(tmp_path / "moved")
    session.results.write(session.targets[0], "sum", {}, {"sum": 2})
  with pytest.raises(UserError, match="was moved or deleted while the run was under way"):
    program.execute(session, move)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [
    lambda p: p.unlink(), lambda p: p.write_bytes(b""),
    lambda p: p.write_bytes(p.read_bytes()[:-1]),
    lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:])])
@pytest.mark.parametrize("suffix", [".npz", ".jsonl"])
def test_a_result_is_done_with_the_files_it_was_written_with(trained, tmp_path, suffix, damage):
  session = toy(trained, tmp_path)
  target = session.targets[0]
  def write():
    session.results.write(target, "sum", {"size": 1}, {"sum": 2}, records=[{"key": "a"}],
                          arrays={"x": np.arange(3)})
  write()
  assert session.results.is_done(target, "sum", {"size": 1})
  damage(session.results.path(target, "sum", suffix))
  with pytest.raises(UserError, match=f"another sum{suffix}, which is damaged or gone; give"):
    session.results.is_done(target, "sum", {"size": 1})
  write()
  assert session.results.is_done(target, "sum", {"size": 1})
  session.results.write(target, "sum", {"size": 1}, {})
  with pytest.raises(UserError, match="holds no values; move it elsewhere"):
    session.results.is_done(target, "sum", {"size": 1})


@pytest.mark.parametrize("change", [
    "", "[]", "null", "[" * 100_000, '{"schema_version": 1' + "0" * 5000 + "}",
    *[(field, value) for field in ("schema_version", "settings", "values", "checkpoint", "item")
      for value in ("gone", None)],
    *[(f"checkpoint.{field}", None) for field in results._CHECKPOINT]])
def test_a_result_that_lacks_something_is_one_sentence(trained, tmp_path, change):
  session = toy(trained, tmp_path)
  target = session.targets[0]
  session.results.write(target, "sum", {"size": 1}, {"sum": 2})
  path = session.results.path(target, "sum")
  if isinstance(change, str):
    path.write_text(change)
  else:
    made = json.loads(path.read_text())
    *parents, last = change[0].split(".")
    section = made[parents[0]] if parents else made
    section[last] = change[1]
    if change[1] == "gone":
      del section[last]
    path.write_text(json.dumps(made))
  for read in (lambda: session.results.is_done(target, "sum", {"size": 1}),
               lambda: session.results.load(target, "sum"), session.results.collect):
    with pytest.raises(UserError) as e:
      read()
    assert str(path) in str(e.value) and "\n" not in str(e.value)
    assert "is not a readable result" in str(e.value)


def test_a_resumed_run_with_another_beta_is_refused(workdir, corpus):
  members, _, prepared = tiny.prepared_sweep(corpus, workdir)
  config = members[0].config
  with config.unlocked():
    config.optim.beta2 = 0.9
  with pytest.raises(UserError, match=r"optim.beta2 was 0.\d+ and is now 0.9"):
    run_record.check_member(workdir / "members" / members[0].name, config,
                            tokenizer_fingerprint=prepared.tokenizer_fingerprint,
                            data_fingerprint=prepared.fingerprint)


def test_what_a_killed_evaluation_was_writing_is_cleared(trained, tmp_path):
  session = toy(trained, tmp_path)
  session.results.write(session.targets[0], "sum", {"size": 1}, {"sum": 2})
  folder = session.results.path(session.targets[0], "sum").parent
  left = [folder / ".sum.json.tmp-0123abcd",
          session.results.directory / ".results.csv.tmp-0123abcd"]
  for path in left:
    path.touch()
    os.utime(path, (100, 100))
  program.execute(session, lambda session: None)
  assert not [path for path in left if path.exists()]
