"""Runs the members of a sweep: chunks that share a program, one after another."""

import json
import pathlib
import time
from collections.abc import Sequence

import jax
import numpy as np

from wd_plasticity import members as members_lib
from wd_plasticity.data.prepare import Prepared
from wd_plasticity.files import locked, write_json
from wd_plasticity.members import Member
from wd_plasticity.plan import Plan
from wd_plasticity.training import distributed, resume
from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training.loop import Chunk, ChunkTrainer, StopSignal
from wd_plasticity.training.progress import Progress
from wd_plasticity.training.step import Program, StepOptions

_TRIAL_STEPS = 3


def train(groups: Sequence[tuple[Sequence[Member], Sequence[Plan], Prepared]],
          workdir: pathlib.Path, stop: StopSignal):
  """Trains groups of members; the members of a group can share one program.

  Raises:
    Interrupted: after a signal, with everything saved.
  """
  total = sum(plan.steps for _, plans, _ in groups for plan in plans)
  first = groups[0][0][0].config
  mesh = mesh_lib.make_mesh(first.mesh)
  # Hand-written kernels find the mesh by its context, see models/attention.py.
  with jax.set_mesh(mesh), Progress(
      total, "member steps", "pretraining", enabled=distributed.is_first()) as progress:
    done = 0
    for members, plans, prepared in groups:
      programs = _Programs(members[0], plans[0], prepared, mesh)
      size = _members_at_once(members, plans[0], programs, workdir, progress)
      by_name = {m.name: p for m, p in zip(members, plans, strict=True)}
      for chunk in members_lib.chunks(members, size):
        # Each part runs in the program of the whole chunk, so that its bits are the same.
        for start, part in resume.parts(chunk, plans[0].steps, prepared, workdir, progress.print):
          part_plans = [by_name[m.name] for m in part]
          ChunkTrainer(Chunk(part, part_plans, programs(size), prepared, workdir, start),
                       progress, stop, done).run()
          done += len(part) * plans[0].steps


class _Programs:
  """The compiled programs of a group of members, by the number of members stacked."""

  def __init__(self, member: Member, plan: Plan, prepared: Prepared, mesh):
    train, masked = member.config.train, member.config.model.document_mask
    self._options = StepOptions(
        accumulate_steps=train.accumulate_steps, z_loss=train.z_loss,
        loss_tile_tokens=train.loss_tile_tokens,
        end_of_document=prepared.tokenizer.eos_id if masked else None)
    self._plan, self._mesh, self._programs = plan, mesh, {}

  def __call__(self, num_members: int) -> Program:
    if num_members not in self._programs:
      self._programs[num_members] = Program(
          self._plan.model, self._plan.optimizer, self._options, self._mesh, num_members)
    return self._programs[num_members]


def _members_at_once(members, plan, programs, workdir, progress) -> int:
  """How many members one program holds: as configured, or what a short trial finds faster.

  The answer of a trial is kept in the work directory, because a resumed run must go on
  in the same program to give the same bits.
  """
  config = members[0].config
  smallest = config.mesh.sweep
  if len(members) <= smallest:
    return smallest
  if config.sweep.members_at_once:
    return -(-config.sweep.members_at_once // smallest) * smallest
  record = workdir / "members_at_once.json"
  key = f"{len(members)} members, {plan.parameters['total']} parameters, {jax.device_count()} x " \
        f"{jax.devices()[0].device_kind}"
  known = json.loads(record.read_text()) if record.exists() else {}
  if key not in known:
    size = _trial(members, plan, programs, smallest, progress)
    known[key] = distributed.told_by_first(lambda: _remember(record, key, size))
  return known[key]


def _remember(record: pathlib.Path, key: str, size: int) -> int:
  """Keeps the answer of a trial; where another process had one first, that one holds."""
  with locked(record):
    known = json.loads(record.read_text()) if record.exists() else {}
    if key not in known:
      write_json(record, known | {key: size})
    return known.get(key, size)


def _trial(members, plan, programs, smallest, progress) -> int:
  largest = -(-len(members) // smallest) * smallest
  seconds = {}
  for size in (smallest, largest):
    program = programs(size)
    state = program.init(np.zeros(size, np.int32))
    hyper = program.hyper(np.full(size, 1e-4),
                          np.zeros((size, len(plan.optimizer.group_names))))
    config = members[0].config
    batch = config.train.global_batch_size
    place = mesh_lib.BatchPlacer(program.mesh, size, batch)
    tokens = place(np.zeros((len(place.members), len(place.rows), config.data.sequence_length + 1),
                            np.int32))
    times = []
    for _ in range(_TRIAL_STEPS + 1):
      begin = time.perf_counter()
      state, metrics = program.train_step(state, hyper, tokens)
      jax.block_until_ready((state, metrics))
      times.append((time.perf_counter() - begin) / size)
    del state
    seconds[size] = min(times[1:])
  slow, fast = max(seconds, key=seconds.get), min(seconds, key=seconds.get)
  progress.print(f"{fast} member(s) in one program: {seconds[fast] * 1e3:.0f} ms per member and "
                 f"step, against {seconds[slow] * 1e3:.0f} ms with {slow}.")
  return fast

