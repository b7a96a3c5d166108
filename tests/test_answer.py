"""The answer of made-up studies whose best decay is known, and of those with next to nothing."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from wd_plasticity.evals.split_evaluation import chance
from wd_plasticity.report import answer, scores
from wd_plasticity.report.study import Finetuned, Member, Result, Study
from wd_plasticity.tasks.task import Problem

LOSSES = {0.0: 4.03, 0.1: 4.0, 0.3: 4.02, 1.0: 4.05, 3.0: 4.3}
ACCURACY = {0.0: 0.55, 0.1: 0.6, 0.3: 0.62, 1.0: 0.8, 3.0: 0.5}


@pytest.fixture(autouse=True)
def _no_warnings():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    yield


def _member(decay, seed, loss, status="done"):
  return Member(f"wd{decay:g}-seed{seed}", decay, seed, "", status, "", 100, 100, 1000, loss, None,
                [], {}, {}, "", "")


def _finetuned(decay, seed, scores, *, task="sst2", title="SST-2", rate="", learning_rate=1e-3,
               split="test", measure="acc", keys=None, failed_at=None, arrays=True):
  scores = np.asarray(scores, np.float32)
  value = {measure: {"value": float(np.nanmean(scores)), "se": 0.01, "n": len(scores)}}
  keys = np.array([f"p{i}" for i in range(len(scores))] if keys is None else keys)
  return Finetuned(f"wd{decay:g}-seed{seed}", decay, seed, "", 100, True, task, title, split, rate,
                   learning_rate, measure, value, value, keys if arrays else np.array([], np.str_),
                   {"after": {measure: scores}} if arrays else {}, None, [], [], failed_at)


def _study(members=(), finetuned=(), overfit=()):
  return Study("books", Path("books"), list(members), list(finetuned), [], [], list(overfit), [],
               {}, [], [])


def _members(seeds=(0, 1, 2), losses=LOSSES):
  rng = np.random.default_rng(0)
  return [_member(d, s, value + rng.normal(0, 0.003)) for d, value in losses.items() for s in seeds]


def _scores(accuracy=ACCURACY, seeds=(0, 1, 2), items=300, seed=1, **kwargs):
  rng = np.random.default_rng(seed)
  luck_I = rng.random(items)
  return [_finetuned(d, s, 0.5 * (luck_I < p) + 0.5 * (rng.random(items) < p) > 0.5, **kwargs)
          for d, p in accuracy.items() for s in seeds]


def _only(study):
  made = answer.answers(study)
  json.dumps(answer.as_json(made), allow_nan=False)
  assert len(made) == 1 and made[0].sentences
  for sentence in made[0].sentences + made[0].cautions:
    assert sentence.endswith(".") and "nan" not in sentence and "None" not in sentence
  return made[0]


def test_a_clear_winner_is_named_with_what_choosing_by_loss_costs():
  made = _only(_study(_members(), _scores()))
  c = made.comparisons[0]
  assert (c.best, c.ties, made.loss.best) == (1.0, [], 0.1)
  assert made.sentences[0].startswith("Pretrain with weight decay 1 if the model will be")
  value = {e.weight_decay: e.value for e in c.estimates}
  assert f"0.1, the best for pretraining loss, reaches {100 * value[0.1]:.1f} %" in (
      made.sentences[1])
  assert "is 10 times that for pretraining loss, 0.1" in made.sentences[3]
  assert c.gain.value == pytest.approx(value[1.0] - value[0.1]) and c.gain.low > 0
  assert "more than the error of this study" in made.sentences[4]
  assert c.correlation.n == 5 and -1 < c.correlation.value < 1
  assert any("sweep optim.learning_rate" in text for text in made.cautions)
  e = c.estimates[3]
  assert e.low < e.value < e.high and e.best > 0.99 and (e.seeds, e.items) == (3, 300)


def test_decays_that_are_alike_are_level_and_more_is_asked_for():
  same = dict.fromkeys(ACCURACY, 0.6)
  made = _only(_study(_members(), _scores(same)))
  assert made.sentences[0].startswith("No weight decay can be called the best after fine-tuning")
  assert len(made.comparisons[0].ties) >= 3
  assert any("two leading decays" in text for text in made.cautions)
  assert made.comparisons[0].gain.low == 0


def test_average_weighs_tasks_equally_and_leaves_out_losses_and_other_splits():
  a = _scores(items=100)
  b = _scores({d: 0.3 for d in ACCURACY}, items=400, seed=2, task="gsm8k", title="GSM8K")
  other = _scores({d: 0.9 for d in ACCURACY}, split="validation", seed=3)
  loss = _scores(seed=4, task="metamathqa", title="MetaMathQA", measure="response_loss")
  made = _only(_study(_members(), [*other, *a, *b, *loss]))
  titles = [c.title for c in made.comparisons]
  assert titles[0] == "average of 2 tasks" and made.comparisons[0].task == ""
  assert set(titles[1:]) == {"SST-2, test", "SST-2, validation", "GSM8K", "MetaMathQA"}
  mean = [np.mean([f.after["acc"]["value"] for f in fs if f.weight_decay == 1.0]) for fs in (a, b)]
  assert made.comparisons[0].estimates[3].value == pytest.approx(np.mean(mean))
  lower = next(c for c in made.comparisons if c.measure == "response_loss")
  assert lower.best == 3.0 and lower.estimates[4].low < lower.estimates[4].value
  assert lower.gain.value > 0


def test_rates_are_tuned_for_each_decay_on_other_items():
  """At the low rate decay 1 is ahead, because the others learn too little there."""
  low = _scores({0.0: 0.52, 0.1: 0.55, 0.3: 0.6, 1.0: 0.7, 3.0: 0.5}, seed=2, rate="lr0.001")
  high = _scores({0.0: 0.62, 0.1: 0.85, 0.3: 0.8, 1.0: 0.65, 3.0: 0.5}, seed=2, rate="lr0.01",
                 learning_rate=1e-2)
  made = _only(_study(_members(), low + high))
  assert [c.rate for c in made.comparisons] == ["best", "lr0.001", "lr0.01"]
  best = made.comparisons[0]
  assert best.best == 0.1 and best.rates[0.1] == [0.01] and best.rates[1.0] == [0.001]
  assert made.comparisons[1].best == 1.0
  text = " ".join(made.sentences)
  assert "at learning rate 0.001 the best mean is that of 1" in text and "rate 0.01 " in text
  assert "advantage of 1 over 0.1" in text and "does not survive tuning" in text
  assert any("Only two fine-tuning rates were tried, 0.001 and 0.01" in c for c in made.cautions)
  middle = _scores(dict.fromkeys(ACCURACY, 0.3), seed=2, rate="lr0.003", learning_rate=3e-3)
  made = _only(_study(_members(), low + middle + high))
  assert any("is the smallest (0.001)" in c and "the largest (0.01)" in c for c in made.cautions)


def test_loss_by_document_is_the_loss_per_token_with_the_error_of_documents():
  counts = np.array([10, 20, 30, 40])
  sums = np.array([44.0, 76.0, 126.0, 152.0])

  def result(m):
    return Result(m.name, m.weight_decay, m.seed, "", 100, 1000, True, "overfit", {}, {
        "validation_documents": np.arange(4), "validation_document_counts": counts,
        "validation_document_sums": sums + m.weight_decay})

  members = [_member(d, 0, 9.0) for d in (0.0, 1.0)]
  made = _only(_study(members, [], [result(m) for m in members]))
  mean = 398 / 100
  residuals = sums - mean * counts
  se = np.sqrt(np.sum(residuals**2) / 3 / 4) / 25  # Cochran 6.3
  first = made.loss.estimates[0]
  assert first.value == pytest.approx(mean) and first.items == 4
  assert (first.high - first.low) / 3.92 == pytest.approx(se, rel=0.15)
  partly = _only(_study(members, [], [result(members[0])]))
  assert partly.loss.estimates[0].value == 9.0
  assert any("only 1 of 2 members" in c for c in partly.cautions)


def test_results_without_arrays_count_with_their_standard_error():
  made = _only(_study(_members((0,)), _scores(seeds=(0,), arrays=False)))
  e = made.comparisons[0].estimates[0]
  assert (e.high - e.low) / 3.92 == pytest.approx(0.01, rel=0.1)
  assert any("no scores per problem" in c for c in made.cautions)
  assert any("one seed of every weight decay" in c for c in made.cautions)


def test_members_that_failed_are_left_out_and_edges_of_the_grid_are_told():
  rising = {0.0: 0.5, 0.1: 0.55, 0.3: 0.6, 1.0: 0.7, 3.0: 0.8}
  members = _members((0, 1))
  members[-1] = dataclasses.replace(members[-1], status="failed at step 20", validation_loss=None)
  tuned = _scores(rising, seeds=(0, 1))
  tuned[0] = dataclasses.replace(tuned[0], failed_at=7)
  made = _only(_study(members, tuned))
  assert made.comparisons[0].best == 3.0 and made.comparisons[0].estimates[-1].seeds == 1
  text = " ".join(made.cautions)
  assert "extend the grid beyond 3" in text and "wd3-seed1" in text
  assert "not finite" in text and "independent between decays" in text


def test_correlation_that_rests_on_one_decay_is_told():
  accuracy = {0.0: 0.61, 0.1: 0.6, 0.3: 0.62, 1.0: 0.6, 3.0: 0.2}
  losses = {0.0: 4.0, 0.1: 4.01, 0.3: 4.02, 1.0: 4.015, 3.0: 6.0}
  made = _only(_study(_members(losses=losses), _scores(accuracy)))
  assert made.comparisons[0].correlation.value < -0.95
  assert any("a single decay" in s for s in made.sentences)


def test_nothing_and_next_to_nothing_make_answers_that_say_so():
  assert "not known yet" in _only(_study()).sentences[0]
  made = _only(_study(_members()))
  assert "not known yet" in made.sentences[0] and "For pretraining alone" in made.sentences[1]
  one = _only(_study([_member(0.1, 0, 4.0)], _scores({0.1: 0.6}, seeds=(0,))))
  assert "nothing to compare: only weight decay 0.1" in one.sentences[0]
  assert one.comparisons[0].gain is None
  unfinished = _only(_study([_member(0.1, 0, None, "unfinished")], _scores({0.1: 0.6}, seeds=(0,))))
  assert not unfinished.comparisons and "wd0.1-seed0" in " ".join(unfinished.cautions)
  two = _only(_study(_members((0,), {0.0: 4.0, 1.0: 4.1}), _scores({0.0: 0.5, 1.0: 0.7},
                                                                    seeds=(0,))))
  assert two.comparisons[0].correlation is None and len(two.sentences) >= 4
  strangers = _only(_study([], _scores()))
  assert strangers.comparisons[0].best == 1.0 and strangers.loss is None


def test_odd_results_do_not_break_the_answer():
  tuned = _scores(items=20)
  tuned[0] = dataclasses.replace(tuned[0], keys=np.array([f"q{i}" for i in range(20)]))  # no match
  tuned[1] = dataclasses.replace(tuned[1], after={})
  tuned[2] = dataclasses.replace(tuned[2], after={"acc": {"value": None, "se": None, "n": 0}})
  tuned += _scores({0.1: 0.5}, seeds=(0,), task="boolq", title="BoolQ")
  made = _only(_study(_members(), tuned))
  assert made.comparisons
  blank = [dataclasses.replace(f, scores={"after": {"acc": np.full(20, np.nan, np.float32)}})
           for f in _scores(items=20)]
  assert _only(_study(_members(), blank)).comparisons


# Points of the fine-tuning's sweep are told apart by their fields.


def _runs(accuracy, finetune_seeds, deviation=0.0, **kwargs):
  """One fine-tuning for each seed of it, each with its own luck."""
  rng = np.random.default_rng(kwargs.pop("luck", 5))
  made = []
  for number in finetune_seeds:
    lucky = {d: p + deviation * rng.standard_normal() for d, p in accuracy.items()}
    made += [dataclasses.replace(f, finetune_seed=number, rate=f"seed{number}")
             for f in _scores(lucky, **kwargs)]
  return made


def test_seeds_of_the_fine_tuning_are_replicates_and_do_not_compete():
  tuned = _runs(ACCURACY, (42, 8107, 5701), 0.05)
  made = _only(_study(_members(), tuned))
  assert [c.rate for c in made.comparisons] == [""] and made.comparisons[0].runs == 3
  mean = np.mean([f.after["acc"]["value"] for f in tuned if f.weight_decay == 1.0])
  assert made.comparisons[0].at(1.0).value == pytest.approx(mean)
  assert made.comparisons[0].at(1.0).seeds == 3
  assert "best rate" not in " ".join(made.sentences) and not made.comparisons[0].rates
  assert any("All fine-tuning was at one learning rate, 0.001" in c for c in made.cautions)


def test_points_of_one_learning_rate_are_replicates_also_where_no_seed_is_stored():
  tuned = [dataclasses.replace(f, finetune_seed=None) for f in _runs(ACCURACY, (42, 8107))]
  made = _only(_study(_members(), tuned))
  assert [c.rate for c in made.comparisons] == [""] and made.comparisons[0].runs == 2


def test_other_fields_are_settings_of_their_own():
  plain, longer = _scores(ACCURACY), _scores({d: 0.9 - 0.1 * d for d in ACCURACY}, seed=3)
  longer = [dataclasses.replace(f, setting="epochs=9", rate="epochs9") for f in longer]
  made = answer.answers(_study(_members(), plain + longer))
  assert [a.setting for a in made] == ["", "epochs=9"]
  assert [[c.rate for c in a.comparisons] for a in made] == [[""], [""]]
  assert (made[0].comparisons[0].best, made[1].comparisons[0].best) == (1.0, 0.0)
  assert made[1].name == "fine-tuned with epochs=9"


def test_one_pretraining_seed_with_several_of_the_fine_tuning_gives_no_instruction():
  made = _only(_study(_members((0,)), _runs(ACCURACY, (1, 2, 3), seeds=(0,))))
  c = made.comparisons[0]
  assert not c.has_seeds and c.runs == 3 and {e.seeds for e in c.estimates} == {1}
  assert all(e.best is None for e in c.estimates) and len(c.ties) == 4
  assert sorted(m[:2] for m in c.members) == [(d, 0) for d in sorted(ACCURACY)]
  assert made.sentences[0].startswith("No weight decay can be called the best")
  assert "other test problems and fine-tuning seeds, not for other pretraining" in made.sentences[1]


def test_one_seed_gives_no_instruction_however_many_problems():
  made = _only(_study(_members((0,)), _scores(seeds=(0,), items=3000)))
  assert made.sentences[0].startswith("No weight decay can be called the best after fine-tuning, "
                                      "because there is one pretraining seed")
  text = " ".join(made.sentences)
  assert "Pretrain with" not in text and "probability" not in text
  assert "all others are worse" not in text and "more than the error" not in text
  assert all(e.best is None for e in made.comparisons[0].estimates)


# What is in the number that answers, and what is not.


def test_the_best_is_told_to_be_the_largest_with_an_interval_that_allows_for_it():
  made = _only(_study(_members(), _scores(dict.fromkeys(ACCURACY, 0.8))))
  c = made.comparisons[0]
  assert c.best_interval.low < c.at(c.best).low and c.best_interval.value == c.at(c.best).value
  assert "the largest of 5 and so on the high side" in made.sentences[1]
  assert f"{100 * c.best_interval.low:.1f} to {100 * c.best_interval.high:.1f}" in made.sentences[1]


def test_a_task_with_one_rate_is_in_the_average_and_named():
  rates = [f for r in (1e-3, 1e-2) for t, title in (("sst2", "SST-2"), ("ag_news", "AG News"))
           for f in _scores(rate=f"lr{r:g}", learning_rate=r, task=t, title=title)]
  made = _only(_study(_members(), rates + _scores(task="boolq", title="BoolQ", split="validation",
                                                  rate="lr0.001")))
  first = made.comparisons[0]
  assert (first.title, first.rate) == ("average of 3 tasks", "best")
  assert ("boolq", "validation") in first.tasks
  assert "BoolQ (300 problems of validation)" in made.sentences[1]
  assert any("BoolQ was fine-tuned at one learning rate only" in c for c in made.cautions)


def test_splits_of_a_task_count_by_their_problems():
  a = _scores({d: 0.9 for d in ACCURACY}, items=400, task="metamathqa", title="MetaMathQA",
              split="gsm8k_platinum")
  b = _scores({d: 0.6 for d in ACCURACY}, items=100, task="metamathqa", title="MetaMathQA",
              split="math_level1", seed=7)
  made = _only(_study(_members(), a + b))
  pooled = made.comparisons[0]
  assert pooled.title == "MetaMathQA" and len(pooled.tasks) == 2
  assert [c.title for c in made.comparisons[1:]] == ["MetaMathQA, gsm8k_platinum",
                                                     "MetaMathQA, math_level1"]
  of = [np.mean([f.after["acc"]["value"] for f in fs if f.weight_decay == 1.0]) for fs in (a, b)]
  assert pooled.at(1.0).value == pytest.approx((400 * of[0] + 100 * of[1]) / 500)
  assert "500 problems of gsm8k_platinum and math_level1" in made.sentences[1]


def test_a_validation_split_beside_a_test_is_said_not_to_count():
  made = _only(_study(_members(), _scores() + _scores(split="validation", seed=9)))
  assert made.comparisons[0].tasks == [("sst2", "test")]
  assert any("SST-2, validation is shown but does not count" in c for c in made.cautions)


def test_the_average_has_one_set_of_decays_and_names_what_is_out():
  a = _scores({0.0: 0.7, 0.1: 0.8})
  b = _scores({0.1: 0.8, 1.0: 0.9}, task="ag_news", title="AG News")
  made = _only(_study(_members(), a + b))
  assert not any(c.title.startswith("average") for c in made.comparisons)
  text = " ".join(made.cautions)
  assert ("AG News is not in the answer, because it has results of weight decay 0.1 and 1 alone"
          in text)
  assert "Weight decay 1 is not in the answer" in text
  c = _scores({0.0: 0.8, 0.1: 0.8, 0.3: 0.8}, task="boolq", title="BoolQ")
  d = _scores({0.0: 0.7, 0.1: 0.8, 1.0: 0.8})
  made = _only(_study(_members(), c + d))
  first = made.comparisons[0]
  assert first.title == "average of 2 tasks" and [e.weight_decay for e in first.estimates] == [
      0.0, 0.1]
  assert any("Weight decay 0.3 and 1 is not in the answer" in c for c in made.cautions)


def _with_base(finetuned, p, seed=11):
  """The same with the base model's scores: guesses, solved with probability p."""
  rng = np.random.default_rng(seed)
  made = []
  for f in finetuned:
    base = (rng.random(len(f.keys)) < p).astype(np.float32)
    before = {f.measure: {"value": float(base.mean()), "se": 0.02, "n": len(base)}}
    made.append(dataclasses.replace(f, before=before, chance=p,
                                    scores=f.scores | {"before": {f.measure: base}}))
  return made


