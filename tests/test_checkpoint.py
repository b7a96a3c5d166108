"""Checkpoints: bits, retention, interruption, damage, full disks, devices and processes."""

import errno
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp
from waiting import until

from wd_plasticity import errors
from wd_plasticity.errors import UserError
from wd_plasticity.training import checkpoint
from wd_plasticity.training.checkpoint import MemberCheckpoints, open_checkpoint

META = {"config": {"name": "x", "seed": 3, "model": {}, "optim": {"weight_decay": 0.1},
                   "train": {"steps": 9, "tokens_per_parameter": 0.0, "global_batch_size": 8},
                   "data": {"sequence_length": 32}},
        "member": "wd0.1", "tokens": 4096, "steps": 9, "weight_decay": 0.1,
        "parameters": {"total": 100}, "model": {"vocab_size": 257},
        "tokenizer_fingerprint": "", "data_fingerprint": ""}


def make_state(fill=None, size=24):
  """Parameters of three dtypes and an optax state; `fill` makes every value known."""
  def array(shape, dtype, seed):
    if fill is not None:
      return jnp.full(shape, fill, dtype)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 100).astype(dtype)
  params = {"embed": {"embedding": array((size, 8), jnp.float32, 0)},
            "layers": {"scale": array((3, 8), jnp.bfloat16, 1), "count": array((4,), jnp.int32, 2)}}
  opt_state = (optax.ScaleByAdamState(array((), jnp.int32, 3),
                                      jax.tree.map(lambda x: x + 1, params),
                                      jax.tree.map(lambda x: x * 2, params)), optax.EmptyState())
  return params, opt_state


def bits(tree):
  return [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def abstract(tree):
  return jax.eval_shape(lambda: tree)


def write(directory, steps, **options):
  checkpoints = MemberCheckpoints(directory, **options)
  for step in steps:
    checkpoints.save(step, *make_state(step), {"next_step": step, "seed": 3}, META)
  checkpoints.close()
  return checkpoints


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """A member directory with steps 2 and 4; tests that change it work on a copy."""
  member = tmp_path_factory.mktemp("stored") / "members" / "wd0.1"
  write(member / "checkpoints", [2, 4], keep_latest=2)
  return member


def run_python(code, *args, wait=True, **env):
  process = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env={**os.environ, "JAX_PLATFORMS": "cpu", **env})
  if not wait:
    return process
  out, err = process.communicate()
  assert process.returncode == 0, err
  return out


# Values.


def test_every_bit_comes_back(tmp_path):
  params, opt_state = make_state()
  odd = np.array([0x7fc12345, 0xff800000, 0x80000000, 1], np.uint32).view(np.float32)
  params["odd"] = jnp.asarray(odd)  # a NaN with a payload, -inf, -0, a subnormal
  position = {"next_step": 5, "seed": 1, "data_fingerprint": "é", "tokens": 2**53 + 1}
  checkpoints = MemberCheckpoints(tmp_path / "c")
  assert checkpoints.latest() is None and checkpoints.steps() == []
  checkpoints.save(5, params, opt_state, position, META)
  checkpoints.wait()
  got = checkpoints.restore(5, abstract(params), abstract(opt_state))
  assert bits(got[:2]) == bits((params, opt_state))
  assert jax.tree.structure(got[:2]) == jax.tree.structure((params, opt_state))
  assert got[2] == position
  assert got[3] == {**META, "step": 5, "format": checkpoint.FORMAT, "checksums": "sha256",
                    "format_version": checkpoint.FORMAT_VERSION, "code_version": "0.1.0"}
  assert checkpoints.read_meta(5) == got[3]
  alone = open_checkpoint(tmp_path / "c" / "5").load_params()
  assert bits(alone) == bits(params)
  # JSON items are plain files, which any program reads.
  assert json.loads((tmp_path / "c/5/meta/data.json").read_text()) == got[3]


