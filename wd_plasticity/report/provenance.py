"""How a study was made, as tables of text: members, configuration, decays, versions."""

import collections
import dataclasses
import json
import shlex

from wd_plasticity.config import flatten
from wd_plasticity.report.study import Member, Study
from wd_plasticity.training.progress import format_count


@dataclasses.dataclass(frozen=True)
class Table:
  """Text in cells, below a title.

  Attributes:
    title, text: what it shows.
    heads: [columns].
    rows: [rows][columns]; the first cell names the row.
    open: whether it is seen without being asked for.
  """
  title: str
  heads: list[str]
  rows: list[list[str]]
  text: str = ""
  open: bool = False


def tables(study: Study) -> list[Table]:
  """What there is to tell; tables without rows are left out."""
  made = [_members(study.members), _differing(study.members), _common(study.members),
          _decays(study.members), _fingerprints(study.members), _versions(study)]
  return [t for t in made if t.rows]


def _members(members: list[Member]) -> Table:
  grouped = any(m.group for m in members)
  failed = any(m.reason for m in members)
  heads = ["member", "weight decay", "seed", *(["other fields"] if grouped else []), "status",
           "steps", "tokens", "validation loss", "train subset loss",
           *(["reason"] if failed else [])]
  rows = [[m.name, _number(m.weight_decay), str(m.seed), *([m.group] if grouped else []),
           m.status, str(m.steps) if m.total_steps in (None, m.steps) else
           f"{m.steps} of {m.total_steps}", "-" if m.tokens is None else format_count(m.tokens),
           _number(m.validation_loss, ".4f"), _number(m.train_subset_loss, ".4f"),
           *([m.reason] if failed else [])] for m in members]
  return Table(f"Members ({len(members)})", heads, rows, "Losses in nats per token.", open=True)


def _split(members: list[Member]) -> tuple[list[dict], list[str], list[str]]:
  """Flat configurations, the fields in which they differ, and those they have in common."""
  configs = [flatten(m.config) for m in members]
  known = [c for c in configs if c]
  fields = list(dict.fromkeys(name for c in known for name in c))
  alike = [f for f in fields if len({_value(c, f) for c in known}) == 1]
  return configs, [f for f in fields if f not in set(alike)], alike


def _value(config: dict, field: str) -> str:
  if field not in config:
    return "-"
  value = config[field]
  return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _differing(members: list[Member]) -> Table:
  configs, differing, _ = _split(members)
  rows = [[m.name, *(_value(c, f) for f in differing)]
          for m, c in zip(members, configs, strict=True)] if differing else []
  return Table("Configuration: fields in which members differ", ["member", *differing], rows)


def _common(members: list[Member]) -> Table:
  configs, _, alike = _split(members)
  config = next((c for c in configs if c), {})
  return Table("Configuration: fields that all members share", ["field", "value"],
               [[f, _value(config, f)] for f in alike])


def _decays(members: list[Member]) -> Table:
  """The decay of every parameter, a column for all members that have the same."""
  columns: dict[tuple, list[str]] = collections.defaultdict(list)
  shapes: dict[str, tuple[str, str]] = {}
  for m in members:
    entries = [e for e in m.plan.get("decay_table") or [] if "parameter" in e]
    for e in entries:
      shapes.setdefault(e["parameter"], (" x ".join(map(str, e.get("shape", ()))),
                                         str(e.get("group", ""))))
    if entries:
      columns[tuple((e["parameter"], e.get("decay")) for e in entries)].append(m.name)
  alike = [dict(key) for key in columns]
  heads = ["parameter", "shape", "group", *(_alike(names) for names in columns.values())]
  rows = [[name, *shapes[name], *(_number(c.get(name)) for c in alike)] for name in shapes]
  return Table("Decay of every parameter", heads, rows,
               "As planned: the weight decay of the member times the multipliers and rules of "
               "its configuration. Members with the same decays share a column.")


def _alike(names: list[str]) -> str:
  return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def _fingerprints(members: list[Member]) -> Table:
  seen: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
  for m in members:
    for kind, value in (("data", m.data_fingerprint), ("tokenizer", m.tokenizer_fingerprint)):
      if value:
        seen[kind, value].append(m.name)
  return Table("Data and tokenizer", ["of", "fingerprint", "members"],
               [[kind, value, "all" if len(names) == len(members) else ", ".join(names)]
                for (kind, value), names in seen.items()])


def _versions(study: Study) -> Table:
  rows = [[name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
          for name, value in study.versions.items() if name != "earlier"]
  for version in study.versions.get("earlier") or []:
    rows.append(["pretraining earlier by", ", ".join(f"{k} {v}" for k, v in version.items())])
  rows += [["results made by", str(v)] for v in study.code_versions]
  return Table("Versions", ["what", "version"], rows)


def folded(command: str) -> str:
  """A command line with an argument on each line, which a shell reads the same."""
  try:
    words = [shlex.quote(word) for word in shlex.split(command)]
  except ValueError:  # it was not written by one
    return command
  start = next((i for i, word in enumerate(words) if word.lstrip("'").startswith("--")), len(words))
  return " \\\n  ".join([" ".join(words[:start]), *words[start:]])


def _number(value: float | None, form: str = "g") -> str:
  return "-" if value is None else format(value, form)
