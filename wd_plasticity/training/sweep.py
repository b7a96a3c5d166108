"""Runs the members of a sweep: chunks that share a program, one after another.

How many share one is decided by memory and a short trial. When memory runs out all the
same, fewer do, and then the steps of one are divided into more micro-batches.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from wd_plasticity import memory
from wd_plasticity.data.prepare import Prepared
from wd_plasticity.errors import UserError
from wd_plasticity.files import locked, read_json, write_json
from wd_plasticity.members import Member
from wd_plasticity.plan import Plan
from wd_plasticity.training import distributed, resume
from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training.loop import Chunk, ChunkTrainer, StopSignal
from wd_plasticity.training.progress import Progress
from wd_plasticity.training.step import Program, StepOptions

_TRIAL_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Fit:
  """How training is divided to fit: members in one program, micro-batches in a step."""
  members: int
  accumulate_steps: int


def train(groups: Sequence[tuple[Sequence[Member], Sequence[Plan], Prepared]],
          workdir: pathlib.Path, stop: StopSignal):
  """Trains groups of members; the members of a group can share one program.

  Raises:
    Interrupted: after a signal, with everything saved.
    UserError: the memory is not enough for one member and the smallest micro-batches.
  """
  total = sum(plan.steps for _, plans, _ in groups for plan in plans)
  first = groups[0][0][0].config
  mesh = mesh_lib.make_mesh(first.mesh)
  # Hand-written kernels find the mesh by its context, see models/attention.py.
  with jax.set_mesh(mesh), Progress(
      total, "member steps", "pretraining", enabled=distributed.is_first()) as progress:
    before = 0
    for members, plans, prepared in groups:
      fitting = Fitting(members, plans[0], prepared, mesh, workdir, progress.print)
      by_name = {m.name: p for m, p in zip(members, plans, strict=True)}

      def run(part, done, fitting=fitting, by_name=by_name, prepared=prepared):
        # Each part runs in the program of the whole chunk, so that its bits are the same.
        start, together = part
        ChunkTrainer(Chunk(together, [by_name[m.name] for m in together], fitting.program(),
                           prepared, workdir, start), progress, stop, done).run()

      remaining = list(members)
      while remaining:
        chunk = remaining[:fitting.now.members]
        done = before + (len(members) - len(remaining)) * plans[0].steps
        parts = resume.parts(chunk, plans[0].steps, prepared, workdir, progress.print)
        if _run_parts(parts, run, done, plans[0].steps):
          remaining = remaining[len(chunk):]
        else:
          fitting.lower()
      before += len(members) * plans[0].steps


def _run_parts(parts: Sequence[tuple[int, list[Member]]], run: Callable, done: int,
               steps: int) -> bool:
  """Whether the memory was enough for all of them."""
  for part in parts:
    if not memory.attempt(functools.partial(run, part, done))[0]:
      return False
    done += len(part[1]) * steps
  return True


class Fitting:
  """How the members of a group are divided to fit, and the compiled program of that.

  The answer of a trial, and of memory that ran out, is kept in the work directory, because
  a resumed run must go on in the same program to give the same bits.

  Attributes:
    now: the division that holds.

  Args:
    members: that can share a program.
    plan: of one of them.
    prepared: their data.
    mesh: of the run.
    workdir: where the answer is kept.
    say: prints a line.
  """

  def __init__(self, members: Sequence[Member], plan: Plan, prepared: Prepared, mesh,
               workdir: pathlib.Path, say: Callable[[str], None]):
    config = members[0].config
    self._config, self._plan, self._mesh, self._say = config, plan, mesh, say
    self._count, self._smallest = len(members), mesh.shape["sweep"]
    self._end = prepared.tokenizer.eos_id if config.model.document_mask else None
    self._programs: dict[Fit, Program] = {}
    self._record = workdir / "members_at_once.json"
    asked = config.sweep.members_at_once
    self._key = f"{len(members)} members, {plan.parameters['total']} parameters, " \
                f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if asked:
      self._key += f", {asked} at once"
    self.now = self._told(self._known())
    if self.now is None:
      self.now = self._first(asked)

  def program(self) -> Program:
    """The program of the division that holds."""
    return self._program(self.now)

  def lower(self) -> None:
    """Takes the next smaller division, after memory ran out, and remembers it.

    Raises:
      UserError: there is none.
    """
    self._programs.clear()
    before, less = self.now, self._less(self.now)
    if distributed.is_first():
      less = self._remember(less, instead_of=before)
    self.now = self._told(less)
    self._say(f"memory ran out with {_described(before)}; going on from the last checkpoints with "
              f"{_described(self.now)}, which {self._record.name} keeps.")

  def _first(self, asked: int) -> Fit:
    largest = memory.splits(self._count, self._smallest)[0]
    accumulate = self._config.train.accumulate_steps
    if largest == self._smallest:
      return Fit(self._smallest, accumulate)
    if asked:
      return Fit(-(-asked // self._smallest) * self._smallest, accumulate)
    made = self._trial()
    if distributed.is_first():
      made = self._remember(made)
    return self._told(made)

  def _less(self, fit: Fit) -> Fit:
    if size := memory.fewer(fit.members, self._count, self._smallest):
      return Fit(size, fit.accumulate_steps)
    rows = self._config.train.global_batch_size
    if steps := memory.more_micro_batches(fit.accumulate_steps, rows,
                                          mesh_lib.row_shares(self._mesh)):
      return Fit(fit.members, steps)
    raise UserError(
        f"the memory of a device ({memory.text(memory.device_limit())}) is not enough for "
        f"{_described(fit)}; a smaller model, a shorter data.sequence_length, "
        "--config.model.remat=full, or more devices (mesh.fsdp, mesh.tensor) take less.")

  # The trial.

  def _trial(self) -> Fit:
    """The faster of one program per member and of as many members as fit."""
    accumulate = self._config.train.accumulate_steps
    largest = memory.splits(self._count, self._smallest)[0]
    size = memory.members_that_fit(self._count, self._plan.memory.total, self._smallest)
    if size < largest:
      self._say(f"{largest} members in one program would take "
                f"{memory.text(self._plan.memory.total(largest))} of the "
                f"{memory.text(memory.device_limit())} of a device, by estimate; at most {size} "
                "at once are tried.")
    one = Fit(self._smallest, accumulate)
    seconds: dict[Fit, float] = {}
    fit = Fit(size, accumulate)
    while True:
      ran, seconds[fit] = memory.attempt(functools.partial(self._seconds, fit))
      if ran:
        break
      del seconds[fit], self._programs[fit]
      less = self._less(fit)
      self._say(f"memory ran out with {_described(fit)}; {_described(less)} is tried.")
      fit = less
    if fit.members == self._smallest:
      return fit
    ran, seconds[one] = memory.attempt(functools.partial(self._seconds, one))
    if not ran:  # what is left of the other program may be in its way
      return fit
    slow, fast = max(seconds, key=seconds.get), min(seconds, key=seconds.get)
    self._say(f"{fast.members} member(s) in one program: {seconds[fast] * 1e3:.0f} ms per member "
              f"and step, against {seconds[slow] * 1e3:.0f} ms with {slow.members}.")
    return fast

  def _seconds(self, fit: Fit) -> float:
    """Of a step and member; beside the last step lies what a checkpoint is written from."""
    program, size = self._program(fit), fit.members
    state = program.init(np.zeros(size, np.int32))
    hyper = program.hyper(np.full(size, 1e-4),
                          np.zeros((size, len(self._plan.optimizer.group_names))))
    batch, length = self._config.train.global_batch_size, self._config.data.sequence_length
    place = mesh_lib.BatchPlacer(program.mesh, size, batch)
    tokens = place(np.zeros((len(place.members), len(place.rows), length + 1), np.int32))
    times, snapshots = [], []
    for step in range(_TRIAL_STEPS + 1):
      if step == _TRIAL_STEPS:
        snapshots = [program.member(state, m) for m in range(min(size, self._count))]
        jax.block_until_ready(snapshots)
      begin = time.perf_counter()
      state, metrics = program.train_step(state, hyper, tokens)
      jax.block_until_ready((state, metrics))
      times.append((time.perf_counter() - begin) / size)
    return min(times[1:])

  def _program(self, fit: Fit) -> Program:
    if fit not in self._programs:
      options = StepOptions(
          accumulate_steps=fit.accumulate_steps, z_loss=self._config.train.z_loss,
          loss_tile_tokens=self._config.train.loss_tile_tokens, end_of_document=self._end)
      self._programs[fit] = Program(
          self._plan.model, self._plan.optimizer, options, self._mesh, fit.members)
    return self._programs[fit]

  # What is remembered.

  def _known(self) -> Fit | None:
    """What the record says, if it says something that can be."""
    return self._in(self._read())

  def _read(self) -> dict:
    try:
      return read_json(self._record, "a record of how many members share a program",
                       "that is found out again", {})
    except FileNotFoundError:
      return {}
    except UserError as e:
      self._say(f"note: {e}")
      return {}

  def _in(self, record: dict) -> Fit | None:
    if self._key not in record:
      return None
    value = record[self._key]
    # Before memory could run out it was the number of members alone.
    fields = value if isinstance(value, dict) else {"members": value}
    numbers = (fields.get("members"),
               fields.get("accumulate_steps", self._config.train.accumulate_steps))
    rows, shares = self._config.train.global_batch_size, mesh_lib.row_shares(self._mesh)
    if (all(type(n) is int and n > 0 for n in numbers) and numbers[0] % self._smallest == 0
        and rows % numbers[1] == 0 and rows // numbers[1] % shares == 0
        and numbers[0] <= max(memory.splits(self._count, self._smallest)[0],
                              self._config.sweep.members_at_once + self._smallest)):
      # What the configuration asks for may have become less.
      return Fit(numbers[0], max(numbers[1], self._config.train.accumulate_steps))
    self._say(f"note: {self._record} says {value!r} of {self._key}, which cannot be; that is found "
              "out again.")
    return None

  def _remember(self, fit: Fit, instead_of: Fit | None = None) -> Fit:
    """Keeps an answer; where another process had one first, that one holds."""
    with locked(self._record):
      record = self._read()
      known = self._in(record)
      if known is None or known == instead_of:
        write_json(self._record, record | {self._key: dataclasses.asdict(fit)})
        return fit
      return known

  def _told(self, fit: Fit | None) -> Fit | None:
    """What the first process has, in all processes."""
    if jax.process_count() == 1:
      return fit
    from jax.experimental import multihost_utils
    numbers = np.array((0, 0) if fit is None else dataclasses.astuple(fit), np.int32)
    members, accumulate = multihost_utils.broadcast_one_to_all(numbers).tolist()
    return Fit(members, accumulate) if members else None


def _described(fit: Fit) -> str:
  members = "one member" if fit.members == 1 else f"{fit.members} members"
  return f"{members} in one program" + (
      f" and {fit.accumulate_steps} micro-batches a step" if fit.accumulate_steps > 1 else "")
