"""The world that mistakes, kills and faults are made in."""

import pytest
import worlds


@pytest.fixture(scope="session")
def world(tmp_path_factory):
  return worlds.make(tmp_path_factory.mktemp("world"))
