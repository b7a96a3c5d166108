"""Results of an eval program on disk: one finished file per item, and a table of all.

`<workdir>/evals/<program>/<member>/<step>/<item>.json` is written last, after its records
(`.jsonl`) and arrays (`.npz`), whose hashes it has, so an item is either done or has to be done
again.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wd_plasticity.config import as_json, flat_defaults, flatten
from wd_plasticity.errors import UserError
from wd_plasticity.evals.targets import Target
from wd_plasticity.files import (
    HeldFolder,
    check_fields,
    clear_temporaries,
    is_plain_name,
    locked,
    read_json,
    sha256,
    write_atomically,
    write_json,
    write_text,
)
from wd_plasticity.plain import csv_text
from wd_plasticity.training import distributed
from wd_plasticity.training.run_record import code_version

SCHEMA_VERSION = 1
_FIELDS = {"item": str, "checkpoint": dict, "settings": dict, "values": dict}
_CHECKPOINT = {"member": str, "step": int, "tokens": int, "weight_decay": (int, float), "seed": int,
               "data_fingerprint": str, "pretraining": dict}


class Results:
  """The results of one program in one work directory.

  Args:
    workdir: of the evaluation.
    program: name of the eval program.
    command: written into every result.
    replace: what was made with other settings is moved to <workdir>/outdated instead of
      refused.
  """

  def __init__(self, workdir: str | os.PathLike, program: str, command: str, *,
               replace: bool = False):
    self.directory = Path(workdir) / "evals" / program
    self._program, self._command, self._replace = program, command, replace
    self._outdated = Path(workdir) / "outdated" / "evals" / program
    self._held: HeldFolder | None = None

  def open(self) -> None:
    """Makes the folder, which must then stay where it is."""
    self.directory.mkdir(parents=True, exist_ok=True)
    self._held = HeldFolder(self.directory)
    self._begun = time.time()

  def path(self, target: Target, item: str, suffix: str = ".json") -> Path:
    """Of a file of an item; names that would lead out of the folder are refused."""
    for name in (target.member, item):
      if not is_plain_name(name):
        raise UserError(f"{name!r} cannot be part of a file name; rename it.")
    return self.directory / target.member / str(target.step) / f"{item}{suffix}"

  def is_done(self, target: Target, item: str, settings: Mapping[str, Any]) -> bool:
    """Whether there is a result of this checkpoint, made with these settings.

    Raises:
      UserError: there is one that was made with others, or of another checkpoint, and the
        results are not to be replaced.
    """
    path = self.path(target, item)
    if not path.exists():
      return False
    difference = self._difference(target, item, settings)
    if not difference:
      return True
    if not self._replace:
      raise UserError(f"{path} {difference}; give another --workdir, let it be made again by "
                      "--replace, or move that file elsewhere.")
    self._set_aside(target, item)
    return False

  def _difference(self, target: Target, item: str, settings: Mapping[str, Any]) -> str:
    """In words what tells the result on disk from the one that is wanted; '' for nothing."""
    made = self.load(target, item)
    if made["checkpoint"]["data_fingerprint"] != target.meta["data_fingerprint"] or (
        made["checkpoint"]["pretraining"] != _pretraining(target)):
      return f"is of another checkpoint named {target.name}"
    before, now = flatten(made["settings"]), flatten(as_json(settings))
    for field in before | now:
      if before.get(field) != now.get(field):
        return (f"was made with {field}={json.dumps(before.get(field))} and now it is "
                f"{json.dumps(now.get(field))}")
    for suffix in (".jsonl", ".npz"):
      path, digest = self.path(target, item, suffix), made.get("files", {}).get(suffix)
      if digest and (not path.is_file() or sha256(path) != digest):
        return f"was written with another {path.name}, which is damaged or gone"
    return ""

  def _set_aside(self, target: Target, item: str) -> None:
    if not distributed.is_first():
      return
    folder = self._outdated / target.member / str(target.step)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".json", ".jsonl", ".npz"):  # in this order: never done without its arrays
      path = self.path(target, item, suffix)
      if path.exists():
        os.replace(path, folder / path.name)

  def load(self, target: Target, item: str) -> dict[str, Any]:
    """The JSON of a finished item.

    Raises:
      UserError: it cannot be read.
    """
    try:
      return _read(self.path(target, item))
    except FileNotFoundError as e:
      raise UserError(f"there is no result {self.path(target, item)}.") from e

  def write(self, target: Target, item: str, settings: Mapping[str, Any],
            values: Mapping[str, Any], *, records: Sequence[Mapping] | None = None,
            arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Writes a finished item, in process 0.

    Args:
      target: what was evaluated.
      item: name of the item, part of a file name.
      settings: everything but the checkpoint that decides the values.
      values: the results; numbers that are not finite become None.
      records: one line each of `<item>.jsonl`.
      arrays: of `<item>.npz`.
    """
    if not distributed.is_first():
      return
    if self._held:
      self._held.check()
    path, files = self.path(target, item), []
    if records is not None:
      lines = "".join(json.dumps(finite(r), allow_nan=False) + "\n" for r in records)
      files.append(self.path(target, item, ".jsonl"))
      write_text(files[-1], lines)
    if arrays is not None:
      files.append(self.path(target, item, ".npz"))
      write_atomically(files[-1], lambda f: np.savez_compressed(f, **arrays))
    document = {
        "schema": f"wd_plasticity.{self._program}", "schema_version": SCHEMA_VERSION,
        "item": item, "checkpoint": describe(target), "settings": as_json(settings),
        "values": finite(values), "files": {f.suffix: sha256(f) for f in files},
        "command": self._command, "code_version": code_version()}
    write_json(path, document)

  def all(self) -> list[dict[str, Any]]:
    """All finished items of the program in this work directory, by weight decay and step."""
    items = []
    for path in sorted(self.directory.glob("*/*/*.json")):
      with contextlib.suppress(FileNotFoundError):  # another job has just set it aside
        items.append(_read(path))
    def order(r):
      c = r["checkpoint"]
      return c["weight_decay"], c["seed"], c["member"], c["step"], r["item"]
    return sorted(items, key=order)

  def collect(self) -> list[dict[str, Any]]:
    """Writes all finished items as tables, in process 0; returns the items.

    `results.jsonl` has a line per item, `results.csv` a line per figure.
    """
    if not distributed.is_first():
      return self.all()
    if self._held:
      self._held.check()
    with locked(self.directory / "results.jsonl"):  # of jobs that end together the last sees all
      items = self.all()
      if items:
        lines = "".join(json.dumps(r, allow_nan=False) + "\n" for r in items)
        write_text(self.directory / "results.jsonl", lines)
        write_text(self.directory / "results.csv", _csv(items))
    if self._held:
      for folder in (self.directory, *self.directory.glob("*/*")):
        clear_temporaries(folder, self._begun)
    return items


