"""Files that spell more than they hold, or numbers that are none, are refused before any work."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile

import model_directory
import numpy as np
import pytest
import sentencepiece
import zstandard
from safetensors.numpy import save_file

from wd_plasticity.data import archives, sources, tokenizers
from wd_plasticity.errors import UserError
from wd_plasticity.interop import import_, llama2c, transformers_files
from wd_plasticity.reward import model as reward_model
from wd_plasticity.tasks import reading

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
            ".zst": zstandard.compress}


def texts(path):
  return list(sources.FileSource([str(path)], "text").documents())


# Archives and compression.


def tar(path, **members):
  with tarfile.open(path, "w") as archive:
    for name, content in members.items():
      info = tarfile.TarInfo(name.replace("_", "."))
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return path


def test_three_archives_within_each_other_are_read_and_four_are_not(tmp_path):
  path = tar(tmp_path / "1.tar", a_txt=b"a text")
  for depth in (2, 3):
    path = tar(tmp_path / f"{depth}.tar", inner_tar=path.read_bytes())
  assert texts(path) == ["a text"]
  path = tar(tmp_path / "4.tar", inner_tar=path.read_bytes())
  with pytest.raises(UserError, match="4.tar!inner.tar!inner.tar!inner.tar is an archive within 3"):
    texts(path)


def test_links_in_archives_are_not_followed(tmp_path):
  secret = tmp_path / "secret.txt"
  secret.write_text("secret")
  with tarfile.open(tmp_path / "a.tar", "w") as archive:
    for name, kind, target in (("a.txt", tarfile.SYMTYPE, str(secret)),
                               ("b.txt", tarfile.LNKTYPE, "../secret.txt"),
                               ("c.txt", tarfile.FIFOTYPE, ""), ("d.txt", tarfile.CHRTYPE, "")):
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, target
      archive.addfile(info)
    for name in ("/etc/absolute.txt", "../../outside.txt"):
      info = tarfile.TarInfo(name)
      info.size = 1
      archive.addfile(info, io.BytesIO(b"x"))
  before = sorted(tmp_path.iterdir())
  assert texts(tmp_path / "a.tar") == ["x", "x"]
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("end", COMPRESS)
def test_what_is_decompressed_is_held_piece_by_piece(end):
  """64 MB of zeros in a few kB: no more than a piece of it is there at once."""
  size = 1 << 26
  made = COMPRESS[end](bytes(size))
  assert len(made) < size // 100
  f = archives._Decompressed(io.BytesIO(made), end)
  buffer, read, largest = bytearray(1 << 16), 0, 0
  while n := f.readinto(buffer):
    read, largest = read + n, max(largest, len(f._content))
  assert read == size and largest <= 33 << 20


@pytest.mark.parametrize("end", ["", *COMPRESS])
@pytest.mark.parametrize("name, message", [
    ("a.jsonl", r"a.jsonl\S*, line 2 has more than 1,024 bytes; part it"),
    ("a.txt", r"a.txt\S* has more than 4,096 bytes, more than is read at once; part it")])
def test_lines_and_files_without_end(tmp_path, monkeypatch, end, name, message):
  monkeypatch.setattr(archives, "LONGEST_LINE", 1024)
  monkeypatch.setattr(archives.whole, "__defaults__", (4096,))
  path = tmp_path / f"{name}{end}"
  path.write_bytes(COMPRESS.get(end, bytes)(b'{"text": "a"}\n' + b'{"text": "' + b"a" * 9000))
  with pytest.raises(UserError, match=message):
    texts(path)
  if end != ".bz2" or name.endswith(".jsonl"):
    with pytest.raises(UserError, match=message):
      list(reading.rows(str(path), "sources.x.train"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_without_end(tmp_path, kind):
  info = tarfile.TarInfo("a.txt")
  info.type, info.size = kind, 1 << 33
  (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
  with pytest.raises(UserError, match="a.tar is broken or cut off .a header that has no end"):
    texts(tmp_path / "a.tar")


# Weights.


def damaged(directory, tensor, value, shards=False):
  tensors = model_directory.write(directory)
  tensors[tensor].reshape(-1)[-1] = value
  if shards:
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    for i, those in enumerate((names[:5], names[5:]), 1):
      save_file({n: tensors[n] for n in those}, directory / f"model-0000{i}-of-00002.safetensors")
  else:
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("tensor, value, shards", [
    ("model.embed_tokens.weight", np.nan, False),
    ("model.layers.1.mlp.down_proj.weight", np.inf, True),
    ("model.norm.weight", -np.inf, False)])
def test_weights_that_are_not_finite_are_not_imported(tmp_path, tensor, value, shards):
  damaged(tmp_path / "model", tensor, value, shards)
  with pytest.raises(UserError, match=rf"tensor {tensor} holds numbers that are not finite"):
    import_.import_model(import_.Request(tmp_path / "model", tmp_path / "w", "a", 0.1),
                         lambda line: None)
  assert not (tmp_path / "w" / "members" / "a").exists()  # nothing is taken for a member


def test_a_reward_model_that_is_not_finite(tmp_path):
  import reward_directory
  tensors = reward_directory.write(tmp_path)
  tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = np.nan
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(UserError, match="layers.0.mlp.up_proj.weight holds numbers that are not"):
    reward_model.load_reward_model(tmp_path)


def llama2c_file(path, sizes=(8, 12, 1, 2, 2, 10, 4), value=1.0, count=None):
  if count is None:
    count = 10 * 8 + 8 + 4 * 64 + 8 + 3 * 96 + 8 + 2 * 4 * 2
  path.write_bytes(struct.pack("<7i", *sizes) + np.full(count, value, "<f4").tobytes())
  return path


def test_llama2c_numbers_and_sizes(tmp_path):
  path = tmp_path / "a.bin"
  llama2c.read_model(llama2c_file(path))
  with pytest.raises(UserError, match="a.bin: the tensor embedding holds numbers that are not fin"):
    llama2c.read_model(llama2c_file(path, value=np.nan))
  largest = 2**31 - 1
  for sizes in ((largest - 1, largest, largest, 2, 2, largest, largest), (6, 12, 1, 2, 2, 10, 4),
                (8, 12, 1, 2, 2, -(2**31), 4), (8, 12, 1, 4, 3, 10, 4), (-8, 12, 1, 2, 2, 10, 4)):
    with pytest.raises(UserError, match=r"a.bin (has \d+ bytes where|is not a llama2.c model)"):
      llama2c.read_model(llama2c_file(path, sizes))


def header(path, fields, length=None, data=b""):
  text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
  path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.mark.parametrize("fields, length", [
    ({"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}, None),
    ({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}, None),
    ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, None),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, None),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, None),
    ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, None),
    ({"a": 3}, None), ({}, 1 << 62), ({}, (1 << 64) - 1), ({}, 10**9), (b"[" * 100_000, None)])
def test_headers_of_absurd_sizes(tmp_path, fields, length):
  model_directory.write(tmp_path)
  header(tmp_path / "model.safetensors", fields, length, bytes(4))
  with pytest.raises(UserError, match="model.safetensors is damaged or cut short") as e:
    transformers_files.read_directory(tmp_path)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("changes, message", [
    ({"architectures": {"a": 1}}, "holds the architecture {'a': 1}, which is not known"),
    ({"architectures": None}, "which is not known"), ({"architectures": [None]}, "not known"),
    ({"architectures": [["LlamaForCausalLM"]]}, "not known"),
    ({"num_hidden_layers": 10**9}, "fewer than its config.json says .* layers .1000000000"),
    ({"num_hidden_layers": 10**30}, "num_hidden_layers=1000.* is larger than that of any model"),
    ({"vocab_size": 10**9}, r"embed_tokens.weight has the shape \(300, 24\)"),
    ({"vocab_size": "300"}, "vocab_size='300' is not a whole number"),
    ({"hidden_size": None}, "lacks a field that is needed, hidden_size"),
    ({"hidden_size": [24]}, "hidden_size=.24. is not a whole number"),
    ({"hidden_size": 24.0}, "hidden_size=24.0 is not a whole number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps=NaN .* is not a number above 0"),
    ({"rope_theta": float("inf")}, "rope_theta=Infinity"),
    ({"model_type": ["llama"]}, "model_type"), ({"eos_token_id": {"a": 1}}, ""),
    ({"max_position_embeddings": True}, "max_position_embeddings"),
    ({"layer_types": 3}, "layer_types=3"), ({"rope_scaling": "x"}, "rope_scaling")])
def test_config_of_absurd_values(tmp_path, changes, message):
  model_directory.write(tmp_path / "model")
  path = tmp_path / "model" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  request = import_.Request(tmp_path / "model", tmp_path / "w", "a", 0.1)
  if message:
    with pytest.raises(UserError, match=message) as e:
      import_.import_model(request, lambda line: None)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "w" / "members").exists()
  else:
    import_.import_model(request, lambda line: None)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/a.safetensors", "..", ".", "", "a/b", 3,
                                   None, "gone.safetensors", "a\0b"])
def test_an_index_names_files_beside_it(tmp_path, shard):
  model_directory.write(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
  with pytest.raises(UserError, match="index.json") as e:
    transformers_files.read_directory(tmp_path)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("change", [
    {"meta": None}, {"meta": []}, {"format_version": 2}, {"meta.step": "1"}, {"meta.step": 0},
    {"meta.config": 3}, {"meta.config.data": []}, {"meta.config.seed": "0"},
    {"meta.config.data.sequence_length": -1}, {"meta.weight_decay": float("nan")},
    {"meta.tokens": None}, {"meta.tokenizer_fingerprint": 3}, {"meta.config.optim": "x"}])
def test_the_record_of_an_export_is_checked(tmp_path, change):
  meta = {"weight_decay": 0.1, "step": 1, "steps": 1, "tokens": 1, "tokenizer_fingerprint": "",
          "data_fingerprint": "", "config": {"seed": 0, "data": {"sequence_length": 8}}}
  record = {"format": import_.FORMAT, "format_version": 1, "meta": meta}
  path = tmp_path / import_.OWN_FOLDER / import_.OWN_FILE
  path.parent.mkdir()
  path.write_text(json.dumps(record))
  assert import_._own_record(tmp_path) == meta
  for name, value in change.items():
    *parents, last = name.split(".")
    branch = record
    for part in parents:
      branch = branch[part]
    branch[last] = value
  path.write_text(json.dumps(record))
  with pytest.raises(UserError, match="checkpoint.json is not a record that this code can read"):
    import_._own_record(tmp_path)


# Tokenizers.


def hf_json(vocabulary):
  return json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
                     "normalizer": None, "pre_tokenizer": None, "post_processor": None,
                     "decoder": None, "model": {"type": "WordLevel", "vocab": vocabulary,
                                                "unk_token": "<eos>"}})


def test_tokenizers_without_a_token_or_with_a_billion(tmp_path):
  for vocabulary, message in (({}, "it has no token"), ({"<eos>": 0, "a": 10**9}, "1,000,000,000")):
    (tmp_path / "tokenizer.json").write_text(hf_json(vocabulary))
    with pytest.raises(UserError, match=f"is not a tokenizer.json .*{message}"):
      tokenizers.make("json", str(tmp_path / "tokenizer.json"), 0, ())
  for size in (10**9, 10**30):
    with pytest.raises(UserError, match="vocab_size=.* is too large"):
      tokenizers.make("bpe", "", size, ["a text"])


def test_sentencepiece_without_a_piece(tmp_path):
  from sentencepiece import sentencepiece_model_pb2
  proto = sentencepiece_model_pb2.ModelProto()
  proto.trainer_spec.vocab_size = 10**9
  for content in (b"", proto.SerializeToString(), b"\n\x00"):
    (tmp_path / "a.model").write_bytes(content)
    with pytest.raises(UserError, match="a.model is not a SentencePiece model"):
      tokenizers.make("sentencepiece", str(tmp_path / "a.model"), 0, ())
  assert sentencepiece.__version__
