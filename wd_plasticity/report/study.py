"""What a study has on disk: its members, their results, and what is missing.

Reads what pretraining and the eval programs have written, as JSON and arrays; opens no
checkpoint. Whatever cannot be read is left out and named in `Study.notes`.
"""

import collections
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wd_plasticity.errors import UserError
from wd_plasticity.evals import finetune_summary
from wd_plasticity.report import items as items_lib
from wd_plasticity.report import swept
from wd_plasticity.report.items import UNREADABLE, Item, Notes, enumerate_some
from wd_plasticity.tasks import registry
from wd_plasticity.training import summary
from wd_plasticity.training.metrics import read_metrics

PROGRAMS = ("finetune", "probe", "attention_rank", "overfit", "lm_eval")
_LONGEST_CURVE = 200  # points of a fine-tuning's curve that are kept


@dataclasses.dataclass(frozen=True)
class Member:
  """One pretraining.

  Attributes:
    name: of its folder.
    weight_decay, seed: which point of the sweep.
    group: other swept fields, 'learning_rate=0.002', '' when there are none.
    status: 'done', 'failed at step 20' or 'unfinished'.
    reason: why it failed.
    steps, total_steps: done and planned; None where nothing tells.
    tokens: seen so far.
    validation_loss, train_subset_loss: of its last evaluation, nats per token; None where
      it is missing or was not finite.
    curve: records of its metrics.jsonl (see training/metrics.py for the names).
    config, plan: as stored; the plan may be {}.
    data_fingerprint, tokenizer_fingerprint: of what it was trained on.
  """
  name: str
  weight_decay: float
  seed: int
  group: str
  status: str
  reason: str
  steps: int
  total_steps: int | None
  tokens: int | None
  validation_loss: float | None
  train_subset_loss: float | None
  curve: list[dict]
  config: dict
  plan: dict
  data_fingerprint: str
  tokenizer_fingerprint: str


@dataclasses.dataclass(frozen=True)
class Finetuned:
  """One split of one fine-tuning of one checkpoint.

  Attributes:
    member, weight_decay, seed, group, step: of the checkpoint.
    last: it is the newest step of its member among the results of fine-tuning.
    task, title, split: what was learned, and on what it was tested.
    rate: name of its learning rate, 'lr0.001', where its task was fine-tuned at several, else ''.
    learning_rate: of the fine-tuning.
    measure: by which the task is judged, 'acc', 'acc_per_byte' or 'greedy_pass@1'.
    before, after: measure to {'value', 'se', 'n'}, of the base model and the fine-tuned.
    keys: [n] of the problems, str; empty when there are no arrays.
    scores: 'before' | 'after' to measure to float32 [n], NaN where it does not count, or {}.
    forgetting: {'value', 'se', 'n', 'before', 'after'}, change of the pretraining's
      validation loss, nats per token; None where it was not measured.
    curve: {'step', 'loss', 'learning_rate'} of at most 200 steps.
    observed: {'step', 'splits'}, figures on the way.
    failed_at: step at which the loss was not finite.
    tokens, item: of the checkpoint, and of its result file.
    setting: other fields of the fine-tuning's own sweep, 'epochs=3', '' when there are none.
    finetune_seed: of the fine-tuning; None where it is not stored.
    chance: share of the problems that guessing solves; None where it is not stored.
  """
  member: str
  weight_decay: float
  seed: int
  group: str
  step: int
  last: bool
  task: str
  title: str
  split: str
  rate: str
  learning_rate: float
  measure: str
  before: dict
  after: dict
  keys: np.ndarray
  scores: dict
  forgetting: dict | None
  curve: list[dict]
  observed: list[dict]
  failed_at: int | None
  tokens: int | None = None
  item: str = ""
  setting: str = ""
  finetune_seed: int | None = None
  chance: float | None = None

  @property
  def point(self) -> str:
    """Of the fine-tuning's own sweep, without its seeds: 'lr0.001, epochs=3'."""
    return ", ".join(part for part in (self.rate, self.setting) if part)


