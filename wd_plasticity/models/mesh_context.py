"""What the models know of the devices that they are traced for, from `jax.set_mesh`."""

import math

import jax
from jax.sharding import PartitionSpec

# Mesh axes that rows of a batch are divided over (training/mesh.py).
ROW_AXES = ("data", "fsdp")


def row_axes(mesh) -> tuple[str, ...]:
  """Those of `ROW_AXES` that a mesh has."""
  return tuple(axis for axis in ROW_AXES if axis in mesh.shape)


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': of the devices of the mesh, else the default backend's.

  They differ when a program is compiled ahead of time for devices that are not here.
  """
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else getattr(mesh, "abstract_device", None)
  return jax.default_backend() if device is None else device.platform


def divide_rows(x: jax.Array) -> jax.Array:
  """`x` with its first axis, rows of a batch, divided among devices as batches are.

  Left to itself XLA may follow the weights instead, which `fsdp` divides along the width:
  each device then computes a part of every row's width, and products are summed over devices
  in their full size. Without a mesh, or where the rows cannot be divided, `x` as it is.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = row_axes(mesh)
  shares = math.prod(mesh.shape[axis] for axis in axes)
  if shares == 1 or x.shape[0] % shares:
    return x
  rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *rest))
