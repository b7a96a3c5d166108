"""A problem and a response as the tokens of a reward model: its own chat template.

The template is rendered like `apply_chat_template` of transformers does it, in jinja2's
sandbox, with one difference: `strftime_now` is not defined. Templates that write today's
date fall back to a fixed one, so that a pair has the same score on every day.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from wd_plasticity.data.tokenizers import mistake
from wd_plasticity.errors import UserError
from wd_plasticity.interop.transformers_files import read_json

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
                   "mask_token")


class ChatTokenizer:
  """Tokens of a conversation of one problem and one response.

  Attributes:
    fingerprint: sha256 of the tokenizer, the template and the special tokens.
  """

  def __init__(self, directory: str | os.PathLike):
    """Reads tokenizer.json, tokenizer_config.json and the template of a model directory.

    Args:
      directory: as `save_pretrained` of transformers writes it.

    Raises:
      UserError: a file is missing or cannot be understood, or jinja2 is not installed.
    """
    self._directory = Path(directory)
    path = self._directory / "tokenizer.json"
    if not path.exists():
      raise UserError(f"{directory} has no tokenizer.json; write it with transformers' "
                      "AutoTokenizer.from_pretrained(...).save_pretrained(...).")
    content = _read_text(path)
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(content)
    except BaseException as e:  # the library raises plain Exception, or panics
      raise mistake(e, f"{path} is not a tokenizer ({e}); copy it again.") from e
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    fields = read_json(self._directory / "tokenizer_config.json")
    source = self._template_source(fields)
    self._template = _compile(source, self._directory)
    self._special_tokens = self._read_special_tokens(fields)
    parts = json.dumps([content, source, self._special_tokens])
    self.fingerprint = hashlib.sha256(parts.encode()).hexdigest()

  def render(self, problem: str, response: str) -> str:
    """The text of the conversation, special tokens written out."""
    messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": response}]
    try:
      return self._template.render(messages=messages, tools=None, documents=None,
                                   add_generation_prompt=False, **self._special_tokens)
    except Exception as e:  # whatever the code of the template raises
      raise UserError(f"The chat template in {self._directory} does not take a user's message and "
                      f"the assistant's answer ({e}); a reward model must.") from e

  def encode(self, pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
    """The int32 token ids of each (problem, response).

    The template writes the special tokens, so the tokenizer adds none of its own: there is
    one beginning of sequence, not two.
    """
    texts = [self.render(problem, response) for problem, response in pairs]
    try:
      encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    except BaseException as e:
      raise mistake(e, f"The tokenizer in {self._directory} cannot encode every text ({e}); it has "
                       "no token for what it does not know.") from e
    return [np.array(e.ids, np.int32) for e in encoded]

  def _template_source(self, fields: dict) -> str:
    """The template file, else the field of tokenizer_config.json, as transformers chooses."""
    path = self._directory / "chat_template.jinja"
    if path.exists():
      return _read_text(path)
    template = fields.get("chat_template")
    if isinstance(template, list):  # several with names
      template = next((named.get("template") for named in template if isinstance(named, dict)
                       and named.get("name") == "default"), None)
    if not isinstance(template, str):
      raise UserError(f"{self._directory} has no chat template, neither chat_template.jinja nor "
                      "the field chat_template of tokenizer_config.json; a reward model needs "
                      "the one it was trained with.")
    return template

  def _read_special_tokens(self, fields: dict) -> dict[str, str]:
    """{'bos_token': '<s>', ...}, those that are set."""
    path = self._directory / "special_tokens_map.json"
    fields = (read_json(path) if path.exists() else {}) | fields
    found = {}
    for name in _SPECIAL_TOKENS:
      token = fields.get(name)
      token = token.get("content") if isinstance(token, dict) else token
      if token is not None:
        found[name] = token
    return found


def _read_text(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror}); copy it again.") from e
  except UnicodeDecodeError as e:
    raise UserError(f"{path} is not UTF-8 text (byte {e.start}); copy it again.") from e


def _compile(source: str, directory: Path):
  """The jinja2 template, in a sandbox: a template is code of whoever made the model."""
  try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
  except ImportError:
    raise UserError("A reward model's chat template needs the package jinja2; install it with "
                    "pip install 'jinja2>=3.1.6'.") from None

  class Generation(jinja2.ext.Extension):
    """transformers' {% generation %} marks what the assistant wrote; here it is just that."""

    tags = {"generation"}

    def parse(self, parser):
      next(parser.stream)
      return parser.parse_statements(("name:endgeneration",), drop_needle=True)

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(value, indent=None):  # jinja2's own escapes HTML
    return json.dumps(value, ensure_ascii=False, indent=indent)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
  environment.filters["tojson"] = tojson
  environment.globals["raise_exception"] = raise_exception
  try:
    return environment.from_string(source)
  except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as e:
    raise UserError(f"The chat template in {directory} is not valid ({e}); copy it again.") from e
