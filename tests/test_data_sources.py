"""Documents from files of every kind, TFDS data sets and installed packages."""

import gzip
import io
import json
import lzma
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from wd_plasticity.data import embedded, sources
from wd_plasticity.errors import UserError

TEXTS = ["First.\r\nLine two é", "Second document", "Third 漢字"]
COMPRESS = {
    "": lambda b: b,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def encode(kind, texts, field="text"):
  if kind in (".jsonl", ".json"):
    return "".join(json.dumps({"id": 1, field: t}) + "\n" for t in texts).encode()
  if kind == ".parquet":
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.table({"id": [1] * len(texts), field: texts}), buffer)
    return buffer.getvalue()
  return texts[0].encode()


def tar(members):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as f:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      f.addfile(info, io.BytesIO(content))
  return buffer.getvalue()


def read(spec, text_field="text"):
  return list(sources.open_source("files", str(spec), text_field, "data.train").documents())


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl", ".json", ".parquet"])
def test_every_format_and_compression(tmp_path, kind, compression):
  path = tmp_path / f"a{kind}{compression}"
  path.write_bytes(COMPRESS[compression](encode(kind, TEXTS)))
  assert read(path) == (TEXTS if kind not in (".txt", ".md") else TEXTS[:1])


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.xz", "txz", "tar.zst"])
def test_tar_members_of_every_kind(tmp_path, ending):
  members = {f"folder/b{kind}{c}": COMPRESS[c](encode(kind, TEXTS))
             for kind in (".txt", ".jsonl", ".parquet") for c in COMPRESS}
  members |= {"LICENCE": b"no data", "folder/._b.txt": b"\xff\xfe"}
  compression = {"tgz": ".gz", "txz": ".xz"}.get(ending, ending.removeprefix("tar"))
  path = tmp_path / f"a.{ending}"
  path.write_bytes(COMPRESS[compression](tar(members)))
  assert read(path) == TEXTS[:1] * 4 + TEXTS * 8


def test_zst_of_several_frames(tmp_path):
  path = tmp_path / "a.txt.zst"
  path.write_bytes(COMPRESS[".zst"](b"one ") + COMPRESS[".zst"](b"two"))
  assert read(path) == ["one two"]


def test_globs_are_sorted_recursive_and_unique(tmp_path):
  (tmp_path / "x" / "y").mkdir(parents=True)
  for name in ("x/b.txt", "x/a.txt", "x/y/c.txt", "d.md"):
    (tmp_path / name).write_text(name)
  spec = f"{tmp_path}/x/**/*.txt, {tmp_path}/d.md,{tmp_path}/x/a.txt"
  assert read(spec) == ["x/a.txt", "x/b.txt", "x/y/c.txt", "d.md"]


