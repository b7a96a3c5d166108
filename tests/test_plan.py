"""What is derived before a run, and impossible combinations, refused in one sentence."""

import pytest
import tiny

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.models.config import preset_section
from wd_plasticity.plan import make_plan


@pytest.mark.parametrize("changes, words", [
    ({"train.global_batch_size": 7, "mesh.data": 2}, "which must divide it"),
    ({"train.accumulate_steps": 3}, "does not divide train.global_batch_size=8"),
    ({"optim.schedule.warmup": "30 steps"}, "longer than the training of 24"),
    ({"optim.weight_decay": -0.1}, "optim.weight_decay=-0.1 must be 0 or more"),
    ({"optim.weight_decay": float("nan")}, "must be 0 or more"),
    ({"optim.learning_rate": 0.0}, "optim.learning_rate=0.0 must be at least"),
    ({"optim.decay.convention": "l3"}, "'l3' is unknown"),
    ({"optim.decay.preset": "some"}, "'some' is unknown"),
    ({"optim.decay.rules": ("head/kernel",)}, "regular expression=group"),
    ({"optim.decay.multipliers.norm": -1.0}, "multipliers.norm=-1.0 must be 0 or more"),
    ({"train.eval_every": "often"}, "is not a length"),
    ({"mesh.tensor": 2}, "num_kv_heads=1"),
    ({"model.attention": "cudnn"}, "needs an NVIDIA GPU"),
    ({"mesh.data": 3}, "does not fit 2 device"),
    ({"mesh.fsdp": -1}, "only one mesh axis"),
    ({"model.vocab_size": 100}, "smaller than the tokenizer's 257"),
    ({"mesh.tensor": 2, "model.num_kv_heads": 2, "mesh.data": 1}, "model.vocab_size=258 would pad"),
    ({"checkpoint.keep_at": (1.5,)}, "numbers that are above 0 and at most 1, and 1.5 is not"),
    ({"data.tokenizer.kind": "words"}, "'words' is unknown"),
    ({"train.steps": 0, "train.tokens_per_parameter": 0.0}, "must be positive"),
])
def test_impossible_combinations_are_refused(changes, words):
  config = tiny.tiny_config("nowhere")
  for field, value in changes.items():
    *path, last = field.split(".")
    section = config
    for name in path:
      section = section[name]
    section[last] = value
  with pytest.raises(UserError, match=words) as e:
    make_plan(config, num_devices=2)
  assert "\n" not in str(e.value)


def test_steps_follow_from_tokens_per_parameter():
  """The study's Llama 0.5B: 500.9M parameters, 20 tokens each, batches of 512 x 2048."""
  config = default_config()
  config.model.update(preset_section("llama2", "0.5b"))
  config.data.tokenizer.vocab_size = 32_000
  config.data.sequence_length = 2048
  config.train.global_batch_size = 512
  config.optim.learning_rate = 2.5e-4
  plan = make_plan(config, num_devices=1)
  assert plan.parameters["total"] == pytest.approx(500.9e6, rel=1e-3)
  assert plan.tokens == pytest.approx(20 * plan.parameters["total"], rel=1e-3)
  assert plan.steps == pytest.approx(9_537, rel=3e-3)
  # tau = 1/(lr wd) is 4.19 runs of 10B tokens at decay 0.1.
  assert plan.timescale["fraction"] == pytest.approx(4.19, rel=3e-3)


def test_memory_counts_the_stored_arrays_exactly():
  config = tiny.tiny_config("nowhere")
  one = make_plan(config, num_devices=1)
  assert one.memory_bytes["parameters"] == 4 * one.parameters["total"]
  assert one.memory_bytes["optimizer"] == 8 * one.parameters["total"]
  config.mesh.update(data=1, fsdp=2)
  assert make_plan(config, num_devices=2).memory_bytes["optimizer"] == 4 * one.parameters["total"]


def test_kept_steps_are_fractions_of_training():
  config = tiny.tiny_config("nowhere")
  config.checkpoint.keep_at = (0.25, 0.5, 1.0)
  assert make_plan(config, num_devices=1).keep_steps == (6, 12, 24)
