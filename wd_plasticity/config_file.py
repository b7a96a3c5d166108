"""Config files: Python of a user's own, run once; what fails in one is a sentence with its line."""

import inspect
import linecache
import pathlib
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from wd_plasticity import typed_config
from wd_plasticity.errors import Interrupted, UserError

_LONGEST = 300  # characters of a foreign error that are shown
_loaded: dict[str, tuple[bytes, types.ModuleType]] = {}


def one_line(text: str) -> str:
  """A text of others as a part of a sentence."""
  return " ".join(text.split())


def split(filename: str) -> tuple[str, str | None]:
  """The path, and the argument behind the first colon; None when there is none."""
  path, colon, argument = filename.partition(":")
  return path, argument if colon else None


def get_config(filename: str, program: str = "") -> Any:
  """The configuration that a file's `get_config()` returns, checked and locked.

  Args:
    filename: 'x.py', or 'x.py:argument' for `get_config(argument)`.
    program: that is to be configured: an eval program, or '' for pretraining.

  Raises:
    UserError: there is no such file, its code fails, or it configures something else.
  """
  path, argument = split(filename)
  function = load_function(filename, "get_config")
  if function is None:
    raise UserError(f"{path} has no function get_config(), so it is not a config file; "
                    "give one that has, such as those in configs/.")
  config = function() if argument is None else function(argument)
  typed_config.check(config, f"get_config() of {path}")
  if config.get("program", "") != program:
    other = config.get("program") or "pretraining"
    where = f"configs/{program}.py" if program else "configs/quickstart.py"
    raise UserError(f"{path} is not a configuration of this program but of {other}; "
                    f"--config={where} is one.")
  return config.unlock().lock()  # also sections that the file has put in


def load_function(filename: str, name: str) -> Callable | None:
  """A function of a config file, such as `sweep(add)`; None when it declares none.

  What it raises becomes a UserError that names the file and the line. It is given as many
  of the arguments of a call as it takes, the last being that of the config file.
  """
  path, _ = split(filename)
  function = getattr(_load(path), name, None)
  if function is None:
    return None
  if not callable(function):
    raise UserError(f"{name} of {path} is {type(function).__name__}, not a function; write "
                    f"def {name}(...).")
  return lambda *args: _run(path, lambda: function(*_fitting(function, args, name, path)))


def _load(path: str) -> types.ModuleType:
  """The module of a file; its code is run once, until the file changes."""
  if not path:
    raise UserError("--config names no file; --config=configs/quickstart.py is a first one.")
  try:
    source = pathlib.Path(path).read_bytes()
  except FileNotFoundError as e:
    raise UserError(f"there is no config file {path}; configs/ has some.") from e
  except (OSError, ValueError) as e:  # a zero byte in the name is a ValueError
    reason = getattr(e, "strerror", None) or e
    raise UserError(f"the config file {path} cannot be read ({reason}); give another.") from e
  if path not in _loaded or _loaded[path][0] != source:
    # Not through importlib, which would leave a compiled copy beside the file.
    name = f"_config_file_{len(_loaded)}"
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module  # dataclasses look themselves up
    linecache.checkcache(path)
    _run(path, lambda: exec(_compile(source, path), module.__dict__))  # noqa: S102
    _loaded[path] = source, module
  return _loaded[path][1]


def _compile(source: bytes, path: str) -> types.CodeType:
  try:
    return compile(source, path, "exec")
  except SyntaxError as e:
    line = f" in line {e.lineno}" if e.lineno else ""
    raise UserError(f"the config file {path} has a syntax error{line} ({one_line(e.msg)}); "
                    "correct it.") from e
  except (ValueError, RecursionError, MemoryError) as e:
    raise UserError(f"the config file {path} is not Python ({one_line(str(e))}); give "
                    "another.") from e


def _fitting(function: Callable, args: Sequence[Any], name: str, path: str) -> Sequence[Any]:
  """Those of the arguments that a function takes; `None` for one more that it asks for."""
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):
    return args
  for some in (args, *((args[:1], (*args, None)) if name != "get_config" else ())):
    try:
      signature.bind(*some)
    except TypeError:
      continue
    return some
  line = getattr(getattr(function, "__code__", None), "co_firstlineno", None)
  place = f"{path}, line {line}" if line else path
  if name == "get_config":
    raise UserError(
        f"{place}: get_config{signature} does not take the argument {args[0]!r} of --config="
        f"{path}:{args[0]}; leave it out." if args else
        f"{place}: get_config{signature} needs an argument; write --config={path}:ARGUMENT.")
  raise UserError(f"{place}: {name}{signature} must take one argument, which it calls for every "
                  f"entry: def {name}(add).")


def _run(path: str, call: Callable[[], Any]) -> Any:
  """Calls it; what it raises becomes a sentence with the line of the file at `path`."""
  try:
    return call()
  except (KeyboardInterrupt, Interrupted):
    raise
  except BaseException as e:  # also SystemExit
    line = _line_of(e, path)
    text = one_line(linecache.getline(path, line or 0).split("#")[0])[:100]
    where = f"{path}, line {line}" + (f" ({text})" if text else "") if line else path
    if isinstance(e, UserError):
      raise UserError(f"{where}: {e}" if line else str(e)) from e
    raise UserError(f"the config file {where}, fails: {_said(e)}; correct it.") from e


def _line_of(error: BaseException, path: str) -> int | None:
  """The line of a file at which it was when the error was raised."""
  line, at = None, error.__traceback__
  while at is not None:
    if at.tb_frame.f_code.co_filename == path:
      line = at.tb_lineno
    at = at.tb_next
  return line


def _said(error: BaseException) -> str:
  """What an error says, in one line without a full stop."""
  said = error
  while isinstance(said, BaseException) and said.args and isinstance(
      said, AttributeError | KeyError):  # ml_collections has one in the other
    said = said.args[0]
  try:
    text = re.sub(r"[\w.<>]*<locals>\.", "", one_line(str(said)))  # of functions of ours
  except Exception:
    text = ""
  kind = "" if said is not error and " " in text else type(error).__name__
  text = ": ".join(filter(None, (kind, text)))
  return text[:_LONGEST] + "..." if len(text) > _LONGEST else text.rstrip(". ")
