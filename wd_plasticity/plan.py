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

from wd_plasticity import limits
from wd_plasticity.config import parse_length
from wd_plasticity.data import documents, tokenizers
from wd_plasticity.errors import UserError
from wd_plasticity.members import Member
from wd_plasticity.models import attention, decoder, flops, loss
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
    memory_bytes: estimate per device while training, by part.
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
  _check_fields(config)
  model = ModelConfig.from_section(config.model, _tokenizer_size(config))
  attention.choose(model.attention, length=config.data.sequence_length, head_dim=model.head_dim,
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
  return Plan(
      model=model, optimizer=optimizer, parameters=parameters, steps=steps,
      tokens_per_step=tokens_per_step, tokens=steps * tokens_per_step,
      flops=flops.train_flops_per_token(model, config.data.sequence_length)
      * steps * tokens_per_step,
      memory_bytes=_memory(config, model, parameters["total"], mesh, members_at_once),
      decay_table=tuple(groups.decay_table(shapes, group_of, config.optim.weight_decay,
                                           multipliers)),
      decays=decays,
      timescale=adamw.timescale(config.optim.learning_rate, config.optim.weight_decay,
                                config.optim.decay.convention, steps, tokens_per_step),
      log_every=length("train.log_every", config.train, "log_every"),
      eval_every=length("train.eval_every", config.train, "eval_every"),
      checkpoint_every=length("checkpoint.every", config.checkpoint, "every"),
      keep_steps=tuple(max(1, round(f * steps)) for f in config.checkpoint.keep_at))


def _check_fields(config: ConfigDict):
  limits.check(config)
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


def _memory(config, model: ModelConfig, parameters: int, mesh: dict, members_at_once: int) -> dict:
  """Bytes per device: what is stored exactly, the rest estimated.

  Within 20 % of what XLA allocates for the study's sizes on TPUs, see docs/results/paper;
  attention is taken to store no scores.
  """
  members = max(1, -(-members_at_once // mesh["sweep"]))
  shard = mesh["fsdp"] * mesh["tensor"]
  rows = config.train.global_batch_size / config.train.accumulate_steps
  tokens = rows / (mesh["data"] * mesh["fsdp"]) * config.data.sequence_length
  kept, all_of_layer = _activation_bytes(model, mesh["tensor"])
  working = 0 if model.remat == "none" else all_of_layer  # of the layer computed again
  width = _itemsize(model)
  tile = (config.train.loss_tile_tokens / (mesh["data"] * mesh["fsdp"])
          or loss.default_tile_tokens())
  # Logits in float32 and their gradient; the whole head and its gradient, gathered.
  head = model.width * model.vocab_size // mesh["tensor"]
  logits = (min(tile, tokens) * model.vocab_size / mesh["tensor"] + head) * (4 + width)
  # The sum over micro-batches beside the gradients of one.
  copies = 1 if config.train.accumulate_steps == 1 else 2
  return {
      "parameters": members * parameters * 4 // shard,
      "optimizer": members * parameters * 8 // shard,
      "gradients": members * parameters * 4 * copies // shard,
      "snapshot": members * parameters * 12 // shard,  # of a checkpoint being written
      "activations": int(members * tokens * (kept * model.num_layers + working)),
      "logits": int(members * logits),
  }


def _itemsize(model: ModelConfig) -> int:
  return 2 if model.compute_dtype == "bfloat16" else 4


def _activation_bytes(model: ModelConfig, tensor: int) -> tuple[float, float]:
  """Bytes per token that a layer keeps for the backward pass, and all that it makes for it.

  Counted from what `jax.vjp` of a layer returns, with an attention that stores no scores.
  """
  width = _itemsize(model)
  d, f = model.width, model.ffn_width / tensor
  q, kv = (n * model.head_dim / tensor for n in (model.num_heads, model.num_kv_heads))
  heads = 2 * q + 2 * kv  # queries, keys, values and what attention returns
  # Norms keep three arrays in float32.
  norms = 4 * (6 * d + (3 * (q + kv) if model.qk_norm else 0))
  everything = norms + width * (2 * d + heads + q + 3 * f)
  if model.remat == "none":
    return everything, everything
  kept = d  # what enters
  if model.remat == "dots":  # and products; what `down` makes is needed again by a norm after it
    kept += heads + 2 * f + (d if model.norm_position == "pre" else 2 * d)
  return width * kept, everything


def describe(member: Member, plan: Plan) -> str:
  """What would be run for one member, for people."""
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
      f"  memory     {_bytes(sum(plan.memory_bytes.values()))} per device, estimated ("
      + ", ".join(f"{k} {_bytes(v)}" for k, v in plan.memory_bytes.items()) + ")",
      f"  optimizer  learning rate {config.optim.learning_rate:g} ({config.optim.schedule.name}), "
      f"weight decay {config.optim.weight_decay:g} ({config.optim.decay.convention}, "
      f"{config.optim.decay.preset})",
      "  timescale  " + _timescale(plan),
      "  which parameter is decayed by how much:",
      parameter_overview.make_table(list(plan.decay_table)),
  ]
  return "\n".join(lines)


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


def _bytes(n: float) -> str:
  for unit in ("B", "KiB", "MiB", "GiB"):
    if n < 1024:
      return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
    n /= 1024
  return f"{n:.1f} TiB"
