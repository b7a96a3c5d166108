"""Every field of the eval programs with its default.

A config file returns one of these and changes fields; any of them can be set on the
command line, as `--config.steps=all`.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from wd_plasticity.config import default_config, schedule_section
from wd_plasticity.errors import UserError
from wd_plasticity.members import Member
from wd_plasticity.tasks import registry
from wd_plasticity.tasks.grading import TEMPLATE
from wd_plasticity.typed_config import Config, declares

# Fields that say which results are wanted and how they are computed, not what they are.
FREE_FIELDS = ("program", "name", "steps", "members_at_once", "cache_dir", "tokenizer_dir", "mesh",
               "distributed", "tasks", "sources", "run_task_code")
# Fields that a point of a program's own sweep can set; all others are read once for all points.
POINT_FIELDS = {"finetune": (
    "seed", "max_train", "max_test", "template", "max_length", "epochs", "batch_size", "optim",
    "lora", "replay", "evaluate", "reward_model")}


def check_points(program: str, points: Sequence[Member]) -> None:
  """Refuses points of a program's own sweep that would not be what is run.

  Raises:
    UserError: the program takes no sweep, or a point sets a field that is read once for all.
  """
  allowed = POINT_FIELDS.get(program, ())
  for point in points:
    for field in point.overrides:
      if not allowed:
        raise UserError(f"the program {program} takes no sweep, and one sets {field}; set the "
                        f"field in the configuration, and run {program} once for each value with "
                        "a --workdir each.")
      if field.partition(".")[0] not in allowed:
        raise UserError(f"sweep(add) of {program} sets {field}, which is the same for all points; "
                        f"a point can set {', '.join(allowed)}. Set {field} in the configuration.")


def shared_config(program: str) -> ConfigDict:
  """What all eval programs have."""
  c = Config()
  c.program = program  # whose configuration this is
  c.name = ""  # shown in plots
  c.steps = "last"  # of each member: last, all, or numbers such as '100,200'
  c.members_at_once = 0  # members in one compiled program; 0: one on a CPU, else what fits
  c.compute_dtype = ""  # float32 or bfloat16; empty: as pretrained
  c.cache_dir = ""  # prepared pretraining data; empty: in the work directory of the pretraining
  c.tokenizer_dir = ""  # empty: the one beside the checkpoints
  c.mesh = default_config().mesh
  c.distributed = default_config().distributed
  return c


def sources_section() -> ConfigDict:
  """`sources.<task>.<split>`: files, or tfds:NAME/SPLIT, of each task that needs some."""
  return ConfigDict({name: dict.fromkeys(registry.get(name).splits, "")
                     for name in registry.names()})


@declares("overfit")
def overfit_config() -> ConfigDict:
  """Fields of the program overfit."""
  c = shared_config("overfit")
  c.sequences = 1024  # evenly spaced records of each token set; 0: all
  c.batch_size = 32  # records; has no effect on the results
  c.frequency = ConfigDict(dict(
      binning="log",  # log, mass, types: see analysis/token_frequency.py
      bins=0,  # log: per factor of ten (0: 2); mass and types: in all (0: 10)
      min_count=10,  # occurrences in a token set of the ids that its balanced mean is over
  ))
  return c


@declares("probe")
def probe_config() -> ConfigDict:
  """Fields of the program probe."""
  c = shared_config("probe")
  c.tasks = ("embedded_topic", "embedded_order")  # of labelled text
  c.sources = sources_section()
  c.max_train = 8000  # training examples; 0: all
  c.max_test = 0  # test examples; 0: all
  c.seed = 0  # of the examples taken, of the held-out share and of the permuted labels
  c.held_out = 0.2  # share of the training examples on which the strength is chosen
  c.inverse_strengths = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # scikit-learn's C, one is chosen
  c.batch_tokens = 16384  # padding included; has no effect on the results
  return c


@declares("finetune")
def finetune_config() -> ConfigDict:
  """Fields of the program finetune; the defaults are the recipe of the study."""
  c = shared_config("finetune")
  c.tasks = ("embedded_topic", "embedded_next")  # learned one by one, each from the checkpoint
  c.sources = sources_section()
  # Of the order of the examples, of LoRA's factors and of the samples. Which problems are taken
  # follows from the seed of the configuration alone: points with seeds of their own share them.
  c.seed = 42
  c.max_train = 0  # training problems; 0: all
  c.max_test = 0  # problems of each other split; 0: all
  c.template = TEMPLATE  # around every problem
  c.max_length = 0  # tokens of prompt and response; 0: those of a pretraining record
  c.epochs = 3  # passes over the training problems
  c.batch_size = 64  # examples
  optim = default_config().optim
  optim.update(learning_rate=1e-5, beta2=0.999, weight_decay=0.0)
  optim.schedule = schedule_section("cosine", warmup="10%", final_fraction=0.0)
  c.optim = optim
  c.lora = ConfigDict(dict(
      rank=0,  # 0: all parameters are trained
      alpha=16.0,  # the product of the factors is scaled by alpha / rank
      targets=("query", "key", "value", "output", "gate", "up", "down"),  # kernels that get one
  ))
  c.replay = ConfigDict(dict(
      fraction=0.0,  # of the objective and of the sequences of a step that is pretraining data
  ))
  c.evaluate = ConfigDict(dict(
      generate="auto",  # auto: tasks with a chain of thought; always; never
      samples=16,  # beside the greedy response; 0: none
      max_new_tokens=0,  # 0: what max_length leaves
      temperature=1.0,  # of the samples; the greedy response has none
      top_p=1.0,  # of the samples: the likeliest tokens of this mass; 1: all
      repetition_penalty=1.1,  # of tokens that occurred, greedy response included; 1: none
      stop=(),  # texts that end a response; (): those of the template
      observations=3,  # evaluations on the way, evenly spaced
      observed_problems=256,  # of each split on the way
      forgetting_sequences=256,  # validation records of the pretraining; 0: none
  ))
  c.reward_model = ""  # folder of a transformers Llama with a scalar head; empty: none
  return c


@declares("attention_rank")
def attention_rank_config() -> ConfigDict:
  """Fields of the program attention_rank."""
  c = shared_config("attention_rank")
  c.threshold = 0.95  # share of the sum that the singular values of the pseudo-rank reach
  c.power = 1  # of the singular values in that sum: 1, or 2 for their squares
  c.fold_qk_norm = False  # gains of a QK-norm in the W_QK shown first; both are written
  return c


@declares("lm_eval")
def lm_eval_config() -> ConfigDict:
  """Fields of the program lm_eval."""
  c = shared_config("lm_eval")
  c.tasks = ("arc_easy", "piqa")  # tasks, groups or tags of lm-evaluation-harness
  c.include_path = ""  # a folder with task YAML files of your own; empty: none
  c.run_task_code = False  # whether these files may run Python files and templates unchecked
  c.num_fewshot = -1  # examples before every problem; -1: as many as each task says
  c.limit = 0  # problems of a task, the first ones; 0: all
  c.seed = 1234  # of the few-shot examples and of sampled continuations
  c.max_length = 0  # tokens that are read at most; 0: those of a pretraining record
  c.max_gen_toks = 256  # new tokens of generative tasks that do not say how many
  c.add_bos_token = False  # whether the end of sequence stands before every prompt
  return c
