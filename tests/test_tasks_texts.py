"""Texts as users have them: headers of messages, labels of folders, what takes long to match."""

import ast
import email
import importlib
import pathlib
import pkgutil
import re

import pytest

import wd_plasticity
from wd_plasticity import tasks
from wd_plasticity.errors import UserError
from wd_plasticity.tasks import registry


def problems(name, rows, split="train"):
  return list(registry.get(name).problems(iter(rows), split))


def one(name, row, split="train"):
  (problem,) = problems(name, [row], split)
  return problem


MESSAGES = [
    "From: a@b.c\nSubject: s\n\nOne.\n\nTwo.\n\nThree.",
    "Article-I.D.: x.123\nFrom: a@b.c\nNewsgroups: sci.space\n\n    Indented.\n\n  More: x\n",
    "Subject: s\n folded\n\tfolded again\nX_Y/z.1: v\nFrom: a\n\n\nBody: with a colon\n",
    "Path: a!b\r\nFrom: a@b.c\r\n\r\n\r\nA table\r\n   1  2\r\n\r\n   3  4\r\n",
    "Xref: a b:1\nSubject: only a header\n\n",
    "From: a@b.c\nX-Empty:\nLines: 1\n\n" + "    indented\n" * 30 + "\nend"]


@pytest.mark.parametrize("message", MESSAGES)
def test_newsgroups_read_the_body_of_a_message(message):
  """The same as the standard library reads from it."""
  body = email.message_from_string(message.replace("\r\n", "\n")).get_payload()
  assert one("newsgroups", {"text": message, "_folder": "sci.space"}).text == (body.strip() or " ")


@pytest.mark.parametrize("text", [
    "No header here.\n\nTwo.", "Note: this is a text.\n\nTwo.", "In article <a>, b writes:\n\nTwo.",
    ": x\n\nFrom: a", "A sentence: From: a\n\nTwo.", "\n\nFrom: a"])
def test_newsgroups_keep_texts_without_header(text):
  assert one("newsgroups", {"text": text, "_folder": "sci.space"}).text == text.strip()
  # A row with a label is a text, whatever it looks like.
  row = {"text": MESSAGES[0], "label": 14}
  assert one("newsgroups", row).text == MESSAGES[0]


def test_a_folder_is_the_label_of_text_files_alone(tmp_path):
  (tmp_path / "pos").mkdir()
  path = tmp_path / "pos" / "a.jsonl"
  path.write_text('{"text": "x", "id": 3}\n')
  with pytest.raises(UserError, match="row a.jsonl:1 has no 'label'; it has 'text', 'id'"):
    registry.load("imdb", "train", str(path))
  path.write_text('{"text": "x", "label": null}\n')
  with pytest.raises(UserError, match="row a.jsonl:1 has no value in 'label'"):
    registry.load("imdb", "train", str(path))


def _patterns():
  """The regular expressions that users' text meets, with the files that hold them."""
  package, found = pathlib.Path(wd_plasticity.__file__).parent, {}
  for folder in ("tasks", "data", "finetuning", "generation", "report", "reward"):
    for path in sorted((package / folder).glob("*.py")):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
          pattern = node.args[0] if node.args else None
          if isinstance(pattern, ast.Constant) and isinstance(pattern.value, str):
            found[pattern.value] = f"{path.name}:{node.lineno}"
  for module in pkgutil.iter_modules(tasks.__path__):  # those that are put together of parts
    held = vars(importlib.import_module(f"{tasks.__name__}.{module.name}"))
    found |= {value.pattern: f"{module.name}.{name}" for name, value in held.items()
              if isinstance(value, re.Pattern)}
  return [pytest.param(pattern, id=where) for pattern, where in found.items()]


UNITS = ("a", " ", "a ", "A. ", "a: ", "\n", " x\n", "a: b\n", "1", "1,", "-1.", "[", "<<", "'",
         "\\", "{", "=", "_", "*", "\\'", "answer is ", "$")


@pytest.mark.parametrize("pattern", _patterns())
def test_no_pattern_backtracks_without_end(pattern):
  """With nested repetition, a search in one of these would take longer than the universe lasts."""
  pattern = re.compile(pattern, re.DOTALL)
  for unit in UNITS:
    for end in ("", "\0", "x", "1", "}"):
      text = unit * 200 + end
      pattern.search(text)
      pattern.fullmatch(text)


LONG = 100_000
ADVERSARIAL = {
    "brackets": "[" * LONG, "marks": "<<" * LONG, "half marks": "<<1" * LONG, "spaces": " " * LONG,
    "spaced": "Answer: A" + " " * LONG + "x", "answers": "Answer: " * LONG,
    "indented": "From: a\nb: c\n" + " x\n" * LONG, "fields": "a: b\n" * LONG,
    "empty lines": "From: a\n" + "\n" * LONG, "quotes": '"' * LONG, "apostrophes": "['" * LONG,
    "braces": "{" * LONG, "boxes": "\\boxed{" * LONG, "commas": "1," * LONG, "dots": ". " * LONG,
    "underscores": "_" * LONG, "hashes": "####" * LONG, "words": "answer is " * LONG,
}


@pytest.mark.parametrize("text", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_no_text_takes_long(tmp_path, text):
  """Reading takes linear time: with backtracking, or in quadratic time, this would not end."""
  rows = {
      "newsgroups": {"text": text, "_folder": "sci.space"},
      "hellaswag": {"activity_label": text, "ctx_a": text, "ctx_b": text, "label": "0",
                    "endings": [text, "x"]},
      "medmcqa": {"question": text, "response": text},
      "pubmedqa": {"pubid": 1, "question": text, "context": text, "long_answer": text,
                   "final_decision": "no"},
      "gsm8k": {"question": text, "answer": text}, "sst2": {"text": text, "label": 0},
      "boolq": {"passage": text, "question": text, "answer": True},
      "arc_easy": {"question": text, "choices": ["a", text], "gold": 0},
      "race": {"article": text, "question": text, "options": [text, "b"], "answer": "A"},
      "winogrande": {"sentence": f"a _ {text}", "option1": text, "option2": "b", "answer": "1"},
      "metamathqa": {"query": text, "response": text},
      "simplescaling": {"question": text, "attempt": text},
      "labelled": {"text": text, "label": 0},
  }
  for name, row in rows.items():
    assert len(problems(name, [row])) <= 1
  assert len(problems("metamathqa", [{"problem": text, "solution": text, "level": 1}], "math")) == 1
  # Options that came as text.
  with pytest.raises(UserError, match="options"):
    problems("arc_easy", [{"question": "q", "choices": text, "gold": 0}])
  for name in ("a.csv", "a.tsv", "a.txt"):
    path = tmp_path / name
    path.write_text(f"text,label\n{text},0\n")
    try:
      registry.load("labelled", "train", str(path))
    except UserError:
      pass
