"""What a figure of the report shows, before anything is drawn.

A figure has one or more views; controls choose among them. The same description is
drawn interactively, on paper, and written as a table.
"""

import dataclasses
from collections.abc import Sequence

LINE, POINTS, REFERENCE = "line", "points", "reference"


@dataclasses.dataclass(frozen=True)
class Series:
  """One line or cloud of points.

  Attributes:
    name: in the legend.
    x, y: [n]; weight decays on a decay axis. None in `y` is a gap.
    low, high: [n] ends of 95 % intervals, or empty.
    weight_decay: gives the colour when it is not None.
    style: LINE with markers, POINTS alone, or REFERENCE, a grey dashed line.
    labels: [n] shown on hover beside x and y, or empty.
  """
  name: str
  x: Sequence[float]
  y: Sequence[float | None]
  low: Sequence[float | None] = ()
  high: Sequence[float | None] = ()
  weight_decay: float | None = None
  style: str = LINE
  labels: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class View:
  """What is seen at one setting of the controls.

  Attributes:
    choice: value of every control of the figure, {'task': 'SST-2', 'rate': 'best'}.
    series: in the order of the legend.
    y_label: with the unit.
    on_paper: whether it is a panel of the static figure.
  """
  choice: dict[str, str]
  series: Sequence[Series]
  y_label: str
  on_paper: bool = True


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure of the report.

  Attributes:
    name: of its files, 'accuracy_by_decay'.
    section: heading under which it stands.
    title, caption: plain text.
    x_label: with the unit.
    x_axis: 'decay' (places in growing order), 'linear', 'log' or 'count' (whole numbers).
    y_axis: 'linear' or 'log'.
    y_range: fixed ends of a linear y axis; () where the data decide.
    controls: names of the controls, keys of every `View.choice`.
    views: at least one; empty means that there is nothing to show.
    missing: why there is nothing, a sentence with what to run.
  """
  name: str
  section: str
  title: str
  caption: str
  x_label: str
  views: Sequence[View]
  x_axis: str = "linear"
  y_axis: str = "linear"
  y_range: Sequence[float] = ()
  controls: Sequence[str] = ()
  missing: str = ""
