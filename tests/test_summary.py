"""The summary of a sweep: rows, statuses, files, and the panels of the picture."""

import csv
import io
import json
import math
import shutil

import jax.numpy as jnp
import programs
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console
from test_checkpoint import META

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.training import run_record, summary, summary_plot
from wd_plasticity.training.checkpoint import MemberCheckpoints


def member(workdir, decay, seed, losses, steps=None, failed_at=None, total=100, **optim):
  """Writes a member whose evaluations are `losses`, evenly spaced up to `steps`."""
  name = f"wd{decay:g}-seed{seed}" + "".join(f"-{k}{v:g}" for k, v in optim.items())
  folder = workdir / "members" / name
  folder.mkdir(parents=True)
  config = default_config()
  config.update({"name": name, "seed": seed, "train": {"steps": total},
                 "optim": {"weight_decay": decay, **optim}})
  run_record.check_member(folder, config, tokenizer_fingerprint=name, data_fingerprint="d")
  lines = []
  for i, loss in enumerate(losses, start=1):
    step = i * (steps or total) // len(losses)
    lines.append({"step": step - 1, "tokens": (step - 1) * 64, "train/loss": 1.0})
    lines.append({"step": step, "tokens": step * 64, "validation/loss": loss,
                  "train_subset/loss": None if loss is None else loss - 0.25,
                  "weight_norm/head": 3.0, "weight_norm/norm": 4.0})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
  if failed_at:
    (folder / "FAILED.json").write_text(
        json.dumps({"step": failed_at, "reason": "the loss is nan"}))
  return folder


def store_checkpoint(folder, step, steps):
  checkpoints = MemberCheckpoints(folder / "checkpoints")
  checkpoints.save(step, {"w": jnp.zeros(2)}, {"m": jnp.zeros(2)}, {"next_step": step},
                   {**META, "steps": steps})
  checkpoints.close()


def sweep(workdir):
  member(workdir, 1.0, 0, [5.0, 4.5])
  member(workdir, 0.1, 1, [5.0, 3.25])
  member(workdir, 0.1, 0, [3.0, 3.75])
  member(workdir, 0.0, 0, [5.0, 4.0])
  member(workdir, 10.0, 0, [5.0, None], steps=40, failed_at=41)
  member(workdir, 3.0, 0, [5.0], steps=50)
  (workdir / "members" / "empty").mkdir()


def show(workdir, width=160):
  stream = io.StringIO()
  rows = summary.write_summary(workdir, Console(file=stream, width=width))
  return rows, stream.getvalue()


def test_rows(tmp_path):
  sweep(tmp_path)
  rows = summary.summarise(tmp_path)
  assert [r["member"] for r in rows] == [
      "wd0-seed0", "wd0.1-seed0", "wd0.1-seed1", "wd1-seed0", "wd3-seed0", "wd10-seed0", "empty"]
  assert rows[1] == dict(
      member="wd0.1-seed0", weight_decay=0.1, seed=0, status="done", steps=100, tokens=6400,
      validation_loss=3.75, train_subset_loss=3.5, gap=0.25, best_validation_loss=3.0,
      weight_norm=5.0, reason="")
  assert [r["status"] for r in rows] == [
      "done", "done", "done", "done", "unfinished", "failed at step 41", "unfinished"]
  failed, empty = rows[5], rows[6]
  assert failed["validation_loss"] is None and failed["gap"] is None
  assert failed["best_validation_loss"] == 5.0 and failed["reason"] == "the loss is nan"
  assert empty["weight_decay"] is None and empty["steps"] == 0 and empty["tokens"] is None


def test_a_field_that_did_not_exist_yet_had_its_default(tmp_path):
  member(tmp_path, 0.1, 0, [3.0])
  path = member(tmp_path, 0.1, 1, [3.0]) / "config.json"
  stored = json.loads(path.read_text())
  del stored["config"]["model"]["rope_theta"]
  path.write_text(json.dumps(stored))
  assert not any("." in name for name in summary.summarise(tmp_path)[0])
  stored["config"]["model"]["rope_theta"] = 500.0
  path.write_text(json.dumps(stored))
  assert [r["model.rope_theta"] for r in summary.summarise(tmp_path)] == [10000.0, 500.0]


def test_minimum_is_of_means_over_finished_seeds(tmp_path):
  sweep(tmp_path)
  member(tmp_path, 0.5, 0, [2.0], steps=50)  # lower, but unfinished
  member(tmp_path, 0.7, 0, [2.0], failed_at=99)
  settings = summary.settings(summary.summarise(tmp_path))
  assert [(s.values["weight_decay"], s.loss, len(s.rows)) for s in settings] == [
      (0.0, 4.0, 1), (0.1, 3.5, 2), (1.0, 4.5, 1)]
  _, text = show(tmp_path)
  assert "Lowest validation loss: 3.5000 at weight decay 0.1, mean of 2 seeds." in text


def test_files_agree_with_the_rows(tmp_path):
  sweep(tmp_path)
  rows, text = show(tmp_path)
  def refuse(constant):
    raise AssertionError(constant)
  assert json.loads((tmp_path / "sweep.json").read_text(), parse_constant=refuse) == rows
  with open(tmp_path / "sweep.csv", newline="") as f:
    table = list(csv.DictReader(f))
  assert [r["member"] for r in table] == [r["member"] for r in rows]
  assert float(table[2]["validation_loss"]) == 3.25 and table[5]["validation_loss"] == ""
  picture = imread(tmp_path / "sweep.png")
  assert picture.shape[:2] == (750, 1800) and picture[..., :3].std() > 0.05
  assert "wd10-seed0 failed at step 41: the loss is nan" in text
  assert not list(tmp_path.glob("*.tmp"))


