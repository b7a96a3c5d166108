"""What SLURM is given: bash scripts and the sbatch commands that submit them.

Jobs of one kind are one array, whose indices are those of the members' chunks. Nothing
here talks to SLURM.
"""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence

from launch.jobs import MISTAKE, STOPPED, Job
from wd_plasticity.errors import UserError
from wd_plasticity.study.plan import PRETRAINING, REPORT

# As sbatch reads them: minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]].
_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|(?i:infinite|unlimited)", re.ASCII)
_MEMORY = re.compile(r"\d+[KMGTkmgt]?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Resources:
  """What a job asks for; '' and 0 leave it to the cluster.

  Attributes:
    nodes: of a job.
    processes_per_node: of a job.
    gpus_per_node: a number, or a type and a number: 'a100:4'.
    cpus_per_task: of every process.
    options: fields of sbatch that are handed on, such as {'partition': 'gpu'}.
    extra: whole arguments of sbatch.
    jobs_at_once: of one array; 0 for no limit.
    seconds_to_save: between the signal to save and the end of the time limit.
  """
  nodes: int = 1
  processes_per_node: int = 1
  gpus_per_node: str = ""
  cpus_per_task: int = 0
  options: Mapping[str, str] = dataclasses.field(default_factory=dict)
  extra: tuple[str, ...] = ()
  jobs_at_once: int = 0
  seconds_to_save: int = 300

  @property
  def num_gpus(self) -> int:
    """GPUs of a node."""
    number = self.gpus_per_node.rpartition(":")[2] or "0"
    if not number.isdigit():
      raise UserError(f"--gpus_per_node={self.gpus_per_node} is not a number of GPUs, nor a type "
                      "and a number such as a100:4.")
    return int(number)

  def check(self) -> None:
    """Refuses what no cluster could give.

    Raises:
      UserError: a number is impossible, or there are neither one process per node nor one
        per GPU.
    """
    for name in ("nodes", "processes_per_node"):
      if getattr(self, name) < 1:
        raise UserError(f"--{name}={getattr(self, name)} must be at least 1.")
    for name in ("cpus_per_task", "jobs_at_once", "seconds_to_save"):
      if getattr(self, name) < 0:
        raise UserError(f"--{name}={getattr(self, name)} must not be negative.")
    if self.num_gpus and self.processes_per_node not in (1, self.num_gpus):
      raise UserError(f"--processes_per_node={self.processes_per_node} must be 1, or "
                      f"{self.num_gpus} for one process per GPU.")
    for name, pattern, example in (("time", _TIME, "8:00:00 or 1-12:00:00"),
                                   ("mem", _MEMORY, "64G")):
      if (value := self.options.get(name)) and not pattern.fullmatch(value):
        raise UserError(f"--{name}={value} is not one that SLURM reads; write for example "
                        f"{example}.")
    for argument in self.extra:
      if not argument.startswith("-"):
        raise UserError(f"--sbatch={argument} is not an option of sbatch; write for example "
                        "--sbatch=--constraint=a100.")


@dataclasses.dataclass(frozen=True)
class Array:
  """Jobs of one kind, which SLURM is given as one array; the report is a single job.

  Attributes:
    kind: of the jobs.
    jobs: in the order of their indices.
    after: kinds that come before it: pretraining, job by job, or for the report all evals.
  """
  kind: str
  jobs: tuple[Job, ...]
  after: tuple[str, ...]

  @property
  def is_report(self) -> bool:
    return self.kind == REPORT


def arrays(jobs: Sequence[Job]) -> list[Array]:
  """Jobs by kind; every array stands behind those it waits for."""
  kind_of = {j.name: j.kind for j in jobs}
  kinds = dict.fromkeys(j.kind for j in jobs)
  made = []
  for kind in kinds:
    alike = sorted((j for j in jobs if j.kind == kind), key=lambda j: j.index)
    after = dict.fromkeys(kind_of[name] for j in alike for name in j.after)
    made.append(Array(kind, tuple(alike), tuple(after)))
  return made


def sbatch(array: Array, resources: Resources, *, name: str, script: pathlib.Path,
           logs: pathlib.Path, ids: Mapping[str, str]) -> list[str]:
  """The command that submits an array.

  Args:
    array: to submit.
    resources: of each of its jobs.
    name: of the launch.
    script: that is submitted.
    logs: folder of logs.
    ids: of the arrays before it, by kind.
  """
  r = resources
  # In the name of a log SLURM fills in what follows a percent sign.
  log = f"{str(logs).replace('%', '%%')}/{array.kind}-"
  command = ["sbatch", "--parsable", f"--job-name={_one_line(name)}-{array.kind}",
             f"--output={log}%j.log" if array.is_report else f"--output={log}%A_%a.log",
             "--open-mode=append", "--requeue"]
  if not array.is_report:
    limit = f"%{r.jobs_at_once}" if r.jobs_at_once else ""
    command += [f"--array=0-{len(array.jobs) - 1}{limit}", f"--signal=TERM@{r.seconds_to_save}",
                f"--nodes={r.nodes}", f"--ntasks-per-node={r.processes_per_node}"]
    if r.num_gpus:
      command.append(f"--gpus-per-node={r.gpus_per_node}")
  else:
    command += ["--nodes=1", "--ntasks=1"]
  if r.cpus_per_task:
    command.append(f"--cpus-per-task={r.cpus_per_task}")
  command += [f"--{field}={value}" for field, value in r.options.items() if value]
  if array.after:
    # The report is for what there is; it says so when there is nothing.
    how = "afterany" if array.is_report else "aftercorr"
    command += [f"--dependency={how}:" + ":".join(ids[kind] for kind in array.after),
                "--kill-on-invalid-dep=yes"]
  return [*command, *r.extra, str(script)]


def script(array: Array, resources: Resources, *, name: str, folder: pathlib.Path,
           directory: pathlib.Path, python: str, setup: Sequence[str],
           environment: Mapping[str, str], max_restarts: int) -> str:
  """The script of an array.

  Args:
    array: of jobs.
    resources: of each of its jobs.
    name: of the launch.
    folder: for files of the script's own.
    directory: in which the programs are started.
    python: the interpreter.
    setup: lines of bash that prepare the environment.
    environment: variables for the programs.
    max_restarts: how often the script submits a job again that was asked to stop.
  """
  q = shlex.quote
  lines = ["#!/bin/bash", f"# {array.kind} of {_one_line(name)}, written by launch.slurm."]
  if array.is_report:
    lines += ["", "job=$SLURM_JOB_ID"]
  else:
    lines += ["# A job is an index of the array.", "",
              "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"]
  lines += [f"cd {q(str(directory))} || exit 1", *setup]
  lines += [f"export {key}={q(value)}" for key, value in environment.items()]
  if array.is_report:
    lines += ["export JAX_PLATFORMS=cpu  # it needs no GPU", "",
              f"command=({_words(python, array.jobs[0])})"]
  else:
    lines += ["", 'case "$SLURM_ARRAY_TASK_ID" in']
    lines += [f"  {i}) command=({_words(python, job)}) ;;" for i, job in enumerate(array.jobs)]
    lines += ['  *) echo "error: the array has no such job" >&2; exit 1 ;;', "esac"]
  restarts = _RESTART.format(
      stopped="|".join(map(str, STOPPED)), max_restarts=max_restarts, mistake=MISTAKE)
  return "\n".join([*lines, _RUN.format(first=q(f"{folder}/.first-")), _srun(resources, array),
                    restarts])


def _one_line(name: str) -> str:
  return " ".join(name.split())


def _words(python: str, job: Job) -> str:
  return shlex.join([python, *job.command])


def _srun(resources: Resources, array: Array) -> str:
  words = ["srun", "--kill-on-bad-exit=1"]
  if not array.is_report:
    if resources.processes_per_node * resources.nodes > 1:
      words.append("--label")
    if resources.num_gpus:
      words.append("--gpu-bind=none")  # JAX picks the GPU of a process by itself
  if resources.cpus_per_task:  # not handed on by sbatch
    words.append(f"--cpus-per-task={resources.cpus_per_task}")
  return shlex.join(words) + ' bash -c "$process" process "${command[@]}"\nstatus=$?\n'


# A process that fails has srun end the others; it is the first status that says why.
_RUN = """
first={first}$job
rm -f "$first"
export first
process='
trap : TERM INT
"$@"
status=$?
if [ $status != 0 ]; then (set -o noclobber; echo $status > "$first") 2>/dev/null; fi
exit $status
'
trap : TERM  # goes to the programs as well, which save their state and end
"""

_RESTART = """\
why=$(cat "$first" 2>/dev/null || echo "$status")
rm -f "$first"

# Asked to stop, with its state saved. SLURM starts it again by itself when it has preempted
# it; here it is submitted again when it was near its time limit.
case "$why" in {stopped})
  if [ "$status" = 0 ] || [ "$(squeue --noheader --jobs="$job" --format=%T)" != RUNNING ]; then
    : # ended after all, or preempted or cancelled
  elif [ "${{SLURM_RESTART_COUNT:-0}}" -ge {max_restarts} ]; then
    echo "launch.slurm: not submitted again, it was restarted $SLURM_RESTART_COUNT times." >&2
  else
    echo "launch.slurm: asked to stop, submitted again." >&2
    scontrol requeue "$job"
  fi ;;
{mistake}) status={mistake} ;;  # a mistake of the configuration, not of SLURM
esac
exit "$status"
"""


def waits_for(array: Array) -> str:
  """For people: what an array waits for."""
  if not array.after:
    return ""
  if array.is_report:
    return "the end of " + ", ".join(array.after)
  return f"{PRETRAINING} of the same members"
