"""Files of metrics: resume to the byte, values that are not finite, TensorBoard, wandb."""

import contextlib
import errno
import json
import math
import os
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from wd_plasticity.errors import UserError
from wd_plasticity.training import metrics
from wd_plasticity.training.curves import Curves
from wd_plasticity.training.metrics import MemberMetrics, read_metrics


def values_at(step):
  return {"tokens": step * 64, "train/loss": np.float32(5 / (1 + step)),
          "weight_norm/norm": 1 / (3 + step)}


def train(directory, start, stop, **kwargs):
  with MemberMetrics(directory, "wd0.1-seed0", start, **kwargs) as m:
    if start == 0:
      m.write(0, values_at(0))
    for step in range(start + 1, stop + 1):
      m.write(step, values_at(step))
      m.write_speed(step, {"tokens_per_second": 1e3 + step})


def tensorboard_scalars(directory):
  """(step, name, value) as TensorBoard shows them: in file order, purged at START events."""
  shown = []
  for path in sorted(directory.glob("events.out.tfevents.*")):
    data = path.read_bytes()
    while data:
      length = int.from_bytes(data[:8], "little")
      assert masked_crc32c(data[:8]) == int.from_bytes(data[8:12], "little")
      event = event_pb2.Event.FromString(data[12:12 + length])
      data = data[16 + length:]
      if event.session_log.status == event_pb2.SessionLog.START:
        shown = [s for s in shown if s[0] < event.step]
      for value in event.summary.value:
        shown.append((event.step, value.tag, value.simple_value))
  return shown


def test_resumed_files_equal_uninterrupted_to_the_byte(tmp_path):
  train(tmp_path / "whole", 0, 10)
  train(tmp_path / "parts", 0, 7)
  path = tmp_path / "parts" / "metrics.jsonl"
  whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
  with open(path, "ab") as f:
    f.write(b'{"step": 8, "tok')  # killed in the middle of a line
  train(tmp_path / "parts", 4, 10)
  assert path.read_bytes() == whole
  assert [r["step"] for r in read_metrics(tmp_path / "parts" / "speed.jsonl")] == [
      *range(1, 11)]
  # From scratch, and again from the very end.
  train(tmp_path / "parts", 0, 10)
  assert path.read_bytes() == whole
  train(tmp_path / "parts", 10, 10)
  assert path.read_bytes() == whole
  assert not list((tmp_path / "parts").glob("*.tmp"))


def test_every_line_is_on_disk_at_once(tmp_path):
  m = MemberMetrics(tmp_path, "m", 0)
  m.write(1, values_at(1))
  m.write_speed(1, {"mfu": 0.5})
  assert read_metrics(tmp_path / "metrics.jsonl")[0]["tokens"] == 64
  assert read_metrics(tmp_path / "speed.jsonl") == [{"step": 1, "mfu": 0.5}]
  m.close()


def test_tensorboard_is_on_disk_without_a_close(tmp_path):
  m = MemberMetrics(tmp_path, "m", 0)
  m.write(1, values_at(1))
  assert [name for _, name, _ in tensorboard_scalars(tmp_path)] == [*values_at(1)]
  m.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_the_writing_of_curves(tmp_path):
  """Where a thread wrote them, a program waited for it for ever."""
  curves = Curves(tmp_path, 0)
  full = os.open("/dev/full", os.O_WRONLY)
  os.dup2(full, curves._file.fileno())
  os.close(full)
  with pytest.raises(OSError) as error:
    for step in range(30):  # more than a queue holds
      curves.write(step, {"x": 1.0})
  assert error.value.errno == errno.ENOSPC and str(tmp_path) in str(error.value.filename)
  with contextlib.suppress(OSError):
    curves.close()


def test_lines_are_strict_json_of_plain_numbers(tmp_path):
  with MemberMetrics(tmp_path, "m", 0) as m:
    m.write(1, {"tokens": np.int64(2**40), "a": float("nan"), "b": -math.inf,
                "c": jnp.float32(0.1), "d": np.float64(0.1), "e": jnp.nan})
  def refuse(constant):
    raise AssertionError(constant)
  line = (tmp_path / "metrics.jsonl").read_text()
  record = json.loads(line, parse_constant=refuse)
  assert line.endswith("\n") and list(record) == ["step", "tokens", "a", "b", "c", "d", "e"]
  assert record == {"step": 1, "tokens": 2**40, "a": None, "b": None,
                    "c": float(np.float32(0.1)), "d": 0.1, "e": None}
  assert isinstance(record["tokens"], int)


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path, monkeypatch):
  clock = iter(range(1_000_000, 2_000_000))  # file names carry the second of their start
  monkeypatch.setattr("wd_plasticity.training.curves.time.time", lambda: next(clock))
  train(tmp_path, 0, 7)
  train(tmp_path, 4, 9)
  losses = [(step, value) for step, name, value in tensorboard_scalars(tmp_path)
            if name == "train/loss"]
  assert losses == [(s, np.float32(5 / (1 + s))) for s in range(10)]
  speeds = [step for step, name, _ in tensorboard_scalars(tmp_path)
            if name == "speed/tokens_per_second"]
  assert speeds == list(range(1, 10))
  train(tmp_path, 0, 1)
  assert {step for step, *_ in tensorboard_scalars(tmp_path)} == {0, 1}


