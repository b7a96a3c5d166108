"""The study's own runs, built abstractly: sizes, steps, grids, masks, schedules, memory, shards.

Numbers are those of arXiv 2602.11137 and of the configurations that its authors ran.
"""

import importlib.util
import math
import pathlib
import re

import jax
import ml_collections
import numpy as np
import pytest

from wd_plasticity import cli
from wd_plasticity.bench import ahead_of_time
from wd_plasticity.bench.slices import Slice
from wd_plasticity.errors import UserError
from wd_plasticity.members import expand
from wd_plasticity.plan import make_plan
from wd_plasticity.study.plan import load_evals, read_tasks

_FOLDER = pathlib.Path(__file__).parents[1] / "configs" / "paper"
_LADDER = [0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 1.5, 3.0, 10.0]

# file:arguments -> parameters, steps, tokens of a step, nominal tokens, peak rate, decays.
RUNS = {
    "llama2.py:size=0.5b": (500_921_856, 9_537, 1_048_576, 10e9, 2.5e-4, _LADDER),
    "llama2.py:size=1b": (1_000_564_736, 19_073, 1_048_576, 20e9, 2.0e-4, _LADDER),
    "llama2.py:size=4b": (4_000_288_768, 38_147, 2_097_152, 80e9, 1.5e-4, [0.0, 0.1, 1.0]),
    "olmo2.py:tpp=20": (1_484_916_736, 14_305, 2_097_152, 30e9, 4e-4, [0.0, 0.1, 0.3, 0.6, 1.0]),
    "olmo2.py:tpp=140": (1_484_916_736, 100_000, 2_097_152, 210e9, 4e-4, [0.0, 0.1, 0.3, 1.0]),
}
# A TPU slice and a GPU slice for each, on which it fits without changes.
SLICES = {
    "llama2.py:size=0.5b": ("v5e:4x4", "a100:4", "h100:8"),
    "llama2.py:size=1b": ("v5e:4x8", "v5e:8x8", "a100:8", "h100:8"),
    "llama2.py:size=4b": ("v5e:8x16", "v5p:2x4x4", "a100:32"),
    "olmo2.py:tpp=20": ("v5e:8x8", "v5p:2x4x4", "h100:8", "a100:32"),
    "olmo2.py:tpp=140": ("v5e:8x8", "v5p:2x4x4", "h100:8", "a100:32"),
}
PLACES = [(run, name) for run, names in SLICES.items() for name in names]


def _config(run: str) -> ml_collections.ConfigDict:
  name, _, arguments = run.partition(":")
  return cli.load_function(str(_FOLDER / name), "get_config")(arguments)


def _sweep(run: str):
  return cli.load_sweep(str(_FOLDER / run))


def _evals(run: str):
  name, _, arguments = run.partition(":")
  return {e.program: e.config for e in
          load_evals(cli.load_function(str(_FOLDER / name), "evals"), arguments)}


@pytest.fixture(scope="module")
def plans():
  return {run: make_plan(_config(run), num_devices=1) for run in RUNS}


def _parameters(layers, width, heads, kv_heads, head_dim, ffn_width, vocabulary, qk_norm):
  """Written out layer by layer, not as models/flops.py counts."""
  total = 2 * vocabulary * width + width  # embedding, head, last norm
  for _ in range(layers):
    total += width * heads * head_dim + 2 * width * kv_heads * head_dim + heads * head_dim * width
    total += 3 * width * ffn_width + 2 * width
    total += (heads + kv_heads) * head_dim if qk_norm else 0
  return total


@pytest.mark.parametrize("run, sizes", [
    ("llama2.py:size=0.5b", (20, 1536, 32, 4, 48, 3216, 32_000, False)),
    ("llama2.py:size=1b", (22, 2048, 32, 4, 64, 4896, 32_000, False)),
    ("llama2.py:size=4b", (28, 4096, 32, 4, 128, 7792, 32_000, False)),
    ("olmo2.py:tpp=20", (16, 2048, 16, 16, 128, 8192, 100_352, True)),
    ("olmo2.py:tpp=140", (16, 2048, 16, 16, 128, 8192, 100_352, True)),
])
def test_parameters(plans, run, sizes):
  plan, expected = plans[run], RUNS[run][0]
  assert plan.parameters["total"] == expected == _parameters(*sizes)
  assert sum(row.count for row in plan.decay_table) == expected  # the arrays themselves