def test_donated_buffers_do_not_reach_the_checkpoint(tmp_path):
  state = {"w": jnp.zeros((1024, 1024)), "b": jnp.zeros((128,))}
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  first = state
  state = step(state)
  assert first["w"].is_deleted()  # so donation does take place on this backend
  checkpoints = MemberCheckpoints(tmp_path, keep_latest=9)
  for number in range(1, 5):
    checkpoints.save(number, state, {"m": state["w"]}, {}, META)
    for _ in range(3):
      state = step(state)
  checkpoints.close()
  target = abstract(state)
  for number in range(1, 5):
    params, opt_state, _, _ = checkpoints.restore(number, target, {"m": target["w"]})
    for leaf in jax.tree.leaves((params, opt_state)):
      assert np.all(np.asarray(leaf) == 3 * number - 2)


# Retention.


def test_retention_keeps_the_newest_and_the_chosen(tmp_path):
  checkpoints = write(tmp_path, range(1, 8), keep_latest=2, keep_steps=[1, 3])
  assert checkpoints.steps() == [1, 3, 6, 7]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3", "6", "7"]
  # A later start with other retention goes by its own.
  checkpoints = write(tmp_path, [8], keep_latest=0, keep_steps=[1])
  assert checkpoints.steps() == [1, 8]


def test_a_save_of_a_run_that_was_stopped_goes_when_it_has_gone_on(tmp_path):
  checkpoints = write(tmp_path, [3, 6, 7], keep_latest=2, every=3)
  assert checkpoints.steps() == [3, 6, 7]
  assert write(tmp_path, [8], keep_latest=2, every=3).steps() == [3, 6, 8]
  assert write(tmp_path, [9], keep_latest=2, every=3).steps() == [6, 9]
  assert write(tmp_path, [10], keep_latest=2, every=3, keep_steps=[10]).steps() == [9, 10]


def test_a_step_that_is_there_is_left_alone(tmp_path):
  checkpoints = write(tmp_path, [1])
  checkpoints.save(1, *make_state(9), {}, META)
  MemberCheckpoints(tmp_path).save(1, *make_state(9), {}, META)
  checkpoints.close()
  params = open_checkpoint(tmp_path).load_params()
  assert np.all(np.asarray(params["embed"]["embedding"]) == 1)


def test_a_directory_that_is_no_checkpoint_is_not_listed_and_is_written_over(tmp_path):
  checkpoints = write(tmp_path, [1], keep_latest=2)
  (tmp_path / "2").mkdir()
  (tmp_path / "2" / "junk").write_text("x")
  assert checkpoints.steps() == [1]
  checkpoints = write(tmp_path, [2], keep_latest=2)
  assert checkpoints.steps() == [1, 2]
  assert bits(open_checkpoint(tmp_path, 2).load_params()) == bits(make_state(2)[0])


# Interruption.

SAVER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_checkpoint import *
checkpoints = MemberCheckpoints(sys.argv[1], keep_latest=1)
start = (checkpoints.latest() or 0) + 1
for step in range(start, 100000):
  if step == start + 1:
    checkpoints.wait()
    print("ready", flush=True)
  checkpoints.save(step, *make_state(step % 1000, size=20_000), {"next_step": step}, META)
