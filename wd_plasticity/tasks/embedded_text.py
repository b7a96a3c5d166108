"""Prose from the docstrings of installed packages, for the tasks that need no files.

Some modules of each of a few packages are read (see `data.embedded`), enough for a quick start
and in about a second. The test split is of those modules that the embedded corpus holds out, so
that no pretraining on it has seen a test text; the training split is of others. A paragraph that
several modules share belongs to none, and no sentence to both.
"""

import collections
import dataclasses
import functools
import os
import re
from collections.abc import Iterator

from wd_plasticity.data import embedded

PACKAGES = embedded.HELD_OUT_PACKAGES
SPLITS = {"train": 0, "test": 0}  # the numbers depend on the installed versions

_BYTES_PER_PACKAGE = 1_500_000
_MIN_WORDS, _MAX_WORDS = 10, 80
_NOT_PROSE = re.compile(r">>>|::|--|==|\w: ")  # code, tables, lists of arguments
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
    return embedded.SENTENCE_END.split(self.text)


def paragraphs(split: str) -> list[Paragraph]:
  """The paragraphs of a split, in an order that depends on their text alone."""
  found, held_out = _paragraphs()
  train = [p for p in found if p.module not in held_out]
  if split == "train":
    return train
  known = {sentence for p in train for sentence in p.sentences}
  # A sentence of fewer words is not kept out of the corpus.
  return [p for p in found if p.module in held_out and known.isdisjoint(p.sentences)
          and min(len(embedded.words(s)) for s in p.sentences) >= embedded.LEAST_WORDS]


@functools.cache
def _paragraphs() -> tuple[tuple[Paragraph, ...], frozenset[str]]:
  """Those of both splits, and the modules of the test split."""
  files = embedded.module_files()
  held_out = embedded.held_out(files)
  found = collections.defaultdict(list)
  for module, text in _modules(files, held_out):
    package = PACKAGES.index(module.partition(".")[0])
    for block in text.split("\n\n"):
      block = _NAMES.sub("library", embedded.MARKUP.sub("", " ".join(block.split())))
      if _is_prose(block):
        found[block].append(Paragraph(package, module, block))
  unique = [same[0] for same in found.values() if len({p.module for p in same}) == 1]
  return tuple(sorted(unique, key=lambda p: embedded.hashed(p.text))), held_out


def _is_prose(text: str) -> bool:
  if not _MIN_WORDS <= len(text.split()) <= _MAX_WORDS or _NOT_PROSE.search(text):
    return False
  letters = sum(c.isalpha() or c == " " for c in text)
  return text[0].isupper() and text.endswith(".") and letters >= 0.9 * len(text)


def _modules(files: list[tuple[str, str]],
             held_out: frozenset[str]) -> Iterator[tuple[str, str]]:
  """Some modules of each package and split, with their docstrings."""
  shares = {True: embedded.HELD_OUT_SHARE, False: 1 - embedded.HELD_OUT_SHARE}
  left = {(package, is_test): share * _BYTES_PER_PACKAGE
          for package in PACKAGES for is_test, share in shares.items()}
  own = [f for f in files if f[0].partition(".")[0] in PACKAGES and f[0] not in PACKAGES]
  for module, path in sorted(own, key=lambda f: embedded.hashed(f[0])):
    of, size = (module.partition(".")[0], module in held_out), os.path.getsize(path)
    if size > left[of]:
      continue
    left[of] -= size
    with open(path, "rb") as f:
      yield module, embedded.docstrings(f.read())
