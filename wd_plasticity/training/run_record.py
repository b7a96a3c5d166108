"""What a work directory says about its run, and the refusal to mix two runs in one.

`members/<name>/config.json` is written at the first start of a member and compared
at every later one, so a sweep may grow; `versions.json` says what software and
devices ran it.
"""

import functools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import wd_plasticity
from wd_plasticity import errors
from wd_plasticity.config import as_json, flat_defaults, flatten
from wd_plasticity.errors import UserError
from wd_plasticity.files import check_place, locked, parse_json, read_json, write_json

# Fields that change how a run is executed or reported, not what it computes.
FREE_FIELDS = ("log.", "checkpoint.", "mesh.", "distributed.", "sweep.", "data.num_workers",
               "data.cache_dir", "train.log_every", "train.accumulate_steps",
               "train.loss_tile_tokens", "model.remat", "model.attention")
# Fields that only name something. What they name is compared by its content: the fingerprints
# of data and tokenizer.
NAMES = ("name", "data.train", "data.validation", "data.tokenizer.path", "data.tokenizer.eos")
FINGERPRINTS = ("tokenizer_fingerprint", "data_fingerprint")
# What a launcher says about itself, its tags and notes, as JSON.
LAUNCH_VARIABLE = "WD_PLASTICITY_LAUNCH"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def open_workdir(workdir: str | os.PathLike) -> None:
  """Makes the work directory and writes its `versions.json`, in process 0.

  Raises:
    UserError: the directory cannot be made or written to, or checkpoints cannot be kept in it.
  """
  check_place(workdir)
  if jax.process_index() != 0:
    return
  try:
    path = Path(workdir) / "versions.json"
    with locked(path):  # jobs of a launch start together
      _write_versions(path)
  except OSError as e:
    raise UserError(f"--workdir={workdir} cannot be written to: {errors.describe(e, workdir)}."
                    ) from e


def check_member(directory: str | os.PathLike, config: ConfigDict | Mapping, *,
                 tokenizer_fingerprint: str, data_fingerprint: str) -> None:
  """Refuses to go on with another run than the one this member was started with.

  At the first start process 0 writes `<directory>/config.json`.

  Args:
    directory: `<workdir>/members/<name>`.
    config: the whole configuration of the member.
    tokenizer_fingerprint, data_fingerprint: of the prepared data.

  Raises:
    UserError: naming what differs (up to three fields) and what to do.
  """
  path = Path(directory) / "config.json"
  now = {"config": as_json(config), "tokenizer_fingerprint": tokenizer_fingerprint,
         "data_fingerprint": data_fingerprint}
  try:
    before = read(path)
  except FileNotFoundError:
    if jax.process_index() == 0:
      write_json(path, now)
    return
  changed = changed_fields(before["config"], now["config"])
  fingerprints = [(what, before[f"{what}_fingerprint"], now[f"{what}_fingerprint"])
                  for what in ("tokenizer", "data")]
  if changed:
    shown = ", ".join(f"{name} was {json.dumps(a)} and is now {json.dumps(b)}"
                      for name, a, b in changed[:3])
    more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
    raise UserError(f"{directory} was started with another configuration: {shown}{more}; "
                    "undo the change or give another --workdir.")
  for what, a, b in fingerprints:
    if a != b:
      raise UserError(f"{directory} was started with another {what} (fingerprint {a}, now {b}): "
                      f"{_renamed(before['config'], now['config'])}; bring the old ones back or "
                      "give another --workdir.")


def read(path: str | os.PathLike) -> dict[str, Any]:
  """The record of a member: `config` and `FINGERPRINTS`.

  Raises:
    FileNotFoundError: there is none.
    UserError: it cannot be read.
  """
  return read_json(path, "the record of a member",
                   "restore that file from a copy or give another --workdir",
                   {"config": dict, **dict.fromkeys(FINGERPRINTS, str)})


def changed_fields(old: Mapping, new: Mapping) -> list[tuple[str, Any, Any]]:
  """(dotted name, old value, new value) of the fields that decide what a run computes.

  A field that `old` does not have, because it was written before the field existed,
  counts as having had its default.
  """
  before = flat_defaults() | flatten(as_json(old))
  after = flatten(as_json(new))
  names = [n for n in before | after if not n.startswith(FREE_FIELDS) and n not in NAMES]
  return [(n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)]


def _renamed(old: Mapping, new: Mapping) -> str:
  """Why the content differs though the fields that decide are the same."""
  before, after = flatten(as_json(old)), flatten(as_json(new))
  changed = [f"{name} was {json.dumps(before[name])} and is now {json.dumps(after[name])}"
             for name in NAMES[1:] if name in before and before[name] != after.get(name)]
  return (", ".join(changed) + ", and the content is another" if changed else
          "the configuration is the same, so the files it names have changed")


def versions() -> dict[str, str]:
  """Software and devices of this process."""
  return {"wd_plasticity": code_version(), "python": platform.python_version(),
          **{name: metadata.version(name) for name in PACKAGES},
          "platform": jax.default_backend(), "device_kind": jax.devices()[0].device_kind,
          "device_count": str(jax.device_count())}


@functools.cache
def code_version() -> str:
  """The version of this code: '0.1.0', and the commit when it runs from a git checkout."""
  version = wd_plasticity.__version__
  root = Path(wd_plasticity.__file__).parents[1]
  if not (root / ".git").exists():
    return version
  try:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, timeout=10, capture_output=True,
        text=True, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return version
  return f"{version}+{described}"


def _write_versions(path: Path) -> None:
  """Writes this start's versions; those it replaces stay under `earlier`."""
  now = versions() | _launch()
  try:
    before = parse_json(path.read_bytes())
    earlier = before.pop("earlier", [])
    if not isinstance(earlier, list):
      raise TypeError("not as it is written")
  except (FileNotFoundError, ValueError, TypeError, AttributeError):  # it is made anew
    before, earlier = now, []
  if before != now:
    earlier.append(before)
  write_json(path, {**now, "earlier": earlier})


def _launch() -> dict[str, Any]:
  """What the launcher of this process, if there was one, says about the run."""
  try:
    about = json.loads(os.environ.get(LAUNCH_VARIABLE, ""))
  except ValueError:
    return {}
  return {"launch": about} if isinstance(about, dict) else {}
