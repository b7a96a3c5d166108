"""Labelled texts as a probe uses them: classes, permuted labels, held-out rows, tokens."""

import dataclasses
from typing import Any

import numpy as np

from wd_plasticity.analysis import logistic
from wd_plasticity.data.tokenizers import Tokenizer
from wd_plasticity.errors import UserError
from wd_plasticity.evals import program
from wd_plasticity.tasks import registry


@dataclasses.dataclass(frozen=True)
class LabelledTask:
  """Examples of one task, the same for all checkpoints.

  Attributes:
    name, title: of the task.
    texts: N training texts, then T test texts.
    classes: those classes of the task that occur in training; labels are indices of them.
    train_2xN: labels of the training texts, true and permuted.
    test_2xT: labels of the test texts, true and permuted; -1 of a class not in training.
    fit_rows, held_out_rows: training texts to try a strength on, and to judge it by.
    in_training: how many of the test texts are also training texts.
    notes: what a reader of the results should know about the data.
    settings: everything but the checkpoint that decides a result.
  """
  name: str
  title: str
  texts: list[str]
  classes: np.ndarray
  train_2xN: np.ndarray
  test_2xT: np.ndarray
  fit_rows: np.ndarray
  held_out_rows: np.ndarray
  in_training: int
  notes: list[str]
  settings: dict[str, Any]

  @property
  def num_train(self) -> int:
    return self.train_2xN.shape[1]


def load(session: program.Session, name: str) -> LabelledTask:
  """Reads the training and test split of a task.

  Raises:
    UserError: it is not one of labelled text, files are missing, or one class is all there is.
  """
  config, task = session.config, registry.get(name)
  test_split = "test" if "test" in task.splits else "validation"
  if not {"train", test_split} <= set(task.splits):
    raise UserError(f"task {name} has no training and test split; a probe needs both.")
  train, test = (
      registry.load(name, split, config.sources[name][split], limit, config.seed)
      for split, limit in (("train", config.max_train), (test_split, config.max_test)))
  for split in (train, test):
    if any(p.gold < 0 or not p.text for p in split.problems):
      raise UserError(f"task {name} is not one of labelled text; choose one such as sst2, ag_news, "
                      "labelled or embedded_topic.")
  labels, test_labels = (np.array([p.gold for p in s.problems]) for s in (train, test))
  classes = np.unique(labels)
  if len(classes) < 2:
    raise UserError(f"all {len(labels)} training examples of {name} are of one class; give "
                    "examples of at least two, or a larger max_train.")
  labels = np.searchsorted(classes, labels)
  occurs = np.isin(test_labels, classes)
  test_labels = np.where(occurs, np.searchsorted(classes, test_labels), -1)
  fit_rows, held_out_rows = logistic.stratified_split(labels, config.held_out, config.seed)
  random = np.random.default_rng([config.seed, 1])
  learnt = [p.text for p in train.problems]
  known = set(learnt)
  in_training = sum(p.text in known for p in test.problems)
  notes = [s.note for s in (train, test) if s.note]
  if in_training:
    notes.append(f"{in_training:,} of {len(test.problems):,} test texts of {name} are also "
                 "training texts")
  if repeated := len(learnt) - len(known):
    notes.append(f"{repeated:,} of {len(learnt):,} training texts of {name} repeat another one")
  settings = {k: v for k, v in session.settings().items() if k != "batch_tokens"}
  return LabelledTask(
      name=name, title=task.title,
      texts=[p.text for s in (train, test) for p in s.problems], classes=classes,
      train_2xN=np.stack([labels, random.permutation(labels)]).astype(np.int32),
      test_2xT=np.stack([test_labels, random.permutation(test_labels)]).astype(np.int32),
      fit_rows=fit_rows, held_out_rows=held_out_rows, in_training=in_training, notes=notes,
      settings=settings | {"train_fingerprint": train.fingerprint,
                           "test_fingerprint": test.fingerprint})


def tokenize(task: LabelledTask, tokenizer: Tokenizer,
             max_length: int) -> tuple[list[np.ndarray], list[int]]:
  """Ids of every text, cut at `max_length`, and how many [training, test] texts were cut.

  A text without any token becomes an end of sequence, as a model cannot read nothing.
  """
  ids = tokenizer.encode_batch(task.texts)
  too_long = [len(i) > max_length for i in ids]
  cut = [sum(too_long[:task.num_train]), sum(too_long[task.num_train:])]
  return [i[:max_length] if len(i) else np.array([tokenizer.eos_id], np.int32) for i in ids], cut
