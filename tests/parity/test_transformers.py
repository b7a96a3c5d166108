"""Logits equal transformers' Llama and Olmo2 on random weights, in both directions.

`python -m tests.parity.test_transformers` writes the golden files that the default tests
check without torch (tests/test_models_decoder.py).
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity suite needs torch")
transformers = pytest.importorskip("transformers", reason="the parity suite needs transformers")

from wd_plasticity.config import default_config  # noqa: E402
from wd_plasticity.interop import transformers_config, transformers_weights  # noqa: E402
from wd_plasticity.models import decoder  # noqa: E402
from wd_plasticity.models.config import PRESETS, ModelConfig  # noqa: E402

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LENGTH = 13
# Odd vocabularies, feed-forward widths and lengths; head_dim * num_heads is not the width.
CASES = {
    "llama_grouped": dict(family="llama2", num_layers=2, width=18, num_heads=6, num_kv_heads=2,
                          head_dim=6, ffn_width=31, vocab_size=53),
    "llama_tied": dict(family="llama2", num_layers=3, width=20, num_heads=4, num_kv_heads=4,
                       head_dim=4, ffn_width=29, vocab_size=47, tied_head=True),
    "llama_scaled": dict(family="llama2", num_layers=2, width=24, num_heads=3, num_kv_heads=1,
                         head_dim=8, ffn_width=31, vocab_size=53, rope_theta=400.0,
                         rope_scaling=(8.0, 1.0, 4.0, 16.0)),
    "olmo2_grouped": dict(family="olmo2", num_layers=2, width=18, num_heads=6, num_kv_heads=2,
                          head_dim=6, ffn_width=31, vocab_size=53),
    "olmo2": dict(family="olmo2", num_layers=3, width=20, num_heads=4, num_kv_heads=4,
                  head_dim=4, ffn_width=29, vocab_size=47),
}


def our_config(family, **sizes) -> ModelConfig:
  section = default_config().model
  section.update(PRESETS[family]["0.3m"])
  section.update(sizes)
  return ModelConfig.from_section(section, sizes["vocab_size"])


def their_model(config: ModelConfig):
  """A transformers model with random weights, norms included, far from their initial values."""
  fields = transformers_config.config_to_transformers(config, length=64)
  model_type = fields.pop("model_type")
  model = transformers.AutoModelForCausalLM.from_config(
      transformers.AutoConfig.for_model(model_type, **fields), attn_implementation="eager")
  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
  return model.eval()


def their_tensors(model) -> dict[str, np.ndarray]:
  return {name: t.detach().numpy().copy() for name, t in model.state_dict().items()}


def their_logits(model, tokens_BxL) -> np.ndarray:
  with torch.no_grad():
    return model(torch.tensor(tokens_BxL, dtype=torch.long)).logits.numpy()


def tokens_of(config: ModelConfig) -> np.ndarray:
  return np.random.default_rng(1).integers(config.vocab_size, size=(2, LENGTH)).astype(np.int32)


@pytest.mark.parametrize("case", CASES)
def test_their_weights_give_their_logits(case):
  config = our_config(**CASES[case])
  model, tokens = their_model(config), tokens_of(config)
  params = transformers_weights.from_transformers(their_tensors(model), config)
  expected = their_logits(model, tokens)
  assert expected.std() > 0.3  # far from the uniform answer, where anything would agree
  np.testing.assert_allclose(decoder.logits(params, config, tokens), expected, atol=1e-4)


def test_scaled_positions_are_not_the_plain_ones():
  config = our_config(**CASES["llama_scaled"])
  model, tokens = their_model(config), tokens_of(config)
  params = transformers_weights.from_transformers(their_tensors(model), config)
  plain = dataclasses.replace(config, rope_scaling=())
  off = np.abs(decoder.logits(params, plain, tokens) - their_logits(model, tokens))
  assert off.max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_our_weights_give_our_logits(case):
  config = our_config(**CASES[case])
  params = decoder.init_params(config, jax.random.key(3))
  params = jax.tree.map(lambda p: p * 1.5, params)
  model, tokens = their_model(config), tokens_of(config)
  tensors = transformers_weights.to_transformers(params, config)
  missing = model.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=False)
  assert not missing.unexpected_keys
  assert missing.missing_keys == (["lm_head.weight"] if config.tied_head else [])
  np.testing.assert_allclose(
      decoder.logits(params, config, tokens), their_logits(model, tokens), atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_section_of_their_config(case):
  config = our_config(**CASES[case])
  section = default_config().model
  section.update(transformers_config.section_from_transformers(
      their_model(config).config.to_dict()))
  section.init = config.init
  assert ModelConfig.from_section(section, config.vocab_size) == config


def write_golden():
  for case, sizes in CASES.items():
    config = our_config(**sizes)
    model, tokens = their_model(config), tokens_of(config)
    tensors = their_tensors(model)
    if config.tied_head:
      del tensors["lm_head.weight"]
    fields = transformers_config.config_to_transformers(config, length=64)
    np.savez_compressed(
        GOLDEN / f"transformers_{case}.npz", config=json.dumps(fields), tokens=tokens,
        logits=their_logits(model, tokens), **tensors)


if __name__ == "__main__":
  write_golden()
