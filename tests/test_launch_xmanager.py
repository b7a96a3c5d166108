"""launch.xm with XManager's own mock, and with its local backend running processes."""

import asyncio
import collections
import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest
from absl import flags

pytest.importorskip("xmanager", reason="XManager is not installed: pip install -e .[xmanager]")

from xmanager import xm, xm_local, xm_mock
from xmanager.xm_local import executables

from launch import xm_experiment
from launch.jobs import Job
from wd_plasticity.errors import UserError

_ROOT = pathlib.Path(__file__).parents[1]
_HOSTILE = "it's $HOME `id` \"q\" \\ $(x) ; é\n& more"


def _job(name, kind, *after, index=0, **fields):
  return Job(name, kind, ("-m", kind, f"--member={name}", _HOSTILE), after=after, index=index,
             **fields)


_JOBS = (
    _job("pretraining-a", "pretraining"), _job("pretraining-b", "pretraining", index=1),
    _job("finetune-a", "finetune", "pretraining-a"),
    _job("attention_rank-b", "attention_rank", "pretraining-b", index=1),
    _job("report", "report", "finetune-a", "attention_rank-b", any_of=True))
_UNITS = [xm_experiment.Unit(xm_experiment.unit_name(j), j, {"NOTE": _HOSTILE}) for j in _JOBS]


@pytest.fixture
def events(monkeypatch):
  """What happens to the units of a mock experiment; names in `failing` fail."""
  class Unit(xm_mock.MockExperimentUnit):
    async def _launch_job_group(self, job_group, args, identity):
      [self.job] = job_group.jobs.values()
      made.order.append(("start", self.job.name))
      made.roles[self.job.name] = type(self._role).__name__
      if self.job.name in made.refused:
        raise ValueError("no such machine")
      await super()._launch_job_group(job_group, args, identity)

    async def _wait_until_complete(self):
      await asyncio.sleep(0.01)
      made.order.append(("end", self.job.name))
      if self.job.name in made.failing:
        raise xm.ExperimentUnitFailedError("it broke\ndown")

    def stop(self, **_):
      made.stopped.append(self.job.name)

  made = collections.namedtuple("Events", "order roles failing refused stopped")(
      [], {}, set(), set(), [])
  monkeypatch.setattr(xm_mock, "MockExperimentUnit", Unit)
  return made


def _run(experiment, units=_UNITS):
  return asyncio.run(xm_experiment.run(
      experiment, "books", ["a", "b c"], "notes of it", units, xm.Container(image_path="image"),
      xm_mock.MockExecutor.Spec(), xm_mock.MockExecutor))


def test_units_have_the_commands_and_variables_and_the_experiment_its_words(events):
  experiment = xm_mock.MockExperiment()
  states = _run(experiment)
  assert states == {j.name: "done" for j in _JOBS}
  assert [(j.name, j.args.to_list(str), j.env_vars) for j in experiment.launched_jobs] == [
      (u.name, list(u.job.command), {"NOTE": _HOSTILE}) for u in _UNITS]
  annotations = experiment.context.annotations
  assert annotations.title == "books" and annotations.notes == "notes of it"
  assert annotations.tags == {"a", "b c"}
  assert experiment.work_unit_count == 2 and len(experiment.auxiliary_units) == 3
  assert events.roles["pretraining-1"] == "WorkUnitRole"
  assert events.roles["attention-rank-1"] == events.roles["report-0"] == "AuxiliaryUnitRole"


def test_units_are_added_when_what_they_need_has_ended(events):
  _run(xm_mock.MockExperiment())
  place = {event: i for i, event in enumerate(events.order)}
  names = {u.job.name: u.name for u in _UNITS}
  for unit in _UNITS:
    for after in unit.job.after:
      assert place["end", names[after]] < place["start", unit.name]
  assert place["start", "pretraining-1"] < place["end", "pretraining-0"]  # side by side


def test_a_failed_unit_stops_only_what_needs_it(events, capsys):
  events.failing.add("pretraining-0")
  states = _run(xm_mock.MockExperiment())
  assert states == {
      "pretraining-a": "failed: it broke down", "pretraining-b": "done",
      "finetune-a": "not run, what it needs has not succeeded", "attention_rank-b": "done",
      "report": "done"}
  assert "pretraining-a: failed: it broke down\n" in capsys.readouterr().out


def test_without_any_result_there_is_no_report(events):
  events.failing.update({"finetune-0", "attention-rank-1"})
  assert _run(xm_mock.MockExperiment())["report"].startswith("not run")


def test_a_unit_that_is_refused_stops_only_what_needs_it(events):
  events.refused.add("pretraining-1")
  states = _run(xm_mock.MockExperiment())
  assert states["pretraining-b"] == "not started: no such machine"
  assert states["attention_rank-b"].startswith("not run") and states["report"] == "done"


def test_an_interruption_stops_what_has_been_started(events):
  async def interrupted():
    task = asyncio.create_task(xm_experiment.run(
        xm_mock.MockExperiment(), "t", [], "", _UNITS, xm.Container(image_path="image"),
        xm_mock.MockExecutor.Spec(), xm_mock.MockExecutor))
    while len(events.order) < 2:
      await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
      await task
  asyncio.run(interrupted())
  assert sorted(events.stopped) == ["pretraining-0", "pretraining-1"]
  assert {name for _, name in events.order} == {"pretraining-0", "pretraining-1"}


