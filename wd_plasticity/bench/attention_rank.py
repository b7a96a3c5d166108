"""Speed of the singular values of W_QK and W_VP of all heads of a model, on random weights.

  python -m wd_plasticity.bench.attention_rank --size=1b

Ours is timed on the whole model. Beside it the plain way, numpy's SVD (values only) of the
full products, on some heads, multiplied up to all of them; the two take turns.
"""

import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from wd_plasticity import cli
from wd_plasticity.analysis import attention_rank as ar
from wd_plasticity.bench import measure
from wd_plasticity.models import decoder
from wd_plasticity.models.config import PRESETS, ModelConfig

_FAMILY = flags.DEFINE_enum("family", "llama2", list(PRESETS), "Family of the model.")
_SIZE = flags.DEFINE_string("size", "1b", "Size of the model, by name: 1m, 7m, ..., 1b, 4b.")
_HEADS = flags.DEFINE_integer("heads", 3, "Heads that numpy does.", lower_bound=1)


def main(argv: Sequence[str]):
  del argv
  measure.check_size(_FAMILY.value, _SIZE.value)
  section = dict(PRESETS[_FAMILY.value][_SIZE.value]) | dict(
      compute_dtype="float32", attention="auto", document_mask=False, scan_layers=True,
      remat="none")
  config = ModelConfig.from_section(section, 1)
  print(_report(config, *_measure(config)), flush=True)


def _measure(config: ModelConfig):
  """Seconds to compile, of each run of ours and of each head of numpy's; largest difference."""
  params = _random_attention(config)
  on_device = jax.block_until_ready(jax.device_put(params))
  begin = time.perf_counter()
  spectra = jax.jit(ar.attention_spectra, static_argnums=1).lower(on_device, config).compile()
  compile_seconds = time.perf_counter() - begin

  def ours():
    with ar.one_lapack_thread():
      return jax.block_until_ready(spectra(on_device))

  ours()  # the first run also fetches memory
  own, plain, difference = [], [], 0.0
  for i in range(_HEADS.value):
    begin = time.perf_counter()
    found = ours()
    own.append(time.perf_counter() - begin)
    layer = i * config.num_layers // _HEADS.value
    head = i * config.num_heads // _HEADS.value
    begin = time.perf_counter()
    full = _full_spectra(params, config, layer, head)
    plain.append(time.perf_counter() - begin)
    for name, expected in full.items():
      s = np.asarray(found[name][layer, head])
      difference = max(difference, np.abs(s - expected[:len(s)]).max() / expected[0])
  return compile_seconds, own, plain, difference


def _random_attention(config: ModelConfig) -> dict:
  """Parameters as far as the spectra need them, on the host."""
  rng = np.random.default_rng(0)
  shapes = decoder.param_shapes(config)
  attention = {name: part for name, part in shapes["layers"]["attention"].items()
               if "kernel" in part}
  return {"layers": {"attention": jax.tree.map(
      lambda s: rng.standard_normal(s.shape, dtype=np.float32), attention)}}


def _full_spectra(params: dict, config: ModelConfig, layer: int, head: int) -> dict:
  """The plain way for one query head: both [D, D] products and all their singular values.

  In float64, to be a reference; numpy computes an SVD in it also when its input is float32.
  """
  attention = params["layers"]["attention"]
  group = head // (config.num_heads // config.num_kv_heads)
  def columns(name, index):
    k = config.head_dim
    return attention[name]["kernel"][layer][:, index * k:(index + 1) * k].astype(np.float64)
  rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
  output = attention["output"]["kernel"][layer][rows].astype(np.float64)
  products = {"qk": columns("query", head) @ columns("key", group).T,
              "vp": columns("value", group) @ output}
  return {name: np.linalg.svd(w, compute_uv=False) for name, w in products.items()}


def _report(config: ModelConfig, compile_seconds: float, own: list[float], plain: list[float],
            difference: float) -> str:
  heads = config.num_layers * config.num_heads
  ours, of_head = float(np.median(own)), float(np.median(plain))
  rows = [
      ("wd_plasticity, whole model", measure.spread(own), f"{ours:.2f}", f"{compile_seconds:.1f}"),
      ("numpy on full products, a head", measure.spread(plain), f"{of_head * heads:,.0f} *", "-")]
  header = "", "ms, median [range]", "s for the whole model", "compile s"
  return "\n".join([
      f"{_FAMILY.value} {_SIZE.value}: {config.num_layers} layers of width {config.width}, "
      f"{config.num_heads} query and {config.num_kv_heads} key/value heads of {config.head_dim}; "
      f"float32, {jax.devices()[0].device_kind}",
      measure.table(header, rows),
      f"* not run: {len(plain)} of {heads} heads were, each with its two products, and their "
      f"median is multiplied by {heads}",
      f"{of_head * heads / ours:,.0f} times faster (its fastest head against our slowest run: "
      f"{min(plain) * heads / max(own):,.0f} times); largest difference from numpy on these "
      f"heads: {difference:.1e} of the largest singular value"])


if __name__ == "__main__":
  cli.run(main)
