"""Sweeps to members."""

import pytest

from wd_plasticity import members
from wd_plasticity.config import default_config, parse_length
from wd_plasticity.errors import UserError


def _sweep(*points):
  return lambda add: [add(p) for p in points]


def test_members_take_their_point_and_leave_the_rest():
  config = default_config()
  found = members.expand(config, _sweep({"optim.weight_decay": 0.3, "seed": 1},
                                        {"optim.weight_decay": 1.0, "seed": 2}))
  assert [m.name for m in found] == ["wd0.3-seed1", "wd1-seed2"]
  assert [m.config.optim.weight_decay for m in found] == [0.3, 1.0]
  assert config.optim.weight_decay == 0.1 and found[1].config.train == config.train


def test_command_line_wins_over_the_sweep_and_equal_members_merge():
  config = default_config()
  config.optim.weight_decay = 0.7
  found = members.expand(config, _sweep({"optim.weight_decay": 0.1}, {"optim.weight_decay": 0.2}),
                         fixed=["optim.weight_decay"])
  assert len(found) == 1 and found[0].config.optim.weight_decay == 0.7


@pytest.mark.parametrize("point, words", [
    ({"optim.weigth_decay": 1.0}, "unknown config field 'optim.weigth_decay'"),
    ({"optim.weight_decay": "much"}, "wrong type"),
    ({"optim": 1.0}, "wrong type"),
])
def test_bad_points_are_refused(point, words):
  with pytest.raises(UserError, match=words):
    members.expand(default_config(), _sweep(point))


def test_names_that_collide_are_refused():
  with pytest.raises(UserError, match="two members"):
    members.expand(default_config(), _sweep({"optim.weight_decay": 0.1},
                                            {"optim.weight_decay": 0.10000001}))


def test_only_per_member_fields_share_a_program():
  points = [{"optim.weight_decay": 0.1}, {"optim.weight_decay": 0.2, "seed": 3},
            {"optim.learning_rate": 0.1}, {"optim.decay.preset": "matrices"},
            {"optim.beta2": 0.99}, {"train.global_batch_size": 32}]
  groups = members.stackable(members.expand(default_config(), _sweep(*points)))
  assert [len(g) for g in groups] == [4, 1, 1]


@pytest.mark.parametrize("text, steps", [("10%", 100), ("200 steps", 200), ("1e6 tokens", 245),
                                         ("0%", 0), ("0.1 %", 1), ("1 step", 1)])
def test_lengths(text, steps):
  assert parse_length(text, 1000, 4096, "field") == steps


@pytest.mark.parametrize("text", ["", "ten steps", "-1 steps", "10", "nan%", "inf tokens"])
def test_lengths_that_mean_nothing_are_refused(text):
  with pytest.raises(UserError, match="is not a length"):
    parse_length(text, 1000, 4096, "field")
