"""SLURM: the scripts and commands it is given, and a real one that is stopped half way."""

import json
import os
import re
import shlex
import stat
import subprocess

import jax
import launching
import programs
import pytest
import slurm_cluster
from jax._src.clusters.slurm_cluster import SlurmCluster
from waiting import until

from launch import slurm_scripts
from launch.jobs import Job
from launch.slurm_scripts import Resources
from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.training import distributed

# What it is called with goes to a file; sbatch answers with ids that count up.
_FAKE = """#!/bin/sh
printf '%s\\0' {name} "$@" >> {folder}/calls; printf '\\n' >> {folder}/calls
number=$(wc -l < {folder}/calls)
case {name} in
  sbatch) if [ "$number" -gt {accepted} ]; then
      echo "sbatch: error: invalid partition" >&2; exit 1
    fi
    echo "$number" ;;
  squeue) echo "{queue}" ;;
esac
"""


class FakeSlurm:
  """Programs that only note how they are called."""

  def __init__(self, folder, accepted=99, queue=""):
    folder.mkdir()
    self._calls = folder / "calls"
    for name in ("sbatch", "squeue", "scancel"):
      path = folder / name
      path.write_text(_FAKE.format(name=name, folder=folder, accepted=accepted, queue=queue))
      path.chmod(path.stat().st_mode | stat.S_IXUSR)
    self.path = f"PATH={folder}{os.pathsep}{os.environ['PATH']}"

  def calls(self):
    return [line.rstrip("\0").split("\0") for line in self._calls.read_text().splitlines()]


def _scripts(said):
  """Scripts and commands that a dry run shows, in order."""
  parts = re.split(r"^(# /.*/launch/slurm/\w+\.sh)\n", said, flags=re.MULTILINE)[1:]
  for path, text in zip(parts[::2], parts[1::2], strict=True):
    script, command = text.rsplit("\n$ ", 1)
    yield path.removeprefix("# "), script, shlex.split(command)


def test_a_study_is_three_arrays_as_the_dry_run_shows_them(tmp_path, corpus):
  slurm = FakeSlurm(tmp_path / "bin")
  config = launching.write_study(tmp_path, corpus)
  workdir = tmp_path / "a'b $HOME 100%"
  name = "n'a\nme; touch /tmp/no"
  flags = [f"--config={config}", f"--workdir={workdir}", "--config.optim.beta2=0.9",
           f"--name={name}", "--partition=gpu p", "--time=1:00:00", "--mem=4G",
           "--jobs_at_once=1", "--nodes=2", "--gpus_per_node=a100:2", "--processes_per_node=2",
           "--cpus_per_task=3", "--sbatch=--constraint=a|b", "--sbatch=--comment=x y",
           "--setup=module load 'cuda'; true", "--notes=it's", "--max_restarts=7"]
  (dry_status, dry), (status, said), (again_status, again) = launching.many(
      "launch.slurm", [slurm.path, *flags, "--dry_run"], [slurm.path, *flags],
      [slurm.path, *flags, "--noevals"])  # nothing of the one before is in the queue
  assert (dry_status, status, again_status) == (0, 0, 0), dry + said + again
  shown = list(_scripts(dry))
  assert [command[2].rsplit("-", 1)[1] for _, _, command in shown] == [
      "pretraining", "attention_rank", "report"]
  submitted = [c for c in slurm.calls() if c[0] == "sbatch"][:3]
  # Exactly what was shown, but for the ids.
  ids = {"ID_OF_PRETRAINING": "1", "ID_OF_ATTENTION_RANK": "2"}
  for (path, script, command), call in zip(shown, submitted, strict=True):
    for placeholder, number in ids.items():
      command = [word.replace(placeholder, number) for word in command]
    assert command == call
    assert call[-1] == path
    assert open(path).read().strip() == script.strip()
    subprocess.run(["bash", "-n", path], check=True)
  resources = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=a100:2", "--cpus-per-task=3",
               "--partition=gpu p", "--time=1:00:00", "--mem=4G"]
  logs = f"{workdir}/launch/logs".replace("%", "%%")
  assert submitted[0] == [
      "sbatch", "--parsable", "--job-name=n'a me; touch /tmp/no-pretraining",
      f"--output={logs}/pretraining-%A_%a.log", "--open-mode=append", "--requeue",
      "--array=0-1%1", "--signal=TERM@300", *resources, "--constraint=a|b", "--comment=x y",
      f"{workdir}/launch/slurm/pretraining.sh"]
  assert {"--dependency=aftercorr:1", "--kill-on-invalid-dep=yes", *resources} <= set(submitted[1])
  assert "--dependency=afterany:2" in submitted[2] and "--ntasks=1" in submitted[2]
  assert not any(word.startswith(("--gpus", "--array")) for word in submitted[2])
  # What is kept and said.
  record = json.loads(min(workdir.glob("launch/*-slurm.json")).read_text())
  assert [j["submitted"]["id"] for j in record["jobs"]] == ["1_0", "1_1", "2_0", "2_1", "3"]
  assert "scancel 1 2 3" in said and "squeue --jobs=1,2,3" in said


