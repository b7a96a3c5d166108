"""Names and messages of others are text: on terminals, in tables, plots and the report."""

import csv
import io
import json
import logging
import os
import subprocess
import sys

import pyarrow.csv
import pyarrow.parquet
import pytest
import rich.console
import synthetic_study
from rich.text import Text

from wd_plasticity import errors, plain
from wd_plasticity.analysis.plots import save_figure
from wd_plasticity.console import Console, Table
from wd_plasticity.errors import UserError
from wd_plasticity.report import interactive, make
from wd_plasticity.study.display import LiveTable
from wd_plasticity.training import summary
from wd_plasticity.training.progress import Progress

ESCAPES = "a\x1b]8;;http://x\x07\x1b[2J\r\x08\x9b31m\u202egnp\u2066\x7f\udc80"
ONE_LINE = r"a\x1b]8;;http://x\x07\x1b[2J \x08\x9b31m\u202egnp\u2066\x7f\udc80"
SHOWN = r"a\x1b]8;;http://x\x07\x1b[2J\x0d\x08\x9b31m\u202egnp\u2066\x7f\udc80"
MARKUP = ("[bold red]b[/] [link=http://x]c[/link] :smile: $x^$ =1+1 %{y} <img src=x> {{7*7}} "
          "\\end{a}")
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", " =1",
            "\uff1d1"]


def unobeyed(text: str) -> None:
  """Nothing that a terminal obeys is left but line ends and tabs."""
  assert plain.visible(text) == text


def test_what_a_terminal_obeys_is_spelled():
  assert plain.visible(ESCAPES) == SHOWN
  for kept in ("é 漢字 🙂👍🏽 e\u0301", "a\tb\nc", MARKUP):
    assert plain.visible(kept) == kept
  assert plain.one_line("a\nb\u2028c\x85d") == "a b c d"


def test_an_error_is_one_line_of_plain_text(capsys):
  def main(_):
    print("note:", ESCAPES)
    # Not through the root logger: pytest would keep the letter that cannot be written.
    logging.lastResort.handle(logging.makeLogRecord({"msg": f"said {ESCAPES}"}))
    raise UserError(f"there is no {ESCAPES}\nerror: all is well; look again.")
  with pytest.raises(SystemExit):
    errors.run(main)
  out, err = capsys.readouterr()
  assert out == f"note: {SHOWN}\n"
  unobeyed(err)
  assert err.splitlines()[-1] == f"error: there is no {ONE_LINE} error: all is well; look again."


def test_a_failure_of_the_system_names_its_file_in_plain_text(capsys):
  def main(_):
    raise OSError(5, "Input/output error", f"w/{ESCAPES}")
  with pytest.raises(SystemExit):
    errors.run(main)
  err = capsys.readouterr().err
  assert ONE_LINE in err
  unobeyed(err)


def test_streams_stay_what_they_are(monkeypatch):
  below = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
  monkeypatch.setattr(sys, "stdout", below)
  with plain.output():
    assert sys.stdout is not below and sys.stdout.encoding == "ascii"
    with plain.output():  # a program within a program
      print("\u6f22 é")
    sys.stdout.writelines(["\r50 %", "\rx\ry\n"])
    # Colours of ours are no text of others.
    Console(force_terminal=True, color_system="standard").print(Text("red", style="red"))
  assert sys.stdout is below
  assert below.buffer.getvalue().decode() == (
      "\\u6f22 \\xe9\n\r50 %\rx\\x0dy\n\x1b[31mred\x1b[0m\n")


@pytest.mark.parametrize("kind", [Console, rich.console.Console])
def test_tables_and_progress_show_names_as_they_are(kind):
  stream = io.StringIO()
  console = kind(file=stream, width=300, force_terminal=True, color_system=None)
  table = Table(box=None)
  table.add_column(MARKUP)
  table.add_row(ESCAPES)
  console.print(table)
  with Progress(2, description=MARKUP + ESCAPES, console=console) as progress:
    progress.print(f"{ESCAPES} {MARKUP}")
    progress.update(1, checkpoint=ESCAPES)
  shown = stream.getvalue()
  for text in (MARKUP, SHOWN, f"{SHOWN} {MARKUP}", f"checkpoint {SHOWN}"):
    assert text in shown
  for escape in ("\x07", "\u202e", "\x9b", "\x1b]", "\x1b[2J"):
    assert escape not in shown


def test_lines_of_progress_where_there_is_no_terminal():
  stream = io.StringIO()
  console = rich.console.Console(file=stream, width=300)
  with Progress(1, description=ESCAPES, console=console) as progress:
    progress.print(ESCAPES)
    progress.update(1, member=ESCAPES)
  LiveTable(console)._line(ESCAPES)
  unobeyed(stream.getvalue())
  assert stream.getvalue().count(SHOWN) == 4


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_text(text):
  shown = text.replace("\r", "\\x0d")
  kept = shown if shown != text else f"'{text}"
  assert plain.cell(text) == kept
  rows = list(csv.reader(io.StringIO(plain.csv_text(["a", "b"], [[text, text]]), newline="")))
  assert rows == [["a", "b"], [kept, kept]]


