"""HellaSwag (Rowan/hellaswag, TFDS hellaswag; Zellers et al. 2019): how a passage goes on.

Activity and passage as prompt and the text of an ending as response, with the marks of
WikiHow removed, as in lm-eval.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  rows = list(rows)
  for number, (row, (options, gold)) in enumerate(
      zip(rows, formats.choices(rows, "endings"), strict=True)):
    if reading.has(row, "query"):
      prompt = reading.text(row, "query")
    else:
      second = reading.optional_text(row, "ctx_b") if reading.has(row, "ctx_b") else ""
      passage = " ".join(filter(None, (reading.text(row, "ctx_a").strip(),
                                       _capitalised(second.strip()))))
      prompt = _clean(f"{reading.text(row, 'activity_label')}: {passage}")
    yield formats.cloze(formats.key(row, number, "ind"), prompt,
                        [_clean(option) for option in options], gold)


def _capitalised(text: str) -> str:
  return text[:1].upper() + text[1:].lower()


def _clean(text: str) -> str:
  *closed, last = text.replace(" [title]", ". ").split("]")
  kept = [part.partition("[")[0] if "[" in part else f"{part}]" for part in closed]
  return " ".join(word for word in "".join([*kept, last]).split(" ") if word).strip()


TASK = Task(
    name="hellaswag", title="HellaSwag", source="Rowan/hellaswag",
    splits={"train": 39905, "validation": 10042}, problems=_problems, grading="none",
)
