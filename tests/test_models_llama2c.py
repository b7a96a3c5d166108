"""llama2.c files against a numpy forward pass on the file itself, and on a trained model.

The trained model and its text are optional: WD_PLASTICITY_DATA names a folder that holds
checkpoints/stories260K/ (karpathy/tinyllamas) and tinystories_sample/.
"""

import lzma
import os
import pathlib
import struct

import jax
import numpy as np
import pytest

from wd_plasticity.errors import UserError
from wd_plasticity.interop import llama2c
from wd_plasticity.models import decoder, loss

_DATA = os.environ.get("WD_PLASTICITY_DATA")
needs_data = pytest.mark.skipif(not _DATA, reason="WD_PLASTICITY_DATA is not set")
HEADER = dict(width=24, ffn_width=20, layers=2, heads=4, kv_heads=2, vocab=29, length=16)


def tensor_shapes(width, ffn_width, layers, heads, kv_heads, vocab, length):
  key, half = kv_heads * (width // heads), width // heads // 2
  shapes = dict(
      embedding=(abs(vocab), width), attention_norm=(layers, width), wq=(layers, width, width),
      wk=(layers, key, width), wv=(layers, key, width), wo=(layers, width, width),
      ffn_norm=(layers, width), w1=(layers, ffn_width, width), w2=(layers, width, ffn_width),
      w3=(layers, ffn_width, width), final_norm=(width,), cos=(length, half), sin=(length, half))
  return shapes | (dict(head=(-vocab, width)) if vocab < 0 else {})


def write_random_model(path, **changes):
  header = HEADER | changes
  rng = np.random.default_rng(0)
  with open(path, "wb") as file:
    file.write(struct.pack("<7i", *header.values()))
    for shape in tensor_shapes(**header).values():
      file.write((rng.normal(size=shape) * 0.4).astype("<f4").tobytes())


def numpy_logits(path, tokens_L):
  """The forward pass of run.c in float64: neighbouring pairs of dimensions are turned."""
  data = pathlib.Path(path).read_bytes()
  header = dict(zip(HEADER, struct.unpack_from("<7i", data), strict=True))
  t, offset = {}, 28
  for name, shape in tensor_shapes(**header).items():
    t[name] = np.frombuffer(data, "<f4", int(np.prod(shape)), offset).reshape(shape).astype(float)
    offset += 4 * t[name].size
  heads, group = header["heads"], header["heads"] // header["kv_heads"]
  size, length = header["width"] // heads, len(tokens_L)
  turn = np.exp(1j * np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, size, 2) / size))

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

  def rotate(x_LxHxK):
    z = (x_LxHxK[..., 0::2] + 1j * x_LxHxK[..., 1::2]) * turn[:, None]
    return np.stack([z.real, z.imag], -1).reshape(x_LxHxK.shape)

  x = t["embedding"][tokens_L]
  for i in range(header["layers"]):
    h = norm(x, t["attention_norm"][i])
    q = rotate((h @ t["wq"][i].T).reshape(length, heads, size))
    k = rotate((h @ t["wk"][i].T).reshape(length, -1, size)).repeat(group, 1)
    v = (h @ t["wv"][i].T).reshape(length, -1, size).repeat(group, 1)
    scores = np.einsum("lhk,mhk->hlm", q, k) / np.sqrt(size)
    scores[:, ~np.tri(length, dtype=bool)] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    x = x + np.einsum("hlm,mhk->lhk", shares, v).reshape(length, -1) @ t["wo"][i].T
    h = norm(x, t["ffn_norm"][i])
    gate = h @ t["w1"][i].T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ t["w3"][i].T)) @ t["w2"][i].T
  return norm(x, t["final_norm"]) @ t.get("head", t["embedding"]).T


@pytest.mark.parametrize("vocab", [29, -29])
def test_logits_of_a_random_model(tmp_path, vocab):
  path = tmp_path / "model.bin"
  write_random_model(path, vocab=vocab)
  config, params = llama2c.read_model(path)
  assert config.tied_head == (vocab > 0) and config.vocab_size == 29
  tokens = np.random.default_rng(1).integers(29, size=13)
  got = jax.jit(decoder.logits, static_argnums=1)(params, config, tokens[None])[0]
  np.testing.assert_allclose(got, numpy_logits(path, tokens), atol=1e-4)


def test_damaged_models_are_refused(tmp_path):
  path = tmp_path / "model.bin"
  write_random_model(path)
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(UserError, match="cut short"):
    llama2c.read_model(path)
  path.write_bytes(b"\xff" * 400)
  with pytest.raises(UserError, match="not a llama2.c model"):
    llama2c.read_model(path)
  path.write_bytes(b"x")
  with pytest.raises(UserError, match="too short"):
    llama2c.read_model(path)
  with pytest.raises(UserError, match="There is no file"):
    llama2c.read_model(tmp_path / "absent.bin")


