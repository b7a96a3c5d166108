"""Jobs on this machine: their devices, order, failures, and what stops them."""

import io
import json
import os
import pathlib
import re
import signal
import threading

import launching
import programs
import pytest
import tiny
from rich.console import Console
from waiting import until

from launch import local_devices, local_jobs
from launch.jobs import Job
from launch.local_devices import Group, divide
from launch.local_display import Display
from wd_plasticity import files, ownership
from wd_plasticity.errors import UserError
from wd_plasticity.evals.results import Results
from wd_plasticity.training import summary

# Devices.


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
  path = tmp_path / "nvidia-smi"
  path.write_text("#!/bin/sh\n[ \"$1\" = -L ] && for i in 0 1 2 3; do\n"
                  "echo \"GPU $i: NVIDIA H100 (UUID: GPU-$i)\"\n"
                  "echo '  MIG 1g.10gb     Device  0: (UUID: MIG-x)'\ndone\n")
  path.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("environ, found", [
    ({"JAX_PLATFORMS": "cuda"}, ("gpu", ["0", "1", "2", "3"])),
    ({"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": "3, 1"}, ("gpu", ["3", "1"])),
    ({"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "GPU-1"}, ("gpu", ["GPU-1"])),
    ({"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "-1"}, ("cpu", [])),
    ({"JAX_PLATFORMS": "cpu"}, ("cpu", []))])
def test_devices_are_found_without_jax(nvidia_smi, environ, found):
  assert local_devices.find(environ) == found


def test_gpus_without_a_jax_that_uses_them_are_none(nvidia_smi, monkeypatch):
  for installed, platform in ((False, "cpu"), (True, "gpu")):
    monkeypatch.setattr(local_devices, "_installed", lambda *m, yes=installed: yes)
    assert local_devices.find({})[0] == platform


def test_devices_are_divided_into_groups():
  gpus = ["0", "1", "2", "3", "4"]
  groups = divide("gpu", gpus, 2, None, [])
  assert [g.environment for g in groups] == [
      {"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
  assert groups[0].label == "GPU 0,1"
  assert len(divide("gpu", gpus, None, None, [])) == 5
  assert len(divide("gpu", gpus, None, 3, [])) == 3
  chips = divide("tpu", gpus[:4], 1, None, [])
  assert chips[2].environment["TPU_VISIBLE_CHIPS"] == "2"
  assert chips[2].environment["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,1,1"
  assert divide("tpu", gpus[:4], 4, None, []) == [Group("TPU 0,1,2,3")]
  assert divide("cpu", [], None, None, [0, 1, 2]) == [Group("CPU")]
  parts = divide("cpu", [], None, 3, [0, 1, 2, 3, 5, 6, 7])
  assert [g.cores for g in parts] == [(0, 1), (2, 3, 5), (6, 7)]
  assert parts[0].label == "cores 0-1"


@pytest.mark.parametrize("arguments, message", [
    (("gpu", ["0", "1"], 3, None, []), "must be from 1 to the 2 GPU"),
    (("gpu", ["0", "1"], 0, None, []), "must be from 1 to the 2 GPU"),
    (("gpu", ["0", "1"], 2, 2, []), "--jobs_at_once=2 with 2 GPU.* are more"),
    (("tpu", ["0", "1", "2", "3"], 3, None, []), "not a part of a TPU host"),
    (("cpu", [], 1, None, [0]), "--devices_per_job=1 needs GPUs or TPU chips"),
    (("cpu", [], None, 2, [0]), "more than the 1 cores"),
    (("cpu", [], None, 0, [0]), "--jobs_at_once=0")])
def test_impossible_divisions_are_one_sentence(arguments, message):
  with pytest.raises(UserError, match=message):
    divide(*arguments)


# Running.


def _job(name, *after, code="pass", **fields):
  kind = "report" if name == "report" else name.split("-")[0]
  return Job(name, kind, ("-c", code), after=after, members=(name,), **fields)


_CPU = (Group("CPU"),)


def _run(workdir, jobs, groups=_CPU, environment=()):
  lines = io.StringIO()
  with Display(jobs, len(groups), Console(file=lines, width=200)) as display:
    with ownership.hold(workdir) as lock:
      ended = local_jobs.run(jobs, groups, workdir, dict(environment), display, lock)
  return ended, lines.getvalue()


def test_jobs_run_on_their_devices_as_many_at_a_time_as_there_are_groups(tmp_path):
  # Each of a pair waits for the other to begin, so that they must run at the same time.
  code = """if True:
    import os, waiting
    name, other = {name!r}, {other!r}
    def note(what):
      with open("{folder}/events", "a") as f:
        f.write(f"{{what}} {{name}} {{os.environ['WHERE']}}\\n")
    note("begin")
    waiting.until(lambda: f"begin {{other}}" in open("{folder}/events").read(), "its pair")
    note("end")
    print(os.environ["ALL"], sorted(os.sched_getaffinity(0)))
  """
  cores = local_devices.own_cores()
  groups = [Group(f"place {i}", {"WHERE": str(i)}, (cores[i % len(cores)],)) for i in range(2)]
  pairs = {"a-0": "a-1", "a-1": "a-0", "a-2": "a-3", "a-3": "a-2", "b": "b"}
  jobs = [_job(name, *(("a-0", "a-3") if name == "b" else ()),
               code=code.format(name=name, other=other, folder=tmp_path))
          for name, other in pairs.items()]
  ended, said = _run(tmp_path, jobs, groups,
                     {"ALL": "x y", "PYTHONPATH": str(tiny.ROOT / "tests")})
  assert {e.state for e in ended.values()} == {"done"}
  events = [line.split() for line in (tmp_path / "events").read_text().splitlines()]
  running, where = {}, {}
  for what, name, place in events:
    if what == "begin":
      assert place not in running.values()
      running[name] = where[name] = place
      if name == "b":
        assert not {"a-0", "a-3"} & set(running) and {"a-0", "a-3"} < set(where)
    else:
      del running[name]
  assert set(where) == set(pairs) and not running
  for job in jobs:
    log = (tmp_path / "launch" / "logs" / f"{job.name}.log").read_text()
    assert log.startswith("$ python -c ")
    assert log.splitlines()[-1] == f"x y {list(groups[int(where[job.name])].cores)}"
  assert local_devices.own_cores() == cores
  assert "a-0: started on place 0, log " in said and "b: done in" in said


def test_a_failed_job_stops_only_what_needs_it(tmp_path):
  fails = "import sys; print('step 3'); print('error: no space is left.'); sys.exit(2)"
  jobs = [_job("a-0", code=fails), _job("a-1"), _job("e-0", "a-0"), _job("e-1", "a-1"),
          _job("report", "e-0", "e-1", any_of=True), _job("x", "e-0", any_of=True)]
  ended, said = _run(tmp_path, jobs)
  assert {n: e.state for n, e in ended.items()} == {
      "a-0": "failed", "a-1": "done", "e-0": "not run", "e-1": "done", "report": "done",
      "x": "not run"}
  assert ended["a-0"].message == "no space is left." and ended["e-0"].message == "it needs a-0"
  assert "a-0: failed: no space is left." in said
  killed = _job("k", code="import os; os.kill(os.getpid(), 9)")
  assert _run(tmp_path, [killed])[0]["k"].message == "it ended with status 137 and said nothing"


_DRIVER = """
import pathlib, sys
from launch import local_jobs
from launch.jobs import Job
from launch.local_devices import Group
from launch.local_display import Display
from wd_plasticity import errors, ownership
jobs = [Job(f"long-{i}", "long", ("-m", "long_job", sys.argv[1], str(i))) for i in range(3)]
def main(_):
  workdir = pathlib.Path(sys.argv[1])
  with Display(jobs, 2) as display, ownership.hold(workdir) as lock:
    local_jobs.run(jobs, [Group("one"), Group("two")], workdir, {}, display, lock)
errors.run(main)
"""
# As `study --step`: a program that turns into another, which is what has to be stopped.
_LONG = """
import pathlib, signal, sys, time
from wd_plasticity import cli
from wd_plasticity.errors import Interrupted
folder, i = pathlib.Path(sys.argv[1]), sys.argv[2]
become = len(sys.argv) < 4
del sys.argv[1:]
def stop(*_):
  (folder / f"stopped-{i}").write_text("x")
  raise Interrupted("saved")
def main(_):
  if become:
    cli.become(["-m", "long_job", str(folder), i, "again"])
  signal.signal(signal.SIGTERM, stop)
  (folder / f"begun-{i}").write_text("x")
  while not (folder / f"stopped-{i}").exists():
    time.sleep(0.05)
cli.run(main)
"""


def _start_long(folder):
  (folder / "long_job.py").write_text(_LONG)
  (folder / "driver.py").write_text(_DRIVER)
  return programs.start("driver", folder, PYTHONPATH=f"{tiny.ROOT}{os.pathsep}{folder}")


def _wait_for(*paths, process=None):
  until(lambda: all(p.exists() for p in paths), f"{paths}", process)


@pytest.mark.slow
def test_killed_or_stopped_it_has_its_jobs_save_their_state(tmp_path):
  begun = [tmp_path / f"begun-{i}" for i in range(3)]
  stopped = [tmp_path / f"stopped-{i}" for i in range(3)]
  process = _start_long(tmp_path)
  _wait_for(*begun[:2], process=process)
  process.kill()
  _wait_for(*stopped[:2])  # the jobs noticed
  again = _start_long(tmp_path)  # waits for those jobs to end; now they have no work left
  _wait_for(begun[2], process=again)
  again.send_signal(signal.SIGINT)
  said = again.finish()
  assert again.returncode == 130 and stopped[2].exists(), said
  assert "long-0: done" in said and "run the same command again" in said
  assert "Traceback" not in said


# What is shown.


def test_the_time_left_is_that_of_jobs_of_the_same_kind():
  clock = [0.0]
  jobs = [_job("a-0"), _job("a-1"), _job("a-2"), _job("b-0"), _job("b-1")]
  display = Display(jobs, 2, Console(file=io.StringIO()), clock=lambda: clock[0])
  display.start("a-0", "GPU 0", "log")
  display.start("a-1", "GPU 1", "log")
  assert display.seconds_left is None
  clock[0] = 10
  display.update("a-0", {"done": 1, "total": 4, "seconds_left": 30, "status": ""})
  display.update("a-1", {"done": 1, "total": 2, "seconds_left": 10, "status": ""})
  assert display.seconds_left is None  # nothing is known of b
  assert display.fraction() == pytest.approx((0.25 + 0.5) / 5)
  clock[0] = 20
  display.end("a-1", "done")
  display.end("b-0", "failed", "why")
  display.end("b-1", "not run", "it needs b-0")
  assert display.seconds_left == (30 + (20 + 50) / 2) / 2 or display.seconds_left == 35
  assert display.summary().startswith("1 of 5 jobs done, 1 running, 1 failed, 0:20 elapsed, 0:3")


def test_the_table_of_a_terminal_fits_it_and_shows_what_runs_and_what_failed():
  jobs = [_job(f"a-{i}") for i in range(40)]
  screen = io.StringIO()
  with Display(jobs, 2, Console(file=screen, force_terminal=True, width=120, height=16)) as shown:
    for i in range(30):
      shown.start(f"a-{i}", f"GPU {i % 2}", f"/logs/a-{i}.log")
      if i < 28:
        shown.end(f"a-{i}", *(("failed", "out of [memory]") if i == 3 else ("done",)))
    shown.update("a-28", {"done": 1, "total": 2, "seconds_left": 60, "status": "1/2"})
  last = screen.getvalue().rsplit("job", 1)[1]
  assert re.search(r"a-28 .*GPU 0.*running.*50%.*1:00.*/logs/a-28.log", last)
  assert "a-3 " in last and "out of [memory]" in last and "and 31 more" in last
  assert "a-5 " not in last and last.count("\n") <= 16


# One work directory for jobs that run at the same time.


def _one_during_another(monkeypatch, read, write, between):
  """Writes twice; the second write begins while the first has read and not yet written.

  The first goes on when the second waits for its lock or, were there none, has written.
  """
  began, met = threading.Event(), threading.Event()
  lock_at_once = files.lock_at_once
  def meet(*args):
    if threading.current_thread() is not first:
      met.set()
    return lock_at_once(*args)
  def slow_read(*args):
    found = read()
    if not began.is_set():
      began.set()
      met.wait()
    return found
  first = threading.Thread(target=lambda: write(slow_read))
  with monkeypatch.context() as patch:
    patch.setattr(files, "lock_at_once", meet)
    first.start()
    began.wait()
    between()
    write(slow_read)
    met.set()
    first.join()


def test_tables_of_jobs_that_end_together_hold_all_of_them(tmp_path, monkeypatch):
  members = ["a"]
  row = dict(weight_decay=0.0, seed=0, status="unfinished", steps=0, tokens=None, reason="",
             validation_loss=None, train_subset_loss=None, gap=None, best_validation_loss=None,
             weight_norm=None)
  def write(read):
    monkeypatch.setattr(summary, "summarise", read)
    summary.write_summary(tmp_path, Console(file=io.StringIO()))
  _one_during_another(monkeypatch, lambda: [{"member": m} | row for m in members], write,
                      lambda: members.append("b"))
  assert [r["member"] for r in json.loads((tmp_path / "sweep.json").read_text())] == ["a", "b"]

  items = ["a"]
  def item(name):
    return {"item": name, "values": {"x": 1.0}, "checkpoint": dict(
        weight_decay=0.0, seed=0, member="m", step=1, tokens=1)}
  results = Results(tmp_path, "probe", "")
  def collect(read):
    monkeypatch.setattr(results, "all", read)
    results.collect()
  _one_during_another(monkeypatch, lambda: [item(i) for i in items], collect,
                      lambda: items.append("b"))
  assert len((results.directory / "results.jsonl").read_text().splitlines()) == 2


# Whole programs.


@pytest.mark.slow
def test_a_study_with_a_failing_member_stopped_half_way_and_again(tmp_path, corpus):
  points = (*launching.POINTS, {"model.num_heads": 3, "seed": 9})
  config = launching.write_study(tmp_path, corpus, points=points)
  workdir = tmp_path / "w"
  flags = ["launch.local", f"--config={config}", f"--workdir={workdir}", "--nocheck",
           f"--jobs_at_once={min(2, len(local_devices.own_cores()))}", "--tag=tiny"]
  stopped = programs.start(*flags)
  _wait_for(workdir / "members" / "wd0-seed1" / "metrics.jsonl", process=stopped)
  stopped.send_signal(signal.SIGTERM)
  said = stopped.finish()
  assert stopped.returncode == 143 and "run the same command again" in said
  said = programs.run(*flags, expect=1)
  assert f"report: {workdir}/report/report.html" in said
  assert "pretraining-num_heads3-seed9 failed: " in said
  assert "not run, because they need it: attention_rank-num_heads3-seed9." in said
  assert (workdir / "sweep.csv").read_text().count(",done,") == 2
  results = (workdir / "evals" / "attention_rank" / "results.jsonl").read_text().splitlines()
  assert [json.loads(line)["checkpoint"]["member"] for line in results] == [
      "wd0-seed1", "wd1-seed1"]
  assert json.loads((workdir / "versions.json").read_text())["launch"]["tags"] == ["tiny"]


@pytest.mark.slow
def test_members_that_start_together_in_one_work_directory(tmp_path, corpus):
  points = [{"optim.weight_decay": w, "seed": 1} for w in (0.0, 0.3, 1.0)]
  config = launching.write_study(tmp_path, corpus, points=points)
  workdir = tmp_path / "w"
  def together(*flags, module):
    started = [tiny.start(config, workdir, f"--sweep_index={k}", *flags, module=module)
               for k in range(len(points))]
    for process in started:
      said = process.finish()
      assert process.returncode == 0, said
  together(module="wd_plasticity.main")
  assert (workdir / "sweep.csv").read_text().count(",done,") == 3
  assert len(list(pathlib.Path(workdir / "cache").glob("*/stats.json"))) == 1
  together("--step=attention_rank", module="wd_plasticity.study")
  results = (workdir / "evals" / "attention_rank" / "results.jsonl").read_text().splitlines()
  assert len(results) == 3
