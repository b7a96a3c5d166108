"""All tasks by name, and their splits as lists of problems."""

import dataclasses
import functools
import hashlib
import heapq
import importlib
import pkgutil

from wd_plasticity import tasks
from wd_plasticity.errors import UserError
from wd_plasticity.tasks import reading
from wd_plasticity.tasks.task import Problem, Task


@dataclasses.dataclass(frozen=True)
class LoadedSplit:
  """The problems of a split.

  Attributes:
    problems: those that were asked for, in the order of the data set.
    count: how many the split has here, after its split rules.
    official: how many it has as published; 0 when no number is official.
    fingerprint: of task, split and all of `problems`.
    note: a sentence when `count` is not `official`, else ''.
  """

  problems: list[Problem]
  count: int
  official: int
  fingerprint: str
  note: str


@functools.cache
def _tasks() -> dict[str, Task]:
  found = {}
  for module in pkgutil.iter_modules(tasks.__path__):
    task = getattr(importlib.import_module(f"{tasks.__name__}.{module.name}"), "TASK", None)
    if task is not None:
      found[task.name] = task
  return found


def names() -> list[str]:
  """The names of all tasks, sorted."""
  return sorted(_tasks())


def get(name: str) -> Task:
  """The task called `name`."""
  if name not in _tasks():
    raise UserError(f"There is no task {name!r}; choose one of {', '.join(names())}.")
  return _tasks()[name]


def load(name: str, split: str, spec: str = "", max_problems: int = 0,
         seed: int = 0) -> LoadedSplit:
  """Reads a split of a task.

  Args:
    name: of the task.
    split: one of its `splits`.
    spec: files or TFDS data sets as `reading.rows` takes them; embedded tasks need none.
    max_problems: how many problems to take, 0 for all. Those taken depend on `seed` and
      on the problems' keys alone, and a larger number keeps those of a smaller one.
    seed: of that choice.

  Raises:
    UserError: no such task or split, files that cannot be read, or no problem in them.
  """
  task = get(name)
  if split not in task.splits:
    raise UserError(f"Task {name} has no split {split!r}; choose one of {', '.join(task.splits)}.")
  field = f"the files of {name} {split}"
  rows = () if task.embedded else reading.rows(spec, field)
  problems = list(task.problems(rows, split))
  if not problems:
    raise UserError(f"{field} ({spec}) hold no problem of this split; check the path and the "
                    f"split, the task is published as {task.source}.")
  count, official = len(problems), task.splits[split]
  note = ""
  if official and count != official:
    note = f"{name} {split} has {count:,} problems here and {official:,} as published"
  if 0 < max_problems < count:
    problems = subset(problems, max_problems, seed)
  return LoadedSplit(problems, count, official, _fingerprint(name, split, problems), note)


def subset(problems: list[Problem], num: int, seed: int = 0) -> list[Problem]:
  """At most `num` problems in their order, chosen by `seed` and their keys, not their places."""
  def rank(index: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{problems[index].key}".encode(), digest_size=16).digest()

  return [problems[i] for i in sorted(heapq.nsmallest(num, range(len(problems)), key=rank))]


def _fingerprint(name: str, split: str, problems: list[Problem]) -> str:
  digest = hashlib.sha256(f"{name}\0{split}".encode())
  for problem in problems:
    # repr parts the fields without ambiguity and cannot fail on lone surrogates.
    digest.update(repr(problem).encode("utf-8", "backslashreplace"))
  return digest.hexdigest()[:32]
