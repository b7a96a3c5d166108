"""One program at a time changes a work directory or a member, and another is refused at once."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import programs
import pytest
import tiny
from waiting import until

from wd_plasticity import files, ownership
from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.members import expand
from wd_plasticity.study import plan, records

NAMES = ["wd0-seed1", "wd3-seed1"]


def _hold(folder):
  with ownership.hold(folder):
    pass


def _tree(folder):
  """Everything in a folder with what is in it, but for locks."""
  return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None
          for p in folder.rglob("*") if p.name != ownership.NAME}


def test_a_second_program_is_refused_at_once_and_told_who_holds_the_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership.time, "sleep", lambda _: pytest.fail("it waits"))
  with ownership.hold(tmp_path / "w", "member x"):
    with pytest.raises(UserError) as e:
      _hold(tmp_path / "w")
    said = str(e.value)
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in said
    assert "wait until it has ended" in said and str(tmp_path / "w") in said
    assert "\n" not in said
  _hold(tmp_path / "w")


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"pid": "x"}',
                                  b'{"pid": 1e400, "host": 3}', b"\xff"])
def test_whatever_the_lock_says_the_second_is_refused(tmp_path, note):
  with ownership.hold(tmp_path):
    (tmp_path / ownership.NAME).write_bytes(note)
    with pytest.raises(UserError, match="is in use: (another program|process .*) holds"):
      _hold(tmp_path)


def test_it_ends_with_the_program_that_is_killed(tmp_path):
  code = ("import sys, time; from wd_plasticity import ownership\n"
          "with ownership.hold(sys.argv[1]):\n  print('held', flush=True); time.sleep(600)")
  process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=tiny.ROOT,
                             stdout=subprocess.PIPE)
  try:
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"process {process.pid} on"):
      _hold(tmp_path)
  finally:
    process.kill()
    process.wait()
  _hold(tmp_path)


def test_what_a_killed_program_had_started_is_waited_for(tmp_path, monkeypatch, capsys):
  """The lock is inherited; the holder that it names is no more."""
  child = os.open(tmp_path / ownership.NAME, os.O_RDWR | os.O_CREAT)
  fcntl.flock(child, fcntl.LOCK_EX)
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  os.pwrite(child, json.dumps({"pid": gone.pid, "host": socket.gethostname()}).encode(), 0)
  waits = []
  def sleep(_):
    waits.append(1)
    if len(waits) == 3:
      os.close(child)
  monkeypatch.setattr(ownership.time, "sleep", sleep)
  _hold(tmp_path)
  assert len(waits) == 3 and capsys.readouterr().out.count("waiting for its end") == 1


@pytest.mark.parametrize("before, now, waits", [
    ("0", "1", True),  # the job was started again
    ("0", "0", False),  # two programs of one job
    ("1", "1", False)])
def test_a_job_that_is_queued_again_waits_for_its_former_self(tmp_path, monkeypatch, before, now,
                                                              waits):
  clock = [0.0]
  monkeypatch.setattr(ownership.time, "monotonic", lambda: clock[0])
  monkeypatch.setattr(ownership.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + 60))
  monkeypatch.setenv("SLURM_JOB_ID", "7")
  monkeypatch.setenv("SLURM_RESTART_COUNT", before)
  with ownership.hold(tmp_path):
    monkeypatch.setenv("SLURM_RESTART_COUNT", now)
    with pytest.raises(UserError, match="in use"):
      _hold(tmp_path)
    assert (clock[0] > 0) == waits
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    clock[0] = 0.0
    with pytest.raises(UserError, match="in use"):
      _hold(tmp_path)
    assert clock[0] == 0


def test_a_program_that_this_one_becomes_does_not_hold_it(tmp_path):
  with ownership.hold(tmp_path) as lock:
    assert not os.get_inheritable(lock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_it_is_said_once_and_goes_on(tmp_path, monkeypatch, capsys, number):
  def flock(*_):
    raise OSError(number, os.strerror(number))
  monkeypatch.setattr(files.fcntl, "flock", flock)
  monkeypatch.setattr(files, "_said_without_locks", [])
  with ownership.hold(tmp_path / "w"), files.locked(tmp_path / "sweep.csv"):
    pass
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "two runs in one work directory cannot be told apart" in said


@pytest.mark.parametrize("number", [
    errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOTDIR,
    errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_held_is_one_sentence(tmp_path, monkeypatch, number):
  def open_lock(path):
    raise OSError(number, os.strerror(number), str(path))
  monkeypatch.setattr(ownership, "open_lock", open_lock)
  with pytest.raises(UserError, match="; ") as e:
    _hold(tmp_path / "w")
  assert str(tmp_path / "w") in str(e.value) and os.strerror(number) in str(e.value)


def test_a_member_is_a_file_or_its_name_too_long(tmp_path):
  (tmp_path / "members").write_text("")
  with pytest.raises(UserError, match="give another path"):
    _hold(tmp_path / "members" / "a")
  with pytest.raises(UserError, match="File name too long"):
    _hold(tmp_path / ("a" * 300))


def test_members_are_held_all_or_none(tmp_path):
  with ownership.hold(tmp_path / "members" / "b", "member b"):
    with pytest.raises(UserError, match="member b is in use"):
      with ownership.hold_members(tmp_path, ["a", "b"]):
        pytest.fail("held")
    _hold(tmp_path / "members" / "a")


def test_a_study_moves_no_member_that_is_being_trained(tmp_path):
  members = expand(default_config(), lambda add: [
      add({"optim.weight_decay": w, "seed": 0}) for w in (0.1, 1.0)])
  for member in members:
    folder = tmp_path / "members" / member.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(
        {"config": member.config.to_dict(), "data_fingerprint": "d"}))
  before = _tree(tmp_path)
  with ownership.hold(tmp_path / "members" / "wd1-seed0"):
    before = _tree(tmp_path)
    with pytest.raises(UserError, match="member wd1-seed0 is in use"):
      records.set_aside_changed_members(tmp_path, members, "other")
    assert _tree(tmp_path) == before
  assert len(records.set_aside_changed_members(tmp_path, members, "other")) == 2


def test_jobs_write_no_configuration_over_that_of_a_study(tmp_path):
  path = tmp_path / "study" / "probe.py"
  assert plan.write_beside(path, "a") == path and path.read_text() == "a"
  assert plan.write_beside(path, "a") == path
  other = plan.write_beside(path, "b")
  assert other != path and path.read_text() == "a" and other.read_text() == "b"
  assert plan.write_beside(path, "b") == other


# The programs.


@pytest.fixture(scope="module")
def config(tmp_path_factory, corpus):
  path = tmp_path_factory.mktemp("config") / "tiny_study.py"
  points = [{"optim.weight_decay": w, "seed": 1} for w in (0.0, 3.0)]
  path.write_text(f"""
