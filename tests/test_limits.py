"""Every number of every configuration has two ends, and the plan refuses what is beyond them."""

import math

import pytest
import tiny
from ml_collections import ConfigDict

from launch import jobs
from wd_plasticity import limits, members
from wd_plasticity.config import default_config, flatten
from wd_plasticity.data import prepare
from wd_plasticity.errors import UserError
from wd_plasticity.evals import checks
from wd_plasticity.evals import config as eval_config
from wd_plasticity.plan import make_plan
from wd_plasticity.study import dry_run
from wd_plasticity.study import plan as study_plan

PROGRAMS = ("overfit", "probe", "attention_rank", "finetune", "lm_eval")
ABSURD = (math.nan, math.inf, -math.inf, -1, -2, 2**31, 2**63, 10**30, 10**400, 1e-300)
# What is taken all the same: devices are what is left; counts and float32 have no nearer end.
_TAKEN = {-1: ("mesh.sweep", "mesh.data", "mesh.fsdp", "mesh.tensor", "distributed.process_id",
               "num_fewshot"),
          2**31: ("data.max_documents", "frequency.min_count", "model.rope_theta"),
          1e-300: ("checkpoint.keep_at", "data.validation_fraction", "data.train_subset_fraction",
                   "held_out", "threshold", "lora.alpha", "evaluate.temperature", "evaluate.top_p",
                   "evaluate.repetition_penalty", "model.rope_scaling")}
_FLOAT32 = ("learning_rate", "weight_decay", "clip_norm")
_ZERO_TOO = ("beta1", "beta2", "fraction", "multipliers", "tokens_per_parameter", "z_loss",
             "weight_decay", "clip_norm", "final_fraction")


def _configs():
  return {"": default_config(), **{p: getattr(eval_config, f"{p}_config")() for p in PROGRAMS}}


def _numeric():
  """(program, field, default) of every number, and of every tuple that holds some."""
  for program, config in _configs().items():
    for field, value in flatten(config.to_dict()).items():
      if isinstance(value, bool | str) or (isinstance(value, tuple) and value
                                           and isinstance(value[0], str)):
        continue
      if value != () or field.endswith("rope_scaling"):
        yield program, field, value


def _set(config, field, value):
  *path, last = field.split(".")
  for name in path:
    config = config[name]
  if isinstance(config[last], tuple):
    value = value if isinstance(value, tuple) else (1.0, value, 1.0, 1.0)
  elif isinstance(config[last], float):
    try:
      value = float(value)
    except OverflowError:
      value = math.inf
  with config.ignore_type():
    config[last] = value


def _is_taken(field, value):
  if field in _TAKEN.get(value, ()):
    return True
  if value in (2**31, 2**63, 10**30):
    return field.endswith(_FLOAT32) or ".multipliers." in field
  return value == 1e-300 and (field.endswith(_ZERO_TOO) or ".multipliers." in field)


def test_every_number_has_two_ends():
  fields = list(_numeric())
  assert len(fields) > 120
  for program, field, value in fields:
    limit = limits.limit_of(field, program)
    assert limit is not None, (program, field)
    for number in value if isinstance(value, tuple) else (value,):
      assert number in limit, (program, field)
  # And none is of a field that is not there.
  for program, table in {"": limits.PRETRAINING, **limits.EVALS}.items():
    known = flatten(_configs()[program].to_dict())
    for field in table:
      assert any(f == field or f.startswith(f"{field}.") for f in known), (program, field)


@pytest.mark.parametrize("value", ABSURD, ids=str)
def test_absurd_numbers_are_refused_by_name(value):
  configs = _configs()
  for config in configs.values():
    if "sources" in config:
      with config.unlocked():
        del config["sources"]  # of texts; the fields that are looked at are fewer
  for program, field, default in _numeric():
    if isinstance(default, int) and value == 1e-300:
      continue
    config = configs[program]
    _set(config, field, value)
    refused = ""
    try:
      limits.check(config)
    except UserError as e:
      refused = str(e)
    _set(config, field, default)
    if _is_taken(field, value):
      assert not refused
      continue
    said = refused
    assert said, (field, value)
    assert said.startswith(f"{field}=") and " must be " in said and said.endswith("."), said
    assert "\n" not in said


