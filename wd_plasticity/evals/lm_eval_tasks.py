"""Tasks of lm-evaluation-harness: which there are, their data, and what became of them."""

import collections
import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from wd_plasticity.errors import UserError
from wd_plasticity.evals import lm_eval_code

# Of errors that have no formula, such as that of a perplexity; the harness's 100,000 would
# take longer than small models do.
BOOTSTRAP_ITERS = 1000
_RANDOM_SEED = 0  # the harness's own, of tasks that shuffle options
_LARGEST = 2**30  # bytes of a data file that are looked at to know it again


def require() -> str:
  """The version of the harness that is installed.

  Raises:
    UserError: none is.
  """
  if importlib.util.find_spec("lm_eval") is None:
    raise UserError("lm-evaluation-harness is not installed; run pip install -e '.[lm_eval]'.")
  return importlib.metadata.version("lm_eval")


def check(config: ConfigDict) -> None:
  """Refuses impossible fields.

  Raises:
    UserError: with the field and what it can be.
  """
  if not config.tasks:
    raise UserError("tasks names no task; give some, such as --config.tasks=\"('arc_easy',)\".")
  if len(set(config.tasks)) < len(config.tasks):
    raise UserError(f"tasks={tuple(config.tasks)} names a task twice.")
  if config.num_fewshot < -1:
    raise UserError(f"num_fewshot={config.num_fewshot} must be 0 or more, or -1 for as many as "
                    "each task says.")
  for field in ("limit", "max_length"):
    if config[field] < 0:
      raise UserError(f"{field}={config[field]} must be 0 or more.")
  if config.max_gen_toks < 1:
    raise UserError(f"max_gen_toks={config.max_gen_toks} must be at least 1.")
  if config.include_path and not Path(config.include_path).is_dir():
    raise UserError(f"include_path={config.include_path} is not a folder; give one with task YAML "
                    "files.")


class Catalogue:
  """The tasks, groups and tags that a configuration can name.

  Args:
    config: of the program.

  Raises:
    UserError: the harness is not installed, a task that `config.tasks` names is not known, or
      one of the user's own would run code and `config.run_task_code` is not set.
  """

  def __init__(self, config: ConfigDict):
    self.version = require()
    # The program shows its own progress; both are read when the harness is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    self._config = config
    self._folder = Path(config.include_path).resolve() if config.include_path else None
    self._manager = self._find_all()
    index = self._manager.task_index
    for name in config.tasks:
      if name not in index:
        close = difflib.get_close_matches(name, index, 4, 0.6)
        hint = f"did you mean {', '.join(close)}?" if close else (
            "python -m wd_plasticity.interop.lm_eval_cli ls tasks lists them all.")
        raise UserError(f"{name} is not a task of lm-evaluation-harness {self.version}"
                        + (f" or of {config.include_path}" if config.include_path else "")
                        + f"; {hint}")
    if self._folder and not config.run_task_code:
      self._refuse_code()

  def _refuse_code(self) -> None:
    import lm_eval.tasks

    paths = (entry.yaml_path for entry in self._reached(self._config.tasks) if entry.yaml_path)
    lm_eval_code.refuse(paths, Path(lm_eval.tasks.__file__).resolve().parent)
    lm_eval_code.sandbox_templates()

  def _find_all(self):
    """The harness's own index takes seconds to read, so it is left out where it is not needed."""
    from lm_eval.tasks import TaskManager

    if self._folder:
      own = TaskManager(include_path=str(self._folder), include_defaults=False)
      if all(_is_whole(own.task_index, name) for name in self._config.tasks):
        return own
    return TaskManager(include_path=str(self._folder) if self._folder else None)

  def settings(self, name: str) -> dict[str, Any]:
    """What decides the scores of a task, beside the fields of the configuration."""
    return {"task": name, "harness": self.version, "definition": self._definition([name])}

  def _definition(self, names: Sequence[str]) -> str:
    """Fingerprint of the tasks of the user's own that names mean; '' where there are none."""
    own = {entry.name: _fingerprint(entry.yaml_path, entry.cfg) for entry in self._reached(names)
           if entry.yaml_path is not None and self._is_own(entry.yaml_path)}
    if not own:
      return ""
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:32]

  def _reached(self, names: Sequence[str]) -> list:
    """The entries of the harness's index that names mean, members of groups included."""
    found: dict[str, Any] = {}
    waiting = list(names)
    while waiting:
      entry = self._manager.task_index.get(waiting.pop())
      if entry is None or entry.name in found:
        continue
      found[entry.name] = entry
      members = (entry.cfg or {}).get("task")
      waiting += sorted(entry.tags) if entry.yaml_path is None else []
      waiting += _named(members) if isinstance(members, list) else []
    return list(found.values())

  def _is_own(self, path: Path) -> bool:
    return self._folder is not None and path.resolve().is_relative_to(self._folder)

  def load(self, name: str) -> dict[str, Any]:
    """The tasks and groups that a name means, with their data, as `lm_eval.evaluate` takes them.

    Raises:
      UserError: the data cannot be had, or the task cannot be read or run here.
    """
    _seed(self._config)
    try:
      loaded = self._manager.load([name])
    except Exception as e:  # whatever the code of a task raises
      raise UserError(_cannot_load(name, e)) from e
    for task in loaded["tasks"].values():
      if getattr(task, "UNSAFE_CODE", False):
        raise UserError(
            f"{task.task_name} runs programs that the model has written, which this program does "
            "not do; python -m wd_plasticity.interop.lm_eval_cli does with "
            "--confirm_run_unsafe_code.")
      if getattr(task, "MULTIMODAL", False):
        raise UserError(f"{task.task_name} needs a model that reads more than text.")
    return loaded