def test_numbers_stay_numbers():
  values = [-1, -0.5, 1e-9, "-1", "+1.5e-3", "-.5", "-inf", "nan", None, True, "wd0.1-seed0", ""]
  assert [plain.cell(v) for v in values] == values
  assert plain.csv_text(["x", "-y"], [[-1.5, "-2"], [None, "a,b"]]) == (
      "x,'-y\n-1.5,-2\n,\"a,b\"\n")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
  """A study whose names and messages are of an enemy."""
  workdir = tmp_path_factory.mktemp("study")
  synthetic_study.write(workdir, decays=(0.1, 1.0), seeds=(0,), steps=(50,), tasks=("sst2",),
                        rates=(1e-3, 1e-2), problems=4, logged=2)
  names = {}
  for i, folder in enumerate(sorted((workdir / "members").iterdir())):
    # All that a file name can hold.
    names[folder.name] = new = f"={i}" + ESCAPES.replace("/", "") + MARKUP.replace("/", "")
    folder.rename(folder.with_name(new))
    fields = json.loads((folder.with_name(new) / "config.json").read_text())
    fields["config"]["name"] = MARKUP + ESCAPES
    fields["config"]["data"]["train"] = f"{MARKUP}{i}"
    (folder.with_name(new) / "config.json").write_text(json.dumps(fields))
  (workdir / "members" / names["wd0.1-seed0"] / "FAILED.json").write_text(
      json.dumps({"step": 3, "reason": f"=cmd {ESCAPES}{MARKUP}"}))
  for path in sorted((workdir / "evals").glob("*/*/*/*.json")):
    document = json.loads(path.read_text())
    member = document["checkpoint"]["member"]
    document["checkpoint"]["member"] = names.get(member, member)
    document["item"] = f"-{MARKUP}{document['item']}"
    path.write_text(json.dumps(document))
  return workdir


def test_the_table_of_a_sweep(hostile):
  stream = io.StringIO()
  rows = summary.write_summary(hostile, rich.console.Console(file=stream, width=2000))
  assert len(rows) == 2 and MARKUP.replace("/", "") in stream.getvalue()
  unobeyed(stream.getvalue())
  table = list(csv.DictReader(io.StringIO((hostile / "sweep.csv").read_text(), newline="")))
  assert len(table) == 2
  assert all(row["member"].startswith("'=") for row in table)
  assert table[0]["weight_decay"] == "0.1" and float(table[1]["gap"]) == pytest.approx(
      rows[1]["gap"])
  assert (hostile / "sweep.png").stat().st_size > 10_000


def test_the_report(hostile, tmp_path, monkeypatch):
  save = make.save_pictures  # of three, which takes its time
  monkeypatch.setattr(make, "save_pictures", lambda figures, folder: save(figures[:3], folder))
  path = make.report(hostile, tmp_path)
  page = path.read_text()
  assert "<img src=x>" not in page and "<img src=x" not in page.lower()
  assert "&lt;img src=x&gt;" in page and "49" not in page.split("<h1>")[1].split("</h1>")[0]
  assert not [note for note in page.splitlines() if "could not be drawn" in note]
  for table in sorted((tmp_path / "tables").glob("*.csv")):
    kept = pyarrow.parquet.read_table(table.with_suffix(".parquet"))
    for row in csv.reader(io.StringIO(table.read_text(), newline="")):
      assert not any(plain.cell(value) != value for value in row), row
    numbers = pyarrow.csv.read_csv(table)
    assert numbers.num_rows == kept.num_rows
  members = pyarrow.parquet.read_table(tmp_path / "tables" / "members.parquet")
  assert all(name.startswith("=") for name in members["member"].to_pylist())  # as it is
  assert sorted(p.name for p in tmp_path.iterdir()) == [
      "answer.json", "figures", "report.html", "tables"]


def test_plotly_shows_markup_as_text():
  shown = interactive.plain("<a href='x'>b</a> <img src=x> $x$ %{y} &lt;")
  assert "<" not in shown and "$" not in shown and "%" not in shown and "&amp;lt;" in shown


def test_a_plot_takes_dollars_for_dollars(tmp_path):
  def draw(figure):
    axes = figure.subplots()
    axes.plot([1, 10], [1, 2], label=r"$\frac{$")
    axes.set(title="$x^$ \\$5 " + ESCAPES, xlabel="a $ b", xscale="log")
    axes.legend()
    drawn.append(axes)
  drawn = []
  save_figure(tmp_path / "a.png", draw, also=("pdf",))
  assert drawn[0].get_title("left") == "$x^$ \\$5 " + SHOWN
  assert any("mathdefault" in t.get_text() for t in drawn[0].get_xticklabels())  # 10 to a power


# What is graded, in a process with limits.

_STUB = """
from sympy.parsing import parse_expr
def parse(text, parsing_timeout):
  text = text.strip("$")
  if text == "much": bytearray(4 << 30)
  if text == "library": __import__("sympy").sympify("__import__('os').mkdir('ran')")
  return [parse_expr(text, evaluate=False)]
def verify(x, y, timeout_seconds): return True
"""


def test_answers_are_not_run_and_have_no_memory_without_end(tmp_path):
  from wd_plasticity.tasks import math_process, math_worker
  (tmp_path / "math_verify.py").write_text(_STUB)
  code = ["__import__('os').mkdir('ran')", "library", "().__class__", "print(1)", "x.y", "f(1)"]
  asked = ["1/2", *code, "much", "(1 + 2)*3**2"]
  done = subprocess.run(
      [sys.executable, "-P", math_worker.__file__, "4", str(math_process.LIMIT_BYTES)],
      input="".join(json.dumps([a, a]) + "\n" for a in asked), text=True, cwd=tmp_path,
      capture_output=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
  assert done.stdout.split() == ["ready", "true", *["false"] * 7, "true"], done.stderr
  assert not (tmp_path / "ran").exists()
