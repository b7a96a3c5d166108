"""File systems that fail: whatever is written, it is one sentence, and what was there is kept."""

import builtins
import errno
import io
import json
import os
import subprocess
import sys
import types

import numpy as np
import programs
import pytest
import synthetic_study
import tiny

from wd_plasticity import errors, files, ownership
from wd_plasticity.config import default_config
from wd_plasticity.data import prepare as prepare_lib
from wd_plasticity.data import tokenizers
from wd_plasticity.evals import results as results_lib
from wd_plasticity.report import make
from wd_plasticity.study import records
from wd_plasticity.training import run_record
from wd_plasticity.training.metrics import MemberMetrics
from wd_plasticity.training.progress import FILE_VARIABLE, Progress

# One of every class that errors.py tells apart, and two of none.
NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
           errno.ENAMETOOLONG, errno.ENOTDIR, errno.EIO, errno.ESTALE)
FINGERPRINTS = {"tokenizer_fingerprint": "t", "data_fingerprint": "d"}


class _Disk:
  """A file system below `folder` on which a call fails, for files with `name` in their names."""

  def __init__(self, monkeypatch, folder, name, number, call):
    self.failed, self._folder, self._name = 0, str(folder), name
    self._number, self._call = number, call
    for module in (builtins, io):
      monkeypatch.setattr(module, "open", self._around(module.open))
    for function in ("open", "mkdir", "replace", "rename"):
      monkeypatch.setattr(os, function, self._check(function, getattr(os, function)))

  def _concerns(self, path):
    path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    return path.startswith(self._folder) and self._name in path[len(self._folder):]

  def _fail(self, path=None):
    self.failed += 1
    raise OSError(self._number, os.strerror(self._number), *([path] if path else []))

  def _check(self, function, real):
    def call(path, *args, **kwargs):
      flags = args[0] if function == "open" and args else 0
      writes = function != "open" or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
      if writes and self._concerns(path) and self._call == function:
        self._fail(str(path))
      return real(path, *args, **kwargs)
    return call

  def _around(self, real):
    def opened(path, mode="r", *args, **kwargs):
      if not self._concerns(path) or not set(mode) & set("wax+"):
        return real(path, mode, *args, **kwargs)
      if self._call == "open":
        self._fail(str(path))
      file = real(path, mode, *args, **kwargs)
      if self._call == "write":
        file = _FailingFile(file, self._fail)
      return file
    return opened


class _FailingFile:
  """A file into which nothing can be written; the system does not name it then."""

  def __init__(self, file, fail):
    self._file, self._fail = file, fail

  def write(self, _):
    self._fail()

  def writelines(self, _):
    self._fail()

  def __getattr__(self, name):
    return getattr(self._file, name)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()


def _target(member="wd0-seed0"):
  pretraining = default_config().to_dict()
  meta = {"steps": 12, "parameters": {"total": 1}, **FINGERPRINTS}
  return types.SimpleNamespace(member=member, step=12, tokens=1, directory="d", weight_decay=0.0,
                               seed=0, meta=meta, pretraining=pretraining, name=f"{member}/12")


# What is written: (what makes it in a folder, the name of the file).


def _metrics(folder):
  with MemberMetrics(folder, "m", 0) as metrics:
    metrics.write(1, {"train/loss": 1.0})
    metrics.write_speed(1, {"mfu": 1.0})
    metrics.sync()


def _progress(folder):
  with Progress(10) as progress:
    progress.update(1)


def _held(folder):
  with ownership.hold(folder):
    pass


def _result(folder):
  made = results_lib.Results(folder, "probe", "command")
  made.write(_target(), "item", {}, {"a": 1.0}, records=[{"x": 1}], arrays={"w": np.ones(3)})
  made.collect()


def _tokenizer(folder):
  tokenizers.make("bpe", "", 300, ["the cat sat on the mat"] * 20, "").save(str(folder / "tok"))


def _record(folder):
  records.Records(folder).write(records.Record("a", "c", "done", "i", {}, 1.0, 2.0, "l"))


