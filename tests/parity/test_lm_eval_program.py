"""The eval program lm_eval and the registered model, in the harness itself."""

import json

import numpy as np
import programs
import pytest

torch = pytest.importorskip("torch", reason="the parity suite needs torch")
transformers = pytest.importorskip("transformers", reason="the parity suite needs transformers")
lm_eval = pytest.importorskip("lm_eval", reason="this needs the extra lm_eval")
pytest.importorskip("accelerate", reason="the harness's transformers backend needs accelerate")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from tests.parity.test_lm_eval import ROWS, evaluate, write_tasks  # noqa: E402
from wd_plasticity.errors import UserError  # noqa: E402
from wd_plasticity.evals import lm_eval as program_lm_eval  # noqa: E402
from wd_plasticity.evals import lm_eval_tasks, program  # noqa: E402
from wd_plasticity.evals.config import lm_eval_config  # noqa: E402
from wd_plasticity.interop import (  # noqa: E402
  lm_eval_model,
  transformers_config,
  transformers_weights,
)
from wd_plasticity.study import plan  # noqa: E402


def config_of(folder, *tasks, **fields):
  config = lm_eval_config()
  config.update(tasks=tasks, include_path=str(folder), **fields)
  return config


def run(trained, workdir, config, **kwargs):
  import tiny
  member = trained / "members" / "wd3-seed0"
  session = tiny.session("lm_eval", config, [member], workdir, **kwargs)
  program.execute(session, program_lm_eval.main)
  return session


def test_the_eval_program_keeps_what_is_done(trained, tmp_path, monkeypatch, capsys):
  folder = write_tasks(tmp_path / "tasks", new_tokens=8)
  config = config_of(folder, "both", "sums", num_fewshot=0, limit=2)
  session = run(trained, tmp_path / "w", config)
  assert "Scores of lm-evaluation-harness" in capsys.readouterr().out
  path = session.results.path(session.targets[0], "both")
  made = json.loads(path.read_text())
  values = made["values"]
  assert set(values["tasks"]) == {"nouns", "animals"} and set(values["groups"]) == {"both"}
  nouns = values["tasks"]["nouns"]
  assert nouns["measures"]["acc"]["n"] == nouns["documents"] == 2 and nouns["num_fewshot"] == 0
  assert values["groups"]["both"]["measures"]["acc"]["value"] == pytest.approx(np.mean(
      [values["tasks"][t]["measures"]["acc"]["value"] for t in ("nouns", "animals")]))
  assert made["settings"]["harness"] == lm_eval_tasks.require()
  records = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
  assert len(records) == 4 and len(records[0]["responses"]) == 4
  assert np.mean([r["acc"] for r in records if r["task"] == "nouns"]) == pytest.approx(
      nouns["measures"]["acc"]["value"])
  sums = session.results.load(session.targets[0], "sums")["values"]["tasks"]["sums"]
  assert set(sums["measures"]) == {"exact_match,strict", "exact_match,loose"}
  # Again: nothing is done. One file less: that one alone.
  done = []
  evaluate_one = lm_eval_tasks.evaluate
  monkeypatch.setattr(lm_eval_tasks, "evaluate",
                      lambda lm, loaded, c: done.append(loaded) or evaluate_one(lm, loaded, c))
  run(trained, tmp_path / "w", config)
  assert not done
  path.unlink()
  run(trained, tmp_path / "w", config)
  assert len(done) == 1 and json.loads(path.read_text())["values"] == values
  # Other data of one task: its results are refused, or replaced, the others stay.
  with open(folder / "sums.jsonl", "a") as f:
    f.write(json.dumps(ROWS["sums"][0]) + "\n")
  with pytest.raises(UserError, match="sums.json was made with definition="):
    run(trained, tmp_path / "w", config)
  run(trained, tmp_path / "w", config, replace=True)
  assert len(done) == 2


def test_the_eval_program_gives_the_harness_its_scores(trained, tmp_path):
  """On the exported weights of a pretrained member, through the program's own path."""
  folder = write_tasks(tmp_path / "tasks", new_tokens=8)
  names = ("nouns", "rhymes", "sums")
  config = config_of(folder, *names, compute_dtype="float32", max_length=300, limit=3)
  session = run(trained, tmp_path / "w", config)
  target = session.targets[0]
  export = tmp_path / "export"
  export.mkdir()
  (export / "config.json").write_text(json.dumps(
      transformers_config.config_to_transformers(target.model, 300)))
  save_file(transformers_weights.to_transformers(target.stored.load_params(), target.model),
            export / "model.safetensors", metadata={"format": "pt"})
  byte_tokenizer().save_pretrained(str(export))
  theirs = evaluate(HFLM(str(export), device="cpu", dtype="float32", batch_size=2,
                         max_length=300), folder, names, limit=3)
  for name in names:
    ours = session.results.load(target, name)["values"]["tasks"][name]["measures"]
    for measure, m in ours.items():
      key = measure if "," in measure else f"{measure},none"
      assert m["value"] == pytest.approx(theirs["results"][name][key], rel=1e-5), (name, key)


