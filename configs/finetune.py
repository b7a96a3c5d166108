"""The fine-tuning recipe of the study, on the tasks you name.

  python -m wd_plasticity.evals.finetune --checkpoint=runs/llama2-35m \
      --config=configs/finetune.py --config.tasks="('gsm8k','arc_easy')" \
      --config.sources.gsm8k.train=DATA/train.jsonl --config.sources.gsm8k.test=DATA/test.jsonl \
      --config.sources.arc_easy.train=DATA/arc_train.parquet \
      --config.sources.arc_easy.test=DATA/arc_test.parquet --workdir=runs/llama2-35m

Full fine-tuning, AdamW without decay, cosine after 10 % warmup, 3 epochs, 64 examples a
step, learning rate 1e-5 (arXiv 2602.11137). That rate is for models of 0.5B parameters and
more; smaller ones want more, such as 1e-3 at 1M. A sweep over fields of the fine-tuning is
a function `sweep(add)`, as in pretraining.
"""

from wd_plasticity.evals.config import finetune_config


def get_config():
  return finetune_config()
