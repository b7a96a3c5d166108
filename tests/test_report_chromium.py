"""The report's page in a real browser: drawn, chosen, dark, narrow, printed, and harmless."""

import base64
import re

import chromium
import hand_made_figures as made
import pytest
from test_report_page import member, study

from wd_plasticity.report import page as page_lib

pytestmark = pytest.mark.skipif(chromium.find() is None,
                                reason="no chromium, google-chrome or chrome on PATH")
NOISE = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded",
         "Page.javascriptDialogOpening", "Page.windowOpen")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  with chromium.Browser(tmp_path_factory.mktemp("profile")) as browser:
    yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  folder = tmp_path_factory.mktemp("page")
  members = [member(f"wd{d:g}-seed{s}-" + "long" * 8, d, seed=s) for d in (0.1, 1.0)
             for s in range(3)]
  text = page_lib.render(
      study(folder, members, commands=[("finetune", "python -m x " + "--option=value " * 30)],
            versions={"word": "w" * 200}),
      [made.answer()], [made.by_decay(), made.curves(), made.by_layer(), made.nothing()])
  (folder / "report.html").write_text(text, encoding="utf-8")
  return folder / "report.html"


def drawn(page):
  """Scrolls through the page; number of traces in every figure."""
  for i in range(page.evaluate("document.querySelectorAll('[data-figure]').length")):
    div = f"document.querySelectorAll('[data-figure] .plot')[{i}]"
    page.evaluate(f"{div}.scrollIntoView({{behavior: 'instant'}})")
    page.wait(f"{div}.querySelector('svg.main-svg .scatterlayer') !== null")
  return page.evaluate("[...document.querySelectorAll('[data-figure] .plot')].map("
                       "(p) => p.querySelectorAll('.scatterlayer .trace').length)")


def assert_harmless(page):
  assert page.heard(*NOISE) == []
  assert [e["request"]["url"] for e in page.heard("Network.requestWillBeSent")] == [page.url]


def choose(page, figure, control, value):
  page.evaluate(f"""(() => {{
    const s = document.querySelectorAll('#figure-{figure} select')[{control}];
    s.value = '{value}'; s.dispatchEvent(new Event('change')); }})()""")


def shown(page, figure):
  return page.evaluate(f"""(() => {{ const f = document.querySelector('#figure-{figure}');
    return {{y: f.querySelector('.plot').data[0].y,
             chosen: [...f.querySelectorAll('select')].map((s) => s.value)}}; }})()""")


def test_figures_and_controls(browser, path):
  page = browser.open(path)
  far = page.evaluate("document.querySelector('#figure-2 .plot').data === undefined")
  assert far, "figures far below are drawn only when they come near"
  assert drawn(page) == [3, 6, 3]
  assert shown(page, 0) == {"y": [0.54, 0.59, 0.64], "chosen": ["SST-2", "best"]}
  choose(page, 0, 1, "lr0.003")
  assert shown(page, 0) == {"y": [0.57, 0.62, 0.67], "chosen": ["SST-2", "lr0.003"]}
  choose(page, 0, 0, "AG News")  # has no rate lr0.003
  assert shown(page, 0) == {"y": [0.64, 0.69, 0.74], "chosen": ["AG News", "best"]}
  choose(page, 0, 1, "lr0.001")
  choose(page, 0, 0, "SST-2")  # the other choice is kept
  assert shown(page, 0)["chosen"] == ["SST-2", "lr0.001"]
  assert page.evaluate("[...document.querySelectorAll('select')].every((s) => s.labels.length)")
  assert_harmless(page)


def test_dark(browser, path):
  def colours():
    return page.evaluate("[getComputedStyle(document.body).backgroundColor,"
                         " document.querySelector('#figure-0 .plot').layout.paper_bgcolor,"
                         " document.querySelector('#figure-1 .plot').data[5].line.color]")
  page = browser.open(path)
  drawn(page)
  light = colours()
  page.prefer(dark=True)
  page.wait("document.querySelector('#figure-0 .plot').layout.paper_bgcolor !== '#ffffff'")
  dark = colours()
  assert light[0] == "rgb(255, 255, 255)" and dark[0] == "rgb(22, 25, 29)"
  assert dark[1] == "#16191d" and dark[2] != light[2]
  page.evaluate("document.getElementById('theme').click()")
  assert colours() == light
  assert_harmless(page)


def test_phone(browser, path):
  page = browser.open(path, width=390, height=800, mobile=True)
  drawn(page)
  page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
  for width in (390, 360):  # plots follow a change of width
    page.send("Emulation.setDeviceMetricsOverride", width=width, height=800,
              deviceScaleFactor=1, mobile=True)
    page.wait("[...document.querySelectorAll('.plot > * svg.main-svg')].every("
              f"(s) => s.getBoundingClientRect().right <= {width})")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("innerWidth") == width
  assert_harmless(page)


def test_print(browser, path):
  page = browser.open(path, dark=True)
  document = base64.b64decode(page.send("Page.printToPDF", printBackground=True)["data"])
  assert len(re.findall(rb"/Type\s*/Page\b", document)) >= 2
  # All figures were drawn for it, though none was scrolled to; then they are dark again.
  assert page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p.data)")
  assert page.evaluate("document.querySelector('.plot').layout.paper_bgcolor") == "#16191d"
  assert page.evaluate("document.querySelectorAll('details:not([open])').length") > 0
  assert_harmless(page)


def test_without_scripts(browser, path):
  page = browser.open(path, scripts=False)
  text = page.send("Runtime.evaluate", expression="document.body.innerText")["result"]["value"]
  assert "JavaScript is off" in text and "Pretrain with weight decay 1." in text
  assert "SST-2" not in text  # controls of figures that are not there


def test_hostile_texts(browser, tmp_path):
  bad = made.HOSTILE
  members = [member(f"{t}{i}", reason=t, config={t: {t: t}}) for i, t in enumerate(bad)]
  path = tmp_path / "report.html"
  path.write_text(page_lib.render(
      study(tmp_path, members, name=bad[0], commands=[(t, t) for t in bad], notes=list(bad)),
      [made.answer(bad[1])], [made.hostile(), made.by_decay(tasks=bad[:2])]), encoding="utf-8")
  page = browser.open(path)
  assert drawn(page) == [len(bad), 3]
  choose(page, 1, 1, "lr0.001")
  assert page.evaluate("document.querySelectorAll('img, .plot a, .plot b, main script').length"
                       ) == 0
  legend = page.evaluate("[...document.querySelectorAll('#figure-0 .legendtext')].map("
                         "(t) => t.textContent)")
  # As they are, but for characters that no text in an SVG can show.
  assert [t.split() for t in legend] == [t.split() for t in bad]
  page.evaluate("Plotly.Fx.hover(document.querySelector('#figure-0 .plot'),"
                " bad = [...Array(3).keys()].map((i) => ({curveNumber: i, pointNumber: 1})))")
  page.wait("document.querySelectorAll('#figure-0 .hovertext').length > 0")
  hover = page.evaluate("document.querySelector('#figure-0 .hoverlayer').textContent")
  assert bad[0] in hover
  assert page.evaluate("document.querySelectorAll('.plot a, .plot b').length") == 0
  assert_harmless(page)
