"""Speed of a training step: forward, backward, clipping and AdamW, on random tokens.

  python -m wd_plasticity.bench.train_step --size=7m --peer

Every line of the table is a process of its own; they take turns.
"""

import contextlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from wd_plasticity import cli
from wd_plasticity.bench import measure, peer
from wd_plasticity.errors import UserError
from wd_plasticity.models.config import PRESETS

_FAMILY = flags.DEFINE_enum("family", "llama2", list(PRESETS), "Family of the model.")
_SIZE = flags.DEFINE_string("size", "7m", "Size of the model, by name: 0.3m, 1m, 3m, 7m, ...")
_BATCH = flags.DEFINE_integer("batch", 16, "Sequences per step.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 256, "Tokens per sequence.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "both", ["float32", "bfloat16", "both"],
                           "Compute dtype; parameters are float32.")
_STEPS = flags.DEFINE_integer("steps", 9, "Timed steps of each.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns the steps are divided into.", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices that a CPU is shown as.", lower_bound=1)
_PEER = flags.DEFINE_bool("peer", False, "Compare with transformers on torch.")


def main(argv: Sequence[str]):
  del argv
  measure.check_size(_FAMILY.value, _SIZE.value)
  if _PEER.value:
    peer.check_installed()
    if _FAMILY.value != "llama2":
      raise UserError("--peer knows the family llama2 only.")
  shape = {"family": _FAMILY.value, "size": _SIZE.value, "batch": _BATCH.value,
           "length": _LENGTH.value}
  dtypes = ["float32", "bfloat16"] if _DTYPE.value == "both" else [_DTYPE.value]
  # On a GPU several processes share its memory.
  environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  with contextlib.ExitStack() as stack:
    def start(name, module, spec):
      return stack.enter_context(measure.Worker(name, module, spec, environment))
    ours = [start(f"wd_plasticity {dtype}", "wd_plasticity.bench.step_worker",
                  shape | {"dtype": dtype, "devices": _DEVICES.value, "members": 1,
                           "layout": "stacked"}) for dtype in dtypes]
    peers = [start(name, "wd_plasticity.bench.peer",
                   shape | {"compiled": compiled, "bfloat16": bfloat16})
             for name, (compiled, bfloat16) in peer.VARIANTS.items()] if _PEER.value else []
    steps = -(-_STEPS.value // _ROUNDS.value)
    measure.take_turns(ours + peers, steps, _ROUNDS.value)
    print(_report(ours, peers))


def _report(ours: list[measure.Worker], peers: list[measure.Worker]) -> str:
  info = ours[0].info
  tokens = _BATCH.value * _LENGTH.value
  peak = max(w.info["peak_flops"] for w in ours)
  rows = []
  for w in ours + peers:
    seconds = float(np.median(w.seconds))
    rows.append((w.name, measure.spread(w.seconds), f"{tokens / seconds:,.0f}",
                 f"{info['flops'] / seconds / 1e9:,.0f}",
                 f"{info['flops'] / seconds / peak:.1%}",
                 f"{w.peak_memory() / 2**30:.2f}", f"{w.info['compile_seconds']:.1f}"))
  header = ("", "ms/step, median [range]", "tokens/s", "GFLOP/s", "MFU", "peak GiB", "compile s")
  lines = [
      f"{_FAMILY.value} {_SIZE.value}, {info['parameters'] / 1e6:.2f}M parameters, batch "
      f"{_BATCH.value} x {_LENGTH.value} tokens, {info['platform']}",
      measure.table(header, rows),
      "FLOPs: 6 per multiplied parameter and token (head counted, embedding not) and attention "
      "over all positions.",
      f"MFU: against {peak / 1e9:,.0f} GFLOP/s, " + (
          "the fastest large product measured in these processes."
          if info["peak_is_measured"] else "the bfloat16 peak of the data sheet.")]
  if peers:
    lines += [_ratio("best", ours, peers)]
    for dtype in ("float32", "bfloat16"):
      same = [[w for w in group if w.name.endswith(dtype)] for group in (ours, peers)]
      lines += [_ratio(dtype, *same)] if same[0] else []
  return "\n".join(lines)


def _ratio(what: str, ours: list[measure.Worker], peers: list[measure.Worker]) -> str:
  def best(workers):
    return min(workers, key=lambda w: np.median(w.seconds))
  a, b = best(ours), best(peers)
  return (f"{what}: {np.median(b.seconds) / np.median(a.seconds):.2f} times the tokens/s of the "
          f"peer ({a.name} against {b.name})")


if __name__ == "__main__":
  cli.run(main)
