"""What the numbers of a configuration can be: an interval for every numeric field.

Written as in mathematics: [ and ] belong to it, ( and ) do not. Ends are wide: outside of them a
value is a slip of the pen (NaN, infinity, a size that no machine has), or is not what the device
would compute with. Fields that go into float32 end where float32 does; runs that they make
diverge are a finding, not a mistake. What several fields must be together is checked where it
matters (plan.py, evals/checks.py).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from wd_plasticity.config import flatten
from wd_plasticity.errors import UserError

_SEED = "[0, 2^31)"  # on the devices an int32
_FLOAT32 = "[0, 3.4e38]"
_POSITIVE_FLOAT32 = "[1e-37, 3.4e38]"
_COUNT = "[0, 1e9]"  # of examples; 0 is a word for all, or none

_OPTIM = {
    "learning_rate": _POSITIVE_FLOAT32,
    "beta1": "[0, 0.9999999]",  # what is nearer to 1 is 1 in float32
    "beta2": "[0, 0.9999999]",
    "eps": "[1e-37, 1e3]",
    "clip_norm": _FLOAT32,
    "weight_decay": _FLOAT32,
    "schedule.final_fraction": "[0, 1]",
    "decay.schedule.final_fraction": "[0, 1]",
    "decay.multipliers": _FLOAT32,  # of every group
}

# Fields that are tuples have the interval of their numbers; sections that of their fields.
PRETRAINING = {
    "seed": _SEED,
    "model.num_layers": "[1, 10000]",
    "model.width": "[1, 1e6]",
    "model.num_heads": "[1, 1e5]",
    "model.num_kv_heads": "[1, 1e5]",
    "model.head_dim": "[0, 1e5]",
    "model.ffn_width": "[1, 1e7]",
    "model.vocab_size": "[0, 1e7]",
    "model.rope_theta": "[1, 1e12]",
    "model.norm_eps": "[1e-37, 1]",
    "model.rope_scaling": "(0, 1e9]",
    "data.validation_fraction": "(0, 1)",
    "data.train_subset_fraction": "(0, 1)",
    "data.max_documents": "[0, 1e12]",
    "data.sequence_length": "[1, 1e7]",
    "data.num_workers": "[0, 1024]",
    "data.tokenizer.vocab_size": "[1, 1e7]",
    **{f"optim.{field}": limit for field, limit in _OPTIM.items()},
    "train.steps": "[0, 1e9]",  # counted in an int32
    "train.tokens_per_parameter": "[0, 1e7]",
    "train.global_batch_size": "[1, 1e7]",
    "train.accumulate_steps": "[1, 1e6]",
    "train.z_loss": "[0, 1e6]",
    "train.loss_tile_tokens": _COUNT,
    "train.eval_sequences": "[1, 1e9]",
    "sweep.members_at_once": "[0, 1e5]",
    "mesh": "[-1, 1e6]",  # of every axis, see training/mesh.py
    "mesh.cpu_devices": "[0, 1024]",
    "checkpoint.keep_latest": "[1, 1e6]",
    "checkpoint.keep_at": "(0, 1]",
    "distributed.num_processes": "[0, 1e6]",
    "distributed.process_id": "[-1, 1e6]",
    "distributed.timeout_seconds": "[1, 1e6]",
}
_SHARED = {"members_at_once": "[0, 1e5]",
           **{field: limit for field, limit in PRETRAINING.items()
              if field.startswith(("mesh", "distributed"))}}
EVALS = {
    "overfit": _SHARED | {
        "sequences": _COUNT,
        "batch_size": "[1, 1e6]",
        "frequency.bins": "[0, 1000]",
        "frequency.min_count": "[0, 1e12]",
    },
    "probe": _SHARED | {
        "max_train": _COUNT,
        "max_test": _COUNT,
        "seed": _SEED,
        "held_out": "(0, 1)",
        "inverse_strengths": "[1e-9, 1e9]",
        "batch_tokens": "[1, 1e9]",
    },
    "finetune": _SHARED | {
        "seed": _SEED,
        "max_train": _COUNT,
        "max_test": _COUNT,
        "max_length": "[0, 1e7]",
        "epochs": "[1, 1e4]",
        "batch_size": "[1, 1e6]",
        **{f"optim.{field}": limit for field, limit in _OPTIM.items()},
        "lora.rank": "[0, 1e5]",
        "lora.alpha": "(0, 1e6]",
        "replay.fraction": "[0, 1)",
        "evaluate.samples": "[0, 1e4]",
        "evaluate.max_new_tokens": "[0, 1e7]",
        "evaluate.temperature": "(0, 1e3]",
        "evaluate.top_p": "(0, 1]",
        "evaluate.repetition_penalty": "(0, 1e3]",
        "evaluate.observations": "[0, 1e5]",
        "evaluate.observed_problems": _COUNT,
        "evaluate.forgetting_sequences": _COUNT,
    },
    "attention_rank": _SHARED | {
        "threshold": "(0, 1]",
        "power": "[1, 2]",
    },
    "lm_eval": _SHARED | {
        "num_fewshot": "[-1, 1e4]",
        "limit": _COUNT,
        "seed": _SEED,
        "max_length": "[0, 1e7]",
        "max_gen_toks": "[1, 1e7]",
    },
}
# Tuples of texts; every other tuple is of numbers.
_TEXTS = ("tasks", "optim.decay.rules", "lora.targets", "evaluate.stop")


@dataclasses.dataclass(frozen=True)
class Interval:
  """Numbers from `low` to `high`, as `text` writes it."""
  text: str
  low: float
  high: float

  def __contains__(self, number: Any) -> bool:
    # NaN is in none. Python compares whole numbers of any size with floats exactly.
    return ((self.low <= number if self.text[0] == "[" else self.low < number)
            and (number <= self.high if self.text[-1] == "]" else number < self.high))

  def __str__(self) -> str:
    low, high = _ENDS.findall(self.text)
    least = f"above {low}" if self.text[0] == "(" else (
        "0 or more" if low == "0" else f"at least {low}")
    return f"{least} and {'at most' if self.text[-1] == ']' else 'below'} {high}"


_ENDS = re.compile(r"[^\[\](), ]+")


@functools.cache
def interval(text: str) -> Interval:
  """The interval that a text such as '[0, 2^31)' writes."""
  low, high = (float(base) ** float(power or 1) for base, _, power in
               (end.partition("^") for end in _ENDS.findall(text)))
  return Interval(text, low, high)


def limit_of(field: str, program: str = "") -> Interval | None:
  """The interval of a dotted field of a program ('' for pretraining); None when it has none."""
  table = EVALS.get(program, {}) if program else PRETRAINING
  while field not in table and "." in field:
    field = field.rpartition(".")[0]
  return interval(table[field]) if field in table else None


def check(config: ConfigDict) -> None:
  """Refuses numbers outside their intervals, and tuples of something else.

  Args:
    config: of pretraining, or of the program that its field `program` names.

  Raises:
    UserError: with the field and what it can be.
  """
  program = config.get("program", "")
  for field, value in flatten(config.to_dict()).items():
    limit = limit_of(field, program)
    if isinstance(value, list | tuple):
      for entry in value:
        if field in _TEXTS and not isinstance(entry, str):
          raise UserError(f"{field}={value!r} must be texts, and {entry!r} is none.")
        if limit is not None and not _holds(limit, entry):
          raise UserError(f"{field}={value!r} must be numbers that are {limit}, and {entry!r} is "
                          "not.")
    elif limit is not None and not _holds(limit, value):
      raise UserError(f"{field}={value!r} must be {limit}.")


def _holds(limit: Interval, number: Any) -> bool:
  return isinstance(number, int | float) and number in limit


def choose(field: str, value: str, choices: Sequence[str]) -> None:
  """Refuses a word that is not one of those that a field can have."""
  if value not in choices:
    raise UserError(f"{field}={value!r} is unknown; use one of "
                    f"{', '.join(c or 'nothing' for c in choices)}.")
