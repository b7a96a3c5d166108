"""Llama-2 of any size of the ladder or of the study, on the corpus you name.

  python -m wd_plasticity.main --config=configs/llama2.py:size=35m,tpp=20 \
      --config.data.source=files --config.data.train='/data/text/*.jsonl.zst' \
      --workdir=runs/llama2-35m

Arguments: size (0.3m 1m 3m 7m 15m 35m 75m 150m 0.5b 1b 4b), tpp (tokens per parameter).
Learning rate, batch and weight decays of 0.5b, 1b and 4b are those of the study (arXiv
2602.11137); below that the learning rate rises as the width falls. `--dry_run` tells what
a size needs before anything is run.
"""

from wd_plasticity.cli import parse_arguments
from wd_plasticity.presets import sized_config

# Size: peak learning rate, sequences per step.
_STUDY = {"0.5b": (2.5e-4, 512), "1b": (2.0e-4, 512), "4b": (1.5e-4, 1024)}


def get_config(arguments=None):
  args = parse_arguments(arguments, size="35m", tpp=20.0)
  config = sized_config("llama2", args["size"], args["tpp"])
  if args["size"] in _STUDY:
    config.optim.learning_rate, config.train.global_batch_size = _STUDY[args["size"]]
    config.data.sequence_length = 2048
    config.train.accumulate_steps = 8
    config.model.remat = "dots"
    config.mesh.update(data=1, fsdp=-1)
  return config


def sweep(add):
  for weight_decay in (0.0, 0.1, 0.5, 1.0, 1.5, 3.0):
    add({"optim.weight_decay": weight_decay})
