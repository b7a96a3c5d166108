"""The same problems from every kind of file and layout; what cannot be told is refused or said."""

import csv
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import registry

MESSAGE = "From: a@b.c\nArticle-I.D.: x.1\nSubject: s\n folded\n\nOne paragraph.\n\nTwo."
ARC = [{"id": f"q{i}", "question": f"Which, {i}?", "answerKey": "AB"[i % 2], "choices": {
    "text": ["ice, cold", 'a "fire"'], "label": ["A", "B"]}} for i in range(3)]
LETTERS = [{"question": f"q {i}?", "options": ["x, y", "it's"], "answer": "AB"[i % 2],
            "question_id": i, "src": "s", "cot_id": 0,
            "cot_content": f"The answer is {'AB'[i % 2]}."}
           for i in range(4)]
SENTIMENT = [{"sentence": 'a "fine", film', "label": 1}, {"sentence": "bad; really", "label": 0}]
MATH = [{"problem": "p, q", "level": "Level 1", "solution": "so $1,000$: \\boxed{\\frac{1}{2}}"},
        {"problem": "p", "level": "Level 2", "solution": "so \\boxed{3}"}]
# Of each task a split and rows of it.
SPLITS = {
    "ag_news": ("train", [{"title": "Oil", "description": 'up, "again"', "label": 2},
                          {"title": "War", "description": "ends", "label": 0}]),
    **{name: ("train", ARC) for name in ("arc_easy", "arc_challenge", "openbookqa",
                                         "commonsenseqa")},
    "boolq": ("train", [{"passage": "Rain, wet.", "question": "is it", "answer": True},
                        {"passage": "Sun.", "question": "is it", "answer": False}]),
    "gsm8k": ("test", [{"question": "How many?", "answer": "2+3=<<2+3=5>>5, so\n#### 1,005"},
                       {"question": "And?", "answer": "#### 2"}]),
    "hellaswag": ("train", [
        {"ind": i, "activity_label": "Baking", "ctx_a": "[header] Mix, [title] now.",
         "ctx_b": ["the dough", None][i], "endings": ["it rises [x].", "it's off"], "label": str(i)}
        for i in range(2)]),
    "imdb": ("train", SENTIMENT), "sst2": ("train", SENTIMENT), "rotten_tomatoes": ("train",
                                                                                    SENTIMENT),
    "labelled": ("train", [{"text": "a, b", "label": 1}, {"text": 'say "c"', "label": 3}]),
    "medmcqa": ("test", [{"id": f"m{i}", "question": "Which?", "opa": "x, y", "opb": "z",
                          "opc": "5", "opd": None, "cop": i} for i in range(1, 5)]),
    "metamathqa": ("math_level1", MATH), "simplescaling": ("math", MATH),
    "mmlu_pro_cot": ("train", LETTERS),
    "newsgroups": ("train", [{"text": MESSAGE, "label_text": "sci.space", "label": 14},
                             {"text": "x", "label_text": "alt.atheism", "label": 0}]),
    "piqa": ("train", [{"goal": "Boil, fast", "sol1": "heat", "sol2": 'the "ice"', "label": i}
                       for i in range(2)]),
    "pubmedqa": ("test", [
        {"pubid": 11 + i, "question": "Is it?", "long_answer": "It is.", "final_decision": "maybe",
         "context": {"contexts": ["One, two.", "It's three."], "labels": ["A", "B"]}}
        for i in range(2)]),
    "race": ("train", [{"example_id": f"h{i}", "article": "It rains, a lot.", "question": "Wet?",
                        "options": ["fire", "rain, it's"], "answer": "AB"[i]} for i in range(2)]),
    "winogrande": ("train", [{"sentence": "The cup fell, as the _ was big.", "option1": "cup",
                              "option2": "tray", "answer": str(i)} for i in (1, 2)]),
}


def _cell(value, lists):
  if value is None:
    return ""
  if isinstance(value, list) and lists == "numpy":
    return str(np.array(value, object))
  if isinstance(value, dict) and lists == "numpy":
    return str({k: np.array(v, object) for k, v in value.items()})
  if isinstance(value, (list, dict)) and lists == "json":
    return json.dumps(value)
  return str(value)