@dataclasses.dataclass(frozen=True)
class Result:
  """One item of probe, attention_rank, overfit or lm_eval.

  Attributes:
    member, weight_decay, seed, group, step, tokens: of the checkpoint.
    last: it is the newest step of its member among the results of this program.
    item: name of the result, for the probe and lm_eval its task.
    values: as stored.
    arrays: of overfit's last steps: '<set>_documents', '<set>_document_sums' and
      '<set>_document_counts', each [documents], of 'validation' and 'trained_on'.
  """
  member: str
  weight_decay: float
  seed: int
  group: str
  step: int
  tokens: int
  last: bool
  item: str
  values: dict
  arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Study:
  """Everything that is known of a study.

  Attributes:
    name: of its configuration, else of its folder.
    workdir: where it was read from.
    members: by group, weight decay and seed.
    finetuned, probed, ranked, overfit: results, by group, weight decay, seed and step.
    commands: distinct (program or step, command line), in the order of the study.
    versions: of the software that pretrained, as in versions.json.
    code_versions: of this package, distinct, of all that is read.
    notes: sentences on what is missing, failed or could not be read.
    harness: results of lm-evaluation-harness, in the same order.
  """
  name: str
  workdir: Path
  members: list[Member]
  finetuned: list[Finetuned]
  probed: list[Result]
  ranked: list[Result]
  overfit: list[Result]
  commands: list[tuple[str, str]]
  versions: dict
  code_versions: list[str]
  notes: list[str]
  harness: list[Result] = dataclasses.field(default_factory=list)


def read(workdir: str | os.PathLike) -> Study:
  """Reads a study's work directory.

  Args:
    workdir: with members/ of the pretraining, evals/ of the eval programs, or both.

  Raises:
    UserError: there is no such directory.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise UserError(f"there is no work directory {workdir}; give the --workdir of a study.")
  notes = Notes(workdir)
  members, copies = _members(workdir, notes)
  found = {program: items_lib.read_items(workdir, program, notes) for program in PROGRAMS}
  groups = {m.name: m.group for m in members}
  strangers, repeated = swept.groups_of_strangers([i for items in found.values() for i in items],
                                             {**groups, **copies}, notes)
  groups |= strangers
  copies |= repeated
  found = {program: [i for i in items if i.document["checkpoint"]["member"] not in copies]
           for program, items in found.items()}
  points = swept.points(found["finetune"])
  made: dict[str, list] = {}
  for program, items in found.items():
    newest: dict[str, int] = {}
    for item in items:
      c = item.document["checkpoint"]
      newest[c["member"]] = max(newest.get(c["member"], 0), c["step"])
    made[program] = []
    for item in items:
      try:
        if program == "finetune":
          made[program] += _finetuned(item, groups, newest, points, notes)
        else:
          made[program].append(_result(item, groups, newest))
      except UNREADABLE:
        notes.unreadable(item.path)
    made[program].sort(key=lambda r: (r.group, r.weight_decay, r.seed, r.member, r.step))
  _note_failures(members, made["finetune"], notes)
  versions = items_lib.read_or_note(workdir / "versions.json", notes)
  return Study(
      name=_name(workdir, members), workdir=workdir, members=members, finetuned=made["finetune"],
      probed=made["probe"], ranked=made["attention_rank"], overfit=made["overfit"],
      commands=items_lib.commands(workdir, found, notes), versions=versions,
      code_versions=items_lib.code_versions(found, versions), notes=notes.sentences(),
      harness=made["lm_eval"])


# Members.


def _members(workdir: Path, notes: Notes) -> tuple[list[Member], dict[str, str]]:
  """The members, and those that are copies of others (`summary.copies`), which are left out."""
  folders = sorted(p for p in workdir.glob("members/*") if p.is_dir())
  stored = {p: items_lib.read_or_note(p / "config.json", notes) for p in folders}
  configs = {}
  for folder, fields in stored.items():
    try:
      if config := summary.config_in(fields, folder / "config.json"):
        configs[folder] = config
    except UNREADABLE:
      notes.unreadable(folder / "config.json")
  fields = summary.swept_fields(list(configs.values())) if configs else []
  members, rows, without = [], [], [p.name for p in folders if p not in configs]
  for folder, config in configs.items():
    try:
      row = summary.member_row(folder, config, fields)
      members.append(_member(folder, stored[folder], config, row))
      rows.append(row)
    except UNREADABLE:
      for name in _broken(folder):
        notes.unreadable(folder / name)
  if without:
    notes.add(f"Without a configuration, and left out: {enumerate_some(without)}.")
  copies = summary.copies(workdir, rows)
  if copies:
    notes.add(summary.copies_sentence(copies))
  members = [m for m in members if m.name not in copies]
  return sorted(members, key=lambda m: (m.group, m.weight_decay, m.seed, m.name)), copies


def _broken(folder: Path) -> list[str]:
  """Which of a member's files cannot be read."""
  readers = {"plan.json": summary.read_json, "FAILED.json": summary.read_json,
             "metrics.jsonl": lambda path: path.exists() and read_metrics(path)}
  broken = []
  for name, reader in readers.items():
    try:
      reader(folder / name)
    except UNREADABLE:
      broken.append(name)
  return broken or ["config.json"]