def test_other_processes_write_nothing(tmp_path):
  train(tmp_path / "m", 0, 3, enabled=False, wandb=True)
  assert not (tmp_path / "m").exists()


def test_damaged_and_missing_files(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with pytest.raises(UserError, match="no metrics at"):
    read_metrics(path)
  path.write_bytes(b'{"step": 1}\n\x00\x00\x00\n')  # a power cut can leave zeros at the end
  assert read_metrics(path) == [{"step": 1}]
  damaged = b'{"step": 1}\n{"st\n{"step": 3}\n'
  path.write_bytes(damaged)
  with pytest.raises(UserError, match="line 2 of"):
    read_metrics(path)
  with pytest.raises(UserError, match="line 2 of"):
    MemberMetrics(tmp_path, "m", 3)
  assert path.read_bytes() == damaged


class FakeWandb(types.ModuleType):
  """Stands for wandb: keeps what it was given, or refuses to start."""

  def __init__(self, refuse=False):
    super().__init__("wandb")
    self.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    self.started, self.logged, self.finished, self.refuse = [], [], 0, refuse

  def init(self, **kwargs):
    if self.refuse:
      raise self.errors.Error("no API key")
    self.started.append(kwargs)
    return types.SimpleNamespace(
        log=lambda values, step: self.logged.append((step, values)), finish=self.finish)

  def finish(self):
    self.finished += 1


def test_wandb_resumes_under_one_id_per_member(tmp_path, monkeypatch):
  wandb = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  options = dict(wandb=True, project="study", config={"seed": 0})
  train(tmp_path / "a", 0, 2, **options)
  train(tmp_path / "a", 2, 3, **options)
  train(tmp_path / "b", 0, 1, **options)
  first, again, other = wandb.started
  assert first == again and first["id"] != other["id"]
  assert first["project"] == "study" and first["config"] == {"seed": 0}
  assert first["resume"] == "allow" and first["reinit"] == "create_new"
  assert first["name"] == "wd0.1-seed0"
  assert (3, {"speed/tokens_per_second": 1003.0}) in wandb.logged
  assert [v["tokens"] for step, v in wandb.logged if "tokens" in v] == [0, 64, 128, 192, 0, 64]
  assert wandb.finished == 3


def test_wandb_missing_or_refusing_is_one_sentence_and_leaves_the_files(tmp_path, monkeypatch):
  train(tmp_path, 0, 3)
  before = (tmp_path / "metrics.jsonl").read_bytes()
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match="pip install wandb"):
    MemberMetrics(tmp_path, "m", 1, wandb=True)
  monkeypatch.setitem(sys.modules, "wandb", FakeWandb(refuse=True))
  with pytest.raises(UserError, match="no API key.*wandb login"):
    MemberMetrics(tmp_path, "m", 1, wandb=True)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_work_unit_status_reaches_the_platform(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(text % args))
  metrics.work_unit_status("pretraining wd0.1-seed0", 0.25)
  assert lines == ["Setting work unit notes: pretraining wd0.1-seed0 (25%)"]


def test_sync_puts_both_files_on_the_disk(tmp_path, monkeypatch):
  with metrics.MemberMetrics(tmp_path, "m", 0) as writer:
    synced = []
    name = lambda fd: os.readlink(f"/proc/self/fd/{fd}")
    monkeypatch.setattr(metrics.os, "fsync", lambda fd: synced.append(name(fd)))
    writer.sync()
  assert {str(tmp_path / "metrics.jsonl"), str(tmp_path / "speed.jsonl")} <= set(synced)
  metrics.MemberMetrics(tmp_path, "m", 0, enabled=False).sync()


def test_damage_after_the_step_that_a_run_goes_on_from_is_dropped_with_the_rest(tmp_path):
  with MemberMetrics(tmp_path, "m", 0) as metrics:
    for step in range(1, 6):
      metrics.write(step, {"train/loss": 1.0})
  path = tmp_path / "metrics.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  for damaged in (2, 3):  # the line of step 3, and that of step 4
    path.write_bytes(b"".join([*lines[:damaged], b"\xff" + lines[damaged], *lines[damaged + 1:]]))
    MemberMetrics(tmp_path, "m", 2).close()
    assert path.read_bytes() == b"".join(lines[:2])
  path.write_bytes(b"\xff" + b"".join(lines))
  with pytest.raises(UserError, match="line 1 of .*metrics.jsonl is not a record"):
    MemberMetrics(tmp_path, "m", 2)
