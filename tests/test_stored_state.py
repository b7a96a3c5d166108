"""Checkpoints are believed by their content: marks, checksums, fields; and no path is a pattern."""

import errno
import json
import os
import shutil
import time

import jax
import launching
import numpy as np
import pytest
import tiny
from orbax.checkpoint import v1 as ocp
from test_checkpoint import META, abstract, bits, make_state, write

from wd_plasticity.errors import UserError, run
from wd_plasticity.interop.parameter_stream import ParameterReader
from wd_plasticity.training import run_record, stored_state
from wd_plasticity.training.checkpoint import MemberCheckpoints, open_checkpoint
from wd_plasticity.training.stored_state import RefusedCheckpoint, finished_steps

TARGET = [abstract(t) for t in make_state(1)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """Checkpoints of steps 2 and 4; tests that change them work on a copy."""
  return write(tmp_path_factory.mktemp("stored") / "checkpoints", [2, 4], keep_latest=2).directory


@pytest.fixture
def copy(stored, tmp_path):
  return shutil.copytree(stored, tmp_path / "checkpoints")


def flip(path, bit=0):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1 << bit
  path.write_bytes(content)


# Places.


def test_a_path_is_not_a_pattern(tmp_path):
  # Were it one, files of these neighbours would be taken for its own.
  for other in ("a", "stxar", "qqm"):
    write(tmp_path / other, [1])
  for name in ("run[lr=1e-3]", "[ab]", "v[2]", "[!x]", "[x", "x]y", "st*ar", "q?m", "per%20cent",
               "a b\tc", "é", "{a}", "col:on", "$x"):
    checkpoints = write(tmp_path / name, [1, 2], keep_latest=2)
    assert checkpoints.steps() == [1, 2], name
    assert bits(checkpoints.restore(2, *TARGET)[:2]) == bits(make_state(2)), name
    assert bits(open_checkpoint(tmp_path / name).load_params()) == bits(make_state(2)[0]), name


def test_a_backslash_is_refused_before_anything_is_written(tmp_path):
  place = tmp_path / "back\\slash"
  for use in (MemberCheckpoints, open_checkpoint, run_record.open_workdir):
    with pytest.raises(UserError, match="backslash.*give a folder without"):
      use(place)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module, flags", [
    ("wd_plasticity.main", ["--dry_run"]), ("wd_plasticity.study", ["--dry_run"]),
    ("wd_plasticity.interop.import_", ["--model=m", "--name=n"]), ("launch.local", [])])
