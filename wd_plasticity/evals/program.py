"""What all eval programs do alike: flags, targets, members together, results.

An eval program is a function `main(session)`; everything it needs to know about where
it runs, on which checkpoints, and what is done already is in the session.
"""

import pathlib
import shlex
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from wd_plasticity import cli, commands, errors, memory
from wd_plasticity import members as members_lib
from wd_plasticity.config import as_json
from wd_plasticity.data import prepare
from wd_plasticity.errors import Interrupted, UserError
from wd_plasticity.evals import checks
from wd_plasticity.evals import targets as targets_lib
from wd_plasticity.evals.config import FREE_FIELDS
from wd_plasticity.evals.results import Results
from wd_plasticity.evals.targets import Target
from wd_plasticity.models import decoder
from wd_plasticity.training import distributed, hardware
from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training.progress import Progress

ROWS = mesh_lib.ROWS
REPLICATED = P()
_MOST_PARTS = 64  # that batches are divided into


class Session:
  """One run of an eval program.

  Attributes:
    config: the configuration of the program.
    targets: the checkpoints to evaluate.
    workdir: nothing is written outside.
    results: what is done already, and where new results go.
    mesh: all devices of the run, as in pretraining.
    points: members of the program's own `sweep(add)`; one when there is none.
    parts: how many times smaller batches are than is usual, after memory ran out.
  """

  def __init__(self, program: str, config: ConfigDict, checkpoints: Sequence[str],
               workdir: str, *, command: str = "", points: Sequence[members_lib.Member] = (),
               replace: bool = False):
    self.config, self.workdir = config, pathlib.Path(workdir)
    self.program = program
    self.points = list(points)
    checks.check(program, self.points)
    self.targets, notes = targets_lib.find(
        checkpoints, config.steps, compute_dtype=config.compute_dtype,
        tokenizer_dir=config.tokenizer_dir)
    for note in notes:
      self.print(note)
    self.results = Results(workdir, program, command, replace=replace)
    self.mesh = mesh_lib.make_mesh(config.mesh)
    self.parts = 1
    self._prepared: dict[str, prepare.Prepared] = {}

  def settings(self, config: ConfigDict | None = None) -> dict[str, Any]:
    """The fields of a configuration that decide a result, without those of single tasks."""
    values = as_json(config or self.config)
    return {k: v for k, v in values.items() if k not in FREE_FIELDS}

  # Members together.

  def alike(self, targets: Sequence[Target]) -> list[list[Target]]:
    """Targets that one program can evaluate together: of one model and tokenizer."""
    same: dict[Any, list[Target]] = {}
    for t in targets:
      same.setdefault((t.model, t.meta["tokenizer_fingerprint"]), []).append(t)
    return list(same.values())

  def groups(self, targets: Sequence[Target],
             need: Callable[[Target, int], float] | None = None) -> list[list[Target]]:
    """Targets that one program evaluates together: those alike, as many as fit.

    Args:
      targets: in the order in which they are wanted.
      need: of a target and a number of members like it: bytes of a device that the program
        takes (memory.py); None: those of the parameters.
    """
    return [chunk for same in self.alike(targets)
            for chunk in members_lib.chunks(same, self._at_once(same, need))]

  def _at_once(self, same: Sequence[Target], need: Callable | None) -> int:
    smallest = self.mesh.shape["sweep"]
    if self.config.members_at_once:
      return -(-self.config.members_at_once // smallest) * smallest
    if jax.default_backend() == "cpu":
      return smallest
    need = need or (lambda t, n: memory.total(
        memory.reading(t.model, self.mesh.shape, n, tokens=0, length=1)))
    return memory.members_that_fit(len(same), lambda n: need(same[0], n), smallest)

  def evaluate(self, work: Sequence[tuple], run: Callable[..., None], *,
               divisible: bool = True) -> None:
    """Calls run(group, *what) for each (group, *what) of `work`, with less when memory runs out.

    First with fewer members at once, then with smaller batches (`parts`), as `run` sees to.
    What has been written is kept.

    Args:
      work: groups of targets, and what is to be done with each.
      run: does it, and writes the results.
      divisible: whether smaller batches take less.

    Raises:
      UserError: the memory is not enough for the fewest members and smallest batches.
    """
    waiting, smallest = list(work), self.mesh.shape["sweep"]
    while waiting:
      group, *what = waiting[0]
      if memory.attempt(lambda group=group, what=what: run(group, *what))[0]:
        waiting.pop(0)
        continue
      size = self.num_members(group)
      less = memory.fewer(size, len(group), smallest)
      if less:
        waiting = [(part, *what) for group, *what in waiting
                   for part in members_lib.chunks(group, less)]
        self.print(f"memory ran out with {size} members at once; going on with {less}.")
      elif divisible and self.parts < _MOST_PARTS:
        self.parts *= 2
        self.print(f"memory ran out with {size} member(s) at once; going on with batches of "
                   f"1/{self.parts}.")
      else:
        raise UserError(
            f"the memory of a device ({memory.text(memory.device_limit())}) is not enough for "
            f"{self.program} of {group[0].name}; divide the model among more devices "
            "(--config.mesh.fsdp, --config.mesh.tensor). Finished results are kept.")

  def rows(self, wanted: int) -> int:
    """Rows of a batch: about as many as wanted, in `parts`, divided evenly among devices."""
    return -(-max(1, wanted // self.parts) // self.row_shares) * self.row_shares

  def num_members(self, group: Sequence[Target]) -> int:
    """Size of the member axis of a group: its length, filled up to the mesh axis `sweep`."""
    smallest = self.mesh.shape["sweep"]
    return -(-len(group) // smallest) * smallest

  def load(self, group: Sequence[Target]) -> Any:
    """The parameters of a group, stacked on a leading member axis and laid on the mesh.

    Members that only fill up the axis are copies of the last one.
    """
    return self.stack((t.stored.load_params(self._shardings(t)) for t in group),
                      self.num_members(group))

  def stack(self, params: Iterable[Any], size: int) -> Any:
    """Parameters of single members as one tree with a member axis.

    One member is held beside the stack at a time.

    Args:
      params: of one member after another.
      size: of the member axis; what is missing are copies of the last one.
    """
    stacked, m = None, 0
    for one in params:  # enumerate would keep the one before
      if stacked is None:
        places = mesh_lib.shardings(
            self.mesh, mesh_lib.stacked(mesh_lib.parameter_specs(one)))
        stacked = jax.jit(
            lambda tree: jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), tree),
            out_shardings=places)(one)
        # Not an update of a slice, for which devices would exchange the whole axis.
        put = jax.jit(lambda tree, one, m: jax.tree.map(
            lambda x, y: jnp.where((jnp.arange(size) < m).reshape(-1, *[1] * y.ndim), x, y),
            tree, one), donate_argnums=0, out_shardings=places)
      else:
        stacked = put(stacked, one, np.int32(m))
      del one
      m += 1
    return stacked

  def _shardings(self, target: Target) -> Any:
    shapes = decoder.param_shapes(target.model)
    mesh_lib.check_parameters(shapes, dict(self.mesh.shape))
    return mesh_lib.shardings(self.mesh, mesh_lib.parameter_specs(shapes))

  def compile(self, fn: Callable, in_axes: Sequence[int | None], num_members: int,
              out: Any = REPLICATED) -> Callable:
    """jit of `fn` over stacked members, see `mesh.over_members`.

    Args:
      fn: a function of one member.
      in_axes: 0 for arguments with a member axis, None for shared ones.
      num_members: size of the member axis.
      out: where outputs lie; by default on every device, so that any process can read them.
    """
    return jax.jit(mesh_lib.over_members(fn, in_axes, num_members),
                   out_shardings=mesh_lib.shardings(self.mesh, out))

  def put(self, array: np.ndarray, spec: P = ROWS) -> jax.Array:
    """An array that every process holds whole, laid on the mesh; by default rows are divided."""
    return mesh_lib.put(self.mesh, array, spec)

  @property
  def row_shares(self) -> int:
    """The number of rows of a batch must be a multiple of this."""
    return mesh_lib.row_shares(self.mesh)

  # Data, progress.

  def pretraining_data(self, target: Target) -> prepare.Prepared:
    """The prepared data that a target was trained on.

    They are looked for where the pretraining left them, and prepared again in this work
    directory when they are not there.

    Raises:
      UserError: they cannot be made, or the files they are made of have changed.
    """
    fingerprint = target.meta["data_fingerprint"]
    if not fingerprint:
      raise UserError(f"{target.name} was imported without data, which {self.program} needs here; "
                      "import it under another name with --config=FILE, whose section data names "
                      "the text, or (finetune) set --config.evaluate.forgetting_sequences=0 and "
                      "--config.replay.fraction=0.")
    if fingerprint not in self._prepared:
      data = ConfigDict(target.pretraining["data"])
      places = (self.config.cache_dir, data.cache_dir, target.workdir / "cache",
                self.workdir / "cache")
      found = None
      for place in filter(None, places):
        found = found or prepare.open_prepared(place, fingerprint)
      self._prepared[fingerprint] = found or self._prepare(target, data)
    return self._prepared[fingerprint]

  def _prepare(self, target: Target, data: ConfigDict) -> prepare.Prepared:
    where = self.config.cache_dir or self.workdir / "cache"
    made = distributed.first_does("data are prepared", lambda: prepare.prepare(data, where, print))
    made = made or prepare.prepare(data, where, lambda line: None, verify=False)
    if made.fingerprint != target.meta["data_fingerprint"]:
      raise UserError(f"the data that {target.name} was trained on are not there, and what "
                      f"{data.train or 'the embedded corpus'} holds now is not the same; name the "
                      "folder of the prepared data by --config.cache_dir=FOLDER.")
    return made

  def progress(self, total: int, unit: str) -> Progress:
    return Progress(total, unit, self.program, enabled=distributed.is_first())

  def print(self, line: str) -> None:
    if distributed.is_first():
      print(line, flush=True)


def run(program: str, main: Callable[[Session], None]) -> None:
  """Runs an eval program from the command line."""
  config_flag = cli.define_config_flag(program)
  checkpoints = flags.DEFINE_multi_string(
      "checkpoint", [], "Work directory of a sweep, a member or a step; may be given repeatedly.")
  workdir = flags.DEFINE_string(
      "workdir", None, f"Results go to WORKDIR/evals/{program}; nothing is written outside.")

  replace = flags.DEFINE_bool(
      "replace", False, "Results made with other settings are moved to WORKDIR/outdated and made "
      "again; without it they are refused.")

  def start(argv):
    del argv
    config = config_flag.value
    if config is None:
      raise UserError(f"--config=FILE is missing; --config=configs/{program}.py is a first one.")
    if workdir.value is None:
      raise UserError(f"--workdir=FOLDER is missing; results go to FOLDER/evals/{program}.")
    filename, overrides = cli.config_source()
    points = members_lib.expand(config, cli.load_sweep(filename), tuple(overrides), alone=())
    checks.check(program, points)
    checks.check_folders(points)
    hardware.keep_freed_memory()
    if config.mesh.cpu_devices:
      jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
    line = distributed.initialise(config.distributed)
    signal.signal(signal.SIGTERM, _stop)
    command = shlex.join(["python", *commands.words(
        f"wd_plasticity.evals.{program}", ("config", "checkpoint", "workdir", "replace"))])
    session = Session(program, config, checkpoints.value, workdir.value, command=command,
                      points=points, replace=replace.value)
    session.print(line)
    session.print(f"{len(session.targets)} checkpoint(s) of "
                  f"{len({t.member for t in session.targets})} member(s)")
    execute(session, main)
    distributed.barrier("end of the run")

  cli.run(start)


def execute(session: Session, main: Callable[[Session], None]) -> None:
  """Runs an eval program in a session and collects its results."""
  try:
    session.results.open()
  except OSError as e:
    raise UserError(f"{errors.describe(e, session.workdir)}.") from e
  # Hand-written kernels find the mesh by its context, see models/attention.py.
  with jax.set_mesh(session.mesh):
    try:
      main(session)
    finally:
      session.results.collect()


def _stop(number, _):
  raise Interrupted(f"stopped by {signal.Signals(number).name}; finished results are kept, run the "
                    "same command again to go on.")
