"""The loop of fine-tuning: stacked members through the batches of their seeds."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wd_plasticity.finetuning import batches as batches_lib
from wd_plasticity.finetuning.examples import Example
from wd_plasticity.finetuning.step import TuneProgram
from wd_plasticity.training import mesh as mesh_lib

_CURVE_POINTS = 200  # of the training loss that are kept


@dataclasses.dataclass
class Tuned:
  """What fine-tuning made of M members.

  Attributes:
    params: of all members, on the mesh.
    curve: [{step, loss [M], learning_rate [M]}], means over the steps since the last.
    failed_at: [M] the step whose loss or update was not finite, -1 for none.
    observed: what `observe` returned, by step.
  """
  params: Any
  curve: list[dict]
  failed_at: np.ndarray
  observed: dict[int, Any]


def tune(program: TuneProgram, params_M: Any, examples: Sequence[Example], *, batch_size: int,
         epochs: int, seeds: Sequence[int], learning_rates: Sequence[float], weight_decays: Any,
         replay: Any = None, observe: Callable[[Any], Any] | None = None, observations: int = 0,
         on_step: Callable[[int, float], None] | None = None) -> Tuned:
  """Fine-tunes M members.

  Args:
    program: compiled for M members.
    params_M: where they start; kept as they are.
    examples: what is learnt.
    batch_size: examples of a step.
    epochs: passes over the examples.
    seeds: [M] of the order of the examples, and of LoRA's factors.
    learning_rates: [M] peaks.
    weight_decays: [M, P] per parameter group.
    replay: `replay[step]` gives pretraining records [M, rows, L+1], or None.
    observe: called with the parameters at evenly spaced steps on the way.
    observations: how many.
    on_step: told each step that is done and its mean loss.
  """
  sources = _by_seed(seeds, lambda seed: batches_lib.ExampleBatches(
      examples, batch_size, epochs, seed, program.row_shares))
  shape = sources[0].shape
  for source in sources[1:]:
    shape = shape.cover(source.shape)
  for source in sources:
    source.shape = shape
  steps = len(sources[0])
  frozen = params_M if program.uses_lora else {}
  state = program.start(params_M, program.put(np.asarray(seeds, np.int32), mesh_lib.MEMBERS))
  hyper = program.hyper(learning_rates, weight_decays)
  looks = {round(steps * (i + 1) / (observations + 1)) for i in range(observations)} - {0, steps}
  log_every = max(1, steps // _CURVE_POINTS)
  curve, recent, observed, pending = [], [], {}, None

  def read(step, made):
    values = jax.device_get(made)
    recent.append(values)
    if on_step:
      on_step(step, float(np.mean(values["loss"])))
    if step % log_every == 0 or step == steps:
      curve.append({"step": step, "loss": np.mean([v["loss"] for v in recent], axis=0),
                    "learning_rate": values["learning_rate"]})
      recent.clear()
    return values["failed_at"]

  failed_at = np.full(len(seeds), -1)
  for step in range(1, steps + 1):
    rows = {id(s): s[step - 1] for s in sources}
    batch = {name: np.stack([rows[id(s)][name] for s in sources]) for name in rows[id(sources[0])]}
    batch = {name: program.put(a, mesh_lib.BATCH) for name, a in batch.items()}
    records = None if replay is None else program.put(replay[step - 1], mesh_lib.BATCH)
    state, made = program.train_step(state, frozen, hyper, batch, records)
    if pending is not None:  # read while this step runs
      failed_at = read(*pending)
    pending = step, made
    if step in looks:
      observed[step] = observe(program.parameters(state, frozen))
  failed_at = read(*pending)
  return Tuned(program.parameters(state, frozen), curve, failed_at, observed)


def _by_seed(seeds: Sequence[int], make: Callable[[int], Any]) -> list[Any]:
  """One object per member, made once for members of one seed."""
  made: dict[int, Any] = {}
  for seed in seeds:
    if seed not in made:
      made[seed] = make(seed)
  return [made[seed] for seed in seeds]
