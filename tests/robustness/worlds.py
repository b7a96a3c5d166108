"""Small folders of everything that a user may have: texts, config files, a finished run, a model.

A world is made once and copied for every mistake, so that what a mistake may harm is there. Its
files name each other relative to themselves: a copy is as good as the first.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import warnings

import programs

HERE = pathlib.Path(__file__).parent
STEPS = 8
MEMBERS = ("wd0", "wd1")
RUN = '''
import pathlib
from tiny import tiny_config

def get_config():
  config = tiny_config(pathlib.Path(__file__).parent / "corpus")
  config.train.steps = 8
  config.checkpoint.every = "2 steps"
  config.sweep.members_at_once = 2
  return config

def sweep(add):
  for weight_decay in (0.0, 1.0):
    add({"optim.weight_decay": weight_decay})
'''
STUDY = RUN + '''
def evals(add):
  from wd_plasticity.evals.config import attention_rank_config, overfit_config
  add(attention_rank_config())
  config = overfit_config()
  config.sequences = 16
  add(config)
'''
_EVAL = '''
from wd_plasticity.evals.config import {0}_config

def get_config():
  config = {0}_config()
  {1}
  return config
'''
_EVALS = {
    "attention_rank": "", "overfit": "config.sequences = 16",
    "probe": "config.max_train, config.max_test = 24, 8",
    "finetune": "config.max_train, config.max_test, config.epochs, config.batch_size = 16, 8, 1, 8;"
                "config.evaluate.update(generate='never', observations=0, forgetting_sequences=0);"
                "config.tasks = ('embedded_topic',)",
    "lm_eval": "config.limit = 2"}


def start(module, *flags, **variables) -> programs.Process:
  """Starts one of the modules here that become a program."""
  folders = os.pathsep.join(map(str, (programs.ROOT, programs.ROOT / "tests", HERE)))
  return programs.start(module, *flags, PYTHONPATH=folders, **variables)


def write_corpus(folder: pathlib.Path) -> None:
  folder.mkdir(parents=True)
  rng = random.Random(0)
  for i in range(20):
    lines = [f"the decay {rng.choice('abcdef')} keeps {rng.choice(['norms', 'data'])} {i}."
             for _ in range(30)]
    (folder / f"{i:02d}.txt").write_text("\n".join(lines))


def make(world: pathlib.Path) -> pathlib.Path:
  """Writes a world.

    run.py study.py overfit.py ...    config files
    corpus/ sst2.jsonl                texts, and rows of a task
    done/                             a finished sweep of two, with two evals
    half/                             the same, the last checkpoints gone: it goes on at step 6
    model/                            one of its members as transformers has it
  """
  write_corpus(world / "corpus")
  (world / "run.py").write_text(RUN)
  (world / "study.py").write_text(STUDY)
  for program, changes in _EVALS.items():
    (world / f"{program}.py").write_text(_EVAL.format(program, changes))
  (world / "sst2.jsonl").write_text("".join(
      json.dumps({"sentence": f"a {'good' if i % 2 else 'bad'} film {i}", "label": i % 2}) + "\n"
      for i in range(24)))
  done = world / "done"
  programs.run("wd_plasticity.main", f"--config={world}/run.py", f"--workdir={done}")
  for program in ("attention_rank", "overfit"):
    programs.run(f"wd_plasticity.evals.{program}", f"--config={world}/{program}.py",
                 f"--checkpoint={done}", f"--workdir={done}")
  programs.run("wd_plasticity.interop.export", f"--checkpoint={done}/members/wd1",
               f"--out={world}/model")
  shutil.copytree(done, world / "half")
  shutil.rmtree(world / "half" / "evals")
  for name in MEMBERS:
    shutil.rmtree(world / "half" / "members" / name / "checkpoints" / str(STEPS))
  return world


def hashes(folder: pathlib.Path) -> dict[str, str]:
  """Every file and folder below one, by its relative path, with a hash of what it holds."""
  found = {}
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    if path.is_symlink():
      found[name] = f"link to {path.readlink()}"
    elif path.is_dir():
      found[name] = "folder"
    elif path.is_file():
      found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return found


def stored(step: pathlib.Path) -> dict[str, str]:
  """What a checkpoint holds: a hash of every array, and its JSON."""
  import jax
  import numpy as np

  from wd_plasticity.training.checkpoint import ocp

  found = {}
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no sharding given
    for item in ("params", "opt_state"):
      tree = ocp.load(step, checkpointable_name=item)
      for path, x in jax.tree_util.tree_leaves_with_path(tree):
        x = np.asarray(x)
        found[f"{item}{jax.tree_util.keystr(path)} {x.dtype} {x.shape}"] = hashlib.sha256(
            x.tobytes()).hexdigest()
  for item in ("position", "meta"):
    found[item] = (step / item / "data.json").read_text()
  return found


def outcome(workdir: pathlib.Path, plans: bool = True) -> dict[str, object]:
  """All of a pretraining that an interruption must not change, by its relative path."""
  found = {}
  for member in sorted((workdir / "members").iterdir()):
    for name in ("metrics.jsonl", *(("config.json", "plan.json") if plans else ())):
      path = member / name
      found[f"{member.name}/{name}"] = path.read_bytes() if path.is_file() else None
    for step in sorted((member / "checkpoints").iterdir()):
      found[f"{member.name}/{step.name}"] = stored(step) if step.name.isdigit() else "left over"
  return found


def without_paths(found: dict[str, object]) -> dict[str, object]:
  """An outcome without the configuration in each checkpoint, which names folders of its world."""
  def left(value):
    return {k: v for k, v in value.items() if k != "meta"} if isinstance(value, dict) else value
  return {name: left(value) for name, value in found.items()}


def differences(got: dict, wanted: dict) -> list[str]:
  """Names of what differs."""
  return sorted(k for k in got.keys() | wanted.keys() if got.get(k) != wanted.get(k))


def unfinished(folder: pathlib.Path) -> list[str]:
  """Temporary files and folders that are left."""
  return [str(p.relative_to(folder)) for p in folder.rglob("*")
          if ".orbax-checkpoint-tmp" in p.name or ".tmp" in p.name]

