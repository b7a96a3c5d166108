"""WinoGrande (allenai/winogrande winogrande_xl, TFDS winogrande; Sakaguchi et al. 2020).

The prompt is the sentence up to its blank, a response an option with the rest of the
sentence. Summing its log-likelihood is the "full" score of Trinh and Le (2018): like
HellaSwag, it needs one prompt and whole responses, and it is what fine-tuning learns.
lm-eval's "partial" score, of the rest given either option, differs by the likelihood of
the option itself, which is the same for both sentences of a twin pair and thus adds
noise but no bias.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_OPTIONS = ("option1", "option2")


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  rows = list(rows)
  for number, (row, gold) in enumerate(zip(rows, _golds(rows), strict=True)):
    sentence = reading.text(row, "sentence")
    prompt, blank, rest = sentence.partition("_")
    if not blank:
      raise UserError(f"row {reading.shown(row)} has no blank (_) in its sentence; check that "
                      "this is WinoGrande.")
    options = [reading.text(row, name).strip() + rest.rstrip() for name in _OPTIONS]
    yield formats.cloze(formats.key(row, number), prompt.strip(), options, gold)


def _golds(rows: list[dict]) -> list[int]:
  # The published column `answer` counts from 1, that of TFDS, `label`, from 0.
  names = ("answer",) if rows and reading.has(rows[0], "answer") else ("label",)
  return formats.classes([reading.column(row, *names) for row in rows], _OPTIONS, rows,
                         default=int(names == ("answer",)))


TASK = Task(
    name="winogrande", title="WinoGrande", source="allenai/winogrande (winogrande_xl)",
    splits={"train": 40398, "validation": 1267}, problems=_problems, grading="none",
    notes="Full scores of whole sentences, not partial ones.",
)
