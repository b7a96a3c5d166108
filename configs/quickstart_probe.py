"""Linear probes of the members of the quickstart, on embedded tasks.

  python -m wd_plasticity.evals.probe --config=configs/quickstart_probe.py \\
      --checkpoint=runs/quickstart --workdir=runs/quickstart

Under a minute on two cores. Expect about 50 % on the topic, against 41 % untrained and 25 % for
the majority class, alike for all decays within their errors; and chance on the order of words,
which models of this size do not see.
"""

from wd_plasticity.evals.config import probe_config


def get_config():
  config = probe_config()
  config.name = "quickstart"
  config.max_train = 4000
  return config
