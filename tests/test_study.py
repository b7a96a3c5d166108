"""The steps of a study: what is run, skipped and redone, and what a failure or a kill leaves."""

import io
import json
import os
import pathlib
import signal

import programs
import pytest
import tiny
from rich.console import Console
from waiting import until

from wd_plasticity import cli, ownership
from wd_plasticity.config import default_config, flatten
from wd_plasticity.errors import UserError
from wd_plasticity.evals.config import attention_rank_config, finetune_config, probe_config
from wd_plasticity.members import expand
from wd_plasticity.study import plan, records, run
from wd_plasticity.study.display import Display
from wd_plasticity.study.plan import Step

# A step that notes that it was run and leaves a file.
_MAKE = "import pathlib, sys; p = pathlib.Path({path!r}); p.parent.mkdir(exist_ok=True); " \
        "p.write_text({text!r}); open({path!r} + '.runs', 'a').write('x')"


def _step(workdir, name, *after, text="made", inputs="1", code=None, **fields):
  path = str(workdir / "out" / name)
  command = ("-c", code or _MAKE.format(path=path, text=text))
  return Step(name, command, inputs, (f"out/{name}",), after=after, **fields)


def _run(workdir, steps):
  lines = io.StringIO()
  with Display(steps, Console(file=lines, width=200)) as display:
    with ownership.hold(workdir) as lock:
      made = run.run(steps, records.Records(workdir), display, lock)
  return {r.name: r for r in made}, lines.getvalue()


def _runs(workdir, name):
  path = workdir / "out" / f"{name}.runs"
  return len(path.read_text()) if path.exists() else 0


def test_steps_are_skipped_while_they_hold_and_redone_with_all_that_follows(tmp_path):
  def steps(**changed):
    return [_step(tmp_path, "a", **changed.get("a", {})),
            _step(tmp_path, "b", "a", **changed.get("b", {})),
            _step(tmp_path, "c", "a"), _step(tmp_path, "d", "b", "c")]
  count = lambda: [_runs(tmp_path, name) for name in "abcd"]
  made, _ = _run(tmp_path, steps())
  assert {r.state for r in made.values()} == {"done"} and count() == [1, 1, 1, 1]
  _, said = _run(tmp_path, steps())
  assert count() == [1, 1, 1, 1] and said.count("done before, skipped") == 4
  _run(tmp_path, steps(b={"inputs": "2"}))  # its own input, and what reads its results
  assert count() == [1, 2, 1, 2]
  (tmp_path / "out" / "c").unlink()  # a result is gone
  _run(tmp_path, steps(b={"inputs": "2"}))
  assert count() == [1, 2, 2, 3]
  (tmp_path / "out" / "a").write_text("cut")  # a result is not whole
  _run(tmp_path, steps(b={"inputs": "2"}))
  assert count() == [2, 3, 3, 4]
  records.Records(tmp_path).path("d").write_text("{")  # a record is damaged
  _run(tmp_path, steps(b={"inputs": "2"}))
  assert count() == [2, 3, 3, 5]


def test_a_failed_step_stops_only_what_needs_it_and_is_named(tmp_path):
  fails = "import sys; print('step 3'); print('error: no space is left'); sys.exit(2)"
  steps = [_step(tmp_path, "a"), _step(tmp_path, "b", "a", code=fails),
           _step(tmp_path, "c", "b"), _step(tmp_path, "d", "a"),
           _step(tmp_path, "e", "b", "d", any_of=True)]
  made, said = _run(tmp_path, steps)
  assert [made[n].state for n in "abcde"] == ["done", "failed", "waiting", "done", "done"]
  assert made["b"].message == "no space is left" and made["c"].message == "needs b"
  assert "error: no space is left" in (tmp_path / made["b"].log).read_text()
  assert "b: failed: no space is left" in said
  steps[1] = _step(tmp_path, "b", "a")
  made, _ = _run(tmp_path, steps)
  assert {r.state for r in made.values()} == {"done"}
  assert [_runs(tmp_path, n) for n in "abcde"] == [1, 1, 1, 1, 2]


