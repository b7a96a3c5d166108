"""Pseudo-rank of W_QK and W_VP of every head and stored step of a sweep.

  python -m wd_plasticity.evals.attention_rank --config=configs/attention_rank.py \
      --checkpoint=runs/books --workdir=runs/books
"""

from wd_plasticity.evals.config import attention_rank_config


def get_config():
  config = attention_rank_config()
  config.steps = "all"
  return config
