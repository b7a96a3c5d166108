"""Runs a program as one whom permissions bind: python -m bound MODULE FLAGS, by root.

Root is not bound by them through capabilities alone, so it is enough to drop these: everything
that is root's can still be read and written, and nothing that is somebody else's.
"""

import ctypes
import os
import runpy
import sys

_VERSION_3 = 0x20080522  # of linux/capability.h


def drop_capabilities() -> None:
  """Of this process, for good.

  Raises:
    OSError: the system does not do it.
  """
  class Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

  class Data(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint32) for n in ("effective", "permitted", "inheritable")]

  libc = ctypes.CDLL(None, use_errno=True)
  if libc.capset(ctypes.byref(Header(_VERSION_3, 0)), ctypes.byref((Data * 2)())):
    raise OSError(ctypes.get_errno(), "capset")


def become() -> None:
  """Does what `python -m MODULE FLAGS` does, of sys.argv."""
  module = sys.argv.pop(1)
  sys.argv[0] = module
  sys.modules.pop(module, None)  # or runpy would warn that it is imported
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  drop_capabilities()
  os.umask(0o022)
  become()
