"""A run small enough for tests: config files, and the program as a user starts it."""

import os
import pathlib
import subprocess
import sys

from wd_plasticity.config import default_config

ROOT = pathlib.Path(__file__).parents[1]
_CONFIG = '''
from tiny import tiny_config

def get_config():
  return tiny_config({corpus!r})

def sweep(add):
  for point in {points!r}:
    add(point)
'''


def tiny_config(corpus):
  """A one-layer model on bytes, 24 steps of 8 sequences."""
  config = default_config()
  config.model.update(num_layers=1, width=16, num_heads=2, num_kv_heads=1, ffn_width=24)
  config.data.update(source="files", train=f"{corpus}/*.txt", sequence_length=32,
                     validation_fraction=0.2, train_subset_fraction=0.2, num_workers=1)
  config.data.tokenizer.kind = "byte"
  config.optim.learning_rate = 1e-2
  config.train.update(steps=24, global_batch_size=8, eval_sequences=8, log_every="1 steps",
                      eval_every="8 steps")
  config.checkpoint.every = "4 steps"
  config.sweep.members_at_once = 1
  return config


def write_config(folder, corpus, points=({},)) -> pathlib.Path:
  """A config file in `folder` whose sweep has these points."""
  path = pathlib.Path(folder) / "tiny_run.py"
  path.write_text(_CONFIG.format(corpus=str(corpus), points=list(points)))
  return path


def start(config, workdir, *flags, devices=1, module="wd_plasticity.main"):
  """Starts the program in a process of its own."""
  env = os.environ | {
      "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
      "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(config).parent / "xla"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONUNBUFFERED": "1"}
  command = [sys.executable, "-m", module, f"--config={config}", f"--workdir={workdir}",
             f"--config.mesh.cpu_devices={devices}", *flags]
  return subprocess.Popen(command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def run(*args, expect=0, **kwargs) -> str:
  """Runs the program to its end; returns what it printed."""
  process = start(*args, **kwargs)
  output = process.communicate(timeout=300)[0]
  assert process.returncode == expect, output
  return output
