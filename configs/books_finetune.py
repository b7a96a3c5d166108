"""Fine-tunes the members of the books sweep: topic, sentiment, questions, chains of thought.

  python -m wd_plasticity.evals.finetune --checkpoint=runs/books \
      --config=configs/books_finetune.py --workdir=runs/books \
      --config.sources.sst2.train=SST2/train.tsv.xz \
      --config.sources.sst2.validation=SST2/test.tsv.xz \
      --config.sources.ag_news.train=AG_NEWS/train.tsv.xz \
      --config.sources.ag_news.test=AG_NEWS/test.csv.xz \
      --config.sources.arc_easy.train=ARC/arc_easy_train.jsonl.xz \
      --config.sources.arc_easy.test=ARC/arc_easy_test.jsonl.xz

The recipe of the study at a learning rate for 1.1M parameters, on at most 4,096 examples
a task; `embedded_arithmetic` comes with the installation. About an hour on two cores for
ten members. What came of it is kept in docs/results/books.
"""

from wd_plasticity.evals.config import finetune_config


def get_config():
  config = finetune_config()
  config.name = "books"
  config.tasks = ("sst2", "ag_news", "arc_easy", "embedded_arithmetic")
  config.max_train, config.max_test = 4096, 1000
  config.optim.learning_rate = 1e-3
  config.evaluate.update(max_new_tokens=64, samples=16, observations=3, observed_problems=256)
  return config
