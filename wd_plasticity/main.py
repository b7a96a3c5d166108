"""Pretrains the members of a sweep and stores their checkpoints.

  python -m wd_plasticity.main --config=configs/quickstart.py --workdir=runs/quickstart

Any field of the config can be set: --config.optim.weight_decay=0.3. The same command
again goes on where the last one stopped.
"""

import contextlib
import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import ConfigDict

from wd_plasticity import cli, ownership, paths
from wd_plasticity import members as members_lib
from wd_plasticity.data.prepare import check as check_data
from wd_plasticity.data.prepare import prepare
from wd_plasticity.errors import UserError
from wd_plasticity.files import write_json
from wd_plasticity.members import Member
from wd_plasticity.plan import as_record, describe, describe_members, make_plan
from wd_plasticity.training import distributed, hardware, run_record, summary, sweep
from wd_plasticity.training.loop import StopSignal

_CONFIG = cli.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; nothing is written outside.")
_SWEEP_INDEX = flags.DEFINE_string(
    "sweep_index", "all", "Run only these members of the sweep, counted from 0: 2, or 0,2,5-7; "
    "none: what the config says without its sweep.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be run, and run nothing.")


def main(argv: Sequence[str]):
  del argv
  if _CONFIG.value is None:
    raise UserError("--config=FILE is missing; --config=configs/quickstart.py is a first one.")
  if _WORKDIR.value is None and not _DRY_RUN.value:
    raise UserError("--workdir=FOLDER is missing; checkpoints and metrics are written there.")
  config = _CONFIG.value
  filename, overrides = cli.config_source()
  members = members_lib.chosen(config, cli.load_sweep(filename), tuple(overrides),
                               _SWEEP_INDEX.value)
  for member in members:
    paths.check_config(member.config)
  hardware.keep_freed_memory()
  _show_cpu_devices(config)
  line = distributed.initialise(config.distributed)
  groups = members_lib.stackable(members)
  plans = [[make_plan(m.config, jax.device_count(), config.sweep.members_at_once or 1)
            for m in group] for group in groups]
  if _DRY_RUN.value:
    for group in groups:
      if group[0].config.data.train:  # a plan can be made before files are named
        check_data(group[0].config.data)
    print(line)
    for group, group_plans in zip(groups, plans, strict=True):
      print(describe(group[0], group_plans[0], len(group)))
    by_name = {m.name: p for g, ps in zip(groups, plans, strict=True)
               for m, p in zip(g, ps, strict=True)}
    print(describe_members(members, [by_name[m.name] for m in members]))
    return
  print(line, flush=True)
  _run(groups, plans, pathlib.Path(_WORKDIR.value))


def _run(groups: list[list[Member]], plans: list, workdir: pathlib.Path):
  names = [m.name for members in groups for m in members]
  with contextlib.ExitStack() as stack:
    distributed.first_does("the members are held", lambda: stack.enter_context(
        ownership.hold_members(workdir, names)))
    _train(groups, plans, workdir)
  distributed.barrier("end of the run")
  _refuse_no_result(names, workdir)


def _train(groups: list[list[Member]], plans: list, workdir: pathlib.Path):
  distributed.first_does("the work directory", lambda: run_record.open_workdir(workdir))
  jobs = []
  for members, group_plans in zip(groups, plans, strict=True):
    prepared = _prepare(members[0].config, workdir)
    distributed.first_does("the members", lambda members=members, plans=group_plans,
                           prepared=prepared: _open_members(members, plans, prepared, workdir))
    jobs.append((members, group_plans, prepared))
  described = describe(groups[0][0], plans[0][0], len(groups[0]))  # asks all processes
  if distributed.is_first():
    print(described, flush=True)
  stop = StopSignal()
  stop.install()  # not before: what comes earlier can simply be ended
  sweep.train(jobs, workdir, stop)
  if distributed.is_first():
    summary.write_summary(workdir)


def _open_members(members: list[Member], plans: list, prepared, workdir: pathlib.Path):
  """Compares members with their first start, or makes their folders."""
  for member in members:
    run_record.check_member(workdir / "members" / member.name, member.config,
                            tokenizer_fingerprint=prepared.tokenizer_fingerprint,
                            data_fingerprint=prepared.fingerprint)
  for member, plan in zip(members, plans, strict=True):
    directory = workdir / "members" / member.name
    write_json(directory / "plan.json", as_record(plan))
    prepared.tokenizer.save(directory / "tokenizer")  # what the checkpoints were trained with


def _refuse_no_result(names: list[str], workdir: pathlib.Path):
  """Ends with an error when no member is left; only says it when some have failed."""
  failed = [n for n in names if (workdir / "members" / n / "FAILED.json").exists()]
  if not failed:
    return
  shown = ", ".join(failed[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
  if len(failed) < len(names):
    if distributed.is_first():
      print(f"warning: {len(failed)} of {len(names)} members failed ({shown}): the loss or an "
            "update was not finite; the others are done.", file=sys.stderr, flush=True)
    return
  distributed.leave()
  raise UserError(
      f"no member is left: the loss or an update of {shown} was not finite; lower the learning "
      "rate or set optim.clip_norm, and give another --workdir or move the failed members away.")


def _prepare(config: ConfigDict, workdir: pathlib.Path):
  """Prepared data; the first process makes them, the others then find them in the cache."""
  cache = pathlib.Path(config.data.cache_dir or workdir / "cache")
  prepared = distributed.first_does("data are prepared",
                                     lambda: prepare(config.data, cache, print))
  return prepared or prepare(config.data, cache, lambda line: None, verify=False)


def _show_cpu_devices(config: ConfigDict):
  """Lets the CPU be seen as several devices, before JAX looks at its devices."""
  if config.mesh.cpu_devices:
    jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)


if __name__ == "__main__":
  cli.run(main)
