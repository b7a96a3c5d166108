"""The configuration that all sizes of a family start from."""

from ml_collections import ConfigDict

from wd_plasticity.config import default_config
from wd_plasticity.models.config import preset_section


def sized_config(family: str, size: str, tokens_per_parameter: float) -> ConfigDict:
  """A model of `family` and `size` trained on text of one's own, with 32,000 tokens.

  Below the sizes of the study the learning rate rises as the width falls, sequences
  are of 512 tokens and batches of 64.
  """
  config = default_config()
  config.name = f"{family}-{size}-{tokens_per_parameter:g}tpp"
  config.model.update(preset_section(family, size))
  config.model.compute_dtype = "bfloat16"
  config.data.tokenizer.vocab_size = 32_000
  config.data.sequence_length = 512
  config.optim.learning_rate = min(3e-3, 0.6 / config.model.width)
  config.train.tokens_per_parameter = tokens_per_parameter
  config.train.global_batch_size = 64
  return config