@pytest.mark.parametrize("run", RUNS)
def test_steps_and_tokens(plans, run):
  parameters, steps, tokens_per_step, tokens, *_ = RUNS[run]
  plan = plans[run]
  assert (plan.steps, plan.tokens_per_step) == (steps, tokens_per_step)
  assert plan.tokens == steps * tokens_per_step == pytest.approx(tokens, rel=2e-3)
  nominal = float(run.partition("tpp=")[2] or 20)
  assert plan.tokens / parameters == pytest.approx(nominal, rel=0.012)


@pytest.mark.parametrize("run", RUNS)
def test_members_are_the_grid_of_decays(run):
  *_, learning_rate, decays = RUNS[run]
  members = expand(_config(run), _sweep(run))
  assert [m.config.optim.weight_decay for m in members] == decays
  assert {m.config.seed for m in members} == {42}
  assert {m.config.optim.learning_rate for m in members} == {learning_rate}
  assert {m.config.sweep.members_at_once for m in members} == {1}


def test_rates_are_crossed_with_decays():
  run = "olmo2.py:grid=rate"
  points = {(m.config.optim.learning_rate, m.config.optim.weight_decay)
            for m in expand(_config(run), _sweep(run))}
  assert points == {(r, d) for r in (2e-4, 4e-4, 8e-4) for d in (0.1, 0.6, 1.0)}


@pytest.mark.parametrize("run", RUNS)
def test_which_parameters_are_decayed(plans, run):
  """Llama: everything, no mask. OLMo-2: everything but the input embedding."""
  spared = {row.parameter for row in plans[run].decay_table if row.decay == 0}
  assert spared == ({"embed/embedding"} if run.startswith("olmo2") else set())
  assert {row.decay for row in plans[run].decay_table if row.parameter not in spared} == {0.1}


@pytest.mark.parametrize("run", RUNS)
def test_optimizer(run):
  o = _config(run).optim
  assert (o.beta1, o.beta2, o.eps, o.clip_norm) == (0.9, 0.95, 1e-8, 1.0)
  assert o.decay.convention == "learning_rate"  # torch's AdamW
  assert _config(run).train.z_loss == (1e-5 if run.startswith("olmo2") else 0.0)


def _schedule(run: str, n: int, total: int) -> float:
  """Multiplier of the peak at update n of `total`, from the description in words."""
  warmup = 4000 if run.startswith("olmo2") else math.ceil(0.1 * total)
  if n <= warmup:
    return n / warmup
  if run.endswith("tpp=140"):
    return 1.0 if n <= 0.8 * total else (total - n) / (0.2 * total)
  return 0.1 + 0.45 * (1 + math.cos(math.pi * (n - warmup) / (total - warmup)))


@pytest.mark.parametrize("run", RUNS)
def test_schedule(plans, run):
  schedule, total = plans[run].optimizer.learning_rate_schedule, plans[run].steps
  # Update n is made with n - 1 updates behind it.
  at = sorted({1, 2, 500, 954, 1908, 3815, 4000, 4001, total // 2, int(0.8 * total),
               int(0.8 * total) + 1, int(0.9 * total), total - 1, total})
  got = [float(schedule(n - 1)) for n in at]
  np.testing.assert_allclose(got, [_schedule(run, n, total) for n in at], rtol=2e-5, atol=2e-6)
  peak = 4000 if run.startswith("olmo2") else math.ceil(0.1 * total)
  assert float(schedule(peak - 1)) == 1.0
  assert float(schedule(total - 1)) == pytest.approx(0.0 if run.endswith("140") else 0.1, abs=1e-6)


@pytest.mark.parametrize("run, timescale", [
    ("llama2.py:size=0.5b", 4.19), ("llama2.py:size=1b", 2.62), ("llama2.py:size=4b", 1.75),
    ("olmo2.py:tpp=20", 1.75), ("olmo2.py:tpp=140", 0.25)])
