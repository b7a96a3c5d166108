"""Which of four sentences goes on a passage of documentation; needs no files.

The three wrong sentences go on other passages of the same split and package.
"""

import collections
from collections.abc import Iterable, Iterator

from wd_plasticity.data import embedded
from wd_plasticity.tasks import embedded_text, formats
from wd_plasticity.tasks.task import Problem, Task

_NUM_OPTIONS = 4


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del rows
  by_package = collections.defaultdict(list)
  for paragraph in embedded_text.paragraphs(split):
    if len(paragraph.sentences) >= 2:
      by_package[paragraph.package].append(paragraph.sentences)
  for package, passages in sorted(by_package.items()):
    for i, (*before, right) in enumerate(passages):
      # Passages are in the order of a hash, so neighbours have nothing to do with each other.
      others = [passages[(i + k) % len(passages)][-1] for k in range(1, len(passages))]
      wrong = list(dict.fromkeys(s for s in others[:3 * _NUM_OPTIONS] if s != right))
      if len(wrong) < _NUM_OPTIONS - 1:
        continue
      prompt = " ".join(before)
      gold = embedded.hashed(prompt) % _NUM_OPTIONS
      options = wrong[:_NUM_OPTIONS - 1]
      options.insert(gold, right)
      yield formats.cloze(f"{package}-{i}", prompt, options, gold)


TASK = Task(
    name="embedded_next", title="next sentence (embedded)", source="embedded",
    splits=embedded_text.SPLITS, problems=_problems, grading="none",
)
