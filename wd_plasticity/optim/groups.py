"""Parameter groups: which parameter is decayed, and by how much.

Every parameter belongs to exactly one group. An ordered table of (regular
expression, group) decides: the first expression that matches the whole
slash-joined name wins, and a parameter that none matches is an error. The decay
of a group is

  weight_decay * (preset multiplier of the group) * (configured multiplier)

With tied embeddings `embed/embedding` is the head as well and there is no
`head/kernel`; the one matrix is in group `embedding`, which decides for both
uses (so `no_embeddings` leaves a tied head undecayed too).
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from wd_plasticity.errors import UserError

# (regular expression, group), first full match wins.
RULES = (
    (r"embed/embedding", "embedding"),
    (r"head/kernel", "head"),
    (r"(.*/)?attention/(query|key)/kernel", "query_key"),
    (r"(.*/)?attention/(value|output)/kernel", "value_output"),
    (r"(.*/)?feed_forward/(gate|up|down)/kernel", "feed_forward"),
    (r"(.*/)?[a-z_]*norm/scale", "norm"),  # query_norm and key_norm too
)

GROUPS = tuple(group for _, group in RULES)

# Preset -> group -> multiplier. The models have no biases, so the last two agree
# on them: a matrix is what has two or more dimensions within one layer.
PRESETS = {
    # torch.optim.AdamW(model.parameters()): the Llama runs of the paper.
    "all": dict.fromkeys(GROUPS, 1.0),
    # OLMo-2: the input embedding is not decayed, the norms and the head are.
    "no_embeddings": dict.fromkeys(GROUPS, 1.0) | {"embedding": 0.0},
    # nanoGPT, llm.c: two or more dimensions; embedding and head are among them.
    "matrices": dict.fromkeys(GROUPS, 1.0) | {"norm": 0.0},
    # The transformers Trainer: everything but norms and biases.
    "no_norms_biases": dict.fromkeys(GROUPS, 1.0) | {"norm": 0.0},
}


@dataclasses.dataclass(frozen=True, order=True)
class DecayRow:
  """One line of the decay table: a parameter and the weight decay it is given."""
  parameter: str
  shape: tuple[int, ...]
  count: int
  group: str
  decay: float


def name_of(path: tuple[Any, ...]) -> str:
  """Slash-joined name of a parameter from its path in the nested dict."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def parse_rules(rules: Sequence[str]) -> tuple[tuple[str, str], ...]:
  """Own rules 'regular expression=group' as (expression, group) pairs.

  The last '=' separates, so that an expression may contain one.

  Raises:
    UserError: a rule without a group, or an invalid regular expression.
  """
  pairs = []
  for rule in rules:
    pattern, _, group = (part.strip() for part in rule.rpartition("="))
    if not pattern or not group.isidentifier():
      raise UserError(f"optim.decay.rules: {rule!r} is not of the form 'regular expression=group', "
                      "with a group of letters, digits and underscores.")
    try:
      re.compile(pattern)
    except re.error as e:
      raise UserError(f"optim.decay.rules: {pattern!r} is not a regular expression ({e}); "
                      "correct it.") from e
    pairs.append((pattern, group))
  return tuple(pairs)


def assign_groups(params: Any, rules: Sequence[str] = ()) -> dict[str, str]:
  """The group of every parameter.

  Args:
    params: nested dict of arrays or of shapes.
    rules: own rules 'regular expression=group' (`optim.decay.rules`), tried in
      their order before the standard table `RULES`.

  Returns:
    {slash-joined parameter name: group}, in the order of the names.

  Raises:
    UserError: a parameter that no rule covers, or an own rule that is wrong or
      decides for no parameter.
  """
  names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  own = parse_rules(rules)
  table = own + RULES
  used, groups = set(), {}
  for name in sorted(names):
    for i, (pattern, group) in enumerate(table):
      if re.fullmatch(pattern, name):
        groups[name] = group
        used.add(i)
        break
    else:
      raise UserError(f"Parameter {name!r} is in no decay group; add a rule for it to "
                      f"optim.decay.rules, such as '{re.escape(name)}=feed_forward'.")
  for i, (pattern, group) in enumerate(own):
    if i not in used:
      taken = any(re.fullmatch(pattern, name) for name in names)
      reason = ("earlier rules take all that it matches" if taken
                else f"it must match a whole name, such as {min(names)!r}")
      raise UserError(f"optim.decay.rules: '{pattern}={group}' decides for no parameter; {reason}.")
  return groups


def group_names(groups: Mapping[str, str]) -> tuple[str, ...]:
  """The P groups that have parameters: standard ones in table order, then own ones by name."""
  present = set(groups.values())
  return tuple(g for g in GROUPS if g in present) + tuple(sorted(present - set(GROUPS)))


def decay_multipliers(decay_section: Any, groups: Mapping[str, str]) -> dict[str, float]:
  """What the weight decay of each group is multiplied by.

  The preset decides for a group of one's own as it does for its parameters.

  Args:
    decay_section: `optim.decay` of the configuration (`preset`, `multipliers`).
    groups: parameter name to group, from `assign_groups`.

  Returns:
    {group: preset multiplier x configured multiplier}, in the order of `group_names`.

  Raises:
    UserError: an unknown preset, a multiplier of a group without parameters, a
      negative one, or an own group of which the preset decays only a part.
  """
  preset = PRESETS.get(decay_section.preset)
  if preset is None:
    raise UserError(f"optim.decay.preset={decay_section.preset!r} is unknown; "
                    f"choose one of {', '.join(PRESETS)}.")
  names = group_names(groups)
  configured = dict(decay_section.multipliers)
  for group, value in configured.items():
    if group not in names and (group not in GROUPS or value != 1.0):
      raise UserError(f"optim.decay.multipliers.{group}: no parameter is in this group; "
                      f"the groups of this model are {', '.join(names)}.")
    if not (math.isfinite(value) and value >= 0):
      raise UserError(f"optim.decay.multipliers.{group}={value} must be a number of at least 0.")
  multipliers = {}
  for group in names:
    values = {preset.get(_standard_group(name), 1.0) for name, g in groups.items() if g == group}
    if len(values) > 1:
      raise UserError(f"Group {group!r} holds parameters that the preset {decay_section.preset!r} "
                      "decays and others that it does not; split it, or use optim.decay.preset=all "
                      "with multipliers.")
    multipliers[group] = float(values.pop() * configured.get(group, 1.0))
  return multipliers


def _standard_group(name: str) -> str | None:
  return next((group for pattern, group in RULES if re.fullmatch(pattern, name)), None)


def decay_table(
    params_shapes: Any, groups: Mapping[str, str], weight_decay: float,
    multipliers: Mapping[str, float],
) -> list[DecayRow]:
  """Which parameter is decayed by how much: one row per parameter, by name.

  Args:
    params_shapes: nested dict of arrays or of `jax.ShapeDtypeStruct`.
    groups: parameter name to group, from `assign_groups`.
    weight_decay: before the multipliers.
    multipliers: of each group, from `decay_multipliers`.
  """
  rows = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(params_shapes):
    name = name_of(path)
    group = groups[name]
    rows.append(DecayRow(name, tuple(leaf.shape), math.prod(leaf.shape), group,
                         weight_decay * multipliers[group]))
  return sorted(rows)
