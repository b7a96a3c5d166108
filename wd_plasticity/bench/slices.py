"""Accelerators that need not be here: how many, with how much memory, and their topology."""

import dataclasses
import math
import os

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from wd_plasticity.errors import UserError
from wd_plasticity.training import mesh as mesh_lib

_GIB = 2**30
# Bytes of one device that a program can have. TPUs: what XLA's compiler says is available.
# GPUs: three quarters of the memory, which is JAX's default (XLA_PYTHON_CLIENT_MEM_FRACTION).
_USABLE = {
    "v5e": 15.75 * _GIB, "v5p": 95.73 * _GIB, "v6e": 31.24 * _GIB,
    "a100": 0.75 * 79 * _GIB, "h100": 0.75 * 79 * _GIB, "h200": 0.75 * 139 * _GIB,
    "cpu": math.inf,
}
_TPUS = ("v5e", "v5p", "v6e")


@dataclasses.dataclass(frozen=True)
class Slice:
  """Devices by name: v5e:4x8 (TPU chips and their topology), a100:8, h100:8, cpu:8.

  a100 and h100 are those with 80 GB.
  """
  name: str

  def __post_init__(self):
    kind, colon, shape = self.name.partition(":")
    sizes = shape.split("x")
    if (kind not in _USABLE or not colon or not all(s.isdigit() and int(s) for s in sizes)
        or (kind not in _TPUS and len(sizes) > 1)):
      raise UserError(f"{self.name!r} does not name devices; write them like v5e:4x8, v5p:2x4x4, "
                      "v6e:4x4, a100:8, h100:8, h200:8 or cpu:8.")

  @property
  def kind(self) -> str:
    return self.name.partition(":")[0]

  @property
  def platform(self) -> str:
    return "tpu" if self.kind in _TPUS else "cpu" if self.kind == "cpu" else "gpu"

  @property
  def num_devices(self) -> int:
    return math.prod(map(int, self.name.partition(":")[2].split("x")))

  @property
  def usable_bytes(self) -> float:
    """Memory of one device that a program can have."""
    return _USABLE[self.kind]

  def planning(self):
    """A context in which plans are made as on these devices."""
    return jax.sharding.use_abstract_mesh(
        AbstractMesh((1,), ("device",), abstract_device=self._abstract_device()))

  def abstract_mesh(self, section) -> AbstractMesh:
    """The mesh of a configuration over these devices, of which nothing need be installed."""
    sizes = mesh_lib.axis_sizes(section, self.num_devices)
    return AbstractMesh(
        tuple(sizes[axis] for axis in mesh_lib.AXES), mesh_lib.AXES,
        axis_types=(AxisType.Auto,) * len(sizes), abstract_device=self._abstract_device())

  def _abstract_device(self) -> AbstractDevice:
    return AbstractDevice(device_kind=self.kind, num_cores=None, platform=self.platform)

  def mesh(self, section) -> Mesh:
    """The mesh of a configuration over these devices, to compile for; cpu and TPUs only.

    Raises:
      UserError: no compiler for them is installed, or there is no such topology.
    """
    sizes = mesh_lib.axis_sizes(section, self.num_devices)
    shape = tuple(sizes[axis] for axis in mesh_lib.AXES)
    types = (AxisType.Auto,) * len(shape)
    if self.platform == "cpu":
      return jax.make_mesh(shape, mesh_lib.AXES, axis_types=types)
    # Without these libtpu asks the network for the machine that it is not on.
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
                        ("TPU_WORKER_HOSTNAMES", "localhost")):
      os.environ.setdefault(name, value)
    try:
      topology = topologies.get_topology_desc(platform="tpu", topology_name=self.name)
    except Exception as e:  # of several types, by what libtpu does not find
      reason = " ".join(str(e).split())[:160]
      raise UserError(f"programs for {self.name} cannot be compiled here ({reason}); install "
                      "libtpu (pip install 'jax[tpu]') and name a topology that it knows.") from e
    if len(topology.devices) != self.num_devices:
      raise UserError(f"{self.name} has {len(topology.devices)} devices, not {self.num_devices}.")
    devices = topologies.make_mesh(topology, shape, mesh_lib.AXES).devices
    return Mesh(devices, mesh_lib.AXES, axis_types=types)