def test_plan_and_evals_ask_the_table():
  for field, value in (("model.rope_theta", math.nan), ("model.norm_eps", math.nan),
                       ("train.tokens_per_parameter", math.inf), ("seed", 2**80),
                       ("train.loss_tile_tokens", -5), ("train.steps", 5_000_000_000),
                       ("checkpoint.keep_at", (math.nan,)), ("data.num_workers", -1),
                       ("checkpoint.keep_at", ("a",)), ("optim.decay.rules", (3,)),
                       ("seed", 2**31), ("optim.decay.multipliers.norm", math.inf)):
    config = tiny.tiny_config("nowhere")
    *path, last = field.split(".")
    section = config
    for name in path:
      section = section[name]
    section[last] = value
    with pytest.raises(UserError, match=f"^{field}="):
      make_plan(config, num_devices=1)
  for program, field, value in (
      ("finetune", "seed", 99999999999), ("finetune", "optim.learning_rate", math.inf),
      ("finetune", "lora.alpha", math.inf), ("probe", "inverse_strengths", (math.nan,)),
      ("overfit", "sequences", -1), ("attention_rank", "threshold", math.nan),
      ("lm_eval", "limit", -1), ("finetune", "tasks", (3,)), ("finetune", "max_length", 3),
      ("finetune", "optim.decay.preset", "some"), ("finetune", "optim.schedule.warmup", "often"),
      ("finetune", "optim.schedule.final_fraction", math.nan), ("overfit", "steps", "newest"),
      ("overfit", "frequency.binning", "bins"), ("probe", "compute_dtype", "float16"),
      ("probe", "mesh.data", 0), ("probe", "distributed.mode", "maybe"), ("probe", "tasks", ()),
      ("probe", "distributed.coordinator", "x:1"), ("finetune", "optim.schedule.decay", "often"),
      ("finetune", "template", "none"), ("finetune", "lora.targets", ("head",))):
    config = _configs()[program]
    config.update({"lora": {"rank": 2}} if "lora" in field else {})
    *path, last = field.split(".")
    section = config
    for name in path:
      section = section[name]
    section[last] = value
    words = field.removesuffix(f".{last}") if "schedule" in field else field
    with pytest.raises(UserError, match=words):
      study_plan.load_evals(lambda add, config=config: add(config), None)
    with pytest.raises(UserError, match=words):
      checks.check(program, members.expand(config, None, alone=()))


@pytest.mark.parametrize("changes, words", [
    ({"data.source": "fils"}, "data.source='fils' is unknown; use one of embedded, files, tfds"),
    ({"data.strip": "("}, "not a regular expression"),
    ({"distributed.mode": "maybe"}, "distributed.mode='maybe' is unknown"),
    ({"data.tokenizer.kind": "bpe", "data.tokenizer.vocab_size": 256}, "at least 257"),
    ({"train.eval_every": "0 steps"}, "train.eval_every='0 steps' must be above 0"),
    ({"train.log_every": "0%"}, "train.log_every='0%' must be above 0"),
    ({"checkpoint.every": "0%"}, "checkpoint.every='0%' must be above 0"),
    ({"checkpoint.every": "-0 tokens"}, "must be above 0"),
    ({"train.log_every": "1e400 steps"}, "is not a length"),
    ({"train.steps": 0, "train.tokens_per_parameter": 1e7, "train.global_batch_size": 1,
      "data.sequence_length": 1, "model.width": 512}, "steps, which must be 0 or more and at most"),
    ({"optim.weight_decay": 1e38, "optim.decay.multipliers.norm": 100.0}, "that float32 holds"),
])
def test_the_plan_refuses_what_would_fail_later(changes, words):
  config = tiny.tiny_config("nowhere")
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words) as e:
    make_plan(config, num_devices=1)
  assert "\n" not in str(e.value)


def test_a_dry_run_looks_for_the_data(tmp_path):
  (tmp_path / "a.txt").write_text("x")
  config = tiny.tiny_config(tmp_path)
  prepare.check(config.data)
  for fields, words in ((dict(validation="/nowhere/*.txt"), "/nowhere"),
                        (dict(train="/nowhere/*.txt"), "/nowhere"),
                        (dict(train=""), "needs data.train"), (dict(source="tdfs"), "'tdfs'")):
    changed = config.data.copy_and_resolve_references()
    changed.update(fields)
    with pytest.raises(UserError, match=words):
      prepare.check(changed)
  assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]  # and writes nothing


