"""Submits the members of a sweep, or a whole study, to SLURM.

  python -m launch.slurm --config=configs/quickstart.py --workdir=/scratch/runs/{name} \\
    --partition=gpu --gpus_per_node=1 --time=8:00:00

The jobs of a kind are one array: pretraining, every eval program, which starts a job when
the pretraining of the same members has succeeded, and the report. A job that is preempted
or comes to its time limit saves its state, is queued again and goes on. --dry_run prints
the scripts and the commands.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from rich import box

from launch import command_line, record, slurm_scripts
from launch.jobs import Launch, make_jobs
from launch.shell import Commands
from launch.slurm_scripts import Array, Resources
from wd_plasticity import errors
from wd_plasticity.console import Table
from wd_plasticity.errors import UserError
from wd_plasticity.files import write_text
from wd_plasticity.training.summary import wide_console

_PARTITION = flags.DEFINE_string("partition", "", "Partition of SLURM.")
_ACCOUNT = flags.DEFINE_string("account", "", "Account of SLURM.")
_QOS = flags.DEFINE_string("qos", "", "Quality of service of SLURM.")
_TIME = flags.DEFINE_string("time", "", "Time limit of a job, such as 8:00:00 or 1-12:00:00; a "
                            "longer one goes on in the next job.")
_NODES = flags.DEFINE_integer("nodes", 1, "Nodes of a job.")
_GPUS = flags.DEFINE_string("gpus_per_node", "", "GPUs of a node that a job uses: 4, or a100:4.")
_PROCESSES = flags.DEFINE_integer(
    "processes_per_node", 1, "Processes of a job on a node: 1, or one per GPU.")
_CPUS = flags.DEFINE_integer("cpus_per_task", 0, "Cores of a process; 0: as the cluster says.")
_MEMORY = flags.DEFINE_string("mem", "", "Memory of a job on a node, such as 64G.")
_AT_ONCE = flags.DEFINE_integer("jobs_at_once", 0, "Jobs of a kind at the same time; 0: no limit.")
_SETUP = flags.DEFINE_multi_string(
    "setup", [], "Bash that prepares the environment on the nodes, such as 'module load cuda; "
    "source env/bin/activate'; may be given repeatedly.")
_PYTHON = flags.DEFINE_string(
    "python", sys.executable, "Python on the nodes; 'python' is that of --setup.")
_SBATCH = flags.DEFINE_multi_string(
    "sbatch", [], "Any other option of sbatch, such as --sbatch=--constraint=a100; may be given "
    "repeatedly.")
_SAVE = flags.DEFINE_integer(
    "seconds_to_save", 300, "How long before its time limit a job is asked to save its state.")
_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 50, "How often a job is submitted again that came to its time limit.")


def main(argv: Sequence[str]):
  del argv
  resources = Resources(
      nodes=_NODES.value, processes_per_node=_PROCESSES.value, gpus_per_node=_GPUS.value,
      cpus_per_task=_CPUS.value,
      options={"partition": _PARTITION.value, "account": _ACCOUNT.value, "qos": _QOS.value,
               "time": _TIME.value, "mem": _MEMORY.value},
      extra=tuple(_SBATCH.value), jobs_at_once=_AT_ONCE.value, seconds_to_save=_SAVE.value)
  resources.check()
  if _RESTARTS.value < 0:
    raise UserError(f"--max_restarts={_RESTARTS.value} must not be negative.")
  on_node = resources.num_gpus or resources.processes_per_node * command_line.cpu_devices()
  launch = command_line.read_launch(resources.nodes * on_node)
  commands = Commands(launch.dry_run)
  folder = record.folder(launch).absolute()
  if not launch.dry_run:
    _refuse_twice(launch, commands)
  jobs = make_jobs(launch)
  arrays = slurm_scripts.arrays(jobs)
  ids: dict[str, str] = {}
  try:
    for array in arrays:
      ids[array.kind] = _submit(array, launch, resources, folder, commands, ids)
  except UserError as e:
    if not ids or launch.dry_run:
      raise
    commands.run(["scancel", *ids.values()], check=False)
    raise UserError(f"{str(e).rstrip('.')}; what had been submitted before is cancelled.") from e
  if launch.dry_run:
    return
  record.write(launch, "slurm", jobs, _submitted(arrays, ids, folder))
  _show(arrays, ids, folder)


def _submit(array: Array, launch: Launch, resources: Resources, folder: pathlib.Path,
            commands: Commands, ids: dict[str, str]) -> str:
  """Writes the script of an array and submits it; returns its id."""
  path, logs = folder / "slurm" / f"{array.kind}.sh", folder / "logs"
  text = slurm_scripts.script(
      array, resources, name=launch.name, folder=path.parent, directory=pathlib.Path.cwd(),
      python=_PYTHON.value, setup=_SETUP.value,
      environment=command_line.environment(launch, "slurm"), max_restarts=_RESTARTS.value)
  command = slurm_scripts.sbatch(
      array, resources, name=launch.name, script=path, logs=logs, ids=ids)
  if launch.dry_run:
    print(f"# {path}\n{text}")
    commands.run(command)
    print()
    return f"ID_OF_{array.kind.upper()}"
  try:
    logs.mkdir(parents=True, exist_ok=True)  # SLURM does not make it
    write_text(path, text)
  except OSError as e:
    raise UserError(f"{errors.describe(e, launch.workdir)}; --workdir has to be on a disk that "
                    "the nodes see.") from e
  return commands.run(command).stdout.strip().split(";")[0]  # behind it: name of the cluster


def _refuse_twice(launch: Launch, commands: Commands) -> None:
  """Two jobs must not train one member.

  Raises:
    UserError: jobs of an earlier launch in this work directory have not ended.
  """
  earlier = {s["id"].split("_")[0] for s in record.submitted(launch, "slurm")}
  if not earlier:
    return
  queued = commands.run(["squeue", "--noheader", f"--user={os.getuid()}", "--format=%F"]).stdout
  if left := sorted(earlier & set(queued.split()), key=int):
    raise UserError(f"jobs {', '.join(left)} of an earlier launch in this work directory have not "
                    f"ended; wait for them, or run `scancel {' '.join(left)}` first.")


def _submitted(arrays: Sequence[Array], ids: dict[str, str], folder: pathlib.Path) -> dict:
  made = {}
  for array in arrays:
    for i, job in enumerate(array.jobs):
      number = ids[array.kind] + ("" if array.is_report else f"_{i}")
      made[job.name] = {"id": number, "log": str(folder / "logs" / f"{array.kind}-{number}.log")}
  return made


def _show(arrays: Sequence[Array], ids: dict[str, str], folder: pathlib.Path) -> None:
  console = wide_console()
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  for name in ("job", "id", "jobs", "starts after"):
    table.add_column(name, no_wrap=name != "starts after")
  for array in arrays:
    table.add_row(array.kind, ids[array.kind], str(len(array.jobs)), slurm_scripts.waits_for(array))
  console.print(table)
  numbers = list(ids.values())
  for line in (f"watch:  squeue --jobs={','.join(numbers)}", f"cancel: scancel {' '.join(numbers)}",
               f"logs:   {folder / 'logs'}", f"scripts: {folder / 'slurm'}"):
    console.print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
  command_line.run(main)
