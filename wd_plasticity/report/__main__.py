"""Writes the report of a study, from results alone:

  python -m wd_plasticity.report --workdir=WORKDIR [--out=FOLDER]
"""

from pathlib import Path

from absl import flags

from wd_plasticity import cli
from wd_plasticity.console import Console
from wd_plasticity.errors import UserError
from wd_plasticity.report import answer as answer_lib
from wd_plasticity.report import make, terminal
from wd_plasticity.report import study as study_lib

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a pretraining, with results in evals/.")
_OUT = flags.DEFINE_string("out", None, "Folder of the report; WORKDIR/report by default.")


def main(argv):
  del argv
  if not _WORKDIR.value:
    raise UserError("--workdir=FOLDER is missing; it is that of the pretraining.")
  study = study_lib.read(_WORKDIR.value)
  answers = answer_lib.answers(study)
  path = make.write(study, answers, _OUT.value or Path(_WORKDIR.value) / "report")
  terminal.show(study, answers, path, Console())


if __name__ == "__main__":
  cli.run(main)
