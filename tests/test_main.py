"""The pretraining program as a user runs it: refusals, resuming, interruption, processes."""

import json
import re
import signal
import socket
import time

import numpy as np
import pytest
import tiny
from waiting import until

from wd_plasticity.training.checkpoint import open_checkpoint

SWEEP = [{"optim.weight_decay": 0.1, "seed": 1}, {"optim.weight_decay": 1.0, "seed": 1}]
NAMES = ["wd0.1-seed1", "wd1-seed1"]


@pytest.fixture(scope="module")
def config(tmp_path_factory, corpus):
  return tiny.write_config(tmp_path_factory.mktemp("config"), corpus, SWEEP)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
  """A run that nothing interrupted, and what it printed."""
  workdir = tmp_path_factory.mktemp("run")
  return workdir, tiny.run(config, workdir)


def _final(workdir, name):
  checkpoint = open_checkpoint(workdir / "members" / name)
  params = checkpoint.load_params()
  return checkpoint, {k: np.asarray(v) for k, v in _leaves(params)}


def _leaves(tree, prefix=""):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f"{prefix}{key}/")
    else:
      yield prefix + key, value


def _metrics(workdir, name):
  return (workdir / "members" / name / "metrics.jsonl").read_bytes()


def _losses(workdir, name, key):
  return [json.loads(x).get(key, 0.0) for x in _metrics(workdir, name).splitlines()]


def _wait_for_step(process, workdir, name, step):
  path = workdir / "members" / name / "metrics.jsonl"
  until(lambda: path.exists() and path.read_bytes().count(b"\n") >= step,
        lambda: f"step {step}: {process.said()}", process)


def test_a_sweep_trains_stores_and_reports(finished):
  workdir, output = finished
  assert "in the same program" not in output and "member" in output
  for name in NAMES:
    lines = [json.loads(x) for x in _metrics(workdir, name).splitlines()]
    assert [x["step"] for x in lines] == list(range(25))
    assert lines[-1]["train/loss"] < lines[1]["train/loss"] - 0.5  # it learns
    evaluated = [x["step"] for x in lines if "validation/loss" in x]
    assert evaluated == [0, 8, 16, 24]
    checkpoint, _ = _final(workdir, name)
    assert checkpoint.step == 24 and checkpoint.meta["tokens"] == 24 * 8 * 32
    plan = json.loads((workdir / "members" / name / "plan.json").read_text())
    table = {row["parameter"]: row["decay"] for row in plan["decay_table"]}
    assert table["final_norm/scale"] == checkpoint.meta["weight_decay"]
  assert (workdir / "sweep.png").stat().st_size > 10_000
  rows = (workdir / "sweep.csv").read_text().splitlines()
  assert len(rows) == 3 and all("done" in r for r in rows[1:])
  # More decay, smaller weights.
  norms = [json.loads(_metrics(workdir, n).splitlines()[-1])["weight_norm/feed_forward"]
           for n in NAMES]
  assert norms[1] < norms[0]


def test_the_same_command_again_changes_nothing(finished, config):
  workdir, _ = finished
  before = [_metrics(workdir, n) for n in NAMES]
  tiny.run(config, workdir)
  assert [_metrics(workdir, n) for n in NAMES] == before


@pytest.mark.slow
def test_a_sweep_may_grow(finished, corpus, tmp_path):
  """A member that is added later trains alone; those that are done are left as they are."""
  workdir, _ = finished
  run = tmp_path / "run"
  flags = ("--config.sweep.members_at_once=2",)
  tiny.run(tiny.write_config(tmp_path, corpus, SWEEP[:1]), run, *flags)
  before = _metrics(run, NAMES[0])
  tiny.run(tiny.write_config(tmp_path, corpus, SWEEP), run, *flags)
  assert _metrics(run, NAMES[0]) == before
  losses = [json.loads(_metrics(w, NAMES[1]).splitlines()[-1])["train/loss"]
            for w in (workdir, run)]
  assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_killed_anywhere_and_resumed_it_is_bit_equal(finished, config, tmp_path):
  """Kills the run at random moments, most of them during a save, until it finishes."""
  workdir, _ = finished
  rng = np.random.default_rng(time.time_ns() % 2**32)
  # A checkpoint in every step: whenever the kill comes, a save is under way or just over.
  every_step = "--config.checkpoint.every=1 steps"
  steps = [int(s) for s in rng.integers(2, 24, 2)]
  for name, step in zip(NAMES, steps, strict=True):
    process = tiny.start(config, tmp_path, every_step)
    _wait_for_step(process, tmp_path, name, step)
    process.send_signal(signal.SIGKILL)
    process.wait()
  tiny.run(config, tmp_path, every_step)
  for name in NAMES:
    assert _metrics(tmp_path, name) == _metrics(workdir, name), steps
    (_, expected), (_, got) = _final(workdir, name), _final(tmp_path, name)
    for key, value in expected.items():
      np.testing.assert_array_equal(got[key], value, err_msg=f"{key}, killed at {steps}")


