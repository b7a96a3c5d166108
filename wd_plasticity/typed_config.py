"""Configurations that hold what was written: known fields, values of their types, plain numbers.

A function decorated by `declares` returns every field of a program with its default. What it
returns is locked: a config file that misspells a field fails in its own line. Since a file can
build or unlock a configuration of its own, `check` compares with what was declared once more.
"""

import difflib
import functools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FieldReference

from wd_plasticity.errors import UserError

# Sections that may have fields of a user's own: groups of `optim.decay.rules`.
_OPEN = ("optim.decay.multipliers",)
_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text",
          tuple: "a tuple", list: "a list"}
# Program to the function that declares its fields; '' is pretraining.
DECLARED: dict[str, Callable[[], ConfigDict]] = {}


def plain(value: Any) -> Any:
  """The value in Python's own types where it is of numpy's, also within tuples, lists and dicts.

  A number of fewer bits becomes the shortest decimal that it is written with: 0.1 of
  np.float32(0.1), not 0.10000000149.
  """
  if isinstance(value, np.generic):
    item = value.item()
    return float(str(value)) if isinstance(item, float | np.floating) else item
  if hasattr(value, "__array__"):
    array = np.asarray(value)
    return plain(array[()]) if array.ndim == 0 else [plain(v) for v in array]
  if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
    return type(value)(plain(v) for v in value)
  if isinstance(value, dict):
    return {plain(k): plain(v) for k, v in value.items()}
  return value


class Config(ConfigDict):
  """A ConfigDict that takes numbers of numpy's, and says in a sentence what it does not take."""

  def __setitem__(self, key, value):
    if self.is_locked and key not in self:
      raise UserError(unknown_field(key, self.keys()))
    if isinstance(value, ConfigDict) and not isinstance(value, Config):
      value = Config(value)
    if not isinstance(value, ConfigDict | FieldReference):
      value = plain(value)
      if key in self and self.is_type_safe and (wrong := wrong_type(self[key], value)):
        raise UserError(f"{key}={value!r} must be {wrong}.")
    if isinstance(value, dict):
      value = Config(value)
    super().__setitem__(key, value)


def wrong_type(default: Any, value: Any) -> str:
  """What a field must be that has this default, when the value is not; '' when it is."""
  if isinstance(default, ConfigDict):
    return "" if isinstance(value, dict | ConfigDict) else "a section with fields"
  kind = type(default)
  taken = {float: (int, float), tuple: (tuple, list), list: (tuple, list)}.get(kind, kind)
  if isinstance(value, taken) and (kind is bool or not isinstance(value, bool)):
    return ""
  return _KINDS.get(kind, f"a {kind.__name__}")


def unknown_field(name: Any, known: Collection[str]) -> str:
  """The sentence that there is no such field, and which may be meant."""
  name, known = str(name), sorted(map(str, known))
  close = difflib.get_close_matches(name, known, 3, 0.7)
  last = name.rpartition(".")[2]  # right, but of another section
  close += [k for k in known if k.rpartition(".")[2] == last and k not in close]
  if close:
    return f"there is no field {name!r}; did you mean {' or '.join(close[:3])}?"
  return f"there is no field {name!r}; " + (
      f"there are {', '.join(known)}." if len(known) <= 12 else "docs/reference has them all.")


def declares(program: str) -> Callable:
  """Decorator of a function that returns all fields of a program ('' for pretraining)."""
  def decorate(make: Callable[[], ConfigDict]) -> Callable[[], ConfigDict]:
    @functools.wraps(make)
    def declared() -> ConfigDict:
      config = make().lock()
      for section in _open_sections(config):
        section.unlock()
      return config
    DECLARED[program] = declared
    return declared
  return decorate


def _open_sections(config: ConfigDict):
  for field in _OPEN:
    section = config
    for name in field.split("."):
      section = section.get(name) if section is not None else None
    if section is not None:
      yield section


def check(config: Any, what: str) -> None:
  """Refuses a configuration whose fields are not those that its program declares.

  Numbers of numpy's become Python's. Fields that refer to others go on referring to them.

  Args:
    config: of pretraining, or of the program that its field `program` names.
    what: it is, for the message: 'get_config() of x.py returns a configuration'.

  Raises:
    UserError: it is no configuration, has a field that is not known, lacks one, or has one of
      another type than the default.
  """
  if not isinstance(config, ConfigDict):
    raise UserError(f"{what}: {type(config).__name__} is not a configuration; start from "
                    "default_config(), change fields and return it.")
  program = config.get("program", "")
  if program not in DECLARED:
    raise UserError(f"{what}: program={program!r} is not known; there are "
                    f"{', '.join(filter(None, DECLARED))}.")
  _check_section(config, DECLARED[program](), "", what)


def _check_section(config: ConfigDict, default: ConfigDict, prefix: str, what: str) -> None:
  is_open = prefix[:-1] in _OPEN
  for key in config:
    if key not in default:
      if not is_open:
        raise UserError(f"{what}: {unknown_field(f'{prefix}{key}', _names(default, prefix))}")
      if wrong := wrong_type(1.0, plain(config[key])):
        raise UserError(f"{what}: {prefix}{key}={config[key]!r} must be {wrong}.")
  for key, expected in default.items():
    field = f"{prefix}{key}"
    if key not in config:
      raise UserError(f"{what}: it lacks the field {field!r}; start from the default configuration "
                      "and delete nothing.")
    value = plain(config[key])
    if wrong := wrong_type(expected, value):
      raise UserError(f"{what}: {field}={value!r} must be {wrong}.")
    if isinstance(expected, ConfigDict):
      _check_section(config[key], expected, f"{field}.", what)
  for key, held in config.items(preserve_field_references=True):
    if not isinstance(held, ConfigDict | FieldReference):
      value = type(default.get(key, 1.0))(plain(held))
      if repr(held) != repr(value):  # of numpy's, or 1 for 1.0
        with config.ignore_type():
          config[key] = value


def _names(default: ConfigDict, prefix: str) -> list[str]:
  """Names that may be meant: of a section, and of sections in it, which may have been left out."""
  names = [f"{prefix}{key}" for key in default]
  for key, section in default.items():
    if isinstance(section, ConfigDict):
      names += _names(section, f"{prefix}{key}.")
  return names
