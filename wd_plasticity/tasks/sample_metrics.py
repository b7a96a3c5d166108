"""Metrics over several samples per problem, and over log-likelihoods of options.

A record of a generated problem has
    greedy_correct   bool, of the greedy sample (optional)
    correct          [k] bool, of the k samples drawn (optional)
    answers          [k] answers they vote for (`grading.vote`), None when unread
    scores           [k] scores of a reward model, or None
and one of a problem with options
    option_logprobs  [options] summed log-likelihoods, natural logarithm
    option_tokens, option_bytes   [options] their lengths
    gold             index of the right option

Every metric is {value, se, n}: a mean over n problems and its standard error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wd_plasticity.analysis import statistics

Metric = dict[str, Any]


def sample_metrics(records: Sequence[dict],
                   same: Callable[[str | None, str | None], bool]) -> dict[str, Metric]:
  """The metrics of the study, as far as the records allow them.

  Args:
    records: one per problem, all with the same number k of samples.
    same: whether two answers are the same (`grading.same_answer` of the task).

  Returns:
    greedy_pass@1: the greedy sample is right.
    pass@k: any of k samples is right.
    maj@k: the sample that most others agree with is right.
    correct_ratio@k: the part of the k samples that is right, over the problems with at
      least one.
    rm@k: the sample with the highest score is right.
    orm_score: the mean score, over samples and then problems.

  Raises:
    ValueError: numbers of samples, answers and scores that differ.
  """
  metrics = {}
  greedy = [r["greedy_correct"] for r in records if r.get("greedy_correct") is not None]
  if greedy:
    metrics["greedy_pass@1"] = _mean(greedy)
  sampled = [r for r in records if r.get("correct")]
  if not sampled:
    return metrics
  k = len(sampled[0]["correct"])
  for r in sampled:
    if {len(r["correct"]), len(r["answers"]), len(r.get("scores") or r["correct"])} != {k}:
      raise ValueError(f"a record has not {k} samples with an answer (and a score) each.")
  metrics[f"pass@{k}"] = _mean([any(r["correct"]) for r in sampled])
  metrics[f"maj@{k}"] = _mean([r["correct"][majority(r["answers"], same)] for r in sampled])
  metrics[f"correct_ratio@{k}"] = _mean(
      [np.mean(r["correct"]) for r in sampled if any(r["correct"])])
  if all(r.get("scores") for r in sampled):
    metrics[f"rm@{k}"] = _mean([r["correct"][int(np.argmax(r["scores"]))] for r in sampled])
    metrics["orm_score"] = _mean([np.mean(r["scores"]) for r in sampled])
  return metrics


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


def option_metrics(records: Sequence[dict]) -> dict[str, Metric]:
  """Accuracy of choosing the likeliest option.

  Returns:
    acc: by summed log-likelihood; acc_per_byte: divided by the bytes of the option, which
    is lm-eval's acc_norm; acc_per_token: divided by its tokens.
  """
  scored = [r for r in records if r.get("option_logprobs")]
  if not scored:
    return {}
  return {
      "acc": _mean([_chosen(r, None) == r["gold"] for r in scored]),
      "acc_per_byte": _mean([_chosen(r, "option_bytes") == r["gold"] for r in scored]),
      "acc_per_token": _mean([_chosen(r, "option_tokens") == r["gold"] for r in scored]),
  }


def _chosen(record: dict, lengths: str | None) -> int:
  scores = np.asarray(record["option_logprobs"], np.float64)
  if lengths:
    scores = scores / np.maximum(np.asarray(record[lengths], np.float64), 1.0)
  return int(np.argmax(scores))


def _mean(values: Sequence[float]) -> Metric:
  result = statistics.mean_with_error(np.asarray(values, np.float64))
  return {"value": result["mean"], "se": result["se"], "n": result["n"]}