def test_programs_refuse_a_backslash_at_once(module, flags, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  if "import" not in module:
    flags = [f"--config={tiny.ROOT / 'configs' / 'quickstart'}.py", *flags]
  (status, said), = launching.many(module, [*flags, "--workdir=a\\b"])
  assert status == 2 and said.count("\n") == 1 and "has a backslash in its path" in said, said
  assert not list(tmp_path.iterdir())


# What counts.


@pytest.mark.parametrize("name", [
    "commit_success.txt", "checksums.json", "params/manifest.ocdbt", "opt_state/manifest.ocdbt",
    "position/data.json", "meta/data.json", "_CHECKPOINT_METADATA"])
def test_a_save_counts_when_a_reader_could_open_it(copy, name):
  (copy / "4" / name).unlink()
  assert finished_steps(copy) == [2]
  with pytest.raises(UserError) as e:
    MemberCheckpoints(copy).restore(4, *TARGET)
  assert name.split("/")[-1] in str(e.value) and "\n" not in str(e.value)


def test_saves_are_made_atomic_by_a_rename_whatever_orbax_would_choose(monkeypatch, tmp_path):
  from orbax.checkpoint._src.path import atomicity
  monkeypatch.setattr(atomicity.CommitFileTemporaryPath, "create", None)
  seen = []
  real = atomicity.AtomicRenameTemporaryPath.finalize
  async def finalize(self):
    seen.append(self.get().name)
    await real(self)
  monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", finalize)
  write(tmp_path, [1])
  assert seen == ["1.orbax-checkpoint-tmp"]


def test_a_run_whose_save_no_reader_could_open_does_not_end_well(tmp_path, monkeypatch, capsys):
  real = stored_state.seal
  def lose(path):  # as orbax did where brackets were in the path
    real(path)
    (path / "params" / "manifest.ocdbt").unlink()
  monkeypatch.setattr(stored_state, "seal", lose)
  with pytest.raises(SystemExit) as e:
    run(lambda argv: write(tmp_path, [1]))
  assert e.value.code == 2
  assert "no reader could open it (its params/manifest.ocdbt" in capsys.readouterr().err
  assert finished_steps(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_last_save_that_fails_is_one_sentence_and_does_not_count(
    tmp_path, monkeypatch, capsys, number):
  checkpoints = write(tmp_path, [1])
  def fail(*args, **kwargs):
    raise OSError(number, os.strerror(number), str(tmp_path / "2"))
  monkeypatch.setattr(os, "rename", fail)  # also of what orbax's paths use
  monkeypatch.setattr(os, "replace", fail)
  def train(argv):
    checkpoints.save(2, *make_state(2), {}, META)
    checkpoints.close()
  with pytest.raises(SystemExit) as e:
    run(train)
  assert e.value.code == 2
  assert os.strerror(number) in capsys.readouterr().err.splitlines()[-1]
  assert finished_steps(tmp_path) == [1] and os.listdir(tmp_path) == ["1"]


def test_a_directory_that_vanishes_is_one_sentence_and_not_made_again(tmp_path):
  member = tmp_path / "members" / "wd1"
  for change in (shutil.rmtree, lambda p: os.rename(p, tmp_path / "moved")):
    checkpoints = write(member / "checkpoints", [1])
    checkpoints = MemberCheckpoints(member / "checkpoints")
    change(tmp_path / "members")
    with pytest.raises(UserError, match="was moved or deleted while the run was under way"):
      checkpoints.save(2, *make_state(2), {}, META)
    assert not (tmp_path / "members").exists()
  # In the midst of a save.
  checkpoints = MemberCheckpoints(member / "checkpoints")
  checkpoints.save(1, *make_state(1), {}, META)
  # At once: a deletion that a save overtakes leaves a part, and another sentence.
  os.rename(tmp_path / "members", tmp_path / "moved again")
  with pytest.raises(UserError, match="was moved or deleted"):
    checkpoints.wait()
    checkpoints.save(2, *make_state(2), {}, META)
  assert not (member / "checkpoints" / "2").exists()


# Retention.


def test_retention_copies_nothing_and_a_kill_in_it_leaves_no_checkpoint(copy, monkeypatch):
  renamed = []
  real = os.replace
  monkeypatch.setattr(os, "replace", lambda a, b: (renamed.append(os.path.isdir(a)), real(a, b)))
  monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)  # a kill before the rest is gone
  stored_state.remove(copy / "2")
  monkeypatch.undo()
  assert renamed == [False]  # a bucket copies a directory to rename it
  assert finished_steps(copy) == [4] and (copy / "2").exists()
  assert MemberCheckpoints(copy).steps() == [4] and sorted(os.listdir(copy)) == ["4"]


def test_only_what_saves_have_left_is_cleaned(copy):
  for name in ("backup.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp", "12"):
    (copy / name).mkdir()
  (copy / "12" / "keep").write_text("mine")
  MemberCheckpoints(copy)
  assert sorted(os.listdir(copy)) == ["12", "2", "4", "backup.orbax-checkpoint-tmp"]


# Checksums.


def test_a_flipped_bit_is_named_by_file_and_step(copy):
  files = [p for p in (copy / "4").rglob("*") if p.is_file() and p.stat().st_size
           and p.name != "commit_success.txt"]
  assert {"params", "opt_state", "position", "meta"} <= {p.relative_to(copy).parts[1]
                                                         for p in files}
  for path in files:
    name = path.relative_to(copy / "4").as_posix()
    flip(path)
    with pytest.raises(RefusedCheckpoint) as e:
      MemberCheckpoints(copy).restore(4, *TARGET)
    assert f"{copy / '4'} is refused" in str(e.value) and "delete" not in str(e.value)
    assert "step 2" in str(e.value)
    assert name in str(e.value) or name == "checksums.json", (name, str(e.value))
    if name.startswith(("params", "meta")):
      with pytest.raises(RefusedCheckpoint):
        open_checkpoint(copy / "4").load_params()
    flip(path)
  assert bits(MemberCheckpoints(copy).restore(4, *TARGET)[:2]) == bits(make_state(4))


def test_an_export_sees_a_flipped_bit(copy):
  flip(next((copy / "4" / "params").rglob("d/*")))
  with pytest.raises(RefusedCheckpoint, match=r"its file params/.* is not what was saved"):
    ParameterReader(open_checkpoint(copy, 4), "embed/embedding", (24, 8))


def test_parameters_are_read_without_the_state_of_the_optimizer(copy):
  shutil.rmtree(copy / "4" / "opt_state" / "d")
  assert bits(open_checkpoint(copy / "4").load_params()) == bits(make_state(4)[0])
  with pytest.raises(RefusedCheckpoint, match="opt_state/d/.* is missing"):
    MemberCheckpoints(copy).restore(4, *TARGET)


def make_older(path):
  """What a version without checksums has left."""
  meta = json.loads((path / "meta/data.json").read_text())
  del meta["checksums"]
  (path / "meta/data.json").write_text(json.dumps(meta))
  (path / "checksums.json").unlink()
  (path / "commit_success.txt").unlink(missing_ok=True)  # of orbax since 0.12.3


def test_a_checkpoint_without_checksums_is_accepted_and_that_is_said_once(
    copy, capsys, monkeypatch):
  monkeypatch.setattr(stored_state, "_said", set())
  for step in (2, 4):
    make_older(copy / str(step))
    assert bits(MemberCheckpoints(copy).restore(step, *TARGET)[:2]) == bits(make_state(step))
    open_checkpoint(copy, step).load_params()
  assert capsys.readouterr().out.count("before checkpoints had checksums") == 1


def test_a_save_killed_before_its_checksums_is_made_again(copy):
  (copy / "4" / "checksums.json").unlink()
  assert stored_state.was_interrupted(copy / "4") and finished_steps(copy) == [2]
  assert write(copy, [4], keep_latest=2).steps() == [2, 4]


def test_checksums_cost_little_of_a_save(tmp_path, record_property):
  state = {"w": jax.numpy.asarray(np.random.default_rng(0).normal(size=(1 << 21,)), "float32")}
  write_only = time.perf_counter()
  checkpoints = MemberCheckpoints(tmp_path)
  checkpoints.save(1, state, {"m": state["w"], "v": state["w"]}, {}, META)
  checkpoints.close()
  write_only = time.perf_counter() - write_only
  begin = time.perf_counter()
  stored_state.seal(tmp_path / "1")
  ratio = (time.perf_counter() - begin) / write_only
  record_property("ratio", ratio)
  print(f"checksums take {ratio:.0%} of a save of 25 MB, in the background")


# Fields of meta.


@pytest.mark.parametrize("field", ["format_version", *stored_state.META_FIELDS])
def test_a_field_of_meta_that_is_missing_or_of_another_type_is_named(copy, field):
  path = copy / "4" / "meta/data.json"
  content = path.read_text()
  for value in (None, "text", [1], "gone"):
    if value == "text" and stored_state.META_FIELDS.get(field) is str:
      continue
    meta = json.loads(content)
    *parents, last = field.split(".")
    section = meta
    for name in parents:
      section = section[name]
    if value == "gone":
      del section[last]
    elif stored_state.META_FIELDS.get(field, int) is None:
      continue
    else:
      section[last] = value
    path.write_text(json.dumps(meta))
    stored_state.seal(copy / "4")
    with pytest.raises(UserError) as e:
      open_checkpoint(copy)
    assert field in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["../../../x", "/etc", "a/b", "", ".", "..", ".hidden", "a\\b",
                                  "a\nb", "\x1b[31m", "x" * 300])
