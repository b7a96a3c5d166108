"""Metrics over several samples per problem, and over log-likelihoods of options.

A record of a generated problem has
    greedy_correct   bool, of the greedy sample (optional)
    correct          [k] bool, of the k samples drawn (optional)
                     both None where the problem has no answer to compare with
    answers          [k] answers they vote for (`grading.vote`), None when unread
    scores           [k] scores of a reward model, or None
and one of a problem with options
    option_logprobs  [options] summed log-likelihoods, natural logarithm
    option_tokens, option_bytes   [options] their lengths
    gold             index of the right option

Every metric is {value, se, n}: a mean over n problems and its standard error.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wd_plasticity.analysis import statistics

Metric = dict[str, Any]


def sample_scores(records: Sequence[dict],
                  same: Callable[[str | None, str | None], bool]) -> dict[str, np.ndarray]:
  """The scores [n] of problems whose means are the metrics of the study.

  Args:
    records: one per problem, all with the same number k of samples.
    same: whether two answers are the same (`grading.same_answer` of the task).

  Returns:
    As far as the records allow them, with NaN for problems that do not count:
    greedy_pass@1: the greedy sample is right.
    pass@k: any of k samples is right.
    maj@k: the sample that most others agree with is right.
    correct_ratio@k: the part of the k samples that is right, of problems with at least one.
    rm@k: the sample with the highest score is right.
    orm_score: the mean score of the samples.

  Raises:
    ValueError: numbers of samples, answers and scores that differ.
  """
  scores = {}
  if any(r.get("greedy_correct") is not None for r in records):
    scores["greedy_pass@1"] = _of(records, lambda r: r.get("greedy_correct"))
  sampled = [r for r in records if r.get("correct")]
  if not sampled:
    return scores
  k = len(sampled[0]["correct"])
  for r in sampled:
    if {len(r["correct"]), len(r["answers"]), len(r.get("scores") or r["correct"])} != {k}:
      raise ValueError(f"a record has not {k} samples with an answer (and a score) each.")
  def put(name, score):
    scores[name] = _of(records, lambda r: score(r) if r.get("correct") else None)
  put(f"pass@{k}", lambda r: any(r["correct"]))
  put(f"maj@{k}", lambda r: r["correct"][majority(r["answers"], same)])
  put(f"correct_ratio@{k}", lambda r: np.mean(r["correct"]) if any(r["correct"]) else None)
  if all(r.get("scores") for r in sampled):
    put(f"rm@{k}", lambda r: (best := _largest(r["scores"])) >= 0 and r["correct"][best])
    put("orm_score", lambda r: np.mean(np.asarray(r["scores"], np.float64)))
  return scores


def sample_metrics(records: Sequence[dict],
                   same: Callable[[str | None, str | None], bool]) -> dict[str, Metric]:
  """The means of `sample_scores`."""
  return means(sample_scores(records, same))


def means(scores: Mapping[str, np.ndarray]) -> dict[str, Metric]:
  """Mean of each score over the problems that have it, with standard error and n."""
  return {name: _mean(x[~np.isnan(x)]) for name, x in scores.items()}


def majority(answers: Sequence[str | None], same: Callable) -> int:
  """The first sample of the largest cluster of equal answers, the first cluster on ties.

  An answer joins the first cluster whose first answer it equals. One that could not be
  read is a cluster of its own.
  """
  clusters = []
  for i, answer in enumerate(answers):
    for cluster in clusters:
      first = answers[cluster[0]]
      if answer is not None and first is not None and (answer == first or same(answer, first)):
        cluster.append(i)
        break
    else:
      clusters.append([i])
  return max(clusters, key=len)[0]


def option_scores(records: Sequence[dict]) -> dict[str, np.ndarray]:
  """Whether [n] the likeliest option is the right one.

  Returns:
    acc: by summed log-likelihood; acc_per_byte: divided by the bytes of the option, which
    is lm-eval's acc_norm; acc_per_token: divided by its tokens. NaN for problems without
    options; empty when no problem has some.
  """
  if not any(r.get("option_logprobs") for r in records):
    return {}
  lengths = {"acc": None, "acc_per_byte": "option_bytes", "acc_per_token": "option_tokens"}
  return {name: _of(records, lambda r, field=field: _chosen(r, field) == r["gold"]
                    if r.get("option_logprobs") else None) for name, field in lengths.items()}


def option_metrics(records: Sequence[dict]) -> dict[str, Metric]:
  """The means of `option_scores`."""
  return means(option_scores(records))


def _chosen(record: dict, lengths: str | None) -> int:
  scores = np.asarray(record["option_logprobs"], np.float64)
  if lengths:
    scores = scores / np.maximum(np.asarray(record[lengths], np.float64), 1.0)
  return _largest(scores)


def _largest(scores: Sequence[float | None]) -> int:
  """Where the largest finite score is; -1, which is never right, when none is finite."""
  scores = np.asarray(scores, np.float64)  # None, which stands for what is not finite, is NaN
  finite = np.isfinite(scores)
  return int(np.argmax(np.where(finite, scores, -np.inf))) if finite.any() else -1


def _of(records: Sequence[dict], score: Callable[[dict], float | None]) -> np.ndarray:
  return np.array([math.nan if (value := score(r)) is None else value for r in records],
                  np.float64)


def _mean(values: Sequence[float]) -> Metric:
  result = statistics.mean_with_error(np.asarray(values, np.float64))
  return {"value": result["mean"], "se": result["se"], "n": result["n"]}
