"""Progress under a fake clock: the time left, the rate of plain lines, the bar."""

import io

import pytest
from rich.console import Console

from wd_plasticity.training import progress
from wd_plasticity.training.progress import Progress


class Clock:
  def __init__(self):
    self.now = 1e6

  def __call__(self):
    return self.now


def plain(total, **kwargs):
  clock, stream = Clock(), io.StringIO()
  shown = Progress(total, "steps", "pretraining", clock=clock,
                   console=Console(file=stream, width=40), **kwargs)
  return shown, clock, stream


def test_a_plain_line_has_every_field_and_no_control_characters():
  shown, clock, stream = plain(1000)
  with shown:
    clock.now += 60  # compilation
    shown.update(1, loss=9.0, tokens_per_second=12345.6)
    clock.now += 100
    shown.update(101, loss=3.21049)
  first, second = stream.getvalue().splitlines()
  assert first == ("pretraining  1/1,000 steps  1:00 elapsed  -:-- left  "
                   "loss 9.000  12.3k tokens/s")
  # 899 steps at the 1 step/s measured after the first.
  assert second == ("pretraining  101/1,000 steps  2:40 elapsed  14:59 left  "
                    "loss 3.210  12.3k tokens/s")
  assert all(c.isprintable() or c == "\n" for c in stream.getvalue())


def test_time_left_excludes_compilation_and_work_before_a_resume():
  shown, clock, _ = plain(10_000)
  with shown:
    shown.skip(8000)
    assert shown.seconds_left is None
    clock.now += 500  # restore and compilation
    shown.update(8010)
    assert shown.seconds_left is None
    clock.now += 50
    shown.update(8110)
    assert shown.seconds_left == pytest.approx(1890 / 2)
    clock.now += 45  # it runs on between updates
    assert shown.seconds_left == pytest.approx(1890 / 2 - 45)
    # A finished chunk is passed over, and the next one compiles.
    shown.skip(9000)
    assert shown.seconds_left == pytest.approx(1000 / 2)
    clock.now += 300
    shown.update(9010)
    assert shown.seconds_left == pytest.approx(990 / 2)
    clock.now += 200  # slower now: 100 + 100 steps in 50 + 200 s
    shown.update(9110)
    assert shown.seconds_left == pytest.approx(890 * 250 / 200)
    clock.now += 1e6
    assert shown.seconds_left == 0
    shown.update(10_000)
    assert shown.seconds_left == 0


def test_plain_lines_thin_out_and_end_with_the_last():
  shown, clock, stream = plain(86_400)
  times = []
  with shown:
    for done in range(1, 86_401):
      clock.now += 1
      before = stream.tell()
      shown.update(done)
      if stream.tell() > before:
        times.append(done)
  gaps = [b - a for a, b in zip(times, times[1:], strict=False)][:-1]
  assert times[0] == 1 and times[-1] == 86_400
  assert min(gaps) >= 10 and max(gaps) <= 301 and gaps == sorted(gaps)
  assert gaps[:3] == [10, 10, 10] and len(times) < 400
  assert stream.getvalue().count("86,400/86,400") == 1


def test_an_interrupted_job_shows_where_it_stopped():
  shown, clock, stream = plain(100)
  with pytest.raises(KeyboardInterrupt):
    with shown:
      shown.update(1)
      clock.now += 1
      shown.update(2)
      raise KeyboardInterrupt
  assert [line.split("  ")[1] for line in stream.getvalue().splitlines()] == [
      "1/100 steps", "2/100 steps"]


def test_other_lines_and_disabled_displays():
  shown, _, stream = plain(10)
  with shown:
    shown.print("member wd0.1 [seed 0] saved " + "x" * 80)
    shown.update(10, loss=float("nan"), member="wd0.1", grad_norm=0.123456)
    shown.update(10, member=None)
  lines = stream.getvalue().splitlines()
  assert lines[0].startswith("member wd0.1 [seed 0] saved xxx") and len(lines) == 2
  assert lines[1].endswith("0:00 left  loss nan  member wd0.1  grad_norm 0.1235")

  shown, _, stream = plain(10, enabled=False)
  with shown:
    shown.print("nothing")
    shown.update(10)
  assert stream.getvalue() == ""
  shown, _, stream = plain(0)  # nothing to do is not an error
  with shown:
    shown.update(0)
  assert "0/0 steps" in stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_bar_on_a_terminal(width):
  clock, stream = Clock(), io.StringIO()
  console = Console(file=stream, force_terminal=True, width=width, color_system=None,
                    legacy_windows=False, _environ={"TERM": "xterm"})
  with Progress(48_000, "steps", "[sweep]", clock=clock, console=console) as shown:
    for i in range(1, 3):
      clock.now += 30
      shown.update(8000 * i, loss=3.2123, tokens_per_second=43210)
    shown.print("saved [wd0.1]")
  output = stream.getvalue()
  assert "\x1b" in output and "saved [wd0.1]\n" in output
  last = output.split("\x1b[2K")[-1].splitlines()[0]
  assert len(last) <= width  # one line, cut from its end where the terminal is narrow
  assert ("[sweep]" in last) == (width >= 80)
  assert "16,000/48,000 steps" in last and "2:00 left  loss 3.212" in last
  assert ("1:00 elapsed" in last) == (width >= 100)
  assert ("43.2k tokens/s" in last) == (width >= 80)


def test_dumb_terminals_get_plain_lines():
  stream = io.StringIO()
  console = Console(file=stream, force_terminal=True, _environ={"TERM": "dumb"})
  with Progress(2, console=console) as shown:
    shown.update(2)
  assert "\x1b" not in stream.getvalue() and "2/2 steps" in stream.getvalue()


def test_formats():
  assert [progress.format_seconds(s) for s in (None, 0, 59.6, 3599, 3600, 90_061)] == [
      "-:--", "0:00", "1:00", "59:59", "1:00:00", "1 d 1:01:01"]
  assert [progress.format_count(v) for v in (0.5, 950, 999.9, 1234, 999_900, 4.567e6, 2e9)] == [
      "0.5", "950", "1k", "1.23k", "1M", "4.57M", "2B"]
