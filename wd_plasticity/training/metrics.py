"""Metrics of one member: JSON lines, TensorBoard and, when asked for, Weights & Biases.

Names are stable; reports and plots read them:

| file          | name                       | value                                            |
|---------------|----------------------------|--------------------------------------------------|
| both          | step                       | optimizer steps done                             |
| metrics.jsonl | tokens                     | training tokens seen, of this member             |
| metrics.jsonl | train/loss                 | nats per token, mean over the batch of this step |
| metrics.jsonl | train/z_loss               | its z-loss, where one is configured              |
| metrics.jsonl | train/grad_norm            | global L2 norm of the gradient before clipping   |
| metrics.jsonl | validation/loss            | nats per token on validation documents           |
| metrics.jsonl | train_subset/loss          | the same on some training documents, read or not |
| metrics.jsonl | optim/learning_rate        | of this step                                     |
| metrics.jsonl | optim/weight_decay/<group> | coefficient of the group at this step            |
| metrics.jsonl | weight_norm/<group>        | L2 norm of the group's parameters                |
| metrics.jsonl | update_ratio/<group>       | norm of the update over norm of the parameters   |
| speed.jsonl   | tokens_per_second          | training tokens of this member per second        |
| speed.jsonl   | model_flops_per_second     | of all members of the program together           |
| speed.jsonl   | mfu                        | model FLOPs over the device's peak, a fraction   |
| speed.jsonl   | input_wait_fraction        | share of the time spent waiting for data         |
| speed.jsonl   | step_seconds               | wall-clock seconds of a typical step (median)    |

metrics.jsonl holds only values that follow from the configuration, so that the file
of an interrupted and resumed run equals, byte for byte, that of one never interrupted.
Values that are not finite are written as null, which JSON can hold.
"""

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clu import platform

from wd_plasticity.errors import UserError
from wd_plasticity.files import named, parse_json, write_text
from wd_plasticity.training.curves import Curves


def _json_value(value) -> int | float | None:
  """A plain number for JSON: integers stay integers, what is not finite becomes None."""
  if hasattr(value, "item"):  # NumPy and JAX scalars
    value = value.item()
  if isinstance(value, int):
    return value
  return float(value) if math.isfinite(value) else None


def _json_line(step: int, values: Mapping[str, float]) -> str:
  record = {"step": int(step), **{name: _json_value(v) for name, v in values.items()}}
  return json.dumps(record, allow_nan=False) + "\n"


def _complete_lines(path: Path, until: float = math.inf) -> Iterable[tuple[str, dict]]:
  """Yields (line, record). A last line cut short by a kill is left out.

  Args:
    path: the file.
    until: step after which no record is needed: from there on, one that is damaged is the end.
  """
  reached = False
  lines = path.read_bytes().split(b"\n")
  # Whatever follows the last newline was still being written.
  for number, line in enumerate(lines[:-1], start=1):
    try:
      text = line.decode("utf-8")
      record = parse_json(text)
      record["step"] = int(record["step"])
    except (ValueError, TypeError, KeyError, OverflowError):
      if reached or number == len(lines) - 1:
        return
      raise UserError(f"line {number} of {path} is not a record of metrics; restore the file from "
                      "a copy.") from None
    reached = record["step"] >= until
    yield text + "\n", record


def read_metrics(path: str | os.PathLike) -> list[dict]:
  """Records of a metrics.jsonl or speed.jsonl, in the order written.

  Args:
    path: the file.

  Returns:
    One dict per line; values that were not finite are None.

  Raises:
    UserError: if there is no such file, or a line in it is not a record.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f"there are no metrics at {path}; give the path of a member that was trained.")
  return [record for _, record in _complete_lines(path)]


def lacks(path: Path, step: int, written: Mapping | None) -> str:
  """What a metrics.jsonl lacks of what was in it when a checkpoint was saved; '' for nothing.

  Args:
    path: the file.
    step: of the checkpoint.
    written: `MemberMetrics.written()` at that save; None where none was kept, then the last
      record is compared with the step.

  Returns:
    A clause without a full stop.
  """
  if written is None:
    steps = [record["step"] for record in read_metrics(path)] if path.exists() else []
    steps = [s for s in steps if s <= step]
    between = max((b - a for a, b in zip(steps, steps[1:], strict=False)), default=0)
    return "" if steps and steps[-1] + between >= step else (
        f"{path} ends before step {step}")
  content = path.read_bytes()[:written["bytes"]] if path.exists() else b""
  if len(content) < written["bytes"]:
    return (f"{path} ends before step {step} (it has {len(content)} bytes of the "
            f"{written['bytes']} that were there)")
  if hashlib.sha256(content).hexdigest() != written["sha256"]:
    return f"{path} is not what was written up to step {step} (its checksum differs)"
  return ""


def _keep_until(path: Path, start_step: int) -> None:
  """Drops records after `start_step`, all of them when it is 0, by an atomic rewrite."""
  if not path.exists():
    return
  # A run from step 0 writes its step-0 values again.
  kept = [line for line, record in _complete_lines(path, start_step)
          if 0 < start_step >= record["step"]]
  write_text(path, "".join(kept))  # under a name of its own: no link is followed


class _Lines:
  """A file of JSON lines, on disk as soon as written."""

  def __init__(self, path: Path, start_step: int):
    _keep_until(path, start_step)
    self._file = open(path, "a", encoding="utf-8", newline="\n")
    content = path.read_bytes()
    self._bytes, self._sha256 = len(content), hashlib.sha256(content)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    # One write and flush per line: a kill can lose at most the line being written.
    line = _json_line(step, values)
    self._file.write(line)
    self._file.flush()
    self._bytes += len(line)  # json.dumps writes ASCII
    self._sha256.update(line.encode())

  def written(self) -> dict[str, Any]:
    return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}

  def sync(self) -> None:
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._file.close()


def _start_wandb(directory: Path, name: str, project: str, config: Mapping | None):
  """Starts the member's Weights & Biases run, or takes it up again under the same id."""
  try:
    import wandb
  except ImportError:
    raise UserError(
        "config.log.wandb=True needs Weights & Biases, which is not installed; run "
        "`pip install wandb` or set --config.log.wandb=False.") from None
  id_file = directory / "wandb_id"
  if not id_file.exists():
    write_text(id_file, secrets.token_hex(8))
  run_id = id_file.read_bytes().strip()
  if not re.fullmatch(rb"[\w-]{1,64}", run_id):
    raise UserError(f"{id_file} does not hold the id of a run of Weights & Biases; delete it to "
                    "have a new run made.")
  try:
    # create_new: the members of a sweep are logged side by side from one process.
    return wandb.init(
        id=run_id.decode(), resume="allow", reinit="create_new",
        project=project or None, name=name, config=dict(config or {}), dir=str(directory))
  except wandb.errors.Error as e:
    raise UserError(
        f"Weights & Biases did not start ({e}); run `wandb login`, set WANDB_MODE=offline "
        "or set --config.log.wandb=False.") from e


