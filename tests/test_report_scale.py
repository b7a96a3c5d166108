"""A report of 200 members, 30 checkpoints and 16 tasks; with -s it says how long each part took."""

import time

import pytest
import synthetic_study

from wd_plasticity.report import answer, figures, make, page, study, tables

TASKS = ("ag_news", "arc_challenge", "arc_easy", "boolq", "commonsenseqa", "embedded_next",
         "embedded_order", "embedded_topic", "hellaswag", "imdb", "openbookqa", "piqa",
         "rotten_tomatoes", "sst2", "winogrande", "newsgroups")


@pytest.mark.nightly
def test_a_large_study_makes_a_page_of_less_than_20_megabytes(tmp_path):
  decays = [0.0, *(0.01 * 1.5**i for i in range(19))]
  synthetic_study.write(tmp_path / "w", decays, range(10), [10 * (i + 1) for i in range(30)], TASKS,
                        problems=500)
  times, begun = {}, time.perf_counter()
  def took(name):
    nonlocal begun
    now = time.perf_counter()
    times[name], begun = now - begun, now
  read = study.read(tmp_path / "w")
  took("read")
  answers = answer.answers(read)
  took("answer")
  built = figures.build(read, answers)
  took("figures")
  tables.save(built, tmp_path / "tables", read)
  took("tables")
  notes = make.save_pictures(built, tmp_path / "figures")
  took("pictures")
  html = page.render(read, answers, built)
  took("page")
  size = len(html.encode("utf-8")) / 1e6
  print("\n" + "  ".join(f"{k} {v:.1f} s" for k, v in times.items()) +
        f"  all {sum(times.values()):.1f} s  {size:.1f} MB")
  assert len(read.members) == 200 and len(read.ranked) == len(read.overfit) == 200 * 30
  assert len(read.finetuned) == 200 * 16 and not read.notes and not notes
  assert size < 20
