"""Code of task files is not run by the harness itself unless it is asked for."""

import json

import pytest

pytest.importorskip("lm_eval", reason="this needs the extra lm_eval")

from wd_plasticity.errors import UserError  # noqa: E402
from wd_plasticity.evals import lm_eval_tasks  # noqa: E402
from wd_plasticity.evals.config import lm_eval_config  # noqa: E402


def test_code_runs_only_where_it_is_allowed(tmp_path, monkeypatch):
  ran, rows, code = tmp_path / "ran", tmp_path / "rows.jsonl", "process_docs: !function utils.p\n"
  rows.write_text(json.dumps({"q": "a", "options": ["b", "c"], "gold": 0}) + "\n")
  (tmp_path / "utils.py").write_text(f"open({str(ran)!r}, 'w')\ndef p(docs): return docs\n")
  def write(more, question="{{q}}"):
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{rows}'}}}}\n"
        f"test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{question}'\n"
        "doc_to_choice: '{{options}}'\ndoc_to_target: gold\nmetric_list: [{metric: acc}]\n" + more)
  config = lm_eval_config()
  config.update(tasks=("mine",), include_path=str(tmp_path))
  write(code)
  with pytest.raises(UserError, match="mine.yaml has !function utils.p, which is code"):
    lm_eval_tasks.Catalogue(config)
  assert not ran.exists()
  import lm_eval.utils
  monkeypatch.setattr(lm_eval.utils, "env", lm_eval.utils.env)
  write("", question="{{ q.__class__.__mro__[1].__subclasses__() }}")
  with pytest.raises(UserError, match="SecurityError|unsafe"):
    lm_eval_tasks.Catalogue(config).load("mine")
  write("")
  assert lm_eval_tasks.Catalogue(config).load("mine")["tasks"]
  config.run_task_code = True
  write(code)
  lm_eval_tasks.Catalogue(config).load("mine")
  assert ran.exists()
