"""What ARC, OpenBookQA and CommonsenseQA share: a question and the texts of its options.

The prompt is the question alone and a response the text of an option. This is how
lm-eval scores ARC and OpenBookQA, and what the study fine-tunes on; models of up to a
few billion parameters cannot use options with letters before fine-tuning (Gu et al.
2024, OLMES).
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem


def problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  """Problems of rows with `question` (or `query`), `choices` and `answerKey` (or `gold`)."""
  del split  # rows of all splits are alike
  for number, row in enumerate(rows):
    if not str(row.get("answerKey", "?")).strip():
      raise UserError(f"row {row.get('_name', '?')} has no answer; use the validation split, the "
                      "test split of some benchmarks comes without answers.")
    question = reading.column(row, "question_stem", "question", "query")
    if isinstance(question, dict):  # the original files and TFDS's OpenBookQA
      row = {**row, "choices": question.get("choices") or _by_letter(question)}
      question = question["stem"]
    options, gold = formats.choices(row)
    question = str(question).removeprefix("Question: ").removesuffix("\nAnswer:").strip()
    yield formats.cloze(formats.key(row, number), question, options, gold)


def _by_letter(question: dict) -> list[str]:
  return [question[f"choice_{a}"] for a in formats.LETTERS if f"choice_{a}" in question]
