"""One TPU slice through gcloud: created, waited for, reached and deleted."""

import dataclasses
import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch import shell
from wd_plasticity.errors import UserError

# States of a slice, from those of queued resources and of TPU VMs.
ABSENT, WAITING, READY, LOST, FAILED = "absent", "waiting", "ready", "lost", "failed"
_STATES = {
    "ACTIVE": READY, "READY": READY,
    "SUSPENDING": LOST, "SUSPENDED": LOST, "PREEMPTED": LOST, "TERMINATED": LOST,
    "STOPPING": LOST, "STOPPED": LOST, "DELETING": LOST, "HIDING": LOST, "HIDDEN": LOST,
    "FAILED": FAILED}
# What passes by itself: no capacity now, too many requests, a service or network that is down.
_TRANSIENT = re.compile(
    r"RESOURCE_EXHAUSTED|\b429\b|\b50[0234]\b|no more capacity|try again|UNAVAILABLE|INTERNAL:"
    r"|internal error|timed out|time-?out|DEADLINE_EXCEEDED|ABORTED|connection (reset|refused)"
    r"|Connection aborted|Unable to find the server|temporar", re.IGNORECASE)
_NEVER = re.compile(r"Limit: 0\b|ALREADY_EXISTS")  # no quota at all is not for now only
_ABSENT = re.compile(r"NOT_FOUND|was not found|could not be found|does not exist", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Request:
  """What all slices of a launch have in common.

  Attributes:
    project, zone: of Google Cloud.
    accelerator_type: such as v5litepod-8.
    runtime_version: of the machines, such as v2-alpha-tpuv5-lite.
    queued: created by queued resources.
    spot: cheaper, and taken away at any time.
    labels: kept with the slice; the one of the launch tells it from those of others.
    description: kept with the slice.
    create_flags: further ones of `gcloud ... create`.
  """
  project: str
  zone: str
  accelerator_type: str
  runtime_version: str
  queued: bool
  spot: bool
  labels: Mapping[str, str]
  description: str
  create_flags: tuple[str, ...] = ()

  @property
  def owner(self) -> str:
    return self.labels["wd-plasticity"]


def is_transient(text: str) -> bool:
  """Whether an error of gcloud can pass by itself."""
  return bool(_TRANSIENT.search(text or "") and not _NEVER.search(text))


class Slice:
  """One TPU slice.

  Args:
    name: of the TPU VM and of its queued resource.
    request: what it is to be.
    commands: that run gcloud.
    say: shows a line.
    poll_seconds: between looks at its state.

  Attributes:
    may_exist: whether it can exist, as far as is known. True from before it is created
      until it is known to be deleted.
    hosts: its machines, once it is ready.
  """

  def __init__(self, name: str, request: Request, commands: shell.Commands,
               say: Callable[[str], None], poll_seconds: float = 20.0):
    self.name = name
    self.may_exist = False
    self.hosts = 1
    self._request = request
    self._commands = commands
    self._say = say
    self._poll_seconds = poll_seconds

  # Commands.

  def _where(self) -> list[str]:
    return [f"--project={self._request.project}", f"--zone={self._request.zone}", "--quiet"]

  def create_command(self) -> list[str]:
    r = self._request
    if r.queued:
      kind = ["queued-resources", "create", self.name, f"--node-id={self.name}",
              f"--runtime-version={r.runtime_version}"]
    else:
      kind = ["tpu-vm", "create", self.name, f"--version={r.runtime_version}"]
    return ["gcloud", "compute", "tpus", *kind, f"--accelerator-type={r.accelerator_type}",
            *self._where(), *(["--spot"] if r.spot else []),
            "--labels=" + ",".join(f"{k}={v}" for k, v in r.labels.items()),
            f"--description={r.description}", *r.create_flags]

  def describe_command(self, queued: bool) -> list[str]:
    kind = "queued-resources" if queued else "tpu-vm"
    return ["gcloud", "compute", "tpus", kind, "describe", self.name, *self._where(),
            "--format=json"]

  def delete_command(self) -> list[str]:
    if self._request.queued:
      return ["gcloud", "compute", "tpus", "queued-resources", "delete", self.name,
              *self._where(), "--force"]
    return ["gcloud", "compute", "tpus", "tpu-vm", "delete", self.name, *self._where()]

  def ssh_command(self, script: str, worker: str) -> list[str]:
    return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name, *self._where(),
            f"--worker={worker}", f"--command={script}"]

  def copy_command(self, path: Path) -> list[str]:
    return ["gcloud", "compute", "tpus", "tpu-vm", "scp", str(path), f"{self.name}:{path.name}",
            *self._where(), "--worker=all"]

  # What they do.

  def state(self) -> tuple[str, str]:
    """Its state, and what the service says about it.

    Raises:
      UserError: gcloud cannot tell, or a slice of this name belongs to something else.
    """
    state, found = self._look(self._request.queued)
    node = found
    if self._request.queued and state == READY:
      # A preempted TPU VM can be in a resource that is still called active.
      state, node = self._look(False)
      state = WAITING if state == ABSENT else state
    elif self._request.queued and found:
      specs = found.get("tpu", {}).get("nodeSpec") or [{}]
      node = specs[0].get("node", {})
    if node:
      self._check_owner(node)
    if state == READY:
      self.hosts = len(node.get("networkEndpoints") or [None])
    self.may_exist = state != ABSENT
    return state, self._words(found)

  def description(self) -> str | None:
    """What its maker has described it with; None when there is no such slice."""
    _, found = self._look(self._request.queued)
    if not found:
      return None
    specs = found.get("tpu", {}).get("nodeSpec") or [{}]
    node = specs[0].get("node", {}) if self._request.queued else found
    self._check_owner(node)
    return node.get("description", "")

  def _look(self, queued: bool) -> tuple[str, dict]:
    done = self._commands.run(self.describe_command(queued), retries=5, text="", check=False,
                              retry_if=is_transient)
    if done.returncode:
      if _ABSENT.search(done.stderr):
        return ABSENT, {}
      raise UserError(f"gcloud cannot describe {self.name}: {shell.reason(done.stderr)}")
    try:
      found = json.loads(done.stdout)
      name = found["state"]["state"] if queued else found["state"]
    except (ValueError, KeyError, TypeError):
      raise UserError(f"gcloud describes {self.name} in a way that is not understood: "
                      f"{shell.last_line(done.stdout)[:200]}") from None
    return _STATES.get(name, WAITING), found

  def _check_owner(self, node: Mapping) -> None:
    r = self._request
    owner = (node.get("labels") or {}).get("wd-plasticity")
    if owner != r.owner:
      self.may_exist = False  # not one of ours
      raise UserError(f"there is already a TPU {self.name} in {r.zone} that is not of this launch; "
                      "give another --tpu_name.")
    kind = node.get("acceleratorType", r.accelerator_type)
    if r.accelerator_type and kind.rsplit("/", 1)[-1] != r.accelerator_type:
      raise UserError(f"{self.name} exists with --accelerator_type={kind}; give the same, another "
                      "--tpu_name, or delete it first by --delete.")

  @staticmethod
  def _words(found: Mapping) -> str:
    state = found.get("state", "")
    if isinstance(state, str):
      return state or "no such slice"
    error = (state.get("failedData") or {}).get("error") or {}
    return " ".join(filter(None, [state.get("state", ""), error.get("message", "")]))

  def create(self, retries: int) -> None:
    """Asks for the slice; one that is there already is taken.

    Raises:
      UserError: it is refused.
    """
    self.may_exist = True  # from now on, whatever happens
    done = self._commands.run(self.create_command(), retries=retries, text="", check=False,
                              retry_if=self._worth_another_try)
    if done.returncode == 0:
      return
    if self.state()[0] in (READY, WAITING):  # made by a try whose answer was lost
      return
    raise UserError(f"{self.name} was not created: {shell.reason(done.stderr)}")

  def _worth_another_try(self, stderr: str) -> bool:
    worth = is_transient(stderr)
    if worth:
      self._say(f"not created yet, trying again: {shell.reason(stderr)}")
    return worth

  def wait(self) -> tuple[str, str]:
    """Waits until the slice is ready, gone or has failed; returns what `state` does.

    Raises:
      UserError: as of `state`.
    """
    shown = None
    while True:
      state, words = self.state()
      if words != shown:
        self._say(f"{state}: {words}")
        shown = words
      if state != WAITING:
        return state, words
      time.sleep(self._poll_seconds)

  def ssh(self, script: str, worker: str = "all", retries: int = 0) -> subprocess.CompletedProcess:
    """Runs a script on machines of the slice; its status is not 0 when one of them failed."""
    return self._commands.run(
        self.ssh_command(script, worker), retries=retries, text="", check=False,
        retry_if=lambda text: True)

  def copy(self, path: Path, retries: int = 0) -> subprocess.CompletedProcess:
    """Copies a file to the home folders of all machines."""
    return self._commands.run(self.copy_command(path), retries=retries, text="", check=False)

  def delete(self) -> bool:
    """Deletes the slice if there is one; returns whether it is gone, and says so if not."""
    done = self._commands.run(self.delete_command(), retries=3, text="", check=False,
                              retry_if=lambda text: not _ABSENT.search(text))
    if done.returncode and not _ABSENT.search(done.stderr):
      self._say(f"could NOT be deleted ({shell.reason(done.stderr)}) and costs money while it "
                f"exists; delete it by\n  {shlex.join(self.delete_command())}")
      return False
    self.may_exist = False
    self._say("deleted")
    return True


def exists_in_words(slices: Sequence[Slice]) -> str:
  """Which slices may exist, and the commands that delete them."""
  there = [s for s in slices if s.may_exist]
  if not there:
    return "no TPU slice of this launch exists."
  return "\n".join([
      "these TPU slices exist, or are being created, and cost money until they are deleted:",
      *(f"  {s.name}: {shlex.join(s.delete_command())}" for s in there)])
