"""A run small enough for tests: config files, and the program as a user starts it."""

import json
import pathlib

import programs

from wd_plasticity.config import default_config

ROOT = programs.ROOT
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
  cache = json.dumps(devices == 1)  # conftest.py
  return programs.start(module, f"--config={config}", f"--workdir={workdir}",
                        f"--config.mesh.cpu_devices={devices}", *flags,
                        JAX_ENABLE_COMPILATION_CACHE=cache)


def run(*args, expect=0, **kwargs) -> str:
  """Runs the program to its end; returns what it printed."""
  return start(*args, **kwargs).finish(expect)


def prepared_sweep(corpus, workdir, weight_decays=(0.0, 3.0), steps=12):
  """(members, plans, prepared) of a sweep of tiny members, with all but their checkpoints there."""
  from wd_plasticity import members as members_lib
  from wd_plasticity.data.prepare import prepare
  from wd_plasticity.plan import make_plan
  from wd_plasticity.training import run_record

  config = tiny_config(corpus)
  config.mesh.data = 8
  config.model.vocab_size = 258  # even, for meshes with a tensor axis
  config.train.update(steps=steps, eval_every="50%")
  config.checkpoint.update(every="50%", keep_at=(0.5,))
  config.sweep.members_at_once = len(weight_decays)
  members = members_lib.expand(
      config, lambda add: [add({"optim.weight_decay": w, "seed": 0}) for w in weight_decays])
  prepared = prepare(config.data, workdir / "cache", lambda line: None)
  plans = [make_plan(m.config, 8, len(members)) for m in members]
  for member in members:
    directory = workdir / "members" / member.name
    run_record.check_member(directory, member.config, data_fingerprint=prepared.fingerprint,
                            tokenizer_fingerprint=prepared.tokenizer_fingerprint)
    prepared.tokenizer.save(directory / "tokenizer")
  return members, plans, prepared


def train(corpus, workdir, stop=None) -> pathlib.Path:
  """Pretrains tiny members in this process; returns the work directory."""
  from wd_plasticity.training import sweep
  from wd_plasticity.training.loop import StopSignal

  sweep.train([prepared_sweep(corpus, workdir)], workdir, stop or StopSignal())
  return workdir


def session(program, config, checkpoints, workdir, points=(), replace=False, **mesh):
  """A session of an eval program in this process, on a mesh of all eight devices."""
  from wd_plasticity import members as members_lib
  from wd_plasticity.evals.program import Session

  config.mesh.update(mesh or dict(sweep=1, data=8, fsdp=1, tensor=1))
  points = points or members_lib.expand(config, None, alone=())
  return Session(program, config, [str(c) for c in checkpoints], str(workdir), command="test",
                 points=points, replace=replace)
