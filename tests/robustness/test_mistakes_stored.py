"""Mistakes of users, each met by one sentence, with nothing lost: those of mistakes_stored."""

import mistakes_stored as mistakes
import pytest
from judge import COLUMNS, Figures, judge, kind, parameters


@pytest.fixture(scope="module")
def figures():
  made = Figures("mistakes_stored", COLUMNS)
  yield made
  made.close()


@pytest.mark.parametrize("group, case", parameters(mistakes.GROUPS, of=8))
def test_a_mistake_is_one_sentence(group, case, world, figures, tmp_path):
  complaints = judge(case, world, tmp_path)
  figures.count(group, "tried")
  figures.count(group, kind(complaints))
  for complaint in complaints:
    figures.note(f"{case.name}: {complaint}")
  if complaints:
    pytest.fail("\n".join([case.name, *complaints]), pytrace=False)
