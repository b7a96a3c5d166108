"""Rows of every kind of file, and what is refused."""

import gzip
import json
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import reading, registry

ROWS = [{"text": 'He said "no", twice', "label": 0}, {"text": "quite\u00e9 good", "label": 1}]


def _rows(path, end=""):
  return [{k: v for k, v in row.items() if not k.startswith("_")}
          for row in reading.rows(f"{path}{end}", "the files")]


def _write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def _as_text(kind):
  if kind == "jsonl":
    return "\n".join(map(json.dumps, ROWS)) + "\n\n"
  if kind == "json":
    return json.dumps(ROWS, indent=1)
  if kind == "csv":
    return 'text,label\n"He said ""no"", twice",0\nquite\u00e9 good,1\n'
  return 'text\tlabel\nHe said "no", twice\t0\nquite\u00e9 good\t1\n'


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
@pytest.mark.parametrize("ending, compress", [
    ("", bytes), (".gz", gzip.compress), (".xz", lzma.compress),
    (".zst", lambda b: bytes(pa.compress(b, "zstd", asbytes=True)))])
def test_text_formats_and_compressions(tmp_path, kind, ending, compress):
  if ending == ".zst":
    zstandard = pytest.importorskip("zstandard")
    compress = zstandard.compress
  path = _write(tmp_path / f"a.{kind}{ending}", compress(_as_text(kind).encode()))
  got = [{**row, "label": int(row["label"])} for row in _rows(path)]
  assert got == ROWS


def test_parquet(tmp_path):
  table = pa.Table.from_pylist([{**row, "options": ["a", "b"]} for row in ROWS])
  pa.parquet.write_table(table, tmp_path / "a.parquet")
  assert _rows(tmp_path / "a.parquet") == [{**row, "options": ["a", "b"]} for row in ROWS]


def test_json_objects_of_every_layout(tmp_path):
  assert _rows(_write(tmp_path / "one.json", json.dumps({"problem": "p", "level": "1"}))) == [
      {"problem": "p", "level": "1"}]
  assert _rows(_write(tmp_path / "lines.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": 1}, {"a": 2}]
  named = _write(tmp_path / "named.json", json.dumps({"11": {"q": 1}, "12": {"q": 2}}, indent=1))
  assert [row["_name"] for row in reading.rows(str(named), "the files")] == ["11", "12"]


def test_tables_without_header(tmp_path):
  path = _write(tmp_path / "a.csv", '"3","Title","A, b"\n"4","Other","c"\n')
  assert _rows(path) == [{"0": "3", "1": "Title", "2": "A, b"},
                         {"0": "4", "1": "Other", "2": "c"}]
  # Read by number, even a first row that looks like names is data.
  path = _write(tmp_path / "b.tsv", "good\tpositive\nbad\tnegative\n")
  assert _rows(path, "#text=0&label=1&labels=negative|positive") == [
      {"0": text, "1": name, "text": text, "label": label,
       "label_names": ("negative", "positive")}
      for text, name, label in (("good", "positive", 1), ("bad", "negative", 0))]


def test_folders_and_polarity_files(tmp_path):
  for name in ("neg", "pos"):
    (tmp_path / name).mkdir()
    _write(tmp_path / name / "1.txt", f"a {name} review")
    _write(tmp_path / f"rt.{name}", f"{name} one\n{name} two\n".encode("latin-1"))
  _write(tmp_path / "neg" / "23", b"caf\xe9, no extension")
  got = list(reading.rows(f"{tmp_path}/*/*", "the files"))
  assert [(r["text"], r["_folder"]) for r in got] == [
      ("a neg review", "neg"), ("caf\u00e9, no extension", "neg"), ("a pos review", "pos")]
  assert [r["label"] for r in _rows(f"{tmp_path}/rt.*")] == [0, 0, 1, 1]


@pytest.mark.parametrize("text", [
    "{sigh} what a film", "{", "{}{}", '{"a": ' + "7" * 5000 + "}", "{" * 10**5,
    '{"a": ' + "[" * 10**5, "  {1} is better than {2}", "[a]", '{"a": 1} is JSON', "7", "\u00e9{"])
