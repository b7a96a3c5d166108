"""Parameter groups: every parameter once, own rules first, clear refusals."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.optim import groups as groups_lib

N, D, V, F, K = 2, 4, 11, 6, 4


def shapes(qk_norm=True, tied=False):
  def s(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)

  attention = {name: {"kernel": s(N, D, K)} for name in ("query", "key", "value")}
  attention["output"] = {"kernel": s(N, K, D)}
  if qk_norm:
    attention |= {"query_norm": {"scale": s(N, K)}, "key_norm": {"scale": s(N, K)}}
  tree = {
      "embed": {"embedding": s(V, D)},
      "layers": {
          "attention_norm": {"scale": s(N, D)},
          "feed_forward_norm": {"scale": s(N, D)},
          "attention": attention,
          "feed_forward": {"gate": {"kernel": s(N, D, F)}, "up": {"kernel": s(N, D, F)},
                           "down": {"kernel": s(N, F, D)}},
      },
      "final_norm": {"scale": s(D)},
  }
  if not tied:
    tree["head"] = {"kernel": s(D, V)}
  return tree


EXPECTED = {
    "embed/embedding": "embedding",
    "final_norm/scale": "norm",
    "head/kernel": "head",
    "layers/attention/key/kernel": "query_key",
    "layers/attention/key_norm/scale": "norm",
    "layers/attention/output/kernel": "value_output",
    "layers/attention/query/kernel": "query_key",
    "layers/attention/query_norm/scale": "norm",
    "layers/attention/value/kernel": "value_output",
    "layers/attention_norm/scale": "norm",
    "layers/feed_forward/down/kernel": "feed_forward",
    "layers/feed_forward/gate/kernel": "feed_forward",
    "layers/feed_forward/up/kernel": "feed_forward",
    "layers/feed_forward_norm/scale": "norm",
}


def decay_section(**changes):
  section = default_config().optim.decay
  multipliers = changes.pop("multipliers", {})
  section.update(changes)
  section.multipliers.update(multipliers)
  return section


def test_every_parameter_has_its_group():
  assert groups_lib.assign_groups(shapes()) == EXPECTED


def test_order_of_groups_and_tied_head():
  groups = groups_lib.assign_groups(shapes(tied=True))
  assert groups_lib.group_names(groups) == (
      "embedding", "query_key", "value_output", "feed_forward", "norm")
  assert "head" in groups_lib.group_names(groups_lib.assign_groups(shapes()))


def test_standard_groups_are_the_configured_ones():
  assert set(groups_lib.GROUPS) == set(default_config().optim.decay.multipliers)
  for preset in groups_lib.PRESETS.values():
    assert tuple(preset) == groups_lib.GROUPS


def test_uncovered_parameter_is_named():
  tree = shapes()
  tree["layers"]["feed_forward"]["router"] = tree["final_norm"]
  with pytest.raises(UserError, match="'layers/feed_forward/router/scale'"):
    groups_lib.assign_groups(tree)
  rules = (r".*/router/scale=feed_forward",)
  assert groups_lib.assign_groups(tree, rules)["layers/feed_forward/router/scale"] == "feed_forward"


def test_rules_match_whole_names():
  tree = shapes()
  tree["other_head"] = tree["head"]  # ends like head/kernel, is not it
  with pytest.raises(UserError, match="other_head/kernel"):
    groups_lib.assign_groups(tree)


def test_own_rules_first_in_their_order():
  rules = (r".*/query/kernel=query", r".*/(query|key)/kernel=head", r"(?=.*gate).*=norm")
  groups = groups_lib.assign_groups(shapes(), rules)
  assert groups["layers/attention/query/kernel"] == "query"
  assert groups["layers/attention/key/kernel"] == "head"
  assert groups["layers/feed_forward/gate/kernel"] == "norm"  # an expression with '='
  assert {n: g for n, g in groups.items() if "query/" not in n and "key/" not in n
          and "gate" not in n}.items() <= EXPECTED.items()
  assert groups_lib.group_names(groups)[-1] == "query"


@pytest.mark.parametrize("rule, message", [
    ("no_group", "not of the form"),
    ("=norm", "not of the form"),
    (".*/kernel=", "not of the form"),
    (".*/kernel=two words", "not of the form"),
    ("(.*=norm", "not a regular expression"),
    ("query/kernel=norm", "decides for no parameter; it must match a whole name"),
])
def test_bad_rules(rule, message):
  with pytest.raises(UserError, match=message):
    groups_lib.assign_groups(shapes(), (rule,))


def test_shadowed_rule_is_refused():
  with pytest.raises(UserError, match="earlier rules take all"):
    groups_lib.assign_groups(shapes(), (".*/kernel=a", "head/kernel=b"))


@pytest.mark.parametrize("preset, undecayed", [
    ("all", set()),
    ("no_embeddings", {"embed/embedding"}),
    ("matrices", {n for n in EXPECTED if n.endswith("scale")}),
    ("no_norms_biases", {n for n in EXPECTED if n.endswith("scale")}),
])
def test_presets(preset, undecayed):
  tree = shapes()
  groups = groups_lib.assign_groups(tree)
  multipliers = groups_lib.decay_multipliers(decay_section(preset=preset), groups)
  assert tuple(multipliers) == groups_lib.group_names(groups)
  rows = groups_lib.decay_table(tree, groups, 0.3, multipliers)
  assert {r.parameter for r in rows if r.decay == 0} == undecayed
  assert {r.decay for r in rows} <= {0.0, 0.3}


def test_matrices_is_two_dimensions_within_a_layer():
  tree = shapes()
  groups = groups_lib.assign_groups(tree)
  multipliers = groups_lib.decay_multipliers(decay_section(preset="matrices"), groups)
  for row in groups_lib.decay_table(tree, groups, 1.0, multipliers):
    dimensions = len(row.shape) - row.parameter.startswith("layers/")
    assert row.decay == (1.0 if dimensions >= 2 else 0.0), row


def test_multipliers_multiply_the_preset():
  groups = groups_lib.assign_groups(shapes())
  section = decay_section(preset="no_embeddings", multipliers=dict(query_key=0.25, embedding=3.0))
  multipliers = groups_lib.decay_multipliers(section, groups)
  assert multipliers["query_key"] == 0.25
  assert multipliers["embedding"] == 0.0  # 0 x 3
  assert multipliers["norm"] == 1.0


def test_own_group_follows_the_preset_and_its_multiplier():
  groups = groups_lib.assign_groups(
      shapes(), (".*/(query|key)_norm/scale=qk_norm", ".*/down/kernel=down"))
  section = decay_section(preset="matrices")
  section.multipliers.down = 0.5
  multipliers = groups_lib.decay_multipliers(section, groups)
  assert multipliers["qk_norm"] == 0.0
  assert multipliers["down"] == 0.5


def test_own_group_across_the_preset_is_refused():
  groups = groups_lib.assign_groups(shapes(), (".*/attention/.*=attention",))
  assert groups_lib.decay_multipliers(decay_section(), groups)["attention"] == 1.0
  with pytest.raises(UserError, match="'attention' holds parameters"):
    groups_lib.decay_multipliers(decay_section(preset="matrices"), groups)


def test_refused_multipliers():
  groups = groups_lib.assign_groups(shapes(tied=True))
  section = decay_section()
  groups_lib.decay_multipliers(section, groups)  # head=1.0 of a tied model is no mistake
  with pytest.raises(UserError, match="multipliers.head: no parameter"):
    groups_lib.decay_multipliers(decay_section(multipliers=dict(head=0.5)), groups)
  section.multipliers = ConfigDict(dict(querykey=1.0))
  with pytest.raises(UserError, match="multipliers.querykey: no parameter"):
    groups_lib.decay_multipliers(section, groups)
  for value in (-1.0, float("nan"), float("inf")):
    with pytest.raises(UserError, match="multipliers.norm"):
      groups_lib.decay_multipliers(decay_section(multipliers=dict(norm=value)), groups)
  with pytest.raises(UserError, match="choose one of all, no_embeddings"):
    groups_lib.decay_multipliers(decay_section(preset="none"), groups)


def test_decay_table_rows():
  tree = shapes()
  groups = groups_lib.assign_groups(tree)
  rows = groups_lib.decay_table(tree, groups, 0.1, dict.fromkeys(groups.values(), 2.0))
  assert [r.parameter for r in rows] == sorted(EXPECTED)
  assert sum(r.count for r in rows) == sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
  assert rows[0] == groups_lib.DecayRow("embed/embedding", (V, D), V * D, "embedding", 0.2)
