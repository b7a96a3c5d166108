"""Model sizes: presets, refusals, parameter and FLOP counts."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.models import decoder, flops
from wd_plasticity.models.config import PRESETS, ModelConfig


def config_of(tokenizer_size=4096, /, **changes) -> ModelConfig:
  section = default_config().model
  section.update(changes)
  return ModelConfig.from_section(section, tokenizer_size)


# Totals, embeddings included; published sizes are those of arXiv 2602.11137, section 1.
@pytest.mark.parametrize("family, size, total", [
    ("llama2", "0.5b", 500_921_856),
    ("llama2", "1b", 1_000_564_736),
    ("llama2", "4b", 4_000_288_768),
    ("olmo2", "1b", 1_484_916_736),
    ("llama2", "0.3m", 287_392),
    ("llama2", "1m", 1_118_880),
    ("llama2", "3m", 3_344_064),
    ("llama2", "7m", 6_843_648),
    ("llama2", "15m", 15_537_792),
    ("llama2", "35m", 35_703_296),
    ("llama2", "75m", 74_217_600),
    ("llama2", "150m", 147_880_704),
    ("olmo2", "0.3m", 287_520),
    ("olmo2", "1m", 1_119_456),
    ("olmo2", "3m", 3_345_600),
    ("olmo2", "7m", 6_846_720),
    ("olmo2", "15m", 15_543_168),
    ("olmo2", "35m", 35_713_536),
    ("olmo2", "75m", 74_235_520),
    ("olmo2", "150m", 147_911_424),
])
def test_preset_has_its_size(family, size, total):
  vocab_size = PRESETS[family][size]["vocab_size"] or 4096
  config = config_of(vocab_size, **PRESETS[family][size])
  assert flops.count_parameters(config)["total"] == total
  shapes = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total


def test_every_preset_is_counted_above():
  marks = test_preset_has_its_size.pytestmark[0].args[1]
  assert {(f, s) for f, s, _ in marks} == {(f, s) for f in PRESETS for s in PRESETS[f]}


def test_published_head_dims():
  assert [config_of(32_000, **PRESETS["llama2"][s]).head_dim for s in ("0.5b", "1b", "4b")] == [
      48, 64, 128]


@pytest.mark.parametrize("changes, message", [
    (dict(num_heads=3, num_kv_heads=3), "num_heads=3 does not divide model.width=128"),
    (dict(num_heads=4, num_kv_heads=3), "num_kv_heads=3 does not divide model.num_heads=4"),
    (dict(head_dim=5), "head dimension 5 is odd"),
    (dict(width=12, num_heads=4), "head dimension 3 is odd"),
    (dict(num_layers=0), "num_layers=0 must be above 0"),
    (dict(width=-128), "must be above 0"),
    (dict(num_heads=0), "num_heads=0 must be above 0"),
    (dict(num_kv_heads=0), "num_kv_heads=0 must be above 0"),
    (dict(head_dim=-2), "head_dim=-2 must be above 0"),
    (dict(rope_theta=0.0), "rope_theta=0.0 must be above 0"),
    (dict(norm_position="middle"), "norm_position='middle' is unknown; use one of pre, post"),
    (dict(init="zeros"), "init='zeros' is unknown"),
    (dict(compute_dtype="float16"), "compute_dtype='float16' is unknown"),
    (dict(attention="flash"), "attention='flash' is unknown"),
    (dict(remat="some"), "remat='some' is unknown"),
    (dict(vocab_size=100), "vocab_size=100 is smaller than the tokenizer's 4096"),
    (dict(rope_scaling=(8.0, 1.0, 4.0)), "rope_scaling=(8.0, 1.0, 4.0) must be empty or (factor"),
    (dict(rope_scaling=(8.0, 4.0, 1.0, 64)), "0 < low < high"),
    (dict(rope_scaling=("a", 1, 4, 64)), "must be empty or"),
    (dict(rope_scaling=(0.5, 1.0, 4.0, 64)), "a factor of at least 1"),
])
def test_wrong_section_is_refused(changes, message):
  with pytest.raises(UserError, match=re.escape(message)):
    config_of(**changes)


def test_missing_and_unknown_fields_are_named():
  section = dict(default_config().model)
  del section["width"]
  section["widht"] = 128
  with pytest.raises(UserError, match=r"lacks \['width'\] and does not know \['widht'\]"):
    ModelConfig.from_section(section, 4096)


def test_sections_stored_before_rope_scaling_are_read():
  section = dict(default_config().model)
  del section["rope_scaling"]
  assert ModelConfig.from_section(section, 4096) == config_of()
  stored = dataclasses.asdict(config_of())  # what the meta of a checkpoint holds
  del stored["rope_scaling"]
  assert ModelConfig(**json.loads(json.dumps(stored))) == config_of()


def test_rope_scaling_survives_json():
  config = config_of(rope_scaling=(8.0, 1.0, 4.0, 8192))
  again = ModelConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
  assert again == config and hash(again) == hash(config)
  assert again.rope_scaling == (8.0, 1.0, 4.0, 8192.0)


def test_vocabulary_may_be_padded_above_the_tokenizer():
  assert config_of(100_278, **PRESETS["olmo2"]["1b"]).vocab_size == 100_352


@pytest.mark.parametrize("tied", [False, True])
def test_parts_of_the_count(tied):
  config = config_of(50, num_layers=2, width=8, num_heads=4, num_kv_heads=2, head_dim=6,
                     ffn_width=20, qk_norm=True, norm_position="post", tied_head=tied)
  counts = flops.count_parameters(config)
  params = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  kernels = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim == 3)
  layers = params["layers"]
  assert counts["embedding"] == size(params["embed"])
  assert counts["head"] == size(params.get("head", {})) == (0 if tied else 400)
  assert counts["attention"] == kernels(layers["attention"])
  assert counts["feed_forward"] == size(layers["feed_forward"])
  assert counts["total"] == size(params)
  assert counts["non_embedding"] == size(layers) + size(params["final_norm"])


def test_train_flops_of_the_default_7m():
  """Against XLA's count of the forward pass, unrolled; training is three times that."""
  config = config_of(4096, **PRESETS["llama2"]["7m"], scan_layers=False, attention="plain")
  length = 128
  params = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  forward = jax.jit(lambda p, t: decoder.logits(p, config, t)).lower(params, tokens)
  counted = forward.cost_analysis()["flops"] * 3 / length
  full = flops.train_flops_per_token(config, length)
  assert full == 6 * (6_843_648 - 4096 * 256 - 13 * 256) + 12 * 6 * 256 * length
  assert full < counted < 1.05 * full  # norms, softmax and the like are on top
  assert flops.train_flops_per_token(config, length, causal=True) == (
      full - 6 * 6 * 256 * length)


def test_tied_head_costs_as_much_as_an_untied_one():
  flops_of = lambda tied: flops.train_flops_per_token(config_of(tied_head=tied), 64)
  assert flops_of(True) == flops_of(False)
