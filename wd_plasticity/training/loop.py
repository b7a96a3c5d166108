"""Trains one chunk of members from where they stand to the last step.

The host never waits for the step it has just dispatched: what step k made (metrics,
evaluation sums, snapshots for checkpoints) is read and written while step k+1 runs.
"""

import dataclasses
import pathlib
import signal
import time

import jax
import numpy as np

from wd_plasticity.config import as_json
from wd_plasticity.data import loader
from wd_plasticity.errors import Interrupted
from wd_plasticity.files import HeldFolder, write_json
from wd_plasticity.members import Member
from wd_plasticity.plan import Plan
from wd_plasticity.training import distributed, resume
from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training.checkpoint import MemberCheckpoints, check_space
from wd_plasticity.training.hardware import peak_flops
from wd_plasticity.training.metrics import MemberMetrics, work_unit_status
from wd_plasticity.training.progress import Progress
from wd_plasticity.training.step import Program
from wd_plasticity.training.stored_state import RefusedCheckpoint

EVAL_SETS = ("validation", "train_subset")


class StopSignal:
  """Remembers SIGTERM and SIGINT, so that the loop can save before it ends."""

  def __init__(self):
    self.name = None

  def install(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._note)

  def _note(self, number, _):
    if self.name is not None and number == signal.SIGINT:
      raise KeyboardInterrupt  # asked twice: do not wait for the save
    self.name = signal.Signals(number).name

  def requested(self, step: int) -> bool:
    """Whether to stop after `step`; all processes of a run get the same answer."""
    if jax.process_count() == 1:
      return self.name is not None
    from jax.experimental import multihost_utils
    if step % 10 == 0:  # a signal may reach only some of the processes
      if multihost_utils.process_allgather(np.array(self.name is not None)).any():
        self.name = self.name or "a signal to another process"
        return True
    return False


@dataclasses.dataclass
class Chunk:
  """Members that run in one program, and what they share.

  `start` is the step that all of them stand at (`resume.parts`).
  """
  members: list[Member]
  plans: list[Plan]
  program: Program
  prepared: object  # data.prepare.Prepared
  workdir: pathlib.Path
  start: int

  @property
  def config(self):
    return self.members[0].config

  @property
  def plan(self):
    return self.plans[0]


@dataclasses.dataclass
class _Made:
  """What a step made on the devices, to be read one step later."""
  step: int
  metrics: dict
  evals: dict
  snapshots: list | None


