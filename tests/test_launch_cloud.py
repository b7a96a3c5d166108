"""launch.tpu_vm and launch.xpk against a gcloud and an xpk that record how they are called."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import time

import fake_cloud
import programs
import pytest
from waiting import until

from launch import cloud, tpu_vm_scripts
from wd_plasticity.config import default_config
from wd_plasticity.training import distributed

_TPU = ("--config=configs/quickstart.py", "--project=p", "--zone=z", "--tpu_name=t",
        "--accelerator_type=v5litepod-8", "--workdir=gs://buck/runs", "--poll_seconds=0.02",
        "--nocheck")
# The machines clone the code; it is faster to pretend that than to copy it.
_CLONED = (*_TPU, "--repository=https://example.org/code.git")
_XPK = ("--config=configs/quickstart.py", "--cluster=c", "--tpu_type=v5litepod-8",
        "--docker_image=img", "--storage=disk", "--workdir=/data/runs", "--workloads=w",
        "--poll_seconds=0.02", "--nocheck")
_HOSTILE = "it's $HOME `id` \"q\" \\ $(x) ; é\n& more"

# Says what it is, and leaves its arguments and variables, a line of JSON for each start.
_JOB = """\
echo "log of $*"
printf '%s|%s|%s|%s\\n' "$*" "$WD_PLASTICITY_DISTRIBUTED" "$WORKER" "$(pwd)" >> "$FAKE/jobs"
printf '%s' "$WD_PLASTICITY_LAUNCH" > "$FAKE/about"
"""


@pytest.fixture
def tpu_vm():
  return "launch.tpu_vm"


@pytest.fixture
def xpk():
  return "launch.xpk"


@pytest.fixture
def fake(tmp_path):
  tmp_path = tmp_path / "fake cloud's"
  env = fake_cloud.install(tmp_path)
  (tmp_path / "job.sh").write_text(_JOB)
  pod = tmp_path / "pod_bin"
  pod.mkdir()
  (pod / "python").write_text('#!/bin/bash\nexec bash "$FAKE/job.sh" "$@"\n')
  (pod / "python").chmod(0o755)
  return Fake(tmp_path, env)


class Fake:
  def __init__(self, folder, env):
    self.folder, self.env, self.output = folder, env, folder / "output"

  def start(self, launcher, arguments):
    self.output.write_text("")
    return programs.start(launcher, *arguments, output=self.output, environment=self.env)

  def run(self, launcher, arguments):
    process = self.start(launcher, arguments)
    return process.wait(), process.said()

  def calls(self, *words):
    return fake_cloud.calls(self.folder, *words)

  def fault(self, *contains, **fields):
    fake_cloud.add_fault(self.folder, *contains, **fields)

  @property
  def jobs(self):
    """(what, members) of every job that was started, in order."""
    path = self.folder / "jobs"
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
      words = line.split("|")[0].split()
      step = [w[7:] for w in words if w.startswith("--step=")]
      members = [w.partition("=")[2] for w in words if w.startswith("--sweep_index=")]
      found.append((*(step or [words[1].rpartition(".")[2]]), *members))
    return found


def _changed(arguments, change):
  """Flags with others in place of those of the same name."""
  flags = {a.partition("=")[0]: a for a in (*arguments, *change)}
  return list(flags.values())


def _wait_for(text, process):
  until(lambda: text in process.said(), lambda: f"{text!r} in\n{process.said()}", process)


# Names and sizes.


def test_names_of_resources_are_what_clouds_accept_and_no_name_begins_another():
  seen = set()
  for text in ("a", "9lives", "Wd 0.3/é", "x" * 90, "", "ends-"):
    for key in ("1", "2"):
      name = cloud.resource_name(text, key, 40)
      assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name), name
      seen.add(name)
  assert len(seen) == 12
  assert not [(a, b) for a in seen for b in seen if a != b and b.startswith(a)]


def test_labels_hold_only_what_labels_may():
  made = cloud.labels("t", ["Paper 1", "a=b,c", "x" * 90])
  assert made == {"wd-plasticity": "t", "tag-paper-1": "yes", "tag-a-b-c": "yes",
                  "tag-" + "x" * 59: "yes"}


@pytest.mark.parametrize("kind, devices, hosts", [
    # From Google's tables of TPU configurations.
    ("v5litepod-1", 1, 1), ("v5litepod-8", 8, 1), ("v5litepod-16", 16, 4),
    ("v6e-8", 8, 1), ("v6e-256", 256, 64), ("v4-8", 4, 1), ("v4-32", 16, 4), ("v5p-8", 4, 1),
    ("v5p-16", 8, 2), ("v3-8", 8, 1), ("v3-32", 32, 4), ("nonsense", 0, 1)])
def test_devices_and_machines_of_a_slice(kind, devices, hosts):
  assert (cloud.num_devices(kind), cloud.num_hosts(kind)) == (devices, hosts)


@pytest.mark.parametrize("value, expected", [("on", True), ("", False), (None, False)])
def test_processes_of_a_slice_know_that_they_belong_together(monkeypatch, value, expected):
  for name in list(os.environ):
    if name.startswith(("SLURM", "OMPI", "TPU", "MEGASCALE")):
      monkeypatch.delenv(name)
  monkeypatch.delenv(distributed.PROCESSES_VARIABLE, raising=False)
  if value is not None:
    monkeypatch.setenv(distributed.PROCESSES_VARIABLE, value)
  connected = []
  monkeypatch.setattr(distributed, "_connect", connected.append)
  distributed.initialise(default_config().distributed)
  assert bool(connected) == expected


# What is run on the machines.


def test_a_job_outlives_its_connection_is_started_once_and_tells_its_status(tmp_path):
  home = tmp_path / "home of"
  (home / "wd_plasticity/code").mkdir(parents=True)
  (home / "wd_plasticity/venv/bin").mkdir(parents=True)
  python = home / "wd_plasticity/venv/bin/python"
  python.write_text('#!/bin/bash\necho "$A"; printf "%s\\n" "$@"\n'
                    'while [ ! -e "$HOME/go" ]; do sleep 0.05; done; exit 7\n')
  python.chmod(0o755)
  env = {**os.environ, "HOME": str(home)}
  def ssh(script):
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True,
                          check=True)
    return tpu_vm_scripts.read_poll(done.stdout)
  start = tpu_vm_scripts.start("j.0+a", ["-m", _HOSTILE], {"A": _HOSTILE})
  assert ssh(tpu_vm_scripts.poll("j.0+a", 0)) == (b"", ["lost"])
  ssh(start)
  assert ssh(tpu_vm_scripts.poll("j.0+a", 0))[1] == ["running"]
  ssh(start)  # as by a try whose answer was lost
  (home / "go").touch()
  assert ssh(tpu_vm_scripts.statuses("j.0+a"))[1] == ["7"]
  log, status = ssh(tpu_vm_scripts.poll("j.0+a", 0))
  assert log.decode() == f"{_HOSTILE}\n-m\n{_HOSTILE}\n" and status == ["7"]
  assert ssh(tpu_vm_scripts.poll("j.0+a", 5))[0] == log[5:]


def test_a_job_of_before_a_reboot_is_lost_and_what_is_left_of_one_can_be_ended(tmp_path):
  (tmp_path / "wd_plasticity/code").mkdir(parents=True)
  (tmp_path / "wd_plasticity/venv/bin").mkdir(parents=True)
  python = tmp_path / "wd_plasticity/venv/bin/python"
  python.write_text("#!/bin/bash\ntail -f /dev/null\n")
  python.chmod(0o755)
  env = {**os.environ, "HOME": str(tmp_path)}
  def ssh(script):
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    return tpu_vm_scripts.read_poll(done.stdout)[1]
  ssh(tpu_vm_scripts.start("j", ["-c", "x"], {}))
  folder = tmp_path / "wd_plasticity/jobs/j"
  pid = int((folder / "pid").read_text())
  boot = (folder / "boot").read_text()
  (folder / "boot").write_text("another")
  assert ssh(tpu_vm_scripts.poll("j", 0)) == ["lost"]
  (folder / "boot").write_text(boot)
  assert ssh(tpu_vm_scripts.poll("j", 0)) == ["running"]
  ssh(tpu_vm_scripts.stop("j"))
  assert ssh(tpu_vm_scripts.poll("j", 0)) in (["lost"], ["143"])
  with pytest.raises(ProcessLookupError):
    os.killpg(pid, 0)


# Cloud TPU VMs.


def test_a_study_on_a_slice_runs_in_order_and_leaves_nothing(tpu_vm, fake):
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0,1", "--spot", f"--notes={_HOSTILE}",
                                   "--tag=a b"])
  assert status == 0, text
  evals = ("attention_rank", "overfit", "probe", "finetune")
  assert fake.jobs == [("main", "0"), *((e, "0") for e in evals), ("main", "1"),
                       *((e, "1") for e in evals), ("report",)]
  assert not fake_cloud.resources(fake.folder)
  [create] = fake.calls("create")
  assert create == [
      "gcloud", "compute", "tpus", "queued-resources", "create", "t", "--node-id=t",
      "--runtime-version=v2-alpha-tpuv5-lite", "--accelerator-type=v5litepod-8", "--project=p",
      "--zone=z", "--quiet", "--spot", "--labels=wd-plasticity=t,tag-a-b=yes", create[-1]]
  begun = json.loads(create[-1].removeprefix("--description="))
  assert begun == {"workdir": "/gcs/buck/runs", "revision": cloud.git("rev-parse", "HEAD")}
  about = json.loads((fake.folder / "about").read_text())
  assert about == {"backend": "tpu_vm", "name": "quickstart", "tags": ["a b"], "notes": _HOSTILE,
                   "revision": begun["revision"]}
  [clone] = [c[-1] for c in fake.calls("ssh") if "git clone" in c[-1]]
  assert "git clone --quiet https://example.org/code.git code\n" in clone
  assert "log of -m wd_plasticity.report --workdir=/gcs/buck/runs" in text
  verbs = [c[4] for c in fake.calls("compute")]
  assert verbs[-1] == "delete" and verbs.count("delete") == 1
  assert fake.calls("delete")[0][3:] == [
      "queued-resources", "delete", "t", "--project=p", "--zone=z", "--quiet", "--force"]


@pytest.mark.slow
def test_the_code_is_installed_once_with_the_bucket_mounted(tpu_vm, fake):
  (fake.folder / "job.sh").write_text(_JOB + 'ls > "$FAKE/code"\n')
  status, text = fake.run(tpu_vm, [*_TPU, "--sweep=0", "--noevals", "--noqueued", "--keep"])
  assert status == 0, text
  assert "launch" in (fake.folder / "code").read_text().split()  # the commit, unpacked
  assert (fake.folder / "jobs").read_text().count("|") == 3
  assert [c for c in fake.calls("create") if "--version=v2-alpha-tpuv5-lite" in c]
  assert "these TPU slices exist" in text and "tpu-vm delete t " in text
  assert fake_cloud.resources(fake.folder) == ["t"]
  # The same command goes back to the slice, and finds the job done.
  status, text = fake.run(tpu_vm, [*_TPU, "--sweep=0", "--noevals", "--noqueued"])
  assert status == 0 and "going on with t" in text
  assert len(fake.calls("create")) == 1 and fake.jobs == [("main", "0")]
  assert not fake_cloud.resources(fake.folder)


@pytest.mark.slow
def test_every_machine_runs_a_job_one_the_report_and_dry_run_shows_it(tpu_vm, fake):
  arguments = _changed(_CLONED, ["--accelerator_type=v5litepod-16", "--sweep=0",
                                 f"--notes={_HOSTILE}"])
  status, shown = fake.run(tpu_vm, [*arguments, "--dry_run"])
  assert status == 0 and not fake.calls()
  status, text = fake.run(tpu_vm, arguments)
  assert status == 0, text
  lines = [line.split("|") for line in (fake.folder / "jobs").read_text().splitlines()]
  main = sorted((on, worker) for what, on, worker, _ in lines if "wd_plasticity.main" in what)
  report = [(on, worker) for what, on, worker, _ in lines if "wd_plasticity.report" in what]
  assert main == [("on", "0"), ("on", "1")] and report == [("", "0")]
  # --dry_run has shown exactly these, but for how often the slice and the log are looked at.
  seldom = lambda c: c[4] in ("create", "ssh", "delete") and "wd-log" not in c[-1]
  commands = [shlex.split(part) for part in _commands(shown)]
  assert [c for c in commands if seldom(c)] == [c for c in fake.calls() if seldom(c)]


def test_slices_work_side_by_side_and_the_last_one_makes_the_report(tpu_vm, fake):
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0,1", "--slices=2"])
  assert status == 0, text
  assert fake.jobs[-1] == ("report",) and len(fake.jobs) == 2 * 5 + 1
  for name, members in (("t-0", "0"), ("t-1", "1")):
    scripts = [c[-1] for c in fake.calls("ssh", name) if "run.sh" in c[-1]]
    found = [m for s in scripts for m in "01" if "main --config" in s
             and f"--sweep_index={m}" in s]
    assert found == list(members)
  assert not fake_cloud.resources(fake.folder)


def test_a_preempted_slice_is_made_again_and_goes_on(tpu_vm, fake):
  (fake.folder / "job.sh").write_text(
      _JOB + 'if [ ! -e "$FAKE/again" ]; then touch "$FAKE/again"; tail -f /dev/null; fi\n')
  fake.fault("wd-log", skip=2, do="preempt", name="t")
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0", "--spot", "--noevals"])
  assert status == 0, text
  assert fake.jobs == [("main", "0"), ("main", "0")]
  assert len(fake.calls("create")) == 2 and len(fake.calls("delete")) == 2
  assert "restart 1 of at most 50" in text and not fake_cloud.resources(fake.folder)


def test_a_stopped_job_is_started_again_a_failed_one_stops_only_what_needs_it(tpu_vm, fake):
  (fake.folder / "job.sh").write_text(_JOB + """
