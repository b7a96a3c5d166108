"""What the plots of all eval programs share, in the style of the plot of a sweep."""

import io
import os
from collections.abc import Callable
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from wd_plasticity.files import write_atomically
from wd_plasticity.training.summary_plot import STYLE, decay_colours

__all__ = ["decay_colours", "save_figure"]


def save_figure(path: str | os.PathLike, draw: Callable[[Figure], None], *, width: float = 12,
                height: float = 5) -> Path:
  """Draws on a new figure and writes it as PNG through a temporary file.

  Args:
    path: of the picture; its folder must exist.
    draw: fills the figure, whose layout is constrained.
    width, height: in inches at 150 dots per inch.
  """
  path = Path(path)
  picture = io.BytesIO()
  with rc_context(STYLE):
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    draw(figure)
    figure.savefig(picture, format="png")
  write_atomically(path, lambda f: f.write(picture.getvalue()))
  return path