def _report(folder):
  make.report(folder)


def _prepared(folder):
  text = folder.with_name("text.jsonl")
  text.write_text("".join(json.dumps({"text": f"{i} the cat sat on the mat"}) + "\n"
                          for i in range(200)))
  config = default_config()
  config.data.update(source="files", train=str(text), sequence_length=8)
  config.data.tokenizer.kind = "byte"
  prepare_lib.prepare(config.data, folder / "cache", lambda line: None)


PLACES = {
    "preparation, its folder": (_prepared, "cache"),
    "preparation, records": (_prepared, "train.npy"),
    "preparation, statistics": (_prepared, "stats.json"),
    "preparation, its lock": (_prepared, ".lock"),
    "versions": (run_record.open_workdir, "versions.json"),
    "a member's first start": (
        lambda f: run_record.check_member(f / "members" / "m", default_config(), **FINGERPRINTS),
        "config.json"),
    "plan": (lambda f: files.write_json(f / "members" / "m" / "plan.json", {}), "plan.json"),
    "tokenizer": (_tokenizer, "tok"),
    "metrics": (_metrics, "metrics.jsonl"),
    "speed": (_metrics, "speed.jsonl"),
    "result": (_result, "item.json"),
    "result, its lines": (_result, "item.jsonl"),
    "result, its arrays": (_result, "item.npz"),
    "results": (_result, "results.jsonl"),
    "results as a table": (_result, "results.csv"),
    "the right to a folder": (_held, ownership.NAME),
    "a step's record": (_record, "a.json"),
    "progress": (_progress, "progress.json"),
}


def _tree(folder):
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
          if p.is_file() and not p.name.endswith(".lock")}


def _said_of(write, folder, capsys):
  with pytest.raises(SystemExit) as e:
    errors.run(lambda _: write(folder))
  assert e.value.code == errors.EXIT_USER_ERROR
  return capsys.readouterr().err


def _check(place, number, call, tmp_path, monkeypatch, capsys):
  write, name = PLACES[place]
  folder = tmp_path / "w"
  folder.mkdir()
  (folder / "kept").write_text("x")
  monkeypatch.setenv(FILE_VARIABLE, str(folder / "progress.json"))
  with monkeypatch.context() as patch:
    disk = _Disk(patch, folder, name, number, call)
    said = _said_of(write, folder, capsys)
  assert disk.failed
  assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith(".\n"), said
  assert os.strerror(number) in said and str(folder) in said and "; " in said, said
  assert (folder / "kept").read_text() == "x"
  left = [p for p in folder.rglob("*.tmp-*")]
  assert not left
  write(folder)  # and when it is mended, the same goes on


@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_be_made_is_one_sentence(place, tmp_path, monkeypatch, capsys):
  _check(place, errno.EDQUOT, "open", tmp_path, monkeypatch, capsys)


_LOCKS = ("preparation, its lock", "the right to a folder", "preparation, its folder", "tokenizer")


