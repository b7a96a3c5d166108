"""Speed of a sweep: its members stacked in one program, in turns, or divided among devices.

  python -m wd_plasticity.bench.sweep --size=1m --members=4 --devices=2

Every line of the table is a process of its own; they take turns.
"""

import contextlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from wd_plasticity import cli
from wd_plasticity.bench import measure
from wd_plasticity.errors import UserError
from wd_plasticity.models.config import PRESETS

_FAMILY = flags.DEFINE_enum("family", "llama2", list(PRESETS), "Family of the model.")
_SIZE = flags.DEFINE_string("size", "1m", "Size of the model, by name: 0.3m, 1m, 3m, 7m, ...")
_MEMBERS = flags.DEFINE_integer("members", 4, "Members of the sweep.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 16, "Sequences per member and step.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 256, "Tokens per sequence.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"],
                           "Compute dtype; parameters are float32.")
_STEPS = flags.DEFINE_integer("steps", 9, "Timed steps of each.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns the steps are divided into.", lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    "devices", 2, "Devices that a CPU is shown as where members are divided.", lower_bound=1)


def main(argv: Sequence[str]):
  del argv
  measure.check_size(_FAMILY.value, _SIZE.value)
  devices = _DEVICES.value
  if _MEMBERS.value % devices:
    raise UserError(f"--members={_MEMBERS.value} cannot be divided among --devices={devices}; "
                    "choose a multiple.")
  layouts = {"in turns": ("turns", 1), "stacked": ("stacked", 1)}
  if devices > 1:
    layouts[f"divided among {devices} devices"] = ("devices", devices)
  shape = {"family": _FAMILY.value, "size": _SIZE.value, "batch": _BATCH.value,
           "length": _LENGTH.value, "dtype": _DTYPE.value, "members": _MEMBERS.value}
  with contextlib.ExitStack() as stack:
    workers = [stack.enter_context(measure.Worker(
        name, "wd_plasticity.bench.step_worker",
        shape | {"layout": layout, "devices": count},
        {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}))
        for name, (layout, count) in layouts.items()]
    measure.take_turns(workers, -(-_STEPS.value // _ROUNDS.value), _ROUNDS.value)
    print(_report(workers))


def _report(workers: list[measure.Worker]) -> str:
  tokens = _MEMBERS.value * _BATCH.value * _LENGTH.value
  in_turns = float(np.median(workers[0].seconds))
  rows = []
  for w in workers:
    seconds = float(np.median(w.seconds))
    rows.append((w.name, measure.spread(w.seconds), f"{tokens / seconds:,.0f}",
                 f"{in_turns / seconds:.2f}", f"{w.peak_memory() / 2**30:.2f}",
                 f"{w.info['compile_seconds']:.1f}"))
  info = workers[0].info
  header = (f"{_MEMBERS.value} members", "ms/step of all, median [range]", "tokens/s",
            "speed against turns", "peak GiB", "compile s")
  return (f"{_FAMILY.value} {_SIZE.value}, {info['parameters'] / 1e6:.2f}M parameters, "
          f"{_DTYPE.value}, batch {_BATCH.value} x {_LENGTH.value} tokens, {info['platform']}\n"
          + measure.table(header, rows))


if __name__ == "__main__":
  cli.run(main)
