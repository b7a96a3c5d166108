"""A report of results that hold what they should not: what can be shown is, the rest is named."""

import json
import random
from pathlib import Path

import pytest
import synthetic_study

from wd_plasticity.errors import UserError
from wd_plasticity.report import answer, figures, study, tables
from wd_plasticity.training import summary

VALUES = (None, "x", [], {}, -1, 0, 1.5, True, 1e308, 10**30, 10**400, float("nan"), float("inf"),
          [1], {"a": 1}, "\ud800", [[]], {"value": "x"})


def write(workdir: Path, **kwargs) -> Path:
  synthetic_study.write(workdir, decays=(0.1, 1.0), seeds=(0,), steps=(50,), tasks=("sst2",),
                        rates=(1e-3, 1e-2), problems=4, logged=2, **kwargs)
  return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
  return write(tmp_path_factory.mktemp("study"))


def made(workdir):
  """All of a report but the pictures."""
  found = study.read(workdir)
  answers = answer.answers(found)
  drawn = figures.build(found, answers)
  json.dumps(answer.as_json(answers), allow_nan=False)
  return found, drawn


def changed(path: Path, line: int | None, place: tuple, value) -> bytes:
  """Sets or, for `changed`, deletes a place in a JSON file; returns what was there."""
  old = path.read_bytes()
  lines = old.decode().splitlines() if path.suffix == ".jsonl" else [old.decode()]
  document = json.loads(lines[line or 0])
  branch = document
  for part in place[:-1]:
    branch = branch[part]
  if value is changed:
    del branch[place[-1]]
  else:
    branch[place[-1]] = value
  lines[line or 0] = json.dumps(document)
  path.write_text("\n".join(lines) + "\n")
  return old


@pytest.mark.parametrize("pattern, place, value, said", [
    ("evals/finetune/*/*/*.json", ("values", "after", "test", "acc", "value"), {"value": "x"},
     "cannot be read and is left out: evals/finetune/wd0.1-seed0"),
    ("evals/finetune/*/*/*.json", ("checkpoint", "weight_decay"), float("nan"), "evals/finetune/"),
    ("evals/lm_eval/*/*/*.json", ("values", "tasks", "arc_easy", "measures", "acc_norm"), -1,
     "harness by decay cannot be made of"),
    ("evals/overfit/*/*/*.json", ("values", "bins", 1), 3, "loss by frequency cannot be made of"),
    ("members/*/config.json", ("config", "optim", "weight_decay"), "0.1", "config.json"),
])
def test_what_is_wrong_is_named_and_the_rest_is_shown(workdir, pattern, place, value, said):
  path = sorted(workdir.glob(pattern))[0]
  old = changed(path, None, place, value)
  try:
    found, drawn = made(workdir)
    notes = " ".join([*found.notes, *(f.missing for f in drawn)])
    assert said in notes and sum(bool(f.views) for f in drawn) > 8
  finally:
    path.write_bytes(old)


def test_members_that_all_failed_but_have_results(tmp_path):
  for folder in (write(tmp_path) / "members").iterdir():
    (folder / "FAILED.json").write_text('{"step": 3, "reason": "loss or gradient not finite"}')
  found, drawn = made(tmp_path)
  assert {m.status for m in found.members} == {"failed at step 3"} and drawn


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_value_in_the_place_of_any_other(workdir, tmp_path, seed):
  """Files of a study with one place changed: never another exception than a UserError."""
  rng = random.Random(seed)
  paths = [p for p in sorted(workdir.rglob("*.json*")) if p.suffix in (".json", ".jsonl")
           and "sweep" not in p.name]

  def places(value, before=()):
    for key in value if isinstance(value, dict) else range(min(3, len(value))) if isinstance(
        value, list) else ():
      yield (*before, key)
      yield from places(value[key], (*before, key))

  for _ in range(20):
    path = rng.choice(paths)
    text = path.read_text()
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    line = rng.randrange(len(lines))
    found = list(places(json.loads(lines[line])))
    if not found:
      continue
    place, value = rng.choice(found), rng.choice((*VALUES, changed))
    old = changed(path, line, place, value)
    try:
      read, drawn = made(workdir)
      tables.save(drawn, tmp_path, read)
      summary._csv(summary.summarise(workdir))
    except UserError as e:
      assert "\n" not in str(e)
    except Exception as e:
      raise AssertionError(f"{path}, line {line}: {place} set to {value!r}") from e
    finally:
      path.write_bytes(old)
