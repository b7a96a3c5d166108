"""Fine-tunes stored checkpoints on tasks and says what became of them.

  python -m wd_plasticity.evals.finetune --checkpoint=runs/35m --config=configs/finetune.py \
      --config.tasks="('embedded_topic',)" --workdir=runs/35m

For every checkpoint, task and point of the config's sweep: the base model before, the
curve during, the model after, and what was forgotten of the pretraining.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from wd_plasticity.config import as_json
from wd_plasticity.data.loader import BatchSource, spaced
from wd_plasticity.evals import finetune_plan, finetune_summary, program, record_losses
from wd_plasticity.evals.finetune_plan import Plan, Work, item_name, settings_of
from wd_plasticity.evals.program import Session
from wd_plasticity.evals.targets import Target
from wd_plasticity.finetuning import tuner
from wd_plasticity.finetuning.scoring import Scorer
from wd_plasticity.finetuning.step import TuneProgram
from wd_plasticity.generation.generate import Generator
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.training import distributed


def main(session: Session) -> None:
  """Evaluates what is not done yet, then prints and draws everything asked for."""
  work = finetune_plan.waiting(session, finetune_plan.load_splits(session))
  if work:
    Tuning(session).run(work)
  if distributed.is_first():
    finetune_summary.write(session)


class Tuning:
  """Runs work, with programs that are compiled once."""

  def __init__(self, session: Session):
    self.session = session
    self._programs: dict[Any, Any] = {}
    self._base: dict[Any, Any] = {}  # figures of the base models, by what decides them

  def run(self, work: Sequence[Work]) -> None:
    # Points of one group and task follow one another: they share the base model's figures.
    tasks = list(self.session.config.tasks)
    place = {t.name: i for i, t in enumerate(self.session.targets)}
    plans = sorted(finetune_plan.plans(self.session, work), key=lambda p: (
        tasks.index(p.work.task), [place[t.name] for t in p.work.group]))
    for plan in plans:
      if any(e.generates for e in plan.evaluations.values()):
        self._reward(plan.config)  # raises now if it cannot be read, not after hours
    total = sum(p.cost * len(p.work.group) for p in plans)
    with self.session.progress(total, "sequences") as progress:
      done = 0

      def one(group, plan):
        nonlocal done
        plan, begin = plan.of(list(group)), done
        progress.skip(done)
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        progress.print(f"{item_name(plan.work.task, plan.work.point)}: {group[0].name}{more}")
        if plan.examples_cut:
          progress.print(f"note: {plan.examples_cut:,} of {len(plan.examples):,} training examples "
                         "are longer than is read, and were cut.")
        self._one(plan, lambda n, **fields: progress.update(
            begin + min(n, plan.cost) * len(group), **fields))
        done += plan.cost * len(group)

      self.session.evaluate([(p.work.group, p) for p in plans], one)
      progress.skip(total)

  def _one(self, plan: Plan, update) -> None:
    session, work, config = self.session, plan.work, plan.config
    num = session.num_members(work.group)
    params_M = session.load(work.group)
    before = self._before(plan, params_M, update)
    begin = plan.evaluation_cost
    program = self._tune_program(plan, num)
    tuned = tuner.tune(
        program, params_M, plan.examples, batch_size=config.batch_size,
        epochs=config.epochs, seeds=[config.seed] * num,
        learning_rates=[config.optim.learning_rate] * num,
        weight_decays=[plan.decays] * num, replay=self._replay(plan, num, program.row_shares),
        observe=lambda p: self._observe(plan, p), observations=config.evaluate.observations,
        on_step=lambda step, loss: update(begin + 3 * step * config.batch_size, loss=loss))
    begin += plan.training_cost
    after = self._evaluate(plan, tuned.params, lambda n: update(begin + n))
    for m, target in enumerate(work.group):
      session.results.write(
          target, item_name(work.task, work.point),
          settings_of(session, work.point, work.task, work.splits),
          _values(plan, m, before, tuned, after), records=_records(plan, m, before, after),
          arrays=_scores(plan, m, before, after))

  # Evaluations.

  def _before(self, plan, params_M, update):
    """The base model's evaluation, once for all points that evaluate alike."""
    config = plan.config
    problems = [plan.work.splits[split].fingerprint for split in plan.evaluations]
    drawn = any(e.generates for e in plan.evaluations.values())  # else the seed decides nothing
    key = json.dumps([
        plan.work.task, problems, [t.name for t in plan.work.group], config.template,
        config.max_length, drawn and config.seed, as_json(config.evaluate), config.reward_model])
    if key not in self._base:
      self._base = {key: self._evaluate(plan, params_M, update)}  # of one group at a time
    return self._base[key]

  def _evaluate(self, plan, params_M, update) -> dict[str, Any]:
    """Records per split and member, and the losses of pretraining records."""
    session, config, group = self.session, plan.config, plan.work.group
    num, size, model = len(group), session.num_members(group), group[0].model
    done = 0
    count = lambda n: update(done + n)
    made: dict[str, Any] = {"splits": {}}
    for split, evaluation in plan.evaluations.items():
      records = evaluation.likelihoods(params_M, self._scorer(model, size), count)[:num]
      if evaluation.generates:
        generated = evaluation.generations(
            params_M, lambda s: self._generator(model, size, s, group[0]), config.seed,
            self._reward(config), num, count)
        records = [[a | b for a, b in zip(x, y, strict=True)]
                   for x, y in zip(records, generated, strict=True)]
      done += evaluation.cost
      made["splits"][split] = records
    made["forgetting"] = self._record_losses(plan, params_M)
    return made

  def _observe(self, plan, params_M) -> dict[str, Any]:
    """Option accuracy and response loss of every member on some problems, on the way."""
    group = plan.work.group
    scorer = self._scorer(group[0].model, self.session.num_members(group))
    return {split: [e.metrics(r) for r in e.likelihoods(params_M, scorer)[:len(group)]]
            for split, e in plan.observed.items()}

  def _record_losses(self, plan, params_M) -> np.ndarray | None:
    """Mean loss [M, n] of each of the validation records of the pretraining."""
    wanted = plan.config.evaluate.forgetting_sequences
    if not wanted:
      return None
    session, group = self.session, plan.work.group
    prepared = session.pretraining_data(group[0])
    records = prepared.records["validation"]
    indices = spaced(len(records), wanted)  # those of the evaluations in pretraining
    n = len(indices)
    rows = session.rows(min(32, n))
    compiled = group[0].model, session.num_members(group), prepared.tokenizer.eos_id
    run = self._cached(("losses", *compiled),
                       lambda: record_losses.compile_losses(session, *compiled))
    means = [losses.mean(axis=2) for _, losses in record_losses.batches(
        session, lambda tokens: run(params_M, tokens), records, indices, rows)]
    return np.concatenate(means, axis=1)[:, :n].astype(np.float64)

  def _replay(self, plan, num, shares):
    count = plan.options.replay_rows
    if not count:
      return None
    # Filled up with copies, which have no weight, to a number that can be divided.
    rows = np.arange(-(-count // shares) * shares) % count
    prepared = self.session.pretraining_data(plan.work.group[0])
    return BatchSource(prepared.training_records, [plan.config.seed] * num, count, rows)

  # Compiled programs.

  def _cached(self, key, make):
    if key not in self._programs:
      self._programs[key] = make()
    return self._programs[key]

  def _scorer(self, model: ModelConfig, size: int) -> Scorer:
    parts = self.session.parts
    return self._cached(("score", model, size, parts),
                        lambda: Scorer(model, self.session.mesh, size, parts))

  def _generator(self, model: ModelConfig, size: int, sampling, target: Target) -> Generator:
    eos_id, num_tokens = target.tokenizer.eos_id, target.tokenizer.vocab_size
    return self._cached(
        ("generate", model, size, sampling, eos_id, num_tokens, self.session.parts),
        lambda: Generator(model, self.session.mesh, size, sampling, eos_id, num_tokens=num_tokens,
                          parts=self.session.parts))

  def _tune_program(self, plan, size: int) -> TuneProgram:
    model = plan.work.group[0].trained_model
    options = dataclasses.replace(
        plan.options, micro_batches=plan.micro_batches(self.session, size))
    key = ("tune", model, size, options, *plan.compiled)
    return self._cached(key, lambda: TuneProgram(
        model, plan.optimizer, options, self.session.mesh, size))

  def _reward(self, config):
    if not config.reward_model:
      return None
    from wd_plasticity.reward.model import load_reward_model
    model = self._cached(("reward", config.reward_model),
                         lambda: load_reward_model(config.reward_model, self.session.mesh))
    model.parts = self.session.parts
    return model


def _values(plan: Plan, m: int, before: dict, tuned: tuner.Tuned, after: dict) -> dict[str, Any]:
  """What is written of member m."""
  metrics = {
      name: {split: e.metrics(made["splits"][split][m]) | {
          "in_training": plan.in_training[split], "class_options": plan.class_options}
             for split, e in plan.evaluations.items()}
      for name, made in (("before", before), ("after", after))}
  return {
      "task": plan.work.task,
      "training": {
          "examples": len(plan.examples), "examples_cut": plan.examples_cut,
          "steps": plan.num_steps, "epochs": plan.config.epochs, "seed": plan.config.seed,
          "replayed_per_step": plan.options.replay_rows,
          "response_tokens": sum(len(e.tokens) - e.prompt_length for e in plan.examples)},
      **metrics,
      "curve": [{"step": c["step"], "loss": c["loss"][m], "learning_rate": c["learning_rate"][m]}
                for c in tuned.curve],
      "observed": [{"step": step, "splits": {s: made[s][m] for s in made}}
                   for step, made in sorted(tuned.observed.items())],
      "forgetting": _forgetting(before["forgetting"], after["forgetting"], m),
      "failed_at": None if tuned.failed_at[m] < 0 else int(tuned.failed_at[m])}


def _forgetting(before, after, m: int) -> dict[str, Any] | None:
  """Validation loss of the pretraining after minus before, paired by record."""
  if before is None:
    return None
  change = after[m] - before[m]
  n = len(change)
  return {"before": float(before[m].mean()), "after": float(after[m].mean()),
          "value": float(change.mean()),
          "se": float(change.std(ddof=1) / np.sqrt(n)) if n > 1 else None, "n": n}


def _scores(plan: Plan, m: int, before: dict, after: dict) -> dict[str, np.ndarray]:
  """'<split>/keys' [n] of the problems, and their '<split>/<stage>/<measure>' [n]."""
  arrays = {}
  for split, evaluation in plan.evaluations.items():
    arrays[f"{split}/keys"] = np.array([p.key for p in evaluation.problems], np.str_)
    for stage, made in (("before", before), ("after", after)):
      for measure, scores in evaluation.scores(made["splits"][split][m]).items():
        arrays[f"{split}/{stage}/{measure}"] = scores.astype(np.float32)
  return arrays


def _records(plan: Plan, m: int, before: dict, after: dict) -> list[dict]:
  """One line per problem and stage."""
  return [{"split": split, "stage": stage, **record}
          for stage, made in (("before", before), ("after", after))
          for split in plan.evaluations for record in made["splits"][split][m]]


if __name__ == "__main__":
  program.run("finetune", main)
