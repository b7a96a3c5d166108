"""PubMedQA (qiaojin/PubMedQA, or ori_pqal.json of the original repository; Jin et al. 2019).

Trained on pqa_artificial (211,269 rows, 211,168 within the length filter), tested on the
1,000 of pqa_labeled. A response is the conclusion of the abstract and `Therefore, the
answer is yes.` (or no, or maybe).
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_WORDS = ("yes", "no", "maybe")
_OPTIONS = tuple(f"The answer is {word}." for word in _WORDS)


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  for number, row in enumerate(rows):
    context = reading.column(row, "context", "CONTEXTS", "contexts")
    abstract = " ".join(context["contexts"] if isinstance(context, dict) else context)
    question = reading.column(row, "question", "QUESTION")
    word = str(reading.column(row, "final_decision")).strip().lower()
    conclusion = str(reading.column(row, "long_answer", "LONG_ANSWER")).strip()
    prompt = ("Read the abstract of a paper and answer the question with yes, no or maybe.\n\n"
              f"Question: {question}\n\nAbstract: {abstract}")
    response = f"{conclusion} Therefore, the answer is {word}."
    if split == "train" and not formats.short_enough(prompt, response):
      continue
    name = row.get("pubid") or (number if ":" in str(row.get("_name", ":")) else row["_name"])
    yield Problem(key=str(name), prompt=prompt, response=response, answer=word,
                  options=_OPTIONS, gold=_WORDS.index(word))


TASK = Task(
    name="pubmedqa", title="PubMedQA",
    source="qiaojin/PubMedQA (train pqa_artificial, test pqa_labeled)",
    splits={"train": 211168, "test": 1000}, problems=_problems,
    grading="word", generated=True,
    notes="Options are scored without the conclusion.",
)
