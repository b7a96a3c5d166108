"""Result files of a study, read side by side, and notes of what cannot be read."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wd_plasticity import files
from wd_plasticity.config import flatten
from wd_plasticity.errors import UserError
from wd_plasticity.report import arrays as arrays_lib
from wd_plasticity.training import summary

# What the content of a file can make a reader raise; running out of memory is not among them.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration,
              ArithmeticError, RuntimeError, EOFError, UserError)


class Notes:
  """Collects sentences; files that cannot be read become one sentence."""

  def __init__(self, workdir: Path):
    self._workdir = workdir
    self._sentences: list[str] = []
    self._unreadable: list[str] = []

  def add(self, sentence: str) -> None:
    if sentence not in self._sentences:
      self._sentences.append(sentence)

  def unreadable(self, path: Path) -> None:
    name = str(path.relative_to(self._workdir))
    if name not in self._unreadable:
      self._unreadable.append(name)

  def sentences(self) -> list[str]:
    made = list(self._sentences)
    if self._unreadable:
      n = len(self._unreadable)
      what = "One file cannot be read and is" if n == 1 else f"{n} files cannot be read and are"
      named = enumerate_some(self._unreadable)
      made.append(f"{what} left out: {named}; delete and make again, or restore.")
    return made


def enumerate_some(names: Sequence[str], most: int = 4) -> str:
  """'a, b, c, d and 7 more'."""
  names = list(names)
  if len(names) <= most:
    return ", ".join(names)
  return f"{', '.join(names[:most])} and {len(names) - most} more"


def read_or_note(path: Path, notes: Notes) -> dict:
  """The object in a JSON file; empty when there is none that can be read."""
  try:
    return summary.read_json(path)
  except UNREADABLE:
    notes.unreadable(path)
    return {}


@dataclasses.dataclass(frozen=True)
class Item:
  """One result file.

  Attributes:
    path: of its JSON.
    document: its content, with a checkpoint and values.
    arrays: of its .npz, those of fine-tuning and of overfit's last steps that are shown.
  """
  path: Path
  document: dict
  arrays: dict[str, np.ndarray]


def read_items(workdir: Path, program: str, notes: Notes) -> list[Item]:
  """Reads all results of a program in a work directory, by path."""
  directory = workdir / "evals" / program
  paths = sorted(directory.glob("*/*/*.json"))
  newest: dict[Path, int] = {}
  for path in paths:
    step = path.parent.name
    if step.isdigit():
      newest[path.parent.parent] = max(newest.get(path.parent.parent, 0), int(step))

  def load(path: Path) -> Item | None:
    try:
      document = files.parse_json(path.read_bytes())
      document["values"].items()
      c = document["checkpoint"]
      for name, kind in (("member", str), ("weight_decay", (int, float)), ("seed", int),
                         ("step", int), ("tokens", int)):
        if not isinstance(c[name], kind) or not math.isfinite(c[name] if kind is not str else 0):
          return None
      _check(document["values"])
    except UNREADABLE:
      return None
    is_last = path.parent.name == str(newest.get(path.parent.parent))
    wanted = program == "finetune" or (program == "overfit" and is_last)
    arrays = {}
    if wanted and path.with_suffix(".npz").exists():
      try:
        arrays = arrays_lib.read_npz(path.with_suffix(".npz"), _is_wanted)
      except UNREADABLE:
        broken.append(path.with_suffix(".npz"))
    return Item(path, document, arrays)

  broken: list[Path] = []
  items = [load(path) for path in paths]  # threads take longer: most of it is parsing
  for path, item in zip(paths, items, strict=True):
    if item is None:
      notes.unreadable(path)
  for path in sorted(broken):
    notes.unreadable(path)
  return _of_one_kind([i for i in items if i is not None], program, notes)


def _check(value: object) -> None:
  """Raises ValueError where a figure of a result, {'value', 'se', 'n'}, is not of numbers."""
  if isinstance(value, dict):
    for name in ("value", "se", "n"):
      number = value.get(name) if "value" in value else None
      if number is not None and not (isinstance(number, (int, float)) and math.isfinite(number)):
        raise ValueError(f"{name} is no number")
  for inner in value.values() if isinstance(value, dict) else value if isinstance(
      value, list) else ():
    if isinstance(inner, (dict, list)):
      _check(inner)


def _of_one_kind(items: Sequence[Item], program: str, notes: Notes) -> list[Item]:
  """Without what was made with other settings than the newest result of its task.

  A sweep of the program's own may differ in the fields that it sweeps.
  """
  of_task: dict[str, list[Item]] = {}
  for item in items:
    task = item.document["values"].get("task", item.document.get("item"))
    of_task.setdefault(str(task), []).append(item)
  by_task: dict[str, dict[str, list[Item]]] = {}
  for task, same in of_task.items():
    swept = swept_fields(same)
    for item in same:
      kinds = by_task.setdefault(task, {})
      kinds.setdefault(_shared_settings(item.document.get("settings"), swept), []).append(item)
  kept = []
  for task, kinds in by_task.items():
    newest = max(kinds.values(), key=lambda same: max(i.path.stat().st_mtime_ns for i in same))
    kept += newest
    left_out = sum(map(len, kinds.values())) - len(newest)
    if left_out:
      notes.add(f"{left_out} results of {program} on {task} were made with other settings than the "
                "newest and are left out; run the program again, or move them away.")
  return sorted(kept, key=lambda i: i.path)


def swept_fields(items: Sequence[Item]) -> set[str]:
  """Dotted fields that some point of the program's own sweep sets."""
  found: set[str] = set()
  for item in items:
    settings = item.document.get("settings")
    overrides = settings.get("overrides") if isinstance(settings, dict) else None
    found |= set(overrides) if isinstance(overrides, dict) else set()
  return found


def _shared_settings(settings: object, swept: set[str]) -> str:
  if not isinstance(settings, dict):
    return ""
  flat = {k: v for k, v in flatten(settings).items()
          if k not in swept and k != "point" and not k.startswith("overrides")}
  return json.dumps(flat, sort_keys=True)


def _is_wanted(name: str) -> bool:
  return "_bin_" not in name and "_type_" not in name  # of overfit, and large


def commands(workdir: Path, found: dict[str, list[Item]],
             notes: Notes) -> list[tuple[str, str]]:
  """Commands of the study's steps, then those that results name and no step has."""
  steps = []
  for path in sorted((workdir / "study" / "steps").glob("*.json")):
    step = read_or_note(path, notes)
    name, state = str(step.get("name", path.stem)), step.get("state")
    if step.get("command"):
      steps.append((name, _as_line(step["command"])))
    if state == "failed":
      why = f": {step['message']}" if step.get("message") else ""
      notes.add(f"The step {name} failed{why}".rstrip(".") + ".")
    elif state == "waiting":
      notes.add(f"The step {name} has not run yet.")
  stated = {command for _, command in steps}
  for program, items in found.items():
    for item in items:
      command = item.document.get("command")
      if isinstance(command, str) and command and command not in stated:
        stated.add(command)
        steps.append((program, command))
  return steps


def _as_line(command: str | list) -> str:
  return command if isinstance(command, str) else " ".join(str(word) for word in command)


def code_versions(found: dict[str, list[Item]], versions: dict) -> list[str]:
  """Versions of this package that pretrained and made results, distinct."""
  named = [versions.get("wd_plasticity"), *(
      i.document.get("code_version") for items in found.values() for i in items)]
  return sorted({str(v) for v in named if v})
