"""Sentences as models write them, each with a gold answer, right or wrong by hand.

`NOT_AS_BOTH` are those that math-verify and the study's evaluator read alike and otherwise
than here; there must be no others.
"""

# What stands after "The answer is", unless it has a `|`: the text is then given whole.
MATH_RIGHT = [
    # Plain.
    ("72", "72."), ("72", " 72"), ("72", ": 72."), ("72", ":\n72"), ("72", "72!"), ("72", "072"),
    ("72", "72.0."), ("72", "72.00"), ("-4", "-4."), ("-4", "−4"), ("-4", "–4."), ("0.5", ".5"),
    ("7", "+7"), ("72", "therefore 72"), ("72", "thus 72."), ("72", "equal to 72."), ("72", "= 72"),
    # Units.
    ("18", "18 km/h."), ("18", "18 cm^2"), ("18", "18 cm²."), ("18", "18 L"), ("18", "18 m"),
    ("18", "18km"), ("18", "18 kg of rice."), ("18", "18 square feet."), ("18", "18 hours a day."),
    ("18", "18 miles per hour."), ("90", "90°"), ("90", "90 degrees."), ("20", "20°C"),
    ("18", "18 people."), ("18", "18-day trip."), ("3", "3rd."), ("7", "7pm."), ("18", "18 m/s."),
    ("3/4", "3/4 cups."), ("3/4", "3/4 of a cup"), ("3/4", r"$\frac{3}{4}$ cups."),
    ("3/4", r"\frac{3}{4} of the cake."), ("5", r"5\text{ cm}."), ("5", r"$5\text{ cm}$"),
    ("5", r"$5$ cm."), ("5", r"\(5\) cm."), ("50", "50%."), ("50", "50 percent."), ("50", r"50\%"),
    ("24", "24 dozen eggs."),
    # Currency.
    ("18", "$18."), ("18", r"\$18."), ("18", r"$\$18$."), ("18", "€18."), ("18", "£18"),
    ("18", "¥18."), ("18", "USD 18."), ("18", "18 USD."), ("18", "18 €."), ("18", "US$18."),
    ("18", "$18/day."), ("18", "$18 per day."), ("18", "$18.00."), ("18", "18 dollars."),
    ("1234.5", "$1,234.50."), ("-5", "-$5."), ("-5", "$-5"), ("18", "Rs. 18"), ("0.18", "$0.18"),
    ("18", "18 dollars and that is all."),
    # Markdown, quotes, brackets, LaTeX.
    ("72", "**72**."), ("72", "**72.**"), ("72", ":** 72"), ("72", "*72*"), ("72", "__72__"),
    ("72", "`72`."), ("72", "'72'"), ("72", '"72".'), ("72", "“72”."), ("72", "(72)."),
    ("72", "$72$."), ("72", "$72.$"), ("72", r"\(72\)."), ("72", r"\[72\]"), ("72", "$$72$$"),
    ("72", "\n\n$$\n72\n$$"), ("72", ":\n\\[\n72\n\\]"), ("72", "**$72**"), ("72", "**72 clips**."),
    ("72", r"$\mathbf{72}$."), ("72", r"\text{72}"), ("72", r"|So $\boxed{72}$."),
    ("72", r"|So \boxed{72\text{ clips}}."), ("72", r"|\fbox{72}"), ("1/2", r"|\boxed{\frac12}"),
    ("72", r"|The answer is 71. No: \boxed{72}."), ("5", r"|$\boxed{x=5}$"),
    ("120", r"|\boxed{5!}"), ("72", r"|\boxed{$72}"), ("72", r"|\boxed{72.}"),
    (r"2\sqrt{3}", r"$2\sqrt{3}$."), (r"2\sqrt{3}", r"\(\sqrt{12}\)."), ("5", "$x = 5$."),
    (r"\frac{\pi}{2}", r"|\boxed{\pi/2}"), ("(1,2)", r"|\boxed{(1, 2)}"), ("x^2+1", "$1 + x^2$."),
    # Thousands, fractions, large numbers.
    ("9500", "9,500."), ("9500", "9 500."), ("9500", "9\u00a0500."), ("9500", "9\u2009500"),
    ("9500", "9\u202f500 m."), ("9500", r"$9{,}500$."), ("9500", r"$9\,500$"),
    ("1234567", "1,234,567."), ("1234567", "1 234 567"), ("2.5", "2 1/2"), ("2.5", "2 1/2 hours."),
    ("2.5", "2½."), ("2.5", r"$2\frac{1}{2}$."), ("0.5", "½"), ("0.5", "1/2."), ("3.5", "3,5."),
    ("1000000", "1 million."), ("1500000", "1.5 million dollars."), ("2000", "2 thousand."),
    ("1500000", "$1.5 million."), ("3000000000", "3 billion people"),
    # Sentences with one number.
    ("72", "72, in total, so the farmer can sell it."), ("72", "72, which is the total."),
    ("72", "72 - which makes sense."), ("72", "72 – that is all."), ("72", "72—no more."),
    ("72", "72; that is all."), ("72", "about 72."), ("72", "approximately 72"), ("72", "≈ 72."),
    ("72", "that she has 72 apples."), ("72", "that Natalia sold 72 clips altogether."),
    ("5", "that Dr. Smith has 5 apples."), ("72", "the number 72."), ("72", "as follows: 72"),
    ("72", "as follows:\n\n72"), ("72", "the following.\n72"), ("72", "72: that is the total."),
    ("72", "72 (in total)."), ("72", "exactly $72."), ("72", "clearly **72**."),
    ("72", "72\n\nDone"),
    # Sentences with several.
    ("72", "48 + 24 = 72."), ("72", "48+24=72 clips."), ("72", "$48 + $24 = $72."),
    ("72", "72, because 48 + 24 = 72."), ("72", "72, since 48 in April and 24 in May make 72."),
    ("15", "5 x 3 = 15."), ("15", "5 × 3 = 15 dollars"), ("72", "6 dozen = 72 eggs."),
    ("120", "15 gallons * 8 pints / gallon = 120 pints"), ("72", "the sum 48 + 24, that is 72."),
    ("8", "that she paid 5 + 3 dollars."), ("72", "48 + 24 clips."),
    ("72", "72. Note: 3 are left."),
    ("5", "5. Note: 3 apples remain."), ("5", "5 apples. She ate 3."), ("72", "72 for 3 people."),
    ("72", "3. No, the answer is 72."), ("3:4", "3:4."), ("7", "not 5 but 7."),
    # The last line of GSM8K.
    ("3", "|She needs 12, and the answer is therefore 4.\n#### 3"), ("110", "|#### 110\nThe answer "
     "is: 110"), ("18", "|9 * 2 = $18\n#### 18"), ("18", "|#### $18"), ("72", "|so\n#### 72 clips"),
    ("5", "|The answer is 5.\n#### Why\nBecause."), ("70000", "|#### 70,000"), ("-3", "|#### -3"),
]
MATH_WRONG = [
    ("72", "71."), ("72", "-72."), ("72", "7.2"), ("72", "$71."), ("72", "172 clips."),
    ("72", "that she has 71 apples."), ("72", "71, which is the total of 3."), ("5", "5x."),
    ("2", "$2x$."), ("1", "1 million."), ("10", "10 or 12."), ("3", "3 to 5."), ("3", "3:4."),
    ("1", "(1, 2)."), ("72", "unknown."), ("72", ""), ("72", "|72"), ("72", r"|\boxed{71}"),
    ("72", r"|It is 72, but \boxed{7}."), ("5", r"5\sqrt{2}"), ("1/2", "2/1."), ("2.5", "2 1/3"),
    ("9500", "9,501."), ("9500", "95,00"), ("3", "3/4 cups."), ("4", "3/4 cups."),
    ("0", "x + y = 0."),
    ("72", "48 + 25 = 73."), ("72", "Evelyn."), ("Evelyn", "Bob."), ("5", "72. Note: 5 are left."),
    ("4", "|The answer is 4.\n#### 3"), ("72", "|#### 71"), ("2", "2 out of 7."), ("5", r"$-5$."),
]
# Both read a part of the mathematics, of the number, of the word or of the name alone.
NOT_AS_BOTH = {
    ("1", "1 million."), ("5", "5x."), ("5", r"5\sqrt{2}"), ("0", "x + y = 0."), ("72", "(72)."),
    ("9500", r"$9\,500$"), ("2.5", "2 1/2"), ("2.5", "2 1/2 hours."), ("2.5", "2½."),
    ("1000000", "1 million."), ("1500000", "1.5 million dollars."), ("2000", "2 thousand."),
    ("1500000", "$1.5 million."), ("3000000000", "3 billion people"), ("A", "A possible cause."),
}

