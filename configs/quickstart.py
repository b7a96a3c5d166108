"""Four weight decays on the embedded corpus: a first sweep on a laptop.

  python -m wd_plasticity.main --config=configs/quickstart.py --workdir=runs/quickstart

The corpus is the documentation that every Python environment carries, so nothing is
downloaded.
"""

from wd_plasticity.config import default_config


def get_config():
  config = default_config()
  config.name = "quickstart"
  config.model.update(num_layers=3, width=96, num_heads=3, num_kv_heads=3, ffn_width=256)
  config.data.tokenizer.vocab_size = 2048
  config.data.sequence_length = 128
  config.train.global_batch_size = 32
  config.train.steps = 400
  return config


def sweep(add):
  for weight_decay in (0.0, 0.1, 0.5, 2.0):
    add({"optim.weight_decay": weight_decay})