def _write(path, rows, lists="python"):
  """A file of `rows`; tables hold lists as JSON or as Python or NumPy prints them."""
  if path.suffix == ".jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  elif path.suffix == ".json":
    path.write_text(json.dumps(rows, indent=1))
  elif path.suffix == ".parquet":
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
  else:
    with open(path, "w", newline="", encoding="utf-8-sig") as f:
      table = csv.writer(f, delimiter="\t" if path.suffix == ".tsv" else ",")
      table.writerow(["", *rows[0]])
      table.writerows([i, *(_cell(v, lists) for v in row.values())] for i, row in enumerate(rows))
  return str(path)


def _load(path, rows, name, split, end="", **options):
  return registry.load(name, split, _write(path, rows) + end, **options)


def test_every_task_has_rows_here():
  assert set(SPLITS) == {name for name in registry.names() if not registry.get(name).embedded}


@pytest.mark.parametrize("name", SPLITS)
def test_same_problems_from_every_kind_of_file(tmp_path, name):
  split, rows = SPLITS[name]
  expected = _load(tmp_path / "a.jsonl", rows, name, split)
  assert expected.count == (1 if split.startswith("math_") else
                            2 if name == "mmlu_pro_cot" else len(rows))
  for kind in ("json", "parquet"):
    assert _load(tmp_path / f"a.{kind}", rows, name, split).problems == expected.problems
  for kind in ("csv", "tsv"):
    for lists in ("json", "python", "numpy"):
      path = _write(tmp_path / f"a.{kind}", rows, lists)
      assert registry.load(name, split, path).problems == expected.problems


@pytest.mark.parametrize("name", SPLITS)
def test_whole_numbers_as_fractions(tmp_path, name):
  """A column with a gap is one of floating-point numbers: 1.0 is the label 1."""
  split, rows = SPLITS[name]
  expected = _load(tmp_path / "a.jsonl", rows, name, split).problems
  as_floats = [{k: float(v) if isinstance(v, int) and not isinstance(v, bool)
                else v for k, v in row.items()} for row in rows]
  for kind in ("jsonl", "csv", "parquet"):
    assert _load(tmp_path / f"b.{kind}", as_floats, name, split).problems == expected


LABEL_COLUMNS = {"boolq": "answer", "winogrande": "answer", "medmcqa": "cop", "race": "answer",
                 "mmlu_pro_cot": "answer", "pubmedqa": "final_decision",
                 **{n: "answerKey" for n in ("arc_easy", "arc_challenge", "openbookqa",
                                             "commonsenseqa")}}
GENERATED = ("gsm8k", "metamathqa", "simplescaling")


@pytest.mark.parametrize("name", [n for n in SPLITS if n not in GENERATED])
@pytest.mark.parametrize("hidden", [-1, "-1", "", None, -1.0, "?", 99, "\u00b2", "1" * 5000])
def test_hidden_and_wrong_labels_are_refused(tmp_path, name, hidden):
  split, rows = SPLITS[name]
  column = LABEL_COLUMNS.get(name, "label")
  if name == "newsgroups":
    rows = [{"text": row["text"], "label": row["label"]} for row in rows]
  if name == "labelled" and hidden == 99:
    return  # has as many classes as its labels say
  rows = [*rows[:-1], {**rows[-1], column: hidden}]
  with pytest.raises(UserError, match=r"row .*a\.jsonl:\d|a\.jsonl, line \d"):
    _load(tmp_path / "a.jsonl", rows, name, split)


# Where numbers begin.

