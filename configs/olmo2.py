"""OLMo-2 of any size of the ladder or of the study, on the corpus you name.

  python -m wd_plasticity.main --config=configs/olmo2.py:size=1b,tpp=20 --dry_run

Arguments: size (0.3m 1m 3m 7m 15m 35m 75m 150m 1b), tpp (tokens per parameter), schedule
(cosine, or wsd as in the study's runs of 140 tokens per parameter). As in OLMo-2 the
input embedding is not decayed, and z-loss is on.
"""

from wd_plasticity.cli import parse_arguments
from wd_plasticity.presets import sized_config


def get_config(arguments=None):
  args = parse_arguments(arguments, size="35m", tpp=20.0, schedule="cosine")
  config = sized_config("olmo2", args["size"], args["tpp"])
  config.train.z_loss = 1e-5
  config.optim.decay.preset = "no_embeddings"
  config.optim.schedule.name = args["schedule"]
  if args["size"] == "1b":
    config.optim.learning_rate = 4e-4
    config.optim.schedule.warmup = "8.39e9 tokens"
    config.data.sequence_length = 4096
    config.train.update(global_batch_size=512, accumulate_steps=8)
    config.model.remat = "dots"
    config.mesh.update(data=1, fsdp=-1)
  return config


def sweep(add):
  for weight_decay in (0.0, 0.1, 0.3, 0.6, 1.0):
    add({"optim.weight_decay": weight_decay})