"""


def test_a_killed_save_never_passes_for_a_finished_one(tmp_path):
  changes = np.random.default_rng(0).integers(5, 60, size=3)
  target = [abstract(t) for t in make_state(0, size=20_000)]
  last, leftovers = 0, 0
  for number in changes:
    process = run_python(SAVER, tmp_path, os.path.dirname(__file__), wait=False)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    seen = set()
    def under_way(number=number, seen=seen):
      seen.add(frozenset(os.path.join(d, f) for d, _, files in os.walk(tmp_path) for f in files))
      return len(seen) > number and not all(n.isdigit() for n in os.listdir(tmp_path))
    until(under_way, "a save", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    leftovers += sum(not p.name.isdigit() for p in tmp_path.iterdir())
    checkpoints = MemberCheckpoints(tmp_path)
    assert all(p.name.isdigit() for p in tmp_path.iterdir())
    step = checkpoints.latest()
    assert step is not None and step >= last
    last = step
    for each in checkpoints.steps():
      params, opt_state, position, meta = checkpoints.restore(each, *target)
      assert position == {"next_step": each} and meta["step"] == each
      assert bits((params, opt_state)) == bits(make_state(each % 1000, size=20_000))
  assert leftovers  # else no save was hit and the test shows nothing


def test_leftovers_are_cleaned_and_nothing_else(stored, tmp_path):
  directory = tmp_path / "checkpoints"
  shutil.copytree(stored / "checkpoints", directory)
  shutil.copytree(directory / "4", directory / "6.orbax-checkpoint-tmp-12")
  (directory / "notes").mkdir()
  assert checkpoint.finished_steps(directory) == [2, 4]
  assert MemberCheckpoints(directory).latest() == 4
  assert sorted(p.name for p in directory.iterdir()) == ["2", "4", "notes"]


# Damage.


@pytest.mark.filterwarnings("ignore:coroutine", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_damaged_file_is_noticed_or_harmless(tmp_path):
  params, opt_state = make_state(size=400)  # too large to be stored inside of manifests
  stored = tmp_path / "stored"
  checkpoints = MemberCheckpoints(stored / "checkpoints", keep_latest=2)
  for step in (2, 4):
    checkpoints.save(step, params, opt_state, {}, META)
  checkpoints.close()
  files = [p.relative_to(stored) for p in (stored / "checkpoints" / "4").rglob("*") if p.is_file()]
  noticed = set()
  for name in files:
    for damage in ("delete", "empty", "half"):
      member = tmp_path / "member"
      shutil.rmtree(member, ignore_errors=True)
      shutil.copytree(stored, member)
      path = member / name
      if damage == "delete":
        path.unlink()
      else:
        os.truncate(path, path.stat().st_size // 2 if damage == "half" else 0)
      checkpoints = MemberCheckpoints(member / "checkpoints")
      try:
        got = checkpoints.restore(4, abstract(params), abstract(opt_state))
      except UserError as e:
        noticed.add(str(name))
        assert checkpoints.latest() in (2, 4)  # 2 when it is seen without reading
        assert f"{member / 'checkpoints' / '4'} is refused" in str(e)
        assert "take an earlier one (step 2)" in str(e) and "delete" not in str(e)
        assert "\n" not in str(e)
      else:
        assert bits(got[:2]) == bits((params, opt_state)), (name, damage)
  gc.collect()  # reads that orbax gave up complain now, not in another test
  arrays = {str(n) for n in files if "/d/" in str(n)}
  assert arrays and arrays <= noticed
  assert {"checkpoints/4/meta/data.json", "checkpoints/4/position/data.json"} <= noticed


def test_other_shapes_are_named(stored):
  checkpoints = MemberCheckpoints(stored / "checkpoints")
  params, opt_state = make_state(4, size=25)
  with pytest.raises(UserError, match=r"does not fit this configuration: params embed/embedding "
                                      r"has shape \(24, 8\) there and \(25, 8\) here"):
    checkpoints.restore(4, abstract(params), abstract(opt_state))
  params, opt_state = make_state(4)
  with pytest.raises(UserError, match="params extra has shape nothing there"):
    checkpoints.restore(4, abstract({**params, "extra": jnp.zeros(3)}), abstract(opt_state))
  with pytest.raises(UserError, match="no checkpoint at .*/3"):
    checkpoints.restore(3, abstract(params), abstract(opt_state))


# The reader of eval programs.


def test_opens_by_step_checkpoints_or_member_directory(stored):
  for path, step in [(stored, None), (stored / "checkpoints", None), (stored, 4),
                     (stored / "checkpoints" / "4", None), (str(stored), None)]:
    opened = open_checkpoint(path, step)
    assert opened.step == 4 and opened.directory == stored / "checkpoints" / "4"
    assert opened.meta["config"] == META["config"]
    assert bits(opened.load_params()) == bits(make_state(4)[0])
  assert open_checkpoint(stored, 2).step == 2


def test_what_is_not_a_checkpoint_gets_one_sentence(stored, tmp_path):
  ocp.save(tmp_path / "foreign", {"w": jnp.ones(3)})
  ocp.save_checkpointables(tmp_path / "named", {"params": {"w": jnp.ones(3)}})
  (tmp_path / "empty").mkdir()
  (tmp_path / "file").write_text("x")
  (tmp_path / "unfinished" / "7.orbax-checkpoint-tmp-1").mkdir(parents=True)
  cases = [("nowhere", "does not exist"), ("foreign", "not a wd_plasticity checkpoint"),
           ("named", "not a wd_plasticity checkpoint"), ("empty", "no finished wd_plasticity"),
           ("file", "no finished wd_plasticity"), ("unfinished", "no finished wd_plasticity"),
           ("unfinished/7.orbax-checkpoint-tmp-1", "never finished")]
  for name, message in cases:
    with pytest.raises(UserError, match=message) as e:
      open_checkpoint(tmp_path / name)
    assert "\n" not in str(e.value) and name.split("/")[0] in str(e.value)
  with pytest.raises(UserError, match="no checkpoint of step 3; it has 2, 4"):
    open_checkpoint(stored, 3)
  with pytest.raises(UserError, match="work directory of a sweep; .*members/wd0.1"):
    open_checkpoint(stored.parent.parent)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
  checkpoints = write(tmp_path, [1])
  monkeypatch.undo()
  state = [abstract(t) for t in make_state(1)]
  for read in (lambda: open_checkpoint(tmp_path), lambda: checkpoints.restore(1, *state)):
    with pytest.raises(UserError, match="format 2 .*reads up to 1; update wd_plasticity"):
      read()


# Disks.


def test_space_is_checked_before_the_start(tmp_path):
  free = shutil.disk_usage(tmp_path).free
  checkpoint.check_space(tmp_path / "not" / "yet", free // 2)
  with pytest.raises(UserError, match="need 1000000.00 GB and the disk of .* GB free; free some"):
    checkpoint.check_space(tmp_path, 10**15)


def test_a_full_disk_is_one_sentence_and_keeps_the_last_checkpoint(tmp_path, capsys):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk],
                         capture_output=True, check=False) if shutil.which("mount") else None
  if mount is None or mount.returncode:
    pytest.skip("a small disk can only be mounted by root")
  try:
    checkpoints = write(disk / "c", [1])

    def train(argv):
      random = np.random.default_rng(0).normal(size=(1 << 20,)).astype(np.float32)
      checkpoints.save(2, {"w": jnp.asarray(random)}, make_state(2)[1], {}, META)
      checkpoints.wait()

    with pytest.raises(SystemExit) as e:
      errors.run(train)
    assert e.value.code == errors.EXIT_USER_ERROR
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: no space is left for ") and str(disk) in line
    assert checkpoints.steps() == [1] and os.listdir(disk / "c") == ["1"]
    assert bits(open_checkpoint(disk / "c").load_params()) == bits(make_state(1)[0])
    # With room again the same object goes on.
    checkpoints.save(2, *make_state(2), {}, META)
    checkpoints.close()
    assert checkpoints.steps() == [2]
  finally:
    subprocess.run(["umount", "-l", disk], check=True)


def test_other_errors_of_a_save_are_not_called_a_full_disk(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise PermissionError(errno.EACCES, "not yours", "x")
  monkeypatch.setattr(ocp, "save_checkpointables_async", fail)
  with pytest.raises(PermissionError):
    MemberCheckpoints(tmp_path).save(1, *make_state(1), {}, META)


# Devices and processes.

SHARDED = """
import sys
sys.path.insert(0, sys.argv[2])
from test_checkpoint import *
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
def place(tree, mesh):
  return jax.tree.map(lambda x: NamedSharding(
      mesh, P("fsdp", "tensor") if x.ndim == 2 and x.shape[0] % 4 == 0 else P()), tree)
