"""Every attention implementation against one written in numpy, packed rows included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wd_plasticity.errors import UserError
from wd_plasticity.models import attention


def inputs(batch=2, length=12, heads=4, kv_heads=2, head_dim=6, seed=0):
  rng = np.random.default_rng(seed)
  q = rng.normal(size=(batch, length, heads, head_dim)).astype(np.float32)
  k, v = rng.normal(size=(2, batch, length, kv_heads, head_dim)).astype(np.float32)
  ids = np.sort(rng.integers(4, size=(batch, length)), axis=1).astype(np.int32)
  return q, k, v, ids


def numpy_attention(q, k, v, ids=None):
  """Row by row, head by head, in float64."""
  out = np.zeros(q.shape)
  for b in range(q.shape[0]):
    for i in range(q.shape[1]):
      seen = [j for j in range(i + 1) if ids is None or ids[b, i] == ids[b, j]]
      for h in range(q.shape[2]):
        g = h // (q.shape[2] // k.shape[2])
        scores = k[b, seen, g].astype(np.float64) @ q[b, i, h] / np.sqrt(q.shape[3])
        shares = np.exp(scores - scores.max())
        out[b, i, h] = shares / shares.sum() @ v[b, seen, g]
  return out


def splash(q, k, v, ids):
  return attention._splash(q, k, v, ids, interpret=True)


@pytest.mark.parametrize("implementation", ["plain", "auto"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1)])
def test_float32(heads, kv_heads, packed, implementation):
  q, k, v, ids = inputs(heads=heads, kv_heads=kv_heads)
  ids = ids if packed else None
  got = attention.attend(q, k, v, segment_ids_BxL=ids, implementation=implementation)
  np.testing.assert_allclose(got, numpy_attention(q, k, v, ids), atol=2e-6)


def test_segments_that_come_again_are_one_document():
  q, k, v, _ = inputs(batch=1)
  ids = np.array([[0, 0, 1, 1, 0, 2, 2, 2, 0, 1, 1, 3]], np.int32)
  got = attention.attend(q, k, v, segment_ids_BxL=ids, implementation="plain")
  np.testing.assert_allclose(got, numpy_attention(q, k, v, ids), atol=2e-6)


def test_plain_bfloat16_rounds_only_inputs_and_output():
  q, k, v = (jnp.asarray(t, jnp.bfloat16) for t in inputs()[:3])
  got = attention.attend(q, k, v, implementation="plain")
  assert got.dtype == jnp.bfloat16
  exact = numpy_attention(*(np.asarray(t, np.float32) for t in (q, k, v)))
  np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8, atol=1e-5)


def test_plain_survives_large_scores():
  q, k, v, ids = inputs()
  got, grads = jax.value_and_grad(
      lambda q: attention.attend(q, k, v, segment_ids_BxL=ids, implementation="plain").sum())(
          q * 1e4)
  assert np.isfinite(got) and np.isfinite(grads).all()


@pytest.mark.parametrize("packed", [False, True])
def test_splash_interpreted(packed):
  q, k, v, ids = inputs(batch=1, length=256, heads=2, kv_heads=1, head_dim=8)
  ids = ids if packed else None
  np.testing.assert_allclose(splash(q, k, v, ids), numpy_attention(q, k, v, ids), atol=1e-5)


def test_splash_gradients_of_packed_rows():
  q, k, v, ids = inputs(batch=1, length=128, heads=2, kv_heads=1, head_dim=8)
  weights = np.random.default_rng(9).normal(size=q.shape).astype(np.float32)
  got, want = (
      jax.jit(jax.grad(lambda *t: (f(*t, ids) * weights).sum(), (0, 1, 2)))(q, k, v)  # noqa: B023
      for f in (splash, attention._plain))
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices "
                    "(XLA_FLAGS=--xla_force_host_platform_device_count=4)")
def test_splash_under_a_mesh():
  """Each device runs the kernel on its rows and heads; also for members under vmap."""
  mesh = Mesh(mesh_utils.create_device_mesh((1, 2, 1, 2), jax.devices()[:4]),
              ("sweep", "data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 4)
  q, k, v, ids = inputs(batch=2, length=128, heads=4, kv_heads=2, head_dim=8)
  rows = NamedSharding(mesh, P("data"))
  with jax.set_mesh(mesh):
    run = jax.jit(splash, in_shardings=(rows,) * 4)
    got = run(*(jax.device_put(t, rows) for t in (q, k, v, ids)))
    members = jax.jit(jax.vmap(splash, spmd_axis_name="sweep"))(q[None], k[None], v[None],
                                                               ids[None])
  want = numpy_attention(q, k, v, ids)
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(members[0], want, atol=1e-5)


@pytest.mark.parametrize("head_dim", [48, 64, 128])
def test_splash_lowers_for_tpu(head_dim):
  """The kernel compiles to TPU code, forward and backward, without a TPU."""
  q, k, v, ids = inputs(batch=1, length=256, heads=4, kv_heads=2, head_dim=head_dim)
  q, k, v = (jnp.asarray(t, jnp.bfloat16) for t in (q, k, v))
  step = jax.grad(lambda q, k, v: attention._splash(q, k, v, ids).astype(jnp.float32).sum())
  exported = jax.export.export(jax.jit(step), platforms=["tpu"])(q, k, v)
  assert "tpu_custom_call" in exported.mlir_module()


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("head_dim", [48, 64, 128])
def test_cudnn(head_dim, packed):
  q, k, v, ids = inputs(length=256, heads=8, kv_heads=2, head_dim=head_dim)
  q, k, v = (jnp.asarray(t, jnp.bfloat16) for t in (q, k, v))
  ids = ids if packed else None
  weights = np.random.default_rng(9).normal(size=q.shape).astype(np.float32)

  def total(implementation):
    def f(q, k, v):
      y = attention.attend(q, k, v, segment_ids_BxL=ids, implementation=implementation)
      return (y.astype(jnp.float32) * weights).sum(), y
    (_, y), grads = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(q, k, v)
    return y, *grads

  for got, want in zip(total("cudnn"), total("plain"), strict=True):
    got, want = (np.asarray(t, np.float32) for t in (got, want))
    assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)


@pytest.mark.parametrize("platform, shape, name", [
    ("gpu", dict(length=256, head_dim=64), "cudnn"),
    ("gpu", dict(length=256, head_dim=256), "cudnn"),
    ("gpu", dict(length=256, head_dim=36), "plain"),
    ("gpu", dict(length=255, head_dim=64), "cudnn"),
    ("gpu", dict(length=255, head_dim=64, packed=True), "plain"),
    ("gpu", dict(length=256, head_dim=64, dtype=jnp.float32), "plain"),
    ("tpu", dict(length=256, head_dim=64), "splash"),
    ("tpu", dict(length=200, head_dim=64), "plain"),
])
def test_auto_elsewhere(monkeypatch, platform, shape, name):
  class Hopper:
    compute_capability = "9.0"
    client = type("Client", (), {"platform_version": "cuda 12090"})
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  monkeypatch.setattr(jax, "devices", lambda: [Hopper()])
  shape = dict(dtype=jnp.bfloat16, packed=False) | shape
  assert attention.choose("auto", **shape) == name
  if name == "plain":
    with pytest.raises(UserError, match="use auto or plain"):
      attention.choose({"gpu": "cudnn", "tpu": "splash"}[platform], **shape)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a CPU backend")
@pytest.mark.parametrize("implementation, message", [
    ("cudnn", "'cudnn' needs an NVIDIA GPU and this process computes on cpu"),
    ("splash", "'splash' needs a TPU and this process computes on cpu"),
    ("flash", "'flash' is unknown; use auto, plain, cudnn, splash"),
])
def test_what_is_not_there_is_refused(implementation, message):
  q, k, v, _ = inputs()
  with pytest.raises(UserError, match=message):
    attention.attend(q, k, v, implementation=implementation)