_DRIVER = """
import sys
from rich.console import Console
from wd_plasticity.study import records, run
from wd_plasticity.study.display import Display
from wd_plasticity.study.plan import Step
from wd_plasticity import errors, ownership
step = Step("long", ("-m", "long_step", sys.argv[1]), "1", ("out",))
def main(_):
  with Display([step]) as display, ownership.hold(sys.argv[1]) as lock:
    run.run([step], records.Records(sys.argv[1]), display, lock)
errors.run(main)
"""
_LONG = """
import pathlib, signal, sys, time
from wd_plasticity import cli, ownership
from wd_plasticity.errors import Interrupted
from wd_plasticity.training.progress import Progress
folder = pathlib.Path(sys.argv.pop())
def stop(*_):
  (folder / "stopped").write_text("x")
  raise Interrupted("saved")
def main(_):
  signal.signal(signal.SIGTERM, stop)
  with Progress(100, "steps") as progress:
    progress.update(1)
    (folder / "begun").write_text("x")
    while not (folder / "stopped").exists():
      time.sleep(0.05)
  (folder / "out").write_text("x")
cli.run(main)
"""


def _start_long(tmp_path):
  (tmp_path / "long_step.py").write_text(_LONG)
  (tmp_path / "driver.py").write_text(_DRIVER)
  (tmp_path / "begun").unlink(missing_ok=True)
  process = programs.start("driver", tmp_path, PYTHONPATH=f"{tiny.ROOT}{os.pathsep}{tmp_path}")
  _wait_for(tmp_path / "begun", process)
  return process


