"""From results on disk to the report: page, figures on paper, tables and the answer."""

import dataclasses
import logging
import os
import time
from pathlib import Path

from wd_plasticity import errors, files
from wd_plasticity.errors import UserError
from wd_plasticity.report import answer as answer_lib
from wd_plasticity.report import figures as figures_lib
from wd_plasticity.report import look, page, static, tables
from wd_plasticity.report import study as study_lib
from wd_plasticity.report.answer import Answer
from wd_plasticity.report.figure import Figure
from wd_plasticity.report.study import Study


def report(workdir: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
  """Reads the study of a work directory and writes its report.

  Args:
    workdir: of the pretraining, with the results of eval programs in evals/.
    out: folder of report.html, answer.json, figures/ and tables/; WORKDIR/report by default.

  Returns:
    The path of report.html.

  Raises:
    UserError: if there is no such work directory, or the folder cannot be written.
  """
  study = study_lib.read(workdir)
  return write(study, answer_lib.answers(study), out or Path(workdir) / "report")


def write(study: Study, answers: list[Answer], out: str | os.PathLike) -> Path:
  """Writes the report of a study that has been read (see `report`)."""
  out, begun = Path(out), time.time()
  try:
    out.mkdir(parents=True, exist_ok=True)
    figures = figures_lib.build(study, answers)
    files.write_json(out / "answer.json", answer_lib.as_json(answers))
    tables.save(figures, out / "tables", study)
    notes = save_pictures(figures, out / "figures")
    study = dataclasses.replace(study, notes=[*study.notes, *notes])
    path = out / "report.html"
    files.write_text(path, page.render(study, answers, figures))
    for folder in (out, out / "tables", out / "figures"):
      files.clear_temporaries(folder, begun)
  except OSError as e:
    raise UserError(f"the report cannot be written to {out}: {errors.describe(e, out)}; "
                    "--out=FOLDER gives another place.") from e
  return path


def save_pictures(figures: list[Figure], folder: Path) -> list[str]:
  """Draws the figures on paper; returns a sentence for each that could not be drawn."""
  colours = look.palette(look.decays_of(figures), look.LIGHT)
  notes = []
  for figure in figures:
    try:
      static.save(figure, folder, colours)
    except OSError:
      raise
    except Exception as e:  # one figure must not take down the report
      logging.exception("the figure %s cannot be drawn", figure.name)
      notes.append(page.undrawn(figure, e))
  return notes
