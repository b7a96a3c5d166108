"""Members of a sweep: `sweep(add)` of a config file to single configurations.

A member is one point of a sweep. Members whose compiled programs agree (same
shapes, same code) can run stacked in one program; they differ only in the
fields of `PER_MEMBER`, which are arrays or seeds to the program.
"""

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from wd_plasticity import typed_config
from wd_plasticity.config import as_json, flatten
from wd_plasticity.errors import UserError

# Fields that are data to the compiled program; all else is compiled in.
PER_MEMBER = ("name", "seed", "optim.learning_rate", "optim.weight_decay",
              "optim.decay.preset", "optim.decay.multipliers")
# Fields that say where and how to run, not what is trained.
_HOW = ("sweep", "mesh", "checkpoint", "log", "distributed", "data.cache_dir", "data.num_workers")
_LONGEST_NAME = 160  # bytes; file systems take 255, of which names of files and jobs add some
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

  Raises:
    UserError: no member, a point that is no dict of known fields, or names that are too long
      or are those of two members.
  """
  members: dict[str, Member] = {}
  configs, names = set(), set()
  def add(point: Mapping[str, Any]) -> None:
    flat = {k: v for k, v in flat_point(point).items()
            if not any(k == f or k.startswith(f"{f}.") for f in fixed)}
    member_config = _override(config, flat)
    values = flatten(as_json(member_config))
    # As the configuration holds it, so that 1 and 1.0 are one value.
    named = {field: _at(member_config, field) for field in flat or alone}
    name = member_name(named)
    content = json.dumps(values, sort_keys=True)
    if content in configs:  # the same run, perhaps with its fields in another order
      return
    if name.lower() in names:
      raise UserError(f"two members of the sweep have the name {name}; vary them by more digits, "
                      "or by more than upper and lower case.")
    if len(name.encode()) > _LONGEST_NAME:
      raise UserError(f"the name of a member, {name[:60]}..., is too long for a folder "
                      f"({len(name.encode())} of at most {_LONGEST_NAME} bytes); sweep over fewer "
                      "fields or shorter texts.")
    configs.add(content)
    names.add(name.lower())
    members[name] = Member(name, member_config, named)
  if sweep is None:
    add({})
  else:
    sweep(add)
  if not members:
    raise UserError("sweep(add) of the config file adds no member; call add({...}) in it.")
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
  chosen: set[int] = set()
  for part in text.split(","):
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
    if not match:
      raise UserError(f"{text!r} does not name members of the sweep; write their numbers, counted "
                      "from 0, such as 0,2,5-7.")
    first, last = int(match[1]), int(match[2] or match[1])
    if last >= len(members) or last < first:
      raise UserError(f"{text} does not name some of the {len(members)} members, 0 to "
                      f"{len(members) - 1}; --dry_run lists them.")
    chosen.update(range(first, last + 1))
  return sorted(chosen)


def member_name(point: Mapping[str, Any]) -> str:
  """A directory name such as wd0.3-seed1 for the overrides of a member."""
  return "-".join(_SHORT.get(field, field.rsplit(".", 1)[-1]) + _as_name(value)
                  for field, value in point.items())


def _as_name(value: Any) -> str:
  if isinstance(value, list | tuple):
    return "_".join(map(_as_name, value))
  text = f"{value:g}" if isinstance(value, float) else str(value)
  return "".join(ch if ch.isalnum() or ch in ".+-_" else "_" for ch in text)


def flat_point(point: Any) -> dict[str, Any]:
  """A point of a sweep: dotted field to value, also of sections that are given as dicts."""
  if not isinstance(point, Mapping) or not all(isinstance(field, str) for field in point):
    raise UserError(f"sweep(add) adds {point!r}; a point is a dict of fields, such as "
                    "add({'optim.weight_decay': 0.1}).")
  point = typed_config.plain(dict(point))
  if empty := _empty_section(point):
    raise UserError(f"sweep(add) sets {empty}={{}}, which names no field.")
  flat = flatten(point)
  return {field: value + 0.0 if isinstance(value, float) else value  # -0.0 is 0.0
          for field, value in flat.items()}


def _empty_section(tree: Mapping[str, Any], prefix: str = "") -> str:
  """The name of a section in nested dicts that has no field; '' when all have some."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      found = _empty_section(value, f"{prefix}{key}.") if value else f"{prefix}{key}"
      if found:
        return found
  return ""


def _at(config: ConfigDict, field: str) -> Any:
  """The value of a dotted field."""
  for name in field.split("."):
    config = config[name]
  return config


def _override(config: ConfigDict, point: Mapping[str, Any]) -> ConfigDict:
  """A copy in which fields are set; those that refer to them follow, as on the command line."""
  config = copy.deepcopy(config)
  for field, value in point.items():
    *path, last = field.split(".")
    section = config
    for name in path:
      section = section.get(name) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or last not in section:
      raise UserError(f"sweep(add) sets the unknown config field {field!r}: "
                      f"{typed_config.unknown_field(field, flatten(config.to_dict()))}")
    if wrong := typed_config.wrong_type(section[last], value):
      raise UserError(f"sweep(add) sets {field}={value!r}, which has the wrong type: it must be "
                      f"{wrong}.")
    section[last] = value
  return config.copy_and_resolve_references()


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
