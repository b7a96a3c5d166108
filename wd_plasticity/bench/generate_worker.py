"""The project's own generation as a benchmark worker (see measure.py)."""

import jax
import numpy as np

from wd_plasticity.bench import measure
from wd_plasticity.config import default_config
from wd_plasticity.generation.generate import Generator
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig, preset_section
from wd_plasticity.training import hardware
from wd_plasticity.training import mesh as mesh_lib


def model_of(spec: dict) -> ModelConfig:
  """The model of `spec`: family, size, dtype."""
  section = default_config().model
  section.update(preset_section(spec["family"], spec["size"]))
  section.compute_dtype = spec["dtype"]
  return ModelConfig.from_section(section, default_config().data.tokenizer.vocab_size)


def params_of(model: ModelConfig) -> dict:
  return jax.jit(decoder.init_params, static_argnums=0)(model, jax.random.key(0))


def prompts_of(spec: dict, vocab_size: int) -> list[np.ndarray]:
  """Random prompts whose lengths go evenly from an eighth of `length` to `length`."""
  rng = np.random.default_rng(0)
  lengths = np.linspace(spec["length"] // 8, spec["length"], spec["prompts"]).astype(int)
  return [rng.integers(vocab_size, size=n) for n in rng.permutation(lengths)]


def build(spec: dict):
  """Builds one continuation of all prompts; `spec` is written in generate.py.

  Returns:
    As `measure.serve` wants it.
  """
  hardware.keep_freed_memory()
  model = model_of(spec)
  mesh = mesh_lib.make_mesh(default_config().mesh)
  sampling = Sampling(spec["new_tokens"], temperature=spec["temperature"],
                      num_samples=spec["samples"])
  generator = Generator(model, mesh, 1, sampling, eos_id=None, num_tokens=model.vocab_size)
  params_M = jax.tree.map(lambda x: x[None], params_of(model))
  prompts = prompts_of(spec, model.vocab_size)

  def step():
    return generator.generate(params_M, prompts)

  def peak_memory():
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or measure.resident_peak()

  return step, {"platform": jax.devices()[0].device_kind}, peak_memory


if __name__ == "__main__":
  measure.serve(build)
