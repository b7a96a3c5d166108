"""Tasks made from the installation alone."""

import collections
import re
import time

import pytest

from wd_plasticity.data import embedded, sources
from wd_plasticity.tasks import embedded_text, grading, registry

NAMES = ["embedded_topic", "embedded_order", "embedded_next", "embedded_arithmetic"]


def test_fast():
  embedded_text._paragraphs.cache_clear()
  start = time.process_time()
  for name in NAMES:
    registry.load(name, "train")
  assert time.process_time() - start < 4  # half of it on a machine that does nothing else


@pytest.mark.parametrize("name", NAMES)
def test_splits(name):
  splits = {split: registry.load(name, split) for split in ("train", "test")}
  assert splits["train"].count >= 300 and splits["test"].count >= 100
  assert {split: s.fingerprint for split, s in splits.items()} == {
      split: registry.load(name, split).fingerprint for split in splits}
  shared = ({p.prompt for p in splits["train"].problems}
            & {p.prompt for p in splits["test"].problems})
  assert not shared
  for loaded in splits.values():
    assert loaded.note == ""
    assert len({p.key for p in loaded.problems}) == loaded.count
    for problem in loaded.problems:
      assert problem.prompt and problem.response
      if problem.options:
        assert problem.response == problem.options[problem.gold]
        assert len(set(problem.options)) == len(problem.options)


def _plain(text: str) -> list[str]:
  """Small words, without the markup of a reference such as :class:`Axes`."""
  return re.findall(r"[a-z0-9]+", re.sub(r":\w+:`", " ", text).lower())


def _runs(words: list[str], n: int) -> set[str]:
  return {" ".join(words[i:i + n]) for i in range(len(words) - n + 1)}


def _packages(*names: str) -> list[tuple[str, str]]:
  return [f for f in embedded.module_files() if f[0].partition(".")[0] in names]


@pytest.mark.parametrize("packages", [
    ("orbax", "flax"),
    pytest.param((), marks=pytest.mark.slow)])  # all
def test_no_text_that_is_tested_is_in_the_embedded_corpus(packages):
  files = _packages(*packages) if packages else embedded.module_files()
  documents = [_plain(text) for text in embedded.documents(files)]
  assert len(documents) > 100
  corpus = "\n".join(f" {' '.join(d)} " for d in documents)
  runs = set().union(*(_runs(d, 13) for d in documents))
  tested = {name: registry.load(name, "test").problems for name in NAMES}
  texts = {
      "embedded_topic": [p.text for p in tested["embedded_topic"]],
      "embedded_order": [p.text for p in tested["embedded_order"] if p.gold == 0],
      "embedded_next": [t for p in tested["embedded_next"] for t in (
          f"{p.prompt} {p.response}", *p.options)],
      "embedded_arithmetic": [p.prompt for p in tested["embedded_arithmetic"]]}
  for name, some in texts.items():
    assert len(some) > 100
    for words in map(_plain, some):
      assert f" {' '.join(words)} " not in corpus, (name, words)
      # Names of packages are taken out of the texts, so runs are between them.
      assert not _runs(words, 13) & runs, (name, words)


def test_passages_that_repeat_a_held_out_module_are_left_out(tmp_path):
  def module(name, *docs):
    path = tmp_path / f"{name}.py"
    path.write_text("".join(f'def f{i}():\n  """{d}"""\n' for i, d in enumerate(docs)))
    return f"flax.{name}", str(path)
  long = "One two three four five six seven eight nine ten eleven twelve {} fourteen."
  first, *others = sorted(("a", "b", "c"), key=lambda n: embedded.hashed(f"flax.{n}"))
  files = [module(first, long.format("thirteen"), "It is a :class:`Sum` of all.", "Not so."),
           *(module(name, "x" * 500) for name in others)]
  assert embedded.held_out(files) == {files[0][0]}
  kept = module("other", f"So, {long.format('thirteen')[:-10].lower()} and on.",
                "Well. It is a Sum of all. Yes.", "It is a sum of all parts", "Not so.",
                "Nine ten eleven twelve again.")
  *_, text = embedded.documents([*files, ("json.other", kept[1])])
  assert text.split("\n\n") == ["Not so.", "Nine ten eleven twelve again."]
  labels = [label for label, _ in sources.EmbeddedSource(files).files]
  assert labels[0] == f"held out: {files[0][0]}" and labels[1] == files[1][0]


def test_topic_is_balanced_and_names_no_package():
  problems = registry.load("embedded_topic", "train").problems
  counts = collections.Counter(p.gold for p in problems)
  assert len(counts) == 4 and len(set(counts.values())) == 1
  assert set(collections.Counter(p.gold for p in problems[:40]).values()) == {10}
  text = " ".join(p.text for p in problems).lower()
  assert not re.search(r"\b(matplotlib|huggingface_hub|orbax|flax)\b", text)


def test_order_swaps_two_neighbours_of_half_the_sentences():
  problems = registry.load("embedded_order", "train").problems
  assert abs(sum(p.gold for p in problems) - len(problems) / 2) <= 1
  sentences = {" ".join(s.split()) for p in embedded_text.paragraphs("train")
               for s in p.sentences}
  for problem in problems:
    assert (problem.text in sentences) == (problem.gold == 0)
    if problem.gold == 1:
      words = problem.text.split()
      swapped = [" ".join(words[:i] + [words[i + 1], words[i]] + words[i + 2:])
                 for i in range(len(words) - 1)]
      assert any(s in sentences for s in swapped)


def test_next_continues_the_passage():
  paragraphs = {p.text for p in embedded_text.paragraphs("test")}
  problems = registry.load("embedded_next", "test").problems
  assert all(f"{p.prompt} {p.response}" in paragraphs for p in problems)
  assert collections.Counter(p.gold for p in problems).most_common(1)[0][1] < len(problems) / 2


def test_arithmetic_is_right():
  task = registry.get("embedded_arithmetic")
  problems = registry.load("embedded_arithmetic", "train").problems
  for problem in problems[:500]:
    for left, a, op, b, result in re.findall(r"((\d+) ([-+*]) (\d+)) = (\d+)", problem.response):
      assert int(result) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[
          op], left
    assert problem.response.endswith(f"= {problem.answer}. The answer is {problem.answer}.")
    assert grading.grade(task, problem, problem.response) == (
        grading.Graded(problem.answer, True))
  # The first sample, worked out without the generator.
  numbers = [p for p in problems if re.fullmatch(
      r"\w+ has (\d+) \w+\. \w+ finds (\d+) more\. \w+ gives (\d+) away\. How .*", p.prompt)]
  assert numbers
  for problem in numbers:
    has, finds, gives = map(int, re.findall(r"\d+", problem.prompt))
    assert problem.answer == str(has + finds - gives)
