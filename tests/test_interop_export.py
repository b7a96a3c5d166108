"""Checkpoints as model directories of transformers, seen without transformers.

What transformers makes of them: tests/parity/test_interop_transformers.py. Tokenizers of real
models are optional: WD_PLASTICITY_DATA names a folder that holds tokenizers/.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers as hf
from safetensors.numpy import load_file, save_file

from wd_plasticity.data import tokenizers
from wd_plasticity.errors import UserError
from wd_plasticity.evals import targets
from wd_plasticity.interop import (
    export,
    model_card,
    safetensors_writer,
    tokenizer_files,
    transformers_config,
    transformers_files,
    transformers_weights,
)
from wd_plasticity.models.config import ModelConfig

_DATA = os.environ.get("WD_PLASTICITY_DATA")
TEXTS = ["The decay of a weight.", "  two  spaces\n\n\tand\r\n", "naïve 你好 🙂", "", "x" * 50]


@pytest.fixture
def member(trained):
  return trained / "members" / "wd3-seed0"


def ours(member):
  [target], _ = targets.find([str(member)])
  return target, transformers_weights.to_transformers(target.stored.load_params(), target.model)


def test_the_files(member, tmp_path):
  said = []
  out = export.export(member, tmp_path / "out", command="export me", report=said.append)
  assert sorted(p.name for p in out.iterdir()) == [
      "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
      "tokenizer_config.json", "wd_plasticity"]
  target, expected = ours(member)
  written = load_file(out / "model.safetensors")
  jax.tree.map(np.testing.assert_array_equal, written, expected)
  assert len(said) == 1 and "as LlamaForCausalLM" in said[0]
  fields = json.loads((out / "config.json").read_text())
  assert fields["dtype"] == fields["torch_dtype"] == "float32"
  assert (fields["bos_token_id"], fields["eos_token_id"], fields["pad_token_id"]) == (
      None, 256, None)
  generation = json.loads((out / "generation_config.json").read_text())
  assert generation == {"do_sample": False, "eos_token_id": 256, "pad_token_id": 256,
                        "suppress_tokens": [257]}  # the vocabulary is padded by one
  card = (out / "README.md").read_text()
  for words in ("| weight decay | 3 |", "preset `all`", "`learning_rate`: decoupled",
                "| learning rate | 0.01", "| tokens | 3,072 |", "| steps | 12 of 12 |",
                "| seed | 0 |", target.meta["data_fingerprint"], "`export me`",
                target.meta["tokenizer_fingerprint"], "exported by | wd_plasticity "):
    assert words in card
  assert not list(tmp_path.glob(".*"))


def test_bfloat16_and_several_files(member, tmp_path):
  out = export.export(member, tmp_path / "out", dtype="bfloat16", shard_size="2KB",
                      report=lambda line: None)
  _, expected = ours(member)
  index = json.loads((out / "model.safetensors.index.json").read_text())
  files = sorted(out.glob("*.safetensors"))
  assert len(files) > 3 and [f.name for f in files] == [
      f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
  sizes = {f.name: sum(t.nbytes for t in load_file(f).values()) for f in files}
  assert index["metadata"]["total_size"] == sum(sizes.values()) == sum(
      2 * t.size for t in expected.values())
  assert index["metadata"]["total_parameters"] == sum(t.size for t in expected.values())
  for name, size in sizes.items():
    assert size <= 2000 or list(index["weight_map"].values()).count(name) == 1
  _, tensors = transformers_files.read_directory(out)
  assert index["weight_map"].keys() == expected.keys() == set(tensors)
  for name, array in expected.items():
    np.testing.assert_array_equal(tensors[name], array.astype(ml_dtypes.bfloat16))
  assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_file_is_what_the_library_writes(tmp_path, dtype):
  rng = np.random.default_rng(0)
  tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in
             {"b": (3, 5), "a": (7,), "c.d": (2, 3, 4)}.items()}
  tensors["wide"] = np.arange(3, dtype=np.float32)
  save_file(tensors, tmp_path / "wanted", metadata={"format": "pt"})
  with safetensors_writer.ShardedWriter(
      tmp_path, {n: (t.shape, str(t.dtype)) for n, t in tensors.items()}, 10**6) as writer:
    for name, t in tensors.items():
      for row in reversed(range(len(t))):
        writer.write(name, row, t[row:row + 1])
  got, wanted = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "wanted")
  assert got.keys() == wanted.keys()
  for name, t in wanted.items():
    assert got[name].dtype == t.dtype
    np.testing.assert_array_equal(got[name], t)


@pytest.mark.parametrize("text, size", [("5GB", 5 * 10**9), ("1.5 kb", 1500), ("1GiB", 2**30),
                                        ("17", 17)])
def test_sizes(text, size):
  assert export.parse_size(text) == size


def test_mistakes(member, trained, tmp_path):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "x").touch()
  out = tmp_path / "out"
  for path, changes, message in (
      (member, dict(out=tmp_path / "full"), "full is there already; delete it or give another"),
      (member, dict(shard_size="five"), "--shard_size=five is not a size"),
      (member, dict(shard_size="0GB"), "--shard_size=0GB is not a size"),
      (member, dict(dtype="int8"), "--dtype=int8 is unknown; use one of"),
      (tmp_path / "absent", {}, "does not exist"),
      (trained, {}, "is the work directory of a sweep"),
      (tmp_path / "full", {}, "holds no finished wd_plasticity checkpoint")):
    with pytest.raises(UserError, match=message) as error:
      export.export(path, **({"out": out} | changes))
    assert "\n" not in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_a_full_disk_is_told_before(member, tmp_path, monkeypatch):
  monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
  with pytest.raises(UserError, match="the exported model needs .* has 0.00 GB free"):
    export.export(member, tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_what_ends_half_way_leaves_nothing(member, tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors_writer.ShardedWriter, "write", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    export.export(member, tmp_path / "out", report=lambda line: None)
  assert not list(tmp_path.iterdir())


def test_a_llama_of_sizes_that_transformers_refuses(member):
  target, _ = ours(member)
  config = ModelConfig.from_section(
      {**target.meta["model"], "num_heads": 3, "num_kv_heads": 1}, 258)
  with pytest.raises(UserError, match="model.width=16 and model.num_heads=3"):
    transformers_config.check_exportable(config)


def test_the_card_of_an_import_says_what_is_not_known(member):
  target, _ = ours(member)
  meta = {**target.meta, "data_fingerprint": "",
          "imported": {"sha256": "ab", "pretraining_known": False}}
  card = model_card.write("x", meta, target.model, architecture="A", dtype="float32",
                          tokenizer="", command="", version="1", notes=())
  for row in ("| learning rate | not known |", "| data fingerprint | not known |",
              "| weight decay | 3 |", "| decay convention | not known |"):
    assert row in card


def as_written(tokenizer, folder):
  (folder / "out").mkdir()
  tokenizer.save(str(folder / "saved"))
  notes = tokenizer_files.write(tokenizer, folder / "saved", folder / "out", 64)
  path = folder / "out" / "tokenizer.json"
  return hf.Tokenizer.from_file(str(path)) if path.exists() else None, notes


def assert_same(made, tokenizer):
  for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
    assert made.encode(text).ids == ids.tolist()
    assert made.decode(ids.tolist()) == tokenizer.decode(ids)


def test_bytes_as_a_tokenizer_json(tmp_path):
  tokenizer = tokenizers.ByteTokenizer()
  made, notes = as_written(tokenizer, tmp_path)
  assert not notes and made.get_vocab_size() == 257 and made.token_to_id("<|endoftext|>") == 256
  assert_same(made, tokenizer)


def test_a_tokenizer_without_a_token_for_the_unknown(tmp_path):
  words = hf.Tokenizer(hf.models.WordLevel({"a": 0, "</s>": 1}))
  tokenizer = tokenizers.HFTokenizer(words.to_str(), "test")
  made, notes = as_written(tokenizer, tmp_path)
  assert not notes and made.encode("a").ids == [0]


def test_what_a_tokenizer_adds_around_a_text_is_left_out(tmp_path):
  trained = hf.Tokenizer.from_str(tokenizers.train_bpe(TEXTS * 3, 290)._content)
  trained.post_processor = hf.processors.TemplateProcessing(
      single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
  tokenizer = tokenizers.HFTokenizer(trained.to_str(), "test")
  made, notes = as_written(tokenizer, tmp_path)
  assert not notes and trained.encode("a").ids[0] == 0
  assert_same(made, tokenizer)


def train_sentencepiece(folder, kind):
  import sentencepiece
  (folder / "text").write_text("\n".join(
      f"the decay {i} of a weight and its norm in layer {i * 7}" for i in range(200)))
  sentencepiece.SentencePieceTrainer.train(
      input=str(folder / "text"), model_prefix=str(folder / "made"), model_type=kind,
      vocab_size=330, byte_fallback=True, minloglevel=2,
      **(dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
         if kind == "bpe" else {}))
  return tokenizers.make("sentencepiece", str(folder / "made.model"), 0, ())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_as_a_tokenizer_json(tmp_path, kind):
  tokenizer = train_sentencepiece(tmp_path, kind)
  made, notes = as_written(tokenizer, tmp_path)
  assert not notes and (tmp_path / "out" / "tokenizer.model").exists()
  assert_same(made, tokenizer)


def test_a_tokenizer_that_cannot_be_translated_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(tokenizer_files, "_same_ids", lambda *_: False)
  made, [note] = as_written(train_sentencepiece(tmp_path, "bpe"), tmp_path)
  assert made is None and "cannot be made to give the ids" in note
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["tokenizer.model"]


@pytest.mark.skipif(not _DATA, reason="WD_PLASTICITY_DATA is not set")
@pytest.mark.parametrize("path", [
    "mistral/tokenizer.model.v1", "mistral/mistral_instruct_tokenizer_240323.model.v3",
    "nanodo/sentencepiece_cc_all.32000.100extra-sentencepiece.model"])
def test_published_sentencepiece_models(tmp_path, path):
  tokenizer = tokenizers.make("sentencepiece", f"{_DATA}/tokenizers/{path}", 0, ())
  made, notes = as_written(tokenizer, tmp_path)
  text = pathlib.Path(__file__).read_text(encoding="utf-8")
  assert not notes and made.encode(text).ids == tokenizer.encode_batch([text])[0].tolist()


def test_the_program(member, tmp_path):
  def start(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "wd_plasticity.interop.export", *arguments], text=True,
        capture_output=True, cwd=pathlib.Path(__file__).parents[1])
  wrong = start(f"--checkpoint={member}")
  assert wrong.returncode == 2 and "--out=FOLDER is missing" in wrong.stderr
  assert wrong.stderr.count("\n") == 1
  done = start(f"--checkpoint={member / 'checkpoints' / '6'}", f"--out={tmp_path}/a/out")
  assert done.returncode == 0, done.stderr
  card = (tmp_path / "a" / "out" / "README.md").read_text()
  assert "| steps | 6 of 12 |" in card and "-m wd_plasticity.interop.export --checkpoint=" in card
