"""Atomic writes."""

import json
import stat

import pytest

from wd_plasticity import files


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / "a.json"
  files.write_json(path, {"old": (1, 2)})
  with pytest.raises(TypeError):
    files.write_json(path, {"new": object()})
  assert json.loads(path.read_text()) == {"old": [1, 2]}
  assert list(tmp_path.iterdir()) == [path]
  assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
