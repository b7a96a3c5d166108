"""What a user should know of a tokenizer and of text, found while data are prepared."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from wd_plasticity.data.tokenizers import Tokenizer

LONG_WORD = 20_000  # letters; the time of a BPE grows with the square of a word
_SAMPLED_CHARACTERS = 1_000_000  # all documents up to here, then one of a hundred,
_SAMPLED_EACH = 10_000  # and this much of each
_SHOWN = 12


def lost_characters(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[str]:
  """How often each character does not come back when texts are encoded and decoded."""
  lost: Counter[str] = Counter()
  for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
    back = tokenizer.decode(ids)
    if back != text:
      lost += Counter(text) - Counter(back)
  return lost


class RoundTrip:
  """Encodes and decodes a sample of the documents that it is shown; `lost` counts characters."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._num_seen = self._num_documents = self._num_characters = 0
    self.lost: Counter[str] = Counter()

  def see(self, texts: Iterable[str]) -> None:
    """Takes its sample of some more documents."""
    sample = []
    for text in texts:
      if self._num_characters < _SAMPLED_CHARACTERS or self._num_seen % 100 == 0:
        sample.append(text[:_SAMPLED_EACH])
        self._num_characters += len(sample[-1])
      self._num_seen += 1
    self._num_documents += len(sample)
    self.lost += lost_characters(self._tokenizer, sample)

  def note(self) -> str:
    """A sentence on what was lost; '' for nothing."""
    if not self.lost:
      return ""
    shown = ", ".join(f"{c!r} {n:,} times" for c, n in self.lost.most_common(_SHOWN))
    more = f" and {len(self.lost) - _SHOWN} more" if len(self.lost) > _SHOWN else ""
    return (f"the tokenizer loses characters: in a sample of {self._num_documents:,} documents "
            f"{shown}{more} did not come back, so a model cannot read or write them; a byte-level "
            "tokenizer, or one that falls back on bytes, loses none.")


def long_word(text: str) -> str:
  """The beginning of a word of `LONG_WORD` letters and digits or more; '' when there is none.

  May find one that has half as many.
  """
  step = LONG_WORD // 2  # a word of LONG_WORD has a whole such piece
  for start in range(0, len(text) - step + 1, step):
    if text[start:start + step].isalnum():
      return text[start:start + 20]
  return ""


class LongWords:
  """Reports the first document that has a word so long that tokenizing it takes its time."""

  def __init__(self, report: Callable[[str], None]):
    self._report = report
    self.note = ""

  def see(self, text: str) -> None:
    if not self.note and (word := long_word(text)):
      self.note = (f"there is a word of more than {LONG_WORD // 2:,} letters without a space "
                   f"({word!r}...); the time to tokenize a word grows with the square of its "
                   "length, so cut such words, or take data.tokenizer.kind='byte'.")
      self._report(f"data: {self.note}")
