"""The study's Llama-2 models of 0.5B, 1B and 4B parameters at 20 tokens per parameter.

  python -m wd_plasticity.study --config=configs/paper/llama2.py:size=1b,data=DATA \
      --workdir=runs/llama2-1b

Arguments: size (0.5b 1b 4b), data (a folder, below), reward_model (a folder: transformers'
Skywork-Reward-Llama-3.1-8B-v0.2). Without data, name the files by --config.data.train=GLOBS,
--config.data.tokenizer.path=FILE and, better than a share of them, --config.data.validation:

  DATA/pretraining/train/*       FineWeb-Edu sample/350BT, as many files as the run needs
  DATA/pretraining/validation/*  other files of it, 50M tokens
  DATA/tokenizer.model           Llama-2's
  DATA/tasks/TASK/*              the files of every task, see docs/paper.md

Hardware: the study took A100-80GB, 4 for 0.5b, 8 for 1b and 32 for 4b, and the micro-batches
here are its own. Also 16 v5e chips for 0.5b, 32 for 1b, and 32 v5p chips for 4b; for a slice
without as many sequences in a micro-batch as devices set --config.train.accumulate_steps
(docs/results/paper has the memory of each). The study sharded within a node:
--config.mesh.fsdp=4 --config.mesh.data=-1, which computes the same.

Confirmed by the configs that were run: sizes, tokens, rates, schedule, batch, initialisation,
decay of every parameter (no mask), betas, clipping, seed and the grid. Unknown, and chosen
here: at which steps checkpoints are kept, and how often the loss is evaluated.
"""

from wd_plasticity import paper
from wd_plasticity.cli import parse_arguments

# Size: tokens, peak learning rate, sequences of a step, micro-batches of a step, decays, peak
# learning rate of fine-tuning.
_LADDER = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 1.5, 3.0, 10.0)
_RUNS = {
    "0.5b": (10e9, 2.5e-4, 512, 8, _LADDER, 1e-5),
    "1b": (20e9, 2.0e-4, 512, 4, _LADDER, 1e-5),
    "4b": (80e9, 1.5e-4, 1024, 8, (0.0, 0.1, 1.0), 7.5e-6),
}


def _read(arguments):
  args = parse_arguments(arguments, size="1b", data="", reward_model="")
  return args, paper.choose("size", args["size"], _RUNS)


def get_config(arguments=None):
  args, (tokens, learning_rate, batch_size, micro_batches, _, _) = _read(arguments)
  config = paper.pretraining_config("llama2", args["size"], tokens=tokens, sequence_length=2048,
                                    batch_size=batch_size, data=args["data"],
                                    tokenizer=("sentencepiece", "tokenizer.model"))
  config.name = f"llama2-{args['size']}-{tokens / 1e9:g}BT"
  config.optim.learning_rate = learning_rate
  config.train.accumulate_steps = micro_batches
  return config


def sweep(add, arguments=None):
  for weight_decay in _read(arguments)[1][4]:
    add({"optim.weight_decay": weight_decay})


def evals(add, arguments=None):
  args, run = _read(arguments)
  paper.add_evals(add, learning_rate=run[5], data=args["data"],
                  reward_model=args["reward_model"])
