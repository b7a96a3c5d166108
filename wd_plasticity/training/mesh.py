"""The device mesh (sweep, data, fsdp, tensor) and the one table from names to axes."""

import math
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from wd_plasticity.errors import UserError
from wd_plasticity.models.mesh_context import ROW_AXES
from wd_plasticity.optim.groups import name_of

AXES = ("sweep", "data", "fsdp", "tensor")

# Ordered, first match wins, every parameter must be covered. `tensor` splits heads,
# feed-forward units and the vocabulary; `fsdp` splits what `tensor` leaves.
RULES = (
    (r"embed/embedding", P("tensor", "fsdp")),
    (r"head/kernel", P("fsdp", "tensor")),
    (r"layers/attention/(query|key|value)/kernel", P(None, "fsdp", "tensor")),
    (r"layers/attention/output/kernel", P(None, "tensor", "fsdp")),
    (r"layers/feed_forward/(gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"layers/feed_forward/down/kernel", P(None, "tensor", "fsdp")),
    (r".*norm/scale", P()),
    (r"layers/.*/lora_[ab]", P()),
)
BATCH = P("sweep", ROW_AXES)  # tokens [M, B, L+1]
MEMBERS = P("sweep")  # one value per member
ROWS = P(ROW_AXES)  # rows of a batch that all members share


def axis_sizes(section: ConfigDict, num_devices: int) -> dict[str, int]:
  """Sizes of the mesh axes; one of them may be -1 and takes the devices that are left."""
  check_axes(section)
  sizes = {axis: section[axis] for axis in AXES}
  free = [axis for axis, n in sizes.items() if n == -1]
  fixed = math.prod(n for n in sizes.values() if n != -1)
  if free and num_devices % fixed == 0:
    sizes[free[0]] = num_devices // fixed
  if math.prod(sizes.values()) != num_devices:
    shape = ", ".join(f"{a}={section[a]}" for a in AXES)
    raise UserError(f"the mesh ({shape}) does not fit {num_devices} device(s); its sizes must "
                    "multiply to that number.")
  return sizes


def check_axes(section: ConfigDict) -> None:
  """Refuses sizes that fit no number of devices."""
  bad = [f"mesh.{a}={section[a]}" for a in AXES if section[a] < 1 and section[a] != -1]
  if bad:
    raise UserError(f"{bad[0]} must be positive, or -1 for the devices that are left.")
  free = [axis for axis in AXES if section[axis] == -1]
  if len(free) > 1:
    raise UserError(f"only one mesh axis can be -1, not {' and '.join(free)}.")


def make_mesh(section: ConfigDict) -> Mesh:
  """The mesh over all devices of the run."""
  sizes = axis_sizes(section, jax.device_count())
  return jax.make_mesh(tuple(sizes[a] for a in AXES), AXES,
                       axis_types=(AxisType.Auto,) * len(AXES))


def flat_names(tree) -> dict[str, object]:
  """Leaves of a nested dict by slash-joined name."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {name_of(path): leaf for path, leaf in leaves}


def parameter_spec(name: str) -> P:
  """Axes of one parameter by `RULES`."""
  for pattern, spec in RULES:
    if re.fullmatch(pattern, name):
      return spec
  raise UserError(f"parameter {name} is not covered by the sharding table in training/mesh.py.")


def parameter_specs(params) -> dict:
  """A tree like `params` (nested dict of arrays or shapes) with the spec of each leaf."""
  return jax.tree_util.tree_map_with_path(
      lambda path, _: parameter_spec(name_of(path)), params)


def check_parameters(params, sizes: dict[str, int]):
  """Refuses a parameter whose dimension its mesh axis does not divide."""
  for name, leaf in flat_names(params).items():
    for dim, axis in zip(leaf.shape, parameter_spec(name), strict=False):
      if axis and dim % sizes[axis]:
        hint = (f"; model.vocab_size={-(-dim // sizes[axis]) * sizes[axis]} would pad it"
                if name in ("embed/embedding", "head/kernel") and axis == "tensor" else "")
        raise UserError(f"mesh.{axis}={sizes[axis]} does not divide the dimension {dim} of "
                        f"{name}{hint}.")


def with_members(spec: P) -> P:
  """The spec of an array that has a leading member axis."""
  return P("sweep", *spec)


def stacked(specs):
  """A tree of specs as that of arrays with a leading member axis."""
  return jax.tree.map(with_members, specs, is_leaf=lambda s: isinstance(s, P))


def row_shares(mesh: Mesh) -> int:
  """Parts that rows are divided into; their number must be a multiple of this."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def put(mesh: Mesh, array: np.ndarray, spec: P) -> jax.Array:
  """An array that every process holds whole, laid on the mesh."""
  array = np.asarray(array)
  return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), array.__getitem__)


def sharding(mesh: Mesh, spec: P) -> NamedSharding:
  return NamedSharding(mesh, spec)


def shardings(mesh: Mesh, specs):
  """A tree of specs as a tree of shardings."""
  return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, P))


def over_members(fn: Callable, in_axes: Sequence[int | None], num_members: int) -> Callable:
  """`fn` of one member as a function of members stacked on a leading axis.

  One member is not mapped over but taken out of its axis: on a CPU products with a batch
  dimension, be it 1, are slow.

  Args:
    fn: a function of one member.
    in_axes: 0 for arguments with a member axis, None for those that all members share.
    num_members: size of the axis.
  """
  if num_members > 1:
    return jax.vmap(fn, in_axes=in_axes, spmd_axis_name="sweep")

  def single(*args):
    args = [jax.tree.map(lambda x: x[0], a) if axis == 0 else a
            for a, axis in zip(args, in_axes, strict=True)]
    return jax.tree.map(lambda x: x[None], fn(*args))

  return single


class BatchPlacer:
  """Places batches [M, B, ...] on the mesh; each process brings only its own share.

  Attributes:
    members: indices on the member axis that this process's devices hold.
    rows: indices on the batch axis that this process's devices hold.
  """

  def __init__(self, mesh: Mesh, num_members: int, batch_size: int, *, spec: P = BATCH):
    self._sharding = NamedSharding(mesh, spec)
    self._shape = (num_members, batch_size)
    members, rows = set(), set()
    for m, b in self._sharding.addressable_devices_indices_map(self._shape).values():
      members.update(range(*m.indices(num_members)))
      rows.update(range(*b.indices(batch_size)))
    self.members = np.array(sorted(members))
    self.rows = np.array(sorted(rows))

  def __call__(self, local: np.ndarray) -> jax.Array:
    """Turns this process's share [len(members), len(rows), ...] into the global array."""
    def shard(index):
      m = np.arange(*index[0].indices(self._shape[0]))
      b = np.arange(*index[1].indices(self._shape[1]))
      m, b = np.searchsorted(self.members, m), np.searchsorted(self.rows, b)
      return local[m[0]:m[-1] + 1, b[0]:b[-1] + 1]
    return jax.make_array_from_callback(self._shape + local.shape[2:], self._sharding, shard)
