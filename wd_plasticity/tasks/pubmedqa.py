"""PubMedQA (qiaojin/PubMedQA, or ori_pqal.json of the original repository; Jin et al. 2019).

Trained on pqa_artificial (211,269 rows, 211,168 within the length filter), tested on the
1,000 of pqa_labeled. A response is the conclusion of the abstract and `Therefore, the
answer is yes.` (or no, or maybe).
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import formats, printed, reading
from wd_plasticity.tasks.task import Problem, Task

_WORDS = ("yes", "no", "maybe")
_OPTIONS = tuple(f"The answer is {word}." for word in _WORDS)


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  rows = list(rows)
  golds = formats.classes([reading.column(row, "final_decision") for row in rows], _WORDS, rows)
  for number, (row, gold) in enumerate(zip(rows, golds, strict=True)):
    abstract = _abstract(row)
    question = reading.text(row, "question", "QUESTION")
    word = _WORDS[gold]
    conclusion = reading.text(row, "long_answer", "LONG_ANSWER").strip()
    prompt = ("Read the abstract of a paper and answer the question with yes, no or maybe.\n\n"
              f"Question: {question}\n\nAbstract: {abstract}")
    response = f"{conclusion} Therefore, the answer is {word}."
    if split == "train" and not formats.short_enough(prompt, response):
      continue
    named = () if ":" in reading.shown({"_name": ":", **row}) else ("_name",)
    yield Problem(key=formats.key(row, number, "pubid", *named), prompt=prompt,
                  response=response, answer=word, options=_OPTIONS, gold=gold)


def _abstract(row: dict) -> str:
  """The passages of the context: a list, a dict with one, either as text, or one text."""
  context = printed.structure(reading.column(row, "context", "CONTEXTS", "contexts"))
  if isinstance(context, dict):
    context = printed.structure(context.get("contexts"))
  if not context or not isinstance(context, (str, list)):
    raise UserError(f"row {reading.shown(row)} has a context without passages; give a text, a "
                    "list of texts, or {contexts: [...]}.")
  return context if isinstance(context, str) else " ".join(map(str, context))


TASK = Task(
    name="pubmedqa", title="PubMedQA",
    source="qiaojin/PubMedQA (train pqa_artificial, test pqa_labeled)",
    splits={"train": 211168, "test": 1000}, problems=_problems,
    grading="word", generated=True,
    notes="Options are scored without the conclusion.",
)
