"""What the launchers of clouds share: names, chips, folders in buckets, the clone as an archive."""

import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from wd_plasticity import paths
from wd_plasticity.errors import UserError
from wd_plasticity.training.run_record import LAUNCH_VARIABLE

# Where buckets are mounted: /gcs/BUCKET, as Vertex AI does by itself.
MOUNTS = "/gcs"


def resource_name(text: str, key: str, limit: int) -> str:
  """A name of lower-case letters, digits and -, that begins with a letter.

  Args:
    text: what a person calls it; as much of it is kept as there is room for.
    key: what makes it another one; eight digits of its hash are the end of the name, so
      that no name is the beginning of another.
    limit: of its length.
  """
  words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
  if not words[:1].isalpha():
    words = f"wd-{words}".strip("-")
  return f"{words[:limit - 9].strip('-')}-{short_hash(key)}"


def short_hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def labels(name: str, tags: Sequence[str]) -> dict[str, str]:
  """Labels of a resource: its launch, and one for every tag. Keys and values hold a-z 0-9 _ -."""
  clean = lambda text: re.sub(r"[^a-z0-9_-]", "-", text.lower())
  return {"wd-plasticity": name, **{f"tag-{clean(t)}"[:63]: "yes" for t in tags if clean(t)}}


def split_bucket(workdir: str) -> tuple[str, str]:
  """The bucket of a work directory, empty when it is a folder, and its path on the machines.

  Raises:
    UserError: a gs:// address without a bucket, or without a folder in it, or another address.
  """
  if not workdir.startswith("gs://"):
    paths.local_path(workdir, "--workdir")
    return "", workdir
  match = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])/([^/].*)", workdir, re.DOTALL)
  if not match:
    raise UserError(f"--workdir={workdir} does not name a folder in a bucket; write "
                    "gs://BUCKET/FOLDER.")
  return match[1], f"{MOUNTS}/{match[1]}/{match[2]}"


def _size(accelerator_type: str) -> tuple[str, int]:
  match = re.fullmatch(r"(v\d+(?:litepod|e|p)?)-(\d+)", accelerator_type)
  return (match[1], int(match[2])) if match else ("", 0)


def num_devices(accelerator_type: str) -> int:
  """Devices that JAX sees on a TPU slice such as v5litepod-8; 0 for a type that is not known.

  The number in the type counts TensorCores up to v5p, and a v4 or v5p chip, of two of them,
  is one device; from v5e on it counts chips.
  https://cloud.google.com/tpu/docs/supported-tpu-configurations
  """
  kind, size = _size(accelerator_type)
  if kind in ("v4", "v5p"):
    return size // 2
  return size if kind in ("v2", "v3", "v5litepod", "v5e", "v6e") else 0


def num_hosts(accelerator_type: str) -> int:
  """Machines of a TPU slice: one holds eight chips of a small v5e or v6e slice, four otherwise."""
  kind, size = _size(accelerator_type)
  if kind in ("v2", "v3", "v4", "v5p"):
    return max(1, size // 8)
  return 1 if size <= 8 else size // 4


def git(*arguments: str) -> str:
  """What git says about the clone that this is started from.

  Raises:
    UserError: it is not a clone, or there is no git.
  """
  try:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
  except FileNotFoundError:
    raise UserError("there is no git on this machine; it makes the archive that is run.") from None
  if done.returncode:
    raise UserError(f"`git {arguments[0]}` failed ({' '.join(done.stderr.split())}); start the "
                    "launcher in the folder of the repository.")
  return done.stdout.strip()


def check_source(filename: str) -> list[str]:
  """Whether the clone's last commit can run a config.

  Args:
    filename: of the config, as typed.

  Returns:
    Sentences of what is not in the commit and therefore not run.

  Raises:
    UserError: the config is not in it, or not named relative to the clone.
  """
  path = filename.partition(":")[0]
  root = Path(git("rev-parse", "--show-toplevel"))
  if root.resolve() != Path.cwd().resolve():
    raise UserError(f"the launcher has to be started in the folder of the repository, {root}.")
  if Path(path).is_absolute():
    raise UserError(f"--config={path} is a path of this machine; give it relative to the "
                    "repository, as it is found there on the machines of the jobs.")
  if not git("ls-tree", "--name-only", "HEAD", "--", path):
    raise UserError(f"--config={path} is not in the last commit, which is what is run; commit it "
                    "first.")
  changed = git("status", "--porcelain", "--untracked-files=no").splitlines()
  if not changed:
    return []
  return [f"{len(changed)} changed files are not committed and will not be run: "
          + ", ".join(line.strip().split(maxsplit=1)[-1] for line in changed[:3])
          + ("..." if len(changed) > 3 else "")]


def revision() -> str:
  return git("rev-parse", "HEAD")


def write_archive(path: Path, commit: str) -> None:
  """Writes a commit of the clone as a .tar.gz or .tar."""
  git("archive", f"--output={path}", commit)


def extract_commit(folder: Path, commit: str) -> None:
  """Writes the files of a commit of the clone into a folder, which is made."""
  folder.mkdir(parents=True)
  path = folder.with_name(f"{folder.name}.tar")
  write_archive(path, commit)
  with tarfile.open(path) as archive:
    # Python before 3.11.4 has no filters; git wrote the archive, nothing has to be kept out.
    archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
  path.unlink()


def with_revision(environment: Mapping[str, str], commit: str) -> dict[str, str]:
  """Variables of jobs whose copy of the code does not know its commit."""
  about = json.loads(environment[LAUNCH_VARIABLE]) | {"revision": commit}
  return {**environment, LAUNCH_VARIABLE: json.dumps(about, sort_keys=True)}
