"""Command lines: absl flags and ml_collections configs, with mistakes said in one sentence."""

import importlib.util
import inspect
import json
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from wd_plasticity import errors, paths
from wd_plasticity.errors import UserError

# Names the end of a pipe that is closed when the program that started this one has ended.
PARENT_VARIABLE = "WD_PLASTICITY_PARENT_PIPE"


def define_config_flag(name: str = "config"):
  """Defines `--config=FILE[:arguments]`, whose fields are set as `--config.FIELD=VALUE`."""
  return config_flags.DEFINE_config_file(
      name, None, "Config file, optionally with arguments: configs/llama2.py:size=1b,tpp=20.",
      lock_config=True)


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
    argv = [a for a in argv if not a.startswith("--config")]
  try:
    rest = flags.FLAGS(argv)
  except SystemExit:  # absl has printed the help and would say that this was a failure
    sys.exit(0)
  except UserError:
    raise
  except (AttributeError, KeyError) as e:
    raise UserError(f"the command line names an unknown config field: {_one_line(e)}") from e
  except (TypeError, ValueError, flags.Error) as e:
    raise UserError(f"the command line cannot be used: {_one_line(e)}") from e
  except BrokenPipeError:  # of a help that nobody reads to its end
    sys.exit(0)
  except (OSError, ImportError) as e:
    raise UserError(f"the config file cannot be opened: {_one_line(e)}") from e
  except SyntaxError as e:
    raise UserError(f"the config file {e.filename} has a syntax error in line {e.lineno}.") from e
  if "config" in flags.FLAGS and flags.FLAGS["config"].present:
    path = pathlib.Path(config_source()[0].split(":", 1)[0])
    if not path.is_file():
      raise UserError(f"there is no config file {path}; configs/ has some.")
  if len(rest) > 1:
    raise UserError(f"{rest[1]!r} is not a flag; flags start with -- and use =, see --help.")
  return rest


def _one_line(e: BaseException) -> str:
  text = str(e.args[0] if e.args else e)
  if text[:1] in "'\"" and text[-1:] == text[:1]:  # a KeyError within
    text = text[1:-1].replace("\\n", " ").replace("\\'", "'")
  return " ".join(text.split())


def config_source(name: str = "config") -> tuple[str, dict]:
  """The `--config` text as given and the fields that the command line sets."""
  flag = flags.FLAGS[name]
  return config_flags.get_config_filename(flag), config_flags.get_override_values(flag)


def load_function(filename: str, name: str) -> Callable | None:
  """A function of a config file, such as `sweep(add)`; None when it declares none."""
  path = pathlib.Path(filename.split(":", 1)[0])
  spec = importlib.util.spec_from_file_location(f"_{name}_of_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return getattr(module, name, None)


def load_sweep(filename: str) -> Callable | None:
  """The function `sweep(add)` of a config file, or None when it declares none.

  One that is declared as `sweep(add, arguments)` is given the config's arguments too.
  """
  sweep = load_function(filename, "sweep")
  if sweep is None or len(inspect.signature(sweep).parameters) < 2:
    return sweep
  _, colon, arguments = filename.partition(":")
  return lambda add: sweep(add, arguments if colon else None)


def parse_arguments(text: str | None, **defaults):
  """Typed arguments of a config file: 'size=1b,tpp=20' with the types of `defaults`."""
  values = dict(defaults)
  for item in filter(None, (text or "").split(",")):
    key, _, value = item.partition("=")
    if key not in defaults:
      raise UserError(f"config argument {key!r} is not known; known are {', '.join(defaults)}.")
    kind = type(defaults[key])
    try:
      values[key] = json.loads(value.lower()) if kind is bool else kind(value)
    except ValueError as e:
      raise UserError(f"config argument {key}={value!r} is not of type {kind.__name__}.") from e
  return values