def byte_tokenizer():
  """transformers' form of our byte tokenizer: UTF-8 bytes, and 256 ends a sequence."""
  import tokenizers as hf
  # Byte-level BPE writes bytes that cannot be printed as the characters from 256 on.
  kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in kept]
  alphabet = {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(others)}
  vocabulary = {alphabet[b]: b for b in range(256)} | {"<|endoftext|>": 256}
  tokenizer = hf.Tokenizer(hf.models.BPE(vocab=vocabulary, merges=[]))
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer,
                                              eos_token="<|endoftext|>")


def test_mistakes_are_one_sentence(trained, tmp_path):
  folder = write_tasks(tmp_path / "tasks")
  def refused(match, *tasks, **fields):
    with pytest.raises(UserError, match=match) as e:
      run(trained, tmp_path / "w", config_of(folder, *tasks, **fields))
    assert "\n" not in str(e.value)
    assert not list((tmp_path / "w").rglob("*.json"))
  refused("sums: 32 new tokens leave no room for a prompt in the 16", "sums", max_length=16)
  refused("a continuation of .* tokens is longer than the 8", "nouns", max_length=8)
  (folder / "broken.yaml").write_text("task: broken\noutput_type: multiple_choice\n"
                                      "dataset_path: json\ndataset_kwargs: {data_files: gone}\n")
  refused("the task broken cannot be loaded .*; mend its YAML file", "broken")
  text = (folder / "sums.yaml").read_text()
  (folder / "sums.yaml").write_text(text.replace("do_sample: false", "num_beams: 4"))
  refused("sums: generation_kwargs num_beams=4 is not understood here", "sums")


def test_a_study_reads_the_tasks_before_training(tmp_path):
  folder = write_tasks(tmp_path / "tasks")
  def read(*tasks):
    return plan.read_tasks(plan.Eval(config_of(folder, *tasks)))
  before = read("nouns", "sums", "both")
  assert len(set(before)) == 3 and read("nouns", "sums", "both") == before
  with open(folder / "nouns.jsonl", "a") as f:
    f.write(json.dumps(ROWS["nouns"][0]) + "\n")
  after = read("nouns", "sums", "both")
  assert [a == b for a, b in zip(after, before, strict=True)] == [False, True, False]
  (folder / "nouns.jsonl").unlink()
  with pytest.raises(UserError, match="the task nouns cannot be loaded"):
    read("nouns")


def test_unknown_tasks_are_met_with_suggestions(trained, tmp_path):
  folder = write_tasks(tmp_path / "tasks")
  with pytest.raises(UserError, match="arc_esy is not a task .* did you mean .*arc_easy"):
    run(trained, tmp_path / "w", config_of(folder, "arc_esy"))


def test_the_harness_command_line_has_the_model(trained, tmp_path):
  folder = write_tasks(tmp_path / "tasks", new_tokens=8)
  member = trained / "members" / "wd3-seed0"
  def run_with(arguments, expect=0):
    return programs.run(
        "wd_plasticity.interop.lm_eval_cli", "run", "--model", "wd_plasticity", "--tasks", "nouns",
        "--limit", "2", "--include_path", folder, "--output_path", tmp_path / "out",
        "--model_args", arguments, expect=expect)
  assert "acc_norm" in run_with(f"checkpoint={member},max_length=300")
  (made,) = (tmp_path / "out").rglob("results_*.json")
  assert json.loads(made.read_text())["config"]["member"] == "wd3-seed0"
  said = run_with(f"checkpoint={tmp_path / 'gone'}", expect=2)
  assert said.splitlines()[-1].startswith("error: ") and "does not exist" in said


def test_the_registered_model_opens_a_checkpoint(trained, tmp_path):
  folder = write_tasks(tmp_path / "tasks", new_tokens=8)
  member = trained / "members" / "wd3-seed0"
  manager = TaskManager(include_path=str(folder), include_defaults=False)
  made = lm_eval.simple_evaluate(
      "wd_plasticity", f"checkpoint={member},step=6,max_length=300,add_bos_token=True",
      tasks=["nouns"], task_manager=manager, limit=2, use_cache=str(tmp_path / "cache"))
  assert made["config"]["member"] == "wd3-seed0" and made["config"]["step"] == 6
  again = lm_eval.simple_evaluate(
      "wd_plasticity", {"checkpoint": str(member / "checkpoints" / "6"), "max_length": 300,
                        "add_bos_token": True}, tasks=["nouns"], task_manager=manager, limit=2)
  assert again["results"] == made["results"]
  with pytest.raises(UserError, match="holds 2 checkpoints; name one"):
    lm_eval_model.CheckpointLM(str(trained))
  with pytest.raises(UserError, match="has no argument pretrained"):
    lm_eval_model.CheckpointLM(str(member), pretrained="x")
  with pytest.raises(UserError, match="no chat template"):
    lm_eval_model.CheckpointLM(str(member)).chat_template(True)
