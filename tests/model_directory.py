"""Small causal models as directories of transformers, written without transformers."""

import json

import numpy as np
from safetensors.numpy import save_file

from wd_plasticity.config import default_config
from wd_plasticity.data import tokenizers
from wd_plasticity.interop import transformers_config, transformers_weights
from wd_plasticity.models.config import PRESETS, ModelConfig

# Grouped heads, and a head dimension that is not width / heads.
SIZES = dict(num_layers=2, width=24, num_heads=4, num_kv_heads=2, head_dim=10, ffn_width=32,
             vocab_size=300)


def model_config(family="llama2", **sizes) -> ModelConfig:
  """A configuration of the family, with grouped heads of a dimension of their own."""
  section = default_config().model
  section.update(PRESETS[family]["0.3m"])
  section.update(SIZES | sizes)
  return ModelConfig.from_section(section, section.vocab_size)


def random_tensors(config, dtype=np.float32, seed=0) -> dict[str, np.ndarray]:
  """Weights far from their initial values, by transformers' names."""
  rng = np.random.default_rng(seed)
  return {p.tensor: (rng.normal(size=p.shape) * 0.3 + ("norm" in p.tensor)).astype(dtype)
          for p in transformers_weights.places(config)}


def write(directory, config=None, dtype=np.float32, seed=0, **changes):
  """Writes config.json, one file of weights and a byte-level BPE; returns the tensors."""
  config = config or model_config()
  directory.mkdir(exist_ok=True)
  tensors = random_tensors(config, dtype, seed)
  save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
  fields = transformers_config.config_to_transformers(config, 64)
  (directory / "config.json").write_text(json.dumps(
      fields | {"torch_dtype": np.dtype(dtype).name, "eos_token_id": 0} | changes))
  write_tokenizer(directory)
  return tensors


def write_tokenizer(directory, size=280):
  """A tokenizer.json and what names its special tokens."""
  made = tokenizers.train_bpe(["the decay of a weight", "an end and a beginning"] * 3, size)
  made.save(str(directory))
  (directory / "meta.json").unlink()
  (directory / "tokenizer_config.json").write_text(json.dumps(
      {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}))
  return made
