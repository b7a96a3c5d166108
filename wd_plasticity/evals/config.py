"""Every field of the eval programs with its default.

A config file returns one of these and changes fields; any of them can be set on the
command line, as `--config.steps=all`.
"""

from ml_collections import ConfigDict

from wd_plasticity.config import default_config
from wd_plasticity.tasks import registry

# Fields that say which results are wanted and how they are computed, not what they are.
FREE_FIELDS = ("program", "name", "steps", "members_at_once", "cache_dir", "tokenizer_dir", "mesh",
               "distributed", "tasks", "sources")


def shared_config(program: str) -> ConfigDict:
  """What all eval programs have."""
  c = ConfigDict()
  c.program = program  # whose configuration this is
  c.name = ""  # shown in plots
  c.steps = "last"  # of each member: last, all, or numbers such as '100,200'
  c.members_at_once = 0  # members in one compiled program; 0: one on a CPU, else what fits
  c.compute_dtype = ""  # float32 or bfloat16; empty: as pretrained
  c.cache_dir = ""  # prepared pretraining data; empty: in the work directory of the pretraining
  c.tokenizer_dir = ""  # empty: the one beside the checkpoints
  c.mesh = default_config().mesh
  c.distributed = default_config().distributed
  return c


def sources_section() -> ConfigDict:
  """`sources.<task>.train` and `.test`: files, or tfds:NAME/SPLIT, of each task."""
  return ConfigDict({name: {"train": "", "test": ""} for name in registry.names()})


def overfit_config() -> ConfigDict:
  """Fields of the program overfit."""
  c = shared_config("overfit")
  c.sequences = 1024  # evenly spaced records of each token set; 0: all
  c.batch_size = 32  # records; has no effect on the results
  c.frequency = ConfigDict(dict(
      binning="log",  # log, mass, types: see analysis/token_frequency.py
      bins=0,  # log: per factor of ten (0: 2); mass and types: in all (0: 10)
      min_count=10,  # occurrences in a token set of the ids that its balanced mean is over
  ))
  return c