def test_small_intervals_are_a_step():
  config = tiny.tiny_config("nowhere")
  config.train.log_every, config.train.eval_every = "0.0001%", "1 tokens"
  plan = make_plan(config, num_devices=1)
  assert (plan.log_every, plan.eval_every) == (1, 1)


def test_intervals():
  held = {"[0, 1)": (0, 0.5), "(0, 1]": (1, 1e-9), "[0, 2^31)": (0, 2**31 - 1), "[-1, 1e6]": (-1,)}
  for text, numbers in held.items():
    assert all(n in limits.interval(text) for n in numbers)
  for text, numbers in {"[0, 1)": (1, -1e-9), "(0, 1]": (0,), "[0, 2^31)": (2**31,)}.items():
    assert not any(n in limits.interval(text) for n in (*numbers, math.nan, math.inf, 10**400))
  assert str(limits.interval("[0, 2^31)")) == "0 or more and below 2^31"
  assert str(limits.interval("(0, 1]")) == "above 0 and at most 1"
  limits.check(ConfigDict({"program": "another", "mesh": {"data": -5}}))  # of no table


def test_every_member_is_looked_at():
  """Not only the first of those that share a program."""
  config = tiny.tiny_config("nowhere")
  made = members.expand(config, lambda add: [add({"seed": s}) for s in (1, 2**31)])
  with pytest.raises(UserError, match="seed=2147483648"):
    study_plan.make_steps([], made, "d", [], "w")
  with pytest.raises(UserError, match="seed=2147483648"):
    jobs.check(jobs.Launch(config, "x.py", (), "w", "n", (), "", tuple(made), (0, 1), 2, ()))


# What a study would run into after hours.


def _study(**changes):
  config = tiny.tiny_config("nowhere")
  finetune = eval_config.finetune_config()
  finetune.tasks, finetune.max_train = ("embedded_topic",), 16
  finetune.mesh.data = 8
  config.mesh.data = 8
  for field, value in changes.items():
    *path, last = field.split("__")
    section = finetune
    for name in path:
      section = section[name]
    section[last] = value
  made = members.expand(config, lambda add: [add({"seed": s}) for s in (0, 1)])
  dry_run.check(made, study_plan.load_evals(lambda add: add(finetune), None))


def test_a_dry_run_plans_every_program():
  _study()
  _study(steps="6, 12,24", lora__rank=2, optim__decay__multipliers__lora=0.5)
  for words, changes in {
      "finetune: the mesh .* does not fit": dict(mesh__data=3),
      "steps='7': seed0 will have no checkpoint of step 7, but of 6, 12, 18, 20, 24":
          dict(steps="7"),
      "decides for no parameter": dict(optim__decay__rules=("nothing=x",)),
      "multipliers.lora: no parameter": dict(optim__decay__multipliers__lora=0.5),
      "warmup='500 steps' is 500 steps, longer": dict(optim__schedule__warmup="500 steps"),
  }.items():
    with pytest.raises(UserError, match=words):
      _study(**changes)


@pytest.mark.parametrize("program, field", [
    *[(program, "tokenizer_dir") for program in PROGRAMS], ("finetune", "reward_model")])
def test_folders_that_are_not_there_are_refused_also_where_they_are_not_read(
    tmp_path, program, field):
  config = getattr(eval_config, f"{program}_config")()
  config[field] = str(tmp_path / "nowhere")
  points = members.expand(config, None, alone=())
  checks.check(program, points)  # a launcher may run elsewhere
  with pytest.raises(UserError, match=f"{field}='.*nowhere' is not a folder; give"):
    checks.check_folders(points)


def test_targets_of_lora_are_checked_also_where_it_is_off():
  config = eval_config.finetune_config()
  config.lora.targets = ("nose",)
  with pytest.raises(UserError, match="lora.targets=.*nose.* must be some of"):
    checks.check("finetune", members.expand(config, None, alone=()))
