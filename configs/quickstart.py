"""Four weight decays on the embedded corpus: a first sweep on a laptop.

  python -m wd_plasticity.main --config=configs/quickstart.py --workdir=runs/quickstart

The corpus is the documentation that every Python environment carries, so nothing is
downloaded. 0.7M parameters, 1.2M tokens per member; about six minutes on two cores. At
this size expect the lowest validation loss, near 4.05, at 0 or 0.1, and smaller weights
with more decay: a look at the tools, not evidence on weight decay.
"""

from wd_plasticity.config import default_config


def get_config():
  config = default_config()
  config.name = "quickstart"
  config.model.update(num_layers=3, width=96, num_heads=3, num_kv_heads=3, ffn_width=256)
  config.data.tokenizer.vocab_size = 2048
  config.data.sequence_length = 128
  config.train.global_batch_size = 32
  config.train.steps = 300
  # On a CPU members in turn are as fast as stacked ones; 0 would measure it.
  config.sweep.members_at_once = 1
  return config


def sweep(add):
  for weight_decay in (0.0, 0.1, 0.5, 2.0):
    add({"optim.weight_decay": weight_decay})