def mesh(shape):
  return Mesh(np.array(jax.devices()[:shape[0] * shape[1]]).reshape(shape), ("fsdp", "tensor"))
def check(path, m, step):
  state = make_state()
  where = place(state, m)
  target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                        abstract(state), where)
  got = MemberCheckpoints(path).restore(step, *target)
  assert got[2] == {"next_step": step}
  gathered = jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), got[:2])
  assert bits(gathered) == bits(state)
  assert jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, got[:2], where)) == [
      True] * len(jax.tree.leaves(where))
  params = open_checkpoint(path).load_params(where[0])
  assert bits(jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True),
                           params)) == bits(state[0])
  everywhere = open_checkpoint(path).load_params(NamedSharding(m, P()))
  assert bits(everywhere) == bits(state[0])
  assert bits(open_checkpoint(path).load_params()) == bits(state[0])
from jax.experimental import multihost_utils
"""

SAVE_SHARDED = SHARDED + """
state = make_state()
state = jax.device_put(state, place(state, mesh((2, 2))))
checkpoints = MemberCheckpoints(sys.argv[1])
checkpoints.save(3, *state, {"next_step": 3}, META)
checkpoints.close()
check(sys.argv[1], mesh((1, 4)), 3)
check(sys.argv[1], mesh((2, 1)), 3)
"""


def test_another_mesh_or_device_count_restores_the_same_bits(tmp_path):
  run_python(SAVE_SHARDED, tmp_path, os.path.dirname(__file__),
             XLA_FLAGS="--xla_force_host_platform_device_count=4")
  assert len(jax.devices()) != 4
  params, opt_state = make_state()
  got = MemberCheckpoints(tmp_path).restore(3, abstract(params), abstract(opt_state))
  assert bits(got[:2]) == bits((params, opt_state))


TWO_PROCESSES = SHARDED + """
jax.distributed.initialize(sys.argv[3], 2, int(sys.argv[4]), initialization_timeout=400)
m = mesh((4, 2))
state = make_state()
where = place(state, m)
state = jax.tree.map(
    lambda x, s: jax.make_array_from_callback(x.shape, s, np.asarray(x).__getitem__), state, where)
