"""Task files of one's own are data until their user says that they are code."""

from pathlib import Path

import pytest

from wd_plasticity.errors import UserError
from wd_plasticity.evals import lm_eval_code
from wd_plasticity.evals.config import lm_eval_config

PLAIN = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: multiple_choice
doc_to_text: "{{question}}"
metric_list: [{metric: acc, aggregation: mean}]
"""


@pytest.fixture(autouse=True)
def metrics(monkeypatch):
  monkeypatch.setattr(lm_eval_code, "_is_known", lambda metric: metric == "acc")


def refused(folder: Path, match: str, **files: str):
  for name, text in files.items():
    (folder / f"{name}.yaml").write_text(text)
  with pytest.raises(UserError, match=match) as e:
    lm_eval_code.refuse([folder / "mine.yaml"], Path("/nowhere"))
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("line, match", [
    ("process_docs: !function utils.process", "mine.yaml has !function utils.process, which is co"),
    ("process_docs: !function os.system", "has !function os.system.*run_task_code=True"),
    ("class: !function utils.Task", "has class: utils.Task"),
    ("fewshot_config: {samples: !function utils.f}", "has !function utils.f"),
    ("filter_list: [{filter: [{function: custom, filter_fn: !function utils.f}]}]", "utils.f"),
    ("metric_list: [{metric: bleu, hf_evaluate: true}]", "has hf_evaluate: true|metric: bleu"),
    ("metric_list: [{metric: ./evil}]", "has metric: ./evil, which this harness has not"),
    ("dataset_path: pandas", "has dataset_path: pandas"),
    ("dataset_path: ./loader.py", "has dataset_path: ./loader.py"),
    ("dataset_kwargs: {trust_remote_code: true}", "has trust_remote_code: true"),
    ("x: !!python/object/apply:os.system [true]", "is not YAML"),
    ("x: [", "mine.yaml is not YAML"),
    ("include: gone.yaml", "gone.yaml cannot be read"),
    ("include: mine.yaml", "include each other"),
])
def test_what_would_run_code_is_refused_by_name(tmp_path, line, match):
  kept = "\n".join(row for row in PLAIN.splitlines() if row.split(":")[0] != line.split(":")[0])
  refused(tmp_path, match, mine=f"{kept}\n{line}\n")


def test_included_files_are_looked_at_wherever_they_are(tmp_path):
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  (elsewhere / "base.yaml").write_text("process_docs: !function utils.process\n")
  folder = tmp_path / "tasks"
  folder.mkdir()
  refused(folder, "elsewhere/base.yaml has !function", mine="include: ../elsewhere/base.yaml\n")
  # What the harness comes with is trusted as it is.
  lm_eval_code.refuse([folder / "mine.yaml"], elsewhere)


def test_plain_tasks_pass_and_the_field_is_off(tmp_path):
  (tmp_path / "mine.yaml").write_text(PLAIN)
  lm_eval_code.refuse([tmp_path / "mine.yaml"], Path("/nowhere"))
  assert lm_eval_config().run_task_code is False
