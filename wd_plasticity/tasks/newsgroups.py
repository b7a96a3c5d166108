"""20 Newsgroups, split by date (SetFit/20_newsgroups; Lang 1995): topic of messages.

Rows with text and label, or the original archive, a file per message in a folder per
group (`20news-bydate-train/*/*`), of which the header lines are left out: they name the
group.
"""

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
_FIELDS = ("From:", "Newsgroups:", "Subject:")  # that a header has


def _problems(rows: Iterable[dict], split: str) -> Iterator[Problem]:
  del split  # rows of all splits are alike
  rows = list(rows)
  labels = [formats.label(row, "label", "label_text") for row in rows]
  golds = formats.classes(labels, _GROUPS, rows)
  for number, (row, gold) in enumerate(zip(rows, golds, strict=True)):
    text = reading.text(row, "text").replace("\r\n", "\n")
    if not reading.has(row, "label", "label_text"):
      text = _body(text)
    yield formats.labelled(str(number), text.strip(), gold, _GROUPS, _QUESTION)


def _body(message: str) -> str:
  """A message without its header: what follows the first empty line.

  A text that does not begin with a field, or has none of those that say what a message
  is, has no header.
  """
  header, _, body = message.partition("\n\n")
  name, colon, _ = header.partition("\n")[0].partition(":")
  is_field = bool(colon and name) and not any(c.isspace() for c in name)
  known = any(line.startswith(_FIELDS) for line in header.split("\n"))
  return body if is_field and known else message


TASK = Task(
    name="newsgroups", title="20 Newsgroups", source="SetFit/20_newsgroups",
    splits={"train": 11314, "test": 7532}, problems=_problems, grading="word", labels=_GROUPS,
)
