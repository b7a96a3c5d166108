"""What sweeps set: groups of members, and points of the fine-tuning's sweep by their fields."""

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wd_plasticity.config import flatten
from wd_plasticity.report.items import Item, Notes, enumerate_some, swept_fields
from wd_plasticity.training import summary

LEARNING_RATE = "optim.learning_rate"


def name(fields: dict[str, Any]) -> str:
  """'learning_rate=0.002, width=96' of swept fields by dotted name."""
  short = collections.Counter(field.rsplit(".", 1)[-1] for field in fields)
  words = []
  for field, value in fields.items():
    last = field.rsplit(".", 1)[-1]
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    words.append(f"{last if short[last] == 1 else field}={shown}")
  return ", ".join(words)


def groups_of_strangers(items: Sequence[Item], known: dict[str, str], notes: Notes
                        ) -> tuple[dict[str, str], dict[str, str]]:
  """Groups of members that have results here and no folder, and which of them are copies."""
  pretrainings = {}
  for item in items:
    c = item.document["checkpoint"]
    if c["member"] not in known and c["member"] not in pretrainings:
      fields = c.get("pretraining")
      pretrainings[c["member"]] = flatten(fields) if isinstance(fields, dict) else {}
  if not pretrainings:
    return {}, {}
  if known:
    notes.add("Results without a pretraining here, shown where only results count: "
              f"{enumerate_some(sorted(pretrainings))}.")
  else:
    notes.add("The pretraining is not in this work directory: its losses and curves are missing.")
  groups = dict.fromkeys(pretrainings, "")
  if any(pretrainings.values()):
    swept = summary.swept_fields(list(pretrainings.values()))
    groups = {member: name({field: summary.field(fields, field) for field in swept})
              for member, fields in pretrainings.items()}
  first, copies = {}, {}
  for item in sorted(items, key=lambda i: i.document["checkpoint"]["member"]):
    c = item.document["checkpoint"]
    if c["member"] in groups:
      key = groups[c["member"]], float(c["weight_decay"]), c["seed"]
      if first.setdefault(key, c["member"]) != c["member"]:
        copies[c["member"]] = first[key]
  if copies:
    notes.add(summary.copies_sentence(copies))
  return groups, copies


def points(items: Sequence[Item]) -> dict[Path, tuple[str, str]]:
  """Name of the learning rate and of the other swept fields of every result of fine-tuning.

  Points of the fine-tuning's sweep are told apart by their fields, not by their names.
  """
  flat = {i.path: flatten(s) if isinstance(s := i.document.get("settings"), dict) else {}
          for i in items}
  fields = sorted(swept_fields(items) - {LEARNING_RATE, "seed"})
  fields = [f for f in fields if len({json.dumps(s.get(f)) for s in flat.values()}) > 1]
  rates: dict[str, set] = {}
  for i in items:
    rates.setdefault(str(i.document["values"].get("task")), set()).add(
        flat[i.path].get(LEARNING_RATE))
  several = any(len(of_task) > 1 for of_task in rates.values())
  return {path: (f"lr{s[LEARNING_RATE]:g}" if several and LEARNING_RATE in s else "",
                 name({f: s.get(f) for f in fields})) for path, s in flat.items()}
