"""Weight decay from 0 to 3 and two seeds on public-domain books: a study for a CPU.

  python -m wd_plasticity.main --config=configs/books.py \
      --config.data.train='BOOKS/books-0[0-3].tar.xz' \
      --config.data.validation='BOOKS/books-04.tar.xz' --workdir=runs/books

BOOKS is a folder with tar archives of Markdown files, here 452 books cut into five
shards of which the last is held out. 1.1M parameters; about an hour on two cores, of
which the preparation of the data takes some minutes once. What came of it is kept in
docs/results/books.
"""

from wd_plasticity.config import default_config
from wd_plasticity.models.config import preset_section


def get_config():
  config = default_config()
  config.name = "books"
  config.model.update(preset_section("llama2", "1m"))
  config.model.compute_dtype = "bfloat16"
  config.data.source = "files"
  # The head of a book: title, author, year, a rule.
  config.data.strip = r"(#{1,3} [^\n]*\n+){1,3}-{3,}\n+"
  config.data.tokenizer.vocab_size = 4096
  config.data.sequence_length = 256
  config.optim.learning_rate = 4e-3
  config.train.tokens_per_parameter = 4.0
  config.train.global_batch_size = 16
  config.train.eval_sequences = 256
  config.checkpoint.keep_at = (0.1, 0.25, 0.5, 0.75)
  config.sweep.members_at_once = 1
  return config


def sweep(add):
  for seed in (0, 1):
    for weight_decay in (0.0, 0.1, 0.3, 1.0, 3.0):
      add({"optim.weight_decay": weight_decay, "seed": seed})
