"""All figures of the report, in their order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wd_plasticity import plain
from wd_plasticity.report import figures_choice as choice
from wd_plasticity.report import figures_finetuning as finetuning
from wd_plasticity.report import figures_harness as harness
from wd_plasticity.report import figures_inside as inside
from wd_plasticity.report import figures_training as training
from wd_plasticity.report.figure import Figure
from wd_plasticity.report.items import UNREADABLE
from wd_plasticity.report.study import Study

if TYPE_CHECKING:
  from wd_plasticity.report.answer import Answer


def build(study: Study, answers: Sequence[Answer]) -> list[Figure]:
  """Describes every figure; one with nothing to show has no views and says what to run.

  The scores of lm-evaluation-harness, which not every study wants, have a figure where there
  are some.

  Args:
    study: as read from disk.
    answers: of `answer.answers(study)`; may be empty.
  """
  return [
      *(_made(make, study, answers) for make in (
          choice.accuracy_by_decay, choice.loss_by_decay, choice.loss_and_accuracy,
          choice.probability_best)),
      *(_made(make, study) for make in (
          finetuning.before_and_after, finetuning.forgetting, finetuning.finetuning_curves,
          finetuning.rate_by_decay, inside.probe_by_layer, inside.pseudo_rank,
          inside.pseudo_rank_heads, inside.rank_by_decay, training.learning_curves, training.gap,
          training.gap_over_training, inside.loss_by_frequency, training.weight_norms,
          training.timescale, training.loss_by_timescale)),
      *([_made(harness.harness_by_decay, study)] if study.harness else [])]


def _made(make: Callable[..., Figure], *of) -> Figure:
  """A figure; one without views where a result holds what it cannot be made of."""
  try:
    return make(*of)
  except UNREADABLE as e:
    logging.exception("the figure %s cannot be made", make.__name__)
    what = make.__name__.replace("_", " ")
    return Figure(make.__name__, "Figures that could not be made", what.capitalize(), "", "", (),
                  missing=f"A result holds what the figure of {what} cannot be made of "
                          f"({type(e).__name__}: {plain.one_line(e)}); make its program's results "
                          "again, or restore them.")
