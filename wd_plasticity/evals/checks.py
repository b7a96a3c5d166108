"""What an eval program refuses before any work: at its start, and by a study before pretraining."""

import os
import re
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from wd_plasticity import limits, paths
from wd_plasticity.analysis import token_frequency
from wd_plasticity.errors import UserError
from wd_plasticity.evals import lm_eval_tasks, split_evaluation
from wd_plasticity.evals.config import check_points
from wd_plasticity.finetuning import lora
from wd_plasticity.finetuning.examples import PROMPT, SHORTEST
from wd_plasticity.limits import choose
from wd_plasticity.members import Member
from wd_plasticity.models.config import CHOICES
from wd_plasticity.optim import adamw, groups, schedules
from wd_plasticity.tasks import registry
from wd_plasticity.training import distributed, mesh

_FOLDERS = ("tokenizer_dir", "reward_model")
_STEPS = re.compile(r"\s*(last|all|\d{1,18}(\s*,\s*\d{1,18})*)\s*")


def check(program: str, points: Sequence[Member]) -> None:
  """Refuses what cannot be run as it says, as far as that can be known without checkpoints.

  Args:
    program: such as 'finetune'.
    points: of its own sweep; one when it has none.

  Raises:
    UserError: with the field and what it can be.
  """
  check_points(program, points)
  for point in points:
    config = point.config
    limits.check(config)
    paths.check_config(config)
    if not _STEPS.fullmatch(config.steps):
      raise UserError(f"steps={config.steps!r} must be last, all, or numbers such as '100,200'.")
    choose("compute_dtype", config.compute_dtype, ("", *CHOICES["compute_dtype"]))
    distributed.check(config.distributed)
    mesh.check_axes(config.mesh)
    if "tasks" in config:
      _check_tasks(config)
    _CHECKS.get(program, lambda config: None)(config)


def check_folders(points: Sequence[Member]) -> None:
  """Refuses folders that are not there, where the program is to run.

  Raises:
    UserError: with the field.
  """
  for point in points:
    for field in _FOLDERS:
      folder = point.config.get(field)
      if folder and not os.path.isdir(folder):
        raise UserError(f"{field}={folder!r} is not a folder; give one that is there, or leave the "
                        "field empty.")


def _check_tasks(config: ConfigDict) -> None:
  if not config.tasks:
    raise UserError("tasks is empty; name some, such as "
                    f"--config.tasks=\"('{'arc_easy' if 'limit' in config else 'sst2'}',)\".")
  for name in config.tasks:
    if config.tasks.count(name) > 1:
      raise UserError(f"tasks={tuple(config.tasks)} names {name} twice.")
    if "sources" in config:  # else they are tasks of others
      registry.get(name)


def _check_overfit(config: ConfigDict) -> None:
  choose("frequency.binning", config.frequency.binning, token_frequency.BINNINGS)


def _check_probe(config: ConfigDict) -> None:
  if not config.inverse_strengths:
    raise UserError("inverse_strengths is empty; it must be positive numbers, such as (0.1, 1.0).")


def _check_finetune(config: ConfigDict) -> None:
  split_evaluation.check(config.evaluate)
  lora.check(config.lora.rank, config.lora.targets)
  if config.template.count(PROMPT) != 1:
    raise UserError(f"template={config.template!r} must contain {PROMPT} once, such as "
                    r"'Human: {prompt}\nAssistant:'.")
  # A word is a token or more; a prompt and a response have one at least.
  needed = max(SHORTEST, len(config.template.replace(PROMPT, " ").split()) + 2)
  if 0 < config.max_length < needed:
    raise UserError(f"max_length={config.max_length} is too short for the template, a prompt and a "
                    f"response, {needed} tokens or more; set it to 0 for that of pretraining.")
  check_optimizer(config.optim)


def check_optimizer(optim: ConfigDict) -> None:
  """Refuses an `optim` section whose words mean nothing, whatever model and steps it is for."""
  choose("optim.decay.convention", optim.decay.convention, adamw.CONVENTIONS)
  choose("optim.decay.preset", optim.decay.preset, tuple(groups.PRESETS))
  groups.parse_rules(optim.decay.rules)
  for field, section in (("optim.schedule", optim.schedule),
                         ("optim.decay.schedule", optim.decay.schedule)):
    schedules.check(section, field)


_CHECKS: dict[str, Callable[[ConfigDict], None]] = {
    "overfit": _check_overfit, "probe": _check_probe, "finetune": _check_finetune,
    "lm_eval": lm_eval_tasks.check}
