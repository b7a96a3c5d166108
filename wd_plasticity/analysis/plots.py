"""What the plots of all eval programs share, in the style of the plot of a sweep."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from wd_plasticity.files import write_atomically
from wd_plasticity.training.summary_plot import STYLE, as_text, decay_colours

__all__ = ["decay_colours", "save_figure"]


def save_figure(path: str | os.PathLike, draw: Callable[[Figure], None], *, width: float = 12,
                height: float = 5, dpi: int = 150, style: dict | None = None,
                also: Sequence[str] = ()) -> Path:
  """Draws on a new figure and writes it as PNG through a temporary file.

  Args:
    path: of the picture; its folder must exist.
    draw: fills the figure, whose layout is constrained.
    width, height: in inches.
    dpi: dots per inch.
    style: matplotlib's parameters where they are not those of STYLE.
    also: further formats, such as 'pdf', written beside it under the same name.
  """
  path = Path(path)
  with rc_context(STYLE | (style or {})):
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    draw(figure)
    as_text(figure)
    for kind in ("png", *also):
      picture = io.BytesIO()
      # Without a date the same results make the same file.
      figure.savefig(picture, format=kind,
                     metadata={"CreationDate": None} if kind == "pdf" else None)
      figure.set_layout_engine("none")  # done; it is what takes the time
      target = path if kind == "png" else path.with_suffix(f".{kind}")
      write_atomically(target, lambda f, picture=picture: f.write(picture.getvalue()))
  return path
