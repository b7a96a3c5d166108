"""Reward scores and chat tokens equal transformers' on the same directory."""

import os
import pathlib

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity suite needs torch")
transformers = pytest.importorskip("transformers", reason="the parity suite needs transformers")

import reward_directory  # noqa: E402

from wd_plasticity.config import default_config  # noqa: E402
from wd_plasticity.interop import transformers_config, transformers_files, transformers_weights  # noqa: E402
from wd_plasticity.models import decoder  # noqa: E402
from wd_plasticity.models.config import ModelConfig  # noqa: E402
from wd_plasticity.reward import model as reward  # noqa: E402
from wd_plasticity.reward.chat import ChatTokenizer  # noqa: E402

_DATA = os.environ.get("WD_PLASTICITY_DATA")
PAIRS = [
    ("How many legs has a spider?", "Eight."),
    ("How many legs has a spider?\n", "  A spider has eight legs, and a fly has six. " * 9),
    ("7 * 6 = ", "42, so 42."),
    ("é√ <s> <|user|>", ""),
    ("a\r\n\tb", "</s></s>"),
]
# What templates of published models use: defaults, slices, filters, namespaces, whitespace
# control and transformers' own tag.
LONG_TEMPLATE = """\
{% if day is undefined %}{% set day = "a day in July" %}{% endif %}
{%- set seen = namespace(turns=0, last='') %}
{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}

{{- bos_token ~ "It is " + day + ".\\n" }}
{% for turn in rest %}
    {% if 'tool_calls' not in turn and turn['role'] in ('user', 'assistant') %}
        {% set seen.turns = seen.turns + 1 %}
<|{{ turn.role }}|>
{{ turn['content'] | trim }}{{ eos_token }}
    {% endif %}
    {%- if loop.last %}{% set seen.last = turn.role %}{% endif %}
{% endfor %}
{{ {'turns': seen.turns, 'last': seen.last, 'signs': '<&>é'} | tojson }}
{% generation %}
  after {{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} {{ pad_token }}
{% endgeneration %}
"""
CASES = {
    "grouped": dict(),
    "no_grouping": dict(num_key_value_heads=4),
    "plain_positions": dict(rope_scaling=None, num_hidden_layers=3),
    "padding_ends_the_text": dict(pad_token_id=1),  # </s>, with which the template ends
    "far": dict(rope_scaling=dict(
        rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=8.0,
        original_max_position_embeddings=64)),
}


def write(directory, dtype, sizes):
  """A directory by transformers' own save_pretrained; returns its model in float32."""
  directory.mkdir()
  fields = reward_directory.SIZES | sizes
  names = ("architectures", "model_type")
  config = transformers.LlamaConfig(
      num_labels=1, **{k: v for k, v in fields.items() if k not in names})
  model = transformers.LlamaForSequenceClassification(config)
  tensors = reward_directory.random_tensors(fields)
  model.load_state_dict({name: torch.tensor(t) for name, t in tensors.items()})
  model.to(dtype).save_pretrained(directory)
  reward_directory.write_tokenizer(directory)
  return transformers.LlamaForSequenceClassification.from_pretrained(
      directory, dtype=torch.float32, attn_implementation="eager").eval()


def their_tokens(directory, pairs, template=None):
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
  return [tokenizer.apply_chat_template(
      [{"role": "user", "content": p}, {"role": "assistant", "content": r}],
      chat_template=template, tokenize=True, return_dict=False) for p, r in pairs]


def their_scores(model, tokens) -> np.ndarray:
  """As one batch, padded on the right with an attention mask."""
  rows = np.full((len(tokens), max(map(len, tokens))), model.config.pad_token_id)
  mask = np.zeros_like(rows)
  for row, ids in enumerate(tokens):
    rows[row, :len(ids)], mask[row, :len(ids)] = ids, 1
  with torch.no_grad():
    return model(torch.tensor(rows), attention_mask=torch.tensor(mask)).logits[:, 0].numpy()


@pytest.mark.parametrize("template", [None, LONG_TEMPLATE])
def test_chat_tokens(tmp_path, template):
  directory = tmp_path / "model"
  directory.mkdir()
  reward_directory.write(directory)
  theirs = their_tokens(directory, PAIRS, template)
  if template:
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokens = ChatTokenizer(directory).encode(PAIRS)
  else:
    # transformers tells the template the year, here it is left out for reproducible scores
    source = reward_directory.TEMPLATE.replace("strftime_now is defined", "false")
    theirs = their_tokens(directory, PAIRS, source)
    tokens = ChatTokenizer(directory).encode(PAIRS)
  assert [list(ids) for ids in tokens] == theirs
  assert all(list(ids).count(0) <= 2 for ids in tokens)


def test_files_that_their_tokenizer_saves(tmp_path):
  """Templates in a file of their own, special tokens as transformers writes them now."""
  first, again = tmp_path / "first", tmp_path / "again"
  first.mkdir()
  reward_directory.write_tokenizer(first)
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(first)
  tokenizer.chat_template = LONG_TEMPLATE
  tokenizer.save_pretrained(again)
  assert (again / "chat_template.jinja").exists()
  assert [list(ids) for ids in ChatTokenizer(again).encode(PAIRS)] == their_tokens(again, PAIRS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_scores(tmp_path, case, dtype):
  model = write(tmp_path / "model", dtype, CASES[case])
  ours = reward.load_reward_model(tmp_path / "model", compute_dtype="float32", batch_size=3)
  expected = their_scores(model, [list(ids) for ids in ours._chat.encode(PAIRS)])
  assert expected.std() > 0.3
  np.testing.assert_allclose(ours.score(PAIRS), expected, atol=1e-4)


def test_scores_in_bfloat16(tmp_path):
  """As near to float32 as transformers' own bfloat16, whose sums are rounded otherwise."""
  directory = tmp_path / "model"
  exact = write(directory, torch.bfloat16, {})
  rough = transformers.LlamaForSequenceClassification.from_pretrained(
      directory, dtype=torch.bfloat16, attn_implementation="eager").eval()
  ours = reward.load_reward_model(directory)
  assert ours.config.compute_dtype == "bfloat16"
  tokens = [list(ids) for ids in ours._chat.encode(PAIRS)]
  expected = their_scores(exact, tokens)
  with torch.no_grad():
    theirs = np.array([rough(torch.tensor([ids])).logits.item() for ids in tokens])
  error = lambda scores: np.sqrt(np.mean((scores - expected)**2))
  assert error(ours.score(PAIRS)) < 1.5 * error(theirs)


@pytest.mark.skipif(not _DATA, reason="WD_PLASTICITY_DATA is not set")
def test_logits_of_a_published_directory():
  directory = pathlib.Path(_DATA) / "checkpoints" / "verl_tiny_llama"
  fields, tensors = transformers_files.read_directory(directory)
  section = default_config().model
  section.update(transformers_config.section_from_transformers(fields))
  config = ModelConfig.from_section(section, 0)
  params = transformers_weights.from_transformers(tensors, config)
  model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
  tokens = np.arange(16)[None]
  with torch.no_grad():
    expected = model(torch.tensor(tokens)).logits.numpy()
  got = jax.jit(decoder.logits, static_argnums=1)(params, config, tokens)
  np.testing.assert_allclose(got, expected, atol=1e-4)
