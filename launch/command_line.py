"""The flags that all launchers share."""

import datetime
import getpass
import json
import re
import string
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from absl import flags

from launch.jobs import Launch, check
from wd_plasticity import cli, commands, errors, paths
from wd_plasticity import members as members_lib
from wd_plasticity.errors import UserError
from wd_plasticity.study import plan as study_plan
from wd_plasticity.training.run_record import LAUNCH_VARIABLE

_CONFIG = cli.define_config_flag()
_SET_CONFIG = flags.DEFINE_multi_string(
    "set_config", [], "FIELD=VALUE, the same as --config.FIELD=VALUE; may be given repeatedly.")
_SWEEP = flags.DEFINE_string(
    "sweep", "all", "Which members of the config's sweep(add): all, numbers such as 0,2,5-7, or "
    "none for the config without its sweep.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run on the machines of the jobs; {name}, {user}, {date} and "
    "{time} in it are filled in.")
_MEMBERS_PER_JOB = flags.DEFINE_integer(
    "members_per_job", 1, "Members that share a job, on the mesh axis sweep where its devices "
    "allow it.")
_EVALS = flags.DEFINE_bool(
    "evals", True, "Also launch what evals(add) of the config measures, and the report.")
_NAME = flags.DEFINE_string(
    "name", None, "Name of the launch; by default that of the config, or of its file.")
_TAGS = flags.DEFINE_multi_string("tag", [], "A word kept with the run; may be given repeatedly.")
_NOTES = flags.DEFINE_string("notes", "", "A sentence kept with the run.")
_CHECK = flags.DEFINE_bool(
    "check", True, "Check the configuration here; --nocheck where the files it names are only on "
    "the machines of the jobs.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print exactly what would be submitted.")


def run(main: Callable[[Sequence[str]], None], addresses: Collection[str] = ()) -> None:
  """Runs a launcher: `cli.run`, with --set_config understood and all flags in --help."""
  for flag in flags.FLAGS.get_key_flags_for_module(__name__):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])
  try:
    sys.argv = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
  except flags.Error as e:
    errors.exit_with(cli.cannot_be_used(e))
  sys.argv = as_config_flags(sys.argv)
  cli.run(main, addresses)


def as_config_flags(argv: Sequence[str]) -> list[str]:
  """Every --set_config FIELD=VALUE as --config.FIELD=VALUE, which stands behind --config."""
  kept, fields = [], []
  arguments = iter(argv)
  for argument in arguments:
    match = re.fullmatch(r"--?set_config(?:=(.*))?", argument, re.DOTALL)
    if not match:
      kept.append(argument)
      continue
    field = match[1] if match[1] is not None else next(arguments, "")
    if not re.match(r"[A-Za-z_][\w.]*=", field):
      # Left to the parser of flags this would be a sentence about another flag.
      kept.append(f"--config.{field or '?'}")
      continue
    fields.append(f"--config.{field}")
  return kept + fields


def read_launch(devices_per_job: int = 0) -> Launch:
  """What the common flags ask for.

  Args:
    devices_per_job: all devices of one job, over its processes; 0 when unknown.

  Raises:
    UserError: a flag is missing or wrong, or the configuration cannot be run.
  """
  if _CONFIG.value is None:
    raise UserError("--config=FILE is missing; --config=configs/quickstart.py is a first one.")
  if not _WORKDIR.value:
    raise UserError("--workdir=FOLDER is missing; checkpoints, results and the report go there.")
  if _MEMBERS_PER_JOB.value < 1:
    raise UserError(f"--members_per_job={_MEMBERS_PER_JOB.value} must be at least 1.")
  config = _CONFIG.value
  filename, values = cli.config_source()
  sweep = None if _SWEEP.value == "none" else cli.load_sweep(filename)
  members = members_lib.expand(config, sweep, tuple(values))
  for member in members:
    paths.check_config(member.config)
  indices = () if _SWEEP.value == "none" else members_lib.select(members, _SWEEP.value)
  name = _NAME.value or config.name or Path(filename.partition(":")[0]).stem
  launch = Launch(
      config=config, filename=filename,
      overrides=tuple(commands.config_words()[1:]),
      workdir=fill_in(_WORKDIR.value, name), name=name, tags=tuple(_TAGS.value),
      notes=_NOTES.value, members=tuple(members), indices=tuple(indices),
      members_per_job=_MEMBERS_PER_JOB.value, evals=tuple(_evals(filename)),
      devices_per_job=devices_per_job, dry_run=_DRY_RUN.value)
  if _CHECK.value:
    check(launch)
  return launch


def cpu_devices() -> int:
  """Devices as which a process sees its CPU, when it computes on one."""
  return max(1, _CONFIG.value.mesh.cpu_devices) if _CONFIG.value is not None else 1


def _evals(filename: str) -> list[study_plan.Eval]:
  declare = cli.load_function(filename, "evals") if _EVALS.value else None
  if declare is None:
    return []
  _, colon, argument = filename.partition(":")
  return study_plan.load_evals(declare, argument if colon else None)


def fill_in(template: str, name: str) -> str:
  """A work directory with {name}, {user}, {date} and {time} filled in.

  Raises:
    UserError: there are other braces in it.
  """
  now = datetime.datetime.now()
  values = {"name": _as_file_name(name), "user": _user(),
            "date": f"{now:%Y-%m-%d}", "time": f"{now:%H-%M-%S}"}
  try:
    fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
  except ValueError:
    fields = ["?"]
  if unknown := [f for f in fields if f not in values]:
    raise UserError(f"--workdir={template} has {{{unknown[0]}}}, which cannot be filled in; known "
                    "are {name}, {user}, {date} and {time}.")
  return template.format(**values)


def environment(launch: Launch, backend: str) -> dict[str, str]:
  """Variables that every job of a launch is to see.

  The name, tags and notes of the launch are stored by the jobs themselves, in versions.json
  of the work directory; Weights & Biases reads its own variables.
  """
  about = {"backend": backend, "name": launch.name, "tags": list(launch.tags),
           "notes": launch.notes}
  made = {"PYTHONUNBUFFERED": "1", LAUNCH_VARIABLE: json.dumps(about, sort_keys=True)}
  if launch.config.log.wandb:
    made |= {"WANDB_RUN_GROUP": launch.name, "WANDB_TAGS": ",".join(launch.tags),
             "WANDB_NOTES": launch.notes}
  return made


def _as_file_name(name: str) -> str:
  return re.sub(r"[^\w.+-]", "_", name) or "study"


def _user() -> str:
  try:
    return getpass.getuser()
  except (OSError, KeyError):  # of a user id that has no name
    return "user"
