"""How well stacked members do on the problems of one split: options, responses, samples."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from wd_plasticity.errors import UserError
from wd_plasticity.finetuning import scoring
from wd_plasticity.finetuning.examples import Template
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.limits import choose
from wd_plasticity.tasks import grading, sample_metrics
from wd_plasticity.tasks.task import Problem, Task

GENERATE = ("auto", "always", "never")
_LEAST_ROOM = 16  # tokens that a response can always have


def check(evaluate: ConfigDict) -> None:
  """Refuses an impossible `evaluate` section.

  Raises:
    UserError: with the field and what it can be.
  """
  choose("evaluate.generate", evaluate.generate, GENERATE)
  for field in ("samples", "max_new_tokens", "observations", "observed_problems",
                "forgetting_sequences"):
    if evaluate[field] < 0:
      raise UserError(f"evaluate.{field}={evaluate[field]} must be 0 or more.")
  if isinstance(evaluate.stop, str) or not all(
      isinstance(stop, str) and stop.strip() for stop in evaluate.stop):
    raise UserError(f"evaluate.stop={evaluate.stop!r} must be a tuple of texts, such as "
                    r"('\nQuestion:',), or () for those of the template.")
  sampling(evaluate, 1, samples=max(1, evaluate.samples))  # raises


def sampling(evaluate: ConfigDict, max_new_tokens: int, samples: int = 0) -> Sampling:
  """How to decode: greedy, or that many samples."""
  return Sampling(
      max_new_tokens=max_new_tokens, temperature=evaluate.temperature if samples else 0.0,
      top_p=evaluate.top_p if samples else 1.0, repetition_penalty=evaluate.repetition_penalty,
      num_samples=max(1, samples))


def _after(on_done: Callable[[int], None] | None, before: int, each: int = 1):
  """A callback that counts on from `before`, `each` per unit."""
  return on_done and (lambda n: on_done(before + n * each))


class SplitEvaluation:
  """The problems of one split as token ids, ready to evaluate members on.

  Args:
    task: whose problems they are.
    problems: of one split.
    template: of conversations.
    evaluate: the `evaluate` section.
    max_length: tokens that the model reads at most.

  Attributes:
    cost: sequences that an evaluation reads, an estimate for the progress.
    prompts_cut: how many prompts lost their beginning.
    too_long: how many are longer than `max_length` all the same, with their longest response,
      of which nothing is cut.
  """

  def __init__(self, task: Task, problems: Sequence[Problem], template: Template,
               evaluate: ConfigDict, max_length: int):
    self.task, self.problems, self._template = task, problems, template
    self._evaluate, self._max_length = evaluate, max_length
    self._options = [template.responses(p.options) for p in problems]
    # What fine-tuning would learn; a test split may tell it only through its options.
    responses = [p.response or (p.options[p.gold] if p.gold >= 0 and p.options else "")
                 for p in problems]
    self._responses = [[r] if text else []
                       for r, text in zip(template.responses(responses), responses, strict=True)]
    # What a prompt loses depends on its own responses, not on those of other problems.
    longest = [max([1, *map(len, a), *map(len, b)])
               for a, b in zip(self._options, self._responses, strict=True)]
    self._prompts, self.prompts_cut = template.prompts(
        [p.prompt for p in problems], room=[min(n, max_length // 2) for n in longest])
    self.too_long = sum(len(p) + n - 1 > max_length
                        for p, n in zip(self._prompts, longest, strict=True))
    self._option_requests = scoring.requests(self._prompts, self._options)
    self._response_requests = scoring.requests(self._prompts, self._responses)
    self.generates = evaluate.generate == "always" or (
        evaluate.generate == "auto" and task.generated)
    if self.generates:
      self._plan_generation()
    self._likelihood_cost = len(self._option_requests) + len(self._response_requests)
    samples = (1 + evaluate.samples) if self.generates else 0
    self.cost = self._likelihood_cost + samples * len(problems)

  def _plan_generation(self):
    if self.task.grading == "none" or not any(p.answer for p in self.problems):
      raise UserError(
          f"none of the {len(self.problems)} problems of task {self.task.name} in this split has "
          "an answer that generated text could be compared with; set "
          "--config.evaluate.generate=never, or give files that have answers.")
    prompts, cut = self._template.prompts(
        [p.prompt for p in self.problems],
        room=min(self._evaluate.max_new_tokens or self._max_length, self._max_length // 2))
    self._read, self.prompts_cut = prompts, max(self.prompts_cut, cut)
    # Together a prompt and its response are at most as long as the model reads.
    self._room = [max(_LEAST_ROOM, self._max_length - len(p)) for p in prompts]
    self.max_new_tokens = min(self._evaluate.max_new_tokens or self._max_length, max(self._room))

  def likelihoods(self, params_M, scorer: scoring.Scorer,
                  on_done: Callable[[int], None] | None = None) -> list[list[dict]]:
    """Per member and problem: log-likelihoods of the options and of the right response."""
    numbers, before = [], 0
    for wanted, texts in ((self._option_requests, self._options),
                          (self._response_requests, self._responses)):
      numbers.append(scorer.score(params_M, wanted, sum(map(len, texts)), _after(on_done, before)))
      before += len(wanted)
    options_M, responses_M = numbers
    return [self._likelihood_records(o, r) for o, r in zip(options_M, responses_M, strict=True)]

  def _likelihood_records(self, options, responses) -> list[dict]:
    records, o, r = [], 0, 0
    for problem, ids, right in zip(self.problems, self._options, self._responses, strict=True):
      record = {"key": problem.key, "gold": problem.gold}
      if ids:
        record |= {"option_logprobs": options[o:o + len(ids)].tolist(),
                   "option_tokens": [len(i) for i in ids],
                   "option_bytes": [len(t.encode("utf-8")) for t in problem.options]}
      if right:
        record |= {"response_logprob": float(responses[r]), "response_tokens": len(right[0])}
      o, r = o + len(ids), r + len(right)
      records.append(record)
    return records

  def generations(self, params_M, generator_of: Callable[[Sampling], Any], seed: int, reward,
                  num_members: int, on_done: Callable[[int], None] | None = None,
                  ) -> list[list[dict]]:
    """Per member and problem: the greedy response and the samples, graded.

    Args:
      params_M: stacked parameters.
      generator_of: a `generation.generate.Generator` for a way of decoding.
      seed: of the samples.
      reward: a `reward.model.RewardModel`, or None.
      num_members: that are wanted of those stacked.
      on_done: told how much of `cost` is done.
    """
    before, count = self._likelihood_cost, len(self.problems)
    records = [[{} for _ in self.problems] for _ in range(num_members)]
    greedy = generator_of(sampling(self._evaluate, self.max_new_tokens)).generate(
        params_M, self._read, seed, _after(on_done, before))
    for m, i, texts in self._texts(greedy, num_members):
      records[m][i]["greedy"] = texts[0]
    for record, (graded,) in self._graded(records, lambda r: [r["greedy"]]):
      record |= {"greedy_answer": graded.answer, "greedy_correct": graded.correct}
    if not self._evaluate.samples:
      return records
    drawn = generator_of(sampling(
        self._evaluate, self.max_new_tokens, self._evaluate.samples)).generate(
            params_M, self._read, seed,
            _after(on_done, before + count, self._evaluate.samples))
    pairs = []
    for m, i, texts in self._texts(drawn, num_members):
      problem = self.problems[i]
      records[m][i] |= {"samples": texts,
                        "answers": [grading.vote(self.task, text, problem) for text in texts]}
      pairs += [(problem.prompt, text) for text in texts]
    for record, graded in self._graded(records, lambda r: r["samples"]):
      # Without an answer to compare with there is nothing to count.
      correct = [g.correct for g in graded]
      record["correct"] = None if None in correct else correct
    if reward is not None:
      scores = iter(np.split(reward.score(pairs), num_members * len(self.problems)))
      for member in records:
        for record in member:
          record["scores"] = next(scores).tolist()
    return records

  def _graded(self, records, texts_of: Callable[[dict], Sequence[str]]):
    """Every record of every member with its graded texts."""
    rows = [(record, problem) for member in records
            for record, problem in zip(member, self.problems, strict=True)]
    graded = iter(grading.grade_all(
        self.task, [(problem, text) for record, problem in rows for text in texts_of(record)]))
    for record, _ in rows:
      yield record, list(itertools.islice(graded, len(texts_of(record))))

  def _texts(self, generated, num_members: int):
    """(member, problem, texts of its samples), cut where the model's length or a stop ends it."""
    stops = tuple(self._evaluate.stop) or self._template.stops
    for m in range(num_members):
      for i in range(len(self.problems)):
        ids = [generated.continuation(m, i, s)[:self._room[i]]
               for s in range(generated.lengths_MxPxS.shape[2])]
        yield m, i, [grading.truncate_at_stop(self._template.decode(x), stops).strip()
                     for x in ids]

  def scores(self, records: Sequence[dict]) -> dict[str, np.ndarray]:
    """The scores [problems] of one member by name, NaN for problems that do not count."""
    same = lambda a, b: grading.same_answer(self.task, a, b)
    made = {**sample_metrics.option_scores(records), **sample_metrics.sample_scores(records, same)}
    if any("response_logprob" in r for r in records):
      made["response_loss"] = np.array([
          -r["response_logprob"] / r["response_tokens"] if "response_logprob" in r else np.nan
          for r in records])
    return made

  def metrics(self, records: Sequence[dict]) -> dict[str, Any]:
    """The figures of one member from its records, each with standard error and n."""
    ungraded = sum(not p.answer for p in self.problems) if self.generates else 0
    return {"problems": len(self.problems), "prompts_cut": self.prompts_cut,
            "too_long": self.too_long, **({"problems_ungraded": ungraded} if ungraded else {}),
            "chance": chance(self.problems), **sample_metrics.means(self.scores(records))}


def chance(problems: Sequence[Problem]) -> float | None:
  """Share of the problems that is solved without reading them; None where there are no options.

  By guessing among each problem's options, or, where all problems have the same, by always naming
  the one that is right most often.
  """
  known = [p for p in problems if p.options and p.gold >= 0]
  if not known or len(known) < len(problems):
    return None
  guessed = float(np.mean([1 / len(p.options) for p in known]))
  if len({tuple(p.options) for p in known}) > 1:
    return guessed
  return max(guessed, float(np.bincount([p.gold for p in known]).max() / len(known)))