def read(config: ConfigDict) -> list[str]:
  """Checks a configuration and reads the data of its tasks, as a study does before training.

  Returns:
    Fingerprints of the tasks.

  Raises:
    UserError: as of `check` and `Catalogue`.
  """
  check(config)
  catalogue = Catalogue(config)
  for name in config.tasks:
    catalogue.load(name)
  return [json.dumps(catalogue.settings(name), sort_keys=True) for name in config.tasks]


def num_documents(loaded: Mapping[str, Any], limit: int) -> int:
  """Problems that are evaluated."""
  counts = [len(task.eval_docs) for task in loaded["tasks"].values()]
  return sum(min(n, limit) if limit else n for n in counts)


def evaluate(lm, loaded: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
  """The harness's results of one model on what `Catalogue.load` returned.

  They are those of `lm_eval.simple_evaluate`, which takes seconds more to describe the
  machine.
  """
  import lm_eval
  from lm_eval.utils import set_torch_seed

  for task in loaded["tasks"].values():
    own = task.get_config("num_fewshot")
    # A task that says 0 means it.
    if own is None or (config.num_fewshot >= 0 and own != 0):
      task.set_config(key="num_fewshot", value=max(0, config.num_fewshot))
    task.set_fewshot_seed(seed=config.seed)
  _seed(config)
  set_torch_seed(config.seed)
  return lm_eval.evaluate(lm, loaded, limit=config.limit or None, bootstrap_iters=BOOTSTRAP_ITERS,
                          fewshot_as_multiturn=True)


def summarise(name: str, results: Mapping[str, Any], version: str) -> dict[str, Any]:
  """Values of a result: the scores of every task that a name means, and of its groups.

  Args:
    name: as in `config.tasks`.
    results: of `evaluate`, see lm_eval.result_schema.
    version: of the harness.

  Returns:
    {'task', 'harness', 'tasks', 'groups'}; the last two have for each name its 'title',
    'version', 'num_fewshot' and 'documents', and by measure {'value', 'se', 'n',
    'higher_is_better'}, n being the problems that have it. Where a task has filters, measures
    are named 'exact_match,strict'.
  """
  made: dict[str, Any] = {"task": name, "harness": version, "tasks": {}, "groups": {}}
  samples = results.get("samples") or {}
  for one, metrics in results["results"].items():
    scored = collections.Counter(
        (measure, s["filter"]) for s in samples.get(one, ()) for measure in s["metrics"])
    if max(scored.values(), default=0) != metrics.get("sample_len"):  # which is the largest
      scored.clear()  # not all samples are here
    measures = _measures(metrics, results["higher_is_better"].get(one, {}), scored)
    if measures:
      made["groups" if one in results.get("groups", {}) else "tasks"][one] = {
          "title": str(metrics.get("alias", one)).strip(" -"),
          "version": str(results["versions"].get(one, "")),
          "num_fewshot": results["n-shot"].get(one), "documents": metrics.get("sample_len"),
          "measures": measures}
  return made


def records(results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """One line per problem and filter: what the model answered, and its scores."""
  return [
      {"task": task, "doc_id": s["doc_id"], "doc_hash": s["doc_hash"], "filter": s["filter"],
       "target": _plain(s["target"]), "responses": _plain(s["resps"]),
       **{measure: _plain(s[measure]) for measure in s["metrics"]}}
      for task, samples in results["samples"].items() for s in samples]


def _measures(metrics: Mapping[str, Any], higher: Mapping[str, Any],
              scored: Mapping[tuple[str, str], int]) -> dict[str, dict]:
  made = {}
  for key, value in metrics.items():
    measure, comma, kept = key.partition(",")
    if not comma or measure.endswith("_stderr") or not _is_number(value):
      continue
    error = metrics.get(f"{measure}_stderr,{kept}")
    made[measure if kept == "none" else key] = {
        "value": float(value), "se": float(error) if _is_number(error) else None,
        "n": scored.get((measure, kept)) or metrics.get("sample_len"),
        "higher_is_better": higher.get(measure)}
  return made


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
  """In JSON's types; as text what has none."""
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, np.generic):
    return value.item()
  return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _seed(config: ConfigDict) -> None:
  """As the harness does before it loads tasks, some of which draw."""
  random.seed(_RANDOM_SEED)
  np.random.seed(config.seed)


def _cannot_load(name: str, error: Exception) -> str:
  words = (str(error).splitlines() or [""])[0][:300]
  kinds = {kind.__name__ for kind in type(error).__mro__}
  if kinds & {"ConnectionError", "ConnectError", "OfflineModeIsEnabled", "HfHubHTTPError",
              "DatasetNotFoundError", "TimeoutException", "LocalEntryNotFoundError"}:
    return (f"the data of the task {name} cannot be fetched ({words}); run this once where the "
            "network can be reached, or give --config.include_path=FOLDER with a task of your own "
            "that names local files.")
  return f"the task {name} cannot be loaded ({type(error).__name__}: {words}); mend its YAML file."


def _is_whole(index: Mapping[str, Any], name: str) -> bool:
  """Whether a task, or every task of a group, is described by this index alone."""
  entry = index.get(name)
  if entry is None or entry.kind.name not in ("TASK", "GROUP"):
    return False
  members = (entry.cfg or {}).get("task")
  return entry.kind.name == "TASK" or (
      isinstance(members, list) and all(_is_whole(index, m) for m in _named(members)))


def _named(members: Sequence) -> list[str]:
  """Names in the `task:` list of a group, nested ones included."""
  found = []
  for member in members:
    if isinstance(member, str):
      found.append(member)
    elif isinstance(member, Mapping):
      inner = member.get("task")
      found += _named(inner) if isinstance(inner, list) else []
      found += [v for v in (inner, member.get("group")) if isinstance(v, str)]
  return found


def _fingerprint(path: Path, fields: Mapping[str, Any] | None) -> str:
  """Of a task of the user's own: its fields, code beside it, and data files on this machine."""
  found = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
  text = path.read_text(encoding="utf-8", errors="replace")
  code = sorted(path.parent.glob("*.py")) if "!function" in text or "class:" in text else []
  for file in [*code, *_data_files(fields)]:
    found.update(str(file.name).encode() + _content(file))
  return found.hexdigest()


def _data_files(fields: Any) -> list[Path]:
  """Files on this machine that `dataset_kwargs: data_files` names."""
  kwargs = (fields or {}).get("dataset_kwargs") or {}
  named = kwargs.get("data_files") if isinstance(kwargs, Mapping) else None
  names: list[str] = []
  for value in named.values() if isinstance(named, Mapping) else [named]:
    names += [value] if isinstance(value, str) else list(value or ())
  return [p for p in map(Path, names) if p.is_file()]


def _content(path: Path) -> bytes:
  with open(path, "rb") as f:
    if path.stat().st_size <= _LARGEST:
      return hashlib.file_digest(f, "sha256").digest()
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}".encode()
