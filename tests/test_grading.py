"""Extraction of answers and their equivalence, on a table of cases with known verdicts."""

import threading
import time

import pytest

from wd_plasticity.tasks import grading, registry
from wd_plasticity.tasks.task import Problem

EQUAL = [
    (r"\frac{1}{2}", "0.5"), (r"\frac12", "1/2"), (r"\dfrac{3}{4}", r"\tfrac{3}{4}"),
    ("50%", "50"), (r"50\%", "50"), ("12 apples", "12"), ("$12$ dollars", "12"),
    (r"\$1,234.50", "1234.5"), ("1,234", "1234"), (r"1{,}234", "1234"), ("(1,2)", "(1, 2)"),
    ("x=5", "5"), (r"5\text{ cm}", "5"), (r"\text{Evelyn}", "Evelyn"),
    (r"\sqrt{50}", r"5\sqrt{2}"), (r"x^2+2x+1", r"(x+1)^2"), (r"90^\circ", "90"),
    (r"(-\infty, 2]", r"(-\infty,2]"), (r"1\frac{1}{2}", "1.5"), ("18.", "18"), ("$18", "18"),
    ("18 dollars a day", "18"), ("016", "16"), ("1.0", "1"), ("0.333333333", "1/3"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\{1,2\}", r"\{2,1\}"), (r"11\sqrt2", r"11\sqrt{2}"), ("6 - 5i", "6-5i"),
    ("y = 2x + 3", "2x+3"), (r"$\frac{3}{4}$", "0.75"), (r"1\,000\,000", "1000000"),
    (r"(3, \frac{\pi}{2})", r"(3,\pi/2)"), (r"\(7\)", "7"), ("-4", "- 4"), (".5", "0.5"),
    ("x = 0", "0"), ("p + q = 5", "5"),
]
DIFFERENT = [
    ("(1,2)", "(2,1)"), ("Evelyn", "Bob"), ("[0,1)", "[0,1]"), ("", "5"), ("5", "-5"),
    ("10 or 12", "10"), ("p - q", "q - p"), ("1 million", "1"), ("2x", "3x"), ("1/3", "1/4"),
    ("12", "1.2"), ("1,234", "1,235"), (r"\sqrt{2}", "2"), ("3 to 5", "3"),
    ("10x - 4y - 20 = 0", "0"), ("x = 0", "1"),
]


@pytest.fixture(scope="module")
def math():
  return registry.get("gsm8k")


def test_equal_answers_both_ways():
  wrong = [pair for a, b in EQUAL for pair in ((a, b), (b, a)) if not grading.equivalent(*pair)]
  assert not wrong


def test_different_answers_both_ways():
  wrong = [pair for a, b in DIFFERENT for pair in ((a, b), (b, a)) if grading.equivalent(*pair)]
  assert not wrong


def test_an_answer_that_never_ends_is_wrong_after_the_timeout_and_the_next_is_graded(monkeypatch):
  grading.equivalent(r"\frac{2}{4}", "0.5")  # the worker is up
  monkeypatch.setattr(grading, "_TIMEOUT_SECONDS", 0.5)
  start = time.monotonic()
  assert not grading.equivalent("9^{9^{9^{9}}}", r"10^{9^{9^9}}+x")
  assert time.monotonic() - start < 3
  monkeypatch.undo()
  assert grading.equivalent(r"\frac{6}{4}", "1.5")


def test_grading_in_threads(math):
  results = []
  threads = [threading.Thread(target=lambda i=i: results.append(
      grading.equivalent(rf"\frac{{{i}}}{{7}}", f"{2 * i}/14"))) for i in range(1, 6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == [True] * 5


def test_plain_numbers_need_no_library(math, monkeypatch):
  monkeypatch.setattr(grading._WORKER, "ask", lambda *_: pytest.fail("asked the library"))
  start = time.process_time()
  problem = Problem("0", "", "", answer="1,200")
  for i in range(20000):
    assert grading.grade(math, problem, f"So the answer is {i}.").correct == (i == 1200)
  assert time.process_time() - start < 5


def test_a_pair_is_compared_once(monkeypatch):
  asked = []
  monkeypatch.setattr(grading._WORKER, "ask", lambda a, b: asked.append((a, b)) or True)
  grading._equivalent.cache_clear()
  for _ in range(10):
    assert grading.equivalent("a+b+c", "c+b+a") and grading.equivalent("c+b+a", "a+b+c")
  assert len(asked) == 1
  grading._equivalent.cache_clear()


@pytest.mark.parametrize("text, found", [
    (r"First \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"so \boxed{5} and the answer is 6", "5"),
    (r"\boxed 7$ is it", "7"),
    (r"an open \boxed{1", None),
    ("The answer is 3. No, the answer is 42.", "42"),
    ("#### 110\nThe answer is: 110", "110"),
    ("The answer is:\n12 apples.\nGoodbye", "12 apples"),
    ("The ratio: the answer is 3:4.", "3:4"),
    ("The answer is as follows: 8", "8"),
    ("She has 3 + 4 = 7.\n#### 7", "7"),
    ("nothing of the kind", None), ("", None), ("the answer is ", None),
])
def test_extract(text, found):
  assert grading.extract(text) == found


@pytest.mark.parametrize("text, letter", [
    ("Therefore, the answer is B.", "B"), ("the answer is (C).", "C"),
    ("The answer is: D. Aspirin", "D"), ("the answer is option A", "A"), ("answer is b", "B"),
    (r"\boxed{\text{E}}", "E"), ("The answer is **F**", "F"), ("The answer is Aspirin", None),
    ("B", None),
])
def test_letters(text, letter):
  task = registry.get("medmcqa")
  assert grading.answer(task, text) == letter
  assert grading.grade(task, Problem("0", "", "", answer="B"), text).correct == (letter == "B")


def test_words():
  pubmed, sst2 = registry.get("pubmedqa"), registry.get("sst2")
  assert grading.grade(pubmed, Problem("", "", "", answer="yes"),
                       "It is so. Therefore, the answer is Yes, clearly.").correct
  assert grading.grade(pubmed, Problem("", "", "", answer="yes"), "Yes") == (
      grading.Graded(None, False))
  assert grading.grade(sst2, Problem("", "", "", answer="positive"), " Positive.\n").correct
  assert not grading.grade(sst2, Problem("", "", "", answer="positive"), "negative").correct
  news = registry.get("ag_news")
  assert grading.grade(news, Problem("", "", "", answer="Sci/Tech"), "Sci/Tech").correct
  labelled = registry.get("labelled")
  assert grading.grade(labelled, Problem("", "", "", answer="very good"), "Very good!").correct
  assert not grading.grade(labelled, Problem("", "", "", answer="very good"), "very bad").correct


def test_votes_are_read_from_the_end(math):
  text = "The answer is 1." + " " * 130 + "Thus it is."
  assert grading.grade(math, Problem("0", "", "", answer="1"), text) == (
      grading.Graded("1", True))
  assert grading.vote(math, text) is None
  assert not grading.same_answer(math, None, None) and not grading.same_answer(math, "1", None)
  assert grading.same_answer(math, "1.0", "1")


def test_truncate_at_stop():
  assert grading.truncate_at_stop("The answer is 4.\nHuman: next") == "The answer is 4.\n"
  assert grading.truncate_at_stop("a Assistant b Human c") == "a "
  assert grading.truncate_at_stop("nothing") == "nothing"
