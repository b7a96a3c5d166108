"""A corpus that every installation has: the docstrings of installed Python packages.

The Python standard library and the packages this project depends on carry about
twenty megabytes of technical English in their docstrings. They are read through
`ast`, nothing is imported or run. One document is one module: its docstring and
those of its classes and functions, in the order of the source.
"""

import ast
import gc
import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterator

# In this order; those which are not installed are skipped. Only hard dependencies are
# listed, so that installing an extra does not change the corpus.
PACKAGES = (
    "scipy", "jax", "numpy", "matplotlib", "huggingface_hub", "orbax", "flax",
    "tensorflow_datasets", "fontTools", "optax", "PIL", "rich", "absl", "google", "pyparsing",
    "treescope", "grain", "pyarrow", "clu", "etils", "ml_collections", "tensorboardX",
)

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


def documents(files: list[tuple[str, str]]) -> Iterator[str]:
  """The document of each module of `files` that has docstrings and parses."""
  for _, path in files:
    try:
      with open(path, "rb") as f:
        text = docstrings(f.read())
    except OSError:
      continue
    if text:
      yield text


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
