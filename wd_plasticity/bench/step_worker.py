"""The project's own training step as a benchmark worker (see measure.py)."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from wd_plasticity.bench import measure
from wd_plasticity.config import default_config
from wd_plasticity.models import flops
from wd_plasticity.models.config import preset_section
from wd_plasticity.plan import make_plan
from wd_plasticity.training import hardware
from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training.step import Program, StepOptions

# Layout of members: all in one program, one after the other, or divided among devices.
LAYOUTS = ("stacked", "turns", "devices")
_PEAK_SIZE = 2048
_PEAK_TRIES = 15


def build(spec: dict):
  """Builds the step of `spec`.

  Args:
    spec: family, size, batch, length, dtype, devices, members and layout. `devices` is
      the number that a CPU is shown as.

  Returns:
    As `measure.serve` wants it; what it tells: compile_seconds, flops per step of one
    member, peak_flops of all devices and whether it is measured, parameters, platform.
  """
  hardware.keep_freed_memory()
  jax.config.update("jax_num_cpu_devices", spec["devices"])
  members, at_once = spec["members"], 1 if spec["layout"] == "turns" else spec["members"]
  config = default_config()
  config.model.update(preset_section(spec["family"], spec["size"]))
  config.model.compute_dtype = spec["dtype"]
  config.data.sequence_length = spec["length"]
  config.train.global_batch_size = spec["batch"]
  if spec["layout"] == "devices":
    config.mesh.update(sweep=jax.device_count(), data=1)
  plan = make_plan(config, jax.device_count(), at_once)
  mesh = mesh_lib.make_mesh(config.mesh)
  program = Program(plan.model, plan.optimizer, StepOptions(), mesh, at_once)
  place = mesh_lib.BatchPlacer(mesh, at_once, spec["batch"])
  tokens = place(np.random.default_rng(0).integers(
      plan.model.vocab_size, size=(at_once, spec["batch"], spec["length"] + 1), dtype=np.int32))
  hyper = program.hyper(np.full(at_once, config.optim.learning_rate),
                        np.tile(plan.decays, (at_once, 1)))
  states = [program.init(np.arange(at_once) + first) for first in range(0, members, at_once)]
  jax.block_until_ready(states)

  begin = time.perf_counter()
  train_step = program.compile(spec["batch"], spec["length"])
  compile_seconds = time.perf_counter() - begin

  def step():
    for i, state in enumerate(states):
      states[i], metrics = train_step(state, hyper, tokens)
    jax.block_until_ready((states, metrics))

  known_peak = hardware.peak_flops() * jax.device_count()
  info = {
      "compile_seconds": compile_seconds, "platform": jax.devices()[0].device_kind,
      "parameters": plan.parameters["total"],
      "flops": flops.train_flops_per_token(plan.model, spec["length"]) * plan.tokens_per_step,
      "peak_flops": known_peak or _measured_peak(), "peak_is_measured": not known_peak}
  return step, info, _peak_memory


def _measured_peak() -> float:
  """FLOP/s of the faster of two large products, float32 or bfloat16 with float32 sums."""
  best = 0.0
  for dtype in (jnp.float32, jnp.bfloat16):
    x = jnp.ones((_PEAK_SIZE, _PEAK_SIZE), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    product(x, x).block_until_ready()
    for _ in range(_PEAK_TRIES):
      begin = time.perf_counter()
      product(x, x).block_until_ready()
      best = max(best, 2 * _PEAK_SIZE**3 / (time.perf_counter() - begin))
  return best


def _peak_memory() -> int:
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use") or measure.resident_peak()


if __name__ == "__main__":
  measure.serve(build)