def test_table_fits_the_terminal(tmp_path):
  sweep(tmp_path)
  for width in (80, 160):
    _, text = show(tmp_path, width)
    table = text.split("Lowest")[0]
    assert "…" not in table and all(len(line) <= width for line in table.splitlines())
    assert "3.7500" in table and "validation" in table and "failed at step 41" in table


@pytest.mark.parametrize("members", [0, 1, 2])
def test_nothing_and_little_to_show(tmp_path, members):
  if members == 1:
    member(tmp_path, 0.0, 0, [3.0])
  elif members == 2:
    member(tmp_path, 0.1, 0, [None], failed_at=100)
    member(tmp_path, 0.2, 0, [4.0], steps=10)
  rows, text = show(tmp_path)
  assert len(rows) == members and (tmp_path / "sweep.png").exists()
  assert ("No member has started yet." in text) == (members == 0)
  assert (tmp_path / "sweep.csv").read_text().startswith("member,weight_decay,seed,status")


def test_steps_that_the_configuration_leaves_open_are_those_of_the_checkpoints(tmp_path):
  folder = member(tmp_path, 0.1, 0, [3.0], steps=10, total=0)
  def status():
    return summary.summarise(tmp_path)[0]["status"]
  assert status() == "unfinished"
  store_checkpoint(folder, 5, 10)
  assert status() == "done"
  store_checkpoint(folder, 8, 20)
  assert status() == "unfinished"


def test_steps_are_those_of_the_plan_where_there_is_one(tmp_path):
  folder = member(tmp_path, 0.1, 0, [3.0], steps=10, total=0)  # and no checkpoints
  for steps, status in ((20, "unfinished"), (10, "done")):
    (folder / "plan.json").write_text(json.dumps({"steps": steps}))
    assert summary.summarise(tmp_path)[0]["status"] == status
  (folder / "plan.json").write_text("{")
  with pytest.raises(UserError, match="plan.json"):
    summary.summarise(tmp_path)


def test_other_swept_fields_are_told_apart(tmp_path):
  for rate in (1e-3, 3e-3):
    for seed in (0, 1):
      member(tmp_path, 0.1, seed, [3.0 + rate], learning_rate=rate)
  # How a member was run does not tell members apart.
  path = tmp_path / "members" / "wd0.1-seed0-learning_rate0.001" / "config.json"
  path.write_text(path.read_text().replace('"num_workers": 2', '"num_workers": 7'))
  rows, text = show(tmp_path)
  assert {r["optim.learning_rate"] for r in rows} == {1e-3, 3e-3}
  assert "7" in path.read_text() and [n for n in rows[0] if "." in n] == ["optim.learning_rate"]
  settings = summary.settings(rows)
  assert [s.values for s in settings] == [
      {"weight_decay": 0.1, "optim.learning_rate": rate} for rate in (1e-3, 3e-3)]
  assert "at weight decay 0.1, learning rate 0.001, mean of 2 seeds" in text


def test_damaged_files_and_wrong_directories(tmp_path):
  with pytest.raises(UserError, match="there is no work directory"):
    summary.write_summary(tmp_path / "nowhere")
  folder = member(tmp_path, 0.1, 0, [3.0])
  (folder / "config.json").write_text("{")
  with pytest.raises(UserError, match="config.json does not hold a JSON object"):
    summary.summarise(tmp_path)


def panel(decays):
  axes = Figure().subplots()
  return axes, summary_plot._decay_axis(axes, decays)


def test_decay_axis_is_logarithmic_and_shows_zero():
  axes, place = panel([0.0, 1e-3, 1e-2, 1.0])
  assert place[1.0] - place[1e-2] == pytest.approx(2 * (place[1e-2] - place[1e-3]))
  assert place[0.0] < place[1e-3]
  assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "0.001", "0.01", "1"]
  left, right = axes.get_xlim()
  assert left < place[0.0] and place[1.0] < right
  axes, place = panel([0.0])
  assert axes.get_xlim()[0] < place[0.0] < axes.get_xlim()[1]


def test_a_ruined_member_does_not_flatten_the_others():
  low, high = summary_plot._limits([3.1, 3.12, 3.15, 3.2, 9.0])
  assert low < 3.1 and 3.2 < high < 3.3
  low, high = summary_plot._limits([3.1, 3.15, 3.3, 3.5, 3.7])
  assert low < 3.1 and high > 3.7
  low, high = summary_plot._limits([3.0])
  assert low < 3.0 < high
  low, high = summary_plot._limits([3.0] * 5 + [4.0])
  assert low < 3.0 and 4.0 < high and math.isfinite(high)


def test_program(tmp_path):
  member(tmp_path, 0.1, 0, [3.0])
  said = programs.run("wd_plasticity.training.summary", f"--workdir={tmp_path}")
  assert "wd0.1-seed0" in said and (tmp_path / "sweep.png").exists()


def test_a_copy_of_a_member_is_no_seed(tmp_path):
  member(tmp_path, 0.1, 0, [3.0, 3.75])
  original = member(tmp_path, 0.1, 1, [5.0, 3.25])
  for name in ("copy-one", "another-copy-of-it"):
    shutil.copytree(original, tmp_path / "members" / name)
  (tmp_path / "evals" / "finetune" / original.name).mkdir(parents=True)
  rows, text = show(tmp_path)
  assert {r["member"]: r["status"] for r in rows if r["status"] != "done"} == dict.fromkeys(
      ("copy-one", "another-copy-of-it"), f"copy of {original.name}")
  best, = summary.settings(rows)
  assert best.loss == pytest.approx(3.5) and len(best.rows) == 2
  assert "mean of 2 seeds" in text and f"copy-one ({original.name})" in text
