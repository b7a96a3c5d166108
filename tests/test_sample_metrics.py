"""Metrics over samples against numbers computed by hand and by brute force."""

import collections
import math
import random

import pytest

from wd_plasticity.tasks import sample_metrics


def _same(a, b):
  return a is not None and b is not None and float(a) == float(b)


def _record(correct, answers, scores=None, greedy=False):
  return {"greedy_correct": greedy, "correct": correct, "answers": answers, "scores": scores}


RECORDS = [
    # Two votes for 7 (wrong), two for 1 (right): the first cluster wins the tie.
    _record([False, True, False, True], ["7", "1", "7.0", "1.0"], [0.1, 0.9, 0.2, 0.3], True),
    # Unread answers do not vote together: the pair of right ones wins.
    _record([False, False, True, True], [None, None, "3", "3"], [5.0, 1.0, 2.0, 3.0]),
    # Nothing right: not part of the correct ratio.
    _record([False] * 4, [None, "2", None, "4"], [-1.0, 0.0, 1.0, 2.0]),
]


def test_by_hand():
  got = sample_metrics.sample_metrics(RECORDS, _same)
  values = {name: (pytest.approx(m["value"]), m["n"]) for name, m in got.items()}
  assert values == {
      "greedy_pass@1": (1 / 3, 3), "pass@4": (2 / 3, 3), "maj@4": (1 / 3, 3),
      "correct_ratio@4": (0.5, 2), "rm@4": (1 / 3, 3),
      "orm_score": ((0.375 + 2.75 + 0.5) / 3, 3)}
  assert got["pass@4"]["se"] == pytest.approx(math.sqrt(2 / 9 / 2))
  assert got["correct_ratio@4"]["se"] == 0


def test_without_scores_reward_metrics_are_absent():
  records = [{**r, "scores": None} for r in RECORDS]
  assert set(sample_metrics.sample_metrics(records, _same)) == {
      "greedy_pass@1", "pass@4", "maj@4", "correct_ratio@4"}


def test_greedy_or_samples_alone():
  assert set(sample_metrics.sample_metrics([{"greedy_correct": True}], _same)) == {"greedy_pass@1"}
  only = [{k: r[k] for k in ("correct", "answers")} for r in RECORDS]
  assert "greedy_pass@1" not in sample_metrics.sample_metrics(only, _same)
  none_right = sample_metrics.sample_metrics([RECORDS[2]], _same)["correct_ratio@4"]
  assert none_right == {"value": None, "se": None, "n": 0}
  assert sample_metrics.sample_metrics([], _same) == {}


def test_numbers_of_samples_must_agree():
  with pytest.raises(ValueError, match="4 samples"):
    sample_metrics.sample_metrics([RECORDS[0], _record([True], ["1"])], _same)


def test_majority_by_brute_force():
  rng = random.Random(0)
  for _ in range(300):
    answers = [rng.choice([None, "1", "1.0", "2", "3", "03"]) for _ in range(16)]
    values = [i + 100 if a is None else float(a) for i, a in enumerate(answers)]
    counts = collections.Counter(values)
    want = min(i for i, v in enumerate(values) if counts[v] == max(counts.values()))
    assert sample_metrics.majority(answers, _same) == want


def test_options():
  records = [
      # Summed, the short wrong one is likelier; per byte the right one; per token neither.
      {"option_logprobs": [-4.0, -5.0], "option_tokens": [1, 1], "option_bytes": [2, 10],
       "gold": 1},
      {"option_logprobs": [-3.0, -6.0], "option_tokens": [1, 4], "option_bytes": [8, 9],
       "gold": 0},
  ]
  got = sample_metrics.option_metrics(records)
  assert {k: v["value"] for k, v in got.items()} == {
      "acc": 0.5, "acc_per_byte": 1.0, "acc_per_token": 0.0}
  assert all(v["n"] == 2 for v in got.values())
  assert sample_metrics.option_metrics([{"correct": [True]}]) == {}


@pytest.mark.parametrize("logprobs, gold, right", [
    ([float("nan"), -2.0, -1.0], 2, 1.0), ([None, -2.0, -1.0], 0, 0.0),
    ([float("nan")] * 3, 0, 0.0), ([None, None, None], 0, 0.0),
    ([-float("inf"), -3.0, None], 1, 1.0)])
def test_what_is_not_finite_is_never_the_likeliest_option(logprobs, gold, right):
  record = {"option_logprobs": logprobs, "option_tokens": [1, 2, 3], "option_bytes": [3, 2, 2],
            "gold": gold}
  scores = sample_metrics.option_scores([record])
  assert {name: x.tolist() for name, x in scores.items()} == {
      "acc": [right], "acc_per_byte": [right], "acc_per_token": [right]}


def test_what_is_not_finite_is_never_the_best_sample():
  record = {"correct": [True, False, True], "answers": ["1", "2", "1"], "scores": [None, 0.1, -1.0]}
  scores = sample_metrics.sample_scores([record], lambda a, b: a == b)
  assert scores["rm@3"].tolist() == [0.0]