from tiny import tiny_config
from wd_plasticity.evals.config import attention_rank_config

def get_config():
  return tiny_config({str(corpus)!r})

def sweep(add):
  for point in {points!r}:
    add(point)

def evals(add):
  add(attention_rank_config())
""")
  return path


def _refused(module, *flags):
  said = programs.run(module, *flags, expect=2)
  lines = [line for line in said.splitlines() if not line.startswith("process ")]
  assert len(lines) == 1 and lines[0].startswith("error: "), said
  return lines[0]


def test_a_second_study_or_launcher_touches_nothing(config, tmp_path):
  """Also with another configuration, which would move the members of the first."""
  workdir = tmp_path / "w"
  (workdir / "members" / NAMES[0]).mkdir(parents=True)
  (workdir / "members" / NAMES[0] / "config.json").write_text("{}")  # of another configuration
  (workdir / "study").mkdir()
  (workdir / "study" / "attention_rank.py").write_text("of the first")
  with ownership.hold(workdir):
    before = _tree(workdir)
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.optim.learning_rate=0.004"]
    assert "the work directory is in use" in _refused("wd_plasticity.study", *flags)
    assert "the work directory is in use" in _refused("launch.local", *flags)
    assert _tree(workdir) == before


def test_a_member_has_one_pretraining(config, tmp_path):
  workdir = tmp_path / "w"
  flags = [f"--config={config}", f"--workdir={workdir}"]
  with ownership.hold(workdir / "members" / NAMES[1]):
    unfinished = workdir / "members" / NAMES[1] / "checkpoints" / "12.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)  # a save of the run that holds the member
    before = _tree(workdir)
    assert f"member {NAMES[1]} is in use" in _refused("wd_plasticity.main", *flags)
    left = _tree(workdir)
    left.pop(f"members/{NAMES[0]}", None)
    assert left == before


@pytest.mark.slow
def test_jobs_of_a_launch_share_a_work_directory(config, tmp_path):
  flags = [f"--config={config}", f"--workdir={tmp_path}"]
  with ownership.hold(tmp_path), ownership.hold(tmp_path / "members" / NAMES[1]):
    unfinished = tmp_path / "members" / NAMES[1] / "checkpoints" / "12.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    programs.run("wd_plasticity.main", *flags, "--sweep_index=0")
    assert unfinished.exists()
  programs.run("wd_plasticity.main", *flags)
  assert not unfinished.exists()


@pytest.mark.slow
def test_a_pretraining_beside_a_pretraining_is_refused_and_does_no_harm(config, tmp_path):
  flags = [f"--config={config}", f"--workdir={tmp_path}"]
  first = programs.start("wd_plasticity.main", *flags, "--config.train.steps=2000")
  path = tmp_path / "members" / NAMES[0] / "metrics.jsonl"
  until(path.exists, first.said, first)
  assert f"process {first.pid} on" in _refused("wd_plasticity.main", *flags)
  first.send_signal(signal.SIGTERM)
  assert "stopped by SIGTERM" in first.finish(143)


@pytest.mark.slow
def test_a_step_of_another_study_leaves_the_configurations_of_a_running_one(config, tmp_path):
  """`study --step` is what jobs of a launcher run, beside each other."""
  (tmp_path / "study").mkdir()
  (tmp_path / "study" / "attention_rank.py").write_text("# of another study\n")
  programs.run("wd_plasticity.study", f"--config={config}", f"--workdir={tmp_path}",
               "--step=attention_rank", expect=2)  # there is no checkpoint
  assert (tmp_path / "study" / "attention_rank.py").read_text() == "# of another study\n"
  own, = (tmp_path / "study").glob("attention_rank-*.py")
  assert "attention_rank_config()" in own.read_text()
