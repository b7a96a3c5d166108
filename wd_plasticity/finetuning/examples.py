"""Problems as token ids: the template of a conversation, and what is cut when it is too long.

An example is `end of sequence, prompt, response, end of sequence`. The first one is what
stands before a document in pretraining; the loss is on the response and what ends it.
Prompt and response are tokenised apart, as LLaMA-Factory does, so a prompt has the same
ids whatever follows it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from wd_plasticity.data.tokenizers import Tokenizer
from wd_plasticity.errors import UserError
from wd_plasticity.tasks.grading import STOP_STRINGS, TEMPLATE
from wd_plasticity.tasks.task import Problem

PROMPT = "{prompt}"
SHORTEST = 5  # tokens of an example: the first one, and a quarter of the rest to the prompt


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt with its response.

  Attributes:
    tokens: int32 ids of all of it.
    prompt_length: how many of them come before the response.
  """
  tokens: np.ndarray
  prompt_length: int


def stop_strings(template: str) -> tuple[str, ...]:
  """Texts at which a model that has answered begins another conversation by itself.

  Those of a template are its lines, where they begin a line (`Question:` and `Answer:` of
  'Question: {prompt}\\nAnswer:'), or the beginning of its only line. The template of the
  paper has the paper's, which end a response wherever they stand: 'Human' and 'Assistant'.
  """
  if template == TEMPLATE:
    return STOP_STRINGS
  before, _, after = template.partition(PROMPT)
  if "\n" not in template:
    return (before.strip(),) if before.strip() else ()
  # What follows the prompt in its own line does not begin one.
  lines = [line.strip() for line in [*before.split("\n"), *after.split("\n")[1:]]]
  return tuple(dict.fromkeys("\n" + line for line in lines if line))


class Template:
  """Turns prompts and responses into ids.

  Attributes:
    stops: texts that end a response, see `stop_strings`.

  Args:
    text: with `{prompt}` where the instruction goes; the response follows it.
    tokenizer: of the model.
    max_length: tokens that the model reads at most. A longer prompt loses its beginning,
      a response that leaves less than a quarter to the prompt its end.

  Raises:
    UserError: the template has no place for the prompt, or the model reads too few tokens.
  """

  def __init__(self, text: str, tokenizer: Tokenizer, max_length: int):
    if text.count(PROMPT) != 1:
      raise UserError(f"template={text!r} must contain {PROMPT} once, such as "
                      r"'Human: {prompt}\nAssistant:'.")
    if max_length < SHORTEST:
      raise UserError(f"max_length={max_length} tokens leave none to a prompt; it must be at least "
                      f"{SHORTEST}, or 0 for the length of a pretraining record.")
    self._before, self._after = text.split(PROMPT)
    self.stops = stop_strings(text)
    self._tokenizer = tokenizer
    self._max_length = max_length
    # A tokenizer that encodes a text as if a space stood before it brings its own.
    self._space = "" if tokenizer.adds_space else " "

  def prompts(self, texts: Sequence[str],
              room: int | Sequence[int] = 1) -> tuple[list[np.ndarray], int]:
    """Ids of prompts, and how many of them were cut.

    Args:
      texts: instructions.
      room: tokens that are left to a response, the same for all or those of each.
    """
    eos = np.array([self._tokenizer.eos_id], np.int32)
    encoded = self._tokenizer.encode_batch([self._before + t + self._after for t in texts])
    longest = np.maximum(1, self._max_length - 1 - np.broadcast_to(room, len(encoded))).tolist()
    cut = sum(len(ids) > n for ids, n in zip(encoded, longest, strict=True))
    return [np.concatenate([eos, ids[-n:]]) for ids, n in zip(encoded, longest, strict=True)], cut

  def responses(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of responses, without an end."""
    return self._tokenizer.encode_batch([self._space + t for t in texts])

  def examples(self, problems: Sequence[Problem]) -> tuple[list[Example], int]:
    """Prompts with their responses, and how many of them were cut.

    The last target of an example is the end of its sequence, so the inputs of one are at
    most `max_length`.
    """
    prompts = self._tokenizer.encode_batch(
        [self._before + p.prompt + self._after for p in problems])
    responses = self.responses([p.response for p in problems])
    eos = np.array([self._tokenizer.eos_id], np.int32)
    examples, cut = [], 0
    for prompt, response in zip(prompts, responses, strict=True):
      room = self._max_length - 1  # beside the first token; the end is a target only
      learnt = response[:max(1, room - min(len(prompt), room // 4))]
      read = prompt[max(0, len(prompt) - (room - len(learnt))):]
      cut += len(read) < len(prompt) or len(learnt) < len(response)
      tokens = np.concatenate([eos, read, learnt, eos])
      examples.append(Example(tokens, 1 + len(read)))
    return examples, cut

  def decode(self, ids: np.ndarray) -> str:
    """The text of a generated response."""
    return self._tokenizer.decode(ids).strip()
