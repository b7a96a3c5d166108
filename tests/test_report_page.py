"""The report's page and pictures: what is drawn, what is escaped, what is missing."""

import dataclasses
import html.parser
import io
import json
import struct
import subprocess
import warnings

import hand_made_figures as made
import pytest
import synthetic_study
from rich.console import Console

from wd_plasticity.errors import UserError
from wd_plasticity.report import interactive, look, make, page, provenance, static
from wd_plasticity.report import study as study_lib
from wd_plasticity.report.figure import POINTS, Figure, Series, View
from wd_plasticity.report.study import Member, Study
from wd_plasticity.report.terminal import show


def member(name="wd0.1-seed0", decay=0.1, **fields):
  table = [{"parameter": "embed/embedding", "shape": [64, 8], "count": 512, "group": "embedding",
            "decay": decay}]
  return Member(**{
      "name": name, "weight_decay": decay, "seed": 0, "group": "", "status": "done", "reason": "",
      "steps": 10, "total_steps": 10, "tokens": 1000, "validation_loss": 3.0,
      "train_subset_loss": 2.9, "curve": [], "plan": {"decay_table": table},
      "config": {"optim": {"weight_decay": decay}, "seed": 0},
      "data_fingerprint": "d" * 8, "tokenizer_fingerprint": "t" * 8, **fields})


def study(tmp_path, members=(), **fields):
  return Study(**{
      "name": "a study", "workdir": tmp_path, "members": list(members), "finetuned": [],
      "probed": [], "ranked": [], "overfit": [], "commands": [], "versions": {},
      "code_versions": [], "notes": [], **fields})


