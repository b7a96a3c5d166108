"""The figures of the report as tables, and all results and members, as CSV and Parquet."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from wd_plasticity import files
from wd_plasticity.evals.results import figures as numbers_of
from wd_plasticity.plain import cell
from wd_plasticity.report.figure import Figure
from wd_plasticity.report.study import Finetuned, Result, Study

_RESULTS = pa.schema([
    ("program", pa.string()), ("member", pa.string()), ("weight_decay", pa.float64()),
    ("seed", pa.int64()), ("group", pa.string()), ("step", pa.int64()), ("tokens", pa.int64()),
    ("item", pa.string()), ("measure", pa.string()), ("value", pa.float64()),
    ("se", pa.float64()), ("n", pa.int64())])
_MEMBERS = pa.schema([
    ("member", pa.string()), ("weight_decay", pa.float64()), ("seed", pa.int64()),
    ("group", pa.string()), ("status", pa.string()), ("reason", pa.string()),
    ("steps", pa.int64()), ("total_steps", pa.int64()), ("tokens", pa.int64()),
    ("validation_loss", pa.float64()), ("train_subset_loss", pa.float64()),
    ("timescale_fraction", pa.float64()), ("data_fingerprint", pa.string()),
    ("tokenizer_fingerprint", pa.string())])


def save(figures: Sequence[Figure], folder: str | Path, study: Study | None = None) -> list[Path]:
  """Writes <figure>.csv and .parquet, and of a study members and results.

  Args:
    figures: one table each, a row per point: the controls' values, series, weight_decay, x,
      y, low, high, label. Those without views have none.
    folder: is made when it does not exist.
    study: its members.* have a row per member, its results.* a row per number of every
      result, as `evals/results.py` names them. Measures of single heads, which are many,
      stay in the results of the attention_rank program.

  Returns:
    The paths.
  """
  tables = {figure.name: figure_table(figure) for figure in figures if figure.views}
  if study is not None:
    tables |= {"members": members_table(study), "results": results_table(study)}
  paths = []
  for name, table in tables.items():
    paths += _write(table, Path(folder) / name)
  return paths


def figure_table(figure: Figure) -> pa.Table:
  """A row per point of every view."""
  columns: dict[str, list] = {c: [] for c in figure.controls}
  columns |= {c: [] for c in ("series", "weight_decay", "x", "y", "low", "high", "label")}
  for view in figure.views:
    for s in view.series:
      n = len(s.x)
      for control in figure.controls:
        columns[control] += [view.choice.get(control)] * n
      columns["series"] += [s.name] * n
      # On a decay axis the place is the decay.
      columns["weight_decay"] += list(s.x) if figure.x_axis == "decay" else [s.weight_decay] * n
      columns["x"] += s.x
      columns["y"] += s.y
      for end in ("low", "high"):
        columns[end] += getattr(s, end) or [None] * n
      columns["label"] += s.labels or [None] * n
  numbers = ("weight_decay", "x", "y", "low", "high")
  return pa.table({c: _array(values, pa.float64() if c in numbers else pa.string())
                   for c, values in columns.items()})


def members_table(study: Study) -> pa.Table:
  """A row per member."""
  rows = []
  for m in study.members:
    timescale = m.plan.get("timescale")
    rows.append({name: getattr(m, name, None) for name in _MEMBERS.names} | {
        "member": m.name,
        "timescale_fraction": timescale.get("fraction") if isinstance(timescale, dict) else None})
  return pa.table([_array([r[f.name] for r in rows], f.type) for f in _MEMBERS], schema=_MEMBERS)


def results_table(study: Study) -> pa.Table:
  """A row per number of every result."""
  columns: list[list] = [[] for _ in _RESULTS.names]
  for program, results in (("finetune", study.finetuned), ("probe", study.probed),
                           ("attention_rank", study.ranked), ("overfit", study.overfit),
                           ("lm_eval", study.harness)):
    for r in results:
      start = (program, r.member, r.weight_decay, r.seed, r.group, r.step, r.tokens, r.item)
      found = list(_finetuned(r) if program == "finetune" else _result(r))
      for column, value in zip(columns, start, strict=False):
        column += [value] * len(found)
      for measure, (value, se, n) in found:
        for column, part in zip(columns[len(start):], (measure, value, se, n), strict=True):
          column.append(part)
  return pa.table([_array(c, f.type) for c, f in zip(columns, _RESULTS, strict=True)],
                  schema=_RESULTS)


def _array(values: Sequence, kind: pa.DataType) -> pa.Array:
  """A column; halves of surrogate pairs, which a damaged name may hold, are spelled.

  What is no number of the column's kind is left out of it.
  """
  if pa.types.is_string(kind):
    values = [v if v is None else str(v).encode("utf-8", "backslashreplace").decode("utf-8")
              for v in values]
  try:
    return pa.array(values, kind)
  except (pa.ArrowException, OverflowError, TypeError):
    return pa.array([v if _fits(v, kind) else None for v in values], kind)


def _fits(value: object, kind: pa.DataType) -> bool:
  if not isinstance(value, (int, float)):
    return False
  return -1e300 < value < 1e300 if pa.types.is_floating(kind) else (
      isinstance(value, int) and -1 << 63 <= value < 1 << 63)


def _finetuned(f: Finetuned) -> Iterator[tuple[str, tuple]]:
  yield from numbers_of({"before": {f.split: f.before}, "after": {f.split: f.after}})
  if f.forgetting:
    yield from numbers_of({"forgetting": f.forgetting})


def _result(r: Result) -> Iterator[tuple[str, tuple]]:
  values = {k: {name: part for name, part in v.items() if name != "heads"}
            if isinstance(v, dict) else v for k, v in r.values.items()}
  yield from numbers_of(values)


def _write(table: pa.Table, stem: Path) -> list[Path]:
  paths = [Path(f"{stem}.csv"), Path(f"{stem}.parquet")]
  for path, write in zip(paths, (pyarrow.csv.write_csv, pyarrow.parquet.write_table),
                         strict=True):
    content = io.BytesIO()
    write(_for_spreadsheets(table) if path.suffix == ".csv" else table, content)
    files.write_atomically(path, lambda f, c=content: f.write(c.getbuffer()))
  return paths


def _for_spreadsheets(table: pa.Table) -> pa.Table:
  """Without text that they would take for a formula, see `plain.cell`."""
  columns = [pa.array([cell(value) for value in column.to_pylist()], pa.string())
             if pa.types.is_string(column.type) else column for column in table.columns]
  return pa.table(columns, names=[cell(name) for name in table.column_names])
