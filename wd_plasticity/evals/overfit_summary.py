"""Results of the overfit program side by side: members paired by document, and the table."""

import dataclasses
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from rich import box

from wd_plasticity.analysis import statistics
from wd_plasticity.analysis import token_frequency as tf
from wd_plasticity.console import Console, Table
from wd_plasticity.errors import UserError
from wd_plasticity.evals.results import Results, setting
from wd_plasticity.evals.targets import Target
from wd_plasticity.training.progress import format_count
from wd_plasticity.training.summary import wide_console

SETS = ("trained_on", "validation")


@dataclasses.dataclass(frozen=True)
class Row:
  """One checkpoint.

  Attributes:
    setting: what its member shares with members of other decays and seeds, as JSON.
    checkpoint, values: of the result.
    sums, counts: by token set, losses and tokens of each document and bin [G, bins].
    documents: by token set, what names its documents [G].
  """
  setting: str
  checkpoint: dict
  values: dict
  sums: dict[str, np.ndarray]
  counts: dict[str, np.ndarray]
  documents: dict[str, np.ndarray]

  @property
  def weight_decay(self) -> float:
    return self.checkpoint["weight_decay"]

  @property
  def tokens(self) -> int:
    return self.checkpoint["tokens"]


def read(results: Results, targets: Sequence[Target], item: str) -> list[Row]:
  """The finished results of these checkpoints."""
  rows = []
  for target in targets:
    made = results.load(target, item)
    path = results.path(target, item, ".npz")
    try:
      with np.load(path, allow_pickle=False) as arrays:
        sums = {name: arrays[f"{name}_bin_sums"] for name in SETS}
        counts = {name: arrays[f"{name}_bin_counts"] for name in SETS}
        documents = {name: arrays[f"{name}_documents"] for name in SETS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError,
            zipfile.BadZipFile, zlib.error) as e:
      raise UserError(f"{path} does not hold the arrays of its result; delete it and the .json "
                      "beside it to have them made again.") from e
    rows.append(Row(setting(made), made["checkpoint"], made["values"], sums, counts, documents))
  return rows


@np.errstate(invalid="ignore")  # a member may have diverged
def gap(row: Row, losses: dict[str, np.ndarray]) -> dict:
  """Validation minus trained-on of the losses of each document and bin [G, bins].

  They may be differences of losses of two checkpoints: the documents are the same, so
  that what makes one harder than another falls out.
  """
  means = [statistics.cluster_mean(losses[n].sum(1), row.counts[n].sum(1), row.documents[n])
           for n in SETS]
  return tf.difference(means[1], means[0])


def mean_gap(gaps: Sequence[dict]) -> dict:
  """The mean over seeds, which are tested on the same held-out documents.

  So its interval is as wide as that of one: only what they have read differs.
  """
  known = {name: [g[name] for g in gaps if g[name] is not None] for name in gaps[0]}
  return {name: float(np.mean(values)) if values else None for name, values in known.items()}


@np.errstate(invalid="ignore")
def minus(a: Row, b: Row) -> dict[str, np.ndarray]:
  """Losses of two checkpoints on the same tokens, subtracted."""
  return {name: a.sums[name] - b.sums[name] for name in SETS}


def reference(row: Row, rows: Sequence[Row]) -> Row | None:
  """The checkpoint of the smallest decay that is otherwise like this one.

  None when there is none that has read the same, and for those of the smallest decay.
  """
  smallest = min(r.weight_decay for r in rows if r.setting == row.setting)
  if row.weight_decay == smallest:
    return None
  def key(r):
    return r.setting, r.checkpoint["seed"], r.checkpoint["step"]
  return next((r for r in rows if r.weight_decay == smallest and key(r) == key(row) and all(
      np.array_equal(r.documents[name], row.documents[name]) for name in SETS)), None)


def contrast(row: Row, rows: Sequence[Row]) -> dict | None:
  """The gap minus that of the reference, paired by document; None without a reference."""
  other = reference(row, rows)
  return other and gap(row, minus(row, other))


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
  """One line per checkpoint; +- is one standard error over documents."""
  table = Table(title="Losses in nats per token, ± standard error over documents",
                title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column("member", no_wrap=True)
  for name in ("step", "tokens", "epochs", "share read", "trained on", "validation", "gap",
               "gap, minus smallest decay's", "balanced validation"):
    table.add_column(name, justify="right")
  for r in rows:
    v = r.values
    table.add_row(
        r.checkpoint["member"], f"{r.checkpoint['step']:,}", format_count(r.tokens),
        _number(v["epochs"], ".3g"), _number(v["share_read"], ".3g"),
        _number(v["trained_on"]["mean"]), _number(v["validation"]["mean"]),
        _with_error(v["gap"], "value"), _with_error(contrast(r, rows), "value"),
        _with_error(v["validation"]["balanced"], "mean"))
  (console or wide_console()).print(table)


def _number(value: float | None, form: str = ".4f") -> str:
  return "-" if value is None else format(value, form)


def _with_error(value: dict | None, name: str) -> str:
  if value is None or value[name] is None:
    return "-"
  return f"{value[name]:.4f} ± {_number(value['se'])}"
