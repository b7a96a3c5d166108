"""Sentences as models write them: right by hand, by math-verify and by the study's evaluator."""

import csv
import io
import json
import logging
import lzma
import os
import pathlib
import re
import zipfile

import graded_sentences as sentences
import math_verify
import pytest

from wd_plasticity.tasks import grading, registry
from wd_plasticity.tasks.task import Problem

DATA = os.environ.get("WD_PLASTICITY_DATA", "")
LETTERS = tuple(f"The answer is {letter}." for letter in "ABCD")
WORDS = tuple(f"The answer is {word}." for word in ("yes", "no", "maybe"))

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def stated_in_the_study(text):
  """What the study's evaluator takes for the answer, written again from its description."""
  box = re.search(r".*(\\boxed\{.*)", text, re.DOTALL)
  depth, content = 0, ""
  for character in box[1].removeprefix("\\boxed") if box else "":
    depth += (character == "{") - (character == "}")
    if depth == 0:
      break
    content += character
  else:
    content = ""
  if content[1:]:
    return content[1:]
  _, found, rest = text.rpartition("answer is")
  return rest.split(":")[-1].strip() if found else ""


def same(a, b):
  return bool(a and b) and (math_verify.verify(a, b) or math_verify.verify(b, a))


def both_say(gold, text):
  """Whether both take a text for right (True) or read the same other number (False)."""
  study = math_verify.parse(stated_in_the_study(text))
  library = math_verify.parse(text)
  if not same(study, library):
    return None
  return same(math_verify.parse(gold), library) or same(math_verify.parse(f"${gold}$"), library)


def both_say_letter(gold, text, strings, pattern):
  library = math_verify.parse(text, [math_verify.StringExtractionConfig(strings=strings)])
  study = re.match(pattern, stated_in_the_study(text), re.IGNORECASE)
  if not library or not study or library[0] != study[1].lower():
    return None
  return library[0] == gold.lower()


CASES = {
    "gsm8k": (sentences.MATH_RIGHT, sentences.MATH_WRONG, (), both_say),
    "medmcqa": (sentences.LETTERS_RIGHT, sentences.LETTERS_WRONG, LETTERS,
                lambda gold, text: both_say_letter(gold, text, tuple("ABCD"), r"\s*([A-D])\b")),
    "pubmedqa": (sentences.WORDS_RIGHT, sentences.WORDS_WRONG, WORDS,
                 lambda gold, text: both_say_letter(
                     gold, text, ("yes", "no", "maybe"), r"\s*(\S+?)[.,;!?]*(?:\s|$)")),
}


@pytest.mark.parametrize("name", CASES)
def test_sentences(name):
  right, wrong, options, both = CASES[name]
  task = registry.get(name)
  rows = [(*row, True) for row in right] + [(*row, False) for row in wrong]
  texts = [(Problem("0", "", "", answer=gold, options=options), sentences.text_of(sentence))
           for gold, sentence, _ in rows]
  graded = grading.grade_all(task, texts)
  mistaken = [(gold, sentence, g.answer) for (gold, sentence, correct), g in
              zip(rows, graded, strict=True) if g.correct != correct]
  assert not mistaken
  said = [both(gold, text) for (gold, _, _), (_, text) in zip(rows, texts, strict=True)]
  differ = {(gold, sentence) for (gold, sentence, correct), verdict in zip(rows, said, strict=True)
            if verdict not in (None, correct)}
  assert differ == sentences.NOT_AS_BOTH & {row[:2] for row in rows}
  agreed = sum(verdict is not None for verdict in said)
  print(f"{name}: {len(rows)} sentences, {agreed} of which both read alike, "
        f"{agreed - len(differ)} of these as here")
  assert agreed > len(rows) / 5


def test_there_are_enough_of_them():
  assert sum(len(right) + len(wrong) for right, wrong, *_ in CASES.values()) >= 300


# Real data.

needs_data = pytest.mark.skipif(
    not DATA, reason="set WD_PLASTICITY_DATA to a folder with the data sets")


def solutions():
  """Gold answers and solutions of GSM8K without the marks of calculations."""
  for split in ("train", "test"):
    with lzma.open(pathlib.Path(DATA, f"gsm8k/{split}.jsonl.xz"), "rt", encoding="utf-8") as lines:
      for line in lines:
        solution = re.sub(r"<<[^<>]*>>", "", json.loads(line)["answer"])
        yield solution.split("#### ")[-1].strip(), solution


@needs_data
def test_every_solution_of_gsm8k():
  task = registry.get("gsm8k")
  rows = list(solutions())
  graded = grading.grade_all(task, [(Problem("0", "", "", answer=g), text) for g, text in rows])
  assert len(rows) == 8792 and all(g.correct for g in graded)
  # The sentence before the answer, as if the model had said that it is the answer.
  rows = [(gold, "The answer is " + text.split("####")[0].strip().split("\n")[-1])
          for gold, text in rows[::8]]
  graded = grading.grade_all(task, [(Problem("0", "", "", answer=g), text) for g, text in rows])
  said = [both_say(gold, text) for gold, text in rows]
  missed = [text for (_, text), g, right in zip(rows, graded, said, strict=True)
            if right and not g.correct]
  print(f"{len(rows)} sentences of GSM8K: {said.count(True)} right by both, {len(missed)} of "
        f"these missed; {sum(g.correct for g in graded)} right here")
  assert said.count(True) > 800 and len(missed) <= 1, missed


@needs_data
def test_options_of_mmlu():
  task = registry.get("medmcqa")
  with zipfile.ZipFile(pathlib.Path(DATA, "mmlu/mmlu.zip")) as files:
    rows = [row for name in files.namelist() if name.endswith(".csv")
            for row in csv.reader(io.TextIOWrapper(files.open(name), "utf-8"))]
  assert len(rows) == 15858
  texts = []
  for row in rows:
    letter, option = row[5], row["ABCD".index(row[5]) + 1]
    problem = Problem("0", "", "", answer=letter, options=LETTERS)
    texts += [(problem, f"So the answer is {said}") for said in (
        f"{letter}. {option}", f"{letter}: {option}", f"({letter}) {option}.",
        f"option {letter}: {option}", f"**{letter}) {option}**")]
  wrong = [text for (_, text), g in zip(texts, grading.grade_all(task, texts), strict=True)
           if not g.correct]
  assert not wrong
  # Options themselves are no letters, but for those that begin with letters.
  read = [(row[1], grading.answer(task, f"The answer is {row[1]}", texts[0][0])) for row in rows]
  assert sum(letter is not None for _, letter in read) < 0.004 * len(rows)
