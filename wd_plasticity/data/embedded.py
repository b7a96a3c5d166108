"""A corpus that every installation has: the docstrings of installed Python packages.

The Python standard library and the packages this project depends on carry about
twenty megabytes of technical English in their docstrings. They are read through
`ast`, nothing is imported or run. One document is one module: its docstring and
those of its classes and functions, in the order of the source.

Some modules of a few packages are held out, for the tasks that need no files to be tested on
(`tasks.embedded_text`). They are no documents, and paragraphs of other modules that repeat them
are left out: that hold a whole sentence of them, of at least four words, or 13 words in a row
(fewer, down to 7, where these begin at certain places).
"""

import ast
import collections
import gc
import hashlib
import importlib.util
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence

# In this order; those which are not installed are skipped. Only hard dependencies are
# listed, so that installing an extra does not change the corpus.
PACKAGES = (
    "scipy", "jax", "numpy", "matplotlib", "huggingface_hub", "orbax", "flax",
    "tensorflow_datasets", "fontTools", "optax", "PIL", "rich", "absl", "google", "pyparsing",
    "treescope", "grain", "pyarrow", "clu", "etils", "ml_collections", "tensorboardX",
)

# Packages of which modules are held out, and the share of their source.
HELD_OUT_PACKAGES = ("matplotlib", "huggingface_hub", "orbax", "flax")
HELD_OUT_SHARE = 0.3
LEAST_WORDS = 4  # of a sentence that is known again

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
MARKUP = re.compile(r":\w+:(?=`)|[`*]+|\s*\[\d+\]_")
# Runs of 13 words hold a window of 7 that begins at a multiple of 7.
_WINDOW = 7
_TO_SPACE = str.maketrans({c: " " for c in map(chr, range(128)) if not c.isalnum()})

_SKIPPED_FOLDERS = frozenset({
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "testdata",
    "lib2to3", "_vendor",
})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def module_files() -> list[tuple[str, str]]:
  """(module name, path of its source) of the whole corpus, in its fixed order."""
  roots = [("", sysconfig.get_paths()["stdlib"])]
  for package in PACKAGES:
    try:
      spec = importlib.util.find_spec(package)  # of a top-level name: finds, does not import
    except (ImportError, ValueError):
      spec = None
    if spec is not None:
      # A namespace package may be spread over several folders.
      roots += [(package, folder) for folder in sorted(spec.submodule_search_locations or ())]
  files = []
  for package, root in roots:
    for folder, subfolders, names in os.walk(root):
      subfolders[:] = sorted(s for s in subfolders if s not in _SKIPPED_FOLDERS)
      for name in sorted(names):
        if name.endswith(".py") and not name.endswith("_test.py"):
          path = os.path.join(folder, name)
          module = os.path.relpath(path, root)[:-len(".py")].replace(os.sep, ".")
          files.append((f"{package}.{module}" if package else module, path))
  return files


def hashed(text: str) -> int:
  """A number from 0 to 2^64 - 1 that depends on the text alone."""
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def held_out(files: list[tuple[str, str]]) -> frozenset[str]:
  """The modules of `files` that are held out: just under a share of each package's bytes."""
  chosen = []
  for package in HELD_OUT_PACKAGES:
    own = [(m, os.path.getsize(path)) for m, path in files
           if m.partition(".")[0] == package and m != package]
    left = HELD_OUT_SHARE * sum(size for _, size in own)
    for module, size in sorted(own, key=lambda f: hashed(f[0])):
      if size <= left:
        left -= size
        chosen.append(module)
  return frozenset(chosen)


def documents(files: list[tuple[str, str]]) -> Iterator[str]:
  """The document of each module of `files` that has docstrings, parses and is not held out."""
  kept_out = held_out(files)
  known = _Repeats([_read(path) for module, path in files if module in kept_out])
  for module, path in files:
    if module not in kept_out:
      text = "\n\n".join(p for p in _read(path).split("\n\n") if p not in known)
      if text:
        yield text


def _read(path: str) -> str:
  try:
    with open(path, "rb") as f:
      return docstrings(f.read())
  except OSError:
    return ""


class _Repeats:
  """`paragraph in repeats`: whether a paragraph repeats a passage of the texts."""

  def __init__(self, texts: Sequence[str]):
    self._windows: set[tuple[str, ...]] = set()
    self._sentences = collections.defaultdict(set)  # by their first words
    for paragraph in (p for text in texts for p in text.split("\n\n")):
      w = words(paragraph)
      self._windows.update(zip(*(w[i:] for i in range(_WINDOW)), strict=False))
      for sentence in SENTENCE_END.split(MARKUP.sub("", paragraph)):
        found = tuple(words(sentence))
        if len(found) >= LEAST_WORDS:
          self._sentences[found[:LEAST_WORDS]].add(found)

  def __contains__(self, paragraph: str) -> bool:
    w = words(paragraph)
    if any(tuple(w[i:i + _WINDOW]) in self._windows
           for i in range(0, len(w) - _WINDOW + 1, _WINDOW)):
      return True
    starts = zip(*(w[i:] for i in range(LEAST_WORDS)), strict=False)
    return any(tuple(w[i:i + len(sentence)]) == sentence for i, start in enumerate(starts)
               for sentence in self._sentences.get(start, ()))


def words(text: str) -> list[str]:
  """The words of a text in small letters, without markup and punctuation."""
  if "`" in text or "]_" in text:
    text = MARKUP.sub("", text)
  return text.lower().translate(_TO_SPACE).split()


def docstrings(source: bytes) -> str:
  """All docstrings of a module, parted by empty lines; '' when it does not parse."""
  collecting = gc.isenabled()
  gc.disable()  # a tree has no cycles, and scanning it over and over takes half the time
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # invalid escapes in other people's files
      tree = ast.parse(source)
    return "\n\n".join(_walk(tree))
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return ""
  finally:
    if collecting:
      gc.enable()


def _walk(node: ast.AST) -> Iterator[str]:
  if isinstance(node, _DOCUMENTED):
    text = ast.get_docstring(node)
    if text and text.strip():
      yield text
  for block in _BLOCKS:
    for child in getattr(node, block, ()):
      if hasattr(child, "body") or hasattr(child, "cases"):
        yield from _walk(child)
