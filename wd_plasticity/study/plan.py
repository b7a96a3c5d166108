"""The steps of a study, from its config file: pretraining, what is measured, the report.

A config file of a study is one of pretraining with a function `evals(add)` that names
the eval programs by their configurations, as `sweep(add)` names the members:

  def evals(add):
    finetune = finetune_config()
    finetune.tasks = ("embedded_topic",)
    add(finetune, sweep=[{"optim.learning_rate": r} for r in (1e-3, 3e-3)], minutes=2)
"""

import ast
import dataclasses
import functools
import hashlib
import json
import pathlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from wd_plasticity import typed_config
from wd_plasticity.config import as_json, flatten
from wd_plasticity.errors import UserError
from wd_plasticity.evals import checks, lm_eval_tasks
from wd_plasticity.evals import config as eval_config
from wd_plasticity.files import write_text
from wd_plasticity.members import Member, expand, flat_point
from wd_plasticity.plan import check_fields
from wd_plasticity.tasks import registry

PROGRAMS = ("overfit", "probe", "attention_rank", "finetune", "lm_eval")
PRETRAINING, REPORT = "pretraining", "report"


@dataclasses.dataclass(frozen=True)
class Eval:
  """One eval program of a study.

  Attributes:
    config: of the program, its name included.
    sweep: its points; empty for none.
    minutes: how long it is expected to take, for the time left; 0 when unknown.
  """
  config: ConfigDict
  sweep: tuple[Mapping[str, Any], ...] = ()
  minutes: float = 0.0

  @property
  def program(self) -> str:
    return self.config.program


@dataclasses.dataclass(frozen=True)
class Step:
  """One program that is run, and what decides whether it has to be run again.

  Attributes:
    name: 'pretraining', an eval program, or 'report'.
    command: arguments of the Python interpreter.
    inputs: fingerprint of everything it is made from, but for the steps before it.
    outputs: globs of its results, relative to the work directory.
    after: steps whose results it reads.
    any_of: it is run if one of the steps in `after` has results, otherwise all must.
    minutes: expected; 0 when unknown.
  """
  name: str
  command: tuple[str, ...]
  inputs: str
  outputs: tuple[str, ...]
  after: tuple[str, ...] = ()
  any_of: bool = False
  minutes: float = 0.0

  def shown(self) -> str:
    """The command as a user would type it."""
    return shlex.join(["python", *self.command])


def load_evals(declare: Callable | None, argument: str | None) -> list[Eval]:
  """What `evals(add)` of a config file adds.

  Args:
    declare: the function; it is given `argument` as well when there is one.
    argument: what stands behind the colon of --config=FILE:ARGUMENT.

  Raises:
    UserError: no evals, an unknown program, one that is added twice, or one that is configured
      in a way that it would refuse.
  """
  if declare is None:
    raise UserError("the config file has no function evals(add), which says what a study measures; "
                    "configs/quickstart.py has one, and wd_plasticity.main pretrains without.")
  evals: list[Eval] = []
  def add(config: ConfigDict, sweep: Sequence[Mapping[str, Any]] = (), minutes: float = 0.0):
    program = config.get("program") if isinstance(config, ConfigDict) else type(config).__name__
    if program not in PROGRAMS:
      raise UserError(f"evals(add) adds a configuration of {program!r}; it can be one of "
                      f"{', '.join(PROGRAMS)}, from wd_plasticity.evals.config.")
    if program in [e.program for e in evals]:
      raise UserError(f"evals(add) adds {program} twice; one configuration can name all its tasks.")
    typed_config.check(config, f"the configuration of {program}")
    added = Eval(config.copy_and_resolve_references(), _points(sweep), _minutes(minutes))
    points = expand(added.config, sweep_of(added), alone=())
    checks.check(program, points)
    for point, other in zip(points, expand(config, sweep_of(added), alone=()), strict=False):
      if as_json(point.config) != as_json(other.config):  # the file of a step has no references
        raise UserError(f"the sweep of {program} sets {', '.join(point.overrides)}, which other "
                        "fields follow (get_ref); set these in every point, too.")
    evals.append(added)
  declare(add) if argument is None else declare(add, argument)
  if not evals:
    raise UserError("evals(add) of the config file adds nothing; call add(finetune_config()).")
  return evals


def _points(sweep: Any) -> tuple[Mapping[str, Any], ...]:
  """The points of an eval's sweep, as Python's own values."""
  if isinstance(sweep, str | Mapping) or not isinstance(sweep, Iterable):
    raise UserError(f"evals(add) adds sweep={sweep!r}; it is a list of points, such as "
                    "[{'optim.learning_rate': 1e-3}].")
  return tuple(flat_point(point) for point in sweep)


def _minutes(minutes: Any) -> float:
  minutes = typed_config.plain(minutes)
  if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 <= minutes < 1e9:
    raise UserError(f"evals(add) adds minutes={minutes!r}, which must be a number of at least 0.")
  return minutes


