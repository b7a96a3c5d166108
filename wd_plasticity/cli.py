"""Command lines: absl flags and ml_collections configs, with mistakes said in one sentence."""

import itertools
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from wd_plasticity import config_file, errors, paths, typed_config
from wd_plasticity.config import flatten
from wd_plasticity.config_file import load_function, one_line
from wd_plasticity.errors import UserError

# Names the end of a pipe that is closed when the program that started this one has ended.
PARENT_VARIABLE = "WD_PLASTICITY_PARENT_PIPE"


class _Parser(flags.ArgumentParser):
  """Reads the config file that a flag names, instead of the parser of ml_collections."""

  def __init__(self, program: str):
    self._program = program
    self.read = None  # the configuration, before the command line has set fields

  def flag_type(self):
    return "config file"

  def parse(self, path):
    self.read = config_file.get_config(path, self._program)
    return self.read


def define_config_flag(program: str = ""):
  """Defines `--config=FILE[:arguments]`, whose fields are set as `--config.FIELD=VALUE`.

  Args:
    program: an eval program whose configuration it is; '' for pretraining.
  """
  try:
    holder = config_flags.DEFINE_config_file(
        "config", None, "Config file, optionally with arguments: configs/llama2.py:size=1b,tpp=20.")
  except (flags.Error, OSError) as e:  # it looks into a --flagfile at once
    errors.exit_with(cannot_be_used(e))
  flags.FLAGS["config"].parser = _Parser(program)
  return holder


def run(main: Callable[[Sequence[str]], None], addresses: Collection[str] = ()):
  """Runs a program: parses flags, calls `main(argv)`, and reports user errors in one line.

  Args:
    main: of the program.
    addresses: flags of paths that may be addresses, such as gs://BUCKET/FOLDER.
  """
  def parse(argv):
    try:
      rest = _parse(argv)
      paths.check_flags(except_for=addresses)
      return rest
    except UserError as e:
      errors.exit_with(e)
  def quiet_main(argv):
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # libraries tell at INFO what they did not find
    try:
      errors.run(main, argv)
    except SystemExit as e:
      # At once: reads that a library gave up half way would complain while the
      # interpreter is taken down, below the sentence that says what is wrong.
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(e.code)
  _end_with_parent()
  app.run(quiet_main, flags_parser=parse)


def become(command: Sequence[str]) -> NoReturn:
  """Turns this process into another program: arguments of the Python interpreter."""
  os.environ.update(_for_successor)
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(sys.executable, [sys.executable, *command])


_for_successor: dict[str, str] = {}


def _end_with_parent() -> None:
  """Has this process stop in good order should the study that started it be killed."""
  pipe = os.environ.pop(PARENT_VARIABLE, None)
  if pipe is None:
    return
  _for_successor[PARENT_VARIABLE] = pipe
  def watch():
    os.read(int(pipe), 1)  # returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)
  threading.Thread(target=watch, daemon=True).start()


def _parse(argv):
  if any(a in ("--help", "-help", "--helpfull", "--helpshort") for a in argv):
    # Without this a missing --config would be complained about instead.
    argv = [a for a in argv if not a.startswith(("--config", "-config"))]
  try:
    rest = flags.FLAGS(argv)
    _refuse_repeated(argv[1:])
    for flag in map(flags.FLAGS.__getitem__, flags.FLAGS):
      if isinstance(flag.value, float) and not math.isfinite(flag.value):
        raise UserError(f"--{flag.name}={flag.value} is not a number; give one.")
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
      typed_config.check(flags.FLAGS["config"].value, "the command line")
  except SystemExit:  # absl has printed the help and would say that this was a failure
    sys.exit(0)
  except BrokenPipeError:  # of a help that nobody reads to its end
    sys.exit(0)
  except UserError:
    raise
  except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError,
          MemoryError, OSError, flags.Error) as e:
    raise UserError(_unknown_field(argv) or cannot_be_used(e)) from e
  if len(rest) > 1:
    raise UserError(f"{rest[1]!r} is not a flag; flags start with -- and use =, see --help.")
  return rest


def _refuse_repeated(arguments: Sequence[str]) -> None:
  """Refuses a flag that is given twice with different values; which is meant cannot be known.

  What a --flagfile sets may be set otherwise beside it.
  """
  given = {}
  for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
    match = re.match(r"--?(no)?([A-Za-z][\w.]*)(=.*)?$", argument, re.DOTALL)
    if not match:
      continue
    no, name, value = match.groups()
    if name not in flags.FLAGS:
      no, name = None, f"{no or ''}{name}"
    if name in flags.FLAGS and not isinstance(flags.FLAGS[name], flags.MultiFlag):
      value = value or (f"={following}" if following[:1] != "-" and not no else "")
      if given.setdefault(name, (no, value)) != (no, value):
        raise UserError(f"--{name} is given twice, with different values; give it once.")


def _unknown_field(argv: Sequence[str]) -> str:
  """The sentence on a --config.FIELD that is not known, or has no --config; '' when all is well."""
  fields = [a for a in argv[1:] if re.match(r"--?(no)?config\.", a)]
  if "config" not in flags.FLAGS or not fields:
    return ""
  config = flags.FLAGS["config"].parser.read
  if config is None:
    return f"--config=FILE is missing; it comes before {fields[0]}, which sets a field of it."
  known = flatten(config.to_dict())
  sections = {field.rpartition(".")[0] for field in known}
  for argument in fields:
    match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
    if match[1] not in known and match[1] not in sections:
      return f"--config.{match[1]}: {typed_config.unknown_field(match[1], known)}"
  return ""


def cannot_be_used(e: BaseException) -> str:
  """The sentence on a command line that could not be parsed."""
  reason = one_line(str(e.args[0] if e.args else e)) or type(e).__name__
  return f"the command line cannot be used: {reason.rstrip('. ')}; see --help."


def config_source(name: str = "config") -> tuple[str, dict]:
  """The `--config` text as given and the fields that the command line sets."""
  flag = flags.FLAGS[name]
  return config_flags.get_config_filename(flag), config_flags.get_override_values(flag)


def load_sweep(filename: str) -> Callable | None:
  """The function `sweep(add)` of a config file, or None when it declares none.

  One that is declared as `sweep(add, arguments)` is given the config's arguments too.
  """
  sweep = load_function(filename, "sweep")
  _, argument = config_file.split(filename)
  if sweep is None or argument is None:
    return sweep
  return lambda add: sweep(add, argument)


_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def parse_arguments(text: str | None, **defaults):
  """Typed arguments of a config file: 'size=1b,tpp=20' with the types of `defaults`."""
  values, given = dict(defaults), set()
  for item in filter(None, (text or "").split(",")):
    key, _, value = item.partition("=")
    if key not in defaults:
      raise UserError(f"config argument {key!r} is not known; known are {', '.join(defaults)}.")
    if key in given:
      raise UserError(f"config argument {key} is given twice; give it once.")
    given.add(key)
    kind = type(defaults[key])
    try:
      values[key] = _BOOLEANS[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError) as e:
      raise UserError(f"config argument {key}={value!r} is not of type {kind.__name__}.") from e
  return values
