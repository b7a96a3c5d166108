"""The study's OLMo-2 "1B" (1.48B parameters) at 20 and 140 tokens per parameter.

  python -m wd_plasticity.study --config=configs/paper/olmo2.py:tpp=20,data=DATA \
      --workdir=runs/olmo2-20tpp

Arguments: tpp (20, or 140), grid (decay; or rate, which at 20 tokens per parameter crosses
three pretraining rates with three decays), data and reward_model (folders, as in
configs/paper/llama2.py, with olmo-mix-1124 and DATA/tokenizer.json, OLMo-2's).

Hardware: 64 v5e chips, 32 v5p chips, 8 H100-80GB or 32 A100-80GB; what the study ran these
on is not known.

Confirmed: the architecture, AdamW at 4e-4 and the grids. Likely: z-loss, and that embeddings
are not decayed while norms and the head are (OLMo-2's published settings). Batches have
2.097M tokens; whether as 512 x 4096 (as published, taken here) or 1024 x 2048 is not known:
--config.data.sequence_length=2048 --config.train.global_batch_size=1024. 30BT ("1x") are
14,305 steps; 140 tokens per parameter ("7x") are the 100,000 steps at which the run counts
210B tokens.

Unknown, with the usual choice made here: the warmup (OLMo-2's 4,000 steps, in both lengths),
the end of the cosine at 20 (a tenth of the peak, as published), and for the warmup-stable-decay
at 140 length and form of the decay (the last 20 %, linear to 0, see --config.optim.schedule).
"""

from wd_plasticity import paper
from wd_plasticity.cli import parse_arguments
from wd_plasticity.errors import UserError

_SEQUENCE_LENGTH, _BATCH_SIZE = 4096, 512
_TOKENS_PER_STEP = _SEQUENCE_LENGTH * _BATCH_SIZE
# Tokens per parameter: tokens, schedule, its value at the end over the peak, decays.
_RUNS = {
    20: (30e9, "cosine", 0.1, (0.0, 0.1, 0.3, 0.6, 1.0)),
    140: (100_000 * _TOKENS_PER_STEP, "wsd", 0.0, (0.0, 0.1, 0.3, 1.0)),
}
_RATES, _DECAYS_OF_RATES = (2e-4, 4e-4, 8e-4), (0.1, 0.6, 1.0)


def _read(arguments):
  args = parse_arguments(arguments, tpp=20, grid="decay", data="", reward_model="")
  run = paper.choose("tpp", args["tpp"], _RUNS)
  paper.choose("grid", args["grid"], {"decay": 0, "rate": 1})
  if args["grid"] == "rate" and args["tpp"] != 20:
    raise UserError("config argument grid=rate goes with tpp=20, at which the study ran it.")
  return args, run


def get_config(arguments=None):
  args, (tokens, schedule, final_fraction, _) = _read(arguments)
  config = paper.pretraining_config(
      "olmo2", "1b", tokens=tokens, sequence_length=_SEQUENCE_LENGTH, batch_size=_BATCH_SIZE,
      data=args["data"], tokenizer=("json", "tokenizer.json"))
  config.name = f"olmo2-1b-{args['tpp']}tpp"
  config.optim.learning_rate = 4e-4
  config.optim.decay.preset = "no_embeddings"
  config.optim.schedule.update(name=schedule, warmup=f"{4000 * _TOKENS_PER_STEP} tokens",
                               decay="20%", final_fraction=final_fraction)
  config.train.z_loss = 1e-5
  config.train.accumulate_steps = 8
  return config


def sweep(add, arguments=None):
  args, run = _read(arguments)
  if args["grid"] == "rate":
    for learning_rate in _RATES:
      for weight_decay in _DECAYS_OF_RATES:
        add({"optim.learning_rate": learning_rate, "optim.weight_decay": weight_decay})
  else:
    for weight_decay in run[3]:
      add({"optim.weight_decay": weight_decay})


def evals(add, arguments=None):
  args, _ = _read(arguments)
  paper.add_evals(add, learning_rate=1e-5, data=args["data"], reward_model=args["reward_model"])
