"""Parameters and floating-point operations, counted from the configuration.

XLA's own count is of no use for a looped layer, whose body it counts once.
"""

from wd_plasticity.models.config import ModelConfig


def count_parameters(config: ModelConfig) -> dict[str, int]:
  """Numbers of parameters by part.

  Returns:
    embedding, attention, feed_forward, norms, head (0 when tied), total, and
    non_embedding: the total without the embedding and without an untied head.
  """
  query_size = config.num_heads * config.head_dim
  key_size = config.num_kv_heads * config.head_dim
  norms_per_layer = 2 * config.width + (query_size + key_size if config.qk_norm else 0)
  parts = {
      "embedding": config.vocab_size * config.width,
      "attention": config.num_layers * config.width * 2 * (query_size + key_size),
      "feed_forward": config.num_layers * 3 * config.width * config.ffn_width,
      "norms": config.num_layers * norms_per_layer + config.width,
      "head": 0 if config.tied_head else config.width * config.vocab_size,
  }
  total = sum(parts.values())
  return parts | {
      "total": total,
      "non_embedding": total - parts["embedding"] - parts["head"],
  }


def train_flops_per_token(config: ModelConfig, length: int, causal: bool = False) -> float:
  """Operations of a forward and backward pass, per token of a sequence.

  6 per parameter that is multiplied (2 forward, 4 backward; Kaplan et al. 2020, section
  2.1) plus 12 N H K L for the scores and the weighted values of attention (PaLM,
  Chowdhery et al. 2022, appendix B). The head is counted, tied or not; the look-up of
  input embeddings, norms and recomputed activations are not.

  Args:
    config: sizes.
    length: tokens in a sequence, L.
    causal: False counts attention over all L positions, the convention of most published
      utilisations; True halves it, for what a causal kernel has to compute.
  """
  parts = count_parameters(config)
  head = config.width * config.vocab_size
  multiplied = parts["attention"] + parts["feed_forward"] + head
  attention = 12 * config.num_layers * config.num_heads * config.head_dim * length
  return 6.0 * multiplied + attention * (0.5 if causal else 1.0)
