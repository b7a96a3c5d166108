"""Answers again from the tables that are kept beside this file, without the work directory.

  python docs/results/study/redo.py

Rewrites the answer and the four figures that depend on it in report.html, answer.json, figures/
and tables/. The tables have every accuracy with its standard error, and no scores of single
problems, so that decays cannot be compared problem by problem as when the study was run.
"""

import json
import re
from pathlib import Path

import pyarrow.parquet

from wd_plasticity import files
from wd_plasticity.evals import finetune_summary
from wd_plasticity.report import answer, figures, make, page, tables
from wd_plasticity.report.study import Finetuned, Member, Study
from wd_plasticity.tasks import registry

HERE = Path(__file__).parent
REDONE = ("accuracy_by_decay", "loss_by_decay", "loss_and_accuracy", "probability_best")


def main():
  study = read()
  answers = answer.answers(study)
  everything = figures.build(study, answers)
  redone = [f for f in everything if f.name in REDONE]
  files.write_json(HERE / "answer.json", answer.as_json(answers))
  tables.save(redone, HERE / "tables")
  make.save_pictures(redone, HERE / "figures")
  old = (HERE / "report.html").read_text(encoding="utf-8")
  new = page.render(study, answers, everything)
  parts = [r'<section id="answer".*?</section>'] + [
      rf'<figure id="figure-{i}".*?</figure>' for i, f in enumerate(everything) if f in redone]
  for part in parts:
    found = re.search(part, new, re.DOTALL)[0]
    old = re.sub(part, lambda _, found=found: found, old, count=1, flags=re.DOTALL)
  pattern = r'(<script type="application/json" id="data">)(.*?)(</script>)'
  old_data, new_data = (json.loads(re.search(pattern, text, re.DOTALL)[2]) for text in (old, new))
  for i, figure in enumerate(everything):
    if figure in redone:
      old_data["figures"][i] = new_data["figures"][i]
  old = re.sub(pattern, lambda m: m[1] + page.script_json(old_data) + m[3], old, count=1,
               flags=re.DOTALL)
  files.write_text(HERE / "report.html", old)
  for said in answers[0].sentences + [f"Caution: {c}" for c in answers[0].cautions]:
    print(said)


def read() -> Study:
  """The study as far as its tables tell."""
  rows = pyarrow.parquet.read_table(HERE / "tables/members.parquet").to_pylist()
  members = [Member(
      r["member"], r["weight_decay"], r["seed"], r["group"], r["status"], r["reason"] or "",
      r["steps"], r["total_steps"], r["tokens"], r["validation_loss"], r["train_subset_loss"], [],
      {"name": "books"}, {}, r["data_fingerprint"], r["tokenizer_fingerprint"]) for r in rows]
  results: dict[tuple, dict] = {}
  for r in pyarrow.parquet.read_table(HERE / "tables/results.parquet").to_pylist():
    if r["program"] == "finetune" and r["measure"].count("/") == 2:
      stage, split, measure = r["measure"].split("/")
      key = (r["member"], r["weight_decay"], r["seed"], r["step"], r["item"], split)
      results.setdefault(key, {}).setdefault(stage, {})[measure] = {
          "value": r["value"], "se": r["se"], "n": r["n"]}
  finetuned = []
  for (member, decay, seed, step, item, split), of in results.items():
    task, _, rate = item.rpartition("-")
    finetuned.append(Finetuned(
        member, decay, seed, "", step, True, task, registry.get(task).title, split, rate,
        float(rate.removeprefix("lr")), finetune_summary.headline(task, of["after"]), of["before"],
        of["after"], (), {}, None, [], [], None, item=item, finetune_seed=42))
  return Study("books", Path("runs/books"), members, finetuned, [], [], [], [], {}, [], [])


if __name__ == "__main__":
  main()