def test_timescale_of_decay_0_1(plans, run, timescale):
  assert plans[run].timescale["fraction"] == pytest.approx(timescale, abs=0.005)


@pytest.mark.parametrize("run, devices", PLACES)
def test_fits_into_memory(run, devices):
  devices = Slice(devices)
  plan = ahead_of_time.plan_for(_config(run), devices)
  memory = plan.memory_bytes
  # Adam in float32: weights and two moments, each divided among all devices.
  stored = RUNS[run][0] * 12 / devices.num_devices
  assert memory["parameters"] + memory["optimizer"] == pytest.approx(stored, rel=1e-6)
  assert sum(memory.values()) < devices.usable_bytes


@pytest.mark.parametrize("run, devices", PLACES)
def test_no_parameter_is_left_whole(run, devices):
  config, devices = _config(run), Slice(devices)
  program = ahead_of_time.make_program(config, ahead_of_time.plan_for(config, devices),
                                       devices.abstract_mesh(config.mesh))
  shards = ahead_of_time.parameter_shards(program)
  assert sum(s.elements for s in shards) == RUNS[run][0]
  for shard in shards:
    if shard.name.endswith("norm/scale"):
      assert shard.on_device == shard.elements < 200_000
    else:
      assert shard.on_device * devices.num_devices == shard.elements, shard.name


# Arrays that devices exchange, alone or first in a tuple.
_COLLECTIVE = re.compile(r"= \(?\w+\[([\d,]*)\].* (?:all-gather|all-reduce|reduce-scatter|"
                         r"all-to-all|collective-permute)(?:-start)?\(")


def _largest_moved(program_text):
  """Elements of the largest array that devices exchange."""
  return max((math.prod(int(n) for n in shape.split(",") if n)
              for shape in _COLLECTIVE.findall(program_text)), default=0)


def _largest_matrix(model):
  """Elements of the largest matrix of one layer, the embedding or the head."""
  return model.width * max(model.vocab_size, model.ffn_width, model.num_heads * model.head_dim)


@pytest.mark.parametrize("run", ["llama2.py:size=1b", "olmo2.py:tpp=20"])
def test_only_weights_are_exchanged_between_devices(run):
  """With `fsdp` devices gather weights; rows of the batch, which are larger, are not moved."""
  config = _config(run)
  config.model.update(num_layers=2, width=64, num_heads=4, num_kv_heads=4, ffn_width=128,
                      vocab_size=128)
  config.data.sequence_length = 128
  config.train.update(global_batch_size=32, accumulate_steps=2)
  config.optim.schedule.warmup = "10%"
  devices = Slice("cpu:8")
  plan = ahead_of_time.plan_for(config, devices)
  program = ahead_of_time.make_program(config, plan, devices.mesh(config.mesh))
  text = ahead_of_time.compile_step(config, program).executable.as_text()
  # Rows of the embedding go to the devices whose tokens they are of.
  assert 0 < _largest_moved(text) <= 16 / 8 * 128 * 64


@pytest.mark.parametrize("run, rate", [
    ("llama2.py:size=0.5b", 1e-5), ("llama2.py:size=1b", 1e-5), ("llama2.py:size=4b", 7.5e-6),
    ("olmo2.py:tpp=20", 1e-5), ("olmo2.py:tpp=140", 1e-5)])
def test_finetuning_is_the_recipe_of_the_study(run, rate):
  evals = _evals(run)
  assert set(evals) == {"attention_rank", "overfit", "probe", "finetune"}
  assert evals["attention_rank"].steps == "all"
  f = evals["finetune"]
  assert f.tasks == ("metamathqa", "simplescaling", "medmcqa", "pubmedqa", "mmlu_pro_cot", "race")
  assert (f.seed, f.epochs, f.batch_size, f.max_length) == (42, 3, 64, 2048)
  assert (f.max_train, f.max_test, f.lora.rank, f.replay.fraction) == (0, 0, 0, 0.0)
  assert f.template == "Human: {prompt}\nAssistant:"
  o = f.optim
  assert (o.learning_rate, o.weight_decay, o.beta1, o.beta2, o.clip_norm) == (
      rate, 0.0, 0.9, 0.999, 1.0)
  assert (o.schedule.name, o.schedule.warmup, o.schedule.final_fraction) == ("cosine", "10%", 0.0)
  e = f.evaluate
  assert (e.samples, e.temperature, e.top_p, e.repetition_penalty) == (16, 1.0, 1.0, 1.1)


