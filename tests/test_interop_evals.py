"""The eval programs on imported models, as a user runs them, and the memory of both ways."""

import json
import pathlib
import subprocess
import sys

import ml_dtypes
import model_directory
import pytest
import tiny
from test_finetuning import write_task

from wd_plasticity.interop import safetensors_writer, transformers_config, transformers_weights

CONFIG = '''
import eval_process

def get_config():
  return eval_process._configs({folder!r})[{program!r}]
'''
PROGRAMS = ("finetune", "probe", "attention_rank", "overfit")


def evaluate(folder, program, workdir, *flags, **kwargs) -> str:
  path = folder / f"{program}_of_import.py"
  path.write_text(CONFIG.format(folder=str(folder), program=program))
  return tiny.run(path, workdir, f"--checkpoint={workdir}", *flags,
                  module=f"wd_plasticity.evals.{program}", **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama2", "olmo2"])
def test_every_program_runs(tmp_path, corpus, family):
  write_task(tmp_path)
  config = tiny.write_config(tmp_path, corpus)
  workdir = tmp_path / "w"
  sizes = dict(tied_head=True, rope_scaling=(8.0, 1.0, 4.0, 32.0)) if family == "llama2" else {}
  for i, decay in enumerate((0.1, 1.0)):
    model_directory.write(tmp_path / f"theirs{i}", model_directory.model_config(family, **sizes),
                          ml_dtypes.bfloat16, seed=i)
    tiny.run(config, workdir, f"--model={tmp_path}/theirs{i}", f"--name=wd{decay}",
             f"--weight_decay={decay}", module="wd_plasticity.interop.import_")
  for program in PROGRAMS:
    evaluate(tmp_path, program, workdir)
    lines = (workdir / "evals" / program / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert {r["checkpoint"]["weight_decay"] for r in results} == {0.1, 1.0}
    assert "nan" not in lines[0].lower()
  again = evaluate(tmp_path, "overfit", workdir)
  assert "batches" not in again  # nothing is computed twice
  report = subprocess.run(
      [sys.executable, "-m", "wd_plasticity.report", f"--workdir={workdir}"], text=True,
      capture_output=True, cwd=tiny.ROOT)
  assert report.returncode == 0, report.stderr
  assert (workdir / "report" / "report.html").exists()


@pytest.mark.slow
def test_without_data_the_programs_that_need_some_say_so(tmp_path):
  write_task(tmp_path)
  model_directory.write(tmp_path / "theirs")
  workdir = tmp_path / "w"
  done = subprocess.run(
      [sys.executable, "-m", "wd_plasticity.interop.import_", f"--model={tmp_path}/theirs",
       f"--workdir={workdir}", "--name=x", "--weight_decay=0.1"], text=True, cwd=tiny.ROOT,
      capture_output=True)
  assert done.returncode == 0, done.stderr
  for program in ("overfit", "finetune"):
    said = evaluate(tmp_path, program, workdir, expect=2)
    assert said.splitlines()[-1].startswith("error: x/1 was imported without data, which")
  evaluate(tmp_path, "finetune", workdir, "--config.evaluate.forgetting_sequences=0")
  evaluate(tmp_path, "probe", workdir)
  evaluate(tmp_path, "attention_rank", workdir)


MEASURE = '''
import pathlib, resource, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.devices()
from wd_plasticity.interop import export, import_
model, workdir, out = map(pathlib.Path, sys.argv[1:4])
with open("/proc/self/statm") as f:
  before = int(f.read().split()[1]) * resource.getpagesize()
if sys.argv[4] == "import":
  import_.import_model(import_.Request(model, workdir, "x", weight_decay=0.1))
else:
  export.export(workdir / "members" / "x", out)
# Not getrusage: its peak is that of the process that started this one, if it was higher.
with open("/proc/self/status") as f:
  peak = next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
print(peak - before)
'''


@pytest.mark.nightly
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_stays_below_the_size_of_the_model(tmp_path, dtype):
  """Of the process, beside what it has after its imports; a third of the size on this scale."""
  config = model_directory.model_config(
      num_layers=12, width=1024, num_heads=16, num_kv_heads=4, head_dim=64,
      ffn_width=2752 if dtype == "float32" else 5504, vocab_size=8192)
  folder = tmp_path / "theirs"
  folder.mkdir()
  wanted = transformers_weights.places(config)
  tensors = model_directory.random_tensors(model_directory.model_config())
  some = tensors["model.embed_tokens.weight"].ravel()
  with safetensors_writer.ShardedWriter(
      folder, {p.tensor: (p.shape, dtype) for p in wanted}, 10**8) as writer:
    for p in wanted:
      for row in range(p.shape[0]):  # noise, which does not compress
        writer.write(p.tensor, row, _row(some, row, p.shape[1:]))
  (folder / "config.json").write_text(json.dumps(
      transformers_config.config_to_transformers(config, 64)))
  model_directory.write_tokenizer(folder)
  size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
  assert size > 400e6
  for way in ("import", "export"):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "w"), str(tmp_path / "out"),
         way], text=True, capture_output=True, cwd=tiny.ROOT)
    assert done.returncode == 0, done.stderr
    used = int(done.stdout.splitlines()[-1])
    print(f"\nMEM {way} of {size / 1e6:.0f} MB in {dtype}: {used / 1e6:.0f} MB, {used / size:.2f}")
    assert used < 1.3 * size


def _row(some, row, shape):
  import numpy as np
  if not shape:
    return np.ones(1, np.float32)
  return np.resize(np.roll(some, -(row * 37) % len(some)), shape)[None]
