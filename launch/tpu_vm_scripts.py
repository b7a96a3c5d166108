"""What is run on the machines of a TPU slice, as shell scripts.

Everything lies in ~/wd_plasticity: code/, venv/, and of every job jobs/NAME/ with run.sh, log,
pid, boot and, when it has ended, status. The scripts can be run again at any time: an ssh
connection that breaks leaves nothing half done.
"""

import base64
import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from launch.cloud import MOUNTS

HOME = '"$HOME/wd_plasticity"'
RUNNING, LOST = "running", "lost"
BYTES_PER_POLL = 200_000
# A release, which does not change, and not whatever is the newest: it is run on the machines.
_UV = "https://github.com/astral-sh/uv/releases/download/0.13.8/uv-installer.sh"

# A process id of before a reboot means nothing.
_ALIVE = """\
alive() {
  [ "$(cat boot 2>/dev/null)" = "$(cat /proc/sys/kernel/random/boot_id)" ] &&
    kill -0 "$(cat pid 2>/dev/null)" 2>/dev/null
}"""


@dataclasses.dataclass(frozen=True)
class Source:
  """The code that is run: a commit, from a repository or from an archive that was copied.

  Attributes:
    revision: the commit.
    repository: its address; empty for an archive.
  """
  revision: str
  repository: str = ""

  @property
  def archive(self) -> str:
    """Name of the archive in the home folder of the machines."""
    return f"wd_plasticity-{self.revision}.tar.gz"


def install(source: Source, bucket: str, setup: str) -> str:
  """Mounts the bucket and installs the code; does at once what was done before."""
  if source.repository:
    fetch = (f"git clone --quiet {shlex.quote(source.repository)} code\n"
             f"git -C code checkout --quiet --detach {shlex.quote(source.revision)}")
  else:
    fetch = f'mkdir code\ntar -xzf "$HOME/{source.archive}" -C code'
  lines = [
      "set -euo pipefail", f"mkdir -p {HOME}", f"cd {HOME}",
      "exec 9> install.lock", "flock 9  # of a try that goes on although its connection broke"]
  if setup:
    lines.append(f"{{\n{setup}\n}} 9>&-")  # what it leaves running must not hold the lock
  if bucket:
    lines.append(_mount(bucket))
  lines += [
      f'if [ "$(cat installed 2>/dev/null)" = {shlex.quote(source.revision)} ]; then exit 0; fi',
      "rm -rf code venv installed", fetch,
      # The images of TPU VMs come with an older Python than is needed.
      'export PATH="$HOME/.local/bin:$PATH"',
      f"command -v uv > /dev/null || curl -fsSL {_UV} | sh",
      "uv venv --quiet --python 3.12 venv",
      "uv pip install --quiet --python venv/bin/python -r code/requirements.lock 'jax[tpu]'",
      "uv pip install --quiet --python venv/bin/python --no-deps -e code",
      f"echo {shlex.quote(source.revision)} > installed"]
  return "\n".join(lines)


def _mount(bucket: str) -> str:
  """Mounts a bucket so that what one machine has written the others see at once.

  Files reach the bucket on fsync and on close, and folders can be renamed: both is relied on
  when checkpoints are written.
  """
  place = shlex.quote(f"{MOUNTS}/{bucket}")
  return f"""\
if ! mountpoint -q {place}; then
  if ! command -v gcsfuse > /dev/null; then
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg |
      sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]" \\
      "https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    sudo apt-get -q -o DPkg::Lock::Timeout=600 update > /dev/null
    sudo apt-get -q -o DPkg::Lock::Timeout=600 install -y gcsfuse > /dev/null
  fi
  sudo mkdir -p {place}
  sudo chown "$(id -u)" {place}
  gcsfuse --implicit-dirs --rename-dir-limit=1000000 --enable-streaming-writes=false \\
    --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 {bucket} {place} 9>&-
fi"""


def _enter(job: str) -> str:
  return f'cd "$HOME/wd_plasticity/jobs/{job}"'


def start(job: str, command: Sequence[str], environment: Mapping[str, str],
          again: bool = False) -> str:
  """Starts a job that outlives the connection, unless it runs or has succeeded.

  Args:
    job: name of its folder, of letters, digits and ._+-
    command: arguments of the Python interpreter.
    environment: variables that it sees.
    again: started although it has succeeded before.
  """
  end = f"END_OF_{job.upper()}"  # of no line of the script
  exports = "\n".join(f"export {k}={shlex.quote(v)}" for k, v in environment.items())
  succeeded = "" if again else 'if [ "$(cat status 2>/dev/null)" = 0 ]; then exit 0; fi\n'
  return f"""\
set -eu
mkdir -p "$HOME/wd_plasticity/jobs/{job}"
{_enter(job)}
{_ALIVE}
{succeeded}if [ ! -e status ] && alive; then exit 0; fi
rm -f status
cat > run.sh <<'{end}'
cd "$HOME/wd_plasticity/code"
{exports}
../venv/bin/python {shlex.join(command)}
s=$?
{_enter(job)} && echo $s > status.new && mv status.new status
{end}
cat /proc/sys/kernel/random/boot_id > boot
setsid nohup bash run.sh >> log 2>&1 < /dev/null &
echo $! > pid"""


def stop(job: str) -> str:
  """Ends what is left of a job, so that it can be started again."""
  return f"""\
{_enter(job)} 2>/dev/null || exit 0
{_ALIVE}
if alive; then
  kill -TERM -- "-$(cat pid)"
  for i in $(seq 60); do alive || break; sleep 1; done
  kill -KILL -- "-$(cat pid)" 2>/dev/null
fi
[ "$(cat status 2>/dev/null)" = 0 ] || rm -f status pid"""


def poll(job: str, offset: int) -> str:
  """Prints a part of the job's log and its status.

  Args:
    job: as of `start`.
    offset: bytes of the log that are known.
  """
  return f"""\
{_enter(job)} 2>/dev/null || {{ echo wd-status {LOST}; exit 0; }}
{_ALIVE}
s=$(cat status 2>/dev/null || {{ alive && echo {RUNNING}; }} || cat status 2>/dev/null || \
echo {LOST})
echo wd-log $(tail -c +{offset + 1} log 2>/dev/null | head -c {BYTES_PER_POLL} | base64 -w0)
echo wd-status $s"""


def statuses(job: str) -> str:
  """Prints how the job has ended on a machine; waits for it for two minutes."""
  return f"""\
{_enter(job)} 2>/dev/null || {{ echo wd-status {LOST}; exit 0; }}
for i in $(seq 120); do [ -e status ] && break; sleep 1; done
echo wd-status $(cat status 2>/dev/null || echo {LOST})"""


def read_poll(output: str) -> tuple[bytes, list[str]]:
  """The part of the log and the statuses, one of every machine, that a script has printed."""
  log, found = b"", []
  for line in output.splitlines():
    word, _, rest = line.partition(" ")
    if word == "wd-log":
      log += base64.b64decode(rest)
    elif word == "wd-status":
      found.append(rest.strip())
  return log, found
