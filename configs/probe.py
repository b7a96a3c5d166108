"""Linear probes of every layer, on the embedded tasks and any others by path.

  python -m wd_plasticity.evals.probe --config=configs/probe.py \\
      --checkpoint=runs/books --workdir=runs/books

About ten seconds per member of 1M parameters and task on two cores. Members this small tell
topics better than they did untrained, and the order of words not at all.

Other tasks of labelled text are named with their files:

      --config.tasks="('sst2', 'ag_news')" \\
      --config.sources.sst2.train=data/sst2/train.tsv \\
      --config.sources.sst2.validation=data/sst2/dev.tsv \\
      --config.sources.ag_news.train='tfds:ag_news_subset:train' \\
      --config.sources.ag_news.test='tfds:ag_news_subset:test'
"""

from wd_plasticity.evals.config import probe_config


def get_config():
  return probe_config()
