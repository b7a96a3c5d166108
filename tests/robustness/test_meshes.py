"""A checkpoint of any mesh goes on on any other: all pairs of five."""

import jax
import numpy as np
import pytest
from judge import Figures
from test_checkpoint import META
from test_training import BATCH, LENGTH, _config, _program

from wd_plasticity.training import mesh as mesh_lib
from wd_plasticity.training.checkpoint import MemberCheckpoints
from wd_plasticity.training.step import StepOptions

MESHES = {"1": {}, "2 data": dict(data=2), "4 fsdp x tensor": dict(fsdp=2, tensor=2),
          "4 sweep x data": dict(sweep=2, data=2),
          "8 sweep x fsdp x tensor": dict(sweep=2, fsdp=2, tensor=2)}
_DECAYS, _BEFORE, _AFTER = (0.1, 1.0), 3, 3
# Of a loss of about 5 in float32, whose steps are of 5e-7. What is restored is equal bit by bit;
# meshes sum in orders of their own, and this is what test_training allows them.
_TOLERANCE = 1e-5


class _Run:
  """Two members on a mesh."""

  def __init__(self, mesh):
    plan, self.program = _program(_config(**mesh), len(_DECAYS), StepOptions())
    groups = len(plan.optimizer.group_names)
    self._hyper = self.program.hyper([1e-2] * 2, np.tile(np.array(_DECAYS)[:, None], (1, groups)))
    self._place = mesh_lib.BatchPlacer(self.program.mesh, 2, BATCH)

  def train(self, state, steps):
    """Losses [steps, M] and the state after them."""
    losses = []
    for step in steps:
      tokens = np.random.default_rng(step).integers(0, 257, (BATCH, LENGTH + 1)).astype(np.int32)
      local = np.broadcast_to(tokens[self._place.rows], (
          len(self._place.members), len(self._place.rows), LENGTH + 1))
      state, metrics = self.program.train_step(
          state, self._hyper, self._place(np.ascontiguousarray(local)))
      losses.append(jax.device_get(metrics["loss"]))
    return np.array(losses), state

  def save(self, state, folder):
    for m in range(2):
      member = self.program.member(state, m)
      checkpoints = MemberCheckpoints(folder / str(m))
      checkpoints.save(_BEFORE, member["params"], member["opt_state"], {"next_step": _BEFORE},
                       META)
      checkpoints.close()

  def restore(self, folder):
    abstract = self.program.abstract_member()
    members = []
    for m in range(2):
      params, opt_state, *_ = MemberCheckpoints(folder / str(m)).restore(
          _BEFORE, abstract["params"], abstract["opt_state"])
      members.append({"params": params, "opt_state": opt_state, "step": np.int32(_BEFORE),
                      "failed_at": np.int32(-1)})
    return self.program.stack(members)


def _bits(state):
  """Parameters and optimizer state on the host."""
  return jax.tree.leaves(jax.device_get((state["params"], state["opt_state"])))


@pytest.mark.slow
def test_all_pairs_of_meshes(tmp_path):
  runs = {name: _Run(mesh) for name, mesh in MESHES.items()}
  wanted, stored = {}, {}
  for name, run in runs.items():
    _, state = run.train(run.program.init(np.zeros(2, np.int32)), range(_BEFORE))
    run.save(state, tmp_path / name)
    stored[name] = _bits(state)
    wanted[name], _ = run.train(state, range(_BEFORE, _BEFORE + _AFTER))
  figures = Figures("meshes", tuple(str(i) for i in range(1, 6)))
  figures.note("rows: saved on; columns: restored on; difference of the next loss in 1e-9")
  worst = np.zeros(_AFTER)
  for source in MESHES:
    for number, (name, run) in enumerate(runs.items(), 1):
      state = run.restore(tmp_path / source)
      for x, y in zip(stored[source], _bits(state), strict=True):
        np.testing.assert_array_equal(y, x, err_msg=f"{source} on {name}")
      losses, _ = run.train(state, range(_BEFORE, _BEFORE + _AFTER))
      difference = np.abs(losses - wanted[source]).max(axis=1)
      worst = np.maximum(worst, difference)
      figures.count(source, str(number), round(float(difference[0]) * 1e9))
  figures.note(f"worst difference of {len(MESHES) ** 2} pairs: {worst[0]:.2g} at the next step, "
               f"{worst[-1]:.2g} at the third")
  figures.close()
  assert worst.max() <= _TOLERANCE
