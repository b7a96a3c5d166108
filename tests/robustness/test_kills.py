"""Sweeps and studies that are ended at random moments end as if nothing had happened.

  make nightly ARGS="-k kills"                        100 kills of a sweep, 20 of a study
  WD_PLASTICITY_KILLS=300 make nightly ARGS="..."     another number of each
  WD_PLASTICITY_SEED=5                                the moments of an earlier run
"""

import os
import time

import kills
import numpy as np
import pytest
import worlds
from judge import Figures

SEED = int(os.environ.get("WD_PLASTICITY_SEED", time.time_ns() % 2**31))
KILLS = os.environ.get("WD_PLASTICITY_KILLS")
_A_ROUND = 7  # kills, before it may go on to its end


def _numbers(few, many):
  return [pytest.param(few, marks=pytest.mark.slow),
          pytest.param(int(KILLS or many), marks=pytest.mark.nightly)]


@pytest.fixture(scope="module")
def figures():
  made = Figures("kills", ("KILL", "TERM", "INT", "equal", "unequal"))
  made.note(f"seed {SEED}")
  yield made
  made.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("kills")
  worlds.write_corpus(folder / "corpus")
  return folder


def _to_the_end(start):
  process = start()
  said = process.finish()
  assert process.returncode == 0, said


@pytest.mark.parametrize("number", _numbers(6, 100))
def test_kills_of_a_sweep_change_nothing(number, place, figures):
  """Stacked in pairs, and one by one; wherever a kill comes, the same command goes on."""
  rng = np.random.default_rng(SEED)
  config, workdir = place / "sweep.py", place / "sweep"
  config.write_text(kills.SWEEP.format(corpus=str(place / "corpus")))
  wanted, whole, problems = {}, {}, []
  for at_once in (2, 1):
    kills.fresh(workdir)
    process = _start_sweep(config, workdir, at_once)
    while process.poll() is None:
      whole[at_once] = kills.processor_seconds(process.pid) or whole.get(at_once, 0.0)
      time.sleep(0.05)
    assert process.returncode == 0, process.said()
    wanted[at_once] = worlds.outcome(workdir)
  done, rounds = 0, 0
  while done < number:
    at_once = 2 - rounds % 2
    rounds += 1
    kills.fresh(workdir)
    how = []
    for _ in range(min(_A_ROUND, number - done)):
      aim = rng.choice(list(kills.AIMS), p=np.array(list(kills.AIMS.values())) / 100)
      name = rng.choice(["KILL", "TERM", "INT"], p=[0.8, 0.1, 0.1])
      come = kills.happened(aim, workdir, rng, whole[at_once])
      process = _start_sweep(config, workdir, at_once)
      if not kills.end(process, come, kills.SIGNALS[name]):
        assert process.returncode == 0, process.said()
        break  # it had ended before
      said = process.finish()
      done += 1
      how.append(f"{name} at {aim}")
      figures.count(f"sweep, {aim}", name)
      problems += [f"{how}: {x}" for x in kills.complain_of_end(process, name, said)]
    _to_the_end(lambda at_once=at_once: _start_sweep(config, workdir, at_once))
    problems += _compare(figures, f"sweep, {at_once} at once", worlds.outcome(workdir),
                         wanted[at_once], worlds.unfinished(workdir), how)
  for line in problems:
    figures.note(line)
  assert not problems, f"seed {SEED}:\n" + "\n".join(problems)


def _start_sweep(config, workdir, at_once):
  return kills.start("wd_plasticity.main", config, workdir,
                     f"--config.sweep.members_at_once={at_once}")


def _compare(figures, row, got, wanted, left, how) -> list[str]:
  unequal = worlds.differences(got, wanted)
  figures.count(row, "unequal" if unequal or left else "equal")
  return [f"{row}, after {how}: {word} {names}"
          for word, names in (("differs in", unequal), ("left", left)) if names]


@pytest.mark.parametrize("number", _numbers(2, 20))
def test_kills_of_a_study_change_nothing(number, place, figures):
  """Of the study itself, and of the program that it runs."""
  rng = np.random.default_rng(SEED + 1)
  config, workdir = place / "study.py", place / "study"
  config.write_text(worlds.STUDY)
  start = lambda: kills.start("wd_plasticity.study", config, workdir)
  process, whole = start(), 0.0
  while process.poll() is None:
    whole = max(whole, kills.processor_seconds(process.pid, children=True))
    time.sleep(0.05)
  assert process.returncode == 0, process.said()
  wanted = kills.study_outcome(workdir)
  done, problems = 0, []
  while done < number:
    kills.fresh(workdir)
    how = []
    for _ in range(min(4, number - done)):
      whom = rng.choice(["child", "parent"])
      name = rng.choice(["KILL", "TERM", "INT"], p=[0.5, 0.25, 0.25])
      limit = float(rng.uniform(0.05, 0.7)) * whole
      process = start()
      come = lambda p, limit=limit: kills.processor_seconds(p.pid, children=True) >= limit
      target = (lambda p=process: next(iter(kills.children_of(p.pid)), None)) \
          if whom == "child" else None
      if not kills.end(process, come, kills.SIGNALS[name], target):
        break
      said = process.finish()
      done += 1
      how.append(f"{name} of the {whom}")
      figures.count(f"study, {whom}", name)
      if whom == "parent":
        problems += [f"{how}: {x}" for x in kills.complain_of_end(process, name, said)]
      elif process.returncode not in (0, 1, 143, 130) or "Traceback" in said:
        problems.append(f"{how}: status {process.returncode}: {said[-600:]}")
    _to_the_end(start)
    problems += _compare(figures, "study", kills.study_outcome(workdir), wanted,
                         worlds.unfinished(workdir), how)
  for line in problems:
    figures.note(line)
  assert not problems, f"seed {SEED}:\n" + "\n".join(problems)
