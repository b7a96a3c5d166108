"""What all runs of "Weight Decay Improves Language Model Plasticity" have in common.

arXiv 2602.11137 (Han, Bordt, Zhang, Kakade). The files in configs/paper say which run is
which; docs/paper.md tells how sure each number is.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.evals.config import (
    attention_rank_config,
    finetune_config,
    overfit_config,
    probe_config,
)
from wd_plasticity.models.config import preset_section

# Files of each split below DATA/tasks. Levels of MATH are read from the same files.
_MATHEMATICS = {"gsm8k_platinum": "gsm8k_platinum/*"} | {
    f"math_level{level}": "math/*" for level in (1, 2, 3, 4, 5)}
FINETUNING_FILES = {
    "metamathqa": {"train": "metamathqa/*", **_MATHEMATICS},
    "simplescaling": {"train": "simplescaling/*", **_MATHEMATICS},
    "medmcqa": {"train": "medmcqa/train*", "test": "medmcqa/validation*"},
    "pubmedqa": {"train": "pubmedqa/pqa_artificial*", "test": "pubmedqa/pqa_labeled*"},
    "mmlu_pro_cot": {"train": "mmlu_pro_cot/*", "test": "mmlu_pro_cot/*"},
    "race": {"train": "race/train*,race/validation*", "test": "race/test*"},
}
# Sentiment and topic; which data sets the study probed with is not known.
PROBE_FILES = {
    "sst2": {"train": "sst2/train*", "validation": "sst2/validation*"},
    "ag_news": {"train": "ag_news/train*", "test": "ag_news/test*"},
}
_HELD_OUT_TOKENS = 50e6  # the study's separate validation text


def pretraining_config(family: str, size: str, *, tokens: float, sequence_length: int,
                       batch_size: int, tokenizer: tuple[str, str], data: str = "") -> ConfigDict:
  """The part of a pretraining run that does not depend on the family.

  Args:
    family: llama2 or olmo2.
    size: of `models.config.PRESETS`.
    tokens: nominal tokens of the run, such as 20e9; steps are rounded to the nearest.
    sequence_length: tokens of a record.
    batch_size: records of a step.
    tokenizer: its kind and its file below `data`.
    data: folder with pretraining/train, pretraining/validation and the tokenizer; empty: the
      fields that name them are left empty.
  """
  config = default_config()
  config.seed = 42
  config.model.update(preset_section(family, size))
  config.model.compute_dtype = "bfloat16"
  config.model.remat = "dots"
  config.data.source = "files"
  config.data.sequence_length = sequence_length
  config.data.tokenizer.kind, tokenizer_file = tokenizer
  if data:
    config.data.train = f"{data}/pretraining/train/*"
    config.data.validation = f"{data}/pretraining/validation/*"
    config.data.tokenizer.path = f"{data}/{tokenizer_file}"
  # Without files of its own, a share of the training text as large as the study's.
  config.data.validation_fraction = config.data.train_subset_fraction = _HELD_OUT_TOKENS / tokens
  config.train.steps = round(tokens / (batch_size * sequence_length))
  config.train.global_batch_size = batch_size
  config.train.log_every = "10 steps"
  config.train.eval_sequences = 1024
  config.checkpoint.every = "1000 steps"
  config.checkpoint.keep_at = (0.1, 0.25, 0.5, 0.75)
  config.mesh.update(data=1, fsdp=-1)
  # Each member fills the devices; stacking them would not be faster.
  config.sweep.members_at_once = 1
  return config


def choose(name: str, value, table: dict):
  """`table[value]` of a config's argument; a UserError names those that there are."""
  if value not in table:
    raise UserError(f"config argument {name}={value} is not one of the study's; use "
                    f"{', '.join(map(str, table))}.")
  return table[value]


def add_evals(add: Callable, *, learning_rate: float, data: str = "", reward_model: str = ""):
  """What the study measures of every member: ranks, overfitting, probes, fine-tuning.

  Args:
    add: of a config file's `evals(add)`.
    learning_rate: peak of fine-tuning.
    data: folder with the files of `FINETUNING_FILES` and `PROBE_FILES` in tasks/; empty:
      sources are left empty, and a study ends with a sentence that says what is missing.
    reward_model: folder of the outcome reward model; empty: its scores are left out.
  """
  rank = attention_rank_config()
  rank.steps = "all"

  overfit = overfit_config()
  overfit.sequences = round(_HELD_OUT_TOKENS / 2048)

  probe = probe_config()
  _set_tasks(probe, PROBE_FILES, data)

  finetune = finetune_config()
  _set_tasks(finetune, FINETUNING_FILES, data)
  finetune.max_length = 2048
  finetune.optim.learning_rate = learning_rate
  finetune.reward_model = reward_model

  for config in (rank, overfit, probe, finetune):
    config.mesh.update(data=1, fsdp=-1)
    add(config)


def _set_tasks(config: ConfigDict, files: dict, data: str):
  config.tasks = tuple(files)
  for task, splits in files.items() if data else ():
    for split, names in splits.items():
      config.sources[task][split] = ",".join(f"{data}/tasks/{n}" for n in names.split(","))