@pytest.mark.parametrize("place", [p for p in PLACES if p not in _LOCKS])
def test_what_cannot_be_written_is_one_sentence(place, tmp_path, monkeypatch, capsys):
  _check(place, errno.ENOSPC, "write", tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("place", ["versions", "metrics", "preparation, statistics", "result"])
def test_every_class_of_failure_is_one_sentence(place, number, tmp_path, monkeypatch, capsys):
  _check(place, number, "open", tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["open", "write"])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("place", PLACES)
def test_every_class_of_failure_everywhere(place, number, call, tmp_path, monkeypatch, capsys):
  if call == "write" and place in _LOCKS:
    pytest.skip("nothing is written")
  _check(place, number, call, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_report_that_cannot_be_written_is_one_sentence(number, tmp_path, monkeypatch, capsys):
  synthetic_study.write(tmp_path / "w", decays=(0.1,), seeds=(0,), programs=())
  with monkeypatch.context() as patch:
    disk = _Disk(patch, tmp_path / "w", "answer.json", number, "open")
    said = _said_of(_report, tmp_path / "w", capsys)
  assert disk.failed and os.strerror(number) in said and said.count("\n") == 1
  assert "the report cannot be written to" in said and "--out=FOLDER" in said


@pytest.mark.parametrize("number", NUMBERS)
def test_what_was_there_stays_when_it_cannot_be_replaced(number, tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  files.write_json(path, {"old": 1})
  before = _tree(tmp_path)
  for call in ("open", "write", "replace"):
    with monkeypatch.context() as patch:
      disk = _Disk(patch, tmp_path, "a.json", number, call)
      with pytest.raises(OSError) as e:
        files.write_json(path, {"new": 2})
    assert disk.failed and e.value.errno == number and e.value.filename == str(path), call
    assert _tree(tmp_path) == before


# Places that cannot be.


_LONG = "x" * 300


@pytest.mark.parametrize("module, flags, words", [
    ("wd_plasticity.main", ["--workdir={tmp}/" + _LONG], "File name too long"),
    ("wd_plasticity.main", ["--workdir=/proc/w"], "/proc/w"),
    ("wd_plasticity.main", ["--workdir={tmp}/file"], "{tmp}/file"),
    ("wd_plasticity.study", ["--workdir={tmp}/file/w"], "{tmp}/file"),
    ("launch.local", ["--workdir={tmp}/" + _LONG], "File name too long"),
    ("wd_plasticity.report", ["--workdir={tmp}/" + _LONG], "File name too long"),
    ("wd_plasticity.training.summary", ["--workdir={tmp}/" + _LONG], "File name too long")])
def test_a_work_directory_that_cannot_be_is_one_sentence(module, flags, words, tmp_path, corpus):
  (tmp_path / "file").write_text("")
  flags = [f.format(tmp=tmp_path) for f in flags]
  if not module.endswith(("report", "summary")):
    flags.append(f"--config={tiny.ROOT / 'configs' / 'quickstart.py'}")
  said = programs.run(module, *flags, expect=2)
  said = [line for line in said.splitlines() if not line.startswith("process ")]
  assert len(said) == 1 and said[0].startswith("error: "), said
  assert words.format(tmp=tmp_path) in said[0]


def test_members_that_is_a_file_is_one_sentence(tmp_path):
  (tmp_path / "members").write_text("")
  said = programs.run("wd_plasticity.main", f"--workdir={tmp_path}",
                      f"--config={tiny.ROOT / 'configs' / 'quickstart.py'}", expect=2)
  said = [line for line in said.splitlines() if not line.startswith("process ")]
  assert len(said) == 1 and f"{tmp_path}/members" in said[0] and "give another path" in said[0]


# What is printed.


_PRINTS = """
import sys
from wd_plasticity import errors
def main(_):
  for i in range(100_000):
    print(i, flush=bool(i % 2))
errors.run(main)
"""


@pytest.mark.parametrize("code", [_PRINTS, _PRINTS.replace("flush=bool(i % 2)", "end='  '")])
def test_a_pipe_that_is_closed_ends_a_program_quietly(code):
  process = subprocess.Popen([sys.executable, "-c", code], cwd=tiny.ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
  process.stdout.read(10)
  process.stdout.close()
  assert process.stderr.read() == b"" and process.wait() == errors.EXIT_PIPE


def test_another_pipe_that_breaks_is_said(capsys):
  def main(_):
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
  with pytest.raises(SystemExit, match="2"):
    errors.run(main)
  assert "Broken pipe" in capsys.readouterr().err


# When no member is left.


def test_a_run_of_which_no_member_is_left_is_an_error_also_the_second_time(tmp_path, corpus):
  config = tiny.write_config(tmp_path, corpus, [{"optim.learning_rate": 1e38, "seed": 1}])
  for _ in range(2):
    said = tiny.run(config, tmp_path / "w", "--config.optim.clip_norm=0.0",
                    "--config.train.steps=4", expect=2)
    assert "error: no member is left: the loss or an update of lr1e+38-seed1" in said
    assert "Traceback" not in said and (tmp_path / "w" / "sweep.csv").exists()