members = [MemberCheckpoints(f"{sys.argv[1]}/{i}", keep_latest=1, keep_steps=[2]) for i in range(2)]
for step in range(1, 5):  # all members write at the same time
  for member in members:
    member.save(step, *state, {"next_step": step}, META)
for member in members:
  member.wait()
  assert member.latest() == 4
  if jax.process_index() == 0:  # which deletes; the others may still see what goes
    assert member.steps() == [2, 4], member.steps()
check(f"{sys.argv[1]}/1", mesh((2, 4)), 4)
if jax.process_index() == 0:  # one process alone may look
  assert open_checkpoint(f"{sys.argv[1]}/0").meta["tokens"] == 4096
print("done")
"""


def test_two_processes_save_several_members_and_one_restores(tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  processes = [run_python(TWO_PROCESSES, tmp_path, os.path.dirname(__file__), address, i,
                          wait=False, XLA_FLAGS="--xla_force_host_platform_device_count=4")
               for i in range(2)]
  try:
    for process in processes:
      out, err = process.communicate()
      assert out.endswith("done\n"), err
  finally:
    for process in processes:
      process.kill()
  params, opt_state = make_state()
  for i in range(2):
    checkpoints = MemberCheckpoints(tmp_path / str(i))
    got = checkpoints.restore(checkpoints.latest(), abstract(params), abstract(opt_state))
    assert bits(got[:2]) == bits((params, opt_state))