class Reader(html.parser.HTMLParser):
  """Elements with their attributes, text outside scripts and styles, and the data."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text, self.data, self._inside = [], "", "", None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    self._inside = (tag, dict(attrs).get("id")) if tag in ("script", "style") else None

  def handle_endtag(self, tag):
    self._inside = None

  def handle_data(self, data):
    if self._inside == ("script", "data"):
      self.data += data
    elif self._inside is None:
      self.text += data

  def all(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]


def test_points_with_intervals_on_a_decay_axis():
  figure = interactive.figure_json(made.by_decay())
  tuned, base, seeds = figure["views"][0]["traces"]
  assert figure["layout"]["xaxis"]["ticktext"] == ["0", "0.1", "1"]
  assert tuned["x"] == pytest.approx([-0.04, 0.96, 1.96])  # beside the single seeds
  assert seeds["x"] == pytest.approx([0.04, 0.04, 1.04, 1.04, 2.04, 2.04])
  assert base["x"] == [0, 1, 2] and base["colour"] == "reference"
  assert tuned["error_y"]["array"] == pytest.approx([0.03] * 3)
  assert tuned["error_y"]["arrayminus"] == pytest.approx([0.02] * 3)
  assert tuned["hovertext"][1].split("<br>") == [
      "fine-tuned", "accuracy: 0.59 [0.57, 0.62]", "weight decay in pretraining: 0.1"]
  assert "seed 1" in seeds["hovertext"][3]
  assert seeds["mode"] == "markers" and "error_y" not in seeds


def test_bands_are_broken_at_gaps():
  traces = interactive.figure_json(made.curves())["views"][0]["traces"]
  assert [t.get("fill") for t in traces] == ["toself", None] * 3
  band = traces[0]
  gap = band["x"].index(None)
  assert band["x"][:gap] == [10.0 * i for i in (*range(1, 8), *range(7, 0, -1))]
  assert len(band["x"]) - gap - 1 == 2 * 11
  assert traces[1]["y"][7:9] == [None, None]
  json.dumps(traces, allow_nan=False)


def test_nothing_below_zero_on_a_logarithmic_axis():
  view = View({}, [Series("a", [0, 1, 2], [0.0, -1.0, 2.0], [0, 0, 1], [1, 1, 3])], "loss")
  trace = interactive.figure_json(Figure("a", "s", "t", "c", "x", [view], x_axis="log",
                                         y_axis="log"))["views"][0]["traces"][0]
  assert trace["x"] == [None, 1, 2] and trace["y"] == [None, None, 2]
  assert trace["error_y"]["array"] == [None, None, 1]


@pytest.mark.parametrize("decays", [[], [0.0], [0.1], [0.0, 0.1, 1.0],
                                    [0.0, *(0.01 * 2 ** i for i in range(9))]])
@pytest.mark.parametrize("background", [look.LIGHT, look.DARK])
def test_colours_stand_out_from_the_background(decays, background):
  colours = look.palette(decays, background)
  shades = [colours[f"decay {d:g}"] for d in decays]
  assert len(set(shades)) == len(decays)
  assert all(look.contrast(c, background) >= 3 for c in colours.values())


def test_contrast():
  assert look.contrast("#ffffff", "#000000") == pytest.approx(21)
  assert look.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WCAG's example


def test_ticks_of_logarithmic_axes():
  assert look.log_ticks([3e-4, 1e-3, 3e-3, 1e-3]) == [3e-4, 1e-3, 3e-3]
  assert look.log_ticks([0.0762, 2.2873]) == [0.1, 0.2, 0.5, 1, 2]
  assert look.log_ticks([1.0 + i for i in range(20)]) == [1, 2, 5, 10, 20]
  assert look.log_ticks([0, *(10.0 ** (i / 2) for i in range(9))]) == [1, 10, 100, 1e3, 1e4]


def test_commands_are_folded_between_arguments():
  command = "python -m x --a=1 '--b=c d --e'"
  assert provenance.folded(command) == "python -m x \\\n  --a=1 \\\n  '--b=c d --e'"
  read = subprocess.run(["sh", "-c", f"printf '%s|' {provenance.folded(command)}"],
                        capture_output=True, text=True, check=True)
  assert read.stdout == "python|-m|x|--a=1|--b=c d --e|"
  assert provenance.folded("say 'it") == "say 'it"


def test_series_of_one_decay_differ_in_their_dashes():
  view = View({}, [Series(n, [0], [1], weight_decay=d) for n, d in
                   (("a", 0.1), ("b", 0.1), ("c", 1.0))], "y")
  assert look.dashes(view) == ["solid", "dash", "solid"]


def test_pictures_for_paper(tmp_path):
  colours = look.palette(made.DECAYS, look.LIGHT)
  for figure in (made.by_layer(), made.by_decay(), made.curves()):
    png, pdf = static.save(figure, tmp_path / "figures", colours)
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    assert width == 1300 and 400 < height < 1800  # 6.5 inches at 200 dots per inch
    document = pdf.read_bytes()
    assert document.startswith(b"%PDF") and b"/Type3" not in document
    assert b"/Subtype /Type0" in document or b"/Subtype /TrueType" in document
  again = static.save(figure, tmp_path / "again", colours)
  assert [p.read_bytes() for p in again] == [png.read_bytes(), document]
  assert static.save(made.nothing(), tmp_path / "figures", colours) == []


@pytest.mark.parametrize("panels", range(1, static.MAX_PANELS + 1))
def test_shape_has_room(panels):
  rows, columns = static.shape(panels)
  assert panels <= rows * columns < panels + columns and columns <= 3


def test_hostile_texts_on_paper(tmp_path):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    static.save(made.hostile(), tmp_path, look.palette(made.DECAYS, look.LIGHT))


def test_hostile_texts_stay_texts(tmp_path):
  bad = made.HOSTILE
  members = [member(f"{t}{i}", reason=t, config={t: {t: t}}) for i, t in enumerate(bad)]
  answer = dataclasses.replace(made.answer(bad[0]), group=bad[1], cautions=list(bad))
  text = page.render(study(tmp_path, members, name=bad[0], commands=[(t, t) for t in bad],
                           versions={t: t for t in bad}, notes=list(bad)), [answer],
                     [made.hostile()])
  reader = Reader(text)
  assert len(reader.all("script")) == 3
  assert not reader.all("img") and not reader.all("b")
  assert all(a["href"].startswith("#") for a in reader.all("a"))
  for t in bad:
    assert t.replace("\n", " ") in reader.text.replace("\n", " ")
  data = json.loads(reader.data)
  names = [t["name"] for t in data["figures"][0]["views"][0]["traces"]]
  assert names[3] == "&#37;{x} &#37;{meta[0]}"
  assert not any(c in name for name in names for c in "<>%\n")
  assert not any(c in reader.data for c in "<>&\u2028\u2029")


def test_page_has_everything(tmp_path):
  figures = [made.by_decay(), made.curves(), made.by_layer(), made.nothing()]
  members = [member(), member("wd1-seed0", 1.0), member("wd1-seed1", 1.0, seed=1)]
  text = page.render(study(tmp_path, members, commands=[("finetune", "python -m x --a=1")],
                           versions={"jax": "0.10", "earlier": [{"jax": "0.9"}]},
                           notes=["Something is missing."]), [made.answer()], figures)
  reader = Reader(text)
  assert len(text) < 7e6
  assert dict(reader.elements)["html"] == {"lang": "en"}
  policy = next(m["content"] for m in reader.all("meta") if "http-equiv" in m)
  assert "default-src 'none'" in policy and "connect-src" not in policy
  assert not any(k in attrs for _, attrs in reader.elements for k in ("src", "srcset", "action"))
  assert not reader.all("link")
  for words in ("Pretrain with weight decay 1.", "Two seeds are few.", "3.100 to 3.300",
                "> 99 %", "< 1 %", "60.0", "Something is missing.", "python -m x",
                "embed/embedding", "wd1-seed0, wd1-seed1", "optim.weight_decay", "0.9",
                "There are no ranks", "figures/by_decay.png, figures/by_decay.pdf",
                "tables/by_decay.csv", "JavaScript is off"):
    assert words in reader.text, words
  assert len([a for a in reader.all("div") if a.get("class") == "plot"]) == 3
  assert {s["data-control"] for s in reader.all("select")} == {"task", "rate"}
  assert len(json.loads(reader.data)["figures"]) == 4
  identifiers = [a["id"] for _, a in reader.elements if "id" in a]
  assert len(identifiers) == len(set(identifiers))
  assert {a["href"][1:] for a in reader.all("a")} <= set(identifiers)


def test_empty_study(tmp_path):
  reader = Reader(page.render(study(tmp_path), [], [made.nothing()]))
  assert "There is no result to answer from yet." in reader.text
  assert "There are no ranks" in reader.text
  assert not reader.all("details")


def test_member_that_failed_at_once(tmp_path):
  broken = member(status="failed at step 1", reason="loss is not finite", validation_loss=None,
                  train_subset_loss=None, tokens=None, total_steps=None, plan={}, config={})
  reader = Reader(page.render(study(tmp_path, [broken]), [], []))
  assert "loss is not finite" in reader.text and "failed at step 1" in reader.text


def test_figure_that_cannot_be_drawn_is_a_note(tmp_path, monkeypatch):
  bad = dataclasses.replace(made.curves(), title="Bad", views=[View({}, [
      Series("a", [1], ["text"], style=POINTS)], "y")])
  reader = Reader(page.render(study(tmp_path), [], [bad, made.by_decay()]))
  assert 'The figure "Bad" could not be drawn (TypeError).' in reader.text
  assert [f is None for f in json.loads(reader.data)["figures"]] == [True, False]
  notes = make.save_pictures([bad, made.by_decay()], tmp_path)
  assert notes == ['The figure "Bad" could not be drawn (TypeError).']
  assert (tmp_path / "by_decay.pdf").exists()


def test_report_of_a_study(tmp_path):
  synthetic_study.write(tmp_path / "books", tasks=("sst2",), rates=(0.001, 0.003))
  path = make.report(tmp_path / "books")
  assert path == tmp_path / "books" / "report" / "report.html"
  reader = Reader(path.read_text(encoding="utf-8"))
  assert "could not be drawn" not in reader.text
  figures = [f for f in json.loads(reader.data)["figures"] if f]
  assert len(figures) >= 5
  json.loads((path.parent / "answer.json").read_text(encoding="utf-8"))
  for figure in figures:
    assert (path.parent / "tables" / f"{figure['name']}.csv").stat().st_size
  pictures = {p.name for p in (path.parent / "figures").iterdir()}
  assert {n.removesuffix(".png") for n in pictures if n.endswith(".png")} == {
      n.removesuffix(".pdf") for n in pictures if n.endswith(".pdf")} and len(pictures) >= 10


def test_report_of_almost_nothing(tmp_path):
  (tmp_path / "empty").mkdir()
  text = make.report(tmp_path / "empty", tmp_path / "out").read_text(encoding="utf-8")
  assert "could not be drawn" not in text
  synthetic_study.write(tmp_path / "one", decays=(0.1,), seeds=(0, 1), programs=(),
                        failed={"wd0.1-seed1": 20})
  text = make.report(tmp_path / "one").read_text(encoding="utf-8")
  assert "could not be drawn" not in text and "failed at step 20" in text


def test_mistakes(tmp_path):
  with pytest.raises(UserError, match="there is no work directory"):
    make.report(tmp_path / "nowhere")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    make.write(study_lib.read(tmp_path), [], tmp_path / "file" / "report")


def test_sentences_in_the_terminal(tmp_path):
  stream = io.StringIO()
  answer = dataclasses.replace(made.answer("[red]word[/red] " * 12), group="learning_rate=0.002")
  show(study(tmp_path, notes=["a note"]), [answer], tmp_path / "report.html",
       Console(file=stream, width=60))
  text = stream.getvalue()
  assert "[red]word[/red]" in text and "learning_rate=0.002" in text and "a note" in text
  assert f"report: {tmp_path / 'report.html'}\n" in text
  assert all(len(line) <= 60 for line in text.splitlines() if not line.startswith("report"))
