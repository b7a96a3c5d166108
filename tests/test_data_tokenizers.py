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


def write_json(path, model, tokens=(), special=("</s>",)):
  """A tokenizer.json of words, with added tokens."""
  tokenizer = hf.Tokenizer(model)
  tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(list(special))
  tokenizer.add_tokens(list(tokens))
  path.write_text(tokenizer.to_str())
  return str(path)


def words(*names):
  return hf.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")


def test_two_ends_are_a_guess_that_is_said_and_a_field_decides(tmp_path):
  path = write_json(tmp_path / "t.json", words("[UNK]", "a"), special=("</s>", "<|endoftext|>"))
  guessed = tokenizers.make("json", path, 0, [])
  assert guessed.guesses == {"<|endoftext|>": 3, "</s>": 2} and guessed.eos_id == 3
  said = tokenizers.on_guess(guessed)
  assert "<|endoftext|> (id 3)" in said and "there is also </s> (id 2)" in said
  named = tokenizers.make("json", path, 0, [], "</s>")
  assert (named.eos_id, named.guesses) == (2, {})
  assert named.fingerprint != guessed.fingerprint
  named.save(str(tmp_path / "saved"))
  loaded = tokenizers.load(str(tmp_path / "saved"))
  assert (loaded.eos_id, loaded.fingerprint) == (2, named.fingerprint)
  # What would be guessed anyway is the same tokenizer.
  assert tokenizers.make("json", path, 0, [], "<|endoftext|>").fingerprint == guessed.fingerprint


def test_an_end_that_no_name_tells_is_asked_for(tmp_path):
  path = write_json(tmp_path / "t.json", words("[UNK]", "a"), special=("<begin>", "<end>"))
  with pytest.raises(UserError, match="no end of sequence .*set data.tokenizer.eos to the token "
                                      "that ends a document .its special tokens: <begin> <end>"):
    tokenizers.make("json", path, 0, [])
  made = tokenizers.make("json", path, 0, [], "<end>")
  assert made.eos_id == 3 and made.eos_id not in made.encode_batch(["a <end> a"])[0]
  with pytest.raises(UserError, match="data.tokenizer.eos='<and>' is not a token of .*<end>"):
    tokenizers.make("json", path, 0, [], "<and>")
  with pytest.raises(UserError, match="data.tokenizer.eos='a' is a token of ordinary text"):
    tokenizers.make("json", path, 0, [], "a")
  for kind in ("byte", "bpe", "saved"):
    with pytest.raises(UserError, match=f"kind='{kind}' has its own"):
      tokenizers.make(kind, path, 300, [], "<end>")


def test_the_end_of_sentencepiece_and_gpt2(sentencepiece_path, tmp_path):
  made = tokenizers.make("sentencepiece", sentencepiece_path, 0, [], "<s>")
  assert made.eos_id == 1 and not made.guesses
  made.save(str(tmp_path / "saved"))
  assert tokenizers.load(str(tmp_path / "saved")).eos_id == 1
  assert made.fingerprint != tokenizers.make("sentencepiece", sentencepiece_path, 0, []).fingerprint
  with pytest.raises(UserError, match="data.tokenizer.eos='<x>' is not a token"):
    tokenizers.make("sentencepiece", sentencepiece_path, 0, [], "<x>")
  gpt2_folder(tmp_path, ("vocab.json", "merges.txt"))
  assert tokenizers.make("gpt2", str(tmp_path), 0, []).guesses == {"<|endoftext|>": 0}


def test_an_end_that_is_no_special_token_is_not_read_in_text(tmp_path):
  path = write_json(tmp_path / "t.json", words("[UNK]", "a"), tokens=("</s>",), special=())
  made = tokenizers.make("json", path, 0, [])
  assert made.eos_id == 2 and made.eos_id not in made.encode_batch(["a </s> a"])[0]


