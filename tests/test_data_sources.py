"""Documents from files of every kind, TFDS data sets and installed packages."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
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
    ".bz2": bz2.compress,
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


@pytest.mark.parametrize(
    "ending", ["tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "tar.zst"])
def test_tar_members_of_every_kind(tmp_path, ending):
  members = {f"folder/b{kind}{c}": COMPRESS[c](encode(kind, TEXTS))
             for kind in (".txt", ".jsonl", ".parquet") for c in COMPRESS}
  members |= {"LICENCE": b"no data", "folder/._b.txt": b"\xff\xfe"}
  compression = {"tgz": ".gz", "tbz2": ".bz2", "txz": ".xz"}.get(ending, ending.removeprefix("tar"))
  path = tmp_path / f"a.{ending}"
  path.write_bytes(COMPRESS[compression](tar(members)))
  assert read(path) == TEXTS[:1] * 5 + TEXTS * 10


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


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
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


TEXT_COLUMNS = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
    pa.binary_view(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.binary())]


@pytest.mark.parametrize("kind", TEXT_COLUMNS, ids=str)
def test_every_column_of_text_is_text(tmp_path, kind):
  column = pa.array([TEXTS[0], None, TEXTS[2], TEXTS[0]], pa.string()).cast(
      pa.binary() if "binary" in str(kind) else pa.string())
  column = column.dictionary_encode().cast(kind) if "dict" in str(kind) else column.cast(kind)
  pa.parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
  stored = pa.parquet.read_schema(tmp_path / "a.parquet").field("text").type
  assert stored == kind or "view" in str(kind) or "dict" in str(kind)
  assert read(tmp_path / "a.parquet") == [TEXTS[0], "", TEXTS[2], TEXTS[0]]


def test_null_is_an_empty_document_in_every_format(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": null}\n{"text": "y"}\n')
  pa.parquet.write_table(pa.table({"text": ["x", None, "y"]}), tmp_path / "a.parquet")
  pa.parquet.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "none.parquet")
  assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.parquet") == ["x", "", "y"]
  assert read(tmp_path / "none.parquet") == ["", ""]


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
  lines = [b'{"text": "a"}', b"", b'{"text": "caf\xe9"}', b'{"text": "b"}']
  for name in ("a.jsonl", "a.txt", "a.md.gz"):
    content = b"\n".join(lines)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=rf"{name} is not UTF-8 text \(line 3, byte 14 of it"):
      read(tmp_path / name)
  pa.parquet.write_table(pa.table({"text": pa.array([b"a"] * 300 + [b"caf\xe9"])}),
                         tmp_path / "a.parquet")
  with pytest.raises(UserError, match=r"a.parquet, row 300 \(from 0\): column 'text' is not UTF-8"):
    read(tmp_path / "a.parquet")


@pytest.mark.parametrize("line,message", [
    ('{"text": "x", "n": ' + "1" * 5000 + "}", "line 2 holds a whole number of more digits"),
    ('{"text": "x", "n": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2 .*nested too deeply"),
    ('{"text": "x", "n": }', "line 2 is not JSON"),
    ('{"text": ["x"], "body": "y", "n": 1}', "line 2: field 'text' holds list, not text; "
     "set data.text_field to one of body[.]"),
    ('{"text": 1, "n": 1}', "line 2: field 'text' holds int, not text; write text there"),
    ('{"body": "x"}', "line 2 has no text in a field 'text'; set data.text_field to one of body"),
])
def test_a_line_that_cannot_be_read_is_one_sentence(tmp_path, line, message):
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line + "\n")
  with pytest.raises(UserError, match=rf"a\.jsonl, {message}") as e:
    read(tmp_path / "a.jsonl")
  assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_another_column_is_only_proposed_when_it_holds_text(tmp_path):
  table = {"text": [1], "id": [2], "body": ["x"], "raw": [b"x"], "list": [["x"]]}
  pa.parquet.write_table(pa.table(table), tmp_path / "a.parquet")
  with pytest.raises(UserError, match="column 'text' holds int64, not text; set data.text_field to "
                                      "one of body, raw[.]$"):
    read(tmp_path / "a.parquet")


def test_parquet_that_was_changed_since_it_was_written(tmp_path):
  pa.parquet.write_table(pa.table({"text": ["some words"] * 50}), tmp_path / "a.parquet",
                         use_dictionary=False, compression="none", write_page_checksum=True)
  content = (tmp_path / "a.parquet").read_bytes()
  assert read(tmp_path / "a.parquet") == ["some words"] * 50
  (tmp_path / "a.parquet").write_bytes(content.replace(b"some words", b"some wards"))
  with pytest.raises(UserError, match="a.parquet is broken or cut off"):
    read(tmp_path / "a.parquet")


def test_folders_and_brackets_in_paths(tmp_path):
  (tmp_path / "lr[1e-3]").mkdir()
  (tmp_path / "lr[1e-3]" / "a.txt").write_text("x")
  assert read(tmp_path / "lr[1e-3]" / "a.txt") == read(tmp_path / "lr[1e-3]" / "*.txt") == ["x"]
  with pytest.raises(UserError, match=r"lr\[1e-3\] is a folder; name the files in it"):
    read(tmp_path / "lr[1e-3]")


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
  source = sources.open_source("files", str(tmp_path / "a.jsonl"), "text", "data.train")
  (tmp_path / "a.jsonl").unlink()
  with pytest.raises(UserError, match="a.jsonl cannot be read .No such file"):
    list(source.documents())


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
      return {"train": self._generate_examples(20), "test": self._generate_examples(3),
              "latin": self._generate_examples(4)}

    def _generate_examples(self, n):
      for i in range(n):
        text = f"document {i} é" if n != 4 else b"caf\xe9"
        yield i, {"text": text, "label": i % 2}

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


def test_tfds_text_that_is_not_utf8_is_named_by_record(tfds_folder):
  with pytest.raises(UserError, match=r"tiny_corpus/1.0.0:latin, record 0 \(from 0\) is not UTF-8"):
    read_tfds(f"{tfds_folder}:latin")


@pytest.mark.parametrize("damage", ["half", "most", "empty", "missing", "info"])
def test_tfds_files_that_are_damaged(tfds_folder, tmp_path, damage):
  """Of a file cut after its first block array_record reads as many records, of nothing."""
  folder = tmp_path / "tiny_corpus" / "1.0.0"
  shutil.copytree(tfds_folder, folder)
  path, = folder.glob("*-test.*")
  size = path.stat().st_size
  if damage == "missing":
    path.unlink()
  elif damage == "info":
    os.truncate(folder / "dataset_info.json", 40)
  else:
    os.truncate(path, {"half": size // 2, "most": size - 9, "empty": 0}[damage])
  message = "is not a prepared TFDS data set" if damage == "info" else "is broken or cut off"
  with pytest.raises(UserError, match=message) as e:
    read_tfds(f"{folder}:test")
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("spec", ["no such set", "a/b/c/d", "imdb_reviews/plain_text:9.9.9"])
def test_tfds_names_that_cannot_be(spec):
  with pytest.raises(UserError, match="data.train: TFDS (cannot open|knows no)") as e:
    read_tfds(spec)
  assert "\n" not in str(e.value)


def test_tfds_split_without_a_record(tfds_folder):
  with pytest.raises(UserError, match="there is no record in .*:train\\[:0\\]"):
    read_tfds(f"{tfds_folder}:train[:0]")


def test_tfds_name_needs_tensorflow(monkeypatch, tmp_path):
  find_spec = sources.embedded.importlib.util.find_spec
  monkeypatch.setattr("importlib.util.find_spec",
                      lambda name, *a: None if name == "tensorflow" else find_spec(name, *a))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match="needs TensorFlow; install it"):
    read_tfds("ag_news_subset")
