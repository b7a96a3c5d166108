"""Lists and counts in words."""

from collections.abc import Sequence


def enumerate_all(values: Sequence[float | str]) -> str:
  """'0, 0.1 and 1'."""
  words = [v if isinstance(v, str) else f"{v:g}" for v in values]
  return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def plural(count: int, what: str) -> str:
  """'1 seed', '1,200 seeds'."""
  return f"{count:,} {what}" + ("" if count == 1 else "s")
