"""Gap between training and held-out loss, and loss by token frequency, of a whole sweep.

  python -m wd_plasticity.evals.overfit --config=configs/overfit.py \
      --checkpoint=runs/books --workdir=runs/books

Every stored step of every member. The 60 checkpoints of configs/books_study.py take about 20
minutes on two cores, a quarter of that with --config.sequences=256. Expect gaps of about
0.03 nats with standard errors of 0.05, since a tenth of an epoch was seen and books
differ; with weight decay 1 a gap about 0.02 smaller than without; and rare tokens that
pay for it: decay 1 costs them 0.3 nats and the most frequent ones 0.03.
"""

from wd_plasticity.evals.config import overfit_config


def get_config():
  config = overfit_config()
  config.steps = "all"
  return config
