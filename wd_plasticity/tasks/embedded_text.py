"""Prose from the docstrings of installed packages, for the tasks that need no files.

Some modules of each of a few packages are read (see `data.embedded`), enough for a
quick start and in about a second. A module belongs to the training or to the test
split; a paragraph that several modules share belongs to none, and no sentence to both.
"""

import collections
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterator

from wd_plasticity.data import embedded

PACKAGES = ("matplotlib", "huggingface_hub", "orbax", "flax")
SPLITS = {"train": 0, "test": 0}  # the numbers depend on the installed versions

_BYTES_PER_PACKAGE = 1_500_000
_TEST_SHARE = 0.3
_MIN_WORDS, _MAX_WORDS = 10, 80
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_NOT_PROSE = re.compile(r">>>|::|--|==|\w: ")  # code, tables, lists of arguments
_MARKUP = re.compile(r":\w+:(?=`)|[`*]+|\s*\[\d+\]_")
_NAMES = re.compile(r"\b(matplotlib|pyplot|mpl|huggingface(_hub)?|hugging face|hub|orbax|flax|"
                    r"linen|nnx|jax)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Paragraph:
  """Prose of a package's documentation, in which no package is named."""

  package: int  # index into PACKAGES
  module: str
  text: str

  @property
  def sentences(self) -> list[str]:
    return _SENTENCE_END.split(self.text)


def hashed(text: str) -> int:
  """A number from 0 to 2^64 - 1 that depends on the text alone."""
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def paragraphs(split: str) -> list[Paragraph]:
  """The paragraphs of a split, in an order that depends on their text alone."""
  test_modules = _test_modules()
  train = [p for p in _paragraphs() if p.module not in test_modules]
  if split == "train":
    return train
  known = {sentence for p in train for sentence in p.sentences}
  return [p for p in _paragraphs() if p.module in test_modules and known.isdisjoint(p.sentences)]


@functools.cache
def _test_modules() -> frozenset[str]:
  """Modules with just under a given share of the paragraphs of each package."""
  counts = collections.Counter((p.package, p.module) for p in _paragraphs())
  left = collections.Counter()
  for (package, _), count in counts.items():
    left[package] += _TEST_SHARE * count
  chosen = []
  for (package, module), count in sorted(counts.items(), key=lambda item: hashed(item[0][1])):
    if count <= left[package]:
      left[package] -= count
      chosen.append(module)
  return frozenset(chosen)


@functools.cache
def _paragraphs() -> tuple[Paragraph, ...]:
  found = collections.defaultdict(list)
  for module, text in _modules():
    package = PACKAGES.index(module.partition(".")[0])
    for block in text.split("\n\n"):
      block = _NAMES.sub("library", _MARKUP.sub("", " ".join(block.split())))
      if _is_prose(block):
        found[block].append(Paragraph(package, module, block))
  unique = [same[0] for same in found.values() if len({p.module for p in same}) == 1]
  return tuple(sorted(unique, key=lambda p: hashed(p.text)))


def _is_prose(text: str) -> bool:
  if not _MIN_WORDS <= len(text.split()) <= _MAX_WORDS or _NOT_PROSE.search(text):
    return False
  letters = sum(c.isalpha() or c == " " for c in text)
  return text[0].isupper() and text.endswith(".") and letters >= 0.9 * len(text)


def _modules() -> Iterator[tuple[str, str]]:
  files = [f for f in embedded.module_files() if f[0].partition(".")[0] in PACKAGES]
  left = dict.fromkeys(PACKAGES, _BYTES_PER_PACKAGE)
  for module, path in sorted(files, key=lambda f: hashed(f[0])):
    package = module.partition(".")[0]
    size = os.path.getsize(path)
    if size > left[package] or module == package:
      continue
    left[package] -= size
    with open(path, "rb") as f:
      yield module, embedded.docstrings(f.read())
