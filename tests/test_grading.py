"""Extraction of answers and their equivalence, on a table of cases with known verdicts."""

import threading

import pytest

from wd_plasticity.tasks import grading, math_answers, math_process, registry
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
    ("x = 0", "0"), ("p + q = 5", "5"), ("4 million dollars", "4"), ("3,5", "3.5"),
    ("3,5", "(3, 5)"), ("The total is $1,500.00.", "1500"), (r"\textbf{Friday}", "friday"),
]
DIFFERENT = [
    ("(1,2)", "(2,1)"), ("Evelyn", "Bob"), ("[0,1)", "[0,1]"), ("", "5"), ("5", "-5"),
    ("10 or 12", "10"), ("p - q", "q - p"), ("1 million", "1"), ("2x", "3x"), ("1/3", "1/4"),
    ("12", "1.2"), ("1,234", "1,235"), (r"\sqrt{2}", "2"), ("3 to 5", "3"),
    ("10x - 4y - 20 = 0", "0"), ("x = 0", "1"), ("5/0", "3/0"), ("1" * 5000, "2" * 5000),
    ("7" * 5000, "7"), ("12, 13", "12"), (r"12\text{ and }13", "12"), (r"\frac12, 3", "0.5"),
    ("2x", "2"), (r"\frac{3}{4}, -\frac{3}{4}", r"\frac{3}{4}"), ("2s^2", "2"),
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


HOSTILE = ["9^{9^{9^{9}}}", "(" * 150 + "x" + ")" * 150, "{" * 200, "x" * 10**5, "1" * 10**5,
           "1 " * 10**5, "\\boxed{" * 10**4, "a, " * 10**5 + "=", "\\frac{" * 100,
           "* _ ` " * 10**4, "answer is " * 10**4, ". A" * 10**4, "1,111" * 10**4, "(A) " * 10**4]


def test_what_never_ends_is_wrong_and_what_comes_after_it_is_graded(monkeypatch, math):
  monkeypatch.setattr(math_process, "LIMIT_SECONDS", 0.5)
  math_answers.PROCESS.stop()  # the next one has that limit
  pairs = [(r"\frac{2}{4}", "0.5"), ("9^{9^{9^{9}}}", r"10^{9^{9^9}}+x"), (r"\frac{6}{4}", "1.5")]
  assert math_answers.equivalent_all(pairs) == [True, False, True]
  for name in ("gsm8k", "medmcqa", "pubmedqa", "labelled"):
    task = registry.get(name)
    problem = Problem("0", "", "", answer="x + 1" if task is math else "B",
                      options=("The answer is A.", "The answer is B."))
    for text in HOSTILE:
      for whole in (text, f"The answer is {text}", f"\\boxed{{{text}}}"):
        assert not grading.grade(task, problem, whole).correct, (name, whole[:40])
        grading.vote(task, whole, problem)
  assert grading.equivalent(r"\frac{6}{8}", "0.75")
  math_answers.PROCESS.stop()


def test_grading_in_threads():
  results = []
  threads = [threading.Thread(target=lambda i=i: results.append(
      grading.equivalent(rf"\frac{{{i}}}{{7}}", f"{2 * i}/14+0"))) for i in range(1, 6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == [True] * 5


def test_numbers_need_no_library(math, monkeypatch):
  monkeypatch.setattr(math_answers.PROCESS, "same", lambda *_: pytest.fail("asked the library"))
  problem = Problem("0", "", "", answer="1,200")
  for form in ("{}.", "${}.", "{} km/h.", "**{}**, in total.", "that she has {} apples.",
               "600 + 600 = {} clips.", "€ {}", "{}.00"):
    for i in (2, 120, 1200, 12000):
      text = f"So the answer is {form.format(i)}"
      assert grading.grade(math, problem, text).correct == (i == 1200), text


def test_many_are_graded_as_one_by_one_and_asked_once(math, monkeypatch):
  golds = ["a+b+c", r"\frac12", "x^2", "7"]
  said = ["c+b+a", "0.5", "x^3", "8", "that she has 7 apples", r"\sqrt{49}", "unknown"]
  texts = [(Problem("0", "", "", answer=g), f"The answer is ${s}$.") for g in golds for s in said]
  alone = [grading.grade(math, *t) for t in texts]
  assert [g.correct for g in alone].count(True) == 4
  asked = []
  same = math_answers.PROCESS.same
  monkeypatch.setattr(math_answers.PROCESS, "same",
                      lambda pairs: asked.append(pairs) or same(pairs))
  math_answers._known.clear()
  assert grading.grade_all(math, texts) == alone
  assert grading.grade_all(math, texts[::-1]) == alone[::-1]
  assert len(asked) == 1 and len(asked[0]) == len(set(asked[0]))


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
    ("The answer is therefore 4.\n#### 3", "3"), ("The answer is 5.\n#### Why\nBecause", "5"),
    ("The answer is 5. Note: 3 apples remain.", "5"), ("The answer is 5: that is all", "5"),
    ("The answer is that Dr. Smith has 5.", "that Dr. Smith has 5"),
    ("nothing of the kind", None), ("", None), ("the answer is ", None),
])
def test_extract(text, found):
  assert grading.extract(text) == found


@pytest.mark.parametrize("num, text, letter", [
    (10, "Therefore, the answer is E. coli", "E"), (4, "Therefore, the answer is E. coli", None),
    (10, r"\boxed{\text{E}}", "E"), (4, "the answer is option F", None), (4, "B", None),
    (4, "The answer is Aspirin, option C", "C"),
    (0, "The answer is **F**", "F"), (4, "The answer is A DNA sequence", None),
    (4, "The answer is A Aspirin", "A"),
])
def test_letters_are_those_of_the_problem(num, text, letter):
  task = registry.get("medmcqa")
  problem = Problem("0", "", "", answer="E", options=("",) * num)
  assert grading.answer(task, text, problem) == letter
  assert grading.vote(task, text, problem) == letter
  assert grading.grade(task, problem, text).correct == (letter == "E")


def test_words_are_names_of_classes():
  pubmed, labelled = registry.get("pubmedqa"), registry.get("labelled")
  assert grading.grade(pubmed, Problem("", "", "", answer="yes"), "Yes") == (
      grading.Graded(None, False))
  news = registry.get("ag_news")
  assert grading.grade(news, Problem("", "", "", answer="Sci/Tech"), "Sci/Tech").correct
  names = ("good", "good enough", "not good", "very  Good")

  def graded(gold, text):
    problem = Problem("", "", "", answer=gold, options=names)
    found = grading.grade(labelled, problem, text)
    assert grading.vote(labelled, text, problem) == found.answer
    return found.correct

  for gold in names:
    for said in names:
      for form in ("{}", " {}.\n", "**{}**", "{}, as it is said.\nIt is so.", "“{}”", "{} - so"):
        assert graded(gold, form.format(said.upper())) == (gold == said), (gold, said, form)
  assert not graded("good", "goodness") and not graded("good", "nothing at all is so bad")


def test_votes_are_what_is_graded_and_stated_at_the_end(math):
  problem = Problem("0", "", "", answer="1")
  text = "The answer is 1." + " " * 130 + "Thus it is."
  assert grading.grade(math, problem, text) == grading.Graded("1", True)
  assert grading.vote(math, text, problem) is None
  # Cut after 128 characters, the vote would be another answer than the one that is graded.
  text = r"So \boxed{1}. " + "x" * 100 + " Check: the answer is 2 before that, and so on."
  assert grading.grade(math, problem, text).answer == "1"
  assert grading.vote(math, text, problem) in (None, "1")
  # Where the response is nothing but the answer, all of it is.
  sst2 = registry.get("sst2")
  problem = Problem("", "", "", answer="positive", options=("negative", "positive"))
  assert grading.vote(sst2, "Positive. " + "It goes on and on. " * 20, problem) == "positive"
  assert not grading.same_answer(math, None, None) and not grading.same_answer(math, "1", None)
  assert grading.same_answer(math, "1.0", "1")


@pytest.mark.parametrize("name", ["gsm8k", "medmcqa", "pubmedqa"])
def test_without_a_gold_answer_nothing_is_right_or_wrong(name):
  task, problem = registry.get(name), Problem("0", "", "", answer="")
  assert grading.grade(task, problem, "The answer is B.").correct is None
  assert grading.grade(task, problem, "").correct is None


def test_truncate_at_stop():
  assert grading.truncate_at_stop("The answer is 4.\nHuman: next") == "The answer is 4.\n"
  assert grading.truncate_at_stop("a Assistant b Human c") == "a "
  assert grading.truncate_at_stop("nothing") == "nothing"
  stops = ("\nQuestion:", "\nAnswer:")
  text = "The Question: is it? The answer is 5.\n\nQuestion: and?\nAnswer: The answer is 9."
  assert grading.truncate_at_stop(text, stops) == "The Question: is it? The answer is 5.\n"
  assert grading.truncate_at_stop("Question: and?", stops) == ""
  assert grading.truncate_at_stop(text, ()) == text