class ChunkTrainer:
  """The training of one chunk; `run()` returns when every member is done or failed."""

  def __init__(self, chunk: Chunk, progress: Progress, stop: StopSignal, done_before: int = 0):
    self.chunk, self.progress, self.stop = chunk, progress, stop
    self.done_before = done_before  # member steps of the chunks before this one
    self.program, self.plan, self.config = chunk.program, chunk.plan, chunk.config
    # A chunk may be padded to the program's member axis by copies of its last member.
    extra = self.program.num_members - len(chunk.members)
    self._padded = chunk.members + [chunk.members[-1]] * extra
    self.directories = [chunk.workdir / "members" / m.name for m in chunk.members]
    self.checkpoints = [
        MemberCheckpoints(d / "checkpoints", keep_latest=max(2, self.config.checkpoint.keep_latest),
                          keep_steps=(*self.plan.keep_steps, self.plan.steps),
                          every=self.plan.checkpoint_every)
        for d in self.directories]
    self.failed = [resume.read_failure(d) for d in self.directories]
    self.start = chunk.start
    self._held = HeldFolder(chunk.workdir) if distributed.is_first() else None
    self._durations, self._waits = [], []
    self._shown = {}  # speed of the last interval, for the progress display

  def is_done(self) -> bool:
    return self.start == self.plan.steps or all(self.failed)

  def run(self):
    """Trains to the last step; raises Interrupted after saving when asked to stop."""
    try:
      self.progress.skip(self.done_before + self.start * len(self.directories))
      if not self.is_done():
        self._check_space()
        self._train()
      self.progress.skip(self.done_before + self.plan.steps * len(self.directories))
    finally:
      for c in self.checkpoints:
        c.close()
      if self._held:
        self._held.close()

  def _train(self):
    state = self._restore() if self.start else self._init()
    distributed.barrier("all processes have the state")
    hyper = self._hyper()
    self.metrics = [
        MemberMetrics(d, m.name, self.start, wandb=self.config.log.wandb,
                      project=self.config.log.wandb_project, config=as_json(m.config),
                      # What a failed member has written stays as it is.
                      enabled=distributed.is_first() and not failed)
        for d, m, failed in zip(self.directories, self.chunk.members, self.failed, strict=True)]
    try:
      self._loop(state, hyper)
    finally:
      for m in self.metrics:
        m.close()

  def _loop(self, state, hyper):
    place, batches = self._batches()
    eval_sets = self._eval_sets()
    pending = None
    if self.start == 0:
      self._write_evals(0, self._evaluate(state, eval_sets))
    mark = time.perf_counter()
    for step in range(self.start + 1, self.plan.steps + 1):
      before_input = time.perf_counter()
      tokens = place(next(batches))
      self._waits.append(time.perf_counter() - before_input)
      state, metrics = self.program.train_step(state, hyper, tokens)
      if pending is not None:
        self._read(pending)
      now = time.perf_counter()
      if step == self.start + 1:
        self._waits.clear()  # the first step holds the compilation, and readers that start
      else:
        self._durations.append(now - mark)
      mark = now
      last = step == self.plan.steps
      stopping = self.stop.requested(step)
      save = last or stopping or step % self.plan.checkpoint_every == 0 or (
          step in self.plan.keep_steps)
      evaluate = last or step % self.plan.eval_every == 0
      pending = _Made(
          step, metrics, self._evaluate(state, eval_sets) if evaluate else {},
          [self.program.member(state, m) for m in range(len(self.directories))] if save else None)
      if all(self.failed):
        break
      if stopping and not last:
        self._read(pending)
        for c in self.checkpoints:
          c.wait()
        raise Interrupted(
            f"stopped by {self.stop.name} after step {step} of {self.plan.steps}; checkpoints are "
            "saved, run the same command again to go on.")
    self._read(pending)
    for c in self.checkpoints:
      c.wait()

  # Input.

  def _batches(self):
    train, data = self.config.train, self.config.data
    place = mesh_lib.BatchPlacer(self.program.mesh, self.program.num_members,
                                 train.global_batch_size)
    if jax.process_count() > 1:
      print(f"process {jax.process_index()} reads {len(place.rows)} of the "
            f"{train.global_batch_size} sequences of a step.", flush=True)
    seeds = [self._padded[m].config.seed for m in place.members]
    source = loader.BatchSource(self.chunk.prepared.training_records, seeds,
                                train.global_batch_size, rows=place.rows)
    return place, iter(loader.read_ahead(source, self.start, self.plan.steps - self.start,
                                         num_threads=data.num_workers))

  def _eval_sets(self) -> dict:
    train = self.config.train
    shares = mesh_lib.row_shares(self.program.mesh)
    # No more rows than a micro-batch has, which fits with its backward pass.
    rows = train.global_batch_size // self.program.options.accumulate_steps
    batch_size = -(-min(train.eval_sequences, rows) // shares) * shares
    place = mesh_lib.BatchPlacer(self.program.mesh, 1, batch_size,
                                 spec=jax.sharding.PartitionSpec(None, *mesh_lib.ROWS))
    sets = {}
    for name in EVAL_SETS:
      sets[name] = [
          (place(tokens[None, place.rows])[0], place(weights[None, place.rows])[0])
          for tokens, weights in loader.eval_batches(
              self.chunk.prepared.records[name], train.eval_sequences, batch_size)]
    return sets

  def _evaluate(self, state, eval_sets) -> dict:
    """Loss sums and token counts per evaluation set, still on the devices."""
    return {name: [self.program.eval_step(state["params"], *batch) for batch in batches]
            for name, batches in eval_sets.items()}

  # Output.

  def _read(self, made: _Made):
    """Reads what a step made, after the next step was dispatched."""
    values = jax.device_get(made.metrics)
    if self._held:
      self._held.check()
    self._note_failures(values["failed_at"])
    last = made.step == self.plan.steps
    if made.step % self.plan.log_every == 0 or made.step == 1 or last:
      losses = _eval_losses(made.evals)
      for m, writer in enumerate(self.metrics):
        if not self.failed[m]:
          writer.write(made.step, self._metrics_line(made.step, values, m)
                       | {name: loss_M[m] for name, loss_M in losses.items()})
      self._write_speed(made.step)
    elif made.evals:
      self._write_evals(made.step, made.evals)
    alive = [m for m in range(len(self.directories)) if not self.failed[m]]
    fields = {"loss": float(np.mean(values["loss"][alive]))} if alive else {}
    self.progress.update(self.done_before + made.step * len(self.directories), **fields,
                         **self._shown)
    if made.snapshots is not None:
      self._save(made)

  def _metrics_line(self, step, values, m) -> dict:
    groups = self.plan.optimizer.group_names
    line = {"tokens": step * self.plan.tokens_per_step,
            "train/loss": values["loss"][m],
            "train/grad_norm": values["grad_norm"][m],
            "optim/learning_rate": values["learning_rate"][m]}
    if self.config.train.z_loss:
      line["train/z_loss"] = values["z_loss"][m]
    for label, key in (("optim/weight_decay", "weight_decay"), ("weight_norm", "weight_norm"),
                       ("update_ratio", "update_ratio")):
      line |= {f"{label}/{g}": values[key][m][p] for p, g in enumerate(groups)}
    return line

  def _write_evals(self, step, evals):
    losses = _eval_losses(evals)
    for m, writer in enumerate(self.metrics):
      if not self.failed[m]:
        writer.write(step, {"tokens": step * self.plan.tokens_per_step}
                     | {name: loss_M[m] for name, loss_M in losses.items()})

  def _write_speed(self, step):
    if not self._durations:
      return
    # The median is not moved by evaluations and checkpoints in between.
    seconds = float(np.median(self._durations))
    members = len(self.directories)
    flops = self.plan.flops / self.plan.steps * members / seconds
    peak = peak_flops() * jax.device_count()
    speed = {"step_seconds": seconds,
             "tokens_per_second": self.plan.tokens_per_step / seconds,
             "model_flops_per_second": flops,
             "input_wait_fraction": float(np.sum(self._waits) / np.sum(self._durations))}
    if peak:
      speed["mfu"] = flops / peak
    for writer in self.metrics:
      writer.write_speed(step, speed)
    self._shown = {"tokens_per_second": speed["tokens_per_second"] * members,
                   "input wait": f"{speed['input_wait_fraction']:.1%}"}
    self._durations, self._waits = [], []
    if distributed.is_first():
      names = self.directories[0].name + (f" and {members - 1} more" if members > 1 else "")
      work_unit_status(f"{names}: step {step} of {self.plan.steps}", step / self.plan.steps)

  def _note_failures(self, failed_at):
    for m, step in enumerate(failed_at[:len(self.directories)].tolist()):
      if step >= 0 and not self.failed[m]:
        good = self.checkpoints[m].latest()
        kept = f"its checkpoint of step {good} is kept" if good else "it has no checkpoint yet"
        self.failed[m] = {"step": step, "reason": "the loss or an update was not finite"}
        if distributed.is_first():
          write_json(self.directories[m] / "FAILED.json", self.failed[m])
        self.progress.print(f"member {self.directories[m].name} failed at step {step}: loss or "
                            f"update not finite; {kept}, the other members go on.")

  # Checkpoints.

  def _save(self, made: _Made):
    # All members finish their last save before one starts the next, so that a step
    # that every member has is always among those kept.
    for c in self.checkpoints:
      c.wait()
    for writer in self.metrics:
      writer.sync()
    for m, (checkpoint, state) in enumerate(zip(self.checkpoints, made.snapshots, strict=True)):
      if self.failed[m]:
        continue
      member, plan = self.chunk.members[m], self.chunk.plans[m]
      tokens = made.step * plan.tokens_per_step
      checkpoint.save(
          made.step, state["params"], state["opt_state"],
          position={"next_step": made.step, "seed": member.config.seed, "tokens": tokens,
                    "data_fingerprint": self.chunk.prepared.fingerprint,
                    "metrics": self.metrics[m].written()},
          meta={"member": member.name, "step": made.step, "steps": plan.steps, "tokens": tokens,
                "config": as_json(member.config), "model": dataclasses.asdict(plan.model),
                "parameters": plan.parameters, "weight_decay": member.config.optim.weight_decay,
                "tokenizer_fingerprint": self.chunk.prepared.tokenizer_fingerprint,
                "data_fingerprint": self.chunk.prepared.fingerprint})

  def _init(self):
    return self.program.init(np.array([m.config.seed for m in self._padded], np.int32))

  def _restore(self):
    abstract = self.program.abstract_member()
    members = []
    for checkpoint in self.checkpoints:
      params, opt_state, _, _ = checkpoint.restore(  # verified by `resume`
          self.start, abstract["params"], abstract["opt_state"], verify=False)
      self._check_count(checkpoint, opt_state)
      members.append({"params": params, "opt_state": opt_state,
                      "step": np.int32(self.start), "failed_at": np.int32(-1)})
    members += [members[-1]] * (len(self._padded) - len(members))
    return self.program.stack(members)

  def _check_count(self, checkpoint, opt_state):
    """Refuses a state of the optimizer that has counted other steps."""
    for leaf in jax.tree.leaves(opt_state):
      if leaf.ndim == 0 and np.issubdtype(leaf.dtype, np.integer) and int(leaf) != self.start:
        raise RefusedCheckpoint(
            checkpoint.directory / str(self.start),
            f"its optimizer has counted {int(leaf)} updates and not {self.start}")

  def _hyper(self):
    plans = self.chunk.plans + [self.chunk.plans[-1]] * (len(self._padded) - len(self.chunk.plans))
    return self.program.hyper([m.config.optim.learning_rate for m in self._padded],
                              [p.decays for p in plans])

  def _check_space(self):
    # Parameters and two moments in float32, for each checkpoint kept and one being written.
    size = 12 * self.plan.parameters["total"]
    kept = len(set(self.plan.keep_steps)) + 3
    check_space(self.chunk.workdir, size * kept * len(self.directories))


def _eval_losses(evals: dict) -> dict:
  """Mean loss per token of every member [M], by name of the evaluation set."""
  losses = {}
  for name, sums in jax.device_get(evals).items():
    loss_sum_M, weight_sum_M = np.sum(sums, axis=0)
    losses[f"{name}/loss"] = loss_sum_M / weight_sum_M
  return losses
