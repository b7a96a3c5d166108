"""Pseudo-rank of W_QK and W_VP of every head and stored step of a sweep.

  python -m wd_plasticity.evals.attention_rank --config=configs/attention_rank.py \
      --checkpoint=runs/books --workdir=runs/books

Needs the checkpoints alone. Half a minute for the 60 checkpoints of configs/books_study.py, some
seconds for one of 1B parameters. Expect all members alike early in training (about 0.88 of
the head dimension) and then the more decay the lower, W_QK most of all: in the sweep of
books 0.83 at decay 0, 0.63 at 0.3, 0.18 at 1 and 0.07 at 3.
"""

from wd_plasticity.evals.config import attention_rank_config


def get_config():
  config = attention_rank_config()
  config.steps = "all"
  return config
