"""The eval programs in two processes of four devices: the numbers of one process of eight."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import eval_process
import numpy as np
import pytest
import tiny
from test_finetuning import write_task

MESH = dict(sweep=2, data=2, fsdp=2, tensor=1)


def _numbers(value, path=""):
  """Every number of a JSON value by its path."""
  if isinstance(value, dict):
    for key, inner in value.items():
      yield from _numbers(inner, f"{path}/{key}")
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      yield from _numbers(inner, f"{path}/{i}")
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    yield path, value


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(trained, tmp_path):
  write_task(tmp_path)
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{s.getsockname()[1]}"
  env = os.environ | {"JAX_PLATFORMS": "cpu",
                      "PYTHONPATH": f"{tiny.ROOT}{os.pathsep}{tiny.ROOT / 'tests'}"}
  arguments = dict(coordinator=coordinator, folder=str(tmp_path), trained=str(trained), mesh=MESH,
                   workdir=str(tmp_path / "two"))
  processes = [subprocess.Popen(
      [sys.executable, eval_process.__file__, json.dumps(arguments | {"process": i})], env=env,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(2)]
  outputs = [p.communicate()[0] for p in processes]
  assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
  assert "Before and after" in outputs[0] and "Before and after" not in outputs[1]
  eval_process.run(tmp_path, trained, tmp_path / "one", MESH)
  found = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.json"))
  assert len(found) >= 8  # four programs, two members
  for path in found:
    one, two = (json.loads((tmp_path / name / path).read_text()) for name in ("one", "two"))
    one, two = (dict(_numbers(x.get("values", x))) for x in (one, two))
    assert one.keys() == two.keys(), path
    for key, value in one.items():
      np.testing.assert_allclose(two[key], value, rtol=2e-4, atol=2e-5, err_msg=f"{path} {key}")
  assert pathlib.Path(tmp_path / "two/evals/finetune/results.jsonl").exists()