@pytest.mark.parametrize("model", [
    hf.models.WordLevel({"a": 0}), hf.models.WordPiece({"a": 0}), hf.models.Unigram([("a", -1.0)])],
    ids=["word", "wordpiece", "unigram"])
def test_a_tokenizer_without_a_token_for_the_unknown(tmp_path, model):
  made = tokenizers.make("json", write_json(tmp_path / "t.json", model), 0, [])
  assert made.encode_batch(["a"])[0].tolist() == [0]
  with pytest.raises(UserError, match="t.json cannot encode .*add an unknown token") as e:
    made.encode_batch(["a b"])
  assert "\n" not in str(e.value)


def test_vocab_size_is_above_every_id_and_no_more(tmp_path, sentencepiece_path):
  """Also where a vocabulary leaves ids out, and where tokens were added to it."""
  model = hf.models.WordLevel({"[UNK]": 0, "a": 1, "b": 90}, unk_token="[UNK]")
  made = tokenizers.make("json", write_json(tmp_path / "t.json", model, tokens=("new",)), 0, [])
  ids = made.encode_batch(["a b new c"])[0]
  assert made.vocab_size == 91 and ids[1] == 90 and max(*ids, made.eos_id) == 90
  plain = write_json(tmp_path / "p.json", words("[UNK]", "a"), tokens=("new", "newer"))
  made = tokenizers.make("json", plain, 0, [])
  assert made.vocab_size == 5 and made.encode_batch(["newer"])[0].tolist() == [4]
  proto = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_path)
  assert tokenizers.make("sentencepiece", sentencepiece_path, 0, []).vocab_size == len(proto)
  assert proto.id_to_piece(len(proto) - 1)
  with pytest.raises(IndexError):
    proto.id_to_piece(len(proto))


@pytest.mark.parametrize("kind,name,content", [
    ("json", "a.json", "{}".encode("utf-16")), ("json", "a.model", bytes(range(256))),
    ("json", "a.json", b""), ("json", "a.json", b'{"model": {"type": "BPE"}}'),
    ("json", "a.json", b"[" * 100_000), ("sentencepiece", "a.model", b""),
    ("sentencepiece", "a.model", b"{}"), ("sentencepiece", "a.model", b"\n\x00")])
def test_a_file_of_another_kind(tmp_path, kind, name, content):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=rf"data.tokenizer.path: .*{name} is not a") as e:
    tokenizers.make(kind, str(tmp_path / name), 0, [])
  assert "\n" not in str(e.value)


def test_an_empty_vocabulary(tmp_path):
  path = write_json(tmp_path / "t.json", hf.models.BPE(), special=())
  with pytest.raises(UserError, match="is not a tokenizer.json"):
    tokenizers.make("json", path, 0, [])


@pytest.mark.parametrize("meta", [
    "", "[]", "{}", '{"kind": "wordpiece"}', '{"kind": ["hf"]}', '{"kind": "hf", "eos": 3}',
    '"text"', "\xff", "[" * 100_000, '{"name": "a model of others", "kind": null}'])
def test_a_foreign_meta_json_is_one_sentence(tmp_path, meta):
  (tmp_path / "meta.json").write_text(meta, encoding="latin-1")
  for call in (lambda: tokenizers.load(str(tmp_path)),
               lambda: tokenizers.make("saved", str(tmp_path), 0, [])):
    with pytest.raises(UserError, match="meta.json is not of a tokenizer that was saved here"):
      call()


def test_a_saved_tokenizer_that_is_damaged(bpe, tmp_path):
  bpe.save(str(tmp_path))
  (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
  with pytest.raises(UserError, match="tokenizer.json is not a tokenizer.json .it is not UTF-8"):
    tokenizers.load(str(tmp_path))
  (tmp_path / "tokenizer.json").unlink()
  (tmp_path / "tokenizer.json").mkdir()
  with pytest.raises(UserError, match="tokenizer.json cannot be read .Is a directory"):
    tokenizers.load(str(tmp_path))


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
