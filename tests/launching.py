"""Launchers and studies as a user starts them."""

import programs

STUDY = """
from tiny import tiny_config
from wd_plasticity.evals.config import attention_rank_config, overfit_config

def get_config():
  return tiny_config({corpus!r})

def sweep(add):
  for point in {points!r}:
    add(point)

def evals(add):
  add(attention_rank_config())
  if {overfit!r}:
    add(overfit_config())
"""
POINTS = tuple({"optim.weight_decay": w, "seed": 1} for w in (0.0, 1.0))


def write_study(folder, corpus, points=POINTS, overfit=False):
  """A config file of a study in `folder`."""
  path = folder / "tiny_study.py"
  path.write_text(STUDY.format(corpus=str(corpus), points=list(points), overfit=overfit))
  return path


def many(program, *commands):
  """Runs `python -m program` with each list of flags; returns [(exit status, output)].

  In front of the flags there may be variables: PATH=/bin.
  """
  made = []
  for command in commands:
    flags = list(map(str, command))
    variables = {}
    while flags and not flags[0].startswith("-"):
      name, _, value = flags.pop(0).partition("=")
      variables[name] = value
    process = programs.start(program, *flags, **variables)
    made.append((process.wait(), process.said()))
  return made
