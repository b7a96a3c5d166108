"""Tokenizers behind one interface: text to token ids without special tokens, and back.

| kind | content |
|---|---|
| byte | UTF-8 bytes (0-255) and an end of sequence (256) |
| bpe | byte-level BPE, trained on the training documents |
| json | a tokenizer.json of Hugging Face `tokenizers` |
| sentencepiece | a SentencePiece .model (the format of Llama-2) |
| gpt2 | a folder with encoder.json and vocab.bpe, or vocab.json and merges.txt |
| saved | a folder that `save` wrote, such as members/<name>/tokenizer of a run |
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers as hf

from wd_plasticity.errors import UserError
from wd_plasticity.files import write_json

KINDS = ("byte", "bpe", "json", "sentencepiece", "gpt2", "saved")
EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|end_of_document|>", "[EOS]")
_META = "meta.json"
_SPACES = "\u2581\u0120"  # what SentencePiece and byte-level BPE write for a space


class Tokenizer(Protocol):
  """Text to token ids and back."""

  vocab_size: int  # ids are below it
  eos_id: int  # ends every document
  fingerprint: str  # sha256 of kind and content
  adds_space: bool  # whether a text is encoded as if a space stood before it

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The int32 ids of each text, without special tokens, on all cores."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; special tokens vanish."""

  def save(self, directory: str) -> None:
    """Writes files that `load` reads."""


def make(kind: str, path: str, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
  """The tokenizer of a `data.tokenizer` section.

  Args:
    kind: one of `KINDS`.
    path: its file or folder; unused by byte and bpe.
    vocab_size: of bpe, the end of sequence included.
    texts: what bpe is trained on; read for bpe only.
  """
  if kind == "byte":
    return ByteTokenizer()
  if kind == "bpe":
    return train_bpe(texts, vocab_size)
  files(kind, path)  # raises when they are missing
  if kind == "sentencepiece":
    with open(path, "rb") as f:
      return SentencePieceTokenizer(f.read(), path)
  if kind == "gpt2":
    return _from_gpt2(path)
  if kind == "saved":
    return load(path)
  with open(path, encoding="utf-8") as f:
    return HFTokenizer(f.read(), path)


def files(kind: str, path: str) -> list[str]:
  """The files that a kind of tokenizer is read from."""
  if kind not in KINDS:
    raise UserError(f"data.tokenizer.kind={kind!r} is unknown; choose {', '.join(KINDS)}.")
  if kind in ("byte", "bpe"):
    return []
  if kind == "gpt2":
    for names in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
      paths = [os.path.join(path, name) for name in names]
      if all(map(os.path.isfile, paths)):
        return paths
    raise UserError(f"data.tokenizer.path={path!r} must be a folder with encoder.json and "
                    "vocab.bpe, or vocab.json and merges.txt.")
  if kind == "saved":
    load(path)  # raises when it is not complete
    names = (_META, "tokenizer.json", "tokenizer.model")
    return [p for p in (os.path.join(path, name) for name in names) if os.path.isfile(p)]
  if not os.path.isfile(path):
    wanted = "tokenizer.json" if kind == "json" else ".model file"
    raise UserError(f"data.tokenizer.path={path!r} is not a file; name the {wanted}.")
  return [path]


def load(directory: str) -> Tokenizer:
  """The tokenizer that `save` wrote into `directory`."""
  try:
    with open(os.path.join(directory, _META), encoding="utf-8") as f:
      meta = json.load(f)
    kind = meta["kind"]
    if kind == "byte":
      return ByteTokenizer()
    if kind == "sentencepiece":
      path = os.path.join(directory, "tokenizer.model")
      with open(path, "rb") as f:
        return SentencePieceTokenizer(f.read(), path)
    path = os.path.join(directory, "tokenizer.json")
    with open(path, encoding="utf-8", newline="") as f:
      return HFTokenizer(f.read(), path, meta.get("eos", ""))
  except FileNotFoundError as e:
    raise UserError(f"{directory} holds no saved tokenizer ({e.filename} is missing); name the "
                    "tokenizer folder of a run.") from e


class ByteTokenizer:
  """UTF-8 bytes and an end of sequence."""

  vocab_size = 257
  eos_id = 256
  adds_space = False
  fingerprint = hashlib.sha256(b"byte").hexdigest()

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    return bytes(int(i) for i in ids if i < 256).decode("utf-8", errors="replace")

  def save(self, directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    _write_meta(directory, "byte")


class HFTokenizer:
  """A tokenizer of Hugging Face `tokenizers`, kept as the text of its tokenizer.json."""

  def __init__(self, content: str, path: str, eos: str = ""):
    """Opens it.

    Args:
      content: of the file.
      path: of the file, for messages.
      eos: the token that ends a document; empty: the first of `EOS_NAMES` that it has.
    """
    try:
      self._tokenizer = hf.Tokenizer.from_str(content)
    except Exception as e:  # `tokenizers` raises bare Exception
      raise UserError(f"data.tokenizer.path: {path} is not a tokenizer.json ({_first_line(e)}); "
                      "name a file saved by Hugging Face tokenizers.") from e
    # A file may ask for cut or padded sequences, and a document may spell a special
    # token; documents are encoded whole and as plain text.
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self._tokenizer.encode_special_tokens = True
    self._content = content
    self.fingerprint = hashlib.sha256(b"hf:" + content.encode("utf-8")).hexdigest()
    vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
    # What would be found anyway need not be kept, and leaves the fingerprint as it is.
    self._eos = "" if eos == next((n for n in EOS_NAMES if n in vocabulary), None) else eos
    if self._eos:
      self.fingerprint = hashlib.sha256(f"{self.fingerprint}:{eos}".encode()).hexdigest()
    self.eos_id = _find_eos(vocabulary.get, path, (eos,) if self._eos else EOS_NAMES)
    pieces = self._tokenizer.encode("a", add_special_tokens=False).tokens
    self.adds_space = pieces[:1] != [] and pieces[0][0] in _SPACES

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(e.ids, np.int32) for e in encodings]

  def decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

  def save(self, directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "tokenizer.json"), "w", encoding="utf-8", newline="") as f:
      f.write(self._content)
    _write_meta(directory, "hf", **({"eos": self._eos} if self._eos else {}))


