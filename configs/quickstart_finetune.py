"""Fine-tunes the models of the quickstart on tasks that need no download.

  python -m wd_plasticity.evals.finetune --checkpoint=runs/quickstart \
      --config=configs/quickstart_finetune.py --workdir=runs/quickstart
"""

from wd_plasticity.evals.config import finetune_config


def get_config():
  config = finetune_config()
  config.tasks = ("embedded_topic", "embedded_next")
  config.max_train, config.max_test = 1024, 256
  config.epochs = 2
  config.optim.learning_rate = 1e-3
  config.evaluate.update(samples=4, max_new_tokens=32, observations=1, observed_problems=128,
                         forgetting_sequences=64)
  return config
