"""All tasks by name, and their splits as lists of problems."""

import dataclasses
import functools
import hashlib
import heapq
import importlib
import itertools
import pkgutil
from collections import Counter
from collections.abc import Sequence

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
    note: what is unusual about them, such as that `count` is not `official`; else ''.
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
  said: list[str] = []
  rows = () if task.embedded else reading.rows(spec, field, said)
  problems = list(task.problems(rows, split))
  problems = [dataclasses.replace(p, key=key) for p, key in
              zip(problems, distinct([p.key for p in problems]), strict=True)]
  if not problems:
    raise UserError(f"{field} ({spec}) hold no problem of this split; check the path and the "
                    f"split, the task is published as {task.source}.")
  problems, notes = _answered(task, split, problems)
  notes += [f"{name} {split}: {sentence}" for sentence in said]
  count, official = len(problems), task.splits[split]
  if official and count != official:
    notes.insert(0, f"{name} {split} has {count:,} problems here and {official:,} as published")
  problems = subset(problems, max_problems, seed)
  return LoadedSplit(problems, count, official, _fingerprint(name, split, problems),
                     "; ".join(notes))


def distinct(keys: Sequence[str]) -> list[str]:
  """Keys of problems, all different: repeated ones get a number (`u1`, `u1#2`, ...).

  Scores are paired by key, and two files may both number their rows from 0.
  """
  taken, times, made = set(keys), Counter(), []
  for key in keys:
    times[key] += 1
    if times[key] > 1:
      numbered = (f"{key}#{n}" for n in itertools.count(times[key]))
      key = next(k for k in numbered if k not in taken)
      taken.add(key)
    made.append(key)
  return made


def _answered(task: Task, split: str, problems: list[Problem]) -> tuple[list[Problem], list[str]]:
  """Problems that can be learnt or graded, and a note on those that are left out."""
  if split == "train":
    full = [p for p in problems if p.response.strip()]
    if len(full) == len(problems):
      return problems, []
    said = (f"in {len(problems) - len(full):,} of {len(problems):,} problems of {task.name} train "
            "the response is empty")
    if not full:
      raise UserError(f"{said}, so there is nothing to learn; check its column.")
    return full, [f"{said}, which are left out"]
  answered = [p for p in problems if p.answer]
  if not task.generated or len(answered) == len(problems):
    return problems, []
  missing = len(problems) - len(answered)
  first = next(p.key for p in problems if not p.answer)
  said = f"in {missing:,} of {len(problems):,} problems of {task.name} {split}"
  if not answered:
    raise UserError(f"no answer can be found {said}; it is a column `gt_answer`, or follows #### "
                    "or stands in \\boxed{} at the end of the solution, or is all there is in "
                    "the column `answer`.")
  return answered, [f"no answer can be found {said} (the first is {first}), which are left out"]


def subset(problems: list[Problem], num: int, seed: int = 0) -> list[Problem]:
  """`num` of the problems, in their order; all of them for 0.

  Those taken depend on `seed` and on the keys alone, so that neither their order nor
  the order of files matters, and a larger number keeps those of a smaller one.
  """
  if not 0 < num < len(problems):
    return problems

  def rank(index: int) -> bytes:
    named = f"{seed}\0{problems[index].key}".encode("utf-8", "backslashreplace")
    return hashlib.blake2b(named, digest_size=16).digest()

  return [problems[i] for i in sorted(heapq.nsmallest(num, range(len(problems)), key=rank))]


def _fingerprint(name: str, split: str, problems: list[Problem]) -> str:
  digest = hashlib.sha256(f"{name}\0{split}".encode())
  for problem in problems:
    # repr parts the fields without ambiguity and cannot fail on lone surrogates.
    digest.update(repr(problem).encode("utf-8", "backslashreplace"))
  return digest.hexdigest()[:32]