def test_a_folder_names_all_files():
  config = _config("llama2.py:size=1b,data=/texts,reward_model=/reward")
  assert config.data.train == "/texts/pretraining/train/*"
  assert config.data.tokenizer.path == "/texts/tokenizer.model"
  finetune = _evals("llama2.py:size=1b,data=/texts,reward_model=/reward")["finetune"]
  assert finetune.reward_model == "/reward"
  assert finetune.sources.race.train == "/texts/tasks/race/train*,/texts/tasks/race/validation*"
  for task in finetune.tasks:
    assert sum(bool(path) for path in finetune.sources[task].values()) >= 2


@pytest.mark.parametrize("run, words", [
    ("llama2.py:size=2b", "size=2b is not one of the study's; use 0.5b, 1b, 4b"),
    ("olmo2.py:tpp=30", "tpp=30 is not one of the study's; use 20, 140"),
    ("olmo2.py:tpp=140,grid=rate", "goes with tpp=20"),
    ("olmo2.py:grid=all", "use decay, rate"),
    ("llama2.py:width=3", "is not known"),
])
def test_wrong_arguments_are_one_sentence(run, words):
  with pytest.raises(UserError, match=words) as e:
    _config(run)
  assert "\n" not in str(e.value)


def test_missing_files_are_one_sentence(tmp_path):
  from wd_plasticity.data.prepare import prepare
  config = _config("llama2.py:size=1b")
  with pytest.raises(UserError, match=r"data\.tokenizer\.path='' is not a file") as e:
    prepare(config.data, tmp_path)
  assert "\n" not in str(e.value)
  config.data.tokenizer.kind = "byte"
  with pytest.raises(UserError, match=r"needs data\.train") as e:
    prepare(config.data, tmp_path)
  assert "\n" not in str(e.value)
  evals = load_evals(cli.load_function(str(_FOLDER / "llama2.py"), "evals"), None)
  with pytest.raises(UserError, match="task .* needs files"):
    for e in evals:
      read_tasks(e)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "a100:2x2", "v5e:0x4", "tpu:4", "v5e:ax4"])
def test_wrong_slices_are_one_sentence(name):
  with pytest.raises(UserError, match="does not name devices"):
    Slice(name)


# What XLA makes of the real training step. A minute or so each.


def _compile(run, devices):
  config, devices = _config(run), Slice(devices)
  plan = ahead_of_time.plan_for(config, devices)
  program = ahead_of_time.make_program(config, plan, devices.mesh(config.mesh))
  made = ahead_of_time.compile_step(config, program)
  shards = ahead_of_time.parameter_shards(program)
  assert {s.name for s in shards if s.on_device == s.elements} == {
      row.parameter for row in plan.decay_table if row.parameter.endswith("norm/scale")}
  # Layers are gathered one at a time, and activations stay where they are.
  text = made.executable.as_text()
  assert 0 < _largest_moved(text) <= _largest_matrix(plan.model)
  return plan, made, text


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                    reason="libtpu, which compiles for TPUs without one, is not installed")
@pytest.mark.parametrize("run, devices", [(r, names[0]) for r, names in SLICES.items()])
def test_compiles_for_tpu_slices(run, devices):
  plan, made, text = _compile(run, devices)
  assert made.peak_bytes + plan.memory_bytes["snapshot"] <= Slice(devices).usable_bytes
  assert ahead_of_time.training_bytes(plan) == pytest.approx(made.peak_bytes, rel=0.25)
  assert 'custom_call_target="tpu_custom_call"' in text  # attention is the hand-written kernel
  # Weights and moments are replaced, not copied, and divided among all devices.
  stored = RUNS[run][0] * 12 / Slice(devices).num_devices
  assert made.state_bytes == pytest.approx(stored, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["llama2.py:size=0.5b", "olmo2.py:tpp=20"])
def test_compiles_for_eight_devices(run):
  assert jax.device_count() == 8
  _compile(run, "cpu:8")
