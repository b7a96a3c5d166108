"""What fine-tuning is asked to do: tasks and fields checked, problems read, work planned."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from wd_plasticity.config import as_json
from wd_plasticity.errors import UserError
from wd_plasticity.evals.program import Session
from wd_plasticity.evals.split_evaluation import SplitEvaluation
from wd_plasticity.evals.targets import Target
from wd_plasticity.finetuning import lora
from wd_plasticity.finetuning.examples import Template
from wd_plasticity.finetuning.step import TuneOptions
from wd_plasticity.members import Member
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import adamw, groups
from wd_plasticity.tasks import registry

# Moments and gradients beside two copies of the parameters, and room for what steps need.
_BYTES_PER_PARAMETER = 24
TRAIN = "train"

Splits = dict[str, registry.LoadedSplit]


@dataclasses.dataclass(frozen=True)
class Work:
  """Targets that are fine-tuned together on one task at one point of the sweep."""
  task: str
  splits: Splits
  point: Member
  group: list[Target]


def load_splits(session: Session) -> list[dict[str, Splits]]:
  """The problems of every split that is asked for, by task, for each point of the sweep.

  Which problems are taken depends on `max_train` and `max_test` of the point and on the seed
  of the configuration: points with seeds of their own are tested on the same problems.

  Raises:
    UserError: a task that is unknown, or has no data.
  """
  config = session.config
  if not config.tasks:
    raise UserError(f"tasks is empty; name some of {', '.join(registry.names())}.")
  wanted = {name: _wanted_splits(config, name) for name in config.tasks}
  read: dict[tuple, registry.LoadedSplit] = {}

  def load(name: str, split: str, limit: int) -> registry.LoadedSplit:
    key = name, split, limit
    if key not in read:
      read[key] = registry.load(name, split, config.sources[name][split], limit, config.seed)
      if read[key].note:
        session.print(f"note: {read[key].note}.")
    return read[key]

  return [{name: {split: load(name, split, point.config.max_train if split == TRAIN
                              else point.config.max_test) for split in splits}
           for name, splits in wanted.items()} for point in session.points]


def _wanted_splits(config: ConfigDict, name: str) -> list[str]:
  task, sources = registry.get(name), config.sources[name]
  wanted = [s for s in task.splits if task.embedded or sources[s]]
  if TRAIN not in wanted or len(wanted) < 2:
    missing = TRAIN if TRAIN not in wanted else next(s for s in task.splits if s != TRAIN)
    raise UserError(
        f"task {name} needs files to learn from and files to be tested on; set "
        f"--config.sources.{name}.{missing}=FILES (published as {task.source}).")
  return wanted


def waiting(session: Session, loaded: Sequence[dict[str, Splits]]) -> list[Work]:
  """What is not done yet.

  Args:
    session: of the program.
    loaded: the splits of each task, for each of its points.
  """
  work = []
  for name in session.config.tasks:
    for point, splits in zip(session.points, [x[name] for x in loaded], strict=True):
      settings = settings_of(session, point, name, splits)
      todo: dict[Any, list[Target]] = {}  # by what is the same for all that are tuned together
      for target in session.targets:
        if session.results.is_done(target, item_name(name, point), settings):
          continue
        target.tokenizer  # noqa: B018 - raises now if it does not fit, not after hours
        if point.config.evaluate.forgetting_sequences or point.config.replay.fraction:
          session.pretraining_data(target)
        todo.setdefault((target.meta["data_fingerprint"], target.sequence_length), []).append(
            target)
      work += [Work(name, splits, point, group) for same in todo.values()
               for group in session.groups(same, _BYTES_PER_PARAMETER)]
  return work


def item_name(task: str, point: Member) -> str:
  return f"{task}-{point.name}" if point.name else task


def settings_of(session: Session, point: Member, task: str, splits: dict) -> dict[str, Any]:
  """Everything but the checkpoint that decides the result of an item."""
  return session.settings(point.config) | {
      "task": task, "point": point.name, "overrides": as_json(point.overrides),
      "data": {s: {"problems": len(x.problems), "available": x.count, "official": x.official,
                   "fingerprint": x.fingerprint} for s, x in splits.items()}}


def plans(work: Sequence[Work]) -> list["Plan"]:
  """A plan for each piece of work; groups of one kind share what is made of the problems."""
  made: dict[Any, Plan] = {}
  planned = []
  for w in work:
    target = w.group[0]
    kind = (w.task, w.point.name, target.model, target.meta["tokenizer_fingerprint"],
            target.sequence_length)
    if kind not in made:
      made[kind] = Plan(w)
    plan = copy.copy(made[kind])
    plan.work = w
    planned.append(plan)
  return planned


class Plan:
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
    self.class_options = _are_classes([p.options for x in work.splits.values()
                                       for p in x.problems])
    learnt = {p.prompt for p in work.splits[TRAIN].problems}
    self.in_training = {s: sum(p.prompt in learnt for p in problems)
                        for s, problems in tests.items()}
    some = config.evaluate.observed_problems
    self.observed = {
        s: SplitEvaluation(task, registry.subset(problems, some), template, config.evaluate, length)
        for s, problems in tests.items()} if some and config.evaluate.observations else {}
    self.num_steps = -(-len(self.examples) // config.batch_size) * config.epochs
    fraction = config.replay.fraction
    self.options = TuneOptions(
        lora_rank=config.lora.rank, lora_alpha=config.lora.alpha,
        lora_targets=tuple(config.lora.targets), replay_fraction=fraction,
        replay_rows=max(1, round(fraction * config.batch_size)) if fraction else 0,
        end_of_document=target.tokenizer.eos_id if target.model.document_mask else None)
    self.optimizer, self.decays = self._optimizer(target.model)
    # In sequences read forwards; training on one costs about three of them.
    self.training_cost = 3 * self.num_steps * config.batch_size
    self.evaluation_cost = sum(e.cost for e in self.evaluations.values()) + (
        config.evaluate.forgetting_sequences)
    self.cost = self.training_cost + 2 * self.evaluation_cost

  @property
  def compiled(self) -> tuple:
    """Everything of it that is compiled into the training step, to know an equal one by."""
    optim = as_json(self.config.optim)
    del optim["learning_rate"], optim["weight_decay"]  # numbers to the program
    # Lengths may be given in tokens, of which a step has more or fewer in every task.
    schedules = [np.asarray(schedule(np.arange(self.num_steps))).tobytes() for schedule in
                 (self.optimizer.learning_rate_schedule, self.optimizer.decay_schedule)]
    return (self.options, self.num_steps, json.dumps(optim, sort_keys=True), *schedules)

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


def _are_classes(options: Sequence[tuple[str, ...]]) -> bool:
  """Whether the options of all problems are the same few, such as the names of classes."""
  most = max(map(len, options), default=0)
  return 0 < len({text for some in options for text in some}) <= most