@pytest.mark.parametrize("name", ["pos/a.txt", "pos/a"])
def test_texts_that_begin_like_json_are_texts(tmp_path, text, name):
  (tmp_path / "pos").mkdir()
  path = _write(tmp_path / name, text)
  assert [row["text"] for row in reading.rows(str(path), "f")] == [text]
  for task in ("imdb", "rotten_tomatoes"):
    (problem,) = registry.load(task, "test", str(path)).problems
    assert (problem.text, problem.gold) == (text.strip(), 1)


def test_texts_that_are_json_are_rows(tmp_path):
  passage = {"article": "a {b}", "questions": ["q"], "options": [["x", "y"]], "answers": ["B"]}
  for text in (json.dumps(passage), json.dumps(passage, indent=1), f"\n{json.dumps(passage)}\n"):
    assert _rows(_write(tmp_path / "a.txt", text)) == [passage]
  assert _rows(_write(tmp_path / "a.txt", f"{json.dumps(passage)}\n{json.dumps(passage)}")) == [
      passage, passage]


def test_lines_of_polarity_files_end_at_line_ends_only(tmp_path):
  lines = ["a\x85b", "c\x1cd\x0ce", "", "\xa0f"]  # \x85 is three dots in Windows' encoding
  for end in ("\n", "\r\n"):
    path = _write(tmp_path / "rt.pos", (end.join(lines) + end).encode("latin-1"))
    assert [row["text"] for row in _rows(path)] == lines
  assert _rows(_write(tmp_path / "rt.neg", "")) == []


def test_utf16_that_says_so(tmp_path):
  assert _rows(_write(tmp_path / "a.txt", "caf\u00e9".encode("utf-16"))) == [{"text": "caf\u00e9"}]
  assert _rows(_write(tmp_path / "a.tsv", "text\tlabel\ncaf\u00e9\t1\n".encode("utf-16"))) == [
      {"text": "caf\u00e9", "label": "1"}]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.large_string(),
                                  pa.dictionary(pa.int32(), pa.string())])
def test_text_as_parquet_stores_it(tmp_path, kind):
  texts = pa.array(["a", "\u00e9", "a"]).cast(kind)
  pa.parquet.write_table(pa.table({"text": texts, "label": [0, 1, 0]}), tmp_path / "a.parquet")
  problems = registry.load("labelled", "train", str(tmp_path / "a.parquet")).problems
  assert [p.text for p in problems] == ["a", "\u00e9", "a"]


def test_bytes_that_are_no_text(tmp_path):
  table = pa.table({"text": [b"a", b"\xe9"], "label": [0, 1], "image": [b"\xff", b"\xff"]})
  pa.parquet.write_table(table, tmp_path / "a.parquet")
  with pytest.raises(UserError, match="row a.parquet:2 holds bytes that are not UTF-8"):
    registry.load("labelled", "train", str(tmp_path / "a.parquet"))


