"""Fine-tunes stored checkpoints on tasks and says what became of them.

  python -m wd_plasticity.evals.finetune --checkpoint=runs/quickstart \
      --config=configs/quickstart_finetune.py --workdir=runs/quickstart

For every checkpoint, task and point of the config's sweep: the base model before, the
curve during, the model after, and what was forgotten of the pretraining.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from wd_plasticity.config import as_json
from wd_plasticity.data.loader import BatchSource
from wd_plasticity.errors import UserError
from wd_plasticity.evals import finetune_summary, program, record_losses, split_evaluation
from wd_plasticity.evals.program import Session
from wd_plasticity.evals.split_evaluation import SplitEvaluation
from wd_plasticity.evals.targets import Target
from wd_plasticity.finetuning import lora, tuner
from wd_plasticity.finetuning.examples import Template
from wd_plasticity.finetuning.scoring import Scorer
from wd_plasticity.finetuning.step import TuneOptions, TuneProgram
from wd_plasticity.generation.generate import Generator
from wd_plasticity.members import Member
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import adamw, groups
from wd_plasticity.tasks import registry
from wd_plasticity.training import distributed

# Moments and gradients beside two copies of the parameters, and room for what steps need.
_BYTES_PER_PARAMETER = 24
TRAIN = "train"


def main(session: Session) -> None:
  """Evaluates what is not done yet, then prints and draws everything asked for."""
  for point in session.points:
    _check(point.config)
  work = _waiting(session, load_splits(session))
  if work:
    Tuning(session).run(work)
  if distributed.is_first():
    finetune_summary.write(session)


@dataclasses.dataclass(frozen=True)
class Work:
  """Targets that are fine-tuned together on one task at one point of the sweep."""
  task: str
  splits: dict[str, registry.LoadedSplit]
  point: Member
  group: list[Target]


def load_splits(session: Session) -> dict[str, dict[str, registry.LoadedSplit]]:
  """The problems of every split that is asked for, by task: train, and what to test on.

  Raises:
    UserError: a task that is unknown, or has no data.
  """
  config, loaded = session.config, {}
  if not config.tasks:
    raise UserError(f"tasks is empty; name some of {', '.join(registry.names())}.")
  for name in config.tasks:
    task = registry.get(name)
    sources = config.sources[name]
    wanted = [s for s in task.splits if task.embedded or sources[s]]
    if TRAIN not in wanted or len(wanted) < 2:
      missing = TRAIN if TRAIN not in wanted else next(s for s in task.splits if s != TRAIN)
      raise UserError(
          f"task {name} needs files to learn from and files to be tested on; set "
          f"--config.sources.{name}.{missing}=FILES (published as {task.source}).")
    loaded[name] = {}
    for split in wanted:
      limit = config.max_train if split == TRAIN else config.max_test
      loaded[name][split] = registry.load(name, split, sources[split], limit, config.seed)
      if loaded[name][split].note:
        session.print(f"note: {loaded[name][split].note}.")
  return loaded


def _check(config: ConfigDict) -> None:
  split_evaluation.check(config.evaluate)
  lora.check(config.lora.rank, config.lora.targets)
  for field in ("epochs", "batch_size"):
    if config[field] < 1:
      raise UserError(f"{field}={config[field]} must be at least 1.")
  for field in ("max_train", "max_test", "max_length", "seed"):
    if config[field] < 0:
      raise UserError(f"{field}={config[field]} must be 0 or more.")
  if not 0 <= config.replay.fraction < 1:
    raise UserError(f"replay.fraction={config.replay.fraction} must be at least 0 and below 1.")
  if config.optim.learning_rate <= 0 or config.optim.weight_decay < 0:
    raise UserError("optim.learning_rate must be positive, and optim.weight_decay not negative.")


def _waiting(session: Session, loaded: dict) -> list[Work]:
  """What is not done yet."""
  work = []
  for name, splits in loaded.items():
    for point in session.points:
      settings = settings_of(session, point, name, splits)
      todo = [t for t in session.targets
              if not session.results.is_done(t, item_name(name, point), settings)]
      for target in todo:
        target.tokenizer  # noqa: B018 - raises now if it does not fit, not after hours
        if point.config.evaluate.forgetting_sequences or point.config.replay.fraction:
          session.pretraining_data(target)
      work += [Work(name, splits, point, group)
               for group in session.groups(todo, _BYTES_PER_PARAMETER)]
  return work


def item_name(task: str, point: Member) -> str:
  return f"{task}-{point.name}" if point.name else task


def settings_of(session: Session, point: Member, task: str, splits: dict) -> dict[str, Any]:
  """Everything but the checkpoint that decides the result of an item."""
  return session.settings(point.config) | {
      "task": task, "point": point.name, "overrides": as_json(point.overrides),
      "data": {s: {"problems": len(x.problems), "available": x.count, "official": x.official,
                   "fingerprint": x.fingerprint} for s, x in splits.items()}}


class Tuning:
  """Runs work, with programs that are compiled once."""

  def __init__(self, session: Session):
    self.session = session
    self._programs: dict[Any, Any] = {}
    self._base: dict[Any, Any] = {}  # figures of the base models, by what decides them

  def run(self, work: Sequence[Work]) -> None:
    # Points of one group and task follow one another: they share the base model's figures.
    order = {name: i for i, name in enumerate(self.session.config.tasks)}
    plans = [_Plan(w) for w in
             sorted(work, key=lambda w: (order[w.task], [t.name for t in w.group]))]
    for plan in plans:
      if any(e.generates for e in plan.evaluations.values()):
        self._reward(plan.config)  # raises now if it cannot be read, not after hours
    total = sum(p.cost for p in plans)
    with self.session.progress(total, "sequences") as progress:
      done = 0
      for plan in plans:
        progress.skip(done)
        first = plan.work.group[0].name
        more = f" and {len(plan.work.group) - 1} more" if len(plan.work.group) > 1 else ""
        progress.print(f"{item_name(plan.work.task, plan.work.point)}: {first}{more}")
        self._one(plan, lambda n, d=done, p=plan, **fields: progress.update(
            d + min(n, p.cost), **fields))
        done += plan.cost
      progress.skip(total)

  def _one(self, plan: "_Plan", update) -> None:
    session, work, config = self.session, plan.work, plan.config
    num = session.num_members(work.group)
    params_M = session.load(work.group)
    before = self._before(plan, params_M, update)
    begin = plan.evaluation_cost
    tuned = tuner.tune(
        self._tune_program(plan, num), params_M, plan.examples, batch_size=config.batch_size,
        epochs=config.epochs, seeds=[config.seed] * num,
        learning_rates=[config.optim.learning_rate] * num,
        weight_decays=[plan.decays] * num, replay=self._replay(plan, num),
        observe=lambda p: self._observe(plan, p), observations=config.evaluate.observations,
        on_step=lambda step, loss: update(begin + 3 * step * config.batch_size, loss=loss))
    begin += plan.training_cost
    after = self._evaluate(plan, tuned.params, lambda n: update(begin + n))
    for m, target in enumerate(work.group):
      session.results.write(
          target, item_name(work.task, work.point),
          settings_of(session, work.point, work.task, work.splits),
          _values(plan, m, before, tuned, after), records=_records(plan, m, before, after))

  # Evaluations.

  def _before(self, plan, params_M, update):
    """The base model's evaluation, once for all points that evaluate alike."""
    config = plan.config
    key = json.dumps([plan.work.task, [t.name for t in plan.work.group], config.template,
                      config.max_length, config.seed, as_json(config.evaluate)])
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
    n = min(wanted, len(records))
    indices = np.arange(n) * len(records) // n  # those of the evaluations in pretraining
    rows = -(-min(32, n) // session.row_shares) * session.row_shares
    run = self._cached(
        ("losses", group[0].model, session.num_members(group)),
        lambda: record_losses.compile_losses(
            session, group[0].model, session.num_members(group), prepared.tokenizer.eos_id))
    means = [losses.mean(axis=2) for _, losses in record_losses.batches(
        session, lambda tokens: run(params_M, tokens), records, indices, rows)]
    return np.concatenate(means, axis=1)[:, :n].astype(np.float64)

  def _replay(self, plan, num):
    fraction = plan.config.replay.fraction
    if not fraction:
      return None
    shares = self.session.row_shares
    rows = -(-max(1, round(fraction * plan.config.batch_size)) // shares) * shares
    prepared = self.session.pretraining_data(plan.work.group[0])
    return BatchSource(prepared.training_records, [plan.config.seed] * num, rows)

  # Compiled programs.

  def _cached(self, key, make):
    if key not in self._programs:
      self._programs[key] = make()
    return self._programs[key]

  def _scorer(self, model: ModelConfig, size: int) -> Scorer:
    return self._cached(("score", model, size), lambda: Scorer(model, self.session.mesh, size))

  def _generator(self, model: ModelConfig, size: int, sampling, target: Target) -> Generator:
    return self._cached(
        ("generate", model, size, sampling),
        lambda: Generator(model, self.session.mesh, size, sampling, target.tokenizer.eos_id))

  def _tune_program(self, plan, size: int) -> TuneProgram:
    config, model = plan.config, plan.work.group[0].model
    optim = as_json(config.optim)
    del optim["learning_rate"], optim["weight_decay"]  # numbers to the program
    key = ("tune", model, size, plan.options, plan.num_steps, json.dumps(optim, sort_keys=True))
    return self._cached(key, lambda: TuneProgram(
        model, plan.optimizer, plan.options, self.session.mesh, size))

  def _reward(self, config):
    if not config.reward_model:
      return None
    from wd_plasticity.reward.model import load_reward_model
    return self._cached(("reward", config.reward_model),
                        lambda: load_reward_model(config.reward_model, self.session.mesh))


class _Plan:
  """A piece of work with everything that follows from it."""

  def __init__(self, work: Work):
    self.work, self.config = work, work.point.config
    target, config, task = work.group[0], self.config, registry.get(work.task)
    length = config.max_length or target.sequence_length
    template = Template(config.template, target.tokenizer, length)
    self.examples, self.examples_cut = template.examples(work.splits[TRAIN].problems)
    tests = {s: x.problems for s, x in work.splits.items() if s != TRAIN}
    self.evaluations = {s: SplitEvaluation(task, problems, template, config.evaluate, length)
                        for s, problems in tests.items()}
    some = config.evaluate.observed_problems
    self.observed = {
        s: SplitEvaluation(task, problems[:some], template, config.evaluate, length)
        for s, problems in tests.items()} if some and config.evaluate.observations else {}
    self.num_steps = -(-len(self.examples) // config.batch_size) * config.epochs
    self.options = TuneOptions(
        lora_rank=config.lora.rank, lora_alpha=config.lora.alpha,
        lora_targets=tuple(config.lora.targets), replay_fraction=config.replay.fraction,
        end_of_document=target.tokenizer.eos_id if target.model.document_mask else None)
    self.optimizer, self.decays = self._optimizer(target.model)
    # In sequences read forwards; training on one costs about three of them.
    self.training_cost = 3 * self.num_steps * config.batch_size
    self.evaluation_cost = sum(e.cost for e in self.evaluations.values()) + (
        config.evaluate.forgetting_sequences)
    self.cost = self.training_cost + 2 * self.evaluation_cost

  def _optimizer(self, model: ModelConfig):
    def trained():
      params = decoder.init_params(model, jax.random.key(0))
      if not self.options.lora_rank:
        return params
      return lora.init(params, self.options.lora_rank, self.options.lora_targets,
                       jax.random.key(0))
    optim = self.config.optim
    rules = tuple(optim.decay.rules)
    if self.options.lora_rank:
      rules += (r".*/lora_[ab]=lora",)
    group_of = groups.assign_groups(jax.eval_shape(trained), rules)
    multipliers = groups.decay_multipliers(optim.decay, group_of)
    tokens = sum(len(e.tokens) for e in self.examples) * self.config.epochs
    optimizer = adamw.from_section(optim, group_of, self.num_steps,
                                   max(1, tokens // self.num_steps))
    return optimizer, [optim.weight_decay * multipliers[g] for g in optimizer.group_names]


def _values(plan: _Plan, m: int, before: dict, tuned: tuner.Tuned, after: dict) -> dict[str, Any]:
  """What is written of member m."""
  metrics = {
      name: {split: e.metrics(made["splits"][split][m]) for split, e in plan.evaluations.items()}
      for name, made in (("before", before), ("after", after))}
  return {
      "task": plan.work.task,
      "training": {
          "examples": len(plan.examples), "examples_cut": plan.examples_cut,
          "steps": plan.num_steps, "epochs": plan.config.epochs,
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


def _records(plan: _Plan, m: int, before: dict, after: dict) -> list[dict]:
  """One line per problem and stage."""
  return [{"split": split, "stage": stage, **record}
          for stage, made in (("before", before), ("after", after))
          for split in plan.evaluations for record in made["splits"][split][m]]


if __name__ == "__main__":
  program.run("finetune", main)