def _member(folder: Path, stored: dict, config: dict, row: dict) -> Member:
  plan = summary.read_json(folder / "plan.json")
  path = folder / "metrics.jsonl"
  return Member(
      name=folder.name, weight_decay=float(config["optim.weight_decay"]), seed=int(config["seed"]),
      group=swept.name({name: row[name] for name in row if "." in name}), status=row["status"],
      reason=row["reason"], steps=row["steps"], total_steps=summary.total_steps(folder, config),
      tokens=row["tokens"], validation_loss=row["validation_loss"],
      train_subset_loss=row["train_subset_loss"],
      curve=read_metrics(path) if path.exists() else [], config=stored["config"], plan=plan,
      data_fingerprint=str(stored.get("data_fingerprint", "")),
      tokenizer_fingerprint=str(stored.get("tokenizer_fingerprint", "")))


def _name(workdir: Path, members: Sequence[Member]) -> str:
  names = collections.Counter(str(m.config.get("name") or "") for m in members)
  # Where every member has a name of its own, none is that of the study.
  name, count = names.most_common(1)[0] if names else ("", 0)
  return name if name and (count > 1 or len(members) == 1) else workdir.resolve().name


def _note_failures(members: Sequence[Member], finetuned: Sequence[Finetuned],
                   notes: Notes) -> None:
  failed = [f"{m.name} {m.status}" + (f" ({m.reason})" if m.reason else "")
            for m in members if m.status.startswith("failed")]
  if failed:
    notes.add(f"Pretraining failed: {enumerate_some(failed)}.")
  unfinished = [m.name for m in members if m.status == "unfinished"]
  if unfinished:
    notes.add(f"Pretraining has not finished: {enumerate_some(unfinished)}.")
  ruined = [f"{f.member} on {f.task}" + (f" {f.point}" if f.point else "")
            for f in finetuned if f.failed_at is not None]
  if ruined:
    notes.add("Fine-tuning was not finite, and its figures are of the step before: "
              f"{enumerate_some(list(dict.fromkeys(ruined)))}.")
  missing = [f for f in finetuned if f.last and not f.scores]
  if missing:
    notes.add(f"{len(missing)} results of fine-tuning have no scores per problem; delete them and "
              "run the fine-tuning again to have comparisons paired by problem.")


# Results.


def _checkpoint(item: Item, groups: dict[str, str], newest: dict[str, int]) -> dict[str, Any]:
  c = item.document["checkpoint"]
  return dict(member=c["member"], weight_decay=float(c["weight_decay"]), seed=c["seed"],
              group=groups[c["member"]], step=c["step"], last=c["step"] == newest[c["member"]])


def _result(item: Item, groups, newest) -> Result:
  return Result(**_checkpoint(item, groups, newest), tokens=item.document["checkpoint"]["tokens"],
                item=item.document["item"], values=item.document["values"], arrays=item.arrays)


def _finetuned(item: Item, groups, newest, points, notes: Notes) -> list[Finetuned]:
  values, settings = item.document["values"], item.document["settings"]
  task = values["task"]
  try:
    title = registry.get(task).title
  except UserError:
    notes.add(f"{task} is not a task of this version; its results are left out.")
    return []
  made = []
  rate, setting = points[item.path]
  for split, after in values["after"].items():
    chance, measure = after.get("chance"), finetune_summary.headline(task, after)
    before, after = _measures(values["before"][split]), _measures(after)
    made.append(Finetuned(
        **_checkpoint(item, groups, newest), task=task, title=title, split=split,
        rate=rate, learning_rate=float(settings["optim"]["learning_rate"]),
        measure=measure, before=before, after=after,
        keys=item.arrays.get(f"{split}/keys", np.array([], np.str_)),
        scores=_scores(item.arrays, split), forgetting=values.get("forgetting"),
        curve=_thin(values.get("curve") or []), observed=values.get("observed") or [],
        failed_at=values.get("failed_at"), tokens=item.document["checkpoint"]["tokens"],
        item=item.document["item"], setting=setting, finetune_seed=settings.get("seed"),
        chance=chance if isinstance(chance, int | float) else None))
  return made


def _measures(values: dict) -> dict[str, dict]:
  return {name: v for name, v in values.items() if isinstance(v, dict) and "value" in v}


def _scores(arrays: dict[str, np.ndarray], split: str) -> dict[str, dict[str, np.ndarray]]:
  made: dict[str, dict[str, np.ndarray]] = {}
  if f"{split}/keys" not in arrays:
    return {}
  n = len(arrays[f"{split}/keys"])
  for name, scores in arrays.items():
    of, stage, *measure = name.split("/", 2)
    if of == split and measure and len(scores) == n:
      made.setdefault(stage, {})[measure[0]] = scores
  return made


def _thin(curve: list[dict]) -> list[dict]:
  if len(curve) <= _LONGEST_CURVE:
    return curve
  places = np.linspace(0, len(curve) - 1, _LONGEST_CURVE).round().astype(int)
  return [curve[i] for i in places]
