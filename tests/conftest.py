"""Tests run on the CPU, seen as eight devices.

Little of what is compiled is optimized, because compilation is most of the time of small programs.
What programs that tests start compile is kept in .jax_cache, for each other and for the next time.
Programs of several devices are not kept: read back, on the CPU, their collectives may wait for each
other without end (seen with jax 0.10.2). So the tests themselves, with eight devices, keep nothing.
"""

import importlib.metadata
import os
import pathlib
import random
import sys

ROOT = pathlib.Path(__file__).parents[1]
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # but programs.py
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}.items():
  os.environ.setdefault(name, value)  # programs that tests start have them too
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag
  os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")  # half the time
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
  """A folder of small text files with learnable regularities, different in each file."""
  folder = tmp_path_factory.mktemp("corpus")
  rng = random.Random(0)
  subjects = ["the decay", "a weight", "this model", "each layer", "the learner", "one head"]
  verbs = ["shrinks", "keeps", "forgets", "rotates", "fits", "follows"]
  objects = ["its norm", "the data", "a direction", "every token", "the noise", "old lessons"]
  for i in range(60):
    lines = [f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(objects)} {i}."
             for _ in range(40)]
    (folder / f"{i:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
  return folder


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory) -> pathlib.Path:
  """The work directory of a sweep of two weight decays, with checkpoints of steps 6 and 12."""
  import tiny
  return tiny.train(corpus, tmp_path_factory.mktemp("trained"))
