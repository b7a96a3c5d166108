"""Runs a whole study: pretraining, everything measured on it, and the report.

  python -m wd_plasticity.study --config=configs/quickstart.py --workdir=runs/quickstart

The config is one of pretraining whose file also has a function `evals(add)`. The same
command again goes on where the last one stopped, and redoes what a change of the config
or of the data has made invalid; what it replaces is kept in WORKDIR/outdated.
"""

import contextlib
import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from wd_plasticity import cli, commands, ownership, paths
from wd_plasticity import members as members_lib
from wd_plasticity.console import Console
from wd_plasticity.data import prepare
from wd_plasticity.errors import UserError
from wd_plasticity.files import write_text
from wd_plasticity.report import answer as answer_lib
from wd_plasticity.report import study as study_lib
from wd_plasticity.report import terminal
from wd_plasticity.study import dry_run, plan, processes, records
from wd_plasticity.study import run as run_lib
from wd_plasticity.study.display import Display

_CONFIG = cli.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study; nothing is written outside.")
_STEP = flags.DEFINE_string(
    "step", None, "Become the program of this one eval, for launchers: no other step is run and "
    "no record kept.")
_SWEEP_INDEX = flags.DEFINE_string(
    "sweep_index", "all", "With --step: only these members of the sweep, see wd_plasticity.main.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the steps and their state; run nothing.")


def main(argv: Sequence[str]):
  del argv
  if _CONFIG.value is None:
    raise UserError("--config=FILE is missing; --config=configs/quickstart.py is a first one.")
  if _WORKDIR.value is None:
    raise UserError("--workdir=FOLDER is missing; checkpoints, results and the report go there.")
  config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  filename, overrides = cli.config_source()
  _, colon, argument = filename.partition(":")
  declared = plan.load_evals(cli.load_function(filename, "evals"), argument if colon else None)
  if _STEP.value is not None:
    members = members_lib.chosen(config, cli.load_sweep(filename), tuple(overrides),
                                 _SWEEP_INDEX.value)
    _become(declared, members, workdir)
  if _SWEEP_INDEX.value != "all":
    raise UserError("--sweep_index chooses members for one --step; a study runs all of them.")
  if config.distributed.mode == "on":
    raise UserError("a study starts its programs on one machine; with distributed.mode=on run "
                    "wd_plasticity.main and the eval programs by themselves.")
  members = members_lib.expand(config, cli.load_sweep(filename), tuple(overrides))
  for member in members:
    paths.check_config(member.config)
  # Before anything is changed, data that are looked at for the first time included.
  with contextlib.nullcontext(-1) if _DRY_RUN.value else ownership.hold(workdir) as lock:
    cache = pathlib.Path(config.data.cache_dir or workdir / "cache")
    data_fingerprint = prepare.fingerprint_of(config.data, cache)
    steps = plan.make_steps(commands.config_words(), members, data_fingerprint, declared,
                            str(workdir))
    known = records.Records(workdir)
    if _DRY_RUN.value:
      dry_run.check(members, declared)
      for step in steps:
        print(f"{step.name}: {'done' if known.holds(step) else 'to do'}\n  {step.shown()}")
      return
    for line in records.set_aside_changed_members(workdir, members, data_fingerprint):
      print(line, flush=True)
    for e in declared:
      write_text(plan.config_path(str(workdir), e.program), plan.config_text(e))
    with Display(steps) as display:
      made = run_lib.run(steps, known, display, lock)
  _conclude(made, workdir)


def _become(evals: Sequence[plan.Eval], members: Sequence[members_lib.Member],
            workdir: pathlib.Path) -> None:
  """Turns this process into the eval program that --step names.

  Raises:
    UserError: the study has no such eval.
  """
  wanted = next((e for e in evals if e.program == _STEP.value), None)
  if wanted is None:
    raise UserError(f"--step={_STEP.value} is not an eval of this study; it has "
                    f"{', '.join(e.program for e in evals)}.")
  folders = [str(workdir / "members" / m.name) for m in members
             if not _has_nothing(workdir / "members" / m.name)]
  if not folders:
    raise UserError("all of these members failed in pretraining before their first checkpoint; "
                    "there is nothing to evaluate.")
  path = plan.config_path(str(workdir), wanted.program)
  if not _DRY_RUN.value:
    path = plan.write_beside(path, plan.config_text(wanted))
  command = plan.eval_command(wanted, str(workdir), folders, path)
  if _DRY_RUN.value:
    print(shlex.join(["python", *command]))
    sys.exit(0)
  cli.become(command)


def _has_nothing(member: pathlib.Path) -> bool:
  """Whether a member failed before its first checkpoint, which is said."""
  from wd_plasticity.training import checkpoint  # orbax is slow to import

  if not (member / "FAILED.json").exists() or checkpoint.finished_steps(member / "checkpoints"):
    return False
  print(f"{member.name} failed in pretraining before its first checkpoint and is left out.",
        flush=True)
  return True


def _conclude(made: Sequence[records.Record], workdir: pathlib.Path) -> None:
  """Says what was found, where the report is, and what failed; exit status 1 if something did."""
  if made[-1].state == records.DONE:
    found = study_lib.read(workdir)
    terminal.show(found, answer_lib.answers(found), workdir / "report" / "report.html", Console())
  processes.conclude(
      [(r.name, r.message, workdir / r.log) for r in made if r.state == records.FAILED],
      [r.name for r in made if r.state == records.WAITING],
      [(r.name, r.message) for r in made if r.state == records.DONE and r.message])


if __name__ == "__main__":
  cli.run(main)