def test_a_member_in_meta_is_one_plain_name(copy, name):
  path = copy / "4" / "meta/data.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"member": name}))
  stored_state.seal(copy / "4")
  with pytest.raises(UserError, match="which is no plain name") as e:
    open_checkpoint(copy)
  assert "\n" not in str(e.value) and "\x1b" not in str(e.value)


def test_a_checkpoint_named_by_another_step_is_refused(copy):
  os.rename(copy / "4", copy / "9")
  with pytest.raises(RefusedCheckpoint, match="it is of step 4 by its meta, and its directory"):
    open_checkpoint(copy)
  with pytest.raises(RefusedCheckpoint, match="it is of step 4"):
    MemberCheckpoints(copy).restore(9, *TARGET)
  shutil.copytree(copy / "9", copy.parent / "a copy")  # a name that claims nothing
  assert open_checkpoint(copy.parent / "a copy").step == 4


# Surroundings.


def test_without_the_preemption_service(tmp_path):
  before = jax.config.jax_enable_preemption_service
  jax.config.update("jax_enable_preemption_service", False)
  try:
    assert write(tmp_path, [1]).steps() == [1]
    assert bits(open_checkpoint(tmp_path).load_params()) == bits(make_state(1)[0])
  finally:
    jax.config.update("jax_enable_preemption_service", before)


def test_orbax_is_called_with_our_settings_everywhere():
  """A call without them would take brackets for a pattern again."""
  import pathlib
  import re

  import wd_plasticity
  root = pathlib.Path(wd_plasticity.__file__).parent
  users = {p.name for p in root.rglob("*.py")
           if re.search(r"\bocp\.(load|save|metadata)", p.read_text())}
  assert users == {"checkpoint.py", "orbax_arrays.py", "parameter_stream.py"}
  assert ocp.Context().file.path_class.__name__ == "Path"  # what they would have