def describe(target: Target) -> dict[str, Any]:
  """What a result says about its checkpoint."""
  return {
      "member": target.member, "step": target.step, "steps": target.meta["steps"],
      "tokens": target.tokens, "path": str(target.directory),
      "weight_decay": target.weight_decay, "seed": target.seed,
      "parameters": target.meta["parameters"]["total"],
      "tokenizer_fingerprint": target.meta["tokenizer_fingerprint"],
      "data_fingerprint": target.meta["data_fingerprint"],
      "pretraining": _pretraining(target)}


def setting(result: Mapping[str, Any]) -> str:
  """What a checkpoint's member shares with those of other decays, seeds and steps, as JSON."""
  c = result["checkpoint"]
  fields = {k: v for k, v in flat_defaults().items() if k.startswith(("model.", "optim."))}
  fields |= flatten(c["pretraining"]) | {"data_fingerprint": c["data_fingerprint"]}
  own = ("seed", "optim.weight_decay")
  return json.dumps({k: v for k, v in fields.items() if k not in own}, sort_keys=True)


def setting_labels(settings: Sequence[str]) -> list[str]:
  """What tells settings apart, such as 'learning rate 0.003'; '' for a single one."""
  flat = [flatten(json.loads(s)) for s in settings]
  fields = [f for f in dict.fromkeys(f for one in flat for f in one)
            if len({json.dumps(one.get(f)) for one in flat}) > 1]
  return [", ".join(f"{f.rsplit('.', 1)[-1].replace('_', ' ')} {one.get(f)}" for f in fields)
          for one in flat]


def _pretraining(target: Target) -> dict[str, Any]:
  """The fields of the pretraining that tell members of a study apart."""
  config = target.pretraining
  return {"name": config["name"], "model": config["model"], "optim": config["optim"],
          "train": {k: config["train"][k] for k in ("steps", "tokens_per_parameter",
                                                    "global_batch_size")},
          "sequence_length": config["data"]["sequence_length"], "seed": config["seed"]}


def _csv(items: Sequence[dict]) -> str:
  """One line per figure: which checkpoint, which item, and value, standard error and n."""
  columns = ("member", "weight_decay", "seed", "step", "tokens", "item", "measure", "value", "se",
             "n")
  return csv_text(columns, (
      [*(item["checkpoint"][name] for name in columns[:5]), item["item"], measure, *numbers]
      for item in items for measure, numbers in figures(item["values"])))


def figures(value: Any, name: str = "") -> Iterator[tuple[str, tuple]]:
  """Yields the numbers of nested values as slash-joined name and (value, se, n).

  Numbers without an error have None there. Lists of objects, such as curves, are left out.
  """
  if isinstance(value, Mapping):
    if "value" in value:
      yield name, (value["value"], value.get("se"), value.get("n"))
    for key, inner in value.items():
      if "value" not in value or key not in ("value", "se", "n"):
        yield from figures(inner, f"{name}/{key}".lstrip("/"))
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      if not isinstance(inner, Mapping):
        yield from figures(inner, f"{name}/{i}")
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    yield name, (value, None, None)


def finite(value: Any) -> Any:
  """The value in JSON's types; None for numbers that are not finite."""
  if isinstance(value, Mapping):
    return {k: finite(v) for k, v in value.items()}
  if isinstance(value, (np.generic, np.ndarray, jax.Array)):
    value = np.asarray(value).tolist()
  if isinstance(value, (list, tuple)):
    return [finite(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict[str, Any]:
  """A result whose fields are there and of their types; raises FileNotFoundError or UserError."""
  what, advice = "a readable result", "move it elsewhere to have it made again"
  made = read_json(path, what, advice, {"schema_version": int})
  if made["schema_version"] > SCHEMA_VERSION:
    raise UserError(f"{path} was written by a newer wd_plasticity; update this one.")
  check_fields(made, path, what, advice, _FIELDS)
  check_fields(made["checkpoint"], path, what, advice, _CHECKPOINT)
  if not made["values"]:
    raise UserError(f"{path} holds no values; {advice}.")
  if "files" in made:  # since there are hashes
    check_fields(made, path, what, advice, {"files": dict})
  return made
