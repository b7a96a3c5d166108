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
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers as hf

from wd_plasticity.errors import UserError
from wd_plasticity.files import parse_json, write_atomically, write_json, write_text

KINDS = ("byte", "bpe", "json", "sentencepiece", "gpt2", "saved")
# What the end of a document is taken to be where no field names it: the first that there is.
MOST_TOKENS = 1 << 24  # ids; no vocabulary comes near it
EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|end_of_document|>", "[EOS]")
_META = "meta.json"
_SPACES = "\u2581\u0120"  # what SentencePiece and byte-level BPE write for a space


class Tokenizer(Protocol):
  """Text to token ids and back."""

  vocab_size: int  # ids are below it
  eos_id: int  # ends every document
  eos: str  # the token of `eos_id`, where it is not the one that would be guessed
  guesses: dict[str, int]  # what `eos_id` was guessed from, by name; the first was taken
  fingerprint: str  # sha256 of kind and content
  adds_space: bool  # whether a text is encoded as if a space stood before it

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The int32 ids of each text, without special tokens, on all cores."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; special tokens vanish."""

  def save(self, directory: str) -> None:
    """Writes files that `load` reads."""


def make(kind: str, path: str, vocab_size: int, texts: Iterable[str],
         eos: str = "") -> Tokenizer:
  """The tokenizer of a `data.tokenizer` section.

  Args:
    kind: one of `KINDS`.
    path: its file or folder; unused by byte and bpe.
    vocab_size: of bpe, the end of sequence included.
    texts: what bpe is trained on; read for bpe only.
    eos: the token that ends a document, of json, gpt2 and sentencepiece; '' to guess it.

  Raises:
    UserError: a file is missing or of another kind, or the end of a document is not known.
  """
  if eos and kind in ("byte", "bpe", "saved"):
    raise UserError(f"data.tokenizer.eos={eos!r} is for tokenizers that come without their end of "
                    f"a document; kind={kind!r} has its own, so leave it empty.")
  if kind == "byte":
    return ByteTokenizer()
  if kind == "bpe":
    return train_bpe(texts, vocab_size)
  files(kind, path)  # raises when they are missing
  if kind == "saved":
    return load(path)
  if kind == "sentencepiece":
    tokenizer = SentencePieceTokenizer(read_bytes(path), path, eos)
  elif kind == "gpt2":
    tokenizer = _from_gpt2(path, eos)
  else:
    tokenizer = HFTokenizer(read_json_text(path), path, eos)
  if eos and tokenizer.eos_id in tokenizer.encode_batch([eos])[0]:
    raise UserError(f"data.tokenizer.eos={eos!r} is a token of ordinary text, so documents that "
                    "hold it would be cut there; name a special token.")
  return tokenizer


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
    raise UserError(f"data.tokenizer.path={path!r} is not a tokenizer of GPT-2; it must be a "
                    "folder with encoder.json and vocab.bpe, or vocab.json and merges.txt.")
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
  meta = os.path.join(directory, _META)
  try:
    fields = parse_json(read_bytes(meta))
    kind, eos = fields["kind"], fields.get("eos", "")
    name = {"byte": "", "hf": "tokenizer.json", "sentencepiece": "tokenizer.model"}[kind]
    if not isinstance(eos, str):
      raise TypeError(f"eos is {eos!r}")
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f"{meta} is not of a tokenizer that was saved here; name the tokenizer folder "
                    "of a run, or the tokenizer's own file with its kind.") from e
  if kind == "byte":
    return ByteTokenizer()
  path = os.path.join(directory, name)
  if kind == "sentencepiece":
    return SentencePieceTokenizer(read_bytes(path), path, eos)
  return HFTokenizer(read_json_text(path, newline=""), path, eos)


def read_json_text(path: str | os.PathLike, newline: str | None = None) -> str:
  """The text of a tokenizer.json; a UserError when it is not there, or not a text."""
  try:
    return io.TextIOWrapper(io.BytesIO(read_bytes(path)), encoding="utf-8", newline=newline).read()
  except UnicodeDecodeError as e:
    raise UserError(f"data.tokenizer.path: {path} is not a tokenizer.json (it is not UTF-8 text); "
                    "convert it, or set data.tokenizer.kind='sentencepiece' when it is a .model."
                    ) from e


def read_bytes(path: str | os.PathLike) -> bytes:
  """The content of a file of a tokenizer; a UserError when it cannot be had."""
  try:
    with open(path, "rb") as f:
      return f.read()
  except FileNotFoundError as e:
    raise UserError(f"{os.path.dirname(path)} holds no saved tokenizer ({path} is missing); name "
                    "the tokenizer folder of a run.") from e
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror}); check that it is a readable file."
                    ) from e


