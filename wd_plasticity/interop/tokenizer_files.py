"""Tokenizers as files that transformers opens, and back.

transformers opens a tokenizer.json of Hugging Face `tokenizers`. Bytes and SentencePiece
models are written as one; that it gives the same ids is checked on samples of text.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf
from sentencepiece import sentencepiece_model_pb2

from wd_plasticity.data import tokenizers
from wd_plasticity.errors import UserError
from wd_plasticity.files import write_json
from wd_plasticity.interop.transformers_files import read_json

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt",
         "chat_template.jinja", "chat_template.json")
_BYTE_EOS = "<|endoftext|>"
_EOS_FIELD = "eos_token of tokenizer_config.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")

# What tokenizers differ in: spaces, ends of lines, digits, scripts, forms of one character.
_SAMPLES = (
    "", " ", "a", " a", "a ", "  two  spaces  ", "a\nb\n\n c\t\td\r\n", "The weight decay is 0.1.",
    "don't I'LL we've", "3.14159 + 1,000,000 = ?", "def f(x):\n    return x ** 2\n",
    "naïve café Ångström e\u0301", "ﬁne ① Ａ½ ™", "Привет, мир", "你好，世界", "こんにちは 世界",
    "مرحبا بالعالم", "हिन्दी", "🙂👍🏽 🇫🇷", "\u00a0\u2003\u3000x", "\u2581x\u2581", "\x00\x07",
    "xyzzyqqqqqqq" * 3, *("x" + " " * n + "y" for n in range(2, 40)))


def write(tokenizer: tokenizers.Tokenizer, saved: Path, out: Path, length: int) -> list[str]:
  """Writes the files of a tokenizer for transformers.

  Args:
    tokenizer: opened from `saved`.
    saved: the folder that it was saved in.
    out: where the files go.
    length: tokens that the model was trained on at once.

  Returns:
    Sentences on what transformers will not do as here.
  """
  kind = read_json(saved / "meta.json").get("kind")
  if kind == "sentencepiece":
    shutil.copyfile(saved / "tokenizer.model", out / "tokenizer.model")
    try:
      made = _from_sentencepiece((saved / "tokenizer.model").read_bytes())
    except Exception:  # a kind of model that `tokenizers` has not; it raises bare Exception
      made = None
  elif kind == "byte":
    made = _from_bytes()
  else:
    made = _plain((saved / "tokenizer.json").read_text(encoding="utf-8"))
  if made is None or not _same_ids(made, tokenizer):
    return ["transformers' tokenizers cannot be made to give the ids of this SentencePiece model; "
            "tokenizer.model is there for the package sentencepiece, and no tokenizer.json."]
  (out / "tokenizer.json").write_text(made.to_str(pretty=True), encoding="utf-8", newline="")
  write_json(out / "tokenizer_config.json", {
      "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
      "eos_token": made.id_to_token(tokenizer.eos_id), "model_max_length": length})
  return []


def _same_ids(made: hf.Tokenizer, tokenizer: tokenizers.Tokenizer) -> bool:
  for text in _SAMPLES:
    try:
      ids, = tokenizer.encode_batch([text])
    except UserError:  # it has no token for what it does not know
      continue
    if not np.array_equal(made.encode(text).ids, ids):
      return False
  return True


def _plain(content: str) -> hf.Tokenizer:
  """A tokenizer.json without what it adds around a text: documents were encoded without."""
  made = hf.Tokenizer.from_str(content)
  made.no_truncation()
  made.no_padding()
  if made.encode("a").ids != made.encode("a", add_special_tokens=False).ids:
    fields = json.loads(made.to_str())
    fields["post_processor"] = None
    made = hf.Tokenizer.from_str(json.dumps(fields))
  return made


def _from_bytes() -> hf.Tokenizer:
  """Bytes as a byte-level BPE without merges: its ids are those of the bytes."""
  # The characters that stand for bytes: printable ones for themselves, the others in order.
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  characters = {byte: chr(byte) for byte in shown}
  for byte in range(256):
    characters.setdefault(byte, chr(256 + len(characters) - len(shown)))
  made = hf.Tokenizer(hf.models.BPE({c: byte for byte, c in characters.items()}, []))
  made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = hf.decoders.ByteLevel()
  made.add_special_tokens([_BYTE_EOS])
  return made


def _from_sentencepiece(content: bytes) -> hf.Tokenizer:
  """A SentencePiece model (BPE or unigram) as one of `tokenizers`."""
  proto = sentencepiece_model_pb2.ModelProto.FromString(content)
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  pieces = [(p.piece, p.score) for p in proto.pieces]
  kinds = {p.piece: p.type for p in proto.pieces}
  Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
  unknown = next((i for i, p in enumerate(proto.pieces) if p.type == Piece.UNKNOWN), None)
  has_bytes = any(p.type == Piece.BYTE for p in proto.pieces)
  if trainer.model_type == trainer.BPE:
    vocabulary = {piece: i for i, (piece, _) in enumerate(pieces)}
    made = hf.Tokenizer(hf.models.BPE(
        vocabulary, _merges(proto), unk_token=pieces[unknown][0], fuse_unk=True,
        byte_fallback=has_bytes))
  else:
    made = hf.Tokenizer(hf.models.Unigram(pieces, unk_id=unknown, byte_fallback=has_bytes))
  steps = []
  if normalizer.precompiled_charsmap:
    steps.append(hf.normalizers.Precompiled(normalizer.precompiled_charsmap))
  if normalizer.remove_extra_whitespaces:
    steps += [hf.normalizers.Strip(), hf.normalizers.Replace(hf.Regex(" {2,}"), " ")]
  if normalizer.add_dummy_prefix:
    steps.append(hf.normalizers.Prepend("▁"))
  steps.append(hf.normalizers.Replace(" ", "▁"))
  made.normalizer = hf.normalizers.Sequence(steps)
  decoders = [hf.decoders.Replace("▁", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse()]
  if normalizer.add_dummy_prefix:
    decoders.append(hf.decoders.Strip(" ", 1, 0))
  made.decoder = hf.decoders.Sequence(decoders)
  made.add_special_tokens([name for name, kind in kinds.items() if kind == Piece.CONTROL])
  made.add_tokens([hf.AddedToken(name, normalized=False)
                   for name, kind in kinds.items() if kind == Piece.USER_DEFINED])
  return made


def _merges(proto) -> list[tuple[str, str]]:
  """The merges of a BPE: every cut of a piece into two pieces, likeliest piece first.

  Among cuts of one score, as in runs of spaces, the one with the longest left part comes
  first, like in transformers' conversion.
  """
  Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
  ordinary = [(p.piece, p.score) for p in proto.pieces if p.type == Piece.NORMAL]
  known = {piece for piece, _ in ordinary}
  merges = []
  for piece, score in ordinary:
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in known and right in known:
        merges.append((-score, -len(left), -len(right), left, right))
  return [(left, right) for *_, left, right in sorted(merges)]


def read(directory: Path, fields: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, list[str]]:
  """The tokenizer of a model directory of transformers.

  Args:
    directory: of the model.
    fields: of its config.json.

  Returns:
    The tokenizer, and sentences on what it does otherwise than that of transformers.

  Raises:
    UserError: there is none that can be read here, or its end of sequence is not known.
  """
  named = _named_tokens(directory)
  eos = named.get("eos_token", "")
  ids = _eos_ids(directory, fields)
  path = directory / "tokenizer.json"
  if path.is_file():
    content = tokenizers.read_json_text(path)
    if not eos and ids:
      eos = hf_token(content, ids[0])
    tokenizer = tokenizers.HFTokenizer(content, str(path), eos, _EOS_FIELD)
  elif (directory / "tokenizer.model").is_file():
    path = directory / "tokenizer.model"
    tokenizer = tokenizers.SentencePieceTokenizer(
        tokenizers.read_bytes(path), str(path), eos, _EOS_FIELD)
  elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
    path = directory / "vocab.json"
    tokenizer = tokenizers.make("gpt2", str(directory), 0, (), eos)
  else:
    raise UserError(f"{directory} has no tokenizer that can be read here (tokenizer.json, "
                    "tokenizer.model, or vocab.json and merges.txt); write one by transformers' "
                    "AutoTokenizer.from_pretrained(...).save_pretrained(...), or name another by "
                    "--tokenizer=PATH.")
  return tokenizer, _differences(tokenizer, path, ids)


def open_named(path: Path) -> tuple[tokenizers.Tokenizer, list[str]]:
  """The tokenizer of `--tokenizer=PATH`: a file, a folder that a run has left, or a model's.

  Returns:
    The tokenizer, and sentences on it, as `read`.

  Raises:
    UserError: there is none, or its end of sequence is not known.
  """
  if (path / "meta.json").is_file():
    return tokenizers.load(str(path)), []
  if path.is_dir():
    config = path / "config.json"
    return read(path, read_json(config) if config.is_file() else {})
  if not path.is_file():
    raise UserError(f"--tokenizer={path} is not there; name a tokenizer.json, a .model file of "
                    "SentencePiece, or a folder with one.")
  if path.suffix == ".json":
    tokenizer = tokenizers.HFTokenizer(
        tokenizers.read_json_text(path), str(path), "", f"the {_EOS_FIELD} beside it")
  else:
    tokenizer = tokenizers.make("sentencepiece", str(path), 0, ())
  return tokenizer, _differences(tokenizer, path, ())


def hf_token(content: str, token_id: int) -> str:
  """The token of an id in a tokenizer.json; '' when there is none."""
  try:
    return hf.Tokenizer.from_str(content).id_to_token(token_id) or ""
  except BaseException as e:  # who opens it next says what is wrong
    if isinstance(e, (KeyboardInterrupt, SystemExit)):
      raise
    return ""


def _named_tokens(directory: Path) -> dict[str, str]:
  """{'eos_token': '</s>', ...} of the files beside a tokenizer."""
  found: dict[str, str] = {}
  for file in ("special_tokens_map.json", "tokenizer_config.json"):
    if (directory / file).is_file():
      fields = read_json(directory / file)
      for name in _NAMED:
        token = fields.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
          found[name] = token
  return found


def _eos_ids(directory: Path, fields: Mapping[str, Any]) -> list[int]:
  """The ids at which transformers' generation ends."""
  path = directory / "generation_config.json"
  ids = (read_json(path) if path.is_file() else {}).get("eos_token_id")
  ids = fields.get("eos_token_id") if ids is None else ids
  ids = ids if isinstance(ids, list) else [ids]
  return [i for i in ids if isinstance(i, int)]


def _differences(tokenizer, path: Path, ids: Sequence[int]) -> list[str]:
  notes = []
  if tokenizer.guesses:
    notes.append(f"{tokenizers.on_guess(tokenizer)}; to name another, set {_EOS_FIELD}.")
  others = [i for i in ids if i != tokenizer.eos_id]
  if others:
    notes.append(f"generation here ends at the token {tokenizer.eos_id} of the tokenizer; that of "
                 f"transformers ends also at {', '.join(map(str, others))}.")
  if path.name == "tokenizer.json":
    opened = hf.Tokenizer.from_str(tokenizers.read_json_text(path))
    try:
      with_special = opened.encode("a").tokens
      without = opened.encode("a", add_special_tokens=False).tokens
    except Exception:  # bare Exception of `tokenizers`: it has no token for "a", nor for unknown
      return notes
    if with_special != without:
      notes.append(f"transformers' tokenizer puts special tokens around a text ({with_special}); "
                   "the eval programs here encode texts without any.")
  return notes