# With options A to D; "|" as above.
LETTERS_RIGHT = [
    ("B", "B."), ("B", "B"), ("B", ": B"), ("B", ":\nB."), ("B", "(B)."), ("B", "(B) Aspirin."),
    ("B", "B) Aspirin"), ("B", "B. Aspirin."), ("B", "B. aspirin"), ("B", "B: Aspirin."),
    ("B", "B - Aspirin."), ("B", "B – Aspirin"), ("B", "B—Aspirin."), ("B", "B, Aspirin."),
    ("C", "C: A deficiency of iron."), ("C", "option C: B lymphocytes"), ("C", "C. Ratio: B cells "
     "fall."), ("D", "'D'."), ("D", '"D".'), ("D", "“D”."), ("D", "`D`"), ("D", "{D}"),
    ("D", "__D__"),
    ("D", "_D_."), ("D", "**D**."), ("D", "**D. Aspirin**"), ("D", ":** D"), ("D", "*D*"),
    ("D", r"$\mathbf{D}$."), ("D", r"\mathrm{D}"), ("D", r"\text{D}."), ("D", r"$\text{(D)}$"),
    ("D", r"$D$."), ("D", r"\(D\)."), ("D", r"|\boxed{D}"), ("D", r"|\boxed{\text{D}}"),
    ("D", r"|$\boxed{\textbf{(D)}\ 12}$"), ("D", r"|\boxed{D. 12}"), ("D", "letter D."),
    ("D", "the option D"), ("D", "the letter D."), ("D", "option (D)."), ("D", "Option D: Aspirin"),
    ("D", "choice D."), ("D", "the correct option, namely option D."), ("B", "b."), ("B", "b"),
    ("D", "d) aspirin"), ("D", "(d)."), ("A", "A."), ("A", "A"), ("A", "A because iron is low."),
    ("A", "A is right."), ("A", "A, a deficiency."), ("A", "(A) A deficiency"), ("A", "a."),
    ("A", "A: B cells."), ("B", "therefore B."), ("C", "as follows: C"), ("C", "A. No, the answer "
     "is C."), ("C", "|#### C"), ("B", "B because of A."), ("B", "B and it is common."),
]
LETTERS_WRONG = [
    ("A", "B."), ("E", "E. coli."), ("A", "A possible cause."), ("A", "a possible cause."),
    ("A", "C: A deficiency of iron."), ("B", "option C: B lymphocytes"), ("B", "C. Ratio: B cells "
     "fall."), ("B", "Aspirin."), ("B", "Botulism."), ("B", "vitamin B."),
    ("C", "C-reactive protein."),
    ("D", "D'Angelo."), ("A", "An abscess."), ("B", "B12."), ("B", "|B"), ("C", ""), ("I", "i.e. "
     "nothing"), ("A", "unclear. A is possible."), ("B", r"|\boxed{C}, so the answer is B."),
]