def _run_script(path, folder, *, task="0", state="RUNNING", restarts="0", srun_status=0,
                first=None):
  """Runs a script with a SLURM that is made up; returns its exit status and its calls."""
  log = folder / "calls"
  log.unlink(missing_ok=True)
  note = f'echo {first} > "$first"' if first is not None else ":"
  for name, body in (("srun", f'printf "%s\\n" "$@" > {log}.srun; {note}; exit {srun_status}'),
                     ("squeue", f"echo {state}"), ("scontrol", f'echo "$@" >> {log}')):
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)
  done = subprocess.run(["bash", path], env=os.environ | {
      "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "12",
      "SLURM_ARRAY_TASK_ID": task, "SLURM_JOB_ID": "14", "SLURM_RESTART_COUNT": restarts},
      capture_output=True, text=True)
  return done.returncode, log.read_text().strip() if log.exists() else ""


def _write_script(tmp_path, commands=(("-m", "a"),), kind="pretraining", **fields):
  array = slurm_scripts.Array(kind, tuple(
      Job(f"j{i}", kind, command, index=i) for i, command in enumerate(commands)), ())
  text = slurm_scripts.script(
      array, Resources(**fields), name="x", folder=tmp_path, directory=tmp_path,
      python="/bin/python", setup=["SET=up"], environment={"A": "it's $HOME\n"}, max_restarts=3)
  path = tmp_path / f"{kind}.sh"
  path.write_text(text)
  return path


@pytest.mark.parametrize("what, status, requeued", [
    (dict(), 0, False),
    (dict(srun_status=143, first=143), 143, True),
    (dict(srun_status=130, first=130), 130, True),
    (dict(srun_status=143, first=143, restarts="2"), 143, True),
    (dict(srun_status=143, first=143, restarts="3"), 143, False),  # too often
    (dict(srun_status=143, first=143, state="COMPLETING"), 143, False),  # cancelled or preempted
    (dict(srun_status=143, first=2), 2, False),  # a mistake, after which srun ended the others
    (dict(srun_status=143, first=1), 143, False),  # an error of the program, likewise
    (dict(srun_status=137, first=137), 137, False),  # out of memory
    (dict(srun_status=1), 1, False)])  # srun could not start it
def test_only_what_was_asked_to_stop_is_queued_again(tmp_path, what, status, requeued):
  made = _run_script(_write_script(tmp_path), tmp_path, **what)
  assert made == (status, "requeue 12_0" if requeued else "")
  assert not list(tmp_path.glob(".first-*"))


def test_a_script_runs_the_command_of_its_index_whatever_is_in_it(tmp_path):
  hostile = ("-m", "a b", "--x='\"$(touch no)\n;`", "*", "")
  path = _write_script(tmp_path, (("-m", "a"), hostile), processes_per_node=2, cpus_per_task=4)
  assert _run_script(path, tmp_path, task="1") == (0, "")
  words = (tmp_path / "calls.srun").read_text()
  assert words.endswith("process\n/bin/python\n" + "\n".join(hostile) + "\n")
  assert words.startswith("--kill-on-bad-exit=1\n--label\n--cpus-per-task=4\nbash\n-c\n")
  assert not (tmp_path / "no").exists()
  assert _run_script(path, tmp_path, task="2")[0] == 1
  path = _write_script(tmp_path, kind="report", gpus_per_node="4")
  assert _run_script(path, tmp_path, srun_status=143, first=143) == (143, "requeue 14")
  assert "--gpu-bind" not in (tmp_path / "calls.srun").read_text()