class MemberMetrics:
  """Writes the metrics of one member; does nothing where it is not enabled.

  A caller that resumes from a checkpoint must have written the metrics of the
  checkpoint's step before the checkpoint was committed: records up to
  `start_step` are kept as they are and never written again.
  """

  def __init__(self, directory: str | os.PathLike, name: str, start_step: int, *,
               wandb: bool = False, project: str = "", config: Mapping | None = None,
               enabled: bool = True):
    """Opens the files, dropping what an interrupted run wrote after `start_step`.

    Args:
      directory: of the member; made if missing.
      name: of the member, shown by Weights & Biases.
      start_step: optimizer steps done before this start; 0 starts the files afresh.
      wandb: log to Weights & Biases as well.
      project: of Weights & Biases.
      config: of the member, stored with the Weights & Biases run.
      enabled: False on every process but the first.

    Raises:
      UserError: if Weights & Biases is asked for and not installed or not set up,
        or if a file of metrics is damaged.
    """
    self._enabled = enabled
    if not enabled:
      return
    self._directory = directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Before the files, which a refused start must leave as they were.
    self._wandb = _start_wandb(directory, name, project, config) if wandb else None
    self._metrics = _Lines(directory / "metrics.jsonl", start_step)
    self._speed = _Lines(directory / "speed.jsonl", start_step)
    self._curves = Curves(directory, start_step)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends values that follow from the configuration (see the table of names).

    Args:
      step: optimizer steps done.
      values: name to number; NumPy and JAX scalars are accepted.
    """
    if self._enabled:
      with named(self._directory):
        self._metrics.write(step, values)
      self._write_curves(step, values)

  def write_speed(self, step: int, values: Mapping[str, float]) -> None:
    """Appends wall-clock values, which differ from run to run, to speed.jsonl."""
    if self._enabled:
      with named(self._directory):
        self._speed.write(step, values)
      self._write_curves(step, {f"speed/{name}": value for name, value in values.items()})

  def _write_curves(self, step: int, values: Mapping[str, float]) -> None:
    # A gap in the curve stands for a value that is not finite.
    finite = {name: v for name, v in ((n, _json_value(v)) for n, v in values.items())
              if v is not None}
    self._curves.write(step, finite)
    if self._wandb is not None:
      self._wandb.log(finite, step=step)

  def sync(self) -> None:
    """Returns when all that was written would survive the machine.

    Before a checkpoint, which claims it: a mounted bucket gets nothing earlier.
    """
    if self._enabled:
      with named(self._directory):
        self._metrics.sync()
        self._speed.sync()

  def written(self) -> dict[str, Any] | None:
    """Size and sha256 of metrics.jsonl so far, for a checkpoint; None where not enabled."""
    return self._metrics.written() if self._enabled else None

  def close(self) -> None:
    """Closes the files and ends the Weights & Biases run."""
    if not self._enabled:
      return
    with named(self._directory):  # what a full disk had refused is written again
      self._metrics.close()
      self._speed.close()
      self._curves.close()
    if self._wandb is not None:
      self._wandb.finish()

  def __enter__(self) -> "MemberMetrics":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def work_unit_status(message: str, progress: float) -> None:
  """Shows a message and the fraction done on the experiment platform (XManager).

  Elsewhere clu's local work unit writes it to the log at level INFO.

  Args:
    message: what is being done.
    progress: fraction done, 0 to 1.
  """
  platform.work_unit().set_notes(f"{message} ({progress:.0%})")
