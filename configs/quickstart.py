"""A first study on a laptop: four weight decays, two seeds, fine-tuned, probed, reported.

  python -m wd_plasticity.study --config=configs/quickstart.py --workdir=runs/quickstart

The corpus is the documentation that every Python environment carries, so nothing is
downloaded. Members of 0.3M parameters see 0.6M tokens each; about seven minutes on two
cores for everything. A look at the tools, not evidence on weight decay.
"""

from wd_plasticity.config import default_config
from wd_plasticity.evals.config import (
    attention_rank_config,
    finetune_config,
    overfit_config,
    probe_config,
)


def get_config():
  config = default_config()
  config.name = "quickstart"
  config.model.update(num_layers=3, width=64, num_heads=2, num_kv_heads=2, ffn_width=172)
  config.data.tokenizer.vocab_size = 1024
  config.data.sequence_length = 128
  config.optim.learning_rate = 5e-3
  config.train.global_batch_size = 32
  config.train.steps = 150
  # On a CPU members in turn are as fast as stacked ones; 0 would measure it.
  config.sweep.members_at_once = 1
  return config


def sweep(add):
  for seed in (0, 1):
    for weight_decay in (0.0, 0.1, 0.5, 2.0):
      add({"optim.weight_decay": weight_decay, "seed": seed})


def evals(add):
  rank = attention_rank_config()
  rank.steps = "all"
  add(rank, minutes=0.2)

  overfit = overfit_config()
  overfit.sequences = 128
  add(overfit, minutes=0.3)

  probe = probe_config()
  probe.tasks = ("embedded_topic",)
  probe.max_train, probe.max_test = 2000, 500
  add(probe, minutes=0.5)

  finetune = finetune_config()
  finetune.tasks = ("embedded_topic",)
  finetune.max_train, finetune.max_test = 512, 500
  finetune.batch_size = 16
  finetune.evaluate.update(observations=0, forgetting_sequences=64)
  # Decay makes weights smaller and the same rate a larger step: each decay at its own best rate.
  add(finetune, sweep=[{"optim.learning_rate": r} for r in (3e-3, 1e-2)], minutes=2)
