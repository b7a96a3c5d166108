"""One process of a run of all eval programs: `eval_process.py ARGUMENTS`, a JSON object.

A file of its own because `jax.distributed` must start before anything else of JAX does.
"""

import importlib
import json
import sys

import jax


def _configs(folder):
  from wd_plasticity.evals import config as fields

  finetune = fields.finetune_config()
  finetune.tasks = ("labelled",)
  finetune.max_length, finetune.epochs, finetune.batch_size = 96, 1, 8
  finetune.optim.learning_rate = 1e-2
  finetune.evaluate.update(generate="always", samples=2, max_new_tokens=6, observations=0,
                           forgetting_sequences=8)
  probe = fields.probe_config()
  probe.tasks = ("labelled",)
  probe.inverse_strengths = (1e-2, 1.0)
  overfit = fields.overfit_config()
  overfit.sequences = 16
  for config in (finetune, probe):
    config.sources.labelled.update(train=f"{folder}/train.tsv#labels=good|bad",
                                   test=f"{folder}/test.tsv#labels=good|bad")
  rank = fields.attention_rank_config()
  return {"attention_rank": rank, "overfit": overfit, "probe": probe, "finetune": finetune}


def run(folder, trained, workdir, mesh):
  """Runs the four programs in this process."""
  import tiny

  from wd_plasticity.evals import program

  for name, config in _configs(folder).items():
    session = tiny.session(name, config, [trained], workdir, **mesh)
    program.execute(session, importlib.import_module(f"wd_plasticity.evals.{name}").main)


if __name__ == "__main__":
  arguments = json.loads(sys.argv[1])
  jax.config.update("jax_num_cpu_devices", 4)
  jax.config.update("jax_disable_most_optimizations", True)
  jax.distributed.initialize(arguments["coordinator"], 2, arguments["process"])
  run(arguments["folder"], arguments["trained"], arguments["workdir"], arguments["mesh"])
