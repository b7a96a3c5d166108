"""Compiles the training step of a configuration for devices that are not here.

  python -m wd_plasticity.bench.ahead_of_time --config=configs/paper/llama2.py:size=1b \\
      --topology=v5e:4x8,a100:8

Says what XLA allocates per device beside what was estimated, and whether it fits. TPUs need
`pip install libtpu` and no TPU. There is no compiling for GPUs without one: for them only
the estimate is shown. cpu:8 compiles for a CPU shown as 8 devices, which tells that it
compiles, and nothing on memory.
"""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from wd_plasticity import cli
from wd_plasticity.bench import measure
from wd_plasticity.bench.slices import Slice
from wd_plasticity.errors import UserError
from wd_plasticity.plan import Plan, make_plan
from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training.step import Program, StepOptions

_GIB = 2**30


class DoesNotFit(Exception):
  """A program needs more memory than its devices have."""


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What came of compiling one training step.

  Attributes:
    peak_bytes: most that a device holds at once: state, batch and temporary arrays.
    state_bytes: parameters and optimizer state of a device, which the step replaces.
    seconds: that compiling took.
    executable: of JAX.
  """
  peak_bytes: int
  state_bytes: int
  seconds: float
  executable: Any


@dataclasses.dataclass(frozen=True)
class Shard:
  """A parameter on one device."""
  name: str
  elements: int  # in all
  on_device: int


def plan_for(config: ConfigDict, devices: Slice) -> Plan:
  """The plan of a configuration on devices that need not be here."""
  with devices.planning():
    return make_plan(config, devices.num_devices)


def training_bytes(plan: Plan) -> int:
  """What a plan estimates for the training step alone, to compare with `Compiled.peak_bytes`."""
  return sum(n for part, n in plan.memory_bytes.items() if part != "snapshot")


def parameter_shards(program: Program) -> list[Shard]:
  """Every parameter with what of it lies on one device."""
  shapes = mesh_lib.flat_names(program.member_shapes["params"])
  placed = mesh_lib.flat_names(program.abstract_member()["params"])
  return [Shard(name, x.size, math.prod(placed[name].sharding.shard_shape(x.shape)))
          for name, x in shapes.items()]


def make_program(config: ConfigDict, plan: Plan, mesh: Mesh | AbstractMesh) -> Program:
  """The real program of one member of a sweep; on an abstract mesh, to look at its shardings."""
  options = StepOptions(
      accumulate_steps=config.train.accumulate_steps, z_loss=config.train.z_loss,
      loss_tile_tokens=config.train.loss_tile_tokens,
      # Which token it is does not change the program.
      end_of_document=0 if config.model.document_mask else None)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    return Program(plan.model, plan.optimizer, options, mesh, 1)


def compile_step(config: ConfigDict, program: Program) -> Compiled:
  """Compiles the training step of one member.

  Raises:
    DoesNotFit: XLA needs more memory than the devices have.
  """
  begin = time.perf_counter()
  try:
    with jax.set_mesh(program.mesh):
      executable = program.compile(config.train.global_batch_size, config.data.sequence_length)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    sizes = re.search(r"\(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)", str(e))
    raise DoesNotFit("XLA finds that it does not fit" + (
        f": {sizes[1]} of temporary arrays, {sizes[2]} available" if sizes else "")) from e
  seconds = time.perf_counter() - begin
  memory = executable.memory_analysis()
  return Compiled(peak_bytes=memory.peak_memory_in_bytes, state_bytes=memory.alias_size_in_bytes,
                  seconds=seconds, executable=executable)


def _row(config: ConfigDict, devices: Slice) -> tuple[list[str], list[str]]:
  """A line of the table, and what is to be said below it."""
  plan = plan_for(config, devices)
  sizes = mesh_lib.axis_sizes(config.mesh, devices.num_devices)
  rows = (config.train.global_batch_size / config.train.accumulate_steps
          / (sizes["data"] * sizes["fsdp"]))
  estimate, snapshot = training_bytes(plan), plan.memory_bytes["snapshot"]
  needed, compiled, notes = estimate + snapshot, ["", "", ""], []
  shards = parameter_shards(make_program(config, plan, devices.abstract_mesh(config.mesh)))
  if devices.platform != "gpu":
    program = make_program(config, plan, devices.mesh(config.mesh))
    try:
      made = compile_step(config, program)
    except DoesNotFit as e:
      needed, notes = math.inf, [f"{devices.name}: {e}."]
    else:
      needed = made.peak_bytes + snapshot
      compiled[2] = f"{made.seconds:.0f}"
      if devices.platform == "tpu":  # for CPUs XLA does not count temporary arrays in the peak
        compiled[:2] = f"{made.peak_bytes / _GIB:.2f}", f"{estimate / made.peak_bytes - 1:+.0%}"
  usable = devices.usable_bytes
  limit = ["", ""] if math.isinf(usable) else [
      f"{usable / _GIB:.1f}", "yes" if needed <= usable else "NO"]
  whole = sum(s.elements for s in shards if s.on_device == s.elements)
  return [devices.name, f"{devices.num_devices}", f"{rows:g}", f"{whole:,}",
          f"{estimate / _GIB:.2f}", *compiled, f"{snapshot / _GIB:.2f}", *limit], notes


def main(config: ConfigDict | None, topologies: Sequence[str]) -> None:
  """Prints the table of a configuration on the devices that are named."""
  if config is None:
    raise UserError("--config=FILE is missing; --config=configs/paper/llama2.py is one.")
  if not topologies:
    raise UserError("--topology is missing; name devices to compile for, such as v5e:4x8.")
  slices = [Slice(name) for name in topologies]
  # What is compiled for is not here, and looking for it would take long.
  jax.config.update("jax_platforms", "cpu")
  on_cpu = [s.num_devices for s in slices if s.platform == "cpu"]
  if len(set(on_cpu)) > 1:
    raise UserError("--topology names different numbers of CPU devices; name one at a time.")
  if on_cpu:
    jax.config.update("jax_num_cpu_devices", on_cpu[0])
  plan = plan_for(config, slices[0])
  print(cli.config_source()[0])
  print(f"{plan.parameters['total']:,} parameters, {plan.steps:,} steps x "
        f"{plan.tokens_per_step:,} tokens = {plan.tokens:,} tokens "
        f"({plan.tokens / plan.parameters['total']:.1f} per parameter)")
  header = ("devices", "number", "sequences each", "whole", "estimated", "XLA's peak",
            "difference", "compile s", "snapshot", "usable", "fits")
  rows, notes = zip(*(_row(config, s) for s in slices), strict=True)
  print(measure.table(header, rows))
  for note in sum(notes, []):
    print(note)
  print("GiB per device. Whole: parameters that every device has all of. "
        "Snapshot: copy of a "
        "checkpoint\nwhile it is written, beside the peak.")


if __name__ == "__main__":
  _CONFIG = cli.define_config_flag()
  _TOPOLOGY = flags.DEFINE_list(
      "topology", [], "Devices, such as v5e:4x8,v5p:2x4x4,a100:8,cpu:8.")
  cli.run(lambda argv: main(_CONFIG.value, _TOPOLOGY.value))
