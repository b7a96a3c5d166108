"""Members of a sweep: `sweep(add)` of a config file to single configurations.

A member is one point of a sweep. Members whose compiled programs agree (same
shapes, same code) can run stacked in one program; they differ only in the
fields of `PER_MEMBER`, which are arrays or seeds to the program.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from wd_plasticity.config import as_json, flatten
from wd_plasticity.errors import UserError

# Fields that are data to the compiled program; all else is compiled in.
PER_MEMBER = ("name", "seed", "optim.learning_rate", "optim.weight_decay",
              "optim.decay.preset", "optim.decay.multipliers")
# Fields that say where and how to run, not what is trained.
_HOW = ("sweep", "mesh", "checkpoint", "log", "distributed", "data.cache_dir", "data.num_workers")
_SHORT = {"optim.weight_decay": "wd", "optim.learning_rate": "lr", "seed": "seed"}


@dataclasses.dataclass(frozen=True)
class Member:
  """One point of a sweep: its name and its whole configuration."""
  name: str
  config: ConfigDict
  overrides: dict


def expand(config: ConfigDict, sweep: Callable | None, fixed: Sequence[str] = (), *,
           alone: Sequence[str] = ("optim.weight_decay", "seed")) -> list[Member]:
  """All members of `sweep(add)`; without a sweep, the one member of the configuration.

  Args:
    config: the configuration that all members share.
    sweep: a function that calls `add({'optim.weight_decay': 0.1, 'seed': 1})` per member.
    fixed: dotted fields given on the command line; they win over the sweep,
      and members that become equal are merged.
    alone: the fields that name a member without overrides.
  """
  points = []
  if sweep is not None:
    sweep(lambda point: points.append(dict(point)))
    if not points:
      raise UserError("sweep(add) of the config file adds no member; call add({...}) in it.")
  else:
    points.append({})
  members = {}
  for point in points:
    point = {k: v for k, v in point.items()
             if not any(k == f or k.startswith(f + ".") for f in fixed)}
    member_config = _override(config, point)
    if not point:
      flat = flatten(as_json(config))
      point = {field: flat[field] for field in alone}
    name = member_name(point)
    if name in members and members[name].overrides != point:
      raise UserError(f"two members of the sweep have the name {name}; vary them by more digits.")
    members[name] = Member(name, member_config, point)
  return list(members.values())


def chosen(config: ConfigDict, sweep: Callable | None, fixed: Sequence[str],
           text: str) -> list[Member]:
  """The members that `--sweep_index` means: those of `select`, or with 'none' the config alone.

  Raises:
    UserError: as of `expand` and `select`.
  """
  if text == "none":
    return expand(config, None, fixed)
  members = expand(config, sweep, fixed)
  return [members[i] for i in select(members, text)]


def select(members: Sequence[Member], text: str) -> list[int]:
  """Places of the members that a text such as '0,2,5-7' means; 'all' means every one.

  Raises:
    UserError: it is not such a text, or names a member that is not there.
  """
  if text == "all":
    return list(range(len(members)))
  chosen = []
  for part in text.split(","):
    first, dash, last = part.strip().partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
      raise UserError(f"{text!r} does not name members of the sweep; write their numbers, counted "
                      "from 0, such as 0,2,5-7.")
    chosen += range(int(first), int(last if dash else first) + 1)
  outside = [i for i in chosen if i >= len(members)]
  if outside or not chosen:
    raise UserError(f"{text} does not name some of the {len(members)} members, 0 to "
                    f"{len(members) - 1}; --dry_run lists them.")
  return sorted(set(chosen))


def member_name(point: dict) -> str:
  """A directory name such as wd0.3-seed1 for the overrides of a member."""
  parts = []
  for field, value in point.items():
    short = _SHORT.get(field, field.rsplit(".", 1)[-1])
    text = f"{value:g}" if isinstance(value, float) else str(value)
    parts.append(short + "".join(ch if ch.isalnum() or ch in ".+-_" else "_" for ch in text))
  return "-".join(parts)


def _override(config: ConfigDict, point: dict) -> ConfigDict:
  config = ConfigDict(config, convert_dict=True).copy_and_resolve_references()
  for field, value in point.items():
    *path, last = field.split(".")
    section = config
    for name in path:
      section = section.get(name) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or last not in section:
      raise UserError(f"sweep(add) sets the unknown config field {field!r}.")
    try:
      with config.unlocked():
        section[last] = value
    except TypeError as e:
      raise UserError(f"sweep(add) sets {field}={value!r}, which has the wrong type: the default "
                      f"is {section[last]!r}.") from e
  return config


def program_signature(config: ConfigDict) -> str:
  """A text that is equal for members which one compiled program and data set can serve."""
  values = as_json(config)
  for field in PER_MEMBER + _HOW:
    *path, last = field.split(".")
    section = values
    for name in path:
      section = section[name]
    section.pop(last, None)
  return json.dumps(values, sort_keys=True)


def stackable(members: Sequence[Member]) -> list[list[Member]]:
  """Members grouped by program, in the order of their first appearance."""
  groups = {}
  for member in members:
    groups.setdefault(program_signature(member.config), []).append(member)
  return list(groups.values())


def chunks(members: Sequence[Member], size: int) -> list[list[Member]]:
  """Members cut into runs of at most `size` that share one program."""
  return [list(members[i:i + size]) for i in range(0, len(members), size)]
