"""Everything derived from a configuration before a run, and what cannot be run.

`make_plan` refuses impossible combinations before anything is compiled; `describe`
is what `--dry_run` prints.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from wd_plasticity import limits, memory
from wd_plasticity.config import parse_length
from wd_plasticity.data import documents, tokenizers
from wd_plasticity.errors import UserError
from wd_plasticity.members import Member
from wd_plasticity.models import attention, decoder, flops
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import adamw, groups
from wd_plasticity.training import distributed
from wd_plasticity.training import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Plan:
  """The numbers of one member.

  Attributes:
    tokens: seen in training; steps * tokens_per_step, not below what was asked for.
    flops: of the whole training, forward and backward, without recomputation
      (convention in models/flops.py).
    memory: estimate per device while training.
    memory_bytes: what it says by part for the members that share a program.
    decay_table: a row per parameter: its group and its weight decay.
    decays: weight decay of each of `optimizer.group_names`, f32 [P].
    timescale: 1/(lr wd) at the peak, in steps, tokens and as a fraction of the run; None
      without decay or for coupled L2.
  """
  model: ModelConfig
  optimizer: adamw.Optimizer
  parameters: dict
  steps: int
  tokens_per_step: int
  tokens: int
  flops: float
  memory: memory.Pretraining
  memory_bytes: dict
  decay_table: tuple
  decays: np.ndarray
  timescale: dict | None
  log_every: int
  eval_every: int
  checkpoint_every: int
  keep_steps: tuple


def make_plan(config: ConfigDict, num_devices: int, members_at_once: int = 1) -> Plan:
  """Derives the plan of a member, or raises a UserError that says what cannot be."""
  check_fields(config)
  model = ModelConfig.from_section(config.model, _tokenizer_size(config))
  chosen = attention.choose(
      model.attention, length=config.data.sequence_length, head_dim=model.head_dim,
      dtype=jnp.dtype(model.compute_dtype), packed=model.document_mask)
  mesh = _check_mesh(config, model, num_devices)
  parameters = flops.count_parameters(model)
  tokens_per_step = config.train.global_batch_size * config.data.sequence_length
  steps = _num_steps(config, parameters["total"])
  def length(field, section, name):
    return parse_length(section[name], steps, tokens_per_step, field, least=1)
  shapes = decoder.param_shapes(model)
  mesh_lib.check_parameters(shapes, mesh)
  group_of = groups.assign_groups(shapes, config.optim.decay.rules)
  multipliers = groups.decay_multipliers(config.optim.decay, group_of)
  optimizer = adamw.from_section(config.optim, group_of, steps, tokens_per_step)
  with np.errstate(over="ignore"):
    decays = np.array([config.optim.weight_decay * multipliers[g] for g in optimizer.group_names],
                      np.float32)
  if not np.isfinite(decays).all():
    raise UserError(f"optim.weight_decay={config.optim.weight_decay} times the largest of "
                    "optim.decay.multipliers must be a number that float32 holds.")
  needed = memory.Pretraining(
      model, mesh, rows=config.train.global_batch_size, length=config.data.sequence_length,
      attention=chosen, accumulate_steps=config.train.accumulate_steps,
      tile_tokens=config.train.loss_tile_tokens)
  return Plan(
      model=model, optimizer=optimizer, parameters=parameters, steps=steps,
      tokens_per_step=tokens_per_step, tokens=steps * tokens_per_step,
      flops=flops.train_flops_per_token(model, config.data.sequence_length)
      * steps * tokens_per_step,
      memory=needed, memory_bytes=needed.parts(members_at_once),
      decay_table=tuple(groups.decay_table(shapes, group_of, config.optim.weight_decay,
                                           multipliers)),
      decays=decays,
      timescale=adamw.timescale(config.optim.learning_rate, config.optim.weight_decay,
                                config.optim.decay.convention, steps, tokens_per_step),
      log_every=length("train.log_every", config.train, "log_every"),
      eval_every=length("train.eval_every", config.train, "eval_every"),
      checkpoint_every=length("checkpoint.every", config.checkpoint, "every"),
      keep_steps=tuple(max(1, round(f * steps)) for f in config.checkpoint.keep_at))


def check_fields(config: ConfigDict) -> None:
  """Refuses fields that mean nothing, whatever model, data and devices they are for.

  Raises:
    UserError: with the field and what it can be.
  """
  limits.check(config)
  mesh_lib.check_axes(config.mesh)
  limits.choose("data.source", config.data.source, ("embedded", "files", "tfds"))
  limits.choose("distributed.mode", config.distributed.mode, distributed.MODES)
  documents.compile_strip(config.data.strip)
  if config.data.tokenizer.kind == "bpe" and config.data.tokenizer.vocab_size < 257:
    raise UserError(f"data.tokenizer.vocab_size={config.data.tokenizer.vocab_size} is too small; "
                    "bpe needs at least 257, one for every byte and one for the end.")


def _num_steps(config: ConfigDict, parameters: int) -> int:
  if config.train.steps:
    return config.train.steps
  if not config.train.tokens_per_parameter:
    raise UserError("either train.steps or train.tokens_per_parameter must be positive.")
  tokens = config.train.tokens_per_parameter * parameters
  steps = math.ceil(tokens / (config.train.global_batch_size * config.data.sequence_length))
  if steps not in (limit := limits.limit_of("train.steps")):
    raise UserError(f"train.tokens_per_parameter={config.train.tokens_per_parameter:g} makes "
                    f"{steps:,} steps, which must be {limit}; use larger batches.")
  return steps


def _tokenizer_size(config: ConfigDict) -> int:
  """Tokens of the tokenizer; a BPE not trained yet has at most as many as it is asked for.

  A tokenizer without a path yet is taken to be as large as the model says: a plan needs no
  more, and the data cannot be prepared without it.
  """
  section = config.data.tokenizer
  if section.kind == "bpe":
    return section.vocab_size
  if section.kind in ("json", "sentencepiece", "gpt2") and not section.path:
    if config.model.vocab_size:
      return config.model.vocab_size
  return tokenizers.make(section.kind, section.path, section.vocab_size, (),
                         section.get("eos", "")).vocab_size


def _check_mesh(config, model: ModelConfig, num_devices: int) -> dict[str, int]:
  sizes = mesh_lib.axis_sizes(config.mesh, num_devices)
  batch, accumulate = config.train.global_batch_size, config.train.accumulate_steps
  if batch % accumulate:
    raise UserError(f"train.accumulate_steps={accumulate} does not divide "
                    f"train.global_batch_size={batch}.")
  shares = sizes["data"] * sizes["fsdp"]
  if (batch // accumulate) % shares:
    raise UserError(
        f"each micro-batch of {batch // accumulate} sequences (train.global_batch_size={batch}, "
        f"train.accumulate_steps={accumulate}) is split over mesh.data * mesh.fsdp = {shares} "
        "devices, which must divide it.")
  for name in ("num_heads", "num_kv_heads"):
    if getattr(model, name) % sizes["tensor"]:
      raise UserError(f"mesh.tensor={sizes['tensor']} does not divide "
                      f"model.{name}={getattr(model, name)}.")
  return sizes


def describe(member: Member, plan: Plan, num_members: int = 1) -> str:
  """What would be run for one member, for people.

  Args:
    member: the first of those that can share a program.
    plan: its plan.
    num_members: how many can.
  """
  m, p, config = plan.model, plan.parameters, member.config
  lines = [
      f"member {member.name}",
      f"  model      {p['total']:,} parameters, all counted for tokens per parameter "
      f"({p['non_embedding']:,} outside the embedding and the head); {m.num_layers} layers, "
      f"width {m.width}, {m.num_heads}/{m.num_kv_heads} heads of {m.head_dim}, "
      f"feed-forward {m.ffn_width}, vocabulary {m.vocab_size}",
      f"  training   {plan.steps:,} steps x {plan.tokens_per_step:,} tokens = {plan.tokens:,} "
      f"tokens ({plan.tokens / p['total']:.1f} per parameter), {plan.flops:.3g} FLOPs "
      "(head counted, embedding not, attention over all positions, no recomputation)",
      "  memory     " + _memory(plan, config.sweep.members_at_once, num_members),
      f"  optimizer  learning rate {config.optim.learning_rate:g} ({config.optim.schedule.name}), "
      f"weight decay {config.optim.weight_decay:g} ({config.optim.decay.convention}, "
      f"{config.optim.decay.preset})",
      "  timescale  " + _timescale(plan),
      "  which parameter is decayed by how much:",
      parameter_overview.make_table(list(plan.decay_table)),
  ]
  return "\n".join(lines)


def _memory(plan: Plan, at_once: int, num_members: int) -> str:
  """Of one member, of all that would share a program, and how many of them fit."""
  limit, smallest = memory.device_limit(), plan.memory.mesh["sweep"]
  largest = memory.splits(min(at_once or num_members, num_members), smallest)[0]
  fitting = memory.members_that_fit(largest, plan.memory.total, smallest, limit)
  one = "one member" if smallest == 1 else f"{smallest} members"
  lines = [f"{one} {memory.described(plan.memory.parts(smallest))} per device, "
           "estimated"]
  if largest > smallest:
    lines.append(f"{largest} members in one program "
                 f"{memory.described(plan.memory.parts(largest))}")
  fits = f"a device has {memory.text(limit)}"
  if plan.memory.total(fitting) > limit:
    fits += (": it is not enough by this estimate; a larger train.accumulate_steps, "
             "model.remat='dots' or 'full', mesh.fsdp or mesh.tensor take less")
  elif largest > smallest:
    fits += f": at most {fitting} at once"
    if not at_once and fitting > smallest:
      fits += f", the faster of {smallest} and {fitting} is measured"
  return "\n             ".join([*lines, fits])


def as_record(plan: Plan) -> dict:
  """The derived numbers as JSON values, stored with every member."""
  return {
      "parameters": plan.parameters, "steps": plan.steps, "tokens": plan.tokens,
      "tokens_per_step": plan.tokens_per_step, "flops": plan.flops, "timescale": plan.timescale,
      "decay_table": [dataclasses.asdict(row) for row in plan.decay_table]}


def describe_members(members: Sequence[Member], plans: Sequence[Plan]) -> str:
  """A line per member: what differs between members that share one program."""
  lines = [f"{len(members)} member(s)",
           f"  {'index  name':30s} {'learning rate':>13s} {'weight decay':>12s} {'seed':>5s}"
           "  timescale"]
  for i, (member, plan) in enumerate(zip(members, plans, strict=True)):
    o = member.config.optim
    lines.append(f"  {i:5d}  {member.name:23s} {o.learning_rate:13g} {o.weight_decay:12g} "
                 f"{member.config.seed:5d}  {_timescale(plan)}")
  total = sum(p.flops for p in plans)
  lines.append(f"in all {sum(p.tokens for p in plans):,} tokens and {total:.3g} FLOPs")
  return "\n".join(lines)


def _timescale(plan: Plan) -> str:
  if plan.timescale is None:
    return "none (no decay, or a convention without one)"
  t = plan.timescale
  return (f"1/(lr*wd) = {t['steps']:,.0f} steps = {t['tokens']:,.0f} tokens = "
          f"{t['fraction']:.2f} of the run")