def test_tasks_that_are_not_learnt_are_named_and_stay_out():
  good = _with_base(_scores(task="ag_news", title="AG News"), 0.25)
  other = _with_base(_scores(task="boolq", title="BoolQ", seed=4), 0.25)
  guesses = _with_base(_scores(dict.fromkeys(ACCURACY, 0.5), task="arc_easy", title="ARC-Easy",
                               seed=12), 0.25)  # two coins: solved with probability 0.25
  made = _only(_study(_members(), good + other + guesses))
  assert made.comparisons[0].title == "average of 2 tasks"
  assert {t for t, _ in made.comparisons[0].tasks} == {"ag_news", "boolq"}
  assert any(c.startswith("Not learnt, and left out of the answer: ARC-Easy;")
             for c in made.cautions)
  made = _only(_study(_members(), [*guesses, *good]))
  assert made.comparisons[0].title == "AG News" and "AG News" in made.sentences[1]
  made = _only(_study(_members(), guesses))
  assert "because nothing was learnt" in made.sentences[0] and made.comparisons
  assert "Pretrain with" not in " ".join(made.sentences)


def test_problems_of_one_key_all_count():
  keys = [f"p{i % 150}" for i in range(300)]
  made = _only(_study(_members(), _scores(keys=keys)))
  assert made.comparisons[0].at(1.0).items == 300
  plain = _only(_study(_members(), _scores()))
  assert made.comparisons[0].at(1.0).value == pytest.approx(plain.comparisons[0].at(1.0).value)


