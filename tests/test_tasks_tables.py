"""Tables as programs and spreadsheets write them: headers, separators, quotes, encodings."""

import csv
import io

import pytest

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import printed, reading, registry

ROWS = [("a fine, long film; really", "1"), ('it is "bad"', "0"), ("caf\u00e9 noir", "1")]


def _rows(path, end=""):
  return [{k: v for k, v in row.items() if not k.startswith("_")}
          for row in reading.rows(f"{path}{end}", "the files")]


def _texts(path, end="", task="labelled"):
  return [(p.text, str(p.gold)) for p in registry.load(task, "train", f"{path}{end}").problems]


def _table(header, rows, **dialect):
  out = io.StringIO()
  csv.writer(out, lineterminator="\n", **dialect).writerows([header, *rows])
  return out.getvalue()


@pytest.mark.parametrize("names", [
    ("text", "label"), ("\u00e9tiquette", "label"), ("is it positive?", "label"),
    ("text", "\u00e9tiquette"), ("Text (English)", "label"), ("% sure", "label"),
    ("what the reader wrote about the film, in full: text", "label"), (" text ", " label"),
    ("Text", "LABEL"), ("#text", "label"), ("text", "stars:given"), ("Q&A", "label"),
    ("it's", "label"), ("\u6587\u672c", "\u6807\u7b7e"), ("text", "label\n(0 or 1)"),
    ("2nd text", "label"), ("text", "2024"), ("text", "_label"), ("", "label")])
