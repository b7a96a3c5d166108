"""What ARC, OpenBookQA and CommonsenseQA share: a question and the texts of its options.

The prompt is the question alone and a response the text of an option. This is how
lm-eval scores ARC and OpenBookQA, and what the study fine-tunes on; models of up to a
few billion parameters cannot use options with letters before fine-tuning (Gu et al.
2024, OLMES).
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import formats, printed, reading
from wd_plasticity.tasks.task import Problem


def problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  """Problems of rows with `question` (or `query`), `choices` and `answerKey` (or `gold`)."""
  del split  # rows of all splits are alike
  rows = [_flat(row) for row in rows]
  for number, (row, (options, gold)) in enumerate(zip(rows, formats.choices(rows), strict=True)):
    question = reading.text(row, "question_stem", "question", "query")
    question = question.removeprefix("Question: ").removesuffix("\nAnswer:").strip()
    yield formats.cloze(formats.key(row, number), question, options, gold)


def _flat(row: dict) -> dict:
  """A row whose question is a text, as in all but the original files and TFDS's OpenBookQA."""
  if not str(row.get("answerKey", "?")).strip():
    raise UserError(f"row {reading.shown(row)} has no answer; use the validation split, the test "
                    "split of some benchmarks comes without answers.")
  question = printed.structure(reading.column(row, "question_stem", "question", "query"))
  if not isinstance(question, dict):
    return row
  if "stem" not in question:
    raise UserError(f"row {reading.shown(row)} has a question without its text (stem); check that "
                    "these are the files of the task.")
  tfds = "choices" not in question  # its answers are classes, which count from 0
  return {**({"_count_from": 0} if tfds else {}), **row, **question,
          "question": question["stem"], "question_stem": question["stem"]}
