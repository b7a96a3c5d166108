"""The command line of lm-evaluation-harness, with `--model wd_plasticity` among its models.

  python -m wd_plasticity.interop.lm_eval_cli run --model wd_plasticity \
      --model_args checkpoint=runs/books/members/wd0.3-seed0 --tasks arc_easy,piqa

Everything else is as the harness documents it. Results go where its `--output_path` says;
`wd_plasticity.evals.lm_eval` is the program whose results are in the report.
"""

from wd_plasticity import errors
from wd_plasticity.evals import lm_eval_tasks


def main(argv=None):
  """Registers the model and hands over to the harness."""
  del argv  # the harness reads sys.argv
  lm_eval_tasks.require()
  from lm_eval.__main__ import cli_evaluate

  from wd_plasticity.interop import lm_eval_model  # noqa: F401  registers the model
  cli_evaluate()


if __name__ == "__main__":
  errors.run(main)
