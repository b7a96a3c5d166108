"""Results of the attention_rank program side by side: the table, and which are alike."""

from collections.abc import Sequence

from rich import box

from wd_plasticity.console import Console, Table
from wd_plasticity.training.progress import format_count
from wd_plasticity.training.summary import wide_console

TITLES = {"qk": "W_QK", "qk_folded": "W_QK with QK-norm gains", "vp": "W_VP"}
_COLUMNS = {"qk": "QK", "qk_folded": "QK with gains", "vp": "VP"}


def products(results: Sequence[dict]) -> list[str]:
  """The products that any of the results have, those that are shown first in front."""
  folded = any(r["settings"].get("fold_qk_norm") for r in results)
  order = ("qk_folded", "qk", "vp") if folded else ("qk", "qk_folded", "vp")
  return [name for name in order if any(name in r["values"] for r in results)]


def print_table(results: Sequence[dict], console: Console | None = None) -> None:
  """One line per checkpoint, means over all layers and heads."""
  console = console or wide_console(200)
  settings = results[0]["settings"]
  of = "singular values" if settings["power"] == 1 else "squared singular values"
  table = Table(
      title=f"Means over layers and heads; pseudo-rank: {settings['threshold']:.0%} of the sum of "
            f"{of}, over the head dimension",
      title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column("member", no_wrap=True)
  names = products(results)
  for column in ("weight decay", "step", "tokens"):
    table.add_column(column, justify="right")
  measures = {"pseudo-rank": ("pseudo_rank_share", ".3f"),
              "effective rank": ("effective_rank", ".2f"),
              "spectral norm": ("spectral_norm", ".3g")}
  if console.width < 40 + 16 * len(measures) * len(names):
    measures = {"pseudo-rank": measures["pseudo-rank"]}
  for title in measures:
    for name in names:
      table.add_column(f"{title}\n{_COLUMNS[name]}", justify="right")
  for r in results:
    c, v = r["checkpoint"], r["values"]
    cells = [_number(v[name]["mean"][measure] if name in v else None, form)
             for measure, form in measures.values() for name in names]
    table.add_row(c["member"], f"{c['weight_decay']:g}", f"{c['step']:,}",
                  format_count(c["tokens"]), *cells)
  console.print(table)


def _number(value: float | None, form: str) -> str:
  return "-" if value is None else format(value, form)
