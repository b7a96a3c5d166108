"""The table and the plot after a sweep: sweep.csv, sweep.json and sweep.png.

Run again at any time, also while members are training:

  python -m wd_plasticity.training.summary --workdir=WORKDIR
"""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box

from wd_plasticity.config import flat_defaults, flatten
from wd_plasticity.console import Console, Table
from wd_plasticity.errors import UserError
from wd_plasticity.files import locked, parse_json, write_atomically, write_text
from wd_plasticity.plain import csv_text, visible
from wd_plasticity.training import checkpoint
from wd_plasticity.training.metrics import read_metrics
from wd_plasticity.training.progress import format_count
from wd_plasticity.training.run_record import FREE_FIELDS

# Fields in which members may differ without being told apart in columns of their own.
_NOT_SWEPT = ("name", "seed", "optim.weight_decay", *FREE_FIELDS)
_COPY = "copy of "
_HUGE = 1e300  # no number of a run reaches it; whole numbers of JSON can
# Terminals with fewer columns get a table of the essentials.
_WIDE = 130


def summarise(workdir: str | os.PathLike) -> list[dict]:
  """Reads what the members of a work directory have written so far.

  Args:
    workdir: of the sweep, with a folder per member in members/.

  Returns:
    One row per member, sorted by weight decay and seed. Losses are in nats per token;
    what is missing or was not finite is None.
      member, weight_decay, seed: which member; then every other field of the
        configuration that differs between members, under its dotted name.
      status: 'done', 'failed at step k', 'unfinished' or 'copy of NAME' (see `copies`); a
        member counts as done when it logged the last of the steps that `total_steps` tells.
      steps, tokens: seen so far.
      validation_loss, train_subset_loss: of the last evaluation.
      gap: validation_loss - train_subset_loss.
      best_validation_loss: the lowest of all evaluations.
      weight_norm: L2 norm of all parameters, from the last weight_norm/<group>.
      reason: why the member failed.

  Raises:
    UserError: if the directory does not exist or a file in it is damaged.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise _no_workdir(workdir)
  folders = sorted(p for p in workdir.glob("members/*") if p.is_dir())
  configs = [config_of(p) for p in folders]
  swept = swept_fields(configs)
  rows = [member_row(folder, config, swept)
          for folder, config in zip(folders, configs, strict=True)]
  for name, original in copies(workdir, rows).items():
    next(r for r in rows if r["member"] == name)["status"] = _COPY + original
  return sorted(rows, key=lambda r: (_or_last(r["weight_decay"]), _or_last(r["seed"]), r["member"]))


def _no_workdir(workdir: Path) -> UserError:
  return UserError(f"there is no work directory {workdir}; give the --workdir of a pretraining.")


def _or_last(value: float | None) -> float:
  return math.inf if value is None else value


def read_json(path: Path) -> dict:
  """The object in a JSON file; empty when there is no such file.

  Raises:
    UserError: it is not one.
  """
  try:
    value = parse_json(path.read_bytes())
  except FileNotFoundError:
    return {}
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror}); restore the file or remove it.") from e
  except ValueError:
    value = None
  if not isinstance(value, dict):
    raise UserError(f"{path} does not hold a JSON object; restore the file or remove it.")
  return value


def config_of(folder: Path) -> dict:
  """The flat configuration of a member; empty when it has none.

  Raises:
    UserError: it is damaged.
  """
  path = folder / "config.json"
  return config_in(read_json(path), path)


def config_in(record: dict, path: Path) -> dict:
  """The flat configuration in the record of a member that was read from `path`; as `config_of`."""
  config = record.get("config", {})
  config = flatten(config) if isinstance(config, dict) else None
  if config is None or (config and not _is_member(config)):
    raise UserError(f"{path} is not the configuration of a member; restore the file or remove it.")
  return config


def _is_member(config: dict) -> bool:
  """Whether what tells members apart is there and of its types."""
  decay, seed = config.get("optim.weight_decay"), config.get("seed")
  return (isinstance(decay, (int, float)) and -_HUGE < decay < _HUGE and isinstance(seed, int)
          and not isinstance(config.get("train.steps"), (list, str)))


def swept_fields(configs: Sequence[dict]) -> list[str]:
  """Dotted fields, beside weight decay and seed, in which flat configurations differ."""
  known = [c for c in configs if c]
  names = sorted(set().union(*known))
  return [name for name in names if not name.startswith(_NOT_SWEPT)
          and len({json.dumps(field(c, name)) for c in known}) > 1]


def field(config: dict, name: str) -> Any:
  """A field of a flat configuration; what was written before it existed had its default."""
  return config[name] if name in config else flat_defaults().get(name)


def member_row(folder: Path, config: dict, swept: Sequence[str]) -> dict:
  """One row of `summarise`.

  Args:
    folder: of the member.
    config: its flat configuration.
    swept: dotted fields that get columns.

  Raises:
    UserError: a file of it is damaged.
  """
  path = folder / "metrics.jsonl"
  records = read_metrics(path) if path.exists() else []
  if not all(v is None or (isinstance(v, (int, float)) and -_HUGE < v < _HUGE)
             for r in records for v in r.values()):
    raise UserError(f"{path} holds a value that is no number; restore the file or delete its line.")
  failure = read_json(folder / "FAILED.json")

  def last(name):
    return next((r[name] for r in reversed(records) if name in r), None)

  steps = last("step") or 0
  validation, train_subset = last("validation/loss"), last("train_subset/loss")
  evaluations = [r["validation/loss"] for r in records if r.get("validation/loss") is not None]
  if failure:
    status = f"failed at step {failure.get('step', steps)}"
  else:
    total = total_steps(folder, config)
    status = "done" if total and steps >= total else "unfinished"
  return {
      "member": folder.name,
      "weight_decay": config.get("optim.weight_decay"),
      "seed": config.get("seed"),
      **{name: field(config, name) for name in swept},
      "status": status,
      "steps": steps,
      "tokens": last("tokens"),
      "validation_loss": validation,
      "train_subset_loss": train_subset,
      "gap": None if None in (validation, train_subset) else validation - train_subset,
      "best_validation_loss": min(evaluations, default=None),
      "weight_norm": _total_norm(records),
      "reason": failure.get("reason", ""),
  }


def copies(workdir: Path, rows: Sequence[dict]) -> dict[str, str]:
  """Members that are no seed of their own: {name: name of the member that counts}.

  Of members with one configuration and seed, such as a folder and its copy, the one that is
  done or furthest counts, then one that has results, then the one with the shortest name.

  Args:
    workdir: of the members.
    rows: as `member_row` gives them.
  """
  evaluated = {p.name for p in workdir.glob("evals/*/*")}
  alike: dict[str, list[dict]] = {}
  for row in rows:
    if None not in (row["weight_decay"], row["seed"]):
      key = [row["seed"], *_setting(row, rows).values()]
      alike.setdefault(json.dumps(key), []).append(row)
  found = {}
  for same in alike.values():
    first, *others = sorted(same, key=lambda r: (
        r["status"] != "done", -r["steps"], r["member"] not in evaluated, len(r["member"]),
        r["member"]))
    found |= {r["member"]: first["member"] for r in others}
  return found


def copies_sentence(found: dict[str, str]) -> str:
  """What is to be said of `copies`."""
  named = ", ".join(f"{name} ({original})" for name, original in sorted(found.items()))
  return ("Members with the configuration and seed of another, in brackets, are no seeds of their "
          f"own and do not count: {named}; move them out of members/.")


def total_steps(folder: Path, config: dict) -> int | None:
  """Steps of the whole training of a member, None where nothing tells.

  From its plan, else from its flat configuration, else from its checkpoints.

  Raises:
    UserError: its plan is damaged.
  """
  planned = read_json(folder / "plan.json").get("steps")
  if planned is not None and not isinstance(planned, int):
    raise UserError(f"{folder / 'plan.json'} does not say its steps as a whole number; restore the "
                    "file or remove it.")
  return planned or config.get("train.steps") or _steps_of_checkpoints(folder / "checkpoints")


def _steps_of_checkpoints(directory: Path) -> int | None:
  """Steps of the whole training, which every checkpoint tells; None without one."""
  stored = checkpoint.finished_steps(directory)
  return checkpoint.read_meta(directory / str(stored[-1]))["steps"] if stored else None


def _total_norm(records: Sequence[dict]) -> float | None:
  """Norm of all parameters: groups are disjoint, so their squares add up."""
  for record in reversed(records):
    norms = [v for name, v in record.items() if name.startswith("weight_norm/")]
    if norms:
      return None if None in norms else math.hypot(*norms)
  return None


@dataclasses.dataclass(frozen=True)
class Setting:
  """Members that are done and differ in their seed alone.

  Attributes:
    values: weight_decay and the other swept fields, by dotted name.
    loss: mean validation loss over the seeds, nats per token.
    rows: of the members.
  """
  values: dict
  loss: float
  rows: list[dict]


def settings(rows: Sequence[dict]) -> list[Setting]:
  """Groups the rows of members that are done with a finite validation loss by setting."""
  groups = {}
  for row in rows:
    if row["status"] == "done" and None not in (row["validation_loss"], row["weight_decay"]):
      values = _setting(row, rows)
      groups.setdefault(json.dumps(values), (values, []))[1].append(row)
  return [Setting(values, statistics.fmean(r["validation_loss"] for r in group), group)
          for values, group in groups.values()]


def _setting(row: dict, rows: Sequence[dict]) -> dict:
  return {name: row[name] for name in ("weight_decay", *_swept_columns(rows))}


def _swept_columns(rows: Sequence[dict]) -> list[str]:
  return [name for name in (rows[0] if rows else {}) if "." in name]


def write_summary(workdir: str | os.PathLike, console: Console | None = None) -> list[dict]:
  """Writes sweep.csv, sweep.json and sweep.png to the work directory and prints the table.

  Args:
    workdir: of the sweep.
    console: to print to; standard output by default.

  Returns:
    The rows of `summarise`.
  """
  from wd_plasticity.training import summary_plot  # matplotlib is slow to import

  workdir = Path(workdir)
  if not workdir.is_dir():
    raise _no_workdir(workdir)
  with locked(workdir / "sweep.csv"):  # of members that end together the last sees all
    rows = summarise(workdir)
    write_text(workdir / "sweep.csv", _csv(rows))
    plain = [{name: _in_json(value) for name, value in row.items()} for row in rows]
    write_text(workdir / "sweep.json", json.dumps(plain, indent=2, allow_nan=False) + "\n")
    write_atomically(workdir / "sweep.png", lambda f: summary_plot.save(rows, settings(rows), f))
  _print_table(rows, console or wide_console())
  return rows


def wide_console(width: int = 160) -> Console:
  """Standard output; where it is a file, which has no width, as wide as `width`."""
  console = Console()
  return console if console.is_terminal else Console(width=width)  # rich would take 80 columns


def _in_json(value: Any) -> Any:
  """The value, or what it prints as where JSON has none, such as NaN in a configuration."""
  try:
    json.dumps(value, allow_nan=False)
    return value
  except ValueError:
    return str(value)


def _csv(rows: Sequence[dict]) -> str:
  columns = list(rows[0]) if rows else ["member", "weight_decay", "seed", "status"]
  return csv_text(columns, ([row[name] for name in columns] for row in rows))


def _words(field: str) -> str:
  """'learning rate' of 'optim.learning_rate'."""
  return field.rsplit(".", 1)[-1].replace("_", " ")


def _number(value: float | None, form: str) -> str:
  return "-" if value is None else format(value, form)


def _print_table(rows: Sequence[dict], console: Console) -> None:
  if not rows:
    console.print("No member has started yet.")
    return
  best = min(settings(rows), key=lambda s: s.loss, default=None)
  columns = {
      "weight decay": lambda r: _number(r["weight_decay"], "g"),
      "seed": lambda r: _number(r["seed"], "d"),
      **{_words(name): lambda r, name=name: str(r[name]) for name in _swept_columns(rows)},
      "steps": lambda r: f"{r['steps']:,}",
      "tokens": lambda r: "-" if r["tokens"] is None else format_count(r["tokens"]),
      "validation": lambda r: _number(r["validation_loss"], ".4f"),
      "train subset": lambda r: _number(r["train_subset_loss"], ".4f"),
      "gap": lambda r: _number(r["gap"], ".4f"),
      "best validation": lambda r: _number(r["best_validation_loss"], ".4f"),
      "weight norm": lambda r: _number(r["weight_norm"], ".4g"),
  }
  if console.width < _WIDE:  # the member's name tells what is swept
    columns = {name: columns[name] for name in
               ("steps", "validation", "train subset", "gap")}
  table = Table(title="Losses in nats per token", title_justify="left", box=box.SIMPLE_HEAD,
                pad_edge=False)
  table.add_column("member", no_wrap=True)
  for name in columns:
    table.add_column(name, justify="right")
  table.add_column("status", no_wrap=True)
  for r in rows:
    is_best = best is not None and r in best.rows
    table.add_row(r["member"], *(cell(r) for cell in columns.values()), r["status"],
                  style="bold green" if is_best else "red" if r["reason"] else None)
  console.print(table)
  if best is not None:
    text = ", ".join(f"{_words(name)} {value:g}" if isinstance(value, float)
                     else f"{_words(name)} {value}" for name, value in best.values.items())
    seeds = f"mean of {len(best.rows)} seeds" if len(best.rows) > 1 else "one seed"
    console.print(visible(f"Lowest validation loss: {best.loss:.4f} at {text}, {seeds}."),
                  markup=False, highlight=False, soft_wrap=True)
  copied = {r["member"]: r["status"].removeprefix(_COPY) for r in rows
            if r["status"].startswith(_COPY)}
  if copied:
    console.print(visible(copies_sentence(copied)), style="yellow", markup=False, highlight=False,
                  soft_wrap=True)
  for r in rows:
    if r["reason"]:
      console.print(visible(f"{r['member']} {r['status']}: {r['reason']}"), style="red",
                    markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
  from absl import flags

  from wd_plasticity import cli

  _WORKDIR = flags.DEFINE_string("workdir", None, "Of a pretraining.", required=True)
  cli.run(lambda _: write_summary(_WORKDIR.value))
