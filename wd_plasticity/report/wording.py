"""Numbers and lists as they stand in sentences: accuracies in %, differences in points."""

import re
from collections.abc import Sequence

from wd_plasticity.report.comparison import Comparison
from wd_plasticity.report.scores import is_loss
from wd_plasticity.report.words import enumerate_all


def number(value: float, measure: str, unit: bool = True) -> str:
  """'72.1 %' of an accuracy, '0.8123 nats per token' of a loss."""
  if is_loss(measure):
    return f"{value:.3f}" + (" nats per token" if unit else "")
  return f"{100 * value:.1f}" + (" %" if unit else "")


def gap(value: float, measure: str, unit: bool = True) -> str:
  """'1.1 points' (of percent) between accuracies; small ones with another digit."""
  if is_loss(measure):
    return f"{value:#.2g}" + (" nats per token" if unit else "")
  if value == 0:
    return "0 points" if unit else "0"
  shown = f"{100 * value:.2f}" if 0 < abs(value) < 0.001 else f"{100 * value:.1f}"
  return shown + ("" if not unit else " point" if shown == "1.0" else " points")


def where(c: Comparison) -> str:
  """'on average over 6 tasks after fine-tuning'."""
  place = f"on {c.title}" if c.task else c.title.replace("average of", "on average over", 1)
  return f"{place} after fine-tuning" + _rate(c)


def _rate(c: Comparison) -> str:
  return {"": "", "best": " at each decay's own best rate"}.get(c.rate, f" at {rate(c.rate)}")


def rate(name: str) -> str:
  """'learning rate 0.003' of the point 'lr0.003'; other points by their names."""
  number_of = re.fullmatch(r"lr([0-9.e+-]+)", name)
  return f"learning rate {number_of[1]}" if number_of else name


def level(decays: Sequence[float]) -> str:
  return f"{enumerate_all(decays)} are level"


def rounded(value: float) -> str:
  """'1.3', '12' or '120': two digits, and no exponent."""
  return f"{value:.2g}" if value < 99.5 else f"{float(f'{value:.2g}'):,.0f}"
