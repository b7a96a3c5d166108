"""What is known of the hardware: peak speed, for the utilisation (MFU), and host memory."""

import ctypes

import jax

# Dense bfloat16 matrix products per second and chip, from the makers' data sheets.
_PEAK_BF16 = {
    "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12,
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12,
    "TPU v5": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
}

# Options of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


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


def keep_freed_memory():
  """Lets a Linux process keep the memory it frees, for its next step.

  XLA on CPU allocates the temporary arrays of a program anew at each call. By default
  glibc returns blocks of that size to the kernel, which must clear and map every page
  again: 120,000 page faults per step of a 7M model, a tenth to a fifth of its time.
  Call it before the first array; elsewhere than on glibc it does nothing.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return
  for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
    mallopt(option, value)