@pytest.mark.parametrize("numbers, golds", [
    ([0, 1, 2, 3], "ABCD"), ([1, 2, 3, 4], "ABCD"), ([4, 1], "DA"), ([0, 3], "AD"),
    ([1, 2, 2], None), ([3], None), ([0, 4], None), ([0, -1], None), ([5, 1], None)])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_origin_of_medmcqa(tmp_path, numbers, golds, kind):
  rows = [{"question": "Which?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": n}
          for n in numbers]
  load = lambda end="": [p.answer for p in _load(tmp_path / f"a.{kind}", rows, "medmcqa", "test",
                                                 end).problems]
  if golds:
    assert load() == list(golds)
  else:
    with pytest.raises(UserError, match=rf"row a\.{kind}:\d"):
      load()
  if numbers == [1, 2, 2]:
    assert load("#count_from=0") == ["B", "C", "C"]
    assert load("#count_from=1") == ["A", "B", "B"]


@pytest.mark.parametrize("numbers, golds", [
    ("12", [0, 1]), ("13", [0, 2]), ("03", None), ("01", [0, 1]), ("1", None), ("11", None)])
@pytest.mark.parametrize("column", ["answerKey", "answer"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_origin_of_answers_to_plain_options(tmp_path, numbers, golds, column, kind):
  rows = [{"question": "q", "choices": ["snow", "fire"] + ["ice"] * (n in "3"), column: n}
          for n in numbers]
  if golds is None:
    with pytest.raises(UserError, match=rf"row a\.{kind}:\d"):
      _load(tmp_path / f"a.{kind}", rows, "arc_easy", "train")
    if numbers == "1":
      assert _load(tmp_path / f"a.{kind}", rows, "arc_easy", "train",
                   "#count_from=1").problems[0].gold == 0
  else:
    found = _load(tmp_path / f"a.{kind}", rows, "arc_easy", "train").problems
    assert [p.gold for p in found] == golds


def test_answers_that_are_numbers_or_texts(tmp_path):
  def golds(options, *answers):
    rows = [{"question": "q", "choices": options, "answer": a} for a in answers]
    return [p.response for p in _load(tmp_path / "a.jsonl", rows, "arc_easy", "train").problems]
  assert golds(["snow", "fire"], "fire", "snow") == ["fire", "snow"]
  assert golds(["6", "7", "8"], "7") == ["7"]  # as an index it names none
  assert golds(["1", "2", "3"], "2") == ["2"]  # from 1, index and text are the same
  with pytest.raises(UserError, match="row a.jsonl:1 gives .* as 2, which may be the text"):
    golds(["2", "4", "6"], "2")


@pytest.mark.parametrize("name, rows, gold, said", [
    ("sst2", [{"text": "x", "label": 1}], 1, "0 or 2.*from 0"),
    ("sst2", [{"text": "x", "label": 1}, {"text": "x", "label": 2}], 0, ""),
    ("sst2", [{"text": "x", "label": 1}, {"text": "x", "label": 0}], 1, ""),
    ("ag_news", [{"text": "x", "label": 1}, {"text": "x", "label": 4}], 0, ""),
    ("ag_news", [{"text": "x", "label": 1}, {"text": "x", "label": 3}], 1, "0 or 4.*from 0"),
    ("piqa", [{"goal": "g", "sol1": "a", "sol2": "b", "label": n} for n in (1, 2)], 0, ""),
    ("winogrande", [{"sentence": "_ x", "option1": "a", "option2": "b", "answer": n}
                    for n in ("1", "0")], 1, ""),
    ("winogrande", [{"sentence": "_ x", "option1": "a", "option2": "b", "label": n}
                    for n in (1, 2)], 0, ""),
    ("winogrande", [{"sentence": "_ x", "option1": "a", "option2": "b", "answer": "1"}], 0,
     "0 or 2.*from 1"),
])
def test_origin_of_classes_is_told_or_said(tmp_path, name, rows, gold, said):
  loaded = _load(tmp_path / "a.jsonl", rows, name, "train")
  assert loaded.problems[0].gold == gold
  assert re.search(said, loaded.note) if said else "count from" not in loaded.note
  if name == "sst2" and said:
    loaded = _load(tmp_path / "a.jsonl", rows, name, "train", "#count_from=1")
    assert loaded.problems[0].gold == 0 and "count from" not in loaded.note


def test_named_labels_that_are_numbers(tmp_path):
  def golds(labels, values):
    rows = [{"text": "x", "label": v} for v in values]
    return [p.response for p in _load(tmp_path / "a.csv", rows, "labelled", "train",
                                      f"#labels={labels}").problems]
  assert golds("bad|good", [1, 2]) == ["bad", "good"]
  assert golds("bad|good", [1, 0]) == ["good", "bad"]
  assert golds("1|2|3", [1, 3.0]) == ["1", "3"]
  for labels, values in (("bad|good", [0, 5]), ("1|2|3", [1, 0]), ("bad|good", [0, -1])):
    with pytest.raises(UserError, match=f"a.csv.* label '{values[1]}'"):
      golds(labels, values)


def test_headers_of_the_original_ag_news(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("Class Index,Title,Description\n1,War,ends\n4,Chip,works\n")
  end = "#label=Class Index&title=Title&description=Description"
  assert [p.answer for p in registry.load("ag_news", "train", f"{path}{end}").problems] == [
      "World", "Sci/Tech"]


# Options in other layouts.

@pytest.mark.parametrize("row", [
    {"options": {"A": "fire", "B": "rain"}, "answer": "B"},
    {"options": {"B": "rain", "A": "fire", "C": None}, "answer": "B"},
    {"options": {"a": "fire", "b": "rain"}, "answer": "b"},
    {"options": {"A": "fire", "B": "rain"}, "answer_idx": "B", "answer": "rain"},
    {"options": {"A": "fire", "B": "rain"}, "answer_idx": "B"},
    {"options": ["fire", "rain"], "answer_index": 1},
    {"options": {"A": "fire", "B": "rain"}, "answer": "(B)"},
    {"choices.text": ["fire", "rain"], "choices.label": ["A", "B"], "answerKey": "B"},
    {"choices": [{"text": "fire", "label": "A"}, {"text": "rain", "label": "B"}],
     "answerKey": "B"},
    {"A": "fire", "B": "rain", "answer": "B"}, {"option_A": "fire", "option_B": "rain",
                                                "answer": "B"},
    {"choices": ["fire", "rain"], "gold": 1}, {"choices": ["fire", "rain"], "answer": "rain"},
])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_layouts_of_options(tmp_path, row, kind):
  (problem,) = _load(tmp_path / f"a.{kind}", [{"question": "Wet?", **row}], "arc_easy",
                     "train").problems
  assert problem.options[:2] == ("fire", "rain") and problem.response == "rain"
  assert len(problem.options) == 2 or kind == "csv"  # tables cannot leave options out


@pytest.mark.parametrize("options", [
    "fire, rain", "A) fire B) rain", "[fire, rain]", ["fire", None], {"text": ["fire"],
                                                                      "label": ["A", "B"]},
    {"first": "fire", "second": "rain"}, {"AB": "fire", "": "rain"}, 7, [], [["fire"], ["rain"]],
    {"text": ["fire", "rain"], "label": "AB"}, [{"text": "fire", "label": "A"}, "rain"]])
def test_options_that_are_no_list(tmp_path, options):
  for name in ("arc_easy", "race", "mmlu_pro_cot"):
    row = {"question": "Wet?", "article": "a", "options": options, "answer": "A", "src": "s",
           "question_id": 1, "cot_content": "c"}
    with pytest.raises(UserError, match="row a.jsonl:1 has"):
      _load(tmp_path / "a.jsonl", [row] * 2, name, "train")


def test_letter_columns_by_number(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("Which is wet?,fire,rain,sand,sun,B\n")
  (problem,) = registry.load(
      "arc_easy", "train", f"{path}#question=0&A=1&B=2&C=3&D=4&answer=5").problems
  assert problem.response == "rain" and problem.options == ("fire", "rain", "sand", "sun")


@pytest.mark.parametrize("context", [
    "X helped. It did.", ["X helped.", "It did."], {"contexts": ["X helped.", "It did."]},
    json.dumps(["X helped.", "It did."]), "['X helped.' 'It did.']",
    {"contexts": "['X helped.', 'It did.']"}])
def test_contexts_of_pubmedqa(tmp_path, context):
  row = {"pubid": 1, "question": "Does X?", "context": context, "long_answer": "It does.",
         "final_decision": "Yes"}
  (problem,) = _load(tmp_path / "a.jsonl", [row], "pubmedqa", "test").problems
  assert problem.prompt.endswith("Abstract: X helped. It did.") and problem.answer == "yes"


@pytest.mark.parametrize("name, row", [
    ("labelled", {"text": ["a", "b"], "label": 1}),
    ("gsm8k", {"question": {"a": 1}, "answer": "1"}),
    ("sst2", {"sentence": None, "label": 1}), ("piqa", {"goal": ["x"], "sol1": "a", "sol2": "b",
                                                        "label": 0})])
def test_lists_and_nulls_are_no_text(tmp_path, name, row):
  with pytest.raises(UserError, match="row a.jsonl:1 (holds a|has no value in)"):
    _load(tmp_path / "a.jsonl", [row], name, "train")


def test_a_column_that_is_named_comes_first(tmp_path):
  rows = [{"sentence": "old", "review": "new", "label": 1}]
  (problem,) = _load(tmp_path / "a.jsonl", rows, "sst2", "train", "#text=review").problems
  assert problem.text == "new"
  rows = [{"title": "old", "body": "new", "label": 1}]
  (problem,) = _load(tmp_path / "a.jsonl", rows, "ag_news", "train", "#text=body").problems
  assert problem.text == "new"


# Answers.

@pytest.mark.parametrize("row, answer", [
    ({"question": "q", "answer": 7}, "7"), ({"question": "q", "answer": "204"}, "204"),
    ({"question": "q", "answer": "1,204.5"}, "1,204.5"),
    ({"question": "q", "answer": "3/4"}, "3/4"),
    ({"question": "q", "answer": "$18"}, "$18"), ({"question": "q", "answer": "\\frac{1}{2}"},
                                                  "\\frac{1}{2}"),
    ({"question": "q", "answer": "the answer is not 5.\n#### 3"}, "3"),
    ({"question": "q", "answer": "#### is a mark\n#### 3."}, "3"),
    ({"question": "q", "answer": "so \\boxed{4}"}, "4"),
    ({"question": "q", "answer": "#### Step 1\nSo \\boxed{4}"}, "4"),
    ({"question": "q", "answer": "#### In the end\nThe answer is 4."}, "4"),
    ({"question": "q", "solution": "So 4.", "answer": 4}, "4"),
    ({"question": "q", "answer": "<<1+1=2>>2\n#### 2", "solution": "x"}, "2"),
    ({"problem": "q", "gt_solution": "So it is.", "gt_answer": 12}, "12"),
])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_answers_of_word_problems(tmp_path, row, answer, kind):
  (problem,) = _load(tmp_path / f"a.{kind}", [row], "gsm8k", "test").problems
  assert problem.prompt == "q" and problem.answer == answer
  if "<<" not in str(row.get("answer")):
    assert problem.response == str(row.get("solution", row.get("gt_solution", row.get("answer"))))


@pytest.mark.parametrize("name, split", [("metamathqa", "math"), ("simplescaling", "math_level2")])
@pytest.mark.parametrize("row, answer", [
    ({"solution": "so $\\boxed{\\frac{1}{2}}$"}, "\\frac{1}{2}"),
    ({"solution": "so it is half", "answer": "\\frac{1}{2}"}, "\\frac{1}{2}"),
    ({"solution": "so it is a pair", "answer": "(1, 2)"}, "(1, 2)"),
    ({"gt_solution": "so it is half", "gt_answer": "(1, 2)"}, "(1, 2)"), ({"answer": 204}, "204")])
def test_answers_of_math(tmp_path, name, split, row, answer):
  row = {"problem": "p", "level": 2, **row}
  assert _load(tmp_path / "a.jsonl", [row], name, split).problems[0].answer == answer


def test_answers_that_cannot_be_found_are_counted_and_left_out(tmp_path):
  rows = [{"question": f"q{i}", "answer": "3 + 4 = 7. She has 7." if i < 2 else f"#### {i}"}
          for i in range(5)]
  loaded = _load(tmp_path / "a.jsonl", rows, "gsm8k", "test")
  assert [p.answer for p in loaded.problems] == ["2", "3", "4"] and loaded.count == 3
  assert "no answer can be found in 2 of 5 problems of gsm8k test (the first is 0)" in loaded.note
  with pytest.raises(UserError, match="no answer can be found in 2 of 2 problems of gsm8k test"):
    _load(tmp_path / "a.jsonl", rows[:2], "gsm8k", "test")
  train = _load(tmp_path / "a.jsonl", rows, "gsm8k", "train")
  assert train.count == 5 and "no answer" not in train.note  # learnt, not graded
  train = _load(tmp_path / "a.csv", [*rows, {"question": "q", "answer": ""}], "gsm8k", "train")
  assert train.count == 5
  assert "in 1 of 6 problems of gsm8k train the response is empty" in train.note
  with pytest.raises(UserError, match="in 1 of 1 .* the response is empty"):
    _load(tmp_path / "a.csv", [{"question": "q", "answer": ""}], "gsm8k", "train")


def test_mmlu_pro_with_its_answers_in_a_column(tmp_path):
  rows = [{"problem": "Wet?\nA. fire\nB. rain\nC. sand", "gt_solution": "It is (B).",
           "gt_answer": "B"}, {"problem": "Dry?", "gt_solution": "s", "gt_answer": "(c)"},
          {"problem": "Dry?", "gt_solution": "s", "gt_answer": "none"}]
  loaded = _load(tmp_path / "a.jsonl", rows, "mmlu_pro_cot", "test")
  assert [(p.answer, p.gold, len(p.options)) for p in loaded.problems] == [("B", 1, 3),
                                                                           ("C", -1, 0)]
  assert "1 of 3 problems of mmlu_pro_cot test" in loaded.note


@pytest.mark.parametrize("end", ["The answer is (B).", "The answer is B.", "the answer is **B**",
                                 "The answer is B", "\\boxed{B}", "The answer is: (B)"])
def test_mmlu_pro_keeps_rows_that_reach_the_right_letter(tmp_path, end):
  rows = [{**row, "answer": "B", "cot_content": f"Thinking. {end}"} for row in LETTERS]
  assert len(_load(tmp_path / "a.jsonl", rows, "mmlu_pro_cot", "train").problems) == 2
  rows = [{**row, "answer": "A", "cot_content": f"Thinking. {end}"} for row in LETTERS]
  with pytest.raises(UserError, match="hold no problem"):
    _load(tmp_path / "a.jsonl", rows, "mmlu_pro_cot", "train")


# Keys, and the choice of some problems.

def test_equal_ids_are_told_apart(tmp_path):
  rows = [{**ARC[0], "id": name, "question": f"q{i}"} for i, name in enumerate(
      ["u1", "u1", "u1#2", "u1", "", None, "u2"])]
  keys = [p.key for p in _load(tmp_path / "a.jsonl", rows, "arc_easy", "train").problems]
  assert keys == ["u1", "u1#3", "u1#2", "u1#4", "4", "5", "u2"]
  again = _write(tmp_path / "b.jsonl", ARC)
  loaded = registry.load("arc_easy", "train", f"{again},{_write(tmp_path / 'c.jsonl', ARC)}",
                         max_problems=4)
  assert len({p.key for p in loaded.problems}) == len(loaded.problems) == 4


def test_subset_of_sorted_problems_holds_all_classes(tmp_path):
  """A part of a split is not its beginning, which in an archive is all of one class."""
  rows = [{"text": f"x{i}", "label": int(i >= 400)} for i in range(800)]
  problems = _load(tmp_path / "a.jsonl", rows, "imdb", "test").problems
  chosen = registry.subset(problems, 256, seed=0)
  assert 90 < sum(p.gold for p in chosen) < 166
  assert [p for p in problems if p in chosen] == chosen
  assert {p.key for p in registry.subset(problems, 64, seed=0)} < {p.key for p in chosen}
  assert registry.subset(problems[::-1], 256, seed=0) == chosen[::-1]
  assert registry.subset(problems, 0, seed=0) == problems == registry.subset(problems, 999, 0)