def test_rows_are_named_by_line_or_row(tmp_path):
  names = lambda path: [row["_name"] for row in reading.rows(str(path), "f")]
  assert names(_write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')) == ["a.jsonl:1", "a.jsonl:3"]
  assert names(_write(tmp_path / "a.json", '[{"a": 1}, {"a": 2}]')) == ["a.json:1", "a.json:2"]
  pa.parquet.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
  assert names(tmp_path / "a.parquet") == ["a.parquet:1", "a.parquet:2"]


def test_tfds(tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")

  class TinyQuestions(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      letters = tfds.features.ClassLabel(names=["A", "B"])
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          "question": tfds.features.Text(), "answerKey": letters,
          "choices": tfds.features.Sequence({"text": tfds.features.Text(), "label": letters})}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(3):
        yield i, {"question": f"q{i}", "answerKey": "B",
                  "choices": {"text": ["x", "y"], "label": ["A", "B"]}}

  builder = TinyQuestions(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  got = sorted(_rows(f"tfds:{builder.data_path}:train"), key=lambda r: r["question"])
  assert got == [{"question": f"q{i}", "answerKey": 1,
                  "choices": {"text": ["x", "y"], "label": [0, 1]}} for i in range(3)]
  assert len(_rows(f"tfds:{builder.data_path}:train[:2]")) == 2
  with pytest.raises(UserError, match="test"):
    _rows(f"tfds:{builder.data_path}:test")


def test_numpy_values_become_python_values():
  value = {"a": np.int64(3), "b": np.array([b"x", b"y"], object), "c": [np.float32(0.5)]}
  assert reading._plain(value) == {"a": 3, "b": ["x", "y"], "c": [0.5]}


@pytest.mark.parametrize("name, content, message", [
    ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON"),
    ("a.jsonl", "[1]\n", "not a JSON object"),
    ("a.json", "{", "not JSON"),
    ("a.csv", "text,label\na,1\nb\n", "line 3 has 1 cells and not 2"),
    ("a.csv", 'text,label\n"a,1\n', "not CSV"),
    ("a.jsonl.gz", "not gzip", "broken or cut off"),
    ("a.parquet", "not parquet", "broken or cut off"),
    ("a.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
    ("a.docx", "x", "unknown extension"),
    ("a.jsonl", '{"a": 1}\n{"a": ' + "7" * 5000 + "}\n", "a.jsonl, line 2 holds a whole number"),
    ("a.json", '{"a":\n ' + "7" * 5000 + "}", "a.json holds a whole number of more digits .*4300"),
    ("a.jsonl", '{"a": 1}\n{"a": ' + "[" * 10**5 + "\n", "line 2 holds lists or objects"),
    ("a.json", "[" * 10**5, "a.json holds lists or objects"),
    ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', r"a.jsonl is not UTF-8 text \(line 2, byte 8 of it"),
    ("a.json", b'[{"a": 1},\n{"a": "\xe9"}]\n', r"a.json is not UTF-8 text \(line 2, byte 8 of it"),
    ("a.csv", b"text,label\na,1\n\xe9,2\n", r"a.csv is not UTF-8 text \(line 3, byte 1 of it"),
    ("a.tsv", b"text\tlabel\n\xe9\t2", r"a.tsv is not UTF-8 text \(line 2, byte 1 of it"),
    ("a.json", "[1, 2]", "a.json, entry 1 is not a JSON object but int"),
    ("a.json", '"text"', "a.json, entry 1 is not a JSON object but str"),
    ("a.json", '{"a": 1}\n[2]\n', "a.json, line 2 is not a JSON object"),
    ("a.json.gz", b"\x1f\x8b\x08", "broken or cut off"),
])
def test_broken_files(tmp_path, name, content, message):
  path = _write(tmp_path / name, content)
  with pytest.raises(UserError, match=message):
    list(reading.rows(str(path), "the files"))


@pytest.mark.parametrize("end, message", [
    ("#text=review", "no column 'review'; it has 'text', 'label'"),
    ("#text", "not of the form name=column"),
    ("#labels=bad|good", "label 'fair', which is not one of bad\\|good"),
    ("#count_from=2", "count_from=2 .* must be 0 or 1"),
])
def test_column_mistakes(tmp_path, end, message):
  path = _write(tmp_path / "a.csv", "text,label\nx,fair\n")
  with pytest.raises(UserError, match=message):
    list(reading.rows(f"{path}{end}", "the files"))


def test_missing_files(tmp_path):
  with pytest.raises(UserError, match="the files: no file matches"):
    list(reading.rows(str(tmp_path / "*.csv"), "the files"))
  with pytest.raises(UserError, match="not given"):
    list(reading.rows(" ", "the files"))


def test_column():
  assert reading.column({"a": None, "b": 0}, "a", "b") == 0
  with pytest.raises(UserError, match="no 'x' or 'y'; it has 'a'.*#x=COLUMN"):
    reading.column({"a": 1, "_name": "f:0"}, "x", "y")
  with pytest.raises(UserError, match=r"row f:3 has no value in 'text' \(null\)"):
    reading.column({"text": None, "_name": "f:3"}, "text")
  assert reading.column({"c.text": [1], "c.label": [2]}, "c") == {"text": [1], "label": [2]}


@pytest.mark.parametrize("value, number", [
    (3, 3), (3.0, 3), ("3", 3), (" 3.0 ", 3), ("-1", -1), ("3.", 3), (np.int64(3), 3), (3.5, None),
    ("3.5", None), ("", None), ("-", None), ("\u00b2", None), ("\u0663", None), (True, None),
    (None, None), ("1" * 5000, None), (float("nan"), None), ("1e3", None), ("0x1", None)])
def test_whole(value, number):
  assert reading.whole(value) == number
