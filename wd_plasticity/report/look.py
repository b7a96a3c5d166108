"""How the series of a figure look, interactively and on paper alike."""

import math
from collections.abc import Iterable, Sequence

from matplotlib.colors import to_hex, to_rgb

from wd_plasticity.report.figure import LINE, REFERENCE, Figure, Series, View
from wd_plasticity.training.summary_plot import decay_colours

LIGHT, DARK = "#ffffff", "#16191d"  # backgrounds
DASHES = ("solid", "dash", "dot", "dashdot")
_NAMED = ("#4269d0", "#ef8a18", "#3ca951", "#d6455d", "#8b5fd6", "#17a2b8", "#9c6b4e", "#c257a8")
_BAND_POINTS = 12
_FEW = 6
_CONTRAST = 3.0  # WCAG 2.1, 1.4.11: of graphics against what is beside them


def decays_of(figures: Iterable[Figure]) -> list[float]:
  """All weight decays that the figures show, growing, so that one has one colour in all."""
  found = set()
  for figure in figures:
    for view in figure.views:
      found.update(s.weight_decay for s in view.series if s.weight_decay is not None)
    found.update(places(figure))
  return sorted(found)


def places(figure: Figure) -> dict[float, int]:
  """Places of the decays on the axis of a figure; empty when it has no decay axis."""
  if figure.x_axis != "decay":
    return {}
  decays = sorted({float(x) for v in figure.views for s in v.series for x in s.x})
  return {decay: i for i, decay in enumerate(decays)}


def shifts(figure: Figure, view: View) -> list[float]:
  """Sidesteps of the series on an axis of places, so that intervals do not hide each other."""
  if figure.x_axis not in ("decay", "count") or any(has_band(figure, s) for s in view.series):
    return [0.0] * len(view.series)
  beside = [i for i, s in enumerate(view.series) if s.style != REFERENCE]
  shared = [x for i in beside for x in set(view.series[i].x)]
  needed = len(shared) > len(set(shared)) and any(s.low for s in view.series)
  step = min(0.08, 0.5 / len(beside)) if needed else 0.0
  found = [0.0] * len(view.series)
  for k, i in enumerate(beside):
    found[i] = (k - (len(beside) - 1) / 2) * step
  return found


def place(figure: Figure, decays: dict[float, int], x: float, shift: float) -> float | None:
  """Where a value of x is drawn; `decays` are the `places` of the figure."""
  if decays:
    return decays[float(x)] + shift
  known = finite(x, figure.x_axis == "log")
  return None if known is None else known + shift


def has_band(figure: Figure, series: Series) -> bool:
  """Whether the intervals are a shaded band; else they are bars."""
  return figure.x_axis != "decay" and series.style == LINE and len(series.x) > _BAND_POINTS


def dashes(view: View) -> list[str]:
  """Series of one decay in one view differ in their dashes, and so do references."""
  seen: dict = {}
  found = []
  for series in view.series:
    key = REFERENCE if series.style == REFERENCE else series.weight_decay
    count = 0 if key is None else seen.get(key, 0)
    seen[key] = count + 1
    found.append(DASHES[1 + count % 3] if key == REFERENCE else DASHES[count % len(DASHES)])
  return found


def legend_title(views: Iterable[View]) -> str:
  """What names in the legend that are weight decays are."""
  named = any(s.weight_decay is not None and s.name == f"{s.weight_decay:g}"
              for v in views for s in v.series)
  return "weight decay" if named else ""


def log_ticks(values: Iterable[float]) -> list[float]:
  """Ticks of a logarithmic axis: the values if few and round, else 1-2-5 or powers of ten."""
  known = sorted({v for v in values if finite(v, log=True) is not None})
  if len(known) <= _FEW and all(float(f"{v:.2g}") == v for v in known):
    return known
  low, high = math.log10(known[0]), math.log10(known[-1])
  steps = (1,) if high - low > 2.5 else (1, 2, 5)
  ticks = [step * 10.0 ** power for power in range(math.floor(low), math.ceil(high) + 1)
           for step in steps]
  return [float(f"{t:.3g}") for t in ticks if known[0] / 1.2 <= t <= known[-1] * 1.2]


def colour_keys(figure: Figure) -> dict[str, str]:
  """Names of series without a decay -> key of their colour, the same in all views."""
  names = dict.fromkeys(s.name for v in figure.views for s in v.series
                        if s.weight_decay is None and s.style != REFERENCE)
  return {name: f"series {i % len(_NAMED)}" for i, name in enumerate(names)}


def colour_key(series: Series, keys: dict[str, str]) -> str:
  """Key of a series in `palette`."""
  if series.style == REFERENCE:
    return "reference"
  if series.weight_decay is not None:
    return f"decay {series.weight_decay:g}"
  return keys[series.name]


def palette(decays: Sequence[float], background: str) -> dict[str, str]:
  """Colours by key, '#rrggbb', each with enough contrast to the background."""
  raw = {f"decay {d:g}": to_hex(c) for d, c in decay_colours(decays).items()}
  raw |= {f"series {i}": c for i, c in enumerate(_NAMED)} | {"reference": "#8c8c8c"}
  return {key: legible(colour, background) for key, colour in raw.items()}


def legible(colour: str, background: str) -> str:
  """The colour, drawn towards black or white until it stands out from the background."""
  end = (0.0, 0.0, 0.0) if _luminance(to_rgb(background)) > 0.5 else (1.0, 1.0, 1.0)
  start = to_rgb(colour)
  for i in range(21):
    mixed = tuple(a + (b - a) * i / 20 for a, b in zip(start, end, strict=True))
    if contrast(to_hex(mixed), background) >= _CONTRAST:
      break
  return to_hex(mixed)


def contrast(one: str, other: str) -> float:
  """Contrast ratio of two colours, 1 to 21 (WCAG 2.1)."""
  low, high = sorted((_luminance(to_rgb(one)), _luminance(to_rgb(other))))
  return (high + 0.05) / (low + 0.05)


def _luminance(rgb: Sequence[float]) -> float:
  linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def finite(value: float | None, log: bool = False) -> float | None:
  """The value where an axis can show it, else None."""
  if value is None or not math.isfinite(value) or (log and value <= 0):
    return None
  return float(value)


def interval(series: Series, i: int, log: bool = False) -> tuple[float, float] | None:
  """Ends of the interval of point i, or None when they are not known."""
  if i >= len(series.low) or i >= len(series.high):
    return None
  low, high = finite(series.low[i], log), finite(series.high[i], log)
  return None if low is None or high is None else (low, high)
