"""Which checkpoints an eval program is to read, from the paths it was given."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wd_plasticity.data import tokenizers
from wd_plasticity.errors import UserError
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.training import checkpoint, run_record, summary
from wd_plasticity.training.stored_state import RefusedCheckpoint


@dataclasses.dataclass(frozen=True)
class Target:
  """One stored checkpoint of one member.

  Attributes:
    stored: the opened checkpoint.
    model: its sizes and switches, for forward passes.
    tokenizer_dir: where its tokenizer is looked for; '' beside the checkpoints.
  """
  stored: checkpoint.StoredCheckpoint
  model: ModelConfig
  tokenizer_dir: str = ""

  @property
  def directory(self) -> Path:
    return self.stored.directory

  @property
  def workdir(self) -> Path:
    """Of the pretraining: <workdir>/members/<name>/checkpoints/<step>."""
    return self.directory.parents[3]

  @property
  def meta(self) -> dict[str, Any]:
    return self.stored.meta

  @property
  def pretraining(self) -> dict[str, Any]:
    """The whole configuration that it was pretrained with."""
    return self.meta["config"]

  @property
  def member(self) -> str:
    return self.meta["member"]

  @property
  def step(self) -> int:
    return self.stored.step

  @property
  def name(self) -> str:
    """'wd0.3-seed0/876'."""
    return f"{self.member}/{self.step}"

  @property
  def tokens(self) -> int:
    """Tokens seen in pretraining."""
    return self.meta["tokens"]

  @property
  def weight_decay(self) -> float:
    return self.meta["weight_decay"]

  @property
  def seed(self) -> int:
    return self.pretraining["seed"]

  @property
  def trained_model(self) -> ModelConfig:
    """`model` for training: what is kept for the backward pass is as in pretraining."""
    return dataclasses.replace(self.model, remat=self.meta["model"]["remat"])

  @property
  def order_known(self) -> bool:
    """Whether it is known which records of its data it has read: those of its seed and step."""
    return self.meta.get("imported", {"order_known": True}).get("order_known", False)

  @property
  def sequence_length(self) -> int:
    """Tokens of a pretraining record."""
    return self.pretraining["data"]["sequence_length"]

  @functools.cached_property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer that the model was trained with.

    Raises:
      UserError: it is not there, or another one is.
    """
    if self.tokenizer_dir:
      return self._checked(Path(self.tokenizer_dir))
    beside = self.directory.parents[1] / "tokenizer"
    cached = self.workdir / "cache" / self.meta["data_fingerprint"][:32] / "tokenizer"
    if not beside.is_dir() and cached.is_dir():
      return self._checked(cached)
    if not beside.is_dir():
      raise UserError(f"the tokenizer of {self.directory} is not in {beside}; copy it there from "
                      "the pretraining, or name its folder by --config.tokenizer_dir=FOLDER.")
    return self._checked(beside)

  def _checked(self, folder: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.load(str(folder))
    if tokenizer.fingerprint != self.meta["tokenizer_fingerprint"]:
      raise UserError(f"the tokenizer in {folder} is not the one that {self.name} was trained with "
                      "(its fingerprint differs); restore that one, or name its folder by "
                      "--config.tokenizer_dir=FOLDER.")
    return tokenizer


def find(paths: Sequence[str], steps: str = "last", *, compute_dtype: str = "",
         tokenizer_dir: str = "") -> tuple[list[Target], list[str]]:
  """The checkpoints that paths and `steps` mean, in order of weight decay, seed and step.

  Args:
    paths: work directories of sweeps, member directories, or step directories.
    steps: of every member: 'last', 'all' or comma-separated numbers. A path that names
      a step means just that one.
    compute_dtype, tokenizer_dir: as in the config; '' for the checkpoint's own.

  Returns:
    The targets, and sentences about members that are left out or not finished.

  Raises:
    UserError: nothing there, not a checkpoint of this project, a step that does not exist,
      or two checkpoints of one name.
  """
  if not paths:
    raise UserError("--checkpoint=PATH is missing; give the work directory of a sweep, a member "
                    "or a step of its checkpoints.")
  notes, targets = [], {}
  for path in paths:
    for stored in _stored(Path(path).expanduser().absolute(), steps, notes):
      target = Target(stored, _model(stored.meta, compute_dtype), tokenizer_dir)
      other = targets.setdefault(target.name, target)
      if other.directory.resolve() != target.directory.resolve():
        raise UserError(f"{other.directory} and {target.directory} are both called {target.name}; "
                        "evaluate them in two runs with a --workdir each.")
  return sorted(targets.values(),
                key=lambda t: (t.weight_decay, t.seed, t.member, t.step)), notes


def _stored(path: Path, steps: str, notes: list[str]) -> list[checkpoint.StoredCheckpoint]:
  if (path / "members").is_dir():
    found = []
    folders = sorted((path / "members").iterdir())
    copies = _copies(path, folders)
    if copies:
      notes.append(summary.copies_sentence(copies))
    for member in folders:
      if member.name in copies:
        continue
      if checkpoint.finished_steps(member / "checkpoints"):
        found += _of_member(member, steps, notes)
      elif member.is_dir():
        notes.append(f"{member.name} has no finished checkpoint and is left out.")
    if not found:
      raise UserError(f"no member of {path} has a finished checkpoint; pretrain it first.")
    return found
  one = _opened(path)  # raises when there is nothing
  if one.directory == path:
    return [one]
  return _of_member(path, steps, notes)


def _of_member(path: Path, steps: str, notes: list[str]) -> list[checkpoint.StoredCheckpoint]:
  newest = _opened(path)
  if newest.step < newest.meta["steps"]:
    notes.append(f"{newest.meta['member']} is not finished: its last checkpoint is of step "
                 f"{newest.step} of {newest.meta['steps']}.")
  if steps == "last":
    return [newest]
  if steps == "all":
    wanted = checkpoint.finished_steps(newest.directory.parent)
  else:
    try:
      wanted = [int(s) for s in steps.split(",")]
    except ValueError:
      raise UserError(f"steps={steps!r} must be last, all, or numbers such as '100,200'.") from None
  return [_opened(path, step) for step in wanted]


def _copies(workdir: Path, folders: Sequence[Path]) -> dict[str, str]:
  """Members that are copies of others and do not count, as the summary and the report see them."""
  steps = {f: checkpoint.finished_steps(f / "checkpoints") for f in folders}
  names = [checkpoint.read_meta(f / "checkpoints" / str(s[-1]))["member"]
           for f, s in steps.items() if s]
  if len(set(names)) == len(names):
    return {}
  return summary.copies(workdir, summary.summarise(workdir))


def _opened(path: Path, step: int | None = None) -> checkpoint.StoredCheckpoint:
  """A checkpoint that is of the run whose folder it lies in.

  Raises:
    UserError: as of `open_checkpoint`, or its configuration or data are not those of its member.
  """
  stored = checkpoint.open_checkpoint(path, step)
  record = stored.directory.parents[1] / "config.json"
  if stored.directory.parent.name == "checkpoints" and record.is_file():
    member = run_record.read(record)
    changed = run_record.changed_fields(member["config"], stored.meta["config"])
    changed += [(f, member[f], stored.meta[f]) for f in run_record.FINGERPRINTS
                if member[f] != stored.meta[f]]
    if changed:
      name, here, there = changed[0]
      raise RefusedCheckpoint(
          stored.directory, f"it is of another run than {record}: its {name} is {there} and should "
          f"be {here}")
  return stored


def _model(meta: dict, compute_dtype: str) -> ModelConfig:
  model = ModelConfig.from_section(meta["model"], meta["model"]["vocab_size"])
  # How it was computed in pretraining, on other devices and rows, is not how it must be here.
  return dataclasses.replace(model, attention="auto", remat="none", **(
      {"compute_dtype": compute_dtype} if compute_dtype else {}))