def read_tasks(e: Eval) -> list[str]:
  """Reads the data of every task of a program, so that a mistake is found before any training.

  Returns:
    Fingerprints of what was read.

  Raises:
    UserError: an impossible field, an unknown task, or files that cannot be read.
  """
  points = expand(e.config, sweep_of(e), alone=())
  checks.check(e.program, points)
  checks.check_folders(points)
  if e.program == "lm_eval":
    return lm_eval_tasks.read(e.config)
  found = []
  for name in e.config.get("tasks", ()):
    task, sources = registry.get(name), e.config.sources[name]
    wanted = [s for s in task.splits if task.embedded or sources[s]]
    if len(wanted) < 2:
      missing = next(s for s in task.splits if s not in wanted)
      raise UserError(f"task {name} of {e.program} needs files to learn from and files to be "
                      f"tested on; set sources.{name}.{missing} of its configuration.")
    found += [_fingerprint_of_split(name, split, sources[split]) for split in wanted]
  return found


@functools.cache  # programs often share tasks
def _fingerprint_of_split(name: str, split: str, source: str) -> str:
  return registry.load(name, split, source).fingerprint


def make_steps(own_flags: Sequence[str], members: Sequence[Member], data_fingerprint: str,
               evals: Sequence[Eval], workdir: str) -> list[Step]:
  """The steps of a study in the order in which they are run.

  Args:
    own_flags: that set the configuration of the pretraining (`commands.config_words`).
    members: of the pretraining.
    data_fingerprint: of its data as they are now.
    evals: what is measured.
    workdir: of the study.

  Raises:
    UserError: a field of a member or of an eval that means nothing, or tasks that cannot be read.
  """
  for member in members:
    check_fields(member.config)
  place = f"--workdir={workdir}"
  steps = [Step(
      PRETRAINING, ("-m", "wd_plasticity.main", *own_flags, place),
      fingerprint([{"name": m.name, "config": as_json(m.config)} for m in members],
                  data_fingerprint),
      ("members/*/config.json", "members/*/metrics.jsonl", "members/*/FAILED.json",
       "members/*/checkpoints/*/commit_success.txt"))]
  for e in evals:
    steps.append(Step(
        e.program, eval_command(e, workdir, [workdir]),
        fingerprint(as_json(e.config), e.sweep, read_tasks(e)),
        (f"evals/{e.program}/*/*/*.json", f"evals/{e.program}/*/*/*.npz"),
        after=(PRETRAINING,), minutes=e.minutes))
  steps.append(Step(
      REPORT, ("-m", "wd_plasticity.report", place), "", ("report/**/*",),
      after=tuple(s.name for s in steps), any_of=True, minutes=0.3))
  return steps


def eval_command(e: Eval, workdir: str, checkpoints: Sequence[str],
                 config: pathlib.Path | None = None) -> tuple[str, ...]:
  """Arguments of the Python interpreter that run an eval on checkpoints of a study.

  Its configuration is in the file `config`, by default `config_path`.
  """
  return ("-m", f"wd_plasticity.evals.{e.program}",
          f"--config={config or config_path(workdir, e.program)}",
          *(f"--checkpoint={c}" for c in checkpoints), f"--workdir={workdir}", "--replace")


def fingerprint(*values: Any) -> str:
  """A short hash of values that JSON can hold."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


# Configurations as files, so that any step can be run again by its own command.


def config_path(workdir: str, program: str) -> pathlib.Path:
  return pathlib.Path(workdir) / "study" / f"{program}.py"


def write_beside(path: pathlib.Path, text: str) -> pathlib.Path:
  """Writes a configuration, under another name where that of a study is; returns where it is."""
  if not path.exists():
    write_text(path, text)
  if path.read_bytes() != text.encode("utf-8"):  # of a study that may be running
    path = path.with_stem(f"{path.stem}-{fingerprint(text)[:8]}")
    write_text(path, text)
  return path


def config_text(e: Eval) -> str:
  """A config file with the fields in which a configuration differs from the default."""
  default = flatten(getattr(eval_config, f"{e.program}_config")().to_dict())
  lines = [
      '"""Written by wd_plasticity.study; change the config of the study instead."""', "",
      f"from wd_plasticity.evals.config import {e.program}_config", "", "",
      "def get_config():", f"  config = {e.program}_config()"]
  lines += [f"  config.{field} = {_literal(value)}"
            for field, value in flatten(e.config.to_dict()).items()
            if field not in default or default[field] != value]
  lines += ["  return config"]
  if e.sweep:
    lines += ["", "", "def sweep(add):", *(f"  add({_literal(dict(point))})" for point in e.sweep)]
  return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
  """The value as Python spells it, also one of numpy's."""
  value = typed_config.plain(value)
  text = repr(value)
  try:
    same = ast.literal_eval(text) == value
  except (SyntaxError, ValueError):
    same = False
  if not same:  # infinity, or an object
    raise UserError(f"{text} cannot be written into the config file of a step; use numbers, texts "
                    "and tuples of them.")
  return text


def sweep_of(e: Eval) -> Callable | None:
  """The points of an eval as a function `sweep(add)`."""
  return (lambda add: [add(point) for point in e.sweep]) if e.sweep else None
