"""gcloud and xpk for tests: they record how they are called and keep their state in a folder.

A fake TPU VM runs the scripts that it is sent with bash, in a home folder of its own. Run as
`python fake_cloud.py PROGRAM FOLDER ARGUMENTS...`; `install` puts both on a PATH. Faults are
lines of FOLDER/faults.jsonl: {"contains": [...], "skip": 0, "times": 1, "stderr": "...", "do": ...}
"""

import json
import os
import pathlib
import signal
import sys

_WORKER_PROGRAMS = {
    # A job is FOLDER/job.sh with the arguments of the interpreter.
    "uv": 'if [ "$1" = venv ]; then mkdir -p venv/bin; printf \'#!/bin/bash\\nexec bash '
          '"$FAKE/job.sh" "$@"\\n\' > venv/bin/python; chmod +x venv/bin/python; fi',
    "gcsfuse": 'for last; do :; done; touch "$FAKE/mounted$(echo "$HOME$last" | tr / _)"',
    "mountpoint": '[ -e "$FAKE/mounted$(echo "$HOME$2" | tr / _)" ]',
    "git": 'if [ "$1" = clone ]; then mkdir code; fi',
    "sudo": ":",
}


def install(folder: pathlib.Path) -> dict[str, str]:
  """Makes the programs; returns variables under which nothing but them can be reached."""
  programs = folder / "bin"
  programs.mkdir(parents=True)
  for name in ("gcloud", "xpk"):
    _write_program(programs / name, f'exec "{sys.executable}" -I -S "{__file__}" {name} '
                   f'"{folder}" "$@"')
  for name in ("curl", "apt-get", "kubectl", "docker"):
    _write_program(programs / name, f'echo "{name} must not be called" >&2; exit 99')
  import shutil
  for name in ("git", "gzip"):  # and no others: a gcloud of this machine cannot be reached
    (programs / name).symlink_to(shutil.which(name))
  return {**os.environ, "PATH": str(programs), "HOME": str(folder / "home"),
          "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}


def _write_program(path: pathlib.Path, text: str) -> None:
  path.write_text(f"#!/bin/bash\n{text}\n")
  path.chmod(0o755)


def calls(folder: pathlib.Path, *words: str) -> list[list[str]]:
  """The recorded calls whose arguments have all of these words, in order."""
  path = folder / "calls.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [c for c in map(json.loads, lines) if set(words) <= set(c)]


def add_fault(folder: pathlib.Path, *contains: str, **fields) -> None:
  """Has calls with these texts in their arguments go wrong."""
  with open(folder / "faults.jsonl", "a", encoding="utf-8") as f:
    fault = {"contains": contains, "skip": 0, "times": 1, "stderr": "", **fields}
    f.write(json.dumps(fault) + "\n")


def resources(folder: pathlib.Path) -> list[str]:
  return sorted(p.name for p in (folder / "tpus").glob("*"))


class _Cloud:
  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def fault(self, arguments):
    """The fault that this call meets, counted down."""
    path = self.folder / "faults.jsonl"
    faults = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    text = " ".join(arguments)
    for fault in faults:
      if all(c in text for c in fault["contains"]) and fault["times"]:
        if fault["skip"]:
          fault["skip"] -= 1
          found = None
        else:
          fault["times"] -= 1
          found = fault
        path.write_text("".join(json.dumps(f) + "\n" for f in faults))
        return found
    return None

  # gcloud.

  def gcloud(self, arguments):
    assert arguments[:2] == ["compute", "tpus"], arguments
    assert "--quiet" in arguments and "--project=p" in arguments and "--zone=z" in arguments
    kind, verb, *rest = arguments[2:]
    flags = {a.partition("=")[0]: a.partition("=")[2] for a in rest if a.startswith("--")}
    names = [a for a in rest if not a.startswith("--")]
    if verb == "scp":
      return self.copy(names[0], *names[1].split(":"), flags)
    place = self.folder / "tpus" / names[0]
    if verb == "create":
      return self.create(kind, place, flags)
    if not place.exists() or (kind == "queued-resources" and not self.read(place)["queued"]):
      return _fail(f"ERROR: (gcloud.{verb}) NOT_FOUND: Resource '{names[0]}' was not found")
    if verb == "describe":
      print(json.dumps(self.describe(kind, place)))
    elif verb == "delete":
      import shutil  # only here and there: it takes longer than all else
      self.end_jobs(place)
      shutil.rmtree(place)
    elif verb == "ssh":
      return self.ssh(place, flags)
    else:
      raise AssertionError(verb)
    return 0

  def read(self, place):
    return json.loads((place / "tpu.json").read_text())

  def create(self, kind, place, flags):
    if place.exists():
      return _fail("ERROR: (gcloud.create) ALREADY_EXISTS: Resource already exists")
    queued = kind == "queued-resources"
    assert ("--runtime-version" if queued else "--version") in flags
    assert not queued or flags["--node-id"] == place.name
    kind = flags["--accelerator-type"]
    hosts = max(1, int(kind.rpartition("-")[2]) // 8)
    place.mkdir(parents=True)
    labels = dict(pair.split("=") for pair in flags["--labels"].split(","))
    (place / "tpu.json").write_text(json.dumps({
        "queued": queued, "hosts": hosts, "looks": 0, "state": "READY",
        "node": {"labels": labels, "description": flags["--description"],
                 "acceleratorType": kind}}))
    for i in range(hosts):
      (place / f"worker{i}").mkdir()
    return 0

  def describe(self, kind, place):
    tpu = self.read(place)
    tpu["looks"] += 1
    (place / "tpu.json").write_text(json.dumps(tpu))
    ready = tpu["looks"] > 2  # it takes a while
    state = tpu["state"] if tpu["state"] != "READY" or ready else "CREATING"
    node = {**tpu["node"], "state": state,
            "networkEndpoints": [{"ipAddress": f"10.0.0.{i}"} for i in range(tpu["hosts"])]}
    if kind == "tpu-vm":
      return node
    names = {"READY": "ACTIVE", "CREATING": "WAITING_FOR_RESOURCES", "PREEMPTED": "SUSPENDED"}
    return {"state": {"state": names[state]},
            "tpu": {"nodeSpec": [{"nodeId": place.name, "node": tpu["node"]}]}}

  def workers(self, place, flags):
    found = sorted(place.glob("worker*"))
    return found if flags["--worker"] == "all" else [found[int(flags["--worker"])]]

  def copy(self, source, name, target, flags):
    import shutil
    for worker in self.workers(self.folder / "tpus" / name, flags):
      shutil.copy(source, worker / target)
    return 0

  def ssh(self, place, flags):
    if self.read(place)["state"] != "READY":
      return _fail("ERROR: (gcloud.ssh) the TPU is in state PREEMPTED", 255)
    programs = self.folder / "worker_bin"
    if not programs.exists():
      programs.mkdir()
      for name, text in _WORKER_PROGRAMS.items():
        _write_program(programs / name, text)
    status = 0
    for worker in self.workers(place, flags):
      os.chdir(worker)
      env = {"HOME": str(worker), "PATH": f"{programs}:{self.folder}/bin:/usr/bin:/bin",
             "FAKE": str(self.folder), "WORKER": worker.name[6:]}
      done = os.spawnve(os.P_WAIT, "/bin/bash", ["bash", "-c", flags["--command"]], env)
      status = status or done
    return status

  def preempt(self, name):
    import shutil
    place = self.folder / "tpus" / name
    self.end_jobs(place)
    tpu = self.read(place)
    (place / "tpu.json").write_text(json.dumps({**tpu, "state": "PREEMPTED"}))
    for worker in place.glob("worker*"):
      shutil.rmtree(worker)

  def end_jobs(self, place):
    for path in place.glob("worker*/wd_plasticity/jobs/*/pid"):
      try:
        os.killpg(int(path.read_text()), signal.SIGKILL)
      except (OSError, ValueError):
        pass

  # xpk.

  def xpk(self, arguments):
    assert arguments[0] == "workload" and "--cluster=c" in arguments, arguments
    flags = {a.partition("=")[0]: a.partition("=")[2] for a in arguments if a.startswith("--")}
    place = self.folder / "workloads"
    place.mkdir(exist_ok=True)
    if arguments[1] == "create":
      path = place / flags["--workload"]
      if path.exists():
        input()  # it asks whether to replace the workload
      path.write_text(flags["--command"])
      return 0
    if arguments[1] == "delete":
      assert "--force" in flags
      for path in place.glob("*"):
        name = path.name.removesuffix(".ended")
        if name == flags.get("--workload") or flags.get("--filter-by-job", "?") in name:
          path.unlink()
      return 0
    assert flags["--timeout"] == "0"
    path = place / flags["--wait-for-job-completion"]
    if not path.exists():
      print(f"[XPK] Workload named {path.name} does not exist.")
      return 1
    # Run when first looked at, over when looked at again; its status decides.
    ended = path.with_name(f"{path.name}.ended")
    if not ended.exists():
      done = os.spawnve(os.P_WAIT, "/bin/bash", ["bash", "-c", path.read_text()], {
          "PATH": f"{self.folder}/pod_bin:/usr/bin:/bin", "FAKE": str(self.folder)})
      ended.with_suffix(".new").write_text(str(done))
      ended.with_suffix(".new").rename(ended)
      return 124
    return 125 if int(ended.read_text()) else 0


def _fail(text, status=1):
  print(text, file=sys.stderr)
  return status


def _main(program, folder, *arguments):
  folder = pathlib.Path(folder)
  with open(folder / "calls.jsonl", "a", encoding="utf-8") as f:
    f.write(json.dumps([program, *arguments]) + "\n")
  cloud = _Cloud(folder)
  fault = cloud.fault(arguments)
  if fault and fault.get("do") == "preempt":
    cloud.preempt(fault["name"])
    fault = None
  if fault and fault.get("do") == "lose the answer":
    getattr(cloud, program)(list(arguments))
  if fault:
    return _fail(fault["stderr"])
  return getattr(cloud, program)(list(arguments))


if __name__ == "__main__":
  sys.exit(_main(*sys.argv[1:]))