case "$*" in
  *main*sweep_index=0) exit 1;;
  *main*sweep_index=1) [ -e "$FAKE/again" ] || { touch "$FAKE/again"; exit 143; };;
  *step=probe*) echo 'error: a mistake' >&2; exit 2;;
esac
""")
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0,1"])
  assert status == 1, text
  assert fake.jobs == [("main", "0"), ("main", "1"), ("main", "1"), ("attention_rank", "1"),
                       ("overfit", "1"), ("probe", "1"), ("finetune", "1"), ("report",)]
  after = text[text.index("not all jobs are done:"):]
  assert "pretraining-wd0-seed0: failed: with status 1" in after
  assert after.count("not run: what it needs has not succeeded") == 4
  assert "probe-wd0.1-seed0: failed: its log says what has to be changed" in after
  assert "error: a mistake" in text and not fake_cloud.resources(fake.folder)


@pytest.mark.slow
def test_restarts_end(tpu_vm, fake):
  (fake.folder / "job.sh").write_text(_JOB + "exit 143\n")
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0", "--noevals", "--max_restarts=1"])
  assert status == 1 and len(fake.jobs) == 2
  assert "after 1 restarts; the same command goes on" in text
  assert not fake_cloud.resources(fake.folder)


def test_broken_connections_and_passing_refusals_are_tried_again(tpu_vm, fake):
  fake.fault("create", times=2, stderr="ERROR: (gcloud.create) RESOURCE_EXHAUSTED: no more "
             "capacity in the zone z; you can try again later")
  fake.fault("scp", stderr="ssh: connect to host: Connection refused")
  fake.fault("install.lock", times=2, stderr="client_loop: send disconnect: Broken pipe")
  fake.fault("setsid", do="lose the answer", stderr="ERROR: timed out")
  fake.fault("wd-log", times=3, stderr="ssh: connect to host: Connection timed out")
  fake.fault("delete", times=2, stderr="ERROR: internal error")
  status, text = fake.run(tpu_vm, [*_TPU, "--sweep=0", "--noevals"])
  assert status == 0, text
  assert "not created yet, trying again: ERROR: (gcloud.create) RESOURCE_EXHAUSTED" in text
  assert fake.jobs == [("main", "0")]  # once, although it was told twice to start
  assert [len(fake.calls(v)) for v in ("create", "scp", "delete")] == [3, 2, 3]


def test_a_slice_whose_creation_lost_its_answer_is_used_and_deleted(tpu_vm, fake):
  fake.fault("create", do="lose the answer", stderr="ERROR: Connection aborted")
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0", "--noevals"])
  assert status == 0 and fake.jobs and not fake_cloud.resources(fake.folder)


@pytest.mark.parametrize("stderr", [
    "ERROR: (gcloud.create) PERMISSION_DENIED: tpu.nodes.create denied on p\n- '@type': x\n  y",
    "ERROR: (gcloud.create) INVALID_ARGUMENT: accelerator type v5litepod-8 is not known",
    "ERROR: (gcloud.create) RESOURCE_EXHAUSTED: Quota limit 'TPU' exceeded. Limit: 0 in zone z"])
def test_a_refusal_that_stays_is_one_sentence(tpu_vm, fake, stderr):
  fake.fault("create", times=9, stderr=stderr)
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0", "--noevals"])
  assert status == 1
  assert f"error: t was not created: {stderr.splitlines()[0]}\n" in text
  assert len(fake.calls("create")) == 1 and "Traceback" not in text


def test_a_failed_installation_deletes_the_slice_or_says_that_it_is_there(tpu_vm, fake):
  fake.fault("install.lock", times=99, stderr="No space left on device")
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0", "--noevals"])
  assert status == 1 and "could not be installed on t: No space left on device" in text
  assert not fake_cloud.resources(fake.folder)
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0", "--noevals", "--nodelete_on_error"])
  assert fake_cloud.resources(fake.folder) == ["t"]
  assert "cost money" in text and shlex.join(
      ["gcloud", "compute", "tpus", "queued-resources", "delete", "t", "--project=p", "--zone=z",
       "--quiet", "--force"]) in text


def test_a_failed_deletion_is_said_with_the_command(tpu_vm, fake):
  fake.fault("delete", times=99, stderr="ERROR: PERMISSION_DENIED: no")
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0", "--noevals"])
  assert fake_cloud.resources(fake.folder) == ["t"]
  assert "could NOT be deleted (ERROR: PERMISSION_DENIED: no)" in text
  assert "queued-resources delete t --project=p --zone=z --quiet --force" in text


def test_an_interrupted_launcher_says_what_exists_and_comes_back(tpu_vm, fake):
  (fake.folder / "job.sh").write_text(
      _JOB + 'while [ ! -e "$FAKE/go" ]; do sleep 0.05; done; echo finished\n')
  arguments = _changed(_CLONED, ["--sweep=0", "--noevals", "--workdir=gs://buck/runs/{time}"])
  for stop in (signal.SIGINT, signal.SIGTERM):
    process = fake.start(tpu_vm, arguments)
    _wait_for("log of", process)
    process.send_signal(stop)
    assert process.wait() == 130
    text = process.said()
    assert "these TPU slices exist" in text and "delete t " in text and "goes on by itself" in text
  second = int(time.time())
  until(lambda: int(time.time()) > second, "another {time}")
  (fake.folder / "go").touch()
  status, text = fake.run(tpu_vm, arguments)
  assert status == 0 and "finished" in text, text
  assert fake.jobs == [("main", "0")] and len(fake.calls("create")) == 1
  assert not fake_cloud.resources(fake.folder)


def test_a_slice_of_somebody_else_is_neither_used_nor_deleted(tpu_vm, fake):
  status, _ = fake.run(tpu_vm, [*_CLONED, "--sweep=0", "--noevals", "--keep"])
  path = fake.folder / "tpus" / "t" / "tpu.json"
  tpu = json.loads(path.read_text())
  tpu["node"]["labels"] = {"owner": "another"}
  path.write_text(json.dumps(tpu))
  for more in ((), ("--delete",)):
    status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0", "--noevals", *more])
    assert status == 2 and "not of this launch" in text and not fake.calls("delete")


@pytest.mark.slow
def test_delete_removes_every_slice_of_the_launch(tpu_vm, fake):
  status, text = fake.run(tpu_vm, [*_CLONED, "--sweep=0-2", "--noevals", "--slices=3", "--keep"])
  assert status == 0 and fake_cloud.resources(fake.folder) == ["t-0", "t-1", "t-2"]
  arguments = ["--project=p", "--zone=z", "--tpu_name=t", "--delete", "--poll_seconds=0.02"]
  status, text = fake.run(tpu_vm, [*arguments, "--dry_run"])
  assert status == 0 and text.count("$ gcloud compute tpus queued-resources delete t-") == 3
  assert len(fake_cloud.resources(fake.folder)) == 3
  status, text = fake.run(tpu_vm, arguments)
  assert status == 0 and not fake_cloud.resources(fake.folder)


def _commands(text):
  """The commands that --dry_run shows, some of several lines."""
  found = []
  for line in text.splitlines():
    if line.startswith("$ "):
      found.append(line[2:])
    elif found and _is_open(found[-1]):
      found[-1] += "\n" + line
  return found


def _is_open(text):
  try:
    shlex.split(text)
  except ValueError:
    return True
  return False


@pytest.mark.parametrize("change, words", [
    (["--workdir=/disk/x"], "would be deleted with the slice"),
    (["--workdir=/disk/x", "--keep", "--slices=2"], "another folder on every machine"),
    (["--workdir=gs://Bad_/x"], "does not name a folder in a bucket"),
    (["--accelerator_type=v9-8"], "--runtime_version is needed"),
    (["--tpu_name=T_"], "lower-case"),
    (["--config=/tmp/nothing.py"], "there is no config file"),
    (["--revision=main"], "--repository, which is missing"),
    (["--zone="], "--zone=ZONE")])
def test_mistakes_are_one_sentence(tpu_vm, fake, change, words):
  status, text = fake.run(tpu_vm, _changed(_TPU, change))
  assert status == 2 and words in text and text.count("error:") == 1 and not fake.calls()


def test_without_gcloud_it_is_said(tpu_vm, fake):
  (fake.folder / "bin/gcloud").unlink()
  status, text = fake.run(tpu_vm, [*_TPU])
  assert status == 2 and "there is no program gcloud" in text


# xpk.


def test_a_study_on_a_cluster_runs_in_order(xpk, fake):
  arguments = [*_XPK, "--sweep=0,1", f"--notes={_HOSTILE}", "--max_restarts=3", "--priority=low",
               "--create_flag=--spot"]
  status, shown = fake.run(xpk, [*arguments, "--dry_run"])
  assert status == 0 and not fake.calls()
  status, text = fake.run(xpk, arguments)
  assert status == 0, text
  commands = [shlex.split(part) for part in _commands(shown)]
  assert sorted(c for c in commands if c[2] == "create") == sorted(fake.calls("create"))
  evals = ("attention_rank", "overfit", "probe", "finetune")
  assert fake.jobs[:2] == [("main", "0"), ("main", "1")] and fake.jobs[-1] == ("report",)
  assert sorted(fake.jobs[2:-1]) == sorted((e, m) for e in evals for m in "01")
  create = fake.calls("create")[0]
  assert create[:-1] == [
      "xpk", "workload", "create", "--workload=w-000", "--cluster=c", "--tpu-type=v5litepod-8",
      "--num-slices=1", "--docker-image=img", "--storage=disk", "--priority=low",
      "--max-restarts=3", "--spot"]
  command = create[-1]
  # One line, without what YAML or Kubernetes would read.
  assert "\n" not in command and '"' not in command and "$(" not in command
  assert "exec python -m wd_plasticity.main" in command
  assert json.loads((fake.folder / "about").read_text())["notes"] == _HOSTILE


@pytest.mark.slow
def test_a_failed_workload_stops_only_what_needs_it_and_is_made_again(xpk, fake):
  (fake.folder / "job.sh").write_text(_JOB + 'case "$*" in *main*sweep_index=0) '
                                      '[ -e "$FAKE/mended" ] || exit 1;; esac\n')
  status, text = fake.run(xpk, [*_XPK, "--sweep=0,1"])
  assert status == 1 and len(fake.jobs) == 2 + 4 + 1
  assert text.count("not run, what it needs has not succeeded") == 8  # said, and at the end
  assert "pretraining-wd0-seed0: failed; its log is" in text
  (fake.folder / "mended").touch()
  (fake.folder / "jobs").unlink()
  status, text = fake.run(xpk, [*_XPK, "--sweep=0,1"])
  assert status == 0, text
  assert fake.jobs[0] == ("main", "0") and fake.jobs[-1] == ("report",) and len(fake.jobs) == 6
  assert ["xpk", "workload", "delete", "--cluster=c", "--workload=w-000", "--force"
          ] in fake.calls("delete")


def test_passing_problems_of_xpk_are_tried_again_and_lasting_ones_said(xpk, fake):
  fake.fault("create", "w-000", times=2, stderr="Unable to connect: connection refused")
  fake.fault("create", "w-001", do="lose the answer", stderr="error: timed out")
  fake.fault("list", "w-001", skip=2, times=3, stderr="error: the server is unavailable")
  fake.fault("create", "w-002", times=9, stderr="[XPK] tpu_type not available on cluster")
  status, text = fake.run(xpk, [*_XPK, "--sweep=0-2", "--noevals"])
  assert status == 1 and sorted(fake.jobs) == [("main", "0"), ("main", "1")]
  assert "not created: [XPK] tpu_type not available on cluster" in text
  assert text.count("pretraining-wd0-seed0: done") == 1


def test_an_interrupted_xpk_launcher_says_what_runs_and_goes_on(xpk, fake):
  (fake.folder / "job.sh").write_text(
      _JOB + 'while [ ! -e "$FAKE/go" ]; do sleep 0.05; done\n')
  process = fake.start(xpk, [*_XPK, "--sweep=0", "--noevals"])
  _wait_for("submitted as w-000", process)
  process.send_signal(signal.SIGTERM)
  assert process.wait() == 130
  text = process.said()
  assert "goes on (w-000)" in text
  assert "xpk workload delete --cluster=c --filter-by-job=w- --force" in text
  (fake.folder / "go").touch()
  status, text = fake.run(xpk, [*_XPK, "--sweep=0", "--noevals"])
  assert status == 0 and len(fake.calls("create", "--workload=w-000")) == 1, text


def test_delete_removes_the_workloads(xpk, fake):
  assert fake.run(xpk, [*_XPK, "--sweep=0", "--noevals"])[0] == 0
  assert list((fake.folder / "workloads").iterdir())
  status, text = fake.run(xpk, ["--cluster=c", "--workloads=w", "--delete"])
  assert status == 0 and not list((fake.folder / "workloads").iterdir())
  fake.fault("delete", times=9, stderr="error: forbidden")
  status, text = fake.run(xpk, ["--cluster=c", "--workloads=w", "--delete"])
  assert status == 2 and "could NOT be deleted (error: forbidden)" in text


def test_names_of_workloads_follow_from_the_launch(xpk, fake):
  arguments = [a for a in _XPK if not a.startswith("--workloads")] + [
      "--noevals", "--sweep=0", "--dry_run"]
  names = []
  for more in ((), (), ("--config.optim.learning_rate=0.5",)):
    status, text = fake.run(xpk, [*arguments, *more])
    names.append(text.partition("--workload=")[2].split()[0])
    assert status == 0 and len(names[-1]) <= 40
  assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("change, words", [
    (["--device_type=h100-80gb-8"], "give one of --tpu_type"),
    (["--docker_image="], "give one of --docker_image"),
    (["--workdir=gs://buck/x"], "is not a folder"),
    (["--cluster="], "--cluster=CLUSTER"),
    (["--workloads=W"], "lower-case"),
    (["--priority=urgent"], "priority")])
def test_mistakes_for_xpk_are_one_sentence(xpk, fake, change, words):
  status, text = fake.run(xpk, _changed(_XPK, change))
  assert status == 2 and words in text and text.count("error:") == 1 and not fake.calls()


def test_without_xmanager_its_launcher_says_what_to_install():
  if importlib.util.find_spec("xmanager"):
    pytest.skip("XManager is installed")
  said = programs.run("launch.xm", expect=2)
  assert "Traceback" not in said
  assert "error: XManager is not installed here; `pip install -e .[xmanager]`" in said


def test_what_is_installed_is_a_release_and_words_are_quoted():
  from launch import tpu_vm_scripts as scripts
  script = scripts.install(scripts.Source("a" * 40, "https://x/$(touch ran); y"), "bucket", "")
  assert re.search(r"curl -fsSL https://github.com/astral-sh/uv/releases/download/\d+\.\d+\.\d+/uv-"
                   r"installer.sh \| sh", script)
  assert "git clone --quiet 'https://x/$(touch ran); y' code" in script
  started = scripts.start("job", ["-m", "x", "$(touch ran)"], {"A": "$(touch ran)"})
  assert "'$(touch ran)'" in started and 'A=\'$(touch ran)\'' in started
