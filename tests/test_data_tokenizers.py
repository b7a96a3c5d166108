"""Tokenizers: text to ids and back, special tokens, fingerprints, saving."""

import io
import json
import lzma
import os
import pathlib

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf

from wd_plasticity.data import tokenizers
from wd_plasticity.errors import UserError

CORPUS = [f"The quick brown fox number {i} jumps over {i * 7} lazy dogs. Größe 漢字 {i}\n\n" * 3
          for i in range(60)]
HARD = ["", " leading  spaces\t\n\n", "Größe 漢字 🦊 \x00",
        "a<|endoftext|>b</s>c", "don't STOP 12345"]


@pytest.fixture(scope="module")
def bpe():
  return tokenizers.make("bpe", "", 400, CORPUS)


@pytest.fixture(scope="module")
def sentencepiece_path(tmp_path_factory):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=400, model_type="bpe",
      byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
      minloglevel=2)
  path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
  path.write_bytes(model.getvalue())
  return str(path)


def gpt2_folder(folder, names):
  """GPT-2 files written from a BPE trained here, the way Hugging Face saves them."""
  tokenizer = hf.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(CORPUS, vocab_size=400, special_tokens=["<|endoftext|>"],
                                show_progress=False)
  vocab, merges = tokenizer.save_model(str(folder))
  os.replace(vocab, folder / names[0])
  os.replace(merges, folder / names[1])
  return tokenizer


@pytest.mark.parametrize("kind", ["byte", "bpe", "sentencepiece"])
def test_round_trip_and_save(kind, bpe, sentencepiece_path, tmp_path):
  made = bpe if kind == "bpe" else tokenizers.make(kind, sentencepiece_path, 0, [])
  made.save(str(tmp_path / "t"))
  loaded = tokenizers.load(str(tmp_path / "t"))
  assert loaded.fingerprint == made.fingerprint
  assert (loaded.vocab_size, loaded.eos_id) == (made.vocab_size, made.eos_id)
  for text, ids, again in zip(
      HARD, made.encode_batch(HARD), loaded.encode_batch(HARD), strict=True):
    assert ids.dtype == np.int32 and ids.ndim == 1
    np.testing.assert_array_equal(ids, again)
    assert ids.size == 0 or (0 <= ids.min() and ids.max() < made.vocab_size)
    assert made.eos_id not in ids  # also where the text spells a special token
    assert made.decode([*ids, made.eos_id]) == text


def test_byte_ids_are_utf8():
  tokenizer = tokenizers.ByteTokenizer()
  assert tokenizer.encode_batch(["aé"])[0].tolist() == [97, 0xC3, 0xA9]
  assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)
  assert tokenizer.decode([0xC3]) == "\ufffd"


def test_bpe_training_is_deterministic(bpe):
  assert tokenizers.make("bpe", "", 400, iter(CORPUS)).fingerprint == bpe.fingerprint
  assert tokenizers.make("bpe", "", 401, CORPUS).fingerprint != bpe.fingerprint
  assert bpe.vocab_size == 400
  with pytest.raises(UserError, match="vocab_size=256 is too small"):
    tokenizers.make("bpe", "", 256, CORPUS)


def test_sentencepiece_is_the_library(sentencepiece_path):
  made = tokenizers.make("sentencepiece", sentencepiece_path, 0, [])
  reference = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_path)
  for text, ids in zip(CORPUS, made.encode_batch(CORPUS), strict=True):
    assert ids.tolist() == reference.encode(text)
  assert made.eos_id == reference.piece_to_id("</s>")
  assert made.vocab_size == len(reference)


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_files(tmp_path, names):
  reference = gpt2_folder(tmp_path, names)
  made = tokenizers.make("gpt2", str(tmp_path), 0, [])
  for text, ids in zip(CORPUS, made.encode_batch(CORPUS), strict=True):
    assert ids.tolist() == reference.encode(text).ids
    assert made.decode(ids) == text
  assert made.eos_id == reference.token_to_id("<|endoftext|>")


def test_json_ignores_templates_truncation_and_padding(bpe, tmp_path):
  bpe.save(str(tmp_path))
  plain = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  odd = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  odd.add_special_tokens(["<s>"])
  odd.post_processor = hf.processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", odd.token_to_id("<s>"))])
  odd.enable_truncation(5)
  odd.enable_padding(length=9)
  path = tmp_path / "odd.json"
  path.write_text(odd.to_str())
  made = tokenizers.make("json", str(path), 0, [])
  assert made.encode_batch(CORPUS[:2])[1].tolist() == plain.encode(CORPUS[1]).ids
  assert made.vocab_size == 401


@pytest.mark.parametrize("kind", ["json", "sentencepiece", "gpt2"])
def test_wrong_paths(kind, tmp_path):
  with pytest.raises(UserError, match="data.tokenizer.path"):
    tokenizers.make(kind, str(tmp_path / "none"), 0, [])
  wrong = tmp_path / "wrong"
  if kind == "gpt2":
    wrong.mkdir()
    (wrong / "vocab.json").write_text("[]")
    (wrong / "merges.txt").write_text("x")
  else:
    wrong.write_text("{}")
  with pytest.raises(UserError, match="data.tokenizer.path") as e:
    tokenizers.make(kind, str(wrong), 0, [])
  assert "\n" not in str(e.value)


def test_unknown_kind_and_missing_eos(tmp_path):
  with pytest.raises(UserError, match="kind='wordpiece' is unknown"):
    tokenizers.make("wordpiece", "", 0, [])
  with pytest.raises(UserError, match="no saved tokenizer"):
    tokenizers.load(str(tmp_path))
  path = tmp_path / "t.json"
  path.write_text(hf.Tokenizer(hf.models.BPE(vocab={"a": 0}, merges=[])).to_str())
  with pytest.raises(UserError, match="no end of sequence"):
    tokenizers.make("json", str(path), 0, [])


@pytest.fixture(scope="module")
def real_data():
  folder = os.environ.get("WD_PLASTICITY_DATA")
  if not folder:
    pytest.skip("WD_PLASTICITY_DATA is not set")
  return pathlib.Path(folder)


def test_real_tokenizers(real_data, tmp_path):
  for name in ("encoder.json", "vocab.bpe"):
    (tmp_path / name).write_bytes(
        lzma.decompress((real_data / f"tokenizers/gpt2/{name}.xz").read_bytes()))
  gpt2 = tokenizers.make("gpt2", str(tmp_path), 0, [])
  assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)
  # "Hello world" in GPT-2's published vocabulary.
  assert gpt2.encode_batch(["Hello world"])[0].tolist() == [15496, 995]
  assert set(json.loads((tmp_path / "encoder.json").read_text()).values()) == set(range(50257))
  mistral = tokenizers.make(
      "sentencepiece", str(real_data / "tokenizers/mistral/tokenizer.model.v1"), 0, [])
  assert (mistral.vocab_size, mistral.eos_id) == (32000, 2)
  assert mistral.decode(mistral.encode_batch(["Hello world"])[0]) == "Hello world"
  for name in ("allenai_dolma2", "allenai_gpt-neox-olmo-dolma-v1_5"):
    path = tmp_path / f"{name}.json"
    path.write_bytes(lzma.decompress((real_data / f"tokenizers/olmo/{name}.json.xz").read_bytes()))
    made = tokenizers.make("json", str(path), 0, [])
    assert made.decode(made.encode_batch(HARD)[2]) == HARD[2]
    assert made.decode([made.eos_id]) == ""
