"""The figures and tables of the report: their numbers, and that they stay small and whole."""

import csv
import dataclasses
import json
import statistics

import numpy as np
import pyarrow.parquet
import pytest
import synthetic_study
from scipy import stats

from wd_plasticity.report import (
  answer,
  figure_parts,
  figures,
  figures_finetuning,
  figures_training,
  study,
  tables,
)
from wd_plasticity.report.figure import POINTS, REFERENCE

ORDER = [
    "accuracy_by_decay", "loss_by_decay", "loss_and_accuracy", "probability_best",
    "before_and_after", "forgetting", "finetuning_curves", "rate_by_decay", "probe_by_layer",
    "pseudo_rank", "pseudo_rank_heads", "rank_by_decay", "learning_curves", "gap",
    "gap_over_training", "loss_by_frequency", "weight_norms", "timescale", "loss_by_timescale",
    "harness_by_decay"]


def built(workdir, answers=None):
  read = study.read(workdir)
  made = figures.build(read, answer.answers(read) if answers is None else answers)
  return read, {f.name: f for f in made}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A study with all there is, and its figures."""
  workdir = tmp_path_factory.mktemp("whole")
  synthetic_study.write(workdir, rates=(1e-3, 3e-3), problems=80, seed_deviation=0.02)
  return built(workdir)


def check(made):
  """What must hold of all figures."""
  # The harness, which not every study wants, has a figure where there are scores of it.
  assert list(made) in (ORDER, ORDER[:-1])
  for figure in made.values():
    assert bool(figure.views) != bool(figure.missing), figure.name
    assert figure.title and figure.caption and "nan" not in figure.caption.lower()
    choices = [tuple(v.choice.items()) for v in figure.views]
    assert len(set(choices)) == len(choices), figure.name
    for view in figure.views:
      assert tuple(view.choice) == tuple(figure.controls) and view.series and view.y_label
      for s in view.series:
        assert len(s.x) == len(s.y) <= 200 and len(s.x)
        for extra in (s.low, s.high, s.labels):
          assert len(extra) in (0, len(s.x))
        if figure.x_axis == "log":
          assert min(s.x) > 0
        if figure.y_axis == "log":
          assert all(v is None or v > 0 for v in s.y)
    json.dumps(dataclasses.asdict(figure), allow_nan=False)


def series(figure, name, **choice):
  view = next(v for v in figure.views if v.choice.items() >= choice.items())
  return next(s for s in view.series if s.name == name)


def test_all_figures(whole):
  read, made = whole
  check(made)
  assert all(f.views and any(v.on_paper for v in f.views) for f in made.values())
  assert made["accuracy_by_decay"].views[0].choice == {
      "task": "average of 2 tasks", "rate": "each at its best rate"}
  assert "2 seeds" in made["accuracy_by_decay"].caption


def test_means_of_finetuning(whole):
  read, made = whole
  fine = series(made["accuracy_by_decay"], "fine-tuned", task="SST-2",
                rate="learning rate 0.003")
  base = series(made["accuracy_by_decay"], "base model", task="SST-2",
                rate="learning rate 0.003")
  assert base.style == REFERENCE
  for stage, line in (("after", fine), ("before", base)):
    for decay, y in zip(line.x, line.y, strict=True):
      values = [getattr(f, stage)["acc"]["value"] for f in read.finetuned
                if (f.task, f.rate, f.weight_decay) == ("sst2", "lr0.003", decay)]
      assert len(values) == 2 and y == pytest.approx(100 * statistics.fmean(values), rel=1e-3)
  assert all(low < y < high for low, y, high in zip(fine.low, fine.y, fine.high, strict=True))
  rates = series(made["rate_by_decay"], "0.1", task="SST-2")
  assert rates.x == [1e-3, 3e-3] and rates.y[1] == pytest.approx(fine.y[1], rel=1e-3)


def test_loss_and_accuracy_has_a_point_per_member(whole):
  read, made = whole
  losses = {m.name: m.validation_loss for m in read.members}
  for figure_view in made["loss_and_accuracy"].views:
    points = [s for s in figure_view.series if s.style == POINTS]
    found = {name: x for s in points for name, x in zip(s.labels, s.x, strict=True)}
    assert found == pytest.approx(losses, rel=1e-4)
  line = series(made["loss_and_accuracy"], "means", task="SST-2", rate="learning rate 0.001")
  points = series(made["loss_and_accuracy"], "0.1", task="SST-2", rate="learning rate 0.001")
  assert line.y[1] == pytest.approx(statistics.fmean(points.y), rel=1e-4)
  # Also at the best rates, which are chosen on other problems, the means are those of the answer.
  comparison = next(c for c in answer.answers(read)[0].comparisons if c.task == "sst2")
  line = series(made["loss_and_accuracy"], "means", task="SST-2", rate="each at its best rate")
  assert comparison.rate == "best"
  assert line.y == pytest.approx([100 * e.value for e in comparison.estimates], rel=1e-4)


def test_probes_ranks_and_norms(whole):
  read, made = whole
  line = series(made["probe_by_layer"], "0.1", task="SST-2", pooling="mean over tokens")
  values = [r.values["accuracy"][1][0] for r in read.probed
            if (r.item, r.weight_decay) == ("sst2", 0.1)]
  assert line.x == [0, 1, 2] and line.y[1] == pytest.approx(100 * statistics.fmean(values))
  rank = series(made["pseudo_rank"], "1", matrix="W_VP", layer="layer 2")
  of = [r for r in read.ranked if r.weight_decay == 1.0 and r.last]
  assert rank.x == [3200, 6400] and rank.y[1] == pytest.approx(100 * np.mean(
      [r.values["vp"]["heads"]["pseudo_rank_share"][1] for r in of]), rel=1e-4)
  head = series(made["pseudo_rank_heads"], "head 2", **{"matrix": "W_QK", "layer": "layer 1",
                                                        "weight decay": "decay 1"})
  first = next(r for r in of if r.seed == 0)
  assert head.y[1] == 100 * first.values["qk"]["heads"]["pseudo_rank_share"][0][1]
  norm = series(made["weight_norms"], "1, seed 0", parameters="all parameters")
  curve = next(m for m in read.members if m.name == "wd1-seed0").curve
  assert norm.y[-1] == pytest.approx(6**0.5 * curve[-1]["weight_norm/head"], rel=1e-4)


def test_gap_frequency_and_timescale(whole):
  read, made = whole
  gap = series(made["gap"], "mean")
  same = [r.values["gap"] for r in read.overfit if r.last and r.weight_decay == gap.x[2]]
  assert gap.y[2] == pytest.approx(statistics.fmean(g["value"] for g in same), rel=1e-3)
  assert gap.high[2] == pytest.approx(statistics.fmean(g["high"] for g in same), rel=1e-3)
  zero = series(made["loss_by_frequency"], "0", shown="against decay 0")
  assert set(zero.y) == {0.0} and len(zero.x) == synthetic_study.BINS - 1
  assert series(made["timescale"], "timescale").x == [0.1, 1.0]
  assert series(made["timescale"], "timescale").y[1] == pytest.approx(1 / 0.004 / 100)
  assert [s.name for s in made["loss_by_timescale"].views[0].series] == ["0.1", "1", "mean"]


def test_the_gap_says_how_much_of_the_text_had_been_read(whole):
  read, _ = whole
  def captions(**values):
    changed = [dataclasses.replace(r, values={k: v for k, v in {**r.values, **values}.items()
                                              if v != "none"}) for r in read.overfit]
    study_of = dataclasses.replace(read, overfit=changed)
    return [f(study_of).caption for f in (figures_training.gap,
                                          figures_training.gap_over_training)]
  for caption in captions():
    assert "of text that had been read: 50 % of the training records" in caption
  for caption in captions(share_read=None):
    assert "is not known, so its training side is of all" in caption
  for caption in captions(share_read="none", epochs=0.1):  # results of an earlier version
    assert "about 10 % had been read, so that the gap is smaller" in caption
  for make in (figures_training.gap, figures_training.gap_over_training):  # none at all
    assert "has read only a part" in make(dataclasses.replace(read, overfit=[])).caption


@pytest.mark.parametrize("n", [2, 3, 21, 40])
def test_intervals_are_students(n):
  rng = np.random.default_rng(n)
  values = rng.random(n)
  expected = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
  assert figure_parts.intervals([list(values)])[0] == pytest.approx(expected, rel=0.01)
  assert figure_parts.intervals([[1.0], [2.0]]) == [(None, None)] * 2
  other = rng.random(3)
  spread = np.sqrt((values.var() * n + other.var() * 3) / (n + 1))
  half = stats.t.ppf(0.975, n + 1) * spread / np.sqrt([n, 3, 1])
  found = np.array(figure_parts.intervals([list(values), list(other), [0.5]]))
  np.testing.assert_allclose(found[:, 1] - found[:, 0], 2 * half, rtol=0.01)


def test_nothing_to_show(tmp_path):
  _, made = built(tmp_path)
  check(made)
  assert all(not f.views and "python -m wd_plasticity" in f.missing for f in made.values())
  assert tables.save(made.values(), tmp_path / "tables") == []


@pytest.mark.parametrize("decays, seeds", [((0.0,), (0,)), ((0.1,), (0, 1)), ((0.0, 0.1), (3,))])
def test_little_to_show(tmp_path, decays, seeds):
  synthetic_study.write(tmp_path, decays=decays, seeds=seeds, steps=(100,), tasks=("sst2",),
                        problems=30)
  _, made = built(tmp_path)
  check(made)
  assert {"accuracy_by_decay", "loss_by_decay", "gap", "learning_curves"} <= {
      f.name for f in made.values() if f.views}


def test_without_answers_and_scores(tmp_path):
  synthetic_study.write(tmp_path, scores=False, problems=30, programs=("finetune",))
  _, made = built(tmp_path, answers=[])
  check(made)
  assert not made["accuracy_by_decay"].views and made["before_and_after"].views
  assert made["gap"].views and made["gap_over_training"].views  # from pretraining itself
  assert not made["pseudo_rank"].views and "attention_rank" in made["pseudo_rank"].missing
  assert made["loss_by_decay"].views[0].series[0].low  # over seeds


def test_failed_missing_and_broken(tmp_path):
  synthetic_study.write(tmp_path, failed={"wd1-seed0": 60, "wd1-seed1": 3}, problems=30,
                        without=["wd0.1-seed1"])
  synthetic_study.damage(tmp_path / "evals/finetune/wd0-seed0/100/sst2.json")
  path = tmp_path / "evals/attention_rank/wd0-seed0/50/spectra.json"
  document = json.loads(path.read_text())
  document["values"]["qk"]["mean"]["pseudo_rank_share"] = None
  path.write_text(json.dumps(document))
  _, made = built(tmp_path)
  check(made)
  assert "Left out because they failed: wd1-seed0, wd1-seed1." in made["loss_by_decay"].caption
  assert [s.weight_decay for s in made["pseudo_rank"].views[0].series] == [0.0, 0.1]
  assert series(made["pseudo_rank"], "0", matrix="W_QK", layer="all layers").y[0] is None
  names = [s.name for s in made["learning_curves"].views[0].series]
  assert "1, seed 0 (failed)" in names


def test_not_finite_results(tmp_path):
  synthetic_study.write(tmp_path, problems=30, decays=(0.0, 0.1))
  for path in tmp_path.glob("evals/finetune/wd0-*/100/sst2.json"):
    document = json.loads(path.read_text())
    for measure in document["values"]["after"]["test"].values():
      if isinstance(measure, dict):
        measure.update(value=None, se=None)
    document["values"] |= {"forgetting": {"value": None, "se": None, "n": 3}, "failed_at": 2}
    document["values"]["curve"][3]["loss"] = None
    path.write_text(json.dumps(document))
  read, made = built(tmp_path)
  check(made)
  assert "Fine-tuning was not finite" in " ".join(read.notes)
  assert series(made["before_and_after"], "fine-tuned", task="SST-2").x == [0.1]


def test_settings_are_a_control(tmp_path):
  synthetic_study.write(tmp_path, pretraining_rates=(0.001, 0.004), problems=20,
                        tasks=("sst2",))
  _, made = built(tmp_path)
  check(made)
  assert all(f.controls[0] == "setting" for f in made.values())
  assert {v.choice["setting"] for v in made["pseudo_rank"].views} == {
      "learning_rate=0.001", "learning_rate=0.004"}


def test_many_members_stay_small(tmp_path):
  synthetic_study.write(tmp_path, decays=[0.01 * i for i in range(10)], seeds=(0, 1),
                        steps=range(10, 101, 10), problems=10, logged=100, heads=4)
  _, made = built(tmp_path)
  check(made)
  assert all(len(v.series) <= 12 for f in made.values() for v in f.views)
  assert sum(len(json.dumps(dataclasses.asdict(f))) for f in made.values()) < 1e6


def test_heads_are_thinned(tmp_path, monkeypatch):
  from wd_plasticity.report import figures_inside
  monkeypatch.setattr(figures_inside, "_ALL_HEADS", 200)
  synthetic_study.write(tmp_path, decays=(0.0, 1.0), steps=range(5, 101, 5), problems=10,
                        tasks=("sst2",))
  _, made = built(tmp_path)
  figure = made["pseudo_rank_heads"]
  numbers = sum(len(s.x) + len(s.y) for v in figure.views for s in v.series)
  assert numbers <= 200 and "6 of 20 stored steps are shown" in figure.caption
  assert figure.views[0].series[0].x[-1] == 6400


def test_tables(whole, tmp_path):
  read, made = whole
  paths = tables.save(made.values(), tmp_path, read)
  assert {p.name for p in paths} == {f"{n}.{k}" for n in [*ORDER, "members", "results"]
                                     for k in ("csv", "parquet")}
  for name in [*ORDER, "members", "results"]:
    table = pyarrow.parquet.read_table(tmp_path / f"{name}.parquet").to_pylist()
    with open(tmp_path / f"{name}.csv", newline="") as f:
      rows = list(csv.DictReader(f))
    assert len(rows) == len(table) and list(rows[0]) == list(table[0])
  with open(tmp_path / "accuracy_by_decay.csv", newline="") as f:
    row = next(csv.DictReader(f))
  line = made["accuracy_by_decay"].views[0].series[0]
  assert row["task"] == "average of 2 tasks" and float(row["y"]) == line.y[0]
  assert float(row["low"]) == line.low[0] and float(row["weight_decay"]) == line.x[0]
  results = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
  f = read.finetuned[0]
  found = [r for r in results if (r["program"], r["member"], r["item"], r["measure"]) == (
      "finetune", f.member, f.item, f"after/{f.split}/{f.measure}")]
  assert [(r["value"], r["se"], r["n"], r["tokens"]) for r in found] == [
      (*f.after[f.measure].values(), 6400)]
  assert not any("/heads/" in r["measure"] for r in results)
  members = pyarrow.parquet.read_table(tmp_path / "members.parquet").to_pylist()
  assert [m["member"] for m in members] == [m.name for m in read.members]


def test_decays_of_many_digits_are_not_rounded(tmp_path):
  decays = [0.0, 1 / 3, 0.01 * 1.5**5]
  synthetic_study.write(tmp_path, decays)
  made = study.read(tmp_path)
  for figure in figures.build(made, answer.answers(made)):
    if figure.x_axis == "decay":
      assert {x for v in figure.views for s in v.series for x in s.x} <= set(decays), figure.name


def test_forgetting_counts_every_task_once_and_the_same_tasks_for_all(tmp_path):
  """A task with two splits counts once; one that a member lacks is in no average."""
  synthetic_study.write(tmp_path, decays=(0.0, 1.0), tasks=("sst2", "arc_easy", "boolq"))
  read = study.read(tmp_path)
  found = []
  for f in read.finetuned:
    value = {"sst2": 0.1, "arc_easy": 0.4, "boolq": 9.0}[f.task]
    f = dataclasses.replace(f, forgetting=f.forgetting | {"value": value})
    if f.task != "boolq" or f.member != "wd1-seed0":
      found.append(f)
    if f.task == "sst2":
      found.append(dataclasses.replace(f, split="validation"))
  figure = figures_finetuning.forgetting(dataclasses.replace(read, finetuned=found))
  view = next(v for v in figure.views if v.choice["task"] == "average of 2 tasks")
  assert view.series[0].y == [0.25, 0.25]
