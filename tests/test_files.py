"""Atomic writes, JSON that is read back, and failures of the system as sentences."""

import errno
import json
import os
import stat

import pytest

from wd_plasticity import errors, files
from wd_plasticity.errors import UserError


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / "a.json"
  files.write_json(path, {"old": (1, 2)})
  with pytest.raises(TypeError):
    files.write_json(path, {"new": object()})
  assert json.loads(path.read_text()) == {"old": [1, 2]}
  assert list(tmp_path.iterdir()) == [path]
  assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


@pytest.mark.parametrize("content, why", [
    (b'{"a": 1', "not JSON"), (b"\xff{}", "not UTF-8"), (b"[" * 100_000, "nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", "more digits than can be read"), (b"[1]", "not an object"),
    (b"{}", "no 'a'"), (b'{"a": "1"}', "wrong type"), (b'{"a": null}', "wrong type"),
    (b'{"a": true}', "wrong type")])
def test_json_that_cannot_be_used_is_one_sentence(tmp_path, content, why):
  path = tmp_path / "a.json"
  path.write_bytes(content)
  with pytest.raises(UserError, match=rf"a\.json is not a record \(.*{why}.*\); restore it\.$"):
    files.read_json(path, "a record", "restore it", {"a": int})
  path.write_bytes(b'{"a": 1}')
  assert files.read_json(path, "a record", "restore it", {"a": int}) == {"a": 1}


@pytest.mark.parametrize("number", sorted(
    errors.NO_SPACE | errors.NOT_WRITABLE | errors.BAD_PATH | errors.NO_LOCKS | {errno.EIO}))
def test_a_failure_of_the_system_is_one_sentence(number, capsys):
  def main(_):
    raise OSError(number, os.strerror(number), "some/file")
  with pytest.raises(SystemExit, match="2"):
    errors.run(main)
  said = capsys.readouterr().err
  assert said.startswith("error: ") and said.count("\n") == 1
  assert "some/file" in said and os.strerror(number) in said and "; " in said


def test_memory_that_runs_out_is_one_sentence(capsys):
  def main(_):
    try:
      raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
    except RuntimeError as e:
      raise ValueError("while training") from e
  with pytest.raises(SystemExit, match="2"):
    errors.run(main)
  assert "members_at_once" in capsys.readouterr().err


def test_what_a_killed_write_has_left_is_cleared_and_nothing_else(tmp_path):
  left, under_way = tmp_path / ".a.json.tmp-0123abcd", tmp_path / ".b.json.tmp-0123abcd"
  others = [tmp_path / name for name in ("a.json", ".hidden", "b.tmp-0123abcd", ".a.tmp-1")]
  for path in (left, under_way, *others):
    path.touch()
    os.utime(path, (100, 100))
  os.utime(under_way, (300, 300))
  files.clear_temporaries(tmp_path, before=200)
  assert sorted(tmp_path.iterdir()) == sorted([under_way, *others])
  files.clear_temporaries(tmp_path / "nowhere", before=200)
