"""Scores of lm-evaluation-harness in the report: read from disk, drawn, in tables, and absent."""

import json

import pytest
import synthetic_study
from scipy import stats

from wd_plasticity.report import answer, figures, make, study, tables
from wd_plasticity.report.figure import POINTS

DECAYS, SEEDS = (0.0, 0.1, 1.0), (0, 1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("harness")
  synthetic_study.write(folder, DECAYS, SEEDS, problems=20, programs=("lm_eval",))
  return folder


def figure_of(workdir):
  read = study.read(workdir)
  return read, next((f for f in figures.build(read, answer.answers(read))
                     if f.name == "harness_by_decay"), None)


def lines(figure, task, measure):
  view = next(v for v in figure.views if v.choice == {"task": task, "measure": measure})
  return view, {s.name: s for s in view.series}


def test_results_are_read(workdir):
  read = study.read(workdir)
  assert len(read.harness) == 3 * 6 and all(r.last for r in read.harness)
  r = next(r for r in read.harness if (r.member, r.item) == ("wd0.1-seed1", "mmlu"))
  path = workdir / "evals/lm_eval/wd0.1-seed1/100/mmlu.json"
  assert r.values == json.loads(path.read_text())["values"]
  assert [name for name, _ in read.commands] == ["lm_eval"] and read.notes == []


def test_means_points_and_their_intervals(workdir):
  read, figure = figure_of(workdir)
  view, made = lines(figure, "arc_easy", "normalised accuracy")
  scores = {(r.weight_decay, r.seed): r.values["tasks"]["arc_easy"]["measures"]["acc_norm"]
            for r in read.harness if r.item == "arc_easy"}
  assert view.y_label == "normalised accuracy (%)" and made["mean"].x == list(DECAYS)
  spread = 0.0
  for w, y in zip(DECAYS, made["mean"].y, strict=True):
    values = [scores[w, s]["value"] for s in SEEDS]
    assert y == pytest.approx(50 * sum(values), rel=1e-4)
    spread += (values[0] - values[1]) ** 2 / 2
  of_seeds = stats.t.ppf(0.975, 3) * (spread / 3 / 2) ** 0.5
  half = 100 * (of_seeds ** 2 + (1.96 * 0.05) ** 2) ** 0.5
  assert (made["mean"].high[0] - made["mean"].low[0]) / 2 == pytest.approx(half, rel=1e-3)
  points = made["one seed"]
  assert points.style == POINTS and points.labels[3] == (
      "wd0.1-seed1, step 100, standard error 5")
  assert points.y[3] == pytest.approx(100 * scores[0.1, 1]["value"], rel=1e-4)


def test_groups_perplexities_and_what_is_on_paper(workdir):
  _, figure = figure_of(workdir)
  view, made = lines(figure, "lambada", "perplexity")
  assert view.y_label == "perplexity (lower is better)" and not view.on_paper
  assert made["mean"].y == [20, 20.1, 21]  # without an error, and without any spread
  assert made["one seed"].labels[0] == "wd0-seed0, step 100"
  shown = [tuple(v.choice.values()) for v in figure.views if v.on_paper]
  assert shown == [("arc_easy", "normalised accuracy"), ("lambada", "accuracy"),
                   ("mmlu", "accuracy")]
  assert {v.choice["task"] for v in figure.views} == {
      "arc_easy", "lambada", "mmlu", "mmlu_one", "mmlu_two"}
  for words in ("2 seeds", "Without examples before a problem.", "lm-evaluation-harness 0.4.13."):
    assert words in figure.caption


def test_tables_and_page(workdir, tmp_path):
  read, figure = figure_of(workdir)
  rows = tables.results_table(read).to_pylist()
  row = next(r for r in rows if r["program"] == "lm_eval" and r["member"] == "wd1-seed0"
             and r["measure"] == "groups/mmlu/measures/acc")
  values = next(r for r in read.harness if (r.member, r.item) == ("wd1-seed0", "mmlu")).values
  want = values["groups"]["mmlu"]["measures"]["acc"]
  assert (row["value"], row["se"], row["n"]) == (want["value"], want["se"], want["n"])
  assert {r["task"] for r in tables.figure_table(figure).to_pylist()} >= {"mmlu", "mmlu_one"}
  page = make.report(workdir, tmp_path / "report").read_text()
  assert "Scores of lm-evaluation-harness by weight decay" in page
  assert "wd_plasticity.evals.lm_eval" in page
  assert (tmp_path / "report/figures/harness_by_decay.png").stat().st_size > 10_000


def test_a_study_without_scores_says_nothing_of_it(tmp_path):
  synthetic_study.write(tmp_path, DECAYS, SEEDS, problems=20, programs=("overfit",))
  read, figure = figure_of(tmp_path)
  assert figure is None and read.harness == []


def test_a_broken_result_is_a_note(tmp_path):
  synthetic_study.write(tmp_path, DECAYS, SEEDS, problems=20, programs=("lm_eval",))
  synthetic_study.damage(tmp_path / "evals/lm_eval/wd0-seed0/100/mmlu.json")
  read, figure = figure_of(tmp_path)
  assert "mmlu.json" in read.notes[0] and len(read.harness) == 17 and figure.views


def test_one_seed_has_no_points_of_its_own(tmp_path):
  synthetic_study.write(tmp_path, DECAYS, (0,), problems=20, programs=("lm_eval",))
  _, figure = figure_of(tmp_path)
  _, made = lines(figure, "arc_easy", "accuracy")
  assert list(made) == ["mean"]
  assert made["mean"].high[0] - made["mean"].y[0] == pytest.approx(9.8, rel=1e-3)


def test_settings_are_a_control(tmp_path):
  synthetic_study.write(tmp_path, (0.0, 0.1), (0,), pretraining_rates=(0.001, 0.004), problems=20,
                        programs=("lm_eval",))
  _, figure = figure_of(tmp_path)
  assert figure.controls == ("setting", "task", "measure")
  assert sum(v.on_paper for v in figure.views) == 6