def test_byte_order_mark_is_not_text(tmp_path):
  (tmp_path / "a.txt").write_bytes("\ufeffhello".encode())
  assert read(tmp_path / "a.txt") == ["hello"]


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".tar", ".jsonl", ".parquet"])
def test_cut_off_file_is_named(tmp_path, kind, compression):
  content = os.urandom(20000).hex()
  raw = tar({"a.txt": content.encode()}) if kind == ".tar" else encode(kind, [content])
  whole = COMPRESS[compression](raw)
  path = tmp_path / f"a{kind}{compression}"
  path.write_bytes(whole[:len(whole) // 2])
  with pytest.raises(UserError, match=rf"a\{kind}\{compression}(!a.txt)? is broken or cut off"):
    read(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.txt.zst", "a.tar", "a.parquet"])
def test_garbage_is_named(tmp_path, name):
  (tmp_path / name).write_bytes(b"this is not what the extension says" * 50)
  with pytest.raises(UserError, match=f"{name} is broken or cut off"):
    read(tmp_path / name)


def test_uncompressed_tar_cut_off(tmp_path):
  (tmp_path / "a.tar").write_bytes(tar({"a.txt": b"x" * 5000})[:3000])
  with pytest.raises(UserError, match="broken or cut off"):
    read(tmp_path / "a.tar")


def test_wrong_inputs_are_one_sentence(tmp_path):
  (tmp_path / "a.csv").write_text("x")
  (tmp_path / "a.jsonl").write_text('{"body": "x", "id": 1}\n')
  (tmp_path / "list.jsonl").write_text("[1]\n")
  (tmp_path / "bad.jsonl").write_text("{oops\n")
  (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
  (tmp_path / "a.parquet").write_bytes(encode(".parquet", TEXTS, field="body"))
  (tmp_path / "none.tar").write_bytes(tar({"a.csv": b"x"}))
  for name, message in {
      "missing*.txt": "no file matches .*missing",
      "a.csv": "a.csv has an unknown extension; known are .txt",
      "a.jsonl": "a.jsonl, line 1 has no text in a field 'text'.*body, id",
      "list.jsonl": "list.jsonl, line 1 is not a JSON object",
      "bad.jsonl": "bad.jsonl, line 1 is not JSON",
      "latin.txt": "latin.txt is not UTF-8",
      "a.parquet": "a.parquet has no text in a field 'text'.*id, body",
      "none.tar": "none.tar holds no file that can be read",
  }.items():
    with pytest.raises(UserError, match=message) as e:
      read(tmp_path / name)
    assert "\n" not in str(e.value)
  with pytest.raises(UserError, match="column 'id' holds int64, not text"):
    read(tmp_path / "a.parquet", text_field="id")
  with pytest.raises(UserError, match="data.source='s3' is unknown"):
    sources.open_source("s3", "", "text", "data.train")
  with pytest.raises(UserError, match="needs data.train"):
    sources.open_source("files", " ", "text", "data.train")


def test_docstrings_in_source_order_without_importing():
  source = b'''"""Module."""
raise RuntimeError("must not run")
class A:
  """Class."""
  if True:
    def f(self):
      """  Indented,

        more."""
    async def g(self): "Async."
def h():
  x = """No docstring."""
  try:
    def inner():
      "Inner."
  except ValueError:
    def other(): "Other."
'''
  assert embedded.docstrings(source).split("\n\n") == [
      "Module.", "Class.", "Indented,", "more.", "Async.", "Inner.", "Other."]
  assert embedded.docstrings(b"def broken(:") == ""
  assert embedded.docstrings(b"\x00") == ""
  assert embedded.docstrings(b"x = 1") == ""


def test_embedded_corpus_is_ordered_and_real():
  files = embedded.module_files()
  assert files == embedded.module_files()
  names = [name for name, _ in files]
  assert {"json.decoder", "numpy.__init__", "optax.__init__"} <= set(names)
  by_name = dict(files)
  text, = embedded.documents([("json.decoder", by_name["json.decoder"])])
  assert text.startswith("Implementation of JSONDecoder")
  assert "Simple JSON <https://json.org> decoder" in text


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  import tensorflow_datasets as tfds

  class TinyCorpus(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(
              {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(20), "test": self._generate_examples(3)}

    def _generate_examples(self, n):
      for i in range(n):
        yield i, {"text": f"document {i} é", "label": i % 2}

  builder = TinyCorpus(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
  builder.download_and_prepare()
  return os.fspath(builder.data_path)


def read_tfds(spec, text_field="text"):
  return list(sources.open_source("tfds", spec, text_field, "data.train").documents())


def test_tfds_folder_without_tensorflow(tfds_folder):
  assert sorted(read_tfds(tfds_folder)) == sorted(f"document {i} é" for i in range(20))
  assert sorted(read_tfds(f"{tfds_folder}:test")) == [f"document {i} é" for i in range(3)]
  assert len(read_tfds(f"{tfds_folder}:train[:50%],{tfds_folder}:test")) == 13
  assert len(read_tfds(f"{tfds_folder}:train[5:]+test")) == 18
  source = sources.open_source("tfds", tfds_folder, "text", "data.train")
  assert any(label.endswith("dataset_info.json") for label, _ in source.files)


def test_tfds_mistakes(tfds_folder, tmp_path):
  with pytest.raises(UserError, match="no text in a field 'body'.*text"):
    read_tfds(tfds_folder, "body")
  with pytest.raises(UserError, match="'label' holds"):
    read_tfds(tfds_folder, "label")
  with pytest.raises(UserError, match="split 'dev'.*train"):
    read_tfds(f"{tfds_folder}:dev")
  with pytest.raises(UserError, match="no dataset_info.json"):
    read_tfds(str(tmp_path))
  with pytest.raises(UserError, match="does not exist"):
    read_tfds(str(tmp_path / "none"))
  with pytest.raises(UserError, match="TFDS knows no data set 'no_such_set'"):
    read_tfds("no_such_set:train")


def test_tfds_name_needs_tensorflow(monkeypatch, tmp_path):
  find_spec = sources.embedded.importlib.util.find_spec
  monkeypatch.setattr("importlib.util.find_spec",
                      lambda name, *a: None if name == "tensorflow" else find_spec(name, *a))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match="needs TensorFlow; install it"):
    read_tfds("ag_news_subset")
