"""What a task is: problems made from the rows of a published data set."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

GRADINGS = ("math", "letter", "word", "none")


@dataclasses.dataclass(frozen=True)
class Problem:
  """One problem of a task, without the template of a conversation.

  Attributes:
    key: names the problem within its split, the same in every run.
    prompt: the instruction.
    response: what fine-tuning learns; '' in test splits that have none.
    answer: what generated text is graded against; '' when it is not graded.
    options: full responses of which the likeliest is the model's choice.
    gold: index of the right option or of the class; -1 when there is none.
    text: raw text of a labelled example, which a probe reads; '' in other tasks.
  """

  key: str
  prompt: str
  response: str
  answer: str = ""
  options: tuple[str, ...] = ()
  gold: int = -1
  text: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
  """One task; each file of this package that defines `TASK` adds one.

  Attributes:
    name: how configurations call it.
    title: how tables and plots call it.
    source: where it is published (Hugging Face and TFDS names), 'embedded' when it is
      made from the installation alone.
    splits: the official number of problems of each split, after the split rules;
      0 where no number is official.
    problems: turns the rows of a split, given its name, into problems.
    grading: how generated text is graded: 'math' equivalence, 'letter' of an option,
      first 'word', or 'none'.
    labels: names of the classes of labelled text.
    generated: whether generation is graded by default, rather than options alone.
    notes: what a reader of the results should know.
  """

  name: str
  title: str
  source: str
  splits: Mapping[str, int]
  problems: Callable[[Iterable[dict], str], Iterator[Problem]]
  grading: str
  labels: tuple[str, ...] = ()
  generated: bool = False
  notes: str = ""

  def __post_init__(self):
    if self.grading not in GRADINGS:
      raise ValueError(f"{self.name}: grading={self.grading!r} is not one of {GRADINGS}.")

  @property
  def embedded(self) -> bool:
    """Whether it needs no files."""
    return self.source == "embedded"
