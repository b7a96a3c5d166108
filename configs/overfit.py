"""Gap between training and held-out loss, and loss by token frequency, of a whole sweep.

  python -m wd_plasticity.evals.overfit --config=configs/overfit.py \
      --checkpoint=runs/books --workdir=runs/books
"""

from wd_plasticity.evals.config import overfit_config


def get_config():
  config = overfit_config()
  config.steps = "all"
  return config