def test_sigterm_saves_and_says_so(finished, config, tmp_path):
  workdir, _ = finished
  process = tiny.start(config, tmp_path, "--config.checkpoint.every=100 steps",
                       "--config.checkpoint.keep_at=(1.0,)")
  _wait_for_step(process, tmp_path, NAMES[0], 3)
  process.send_signal(signal.SIGTERM)
  output = process.finish()
  assert process.returncode == 143 and "Traceback" not in output
  step = int(re.search(r"stopped by SIGTERM after step (\d+) of 24; checkpoints are saved",
                       output)[1])
  folder = tmp_path / "members" / NAMES[0] / "checkpoints"
  if not folder.joinpath(str(step)).exists():
    folder = tmp_path / "members" / NAMES[1] / "checkpoints"
  assert folder.joinpath(str(step)).exists()
  tiny.run(config, tmp_path, "--config.checkpoint.every=100 steps",
           "--config.checkpoint.keep_at=(1.0,)")
  assert _metrics(tmp_path, NAMES[0]) == _metrics(workdir, NAMES[0])


@pytest.mark.slow
def test_resumes_on_another_number_of_devices(finished, config, tmp_path):
  workdir, _ = finished
  process = tiny.start(config, tmp_path, "--config.checkpoint.every=4 steps")
  _wait_for_step(process, tmp_path, NAMES[0], 14)
  process.send_signal(signal.SIGKILL)
  process.wait()
  tiny.run(config, tmp_path, "--config.mesh.data=2", "--config.mesh.fsdp=2",
           "--config.mesh.tensor=1", devices=4)
  for name in NAMES:
    losses = [_losses(w, name, "train/loss") for w in (workdir, tmp_path)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(finished, config, tmp_path):
  workdir, _ = finished
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  processes = [tiny.start(config, tmp_path, f"--config.distributed.coordinator=127.0.0.1:{port}",
                          "--config.distributed.num_processes=2",
                          f"--config.distributed.process_id={i}", "--config.mesh.data=2",
                          "--config.mesh.fsdp=2", devices=2) for i in range(2)]
  outputs = [p.finish() for p in processes]
  assert [p.returncode for p in processes] == [0, 0], outputs
  for i, output in enumerate(outputs):
    assert f"process {i} of 2: 2 of 4 devices" in output
    assert f"process {i} reads 4 of the 8 sequences of a step" in output
  for name in NAMES:
    losses = [_losses(w, name, "train/loss") for w in (workdir, tmp_path)]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_members_stacked_in_one_program_give_the_same_losses(finished, config, tmp_path):
  workdir, _ = finished
  tiny.run(config, tmp_path, "--config.sweep.members_at_once=2", "--config.mesh.sweep=2",
           "--config.mesh.data=1", devices=2)
  for name in NAMES:
    losses = [_losses(w, name, "validation/loss") for w in (workdir, tmp_path)]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_member_that_is_not_finite_fails_alone(finished, corpus, tmp_path):
  workdir, _ = finished
  config = tiny.write_config(tmp_path, corpus, [*SWEEP, {"optim.learning_rate": 1e38, "seed": 1}])
  flags = ("--config.sweep.members_at_once=3",)
  output = tiny.run(config, tmp_path / "run", *flags)
  bad = "lr1e+38-seed1"
  assert f"member {bad} failed at step" in output
  failure = json.loads((tmp_path / "run/members" / bad / "FAILED.json").read_text())
  assert 1 <= failure["step"] <= 4
  assert "failed at step" in (tmp_path / "run/sweep.csv").read_text()
  for name in NAMES:
    losses = [_losses(w, name, "train/loss") for w in (workdir, tmp_path / "run")]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5, rtol=0)
  before = _metrics(tmp_path / "run", bad)
  tiny.run(config, tmp_path / "run", *flags)
  assert _metrics(tmp_path / "run", bad) == before


@pytest.mark.parametrize("flags, words", [
    (["--config.optim.weigth_decay=1"], "did you mean optim.weight_decay"),
    (["--config.train.steps=many"], "train.steps=many"),
    (["--config.model.num_heads=3"], "num_heads=3 does not divide model.width=16"),
    (["--sweep_index=2"], "2 does not name some of the 2 members, 0 to 1"),
    (["--config.data.train=/no/such/*.txt"], "/no/such/*.txt"),
])
def test_wrong_input_is_one_sentence(config, tmp_path, flags, words):
  output = tiny.run(config, tmp_path, *flags, expect=2)
  lines = [x for x in output.splitlines() if not x.startswith("process ")]
  assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0], output


def test_another_configuration_in_the_same_workdir_is_refused(finished, config):
  workdir, _ = finished
  output = tiny.run(config, workdir, "--config.optim.beta2=0.99", expect=2)
  assert "optim.beta2 was 0.95 and is now 0.99" in output and "Traceback" not in output


def test_dry_run_says_what_would_run_and_writes_nothing(config, tmp_path):
  output = tiny.run(config, tmp_path / "none", "--dry_run", "--config.optim.decay.preset=matrices")
  for words in ("24 steps x 256 tokens = 6,144", "FLOPs", "per device", "1/(lr*wd)",
                "layers/attention_norm/scale", "wd1-seed1"):
    assert words in output
  assert re.search(r"final_norm/scale .* norm +\| 0", output)
  assert not (tmp_path / "none").exists()