@pytest.mark.parametrize("index", [None, "", "Unnamed: 0", "id"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_headers(tmp_path, names, index, kind):
  """Any header can be read by its names, with or without the index that pandas writes."""
  first = [] if index is None else [index]
  rows = [(*(str(i) for _ in first), *row) for i, row in enumerate(ROWS)]
  path = tmp_path / f"a.{kind}"
  path.write_text(_table([*first, *names], rows, delimiter=",\t"[kind == "tsv"]),
                  encoding="utf-8-sig")
  if not names[0]:  # a column without a name is left out
    assert all(set(row) <= {"label", "id", "Unnamed: 0"} for row in _rows(path))
    return
  text, label = (name.strip().replace("&", "%26") for name in names)
  assert _texts(path, f"#text={text}&label={label}") == ROWS
  if names == ("text", "label"):
    assert _texts(path) == ROWS


@pytest.mark.parametrize("header", [",text,label", "\ufeff;text;label", "Unnamed: 0,text,label"])
def test_index_columns_need_no_names(tmp_path, header):
  path = tmp_path / "a.csv"
  rows = f"{header}\n0;good film;1\n1;bad film;0\n"
  path.write_text(rows if ";" in header else rows.replace(";", ","), encoding="utf-8")
  assert _texts(path) == [("good film", "1"), ("bad film", "0")]
  assert _texts(path, task="ag_news") == [("good film", "1"), ("bad film", "0")]


def test_columns_without_names_are_numbers_to_pandas(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text(",0,1\n0,good film,1\n1,bad film,0\n")
  assert _texts(path, "#text=0&label=1") == [("good film", "1"), ("bad film", "0")]
  path.write_text(",text,label\n0,good film,1\n1,bad film,0\n")
  assert _texts(path, "#text=1&label=2") == [("good film", "1"), ("bad film", "0")]


def test_two_columns_of_one_name(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("text,text,label\na,b,1\n")
  with pytest.raises(UserError, match="a.csv, line 1: two columns are called 'text'"):
    _rows(path)


@pytest.mark.parametrize("delimiter, start", [
    (",", ""), (";", ""), ("\t", ""), (";", "sep=;\n"), ("|", "sep=|\n")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_separators_and_encodings_of_spreadsheets(tmp_path, delimiter, start, encoding, line_end):
  path = tmp_path / "a.csv"
  content = start + _table(("text", "label"), ROWS, delimiter=delimiter) + delimiter + "\n\n"
  path.write_bytes(content.replace("\n", line_end).encode(encoding))
  assert _texts(path) == ROWS


def test_header_in_quotes_alone(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_text('"text"\t"label"\nsay "no"\t1\n')
  assert _texts(path) == [('say "no"', "1")]


def test_spaces_after_commas(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('text, label\n"a, b", 1\nc, "0"\n')
  assert _texts(path) == [("a, b", "1"), ("c", "0")]


@pytest.mark.parametrize("content, expected", [
    # Bare marks, as in GLUE and SST.
    ('text\tlabel\n"what a film\t1\nhe said "no"\t0\n', ['"what a film', 'he said "no"']),
    ('text\tlabel\n"a film"\t1\nno "film"\t0\n', ['"a film"', 'no "film"']),
    ('text\tlabel\n"a film"\t1\nplain\t0\n', ['"a film"', "plain"]),
    ('text\tlabel\n"a start\t1\nan end"\t0\n', ['"a start', 'an end"']),
    ('text\tlabel\n5" disk\t1\nplain\t0\n', ['5" disk', "plain"]),
    # Written with quotes: by need, for all text, by Excel for its commas.
    ('text\tlabel\n"He said ""no"""\t1\nplain\t0\n', ['He said "no"', "plain"]),
    ('text\tlabel\n"with\ta tab"\t1\nplain\t0\n', ["with\ta tab", "plain"]),
    ('text\tlabel\n"two\nlines"\t1\nplain\t0\n', ["two\nlines", "plain"]),
    ('"text"\t"label"\n"a film"\t1\n"no"\t0\n', ["a film", "no"]),
    ('text\tlabel\n"a, b"\t1\nplain\t0\n', ["a, b", "plain"]),
])
def test_quotes_in_tsv(tmp_path, content, expected):
  path = tmp_path / "a.tsv"
  path.write_text(content)
  assert _texts(path) == list(zip(expected, ["1", "0"], strict=True))


def test_rows_are_named_by_their_line(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('text,label\n"two\nlines",1\n\nb,x\n')
  assert [row["_name"] for row in reading.rows(str(path), "f")] == ["a.csv:2", "a.csv:5"]
  with pytest.raises(UserError, match="row a.csv:5 has the label 'x'"):
    _texts(path)


@pytest.mark.parametrize("text, value", [
    ('["ice", "fire"]', ["ice", "fire"]),
    ("['ice', \"it's\"]", ["ice", "it's"]),
    ("['ice' 'fire'\n 'rain']", ["ice", "fire", "rain"]),
    ("{'text': array(['ice', 'fire'], dtype=object), 'label': array(['A', 'B'], dtype='<U1')}",
     {"text": ["ice", "fire"], "label": ["A", "B"]}),
    ("array([{'text': 'ice', 'label': 'A'}], dtype=object)", [{"text": "ice", "label": "A"}]),
    ('{"A": "x", "B": null}', {"A": "x", "B": None}),
    ("{'A': 1, 'B': None, 'C': 2.5, 'D': True}", {"A": 1, "B": None, "C": 2.5, "D": True}),
    ("[1 2 3]", [1, 2, 3]), ("[]", []), (r"['a\n\'b\'']", ["a\n'b'"]),
])
def test_printed_lists(text, value):
  assert printed.structure(text) == value


def test_printed_lists_are_what_numpy_prints():
  np = pytest.importorskip("numpy")
  for texts in (["ice", "it's", 'a "b"', "back\\slash"], ["x" * 60] * 4):
    for array in (np.array(texts, object), np.array(texts)):
      assert printed.structure(str(array)) == texts
      assert printed.structure(str({"text": array})) == {"text": texts}


@pytest.mark.parametrize("text", [
    "ice | fire", "[Study of ice.] We saw", "['ice", "{'a', 'b'}", "[ice, fire]", "[" * 10**5,
    "['" * 10**5, "[1] and [2]", "['a' ... 'b']"])
def test_other_texts_stay_texts(text):
  assert printed.structure(text) == text
