"""Writes docs/reference/configuration.md from the code: every field, its default, its comment.

  python docs/configuration.py
"""

import ast
import inspect
import io
import pathlib
import tokenize

from wd_plasticity import config, limits
from wd_plasticity.config import flatten
from wd_plasticity.evals import config as evals_config
from wd_plasticity.files import write_text
from wd_plasticity.tasks import registry

_HEAD = """# Configuration

This page is made from the code. Every field can be set in a config file
(`config.optim.weight_decay = 0.3`), by `sweep(add)`, and on the command line
(`--config.optim.weight_decay=0.3`). No other fields are taken, and a field keeps the type of its
default. What a number can be stands behind it: `[0, 1)` are those from 0 to below 1. Lengths are
strings: `'10%'` of training, `'200 steps'` or `'1e6 tokens'`.
"""


def write(path: pathlib.Path) -> None:
  """Writes the page, when it is not as it should be already."""
  text = page()
  if not path.exists() or path.read_text(encoding="utf-8") != text:
    write_text(path, text)


def page() -> str:
  """The page as Markdown."""
  comments = field_comments(config)
  parts = [_HEAD, "## Pretraining\n\nOf `wd_plasticity.main` and `wd_plasticity.study`; "
           "`default_config()` in `wd_plasticity/config.py`.\n",
           *_sections(config.default_config(), comments, "")]
  shared = evals_config.shared_config("").to_dict()
  parts += ["## Eval programs\n\nFields that all of them have; `wd_plasticity/evals/config.py`. "
            "`mesh` and `distributed` are as above.\n",
            _table({k: v for k, v in shared.items() if not isinstance(v, dict)},
                   comments | field_comments(evals_config, "shared_config"), programs()[0])]
  for program in programs():
    made = getattr(evals_config, f"{program}_config")()
    own = {k: v for k, v in made.to_dict().items() if k not in shared and k != "sources"}
    said = comments | field_comments(evals_config, f"{program}_config")
    parts += [f"## {program}\n", *_sections(own, said, program)]
    if "sources" in made:
      parts.append("Files of task TASK: `sources.TASK.SPLIT`, see [tasks](#tasks).\n")
  parts += ["## Tasks\n\nNames for `tasks`; the splits in parentheses are fields of "
            "`sources.TASK`, except where a task comes with the installation.\n",
            "| task | what it is | splits |\n|---|---|---|"]
  for name in registry.names():
    task = registry.get(name)
    where = "comes with the installation" if task.embedded else ", ".join(task.splits)
    parts.append(f"| `{name}` | {task.title}; {task.source} | {where} |")
  return "\n".join(parts) + "\n"


def programs() -> list[str]:
  """The eval programs, in the order of the file that configures them."""
  return [name.removesuffix("_config") for name, value in vars(evals_config).items()
          if inspect.isfunction(value) and value.__module__ == evals_config.__name__
          and name.endswith("_config") and name != "shared_config"]


def _sections(values, comments, program: str) -> list[str]:
  values = values if isinstance(values, dict) else values.to_dict()
  parts = [_table({k: v for k, v in values.items() if not isinstance(v, dict)}, comments, program)]
  for name, section in values.items():
    if isinstance(section, dict):
      parts += [f"### `{name}`\n", _table(flatten(section, f"{name}."), comments, program)]
  return [p for p in parts if p]


def _table(fields, comments, program: str) -> str:
  if not fields:
    return ""
  lines = ["| field | default | |", "|---|---|---|"]
  for field, value in fields.items():
    said = comments.get(field) or comments.get(".".join(field.split(".")[-2:]), "")
    if said and (limit := limits.limit_of(field, program)):
      said += f" `{limit.text}`"
    lines.append(f"| `{field}` | `{value!r}` | {said.replace('|', chr(92) + '|')} |")
  return "\n".join(lines) + "\n"


def field_comments(module, function: str = "default_config") -> dict[str, str]:
  """The comments behind the fields that a function of a module sets.

  Args:
    module: whose source is read.
    function: its function that sets `c.FIELD = VALUE` or `c.SECTION = ConfigDict(dict(...))`.

  Returns:
    Dotted field to comment; fields of a schedule, made by a function of their own, as
    'schedule.FIELD'.
  """
  source = inspect.getsource(module)
  comments = {token.start[0]: token.string.lstrip("# ").strip()
              for token in tokenize.generate_tokens(io.StringIO(source).readline)
              if token.type == tokenize.COMMENT}
  found = {}
  for node in ast.parse(source).body:
    if not isinstance(node, ast.FunctionDef) or node.name not in (function, "schedule_section"):
      continue
    for statement in ast.walk(node):
      if isinstance(statement, ast.Assign):
        target = ast.unparse(statement.targets[0])
        prefix = target.partition(".")[2]
        found |= _of_keywords(statement.value, prefix, comments)
        if prefix and statement.end_lineno in comments:
          found.setdefault(prefix, comments[statement.end_lineno])
      elif isinstance(statement, ast.Return) and node.name == "schedule_section":
        found |= _of_keywords(statement.value, "schedule", comments)
  return found


def _of_keywords(value, prefix, comments) -> dict[str, str]:
  """Comments of the lines on which the keywords of the calls in an expression end."""
  return {f"{prefix}.{keyword.arg}" if prefix else keyword.arg: comments[keyword.value.end_lineno]
          for call in ast.walk(value) if isinstance(call, ast.Call)
          for keyword in call.keywords if keyword.value.end_lineno in comments}


if __name__ == "__main__":
  write(pathlib.Path(__file__).parent / "reference" / "configuration.md")
