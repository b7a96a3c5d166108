"""Peak speed of known accelerators, for the model FLOPs utilisation (MFU)."""

import jax

# Dense bfloat16 matrix products per second and chip, from the makers' data sheets.
_PEAK_BF16 = {
    "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12,
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12,
    "TPU v5": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
}


def peak_flops() -> float:
  """FLOP/s of one device for matrix products, or 0 where no peak is known (CPUs).

  Float32 on the accelerators listed runs on other units; the bfloat16 peak is still
  what is reported against, so that the figures of two runs can be compared.
  """
  kind = jax.devices()[0].device_kind
  for name in sorted(_PEAK_BF16, key=len, reverse=True):
    if name in kind:
      return _PEAK_BF16[name]
  return 0.0