def _wait_for(path, process=None):
  until(path.exists, lambda: f"{path}: {process and process.said()}", process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_lets_the_step_save_and_goes_on_later(tmp_path, number):
  process = _start_long(tmp_path)
  process.send_signal(number)
  said = process.finish()
  assert process.returncode == 143 and (tmp_path / "stopped").exists(), said
  assert "run the same command again" in said and "Traceback" not in said
  again = _start_long(tmp_path)
  assert "long: done" in again.finish() and again.returncode == 0
  assert json.loads((tmp_path / "study" / "progress" / "long.json").read_text())["total"] == 100


def test_killed_it_leaves_no_step_behind_and_a_second_start_waits_for_its_end(tmp_path):
  process = _start_long(tmp_path)
  process.kill()
  _wait_for(tmp_path / "stopped")  # the step noticed
  again = _start_long(tmp_path)
  assert again.finish().count("long: done") == 1 and again.returncode == 0


def _display(minutes, clock):
  steps = [Step(name, ("-c", ""), "", (), minutes=m)
           for name, m in zip("abc", minutes, strict=True)]
  return Display(steps, Console(file=io.StringIO(), width=120), clock=lambda: clock[0])


def test_time_left_is_that_of_the_running_step_and_of_those_expected():
  clock = [0.0]
  display = _display((1, 2, 3), clock)
  with display:
    assert display.seconds_left == 360
    display.start("a")
    clock[0] = 30
    display.update("a", {"done": 1, "total": 4, "seconds_left": 90, "status": ""})
    assert display.seconds_left == 90 + 120 + 180
    assert display.fraction() == pytest.approx(0.25 / 6)
    clock[0] = 120
    display.end("a", "done", "")
    assert display.seconds_left == 2 * 300  # twice as slow as expected
    display.start("b")
    assert display.summary() == "17%, step 2 of 3, 2:00 elapsed, 10:00 left"
  display = _display((1, 0, 0), clock)
  with display:
    assert display.seconds_left is None and "-:-- left" in display.summary()


def test_the_table_of_a_terminal_names_every_step():
  steps = [Step(name, ("-c", ""), "", ()) for name in ("pretraining", "probe")]
  screen = io.StringIO()
  with Display(steps, Console(file=screen, force_terminal=True, width=100)) as display:
    display.start("pretraining")
    display.update("pretraining", {"done": 1, "total": 2, "seconds_left": 60, "status": "[b]1/2"})
    display.end("pretraining", "failed", "why")
  assert all(word in screen.getvalue() for word in ("pretraining", "failed", "probe", "why"))


# From a config file to steps.


def _evals(*configs):
  return plan.load_evals(lambda add: [add(c) for c in configs], None)


@pytest.mark.parametrize("declare, message", [
    (None, "has no function evals"), (lambda add: None, "adds nothing"),
    (lambda add: add(default_config()), "adds a configuration of None"),
    (lambda add: [add(probe_config()), add(probe_config())], "adds probe twice")])
def test_a_config_without_evals_is_refused(declare, message):
  with pytest.raises(UserError, match=message):
    plan.load_evals(declare, None)


def test_mistakes_in_what_is_measured_are_found_before_training():
  config = finetune_config()
  config.tasks = ("sst2",)
  with pytest.raises(UserError, match="task sst2 of finetune needs files.*sources.sst2.train"):
    plan.read_tasks(_evals(config)[0])
  config.sources.sst2.update(train="/nowhere.tsv", validation="/nowhere.tsv")
  with pytest.raises(UserError, match="nowhere"):
    plan.read_tasks(_evals(config)[0])
  config.tasks, config.epochs = ("embedded_topic",), 0
  with pytest.raises(UserError, match="epochs=0"):
    plan.read_tasks(_evals(config)[0])
  config.epochs = 1
  with pytest.raises(UserError, match="unknown config field 'optim.lr'"):
    plan.read_tasks(plan.Eval(config, ({"optim.lr": 1.0},)))


def test_the_config_written_for_a_step_is_the_one_of_the_study(tmp_path):
  config = finetune_config()
  config.tasks, config.template = ("embedded_topic",), 'a "quoted"\n{prompt}\\'
  config.evaluate.samples = 3
  sweep = ({"optim.learning_rate": 1e-3}, {"optim.learning_rate": 3e-3})
  path = tmp_path / "finetune.py"
  path.write_text(plan.config_text(plan.Eval(config, sweep)), encoding="utf-8")
  made = cli.load_function(str(path), "get_config")()
  assert flatten(made.to_dict()) == flatten(config.to_dict())
  points = []
  cli.load_function(str(path), "sweep")(points.append)
  assert points == list(sweep)


def test_steps_follow_from_what_they_are_made_of():
  def inputs(weight_decay=0.1, data="d", **fields):
    members = expand(default_config(), lambda add: add({"optim.weight_decay": weight_decay}))
    config = attention_rank_config()
    config.update(fields)
    return {s.name: s.inputs for s in plan.make_steps(
        ["--config=c.py"], members, data, _evals(config), "w")}
  first = inputs()
  assert inputs() == first and list(first) == ["pretraining", "attention_rank", "report"]
  assert inputs(weight_decay=0.2)["pretraining"] != first["pretraining"]
  assert inputs(data="e")["pretraining"] != first["pretraining"]
  assert inputs(threshold=0.9)["attention_rank"] != first["attention_rank"]
  assert inputs(threshold=0.9)["pretraining"] == first["pretraining"]


def test_members_of_another_configuration_are_set_aside_with_their_results(tmp_path):
  members = expand(default_config(), lambda add: [
      add({"optim.weight_decay": w, "seed": 0}) for w in (0.1, 1.0)])
  for member in members:
    folder = tmp_path / "members" / member.name
    folder.mkdir(parents=True)
    config = member.config.to_dict()
    if member.name == "wd1-seed0":
      config["optim"]["beta2"] = 0.9
    (folder / "config.json").write_text(json.dumps(
        {"config": config, "data_fingerprint": "d", "tokenizer_fingerprint": "t"}))
    (tmp_path / "evals" / "probe" / member.name).mkdir(parents=True)
  said = records.set_aside_changed_members(tmp_path, members, "d")
  assert len(said) == 1 and "optim.beta2 was 0.9 and is now 0.95" in said[0]
  left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*/**/wd*")}
  moved = {p.split("/", 2)[2] for p in left if p.startswith("outdated")}
  assert moved == {"members/wd1-seed0", "evals/probe/wd1-seed0"}
  assert {"members/wd0.1-seed0", "evals/probe/wd0.1-seed0"} <= left
  assert not records.set_aside_changed_members(tmp_path, members, "d")
  said = records.set_aside_changed_members(tmp_path, members, "other")
  assert said[0].startswith("wd0.1-seed0 is pretrained again: its data have changed")


# The program.

_STUDY = """
from tiny import tiny_config
from wd_plasticity.evals.config import attention_rank_config, finetune_config

def get_config():
  return tiny_config({corpus!r})

def sweep(add):
  for weight_decay in (0.0, 1.0):
    add({{"optim.weight_decay": weight_decay, "seed": 1}})

def evals(add):
  add(attention_rank_config())
  finetune = finetune_config()
  finetune.tasks, finetune.max_train, finetune.max_test = ("embedded_topic",), 16, 8
  finetune.epochs, finetune.batch_size = {epochs}, 8
  finetune.evaluate.update(generate="never", observations=0, forgetting_sequences=4)
  add(finetune, sweep=[{{"optim.learning_rate": r}} for r in (1e-3, 1e-2)])
"""


def test_mistakes_on_the_command_line_are_one_sentence(tmp_path, corpus):
  config = tmp_path / "study.py"
  config.write_text(_STUDY.format(corpus=str(corpus), epochs=1))
  run_it = lambda *flags, expect=2: tiny.run(
      config, tmp_path / "w", *flags, module="wd_plasticity.study", expect=expect)
  said = run_it("--config.data.train=/nowhere/*.txt")
  assert said.startswith("error: ") and said.count("\n") == 1 and "/nowhere" in said
  assert not (tmp_path / "w" / "members").exists()
  said = run_it("--dry_run", expect=0)
  assert [line for line in said.splitlines() if line.endswith(": to do")] == [
      "pretraining: to do", "attention_rank: to do", "finetune: to do", "report: to do"]


@pytest.mark.slow
def test_a_study_from_nothing_changed_and_again(tmp_path, corpus):
  config, workdir = tmp_path / "study.py", tmp_path / "w"
  def study(epochs, *flags):
    config.write_text(_STUDY.format(corpus=str(corpus), epochs=epochs))
    return tiny.run(config, workdir, *flags, module="wd_plasticity.study")
  config.write_text(_STUDY.format(corpus=str(corpus), epochs=1))
  killed = tiny.start(config, workdir, module="wd_plasticity.study")
  _wait_for(workdir / "members" / "wd0-seed1" / "metrics.jsonl", killed)
  killed.kill()
  said = study(1)
  assert "report: " in said and "weight decay" in said
  assert (workdir / "report" / "report.html").stat().st_size > 1e5
  result = workdir / "evals" / "finetune" / "wd0-seed1" / "24" / "embedded_topic-lr0.001.json"
  assert json.loads(result.read_text())["settings"]["epochs"] == 1
  assert study(1).count("done before, skipped") == 4
  said = study(2)  # what is measured has changed
  assert "pretraining: done before" in said and "attention_rank: done before" in said
  assert json.loads(result.read_text())["settings"]["epochs"] == 2
  kept = workdir / "outdated" / result.relative_to(workdir)
  assert json.loads(kept.read_text())["settings"]["epochs"] == 1
  said = study(2, "--config.optim.beta2=0.9")  # and the pretraining
  assert "wd0-seed1 is pretrained again: optim.beta2 was 0.95 and is now 0.9" in said
  assert said.count("done before, skipped") == 0
  command = next(line.split(": ", 1)[1] for line in said.splitlines()
                 if line.startswith("attention_rank: python"))
  assert pathlib.Path(command.split("--config=")[1].split()[0]).is_file()
