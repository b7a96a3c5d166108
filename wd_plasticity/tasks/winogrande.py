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


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  for number, row in enumerate(rows):
    sentence = str(reading.column(row, "sentence"))
    prompt, blank, rest = sentence.partition("_")
    if not blank:
      raise UserError(f"row {row.get('_name', '?')} has no blank (_) in its sentence; check that "
                      "this is WinoGrande.")
    options = [str(reading.column(row, name)).strip() + rest.rstrip()
               for name in ("option1", "option2")]
    if "answer" in row:
      gold = formats.class_index(row["answer"], ("1", "2"), row)
    else:
      gold = formats.class_index(reading.column(row, "label"), ("0", "1"), row)  # TFDS
    yield formats.cloze(formats.key(row, number), prompt.strip(), options, gold)


TASK = Task(
    name="winogrande", title="WinoGrande", source="allenai/winogrande (winogrande_xl)",
    splits={"train": 40398, "validation": 1267}, problems=_problems, grading="none",
    notes="Full scores of whole sentences, not partial ones.",
)
