"""A SLURM of one machine, in a folder of its own, for tests and for trying launch.slurm.

  python tests/slurm_cluster.py      starts one and says how to use it, until Ctrl-C

It needs root and Debian's packages slurm-wlm and munge. Nothing outside its folder is
written or read: own configuration, MUNGE key and socket, own ports, no accounting.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator

from waiting import until

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
_PATH = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"

# The node is named localhost because JAX finds its coordinator by the name of the node.
# Jobs that are queued again wait until their credential has expired, by default 2 minutes.
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=30
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def obstacle() -> str:
  """Why there can be no SLURM here; '' when there can."""
  missing = [p for p in _PROGRAMS if shutil.which(p, path=_PATH) is None]
  if missing:
    return f"SLURM is not installed (no {missing[0]}); apt-get install slurm-wlm munge"
  return "" if os.geteuid() == 0 else "slurmd has to be started as root"


class Cluster:
  """A running SLURM; `environment` is what its commands need to see."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}

  def run(self, *command: str, check: bool = True) -> str:
    """Runs a command of SLURM; returns what it printed."""
    done = subprocess.run(command, env=os.environ | self.environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if check and done.returncode:
      raise RuntimeError(f"{' '.join(command)}: {done.stdout}")
    return done.stdout.strip()

  def queue(self) -> dict[str, str]:
    """State of every job that has not ended, by id: {'12_0': 'RUNNING'}."""
    said = self.run("squeue", "--noheader", "--array", "--format=%i %T")
    return dict(line.split() for line in said.splitlines())


@contextlib.contextmanager
def start() -> Iterator[Cluster]:
  """Starts munged, slurmctld and slurmd; ends them, and all jobs, in any case."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets' paths are short
  started: list[subprocess.Popen] = []
  cluster = Cluster(folder)
  try:
    _configure(folder)
    munge = folder / "munge"
    _start(started, cluster, "munged", "--foreground", "--force", f"--key-file={munge}/key",
           f"--socket={munge}/socket", f"--pid-file={munge}/pid", f"--log-file={munge}/log",
           f"--seed-file={munge}/seed")
    until((munge / "socket").exists, "the socket of munged", started[-1])
    _start(started, cluster, "slurmctld", "-D", "-c")
    _start(started, cluster, "slurmd", "-D", "-N", "localhost")
    until(lambda: "idle" in cluster.run("sinfo", "--noheader", "--format=%T", check=False),
          "an idle node", started[-1])
    yield cluster
  finally:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave it behind
    _stop(started, cluster)
    shutil.rmtree(folder, ignore_errors=True)
    signal.signal(signal.SIGINT, before)


def _configure(folder: pathlib.Path) -> None:
  folder.chmod(0o755)
  for name in ("state", "spool", "munge"):
    (folder / name).mkdir()
  key = folder / "munge" / "key"
  key.touch(mode=0o600)
  key.write_bytes(secrets.token_bytes(1024))
  key.chmod(0o400)
  with socket.socket() as a, socket.socket() as b:
    a.bind(("127.0.0.1", 0))
    b.bind(("127.0.0.1", 0))
    ports = a.getsockname()[1], b.getsockname()[1]
  (folder / "slurm.conf").write_text(_CONFIG.format(
      folder=folder, host=socket.gethostname().split(".")[0], controller_port=ports[0],
      node_port=ports[1]))


def _start(started: list, cluster: Cluster, *command: str) -> None:
  with open(cluster.folder / f"{command[0]}.out", "wb") as f:
    started.append(subprocess.Popen(command, env=os.environ | cluster.environment, stdout=f,
                                    stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                    start_new_session=True))


def _stop(started: list[subprocess.Popen], cluster: Cluster) -> None:
  if len(started) == len(("munged", "slurmctld", "slurmd")):
    with contextlib.suppress(Exception):  # what can still be stopped below is
      cluster.run("scancel", f"--user={os.getuid()}", check=False)
      until(lambda: not cluster.queue(), "the end of all jobs", started[-1])
  for process in reversed(started):
    process.send_signal(signal.SIGTERM)
    try:
      process.wait(10)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


if __name__ == "__main__":
  if obstacle():
    raise SystemExit(f"error: {obstacle()}.")
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  with contextlib.suppress(KeyboardInterrupt), start() as running:
    print(f"export SLURM_CONF={running.environment['SLURM_CONF']}  # until Ctrl-C", flush=True)
    signal.pause()
