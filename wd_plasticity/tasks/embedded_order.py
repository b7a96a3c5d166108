"""Are the words of a sentence in order, or have two neighbours been swapped; no files.

The bigram-shift probe of Conneau et al. (2018), on sentences of documentation. Half of
the sentences of a split are changed, each appears once; neither the first nor the last
word is moved, which capital or full stop would betray.
"""

from collections.abc import Iterable, Iterator

from wd_plasticity.data import embedded
from wd_plasticity.tasks import embedded_text, formats
from wd_plasticity.tasks.task import Problem, Task

_LABELS = ("original", "swapped")
_QUESTION = "Question: Is the order of the words original or swapped?"
_MIN_WORDS, _MAX_WORDS = 7, 25


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del rows
  seen, swaps = set(), 0
  sentences = [s for p in embedded_text.paragraphs(split) for s in p.sentences]
  for number, sentence in enumerate(sorted(sentences, key=embedded.hashed)):
    words = sentence.split()
    places = [i for i in range(1, len(words) - 2) if words[i].lower() != words[i + 1].lower()]
    if sentence in seen or not _MIN_WORDS <= len(words) <= _MAX_WORDS or not places:
      continue
    seen.add(sentence)
    swap = swaps < len(seen) / 2
    if swap:
      swaps += 1
      i = places[embedded.hashed(f"place {sentence}") % len(places)]
      words[i], words[i + 1] = words[i + 1], words[i]
    yield formats.labelled(str(number), " ".join(words), int(swap), _LABELS, _QUESTION)


TASK = Task(
    name="embedded_order", title="word order (embedded)", source="embedded",
    splits=embedded_text.SPLITS, problems=_problems, grading="word", labels=_LABELS,
)
