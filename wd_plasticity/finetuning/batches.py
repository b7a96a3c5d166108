"""Batches of examples laid out in rows without padding between them.

A batch of fine-tuning is a fixed number of examples, as in a padded batch, but they are
laid one after another into rows; a document mask keeps them apart, and rotary positions
are relative, so every number is that of the padded batch at a fraction of its cost. The
output head is computed only where there is something to learn.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from wd_plasticity.data.loader import record_index
from wd_plasticity.finetuning.examples import Example
from wd_plasticity.models import attention

_MULTIPLE = 32  # of row lengths


@dataclasses.dataclass(frozen=True)
class Shape:
  """R rows of L tokens, of which at most T are targets."""
  rows: int
  length: int
  targets: int

  def cover(self, other: "Shape") -> "Shape":
    return Shape(*np.maximum(dataclasses.astuple(self), dataclasses.astuple(other)).tolist())


def lay_out(examples: Sequence[Example], shape: Shape) -> dict[str, np.ndarray]:
  """Examples in rows: the longest first, each into the first row with room.

  Returns:
    inputs [R, L], segments [R, L] (document ids, 0 where nothing is), and the targets with
    where they are predicted: positions, targets, weights [R, T].
  """
  rows = _fill([len(e.tokens) - 1 for e in examples], shape.length)
  inputs, segments = (np.zeros((shape.rows, shape.length), np.int32) for _ in range(2))
  positions, targets = (np.zeros((shape.rows, shape.targets), np.int32) for _ in range(2))
  weights = np.zeros((shape.rows, shape.targets), np.float32)
  for r, chosen in enumerate(rows):
    begin = first = 0
    for number, i in enumerate(chosen, 1):
      tokens, prompt = examples[i].tokens, examples[i].prompt_length
      end = begin + len(tokens) - 1
      inputs[r, begin:end] = tokens[:-1]
      segments[r, begin:end] = number
      last = first + len(tokens) - prompt
      positions[r, first:last] = np.arange(begin + prompt - 1, end)
      targets[r, first:last] = tokens[prompt:]
      weights[r, first:last] = 1.0
      begin, first = end, last
  return dict(inputs=inputs, segments=segments, positions=positions, targets=targets,
              weights=weights)


def _fill(lengths: Sequence[int], row_length: int) -> list[list[int]]:
  """The indices of the examples in each row, first fit by falling length."""
  rows, room = [], []
  for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    row = next((r for r, free in enumerate(room) if free >= lengths[i]), len(room))
    if row == len(room):
      rows.append([])
      room.append(row_length)
    rows[row].append(i)
    room[row] -= lengths[i]
  return rows


def shape_of(batches: Iterator[Sequence[Example]], row_length: int, row_shares: int) -> Shape:
  """The smallest shape that every one of the batches fits into."""
  num_rows = num_targets = 1
  for examples in batches:
    rows = _fill([len(e.tokens) - 1 for e in examples], row_length)
    num_rows = max(num_rows, len(rows))
    num_targets = max(num_targets, *(sum(len(examples[i].tokens) - examples[i].prompt_length
                                         for i in row) for row in rows))
  return Shape(-(-num_rows // row_shares) * row_shares, row_length,
               min(row_length, -(-num_targets // 8) * 8))


def row_length(examples: Sequence[Example]) -> int:
  """Length of rows: that of the longest example, as a multiple of 32 that suits attention."""
  return attention.row_length(max(len(e.tokens) - 1 for e in examples), _MULTIPLE)


class ExampleBatches:
  """The batches of a training over examples: `batches[step]` is a pure function of the seed.

  An epoch reads every example once in an order of its own; its last batch may hold fewer
  examples, as in the Trainer of transformers.

  Args:
    examples: what is learnt.
    batch_size: examples of a batch.
    epochs: passes over them.
    seed: of their order.
    row_shares: the number of rows is a multiple of it.
  """

  def __init__(self, examples: Sequence[Example], batch_size: int, epochs: int, seed: int,
               row_shares: int = 1):
    self._examples, self._batch_size, self._seed = examples, batch_size, seed
    self._steps_per_epoch = -(-len(examples) // batch_size)
    self._num_steps = self._steps_per_epoch * epochs
    self.shape = shape_of(map(self.chosen, range(self._num_steps)), row_length(examples),
                          row_shares)

  def __len__(self) -> int:
    return self._num_steps

  def chosen(self, step: int) -> list[Example]:
    """The examples of a step."""
    epoch, in_epoch = divmod(step, self._steps_per_epoch)
    n = len(self._examples)
    places = range(in_epoch * self._batch_size, min(n, (in_epoch + 1) * self._batch_size))
    return [self._examples[record_index(epoch * n + p, n, self._seed)] for p in places]

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    return lay_out(self.chosen(step), self.shape)