def test_the_first_process_that_fails_says_why(tmp_path):
  text = _write_script(tmp_path).read_text()
  process = re.search(r"process='(.*?)'\n", text, re.DOTALL)[1]
  first = tmp_path / "first"
  def run(command):
    return subprocess.run(["bash", "-c", process, "process", "bash", "-c", command],
                          env=os.environ | {"first": str(first)}).returncode
  assert run("exit 0") == 0 and not first.exists()
  assert run("exit 2") == 2 and run("exit 143") == 143
  assert first.read_text() == "2\n"
  first.unlink()
  # Asked to stop, it waits for the program to save its state.
  assert run("trap 'exit 143' TERM; kill -TERM $PPID; kill -TERM $$; tail -f /dev/null") == 143
  assert first.read_text() == "143\n"


@pytest.mark.parametrize("fields, message", [
    (dict(nodes=0), "--nodes=0 must be at least 1"),
    (dict(options={"time": "yesterday"}), "--time=yesterday is not one that SLURM reads; write"),
    (dict(options={"time": "1:2:3:4"}), "--time=1:2:3:4 is not one"),
    (dict(options={"mem": "much"}), "--mem=much is not one that SLURM reads; write"),
    (dict(gpus_per_node="a100"), "--gpus_per_node=a100 is not a number of GPUs"),
    (dict(gpus_per_node="4", processes_per_node=2), "must be 1, or 4 for one process per GPU"),
    (dict(seconds_to_save=-1), "--seconds_to_save=-1"),
    (dict(extra=("constraint=a",)), "write for example --sbatch=--constraint=a100")])
def test_impossible_resources_are_one_sentence(fields, message):
  with pytest.raises(UserError, match=message):
    Resources(**fields).check()


def test_mistakes_and_what_slurm_refuses(tmp_path, corpus):
  config = launching.write_study(tmp_path, corpus)
  flags = [f"--config={config}", f"--workdir={tmp_path / 'w'}"]
  record = tmp_path / "queued" / "launch" / "2020-slurm.json"
  record.parent.mkdir(parents=True)
  record.write_text(json.dumps({"jobs": [{"submitted": {"id": "7_1"}}, {"submitted": None}]}))
  busy = FakeSlurm(tmp_path / "busy", queue="7\n8")
  first_only = FakeSlurm(tmp_path / "first_only", accepted=1)
  cases = {
      "--gpus_per_node=x is not": [*flags, "--gpus_per_node=x"],
      "jobs 7 of an earlier launch in this work directory have not ended; wait for them, or run "
      "`scancel 7` first": [busy.path, f"--config={config}", f"--workdir={tmp_path / 'queued'}"],
      "sbatch: error: invalid partition; what had been submitted before is cancelled": [
          first_only.path, *flags],
      "mesh": [*flags, "--config.mesh.data=3", "--dry_run"],
      "--config=FILE is missing": ["--workdir=x"],
      "there is no program sbatch": ["PATH=/nowhere", *flags]}
  *made, (status, said) = launching.many("launch.slurm", *cases.values(), ["--help"])
  assert status == 0 and "--gpus_per_node" in said and "--workdir" in said and "--config" in said
  for sentence, (status, said) in zip(cases, made, strict=True):
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert sentence in said
  assert first_only.calls()[-1] == ["scancel", "1"]
  assert not list((tmp_path / "w").glob("launch/*-slurm.json"))


# What the programs make of SLURM's variables.

_STEP = {"SLURM_JOB_ID": "14", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8",
         "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_STEP_NUM_TASKS": "8",
         "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}


@pytest.mark.parametrize("changed, connects, all_devices", [
    ({}, True, False),  # a process for each GPU
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, True, True),  # for each node
    ({"SLURM_STEP_TASKS_PER_NODE": "1"}, True, True),
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "JAX_LOCAL_DEVICE_IDS": "0"}, True, False),
    ({"SLURM_STEP_NUM_TASKS": "1"}, False, False),  # one process of a job that has more
    ({"SLURM_STEP_NUM_TASKS": None, "SLURM_STEP_NODELIST": None}, False, False)])  # no srun
def test_processes_connect_as_srun_started_them(monkeypatch, changed, connects, all_devices):
  for name in [n for n in os.environ if n.startswith(("SLURM", "OMPI", "TPU_"))]:
    monkeypatch.delenv(name)
  for name, value in (_STEP | changed).items():
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
  calls, updates = [], {}
  monkeypatch.setattr(jax.distributed, "initialize", lambda **k: calls.append(k))
  monkeypatch.setattr(distributed.jax.config, "update", updates.__setitem__)
  distributed.initialise(default_config().distributed)
  assert bool(calls) == connects
  assert updates.get("jax_cuda_visible_devices") == ("all" if all_devices else None)
  # What JAX itself makes of them.
  assert SlurmCluster.is_env_present() == ("SLURM_STEP_NODELIST" in os.environ)
  if connects:
    assert SlurmCluster.get_process_count() == 8 and SlurmCluster.get_process_id() == 1
    assert SlurmCluster.get_coordinator_address(None, None) == f"node3:{65535 - 4095 + 14}"


