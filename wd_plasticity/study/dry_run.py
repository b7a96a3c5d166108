"""What a study would run into after hours, found by `--dry_run`: the plans of all its programs.

It looks at the devices, so a study that runs leaves it to its programs, which need them. What
needs none is checked at every start (evals/checks.py, plan.read_tasks).
"""

from collections.abc import Sequence

import jax

from wd_plasticity.errors import UserError
from wd_plasticity.finetuning import lora
from wd_plasticity.members import Member, expand
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import adamw, groups
from wd_plasticity.plan import Plan, make_plan
from wd_plasticity.study.plan import Eval, sweep_of
from wd_plasticity.tasks import registry
from wd_plasticity.training import mesh


def check(members: Sequence[Member], evals: Sequence[Eval]) -> None:
  """Refuses what a program of the study would refuse, as far as it can be known before.

  Raises:
    UserError: as of `make_plan` or of the eval program.
  """
  config = members[0].config
  if config.mesh.cpu_devices:
    jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
  num_devices = jax.device_count()
  plans = [make_plan(m.config, num_devices, config.sweep.members_at_once or 1) for m in members]
  for e in evals:
    devices = num_devices
    if jax.default_backend() == "cpu":  # whose devices each program makes for itself
      devices = e.config.mesh.cpu_devices or (1 if config.mesh.cpu_devices else num_devices)
    try:
      mesh.axis_sizes(e.config.mesh, devices)
      for member, plan in zip(members, plans, strict=True):
        _check_steps(e.config.steps, member, plan)
      if e.program == "finetune":
        for model in {plan.model: None for plan in plans}:
          _check_finetuning(e, model)
    except UserError as error:
      raise UserError(f"{e.program}: {error}") from error


def _check_steps(text: str, member: Member, plan: Plan) -> None:
  """Refuses steps of which no checkpoint will be there."""
  if text.strip() in ("last", "all"):
    return
  kept = {*plan.keep_steps, plan.steps}
  saved = sorted({*kept, *range(plan.checkpoint_every, plan.steps, plan.checkpoint_every)})
  kept |= set(saved[-max(2, member.config.checkpoint.keep_latest):])
  for step in map(int, text.split(",")):
    if step not in kept:
      raise UserError(f"steps={text!r}: {member.name} will have no checkpoint of step {step}, but "
                      f"of {', '.join(map(str, sorted(kept)))}; name some of them, or set "
                      "checkpoint.keep_at.")


def _check_finetuning(e: Eval, model: ModelConfig) -> None:
  """Refuses groups and schedules that the model and the number of steps do not allow."""
  for point in expand(e.config, sweep_of(e), alone=()):
    config = point.config
    group_of = lora.trained_groups(model, config.lora.rank, config.lora.targets,
                                   config.optim.decay.rules)
    groups.decay_multipliers(config.optim.decay, group_of)
    for name in config.tasks:
      problems = len(registry.load(name, "train", config.sources[name]["train"], config.max_train,
                                   config.seed).problems)
      steps = -(-problems // config.batch_size) * config.epochs
      adamw.from_section(config.optim, group_of, steps, 1 << 62)  # tokens are not known yet
