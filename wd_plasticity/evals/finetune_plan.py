"""What fine-tuning is asked to do: tasks and fields checked, problems read, work planned."""

import copy
import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from wd_plasticity import memory
from wd_plasticity.config import as_json
from wd_plasticity.errors import UserError
from wd_plasticity.evals.program import Session
from wd_plasticity.evals.split_evaluation import SplitEvaluation
from wd_plasticity.evals.targets import Target
from wd_plasticity.finetuning import batches, lora, scoring
from wd_plasticity.finetuning.examples import Template
from wd_plasticity.finetuning.step import TuneOptions
from wd_plasticity.members import Member
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import adamw, groups
from wd_plasticity.tasks import registry

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
  """What is not done yet: for each task and point all targets that can be tuned together.

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
               for group in session.alike(same)]
  return work


def item_name(task: str, point: Member) -> str:
  return f"{task}-{point.name}" if point.name else task


def settings_of(session: Session, point: Member, task: str, splits: dict) -> dict[str, Any]:
  """Everything but the checkpoint that decides the result of an item."""
  return session.settings(point.config) | {
      "task": task, "point": point.name, "overrides": as_json(point.overrides),
      "data": {s: {"problems": len(x.problems), "available": x.count, "official": x.official,
                   "fingerprint": x.fingerprint} for s, x in splits.items()}}


def plans(session: Session, work: Sequence[Work]) -> list["Plan"]:
  """Plans for each piece of work, of as many targets as fit together.

  Those of one kind share what is made of the problems.
  """
  made: dict[Any, Plan] = {}
  planned = []
  for w in work:
    target = w.group[0]
    kind = (w.task, w.point.name, target.model, target.meta["tokenizer_fingerprint"],
            target.sequence_length)
    if kind not in made:
      made[kind] = Plan(w)
    need = functools.partial(made[kind].need, session)
    planned += [made[kind].of(group)
                for group in session.groups(w.group, lambda _, n, need=need: need(n))]
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

  def of(self, group: list[Target]) -> "Plan":
    """The same for other targets of its kind."""
    plan = copy.copy(self)
    plan.work = dataclasses.replace(self.work, group=group)
    return plan

  @functools.cached_property
  def shape(self) -> batches.Shape:
    """Of the batches on one device."""
    return batches.ExampleBatches(self.examples, self.config.batch_size, self.config.epochs,
                                  self.config.seed).shape

  def training_memory(self, session: Session) -> memory.Finetuning:
    """What the training takes, with the state that evaluations on the way have beside them."""
    target, mesh, shape = self.work.group[0], session.mesh.shape, self.shape
    def scoring_beside(members):
      parts = self._reading(session, members, copies=0)
      return parts["activations"] + parts["logits"]
    trained = 0
    if self.options.lora_rank:
      shapes = lora.trained_shapes(target.model, self.options.lora_rank, self.options.lora_targets)
      trained = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    return memory.Finetuning(
        target.trained_model, mesh, rows=shape.rows, length=shape.length, targets=shape.targets,
        replay_rows=self.options.replay_rows, replay_length=target.sequence_length,
        trained=trained, evaluation=scoring_beside if self.observed else lambda members: 0)

  def micro_batches(self, session: Session, members: int) -> int:
    """That a step of so many members is divided into to fit."""
    rows = -(-self.shape.rows // session.row_shares)
    limit = memory.device_limit() - _reward_bytes(self.config.reward_model, session.mesh.shape)
    return min(rows, session.parts * self.training_memory(session).micro_batches(members, limit))

  def need(self, session: Session, members: int) -> int:
    """Bytes of a device for so many members: of training, and of evaluating before and after."""
    target, needed = self.work.group[0], self.training_memory(session)
    most = [memory.total(needed.parts(members, session.parts)),
            memory.total(self._reading(session, members, copies=2))]
    for evaluation in self.evaluations.values():
      if evaluation.generates:
        most.append(members / session.mesh.shape["sweep"] * (
            3 * memory.parameter_bytes(target.model) + memory.generation_row(
                target.model, length=self.config.max_length or target.sequence_length,
                new_tokens=evaluation.max_new_tokens, samples=max(1, self.config.evaluate.samples),
                itemsize=4)))
    return int(max(most)) + _reward_bytes(self.config.reward_model, session.mesh.shape)

  def _reading(self, session: Session, members: int, copies: int) -> memory.Parts:
    """Of the largest forward pass of an evaluation."""
    target = self.work.group[0]
    tokens = scoring.batch_tokens(session.mesh, members, session.parts)
    if self.config.evaluate.forgetting_sequences:
      tokens = max(tokens, target.sequence_length * session.rows(32) // session.row_shares)
    length = max(self.config.max_length, target.sequence_length)
    return memory.reading(target.model, session.mesh.shape, members, tokens=tokens, length=length,
                          copies=copies)

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
    optim = self.config.optim
    group_of = lora.trained_groups(model, self.options.lora_rank, self.options.lora_targets,
                                   optim.decay.rules)
    multipliers = groups.decay_multipliers(optim.decay, group_of)
    tokens = sum(len(e.tokens) for e in self.examples) * self.config.epochs
    optimizer = adamw.from_section(optim, group_of, self.num_steps,
                                   max(1, tokens // self.num_steps))
    return optimizer, [optim.weight_decay * multipliers[g] for g in optimizer.group_names]


def _reward_bytes(folder: str, mesh: Mapping[str, int]) -> int:
  """Of the reward model's parameters on a device; they stay as they are in its files."""
  files = Path(folder).expanduser().glob("*.safetensors") if folder else ()
  return sum(f.stat().st_size for f in files) // (mesh["fsdp"] * mesh["tensor"])


def _are_classes(options: Sequence[tuple[str, ...]]) -> bool:
  """Whether the options of all problems are the same few, such as the names of classes."""
  most = max(map(len, options), default=0)
  return 0 < len({text for some in options for text in some}) <= most