class SentencePieceTokenizer:
  """A SentencePiece model."""

  def __init__(self, content: bytes, path: str):
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError) as e:
      raise UserError(f"data.tokenizer.path: {path} is not a SentencePiece model "
                      f"({_first_line(e)}); name a .model file.") from e
    self._content = content
    self.fingerprint = hashlib.sha256(b"sentencepiece:" + content).hexdigest()
    self.vocab_size = self._processor.vocab_size()
    self.adds_space = self._processor.encode("a", out_type=str)[0][0] in _SPACES
    self.eos_id = self._processor.eos_id()
    if self.eos_id < 0:
      unknown = self._processor.unk_id()
      pieces = {name: self._processor.piece_to_id(name) for name in EOS_NAMES}
      self.eos_id = _find_eos({n: i for n, i in pieces.items() if i != unknown}.get, path)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    ids = self._processor.encode(list(texts), out_type=int, add_bos=False, add_eos=False,
                                 num_threads=os.cpu_count() or 1)
    return [np.asarray(i, np.int32) for i in ids]

  def decode(self, ids: Sequence[int]) -> str:
    return self._processor.decode([int(i) for i in ids if i != self.eos_id])

  def save(self, directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "tokenizer.model"), "wb") as f:
      f.write(self._content)
    _write_meta(directory, "sentencepiece")


def train_bpe(texts: Iterable[str], vocab_size: int) -> HFTokenizer:
  """Byte-level BPE (GPT-2's pre-tokenization) of `vocab_size` ids, deterministic.

  A small corpus may have fewer merges than asked for; `vocab_size` of the result is what there is.
  """
  if vocab_size < 257:
    raise UserError(f"data.tokenizer.vocab_size={vocab_size} is too small; bpe needs at least 257 "
                    "(256 bytes and the end of sequence).")
  tokenizer = hf.Tokenizer(hf.models.BPE())
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  trainer = hf.trainers.BpeTrainer(
      vocab_size=vocab_size, special_tokens=[EOS_NAMES[0]], show_progress=False,
      initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet())
  tokenizer.train_from_iterator(texts, trainer)
  return HFTokenizer(tokenizer.to_str(), "bpe")


def _from_gpt2(path: str) -> HFTokenizer:
  vocabulary, merges = files("gpt2", path)
  try:
    tokenizer = hf.Tokenizer(hf.models.BPE.from_file(vocabulary, merges))
    with open(vocabulary, encoding="utf-8") as f:
      special = [name for name in json.load(f) if name in EOS_NAMES]
  except Exception as e:  # `tokenizers` raises bare Exception
    raise UserError(f"data.tokenizer.path: {path} holds no GPT-2 vocabulary and merges "
                    f"({_first_line(e)}); fetch both files again.") from e
  tokenizer.add_special_tokens(special)
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  return HFTokenizer(tokenizer.to_str(), path)


def _find_eos(find, path: str, names: Sequence[str] = EOS_NAMES) -> int:
  for name in names:
    if find(name) is not None:
      return find(name)
  raise UserError(f"data.tokenizer.path: {path} has no end of sequence; add one of "
                  f"{' '.join(names)} to its vocabulary.")


def _write_meta(directory: str, kind: str, **more: str) -> None:
  """Comes after the content: a folder without this file is not a saved tokenizer."""
  write_json(os.path.join(directory, _META), {"kind": kind, **more})


def _first_line(e: Exception) -> str:
  return (str(e).splitlines() or [type(e).__name__])[0]
