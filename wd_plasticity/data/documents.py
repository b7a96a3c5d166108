"""From raw text to clean, unique documents, each in exactly one split.

A document's split follows from a hash of its content alone: it does not depend on
the order of the documents or on what else there is, and equal documents cannot end
up in two splits.
"""

import hashlib
import itertools
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from wd_plasticity.errors import UserError

Documents = Callable[[], Iterator[str]]
SPLITS = ("train", "train_subset", "validation")


class DocumentStream:
  """Iterates (split, text), as often as asked; `counts` is what the last pass dropped.

  Args:
    train: opens the raw documents, once per pass.
    validation: opens documents that are all validation; None takes a share of `train`.
    strip: regular expression removed from the start of each document ('' for none).
    validation_fraction: share of documents, when `validation` is None.
    train_subset_fraction: share of the training documents in `train_subset`.
    max_documents: documents kept of each of the two inputs; 0 for all.
  """

  def __init__(self, train: Documents, validation: Documents | None, *, strip: str,
               validation_fraction: float, train_subset_fraction: float, max_documents: int):
    self._train = train
    self._validation = validation
    self._strip = compile_strip(strip)
    self._validation_fraction = validation_fraction
    self._train_subset_fraction = train_subset_fraction
    self._max_documents = max_documents or None
    self.counts = Counter()

  def __iter__(self) -> Iterator[tuple[str, str]]:
    self.counts = Counter(empty=0, duplicates=0, in_validation=0)
    held_out: set[bytes] = set()
    if self._validation is not None:
      unique = self._unique(self._validation(), held_out, frozenset())
      for text, _ in itertools.islice(unique, self._max_documents):
        yield "validation", text
    unique = self._unique(self._train(), set(), held_out)
    for text, digest in itertools.islice(unique, self._max_documents):
      yield self._split(digest), text

  def _unique(self, texts: Iterable[str], seen: set[bytes],
              held_out: set[bytes] | frozenset[bytes]) -> Iterator[tuple[str, bytes]]:
    for raw in texts:
      text = clean(raw, self._strip)
      if not text:
        self.counts["empty"] += 1
        continue
      digest = hashlib.sha256(text.encode("utf-8")).digest()[:16]
      if digest in held_out:
        self.counts["in_validation"] += 1
      elif digest in seen:
        self.counts["duplicates"] += 1
      else:
        seen.add(digest)
        yield text, digest

  def _split(self, digest: bytes) -> str:
    # Two independent numbers in [0, 1), from disjoint bits of the hash.
    of_validation, of_subset = (int.from_bytes(digest[i:i + 6], "little") / 2**48 for i in (0, 6))
    if self._validation is None and of_validation < self._validation_fraction:
      return "validation"
    return "train_subset" if of_subset < self._train_subset_fraction else "train"


def clean(text: str, strip: re.Pattern | None) -> str:
  """Unix line ends, no header, only characters that UTF-8 can hold; '' for a blank document."""
  text = text.replace("\r\n", "\n")
  if strip is not None and (match := strip.match(text)):
    text = text[match.end():]
  if text.isspace():
    return ""
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:  # JSON can spell halves of surrogate pairs
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
  return text


def compile_strip(strip: str) -> re.Pattern | None:
  """The pattern of `data.strip`."""
  try:
    return re.compile(strip) if strip else None
  except re.error as e:
    raise UserError(f"data.strip={strip!r} is not a regular expression ({e}); correct it.") from e


def in_batches(documents: Iterable[tuple[str, str]],
               num_characters: int) -> Iterator[list[tuple[str, str]]]:
  """Groups of documents that hold together about `num_characters`."""
  batch, size = [], 0
  for document in documents:
    batch.append(document)
    size += len(document[1])
    if size >= num_characters:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def in_background(items: Iterable, size: int) -> Iterator:
  """Iterates `items` in a thread, at most `size` ahead; its exceptions come through."""
  ahead: queue.Queue = queue.Queue(maxsize=size)
  stopped = threading.Event()

  def put(entry) -> bool:
    while not stopped.is_set():
      try:
        ahead.put(entry, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def work():
    try:
      for item in items:
        if not put((item, None)):
          return
      put((None, StopIteration()))
    except BaseException as e:  # handed to the consumer, who raises it
      put((None, e))

  threading.Thread(target=work, daemon=True).start()
  try:
    while True:
      item, error = ahead.get()
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      yield item
  finally:
    stopped.set()
