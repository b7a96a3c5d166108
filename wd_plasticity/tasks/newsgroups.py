"""20 Newsgroups, split by date (SetFit/20_newsgroups; Lang 1995): topic of messages.

Rows with text and label, or the original archive, a file per message in a folder per
group (`20news-bydate-train/*/*`), of which the header lines are left out: they name the
group.
"""

import re
from collections.abc import Iterable, Iterator

from wd_plasticity.tasks import formats, reading
from wd_plasticity.tasks.task import Problem, Task

_GROUPS = (
    "alt.atheism", "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware", "comp.windows.x", "misc.forsale", "rec.autos", "rec.motorcycles",
    "rec.sport.baseball", "rec.sport.hockey", "sci.crypt", "sci.electronics", "sci.med",
    "sci.space", "soc.religion.christian", "talk.politics.guns", "talk.politics.mideast",
    "talk.politics.misc", "talk.religion.misc",
)
_QUESTION = "Question: Which newsgroup is this from?"
_HEADER = re.compile(r"\A([A-Za-z-]+: .*\n(\s+.*\n)*)+\s*\n")


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  for number, row in enumerate(rows):
    text = str(reading.column(row, "text")).replace("\r\n", "\n")
    if "label" not in row and "label_text" not in row:
      text = _HEADER.sub("", text)
    gold = formats.class_index(reading.column(row, "label", "label_text", "_folder"), _GROUPS, row)
    yield formats.labelled(str(number), text.strip(), gold, _GROUPS, _QUESTION)


TASK = Task(
    name="newsgroups", title="20 Newsgroups", source="SetFit/20_newsgroups",
    splits={"train": 11314, "test": 7532}, problems=_problems, grading="word", labels=_GROUPS,
)
