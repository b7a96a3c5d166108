"""What task YAML files of lm-evaluation-harness would run, beside describing a task.

`!function module.name` imports a Python file beside the YAML file, or any module; a metric that
the harness does not have is fetched from the Hugging Face Hub as code; the data set kind
`pandas` reads pickles; and a template of jinja can reach all of Python. A folder of task files
is data until its user says otherwise (`run_task_code`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wd_plasticity.errors import UserError

_ADVICE = ("which is code; look at it, and if you trust all that is in the folder, say so by "
           "--config.run_task_code=True.")
_UNSAFE_DATA = ("pandas", "generator", "spark", "eval")  # kinds of `datasets` that read or run code
_DEEPEST = 20  # files that include each other


def refuse(paths: Iterable[Path], installed: Path) -> None:
  """Refuses task files that would run code.

  Args:
    paths: YAML files of tasks; those that they include are looked at too.
    installed: folder of the harness's own tasks, which are trusted as it is.

  Raises:
    UserError: naming the file and what in it is code, or a file that cannot be read.
  """
  for path in paths:
    for file, fields in _files(path, installed, 0):
      if found := next(_code(fields), None):
        raise UserError(f"{file} has {found}, {_ADVICE}")


def sandbox_templates() -> None:
  """Has the harness render templates in jinja2's sandbox, with the same results."""
  import jinja2.sandbox
  import lm_eval.utils

  old = lm_eval.utils.env
  if isinstance(old, jinja2.sandbox.SandboxedEnvironment):
    return
  new = jinja2.sandbox.SandboxedEnvironment(
      loader=old.loader, undefined=old.undefined, keep_trailing_newline=old.keep_trailing_newline)
  new.filters.update(old.filters)
  lm_eval.utils.env = new


class _Function(str):
  """The name after `!function`."""


def _files(path: Path, installed: Path, depth: int) -> Iterator[tuple[Path, dict]]:
  """A YAML file with its fields, and those that it includes."""
  import yaml

  path = path.expanduser().resolve()
  if path.is_relative_to(installed):
    return
  if depth > _DEEPEST:
    raise UserError(f"{path} is included by files that include each other; mend that.")

  class Loader(yaml.SafeLoader):
    pass

  Loader.add_constructor("!function", lambda loader, node: _Function(node.value))
  try:
    fields = yaml.load(path.read_bytes(), Loader)  # noqa: S506  a SafeLoader
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror}); it is among the task files.") from e
  except (yaml.YAMLError, ValueError, RecursionError) as e:
    what = (str(e).splitlines() or [type(e).__name__])[0]
    raise UserError(f"{path} is not YAML ({what}); mend it.") from e
  if not isinstance(fields, dict):
    raise UserError(f"{path} is not a task: it holds no fields; mend it.")
  yield path, fields
  included = fields.get("include") or []
  for name in included if isinstance(included, list) else [included]:
    yield from _files(path.parent / str(name), installed, depth + 1)


def _code(value: Any) -> Iterator[str]:
  """What would be run, in words."""
  if isinstance(value, _Function):
    yield f"!function {value}"
  elif isinstance(value, dict):
    for name, inner in value.items():
      if name == "class":
        yield f"class: {inner}"
      elif name in ("hf_evaluate", "trust_remote_code") and inner is True:
        yield f"{name}: true"
      elif name == "metric" and isinstance(inner, str) and not _is_known(inner):
        yield f"metric: {inner}, which this harness has not and would fetch"
      elif name == "dataset_path" and (
          inner in _UNSAFE_DATA or str(inner).endswith(".py")):
        yield f"dataset_path: {inner}"
      yield from _code(inner)
  elif isinstance(value, (list, tuple)):
    for inner in value:
      yield from _code(inner)


def _is_known(metric: str) -> bool:
  import lm_eval.api.metrics  # noqa: F401  fills the registry
  from lm_eval.api.registry import metric_registry

  return metric in metric_registry