# Answers of one word, PubMedQA.
WORDS_RIGHT = [
    ("yes", "yes."), ("yes", "Yes"), ("yes", "YES!"), ("no", ": no"), ("maybe", "maybe."),
    ("yes", "yes: it helps."), ("yes", "yes, it helps"), ("no", "no—there is none."),
    ("no", "no - none"),
    ("yes", "“yes”."), ("yes", '"yes".'), ("yes", "'yes'"), ("yes", "**yes**."), ("yes", "`yes`"),
    ("yes", "_yes_"), ("yes", "(yes)."), ("yes", r"|\boxed{\text{yes}}"), ("yes", r"|\boxed{yes}"),
    ("no", r"$\text{no}$."), ("no", r"\textbf{no}."), ("maybe", "maybe; more is needed."),
    ("yes", "Yes. No doubt remains."), ("no", "as follows: no"), ("yes", ":\n\n**Yes**"),
]
WORDS_WRONG = [
    ("yes", "no."), ("no", "not known."), ("no", "none."), ("yes", "it helps: so no."),
    ("yes", "|yes"), ("maybe", "yes, maybe."), ("no", "unclear."), ("yes", "yesterday."),
]


def text_of(sentence: str) -> str:
  """The generated text of an entry."""
  if sentence.startswith("|"):
    return sentence[1:]
  space = "" if sentence[:1] in (":", " ") else " "
  return f"First this, then that. The answer is{space}{sentence}"