def test_problems_that_not_all_members_have_are_counted():
  tuned = _scores()
  tuned[0] = dataclasses.replace(
      tuned[0], keys=np.array([f"p{i}" if i < 200 else f"q{i}" for i in range(300)]))
  made = _only(_study(_members(), tuned))
  assert made.comparisons[0].at(1.0).items == 200
  assert any("Only 200 of 300 problems of SST-2" in c for c in made.cautions)


def test_a_lucky_run_is_not_rewarded():
  """All decays and rates alike, the runs of decay 0 noisy: its mean is not above the others'."""
  gains = []
  for seed in range(40):
    rng = np.random.default_rng([31, seed])
    tuned = []
    for r in (1e-3, 3e-3, 1e-2, 3e-2):
      for d in (0.0, 0.1, 1.0):
        for s in (0, 1):
          p = 0.6 + (0.06 if d == 0 else 0.02) * rng.standard_normal()
          tuned.append(_finetuned(d, s, rng.random(200) < p, rate=f"lr{r:g}", learning_rate=r))
    group, = scores.groups(_study((), tuned))
    mean_D = scores.tasks(group)[0].by_rate["best"].scores_DxSxI.mean((1, 2))
    gains.append(mean_D[0] - (mean_D[1] + mean_D[2]) / 2)
  # Chosen on the problems alone it is 0.035 on average.
  assert abs(np.mean(gains)) < 3 * np.std(gains) / 40**0.5 < 0.03


def test_rates_of_one_run_are_said_to_be_uncorrected():
  tuned = [f for r in (1e-3, 1e-2) for f in _scores(seeds=(0,), rate=f"lr{r:g}", learning_rate=r)]
  made = _only(_study(_members((0,)), tuned))
  assert any("cannot be corrected for luck" in c for c in made.cautions)
  two = [f for r in (1e-3, 1e-2) for f in _scores(rate=f"lr{r:g}", learning_rate=r)]
  assert not any("cannot be corrected" in c for c in _only(_study(_members(), two)).cautions)


def test_chance_is_that_of_guessing_or_of_the_most_frequent_class():
  def problems(options, golds):
    return [Problem(f"p{i}", "", "", options=o, gold=g) for i, (o, g) in enumerate(
        zip(options, golds, strict=True))]
  assert chance(problems([("no", "yes")] * 4, (0, 1, 1, 1))) == 0.75
  assert chance(problems([("a", "b"), ("c", "d", "e", "f")], (0, 0))) == 0.375
  assert chance(problems([(), ()], (-1, -1))) is None
