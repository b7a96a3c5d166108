"""What is said of a tokenizer and of text while data are prepared."""

import json

import pytest
import tokenizers as hf

from wd_plasticity.config import default_config
from wd_plasticity.data import text_checks, tokenizers
from wd_plasticity.data.prepare import prepare
from wd_plasticity.errors import UserError

TEXTS = [f"the cafe number {i} is open until {i % 12} o'clock\n" for i in range(300)]


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
  """A BPE of the ASCII letters in TEXTS, without a token for what it does not know."""
  tokenizer = hf.Tokenizer(hf.models.BPE())
  tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace()
  tokenizer.decoder = hf.decoders.Metaspace()
  tokenizer.train_from_iterator(TEXTS, hf.trainers.BpeTrainer(
      vocab_size=200, special_tokens=["</s>", "<|endoftext|>"], show_progress=False))
  path = tmp_path_factory.mktemp("lossy") / "t.json"
  path.write_text(tokenizer.to_str())
  return str(path)


def section(tmp_path, texts, **tokenizer):
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  data = default_config().data
  data.update(source="files", train=f"{tmp_path}/a.jsonl", sequence_length=16,
              validation_fraction=0.1, train_subset_fraction=0.1)
  data.tokenizer.update(**tokenizer)
  return data


def run(data, tmp_path):
  lines = []
  prepared = prepare(data, tmp_path / "cache", lines.append)
  return prepared, lines


def test_lost_characters_are_those_of_the_texts(lossy):
  made = tokenizers.make("json", lossy, 0, [])
  lost = text_checks.lost_characters(made, ["the café ☃ é", "open", "o\u2603"])
  assert lost == {"é": 2, "☃": 2}
  assert not text_checks.lost_characters(made, TEXTS)
  assert not text_checks.lost_characters(tokenizers.ByteTokenizer(), ["é☃\x00漢字 \n"])
  lower = hf.Tokenizer.from_file(lossy)
  lower.normalizer = hf.normalizers.Lowercase()
  changed = tokenizers.HFTokenizer(lower.to_str(), "t.json")
  assert text_checks.lost_characters(changed, ["The Cafe"]) == {"T": 1, "C": 1}


def test_what_a_tokenizer_loses_is_said_and_kept(lossy, tmp_path):
  data = section(tmp_path, [*TEXTS, "the café ☃"], kind="json", path=lossy, eos="</s>")
  prepared, lines = run(data, tmp_path)
  said, = [line for line in lines if "loses characters" in line]
  assert "in a sample of 301 documents" in said and "'é' 1 times, '☃' 1 times did not" in said
  assert prepared.stats["lost_characters"] == {"é": 1, "☃": 1}
  assert run(data, tmp_path)[1] == [said]  # also when the data are there already
  _, lines = run(section(tmp_path, TEXTS, kind="json", path=lossy, eos="</s>"), tmp_path)
  assert not [line for line in lines if "loses" in line or "guessed" in line]


def test_the_guessed_end_of_documents_is_said(lossy, tmp_path):
  prepared, lines = run(section(tmp_path, TEXTS, kind="json", path=lossy), tmp_path)
  said, = [line for line in lines if "guessed" in line]
  assert "<|endoftext|> (id 1)" in said and "there is also </s> (id 0)" in said
  assert said.endswith("to name another, set data.tokenizer.eos.")
  assert (prepared.records["train"] == 1).any() and not (prepared.records["train"] == 0).any()
  named, lines = run(section(tmp_path, TEXTS, kind="json", path=lossy, eos="</s>"), tmp_path)
  assert named.fingerprint != prepared.fingerprint
  assert (named.records["train"] == 0).any() and not (named.records["train"] == 1).any()
  same, _ = run(section(tmp_path, TEXTS, kind="json", path=lossy, eos="<|endoftext|>"), tmp_path)
  assert same.fingerprint == prepared.fingerprint  # identity is what is done, not how it is said


def test_a_sample_of_much_text(monkeypatch):
  monkeypatch.setattr(text_checks, "_SAMPLED_CHARACTERS", 100)
  shown = []
  tokenizer = tokenizers.ByteTokenizer()
  monkeypatch.setattr(text_checks, "lost_characters", lambda _, texts: shown.extend(texts) or {})
  check = text_checks.RoundTrip(tokenizer)
  for start in range(0, 1000, 50):
    check.see([f"{i:010d}" for i in range(start, start + 50)])
  assert [int(text) for text in shown] == [*range(10), *range(100, 1000, 100)]
  assert check.note() == ""


def test_a_word_of_many_letters_is_found():
  letters = "ACGT" * 5000
  assert text_checks.long_word("x " * 777 + letters + " end") == letters[:20] or (
      text_checks.long_word("x " * 777 + letters + " end").strip("ACGT") == "")
  assert text_checks.long_word("x " * 777 + letters + " end")
  assert not text_checks.long_word((letters[:9_000] + " ") * 20)
  assert not text_checks.long_word("A sentence, and another. " * 5000)
  assert not text_checks.long_word("")


@pytest.mark.parametrize("kind,said", [("byte", False), ("bpe", True)])
def test_a_long_word_is_said_once(tmp_path, monkeypatch, kind, said):
  monkeypatch.setattr(text_checks, "LONG_WORD", 200)
  texts = [*TEXTS, *("ACGT" * 60 + str(i) for i in range(5))]
  prepared, lines = run(section(tmp_path, texts, kind=kind, vocab_size=280), tmp_path)
  found = [line for line in lines if "a word of more than 100 letters" in line]
  assert len(found) == said
  assert [f"data: {note}" for note in prepared.stats["notes"]] == found


def test_a_tokenizer_that_stops_at_an_unknown_word(tmp_path):
  tokenizer = hf.Tokenizer(hf.models.WordLevel({"the": 0, "</s>": 1}))
  tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
  (tmp_path / "t.json").write_text(tokenizer.to_str())
  with pytest.raises(UserError, match="t.json cannot encode every text"):
    run(section(tmp_path, TEXTS, kind="json", path=str(tmp_path / "t.json")), tmp_path)
  assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