class ByteTokenizer:
  """UTF-8 bytes and an end of sequence."""

  vocab_size = 257
  eos_id = 256
  eos = ""
  guesses = {}
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

  def __init__(self, content: str, path: str, eos: str = "",
               eos_field: str = "data.tokenizer.eos"):
    """Opens it.

    Args:
      content: of the file.
      path: of the file, for messages.
      eos: the token that ends a document; empty: the first of `EOS_NAMES` that it has.
      eos_field: what messages call `eos`.

    Raises:
      UserError: it is not a tokenizer.json, or the end of a document is not known.
    """
    try:
      self._tokenizer = hf.Tokenizer.from_str(content)
      vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
      if not vocabulary:
        raise ValueError("it has no token")
      self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
      if self.vocab_size > MOST_TOKENS:
        raise ValueError(f"it has a token of the id {self.vocab_size - 1:,}, and a model has a row "
                         "for every id")
    except BaseException as e:
      raise mistake(e, f"data.tokenizer.path: {path} is not a tokenizer.json ({_first_line(e)}); "
                        "name a file saved by Hugging Face tokenizers.") from e
    self._path = path
    # A file may ask for cut or padded sequences, and a document may spell a special
    # token; documents are encoded whole and as plain text.
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self._tokenizer.encode_special_tokens = True
    self._content = content
    self.fingerprint = hashlib.sha256(b"hf:" + content.encode("utf-8")).hexdigest()
    found = {name: vocabulary[name] for name in EOS_NAMES if name in vocabulary}
    added = self._tokenizer.get_added_tokens_decoder()
    special = [token.content for token in added.values() if token.special]
    self.eos_id = _find_eos(vocabulary.get(eos), eos, found, special, path, eos_field)
    self.guesses = {} if eos else found
    if self.eos_id in added and not added[self.eos_id].special:
      # Else text that spells it would end a document. The token keeps its id.
      self._tokenizer.add_special_tokens([added[self.eos_id].content])
    # What would be found anyway need not be kept, and leaves the fingerprint as it is.
    self.eos = "" if eos == next(iter(found), None) else eos
    if self.eos:
      self.fingerprint = hashlib.sha256(f"{self.fingerprint}:{eos}".encode()).hexdigest()
    try:
      pieces = self._tokenizer.encode("a", add_special_tokens=False).tokens
    except Exception:  # `encode_batch` says that some texts cannot be encoded
      pieces = []
    self.adds_space = pieces[:1] != [] and pieces[0][0] in _SPACES

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    try:
      encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    except BaseException as e:
      raise mistake(e, f"the tokenizer {self._path} cannot encode every text ({_first_line(e)}): "
                        "it has no token for what it does not know; add an unknown token to it, "
                        "or take one that falls back on bytes.") from e
    return [np.asarray(e.ids, np.int32) for e in encodings]

  def decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

  def save(self, directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    write_text(os.path.join(directory, "tokenizer.json"), self._content)
    _write_meta(directory, "hf", **({"eos": self.eos} if self.eos else {}))


class SentencePieceTokenizer:
  """A SentencePiece model."""

  def __init__(self, content: bytes, path: str, eos: str = "",
               eos_field: str = "data.tokenizer.eos"):
    """Opens it.

    Args:
      content: of the file.
      path: of the file, for messages.
      eos: the piece that ends a document; empty: what the model says, else the first of
        `EOS_NAMES` that it has.
      eos_field: what messages call `eos`.

    Raises:
      UserError: it is not a SentencePiece model, or the end of a document is not known.
    """
    try:
      if not content:
        raise OSError("it is empty")
      processor = sentencepiece.SentencePieceProcessor(model_proto=content)
      if not processor.vocab_size():
        raise ValueError("it has no piece")
      pieces = processor.encode("a", out_type=str)
      names = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    except (RuntimeError, OSError, ValueError) as e:  # ValueError: pieces that are not UTF-8
      raise UserError(f"data.tokenizer.path: {path} is not a SentencePiece model "
                      f"({_first_line(e)}); name a .model file, or set data.tokenizer.kind='json' "
                      "for a tokenizer.json.") from e
    self._processor = processor
    self._content = content
    self.fingerprint = hashlib.sha256(b"sentencepiece:" + content).hexdigest()
    self.vocab_size = len(names)
    self.adds_space = pieces[:1] != [] and pieces[0][0] in _SPACES
    ids = {name: i for i, name in enumerate(names)}
    said = processor.eos_id()
    guesses = {name: ids[name] for name in EOS_NAMES if name in ids} if said < 0 else {}
    found = guesses if said < 0 else {names[said]: said}
    special = [name for name, i in ids.items() if processor.is_control(i)]
    self.eos_id = _find_eos(ids.get(eos), eos, found, special, path, eos_field)
    self.guesses = {} if eos else guesses
    self.eos = "" if eos == next(iter(found), None) else eos
    if self.eos:
      self.fingerprint = hashlib.sha256(f"{self.fingerprint}:{eos}".encode()).hexdigest()

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    ids = self._processor.encode(list(texts), out_type=int, add_bos=False, add_eos=False,
                                 num_threads=os.cpu_count() or 1)
    return [np.asarray(i, np.int32) for i in ids]

  def decode(self, ids: Sequence[int]) -> str:
    return self._processor.decode([int(i) for i in ids if i != self.eos_id])

  def save(self, directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    write_atomically(os.path.join(directory, "tokenizer.model"), lambda f: f.write(self._content))
    _write_meta(directory, "sentencepiece", **({"eos": self.eos} if self.eos else {}))


def train_bpe(texts: Iterable[str], vocab_size: int) -> HFTokenizer:
  """Byte-level BPE (GPT-2's pre-tokenization) of `vocab_size` ids, deterministic.

  A small corpus may have fewer merges than asked for; `vocab_size` of the result is what there is.
  """
  if vocab_size < 257:
    raise UserError(f"data.tokenizer.vocab_size={vocab_size} is too small; bpe needs at least 257 "
                    "(256 bytes and the end of sequence).")
  if vocab_size > MOST_TOKENS:
    raise UserError(f"data.tokenizer.vocab_size={vocab_size} is too large; bpe has at most "
                    f"{MOST_TOKENS}.")
  tokenizer = hf.Tokenizer(hf.models.BPE())
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  trainer = hf.trainers.BpeTrainer(
      vocab_size=vocab_size, special_tokens=[EOS_NAMES[0]], show_progress=False,
      initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet())
  tokenizer.train_from_iterator(texts, trainer)
  return HFTokenizer(tokenizer.to_str(), "bpe")


def _from_gpt2(path: str, eos: str) -> HFTokenizer:
  vocabulary, merges = files("gpt2", path)
  try:
    tokenizer = hf.Tokenizer(hf.models.BPE.from_file(vocabulary, merges))
    special = [name for name in parse_json(read_bytes(vocabulary)) if name in (*EOS_NAMES, eos)]
    tokenizer.add_special_tokens(special)
  except BaseException as e:
    raise mistake(e, f"data.tokenizer.path: {path} holds no GPT-2 vocabulary and merges "
                     f"({_first_line(e)}); fetch both files again.") from e
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  return HFTokenizer(tokenizer.to_str(), path, eos)


def _find_eos(named: int | None, eos: str, found: Mapping[str, int], special: Sequence[str],
              path: str, field: str) -> int:
  """The id of the end of a document: `named`, that of `eos`, or else the first one found."""
  if eos and named is not None:
    return named
  if not eos and found:
    return next(iter(found.values()))
  shown = (" ".join(special[:8]) + (" ..." if len(special) > 8 else "")) or "none"
  if eos:
    raise UserError(f"{field}={eos!r} is not a token of {path}; name one that is (its special "
                    f"tokens: {shown}).")
  raise UserError(f"{path} has no end of sequence that is known by its name ({' '.join(EOS_NAMES)})"
                  f"; set {field} to the token that ends a document (its special tokens: {shown}).")


def on_guess(tokenizer: Tokenizer) -> str:
  """What to say of an end of a document that was guessed by its name, up to a full stop."""
  (taken, i), *others = tokenizer.guesses.items()
  said = f"documents end with the token {taken} (id {i}), which is guessed by its name"
  if others:
    said += (" although there is also "
             + ", ".join(f"{name} (id {other})" for name, other in others))
  return said


def _write_meta(directory: str, kind: str, **more: str) -> None:
  """Comes after the content: a folder without this file is not a saved tokenizer."""
  write_json(os.path.join(directory, _META), {"kind": kind, **more})


def mistake(e: BaseException, sentence: str) -> BaseException:
  """What to raise for an error of `tokenizers`: bare Exception, or a panic, which is none."""
  return e if isinstance(e, (KeyboardInterrupt, SystemExit)) else UserError(sentence)


def _first_line(e: BaseException) -> str:
  return (str(e).splitlines() or [type(e).__name__])[0]
