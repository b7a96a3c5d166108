"""Is it plasticity, or a larger step? The books members on AG News at three learning rates.

  python -m wd_plasticity.evals.finetune --checkpoint=runs/books \
      --config=configs/books_finetune_lr.py --workdir=runs/books_lr \
      --config.sources.ag_news.train=AG_NEWS/train.tsv.xz \
      --config.sources.ag_news.test=AG_NEWS/test.csv.xz

Weight decay makes weights smaller, and the same learning rate moves smaller weights
further. So decays are to be compared each at its own best learning rate. One minute for
each member and rate on two cores.
"""

from wd_plasticity.evals.config import finetune_config


def get_config():
  config = finetune_config()
  config.name = "books, learning rate"
  config.tasks = ("ag_news",)
  config.max_train, config.max_test = 4096, 1000
  config.evaluate.update(observations=0, forgetting_sequences=256)
  return config


def sweep(add):
  for learning_rate in (3e-4, 1e-3, 3e-3):
    add({"optim.learning_rate": learning_rate})
