"""Tests run on the CPU, seen as eight devices; compiled programs are cached between runs."""

import os
import pathlib
import random
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# Compilation is most of the time of these tests; the programs are small.
jax.config.update("jax_disable_most_optimizations", True)


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
