"""Reads models and tokenizers in the formats of llama2.c (version 0, float32).

Formats: export.py (`legacy_export`) and tokenizer.py of github.com/karpathy/llama2.c.
All numbers are little-endian. A model file is seven int32 (width, feed-forward width,
layers, heads, key/value heads, vocabulary, longest sequence), then float32 tensors, each
stacked over layers, linear weights as [outputs, inputs]. A negative vocabulary says that
the head is not tied.
"""

import functools
import math
import os
import re
import struct
from typing import Any

import numpy as np

from wd_plasticity.errors import UserError
from wd_plasticity.models.config import ModelConfig

BOS_ID = 1
_FIRST_BYTE_ID = 3  # ids 3..258 stand for the bytes 0..255


def read_model(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, Any]]:
  """A trained model of llama2.c.

  Args:
    path: of the .bin file.

  Returns:
    Its configuration (plain float32 computation) and parameters as numpy arrays, named as
    in docs/architecture.md.

  Raises:
    UserError: the file is absent, or not of this format.
  """
  data = _read(path)
  if len(data) < 28:
    raise UserError(f"{path} is too short for a llama2.c model; copy it again.")
  width, ffn_width, num_layers, num_heads, num_kv_heads, vocab, length = struct.unpack_from(
      "<7i", data)
  if min(width, ffn_width, num_layers, num_heads, num_kv_heads, length) <= 0 or not vocab or (
      width % num_heads or width // num_heads % 2 or num_heads % num_kv_heads):
    raise UserError(f"{path} is not a llama2.c model of version 0 (its header makes no sense); "
                    "export it by the legacy format of its export.py.")
  config = ModelConfig(
      num_layers=num_layers, width=width, num_heads=num_heads, num_kv_heads=num_kv_heads,
      head_dim=width // num_heads, ffn_width=ffn_width, vocab_size=abs(vocab),
      norm_position="pre", qk_norm=False, rope_theta=10_000.0, norm_eps=1e-5,
      tied_head=vocab > 0, init="scaled", compute_dtype="float32", attention="auto",
      document_mask=False, scan_layers=True, remat="none")
  head_dim, key_size = config.head_dim, num_kv_heads * config.head_dim
  shapes = {
      "embedding": (config.vocab_size, width),
      "attention_norm": (num_layers, width),
      "query": (num_layers, width, width),
      "key": (num_layers, key_size, width),
      "value": (num_layers, key_size, width),
      "output": (num_layers, width, width),
      "feed_forward_norm": (num_layers, width),
      "gate": (num_layers, ffn_width, width),
      "down": (num_layers, width, ffn_width),
      "up": (num_layers, ffn_width, width),
      "final_norm": (width,),
      "rope": (2, length, head_dim // 2),  # tables that run.c passes over too
  }
  if not config.tied_head:
    shapes["head"] = (config.vocab_size, width)
  expected = 28 + 4 * sum(map(math.prod, shapes.values()))
  if len(data) != expected:
    raise UserError(f"{path} has {len(data)} bytes where its header asks for {expected}; "
                    "it is cut short or not of version 0 in float32, so copy or export it again.")
  tensors, offset = {}, 28
  for name, shape in shapes.items():
    count = math.prod(shape)
    tensors[name] = np.frombuffer(data, "<f4", count, offset).reshape(shape).astype(np.float32)
    offset += 4 * count
    if name != "rope" and not np.isfinite(tensors[name]).all():
      raise UserError(f"{path}: the tensor {name} holds numbers that are not finite (NaN or "
                      "infinity); copy it again, or take an earlier checkpoint.")
  tensors["query"] = _half_split(tensors["query"], head_dim)
  tensors["key"] = _half_split(tensors["key"], head_dim)

  kernel = lambda name: {"kernel": np.ascontiguousarray(np.swapaxes(tensors[name], -1, -2))}
  scale = lambda name: {"scale": tensors[name]}
  params = {
      "embed": {"embedding": tensors["embedding"]},
      "layers": {
          "attention_norm": scale("attention_norm"),
          "attention": {name: kernel(name) for name in ("query", "key", "value", "output")},
          "feed_forward_norm": scale("feed_forward_norm"),
          "feed_forward": {name: kernel(name) for name in ("gate", "up", "down")},
      },
      "final_norm": scale("final_norm"),
  }
  if not config.tied_head:
    params["head"] = kernel("head")
  return config, params


def _half_split(weight_NxOxI: np.ndarray, head_dim: int) -> np.ndarray:
  """Reorders each head's outputs: llama2.c turns the pairs (2i, 2i+1), we turn (i, i + K/2)."""
  layers, outputs, inputs = weight_NxOxI.shape
  pairs = weight_NxOxI.reshape(layers, outputs // head_dim, head_dim // 2, 2, inputs)
  return np.swapaxes(pairs, 2, 3).reshape(weight_NxOxI.shape)


class Tokenizer:
  """A SentencePiece BPE vocabulary as llama2.c stores it: per token a score and its bytes."""

  def __init__(self, pieces: list[bytes], scores: list[float]):
    self.pieces = pieces
    self.scores = scores
    self._ids: dict[bytes, int] = {}
    for i, piece in enumerate(pieces):
      self._ids.setdefault(piece, i)
    # Where no piece has a space but at its start, merges cannot cross from word to word.
    self._words_are_separate = all(b" " not in piece[1:] for piece in pieces)
    self._encode_word = functools.lru_cache(maxsize=65536)(self._merge)

  @classmethod
  def read(cls, path: str | os.PathLike) -> "Tokenizer":
    """Reads a tokenizer .bin: int32 longest piece, then (float32 score, int32 length, bytes).

    Raises:
      UserError: the file is absent or not of this format.
    """
    data = _read(path)
    pieces, scores, offset = [], [], 4
    while offset < len(data):
      if offset + 8 > len(data):
        raise UserError(f"{path} is not a llama2.c tokenizer, or is cut short; copy it again.")
      score, size = struct.unpack_from("<fi", data, offset)
      offset += 8 + size
      if size < 0 or offset > len(data):
        raise UserError(f"{path} is not a llama2.c tokenizer, or is cut short; copy it again.")
      pieces.append(data[offset - size:offset])
      scores.append(score)
    if len(pieces) <= _FIRST_BYTE_ID + 255:
      raise UserError(f"{path} has {len(pieces)} pieces, too few for a llama2.c tokenizer; "
                      "copy it again.")
    return cls(pieces, scores)

  def encode(self, text: str) -> list[int]:
    """Token ids of `text` without BOS; a space is put before the text, as in training.

    Characters (or the bytes of unknown ones) are merged pairwise, best score first.
    """
    text = " " + text if text else ""
    if self._words_are_separate:
      return [i for word in re.findall(r"^[^ ]+| [^ ]*", text) for i in self._encode_word(word)]
    return self._merge(text)

  def _merge(self, text: str) -> list[int]:
    ids = []
    for character in text:
      encoded = character.encode("utf-8")
      if encoded in self._ids:
        ids.append(self._ids[encoded])
      else:
        ids.extend(_FIRST_BYTE_ID + byte for byte in encoded)
    while True:
      best_score, best_place, best_id = -np.inf, -1, -1
      for place in range(len(ids) - 1):
        merged = self._ids.get(self.pieces[ids[place]] + self.pieces[ids[place + 1]])
        if merged is not None and self.scores[merged] > best_score:
          best_score, best_place, best_id = self.scores[merged], place, merged
      if best_place < 0:
        return ids
      ids[best_place:best_place + 2] = [best_id]

  def decode(self, ids: list[int]) -> str:
    """The text of token ids; what precedes the text's first character in training is removed."""
    text = b""
    for i in ids:
      if _FIRST_BYTE_ID <= i < _FIRST_BYTE_ID + 256:
        text += bytes([i - _FIRST_BYTE_ID])
      elif i >= _FIRST_BYTE_ID:
        text += self.pieces[i]
    return text.decode("utf-8", errors="replace").removeprefix(" ")


def _read(path) -> bytes:
  try:
    with open(path, "rb") as file:
      return file.read()
  except FileNotFoundError:
    raise UserError(f"There is no file {path}; check the path.") from None
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror}); copy it again.") from e
