"""Schedules against closed forms in plain Python, step by step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from wd_plasticity.config import schedule_section
from wd_plasticity.errors import UserError
from wd_plasticity.optim.schedules import check, make_schedule


def section(name, warmup="0%", final_fraction=0.1, decay="20%"):
  s = schedule_section(name, warmup, final_fraction)
  s.decay = decay
  return s


def closed_form(name, n, total, warmup, decay, final):
  """The multiplier of update n = 1 .. total, scalar by scalar."""
  if n <= warmup:
    return n / warmup
  if name == "constant":
    return 1.0
  if name == "wsd":
    return 1.0 if n <= total - decay else 1 - (1 - final) * (1 - (total - n) / decay)
  x = (n - warmup) / (total - warmup)
  if name == "linear":
    return (1 - x) + final * x
  return final + (1 - final) * math.cos(math.pi * x / 2) ** 2  # half-angle form


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear", "constant"])
@pytest.mark.parametrize("total, warmup, decay, final", [
    (50, 5, 10, 0.1), (50, 0, 50, 0.0), (7, 3, 4, 0.3), (3, 1, 1, 1.0), (1, 0, 1, 0.1),
])
def test_closed_form(name, total, warmup, decay, final):
  f = make_schedule(section(name, f"{warmup} steps", final, f"{decay} steps"), total, 64, "s")
  got = [float(f(step)) for step in range(total)]
  want = [closed_form(name, step + 1, total, warmup, decay, final) for step in range(total)]
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-7)
  traced = jax.jit(jax.vmap(f))(jnp.arange(total, dtype=jnp.int32))
  assert traced.dtype == jnp.float32
  np.testing.assert_allclose(traced, got, rtol=0, atol=2e-7)


def test_landmarks():
  f = make_schedule(section("cosine", "10%", 0.1), 100, 64, "s")
  assert float(f(0)) == pytest.approx(0.1)  # 1 / 10: the first update is not wasted
  assert float(f(9)) == 1.0  # update 10 has the peak
  assert float(f(99)) == pytest.approx(0.1, abs=1e-7)  # the last has the floor
  assert float(f(1000)) == pytest.approx(0.1, abs=1e-7)


def test_paper_length_in_float32():
  # Llama 0.5B: 9,537 updates, peak 2.5e-4 to 2.5e-5.
  f = make_schedule(section("cosine", "10%", 0.1), 9537, 512 * 2048, "s")
  steps = np.arange(9537)
  got = np.asarray(jax.vmap(f)(jnp.asarray(steps)))
  want = [closed_form("cosine", n + 1, 9537, 954, 0, 0.1) for n in steps]
  np.testing.assert_allclose(got, want, rtol=0, atol=5e-7)


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear"])
def test_compiled_values_stay_between_0_and_1(name):
  for total in (3, 7, 41, 50, 999):
    f = make_schedule(section(name, "10%", 0.0), total, 64, "s")
    values = np.asarray(jax.jit(f)(jnp.arange(total + 2)))
    assert values.min() >= 0 and values.max() <= 1
    np.testing.assert_allclose(values[-3:], 0.0, atol=1e-7)


def test_lengths_in_tokens_and_percent():
  f = make_schedule(section("wsd", "640 tokens", 0.0, "50%"), 40, 64, "s")
  values = [float(f(step)) for step in range(40)]
  assert values[8] < 1.0 and values[9] == 1.0
  assert values[19] == 1.0 and values[20] < 1.0 and values[39] == 0.0


def test_warmup_as_long_as_training():
  f = make_schedule(section("cosine", "100%"), 4, 64, "s")
  assert [float(f(s)) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("changes, message", [
    (dict(name="cos"), "optim.schedule.name='cos' is unknown; choose one of cosine, wsd, linear"),
    (dict(warmup="200 steps"), "optim.schedule.warmup='200 steps' is 200 steps, longer"),
    (dict(warmup="7000 tokens"), "longer than the training"),
    (dict(warmup="ten"), "optim.schedule.warmup='ten' is not a length"),
    (dict(name="wsd", warmup="90%", decay="20%"), "warmup of 90 and the decay of 20 steps"),
    (dict(final_fraction=1.5), "final_fraction=1.5 must be between 0 and 1"),
    (dict(final_fraction=-0.1), "must be between 0 and 1"),
    (dict(final_fraction=float("nan")), "must be between 0 and 1"),
])
def test_refusals(changes, message):
  s = ConfigDict(dict(section("cosine", "10%")) | changes)
  with pytest.raises(UserError, match=message):
    make_schedule(s, 100, 64, "optim.schedule")


def test_decay_longer_than_training_only_matters_to_wsd():
  make_schedule(section("cosine", "10%", decay="500%"), 100, 64, "s")
  with pytest.raises(UserError, match="together longer"):
    make_schedule(section("wsd", "10%", decay="500%"), 100, 64, "s")


def test_parts_that_are_rounded_apart_fit():
  """Warmup and decay that add up to the training fit, however many steps there are."""
  for total in [*range(1, 400), 9537]:
    for warmup, decay in (("10%", "90%"), ("33.3%", "66.7%"), ("99.9%", "0.1%"), ("50%", "50%")):
      f = make_schedule(section("wsd", warmup, 0.0, decay), total, 64, "s")
      at = -(-total * float(warmup[:-1]) // 100) if total < 50 else None
      if at:
        assert float(f(min(int(at), total) - 1)) == 1.0
    make_schedule(section("wsd", "10%", 0.0, "20%"), total, 64, "s")
  f = make_schedule(section("wsd", "10%", 0.0, "90%"), 21, 64, "s")  # 3 and 18 of 21 steps
  values = [float(f(step)) for step in range(21)]
  assert values[2] == 1.0 and values[-1] == 0.0 and values[3] == pytest.approx(17 / 18)
  assert float(make_schedule(section("wsd", "10%"), 1, 64, "s")(0)) == 1.0
  # Tokens of a run that whole steps do not divide.
  make_schedule(section("wsd", "650 tokens", 0.0, "5800 tokens"), 100, 64, "s")
  for warmup, decay in (("10%", "90.1%"), ("11 steps", "90 steps"), ("1000 tokens", "5600 tokens")):
    with pytest.raises(UserError, match="together longer"):
      make_schedule(section("wsd", warmup, 0.0, decay), 100, 64, "s")


@pytest.mark.parametrize("changes, message", [
    (dict(name="wsd", warmup="90%", decay="20%"), "110 % of the training is longer"),
    (dict(warmup="101%"), "101 % of the training"), (dict(warmup="often"), "is not a length"),
    (dict(name="cos"), "is unknown"), (dict(final_fraction=2.0), "between 0 and 1"),
])
def test_what_no_training_can_have(changes, message):
  check(ConfigDict(dict(section("wsd", "5000 steps", decay="500 steps"))), "s")
  with pytest.raises(UserError, match=message):
    check(ConfigDict(dict(section("cosine", "10%")) | changes), "s")
