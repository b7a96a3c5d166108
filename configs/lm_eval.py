"""Scores of lm-evaluation-harness for every member of a sweep.

  python -m wd_plasticity.evals.lm_eval --config=configs/lm_eval.py \
      --checkpoint=runs/llama2-35m --workdir=runs/llama2-35m

Needs the extra: pip install -e '.[lm_eval]'. The harness fetches the data of its tasks from the
Hugging Face Hub and keeps them in its cache; --config.include_path=FOLDER adds tasks of your own,
whose YAML files can name files on this machine. These four tell small models apart best: their
options are compared by likelihood, and chance is 0.25 or 0.5.
"""

from wd_plasticity.evals.config import lm_eval_config


def get_config():
  config = lm_eval_config()
  config.tasks = ("arc_easy", "piqa", "sciq", "lambada_openai")
  return config
