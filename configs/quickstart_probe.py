"""Linear probes of the members of the quickstart, on embedded tasks.

  python -m wd_plasticity.evals.probe --config=configs/quickstart_probe.py \\
      --checkpoint=runs/quickstart --workdir=runs/quickstart
"""

from wd_plasticity.evals.config import probe_config


def get_config():
  config = probe_config()
  config.name = "quickstart"
  config.max_train = 4000
  return config