def write_tokenizer(path):
  pieces = [(b"<unk>", 0), (b"\n<s>\n", 0), (b"\n</s>\n", 0)]
  pieces += [(f"<0x{byte:02X}>".encode(), 0) for byte in range(256)]
  pieces += [(b"ab", -1), (b"bc", -2), (b"abc", -3), (b" a", -4), (b" abc", -9)]
  pieces += [(c.encode(), -20) for c in " abcé"]
  with open(path, "wb") as file:
    file.write(struct.pack("<i", 8))
    for piece, score in pieces:
      file.write(struct.pack("<fi", score, len(piece)) + piece)
  return [piece for piece, _ in pieces]


def test_tokenizer_merges_the_best_pair_first(tmp_path):
  pieces = write_tokenizer(tmp_path / "tokenizer.bin")
  tokenizer = llama2c.Tokenizer.read(tmp_path / "tokenizer.bin")
  encoded = lambda text: [pieces[i] for i in tokenizer.encode(text)]
  assert encoded("abc") == [b" abc"]  # ab (-1) goes before " a" (-4), then abc, then the space
  assert encoded("abcc ab") == [b" abc", b"c", b" ", b"ab"]
  assert encoded("a bc") == [b" a", b" ", b"bc"]
  assert encoded("é√") == [b" ", "é".encode(), b"<0xE2>", b"<0x88>", b"<0x9A>"]
  for text in ("abc a  bc\n", "é√ cab", "", " leading"):
    assert tokenizer.decode([llama2c.BOS_ID, *tokenizer.encode(text)]) == text


def test_damaged_tokenizers_are_refused(tmp_path):
  path = tmp_path / "tokenizer.bin"
  write_tokenizer(path)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match="cut short"):
    llama2c.Tokenizer.read(path)
  path.write_bytes(struct.pack("<ifi", 8, 0.0, 1) + b"a")
  with pytest.raises(UserError, match="has 1 pieces, too few"):
    llama2c.Tokenizer.read(path)


def trained():
  folder = pathlib.Path(_DATA) / "checkpoints" / "stories260K"
  config, params = llama2c.read_model(folder / "stories260K.bin")
  return folder, config, params, llama2c.Tokenizer.read(folder / "tok512.bin")


@needs_data
def test_greedy_text_of_the_model_card():
  """The card prints 256 greedy tokens; each must be our most probable one."""
  folder, config, params, tokenizer = trained()
  card = (folder / "stories260K.md").read_text(encoding="utf-8")
  text = card.split("-t 0.0\n")[1].split("\n```")[0]
  tokens = np.array([llama2c.BOS_ID, *tokenizer.encode(text)])
  assert len(tokens) == 257 and tokenizer.decode(list(tokens)) == text
  logits = decoder.logits(params, config, tokens[None, :-1])[0]
  np.testing.assert_array_equal(np.argmax(logits, -1), tokens[1:])


@needs_data
def test_cross_entropy_of_real_stories():
  """1.568 nats per token over 100 stories: BOS and the first 256 tokens of each.

  A story begins at a paragraph that begins with "Once"; its paragraphs are joined by one
  newline, as in the model's training data.
  """
  folder, config, params, tokenizer = trained()
  file = pathlib.Path(_DATA) / "tinystories_sample" / "tinystories.txt.xz"
  stories = []
  for paragraph in lzma.open(file, "rt", encoding="utf-8").read().split("\n\n"):
    if paragraph.startswith("Once") or not stories:
      stories.append(paragraph)
    else:
      stories[-1] += "\n" + paragraph
  rows_BxL, weights_BxL = np.zeros((100, 257), np.int32), np.zeros((100, 256))
  for i, story in enumerate(stories[:100]):
    tokens = [llama2c.BOS_ID, *tokenizer.encode(story.strip())][:257]
    rows_BxL[i, :len(tokens)] = tokens
    weights_BxL[i, :len(tokens) - 1] = 1

  x_BxLxD = decoder.hidden_states(params, config, rows_BxL[:, :-1])
  losses_BxL = loss.token_losses(x_BxLxD, decoder.head_kernel(params, config), rows_BxL[:, 1:])
  assert abs((losses_BxL * weights_BxL).sum() / weights_BxL.sum() - 1.568) < 2e-3
  for i in range(3):
    logits = numpy_logits(folder / "stories260K.bin", rows_BxL[i, :-1])
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(logp, rows_BxL[i, 1:, None], -1)[:, 0]
    np.testing.assert_allclose(losses_BxL[i], expected, atol=1e-4)