def test_an_image_that_cannot_be_made_is_one_sentence(events, monkeypatch):
  def broken(self, packageables):
    raise RuntimeError("docker is\nnot there")
  monkeypatch.setattr(type(xm_mock.MockExperiment._async_packager), "package", broken)
  with pytest.raises(UserError, match="^the executable cannot be packaged: docker is not there$"):
    _run(xm_mock.MockExperiment())
  assert not events.order


def test_the_exit_status_of_a_container_counts(events, monkeypatch):
  class Container:
    def wait(self):
      return {"StatusCode": 3}
  handle = collections.namedtuple("Handle", "model")(Container())
  monkeypatch.setattr(xm_mock.MockExperimentUnit, "_local_execution_handles", [handle],
                      raising=False)
  states = _run(xm_mock.MockExperiment())
  assert states["pretraining-a"] == "failed with status 3"


def test_the_image_is_made_of_the_last_commit(tmp_path):
  spec = xm_experiment.dockerfile(tmp_path, "cuda12")
  place = pathlib.Path(spec.path)
  assert "ARG JAX_EXTRA=cuda12\n" in pathlib.Path(spec.dockerfile).read_text()
  assert (place / "wd_plasticity" / "main.py").is_file() and not (place / ".git").exists()
  assert spec.name == "wd_plasticity" and os.listdir(tmp_path) == ["wd_plasticity"]


def test_units_run_on_xmanagers_local_backend(tmp_path, monkeypatch):
  """No mock: XManager's own experiment, database and processes, but a script for the image."""
  monkeypatch.setenv("HOME", str(tmp_path))
  flags.FLAGS.mark_as_parsed()
  program = tmp_path / "program"
  program.write_text(f"""#!{sys.executable}
import json, os, sys
with open({str(tmp_path / "ran")!r}, "a") as f:
  f.write(json.dumps([*sys.argv[1:], os.environ["NOTE"]]) + "\\n")
sys.exit(sys.argv[3] == "--member=pretraining-b")
""")
  program.chmod(program.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setattr(xm_experiment, "_package", lambda *_: executables.LocalBinary(
      name="program", command=str(program)))
  states = asyncio.run(xm_experiment.run(
      xm_experiment.create("t"), "t", ["tag"], "notes", _UNITS, None, None,
      lambda: xm_local.Local()))
  assert {n for n, s in states.items() if s == "done"} == {"pretraining-a", "finetune-a", "report"}
  assert states["pretraining-b"].startswith("failed: ")
  ran = [json.loads(line) for line in (tmp_path / "ran").read_text().splitlines()]
  assert sorted(ran) == sorted([*j.command, _HOSTILE] for j in _JOBS
                               if j.name != "attention_rank-b")
  assert ran[-1][2] == "--member=report"


# The program.


def _program(arguments, env, by_xmanager=False):
  command = ["-m", "launch.xm", *arguments]
  if by_xmanager:
    command = ["-c", "from xmanager.cli import cli; cli.entrypoint()", "launch", "launch/xm.py",
               "--", *arguments]
  done = subprocess.run([sys.executable, *command], cwd=_ROOT, env=env, capture_output=True,
                        text=True)
  return done.returncode, done.stdout, done.stderr


@pytest.fixture
def env(tmp_path):
  return {**os.environ, "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize("by_xmanager", [False, True])
def test_dry_run_shows_the_experiment_however_it_is_started(env, by_xmanager):
  status, out, err = _program(
      ["--config=configs/quickstart.py", "--workdir=gs://buck/{name}", "--sweep=0,1",
       "--executor=vertex", "--accelerator=A100=8", "--cpu=4", "--image=gcr.io/p/i", "--tag=paper",
       "--notes=first try", "--set_config", "optim.learning_rate=0.5", "--dry_run"],
      env, by_xmanager)
  assert status == 0, err
  assert "experiment: quickstart\ntags: paper\nnotes:\n  first try\n" in out
  assert "  pretraining-1: wd0.1-seed0\n" in out
  assert "executable: Container(image_path='gcr.io/p/i')" in out
  assert "executor: Vertex(requirements=xm.JobRequirements(cpu=4.0, a100=8.0" in out
  assert ("work unit pretraining-1:\n  -m wd_plasticity.main --config=configs/quickstart.py "
          "--config.optim.learning_rate=0.5 --workdir=/gcs/buck/quickstart --sweep_index=1"
          ) in out
  assert "auxiliary unit finetune-1, after pretraining-1 ended well:\n" in out
  assert "ended, and one of them well:\n  -m wd_plasticity.report --workdir=/gcs/buck/quick" in out


@pytest.mark.parametrize("change, words", [
    (["--accelerator=nonsense"], "is not NAME=AMOUNT"),
    (["--accelerator=A100=x"], "XManager does not accept"),
    (["--accelerator=v5e=4x4"], "cannot ask --executor=local"),
    (["--executor=vertex"], "would be lost with the machine"),
    (["--executor=kubernetes", "--workdir=gs://buck/x"], "mounts no bucket"),
    (["--volume=nothing"], "--volume=nothing")])
@pytest.mark.slow
def test_mistakes_are_one_sentence(env, change, words):
  status, out, err = _program(["--config=configs/quickstart.py", "--workdir=/x/y", *change], env)
  assert status == 2 and words in err and err.count("error:") == 1, err
