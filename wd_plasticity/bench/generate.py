"""Speed of generation: prompts of mixed lengths, greedy and sampled, nothing ends early.

  python -m wd_plasticity.bench.generate --size=7m --peer

Every line of a table is a process of its own; they take turns. All have the same weights
and the same prompts, and make the same number of tokens.
"""

import contextlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from wd_plasticity import cli
from wd_plasticity.bench import measure, peer
from wd_plasticity.models.config import PRESETS

_FAMILY = flags.DEFINE_enum("family", "llama2", list(PRESETS), "Family of the model.")
_SIZE = flags.DEFINE_string("size", "7m", "Size of the model, by name: 0.3m, 1m, 3m, 7m, ...")
_PROMPTS = flags.DEFINE_integer("prompts", 32, "Prompts that are continued greedily.",
                                lower_bound=1)
_SAMPLED = flags.DEFINE_integer("sampled_prompts", 8, "Prompts that are sampled from; 0: none.",
                                lower_bound=0)
_SAMPLES = flags.DEFINE_integer("samples", 16, "Samples per prompt.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of the longest prompt; the shortest has an "
                               "eighth.", lower_bound=8)
_NEW = flags.DEFINE_integer("new_tokens", 128, "Tokens generated from each.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "both", ["float32", "bfloat16", "both"], "Compute dtype.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Times that all prompts are continued.", lower_bound=1)
_PEER = flags.DEFINE_bool("peer", False, "Compare with `generate` of transformers on torch.")


def main(argv: Sequence[str]):
  del argv
  measure.check_size(_FAMILY.value, _SIZE.value)
  if _PEER.value:
    peer.check_installed()
  _compare("greedy", _PROMPTS.value, samples=1, temperature=0.0)
  if _SAMPLED.value:
    _compare(f"{_SAMPLES.value} samples at temperature 1", _SAMPLED.value, samples=_SAMPLES.value,
             temperature=1.0)


def _compare(title: str, prompts: int, samples: int, temperature: float):
  spec = {"family": _FAMILY.value, "size": _SIZE.value, "prompts": prompts, "samples": samples,
          "temperature": temperature, "length": _LENGTH.value, "new_tokens": _NEW.value}
  dtypes = ["float32", "bfloat16"] if _DTYPE.value == "both" else [_DTYPE.value]
  # On a GPU several processes share its memory.
  environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  with contextlib.ExitStack() as stack:
    def start(name, module):
      return [stack.enter_context(measure.Worker(
          f"{name} {dtype}", f"wd_plasticity.bench.{module}", spec | {"dtype": dtype},
          environment)) for dtype in dtypes]
    ours = start("wd_plasticity", "generate_worker")
    peers = start("transformers", "generate_peer") if _PEER.value else []
    measure.take_turns(ours + peers, 1, _ROUNDS.value)
    print(f"{title}: {_FAMILY.value} {_SIZE.value}, {prompts} prompts of {_LENGTH.value // 8} to "
          f"{_LENGTH.value} tokens, {_NEW.value} new tokens each, {ours[0].info['platform']}")
    print(_report(ours, peers, prompts * samples * _NEW.value))


def _report(ours: list[measure.Worker], peers: list[measure.Worker], tokens: int) -> str:
  rows = []
  for w in ours + peers:
    rows.append((w.name, measure.spread(w.seconds), f"{tokens / np.median(w.seconds):,.0f}",
                 f"{w.peak_memory() / 2**30:.2f}"))
  lines = [measure.table(("", "ms, median [range]", "new tokens/s", "peak GiB"), rows)]
  if peers:
    a, b = (min(group, key=lambda w: np.median(w.seconds)) for group in (ours, peers))
    lines += [f"{np.median(b.seconds) / np.median(a.seconds):.2f} times the tokens/s of the peer "
              f"({a.name} against {b.name})"]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  cli.run(main)
