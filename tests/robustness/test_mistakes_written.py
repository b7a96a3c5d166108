"""Mistakes of users, each met by one sentence, with nothing lost: those of mistakes_written."""

import mistakes_written as mistakes
import pytest
from judge import COLUMNS, Figures, meet, parameters


@pytest.fixture(scope="module")
def figures():
  made = Figures("mistakes_written", COLUMNS)
  yield made
  made.close()


@pytest.mark.parametrize("group, case", parameters(mistakes.GROUPS))
def test_a_mistake_is_one_sentence(group, case, world, figures, tmp_path):
  meet(case, world, tmp_path, figures, group)