# A real SLURM on this machine.

_TWO = ("--processes_per_node=2", "--config.mesh.data=2", "--cpus_per_task=1", "--noevals",
        "--sweep=1", "--config.train.steps=600", "--config.train.log_every=10 steps",
        "--config.train.eval_every=200 steps", "--config.checkpoint.every=300 steps")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  if slurm_cluster.obstacle():
    pytest.skip(slurm_cluster.obstacle())
  with slurm_cluster.start() as running:
    running.environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # conftest.py
    yield running


def _launch(cluster, config, workdir, *flags):
  """Submits, and returns the ids."""
  said = programs.run("launch.slurm", f"--config={config}", f"--workdir={workdir}", *flags,
                       **cluster.environment)
  return re.search(r"scancel (.*)", said)[1].split()


def _logs(workdir):
  return "\n".join(p.read_text() for p in sorted(workdir.glob("launch/logs/*")))


def _finish(cluster, workdir):
  until(lambda: not cluster.queue(), lambda: "the end of the jobs\n" + _logs(workdir))


@pytest.mark.nightly
def test_stopped_in_three_ways_a_job_of_two_processes_gives_the_same_losses(
    cluster, tmp_path, corpus):
  config = launching.write_study(tmp_path, corpus)
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  metrics = "members/wd1-seed1/metrics.jsonl"
  _launch(cluster, config, whole, *_TWO)
  _finish(cluster, whole)
  assert "process 1 of 2: 1 of 2 devices" in _logs(whole)
  assert json.loads((whole / metrics).read_text().splitlines()[-1])["step"] == 600

  def reach(step):
    path = stopped / metrics
    until(lambda: path.exists() and path.read_text().count("\n") >= step // 10, f"step {step}")
  number, = _launch(cluster, config, stopped, *_TWO)
  job = f"{number}_0"
  reach(80)
  cluster.run("scontrol", "requeue", job)  # as SLURM does when it preempts
  reach(200)
  assert cluster.queue() == {job: "RUNNING"}
  cluster.run("scancel", "--signal=TERM", job)  # as at the time limit
  reach(350)
  restarts = cluster.run("scontrol", "show", "job", job)
  assert "Restarts=2" in restarts
  cluster.run("scancel", number)
  until(lambda: not cluster.queue(), "the cancelled job's end")
  said = _logs(stopped)
  assert said.count("stopped by SIGTERM after step") >= 3, said
  assert said.count("launch.slurm: asked to stop, submitted again.") == 1
  assert cluster.run("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T"
                     ) == "CANCELLED"  # and does not come back
  _launch(cluster, config, stopped, *_TWO)
  _finish(cluster, stopped)
  assert (stopped / metrics).read_bytes() == (whole / metrics).read_bytes()
  assert not list((stopped / "launch" / "slurm").glob(".first*"))


@pytest.mark.nightly
def test_a_study_ends_in_its_report_though_a_member_is_a_mistake(cluster, tmp_path, corpus):
  points = (*launching.POINTS, {"model.num_heads": 3, "seed": 9})
  config = launching.write_study(tmp_path, corpus, points=points)
  workdir = tmp_path / "w"
  ids = _launch(cluster, config, workdir, "--nocheck", "--tag=tiny")
  assert len(ids) == 3
  programs.run("launch.slurm", f"--config={config}", f"--workdir={workdir}", "--nocheck",
                expect=2, **cluster.environment)  # they have not ended
  _finish(cluster, workdir)
  table = (workdir / "sweep.csv").read_text()
  assert table.count(",done,") == 2, table
  results = (workdir / "evals" / "attention_rank" / "results.jsonl").read_text().splitlines()
  assert [json.loads(line)["checkpoint"]["member"] for line in results] == [
      "wd0-seed1", "wd1-seed1"]
  assert (workdir / "report" / "report.html").stat().st_size > 1e5
  mistake = (workdir / "launch" / "logs" / f"pretraining-{ids[0]}_2.log").read_text()
  assert "error: " in mistake and "submitted again" not in mistake
  assert not (workdir / "launch" / "logs" / f"attention_rank-{ids[1]}_2.log").exists()
  assert json.loads((workdir / "versions.json").read_text())["launch"]["tags"] == ["tiny"]
