"""Model directories of transformers: one file or several, and those that are refused.

A real directory is optional: WD_PLASTICITY_DATA names a folder that holds
checkpoints/verl_tiny_llama/.
"""

import json
import os
import pathlib

import ml_dtypes
import numpy as np
import pytest
import reward_directory
from safetensors.numpy import save_file

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.interop import transformers_config, transformers_files, transformers_weights
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig

_DATA = os.environ.get("WD_PLASTICITY_DATA")
INDEX = "model.safetensors.index.json"


def write_shards(folder, tensors) -> list[str]:
  """The same tensors in two files and an index."""
  names = sorted(tensors)
  shards = {"model-00001-of-00002.safetensors": names[::2],
            "model-00002-of-00002.safetensors": names[1::2]}
  for shard, held in shards.items():
    save_file({name: tensors[name] for name in held}, folder / shard)
  (folder / "model.safetensors").unlink()
  (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": {
      name: shard for shard, held in shards.items() for name in held}}))
  return list(shards)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensors_come_as_they_were_written(tmp_path, sharded, dtype):
  written = reward_directory.write(tmp_path, dtype)
  if sharded:
    write_shards(tmp_path, written)
  fields, tensors = transformers_files.read_directory(tmp_path)
  assert fields == reward_directory.SIZES
  assert sorted(tensors) == sorted(written) and len(tensors) == len(written)
  for name, array in written.items():
    assert tensors[name].dtype == dtype
    np.testing.assert_array_equal(tensors[name], array)
  assert "model.layers.9.mlp.up_proj.weight" not in tensors


def test_parameters_are_made_one_at_a_time(tmp_path):
  """Each tensor is read once, and not before the parameter that needs it."""
  written = reward_directory.write(tmp_path, ml_dtypes.bfloat16)
  fields, tensors = transformers_files.read_directory(tmp_path)
  section = default_config().model
  section.update(transformers_config.section_from_transformers(fields))
  config = ModelConfig.from_section(section, 0)
  assert config.rope_scaling == (8.0, 1.0, 4.0, 32.0)
  reads = []

  class Watched(transformers_files.Tensors):

    def __getitem__(self, name):
      reads.append(name)
      return super().__getitem__(name)

  placed = []

  def place(name, array):
    assert array.dtype == ml_dtypes.bfloat16 and array.flags.c_contiguous
    placed.append((name, len(reads)))
    return array

  params = transformers_weights.from_transformers(
      Watched(tensors._files), config, score_head=True, place=place)
  assert sorted(reads) == sorted(written)
  counts = np.diff([0] + [count for _, count in placed])
  assert sorted(counts) == [1] * 3 + [config.num_layers] * 9
  up = params["layers"]["feed_forward"]["up"]["kernel"]
  np.testing.assert_array_equal(up[1], written["model.layers.1.mlp.up_proj.weight"].T)
  np.testing.assert_array_equal(params["score"]["kernel"], written["score.weight"].T)


def test_layers_of_two_dtypes_keep_their_values(tmp_path):
  written = reward_directory.write(tmp_path, ml_dtypes.bfloat16)
  name = "model.layers.1.mlp.up_proj.weight"
  written[name] = written[name].astype(np.float32) + 2**-20
  fields, _ = transformers_files.read_directory(tmp_path)
  section = default_config().model
  section.update(transformers_config.section_from_transformers(fields))
  params = transformers_weights.from_transformers(
      written, ModelConfig.from_section(section, 0), score_head=True, place=lambda _, array: array)
  np.testing.assert_array_equal(params["layers"]["feed_forward"]["up"]["kernel"][1],
                                written[name].T)


def damage_pickle(folder, _):
  (folder / "model.safetensors").unlink()
  (folder / "pytorch_model.bin").write_bytes(b"")


def damage_truncate(folder, _):
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-100])


def damage_shard(folder, tensors):
  (folder / write_shards(folder, tensors)[1]).unlink()


def damage_truncate_shard(folder, tensors):
  file = folder / write_shards(folder, tensors)[1]
  file.write_bytes(file.read_bytes()[:50])


def damage_shard_content(folder, tensors):
  save_file({"model.norm.weight": tensors["model.norm.weight"]},
            folder / write_shards(folder, tensors)[0])


def damage_index(folder, tensors):
  write_shards(folder, tensors)
  (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))


def damage_empty_index(folder, tensors):
  write_shards(folder, tensors)
  (folder / INDEX).write_text(json.dumps({"weight_map": ["a"]}))


def damage_dtype(folder, tensors):
  tensors["model.norm.weight"] = np.zeros(32, np.int8)
  save_file(tensors, folder / "model.safetensors")


def write_config(folder, text):
  (folder / "config.json").write_text(text)


@pytest.mark.parametrize("damage, message", [
    (damage_pickle, "has only pickle files .* save_pretrained"),
    (damage_truncate, "model.safetensors is damaged or cut short"),
    (damage_shard, "lacks model-00002-of-00002.safetensors, one of the 2 files"),
    (damage_truncate_shard, "model-00002-of-00002.safetensors is damaged or cut short"),
    (damage_shard_content, "model-00001-of-00002.safetensors lacks the tensor"),
    (damage_index, "which is outside of its directory"),
    (damage_empty_index, "names no tensors"),
    (damage_dtype, "model.norm.weight in .* is stored as I8"),
    (lambda f, _: (f / "model.safetensors").unlink(), "has neither model.safetensors nor"),
    (lambda f, _: (f / "config.json").unlink(), "has no config.json"),
    (lambda f, _: write_config(f, "{"), "config.json is not JSON"),
    (lambda f, _: write_config(f, "[]"), "does not hold a JSON object"),
    (lambda f, _: write_config(f, "{}"), "architecture None, which is not known"),
    (lambda f, _: write_config(f, '{"architectures": ["MambaForCausalLM"]}'), "MambaForCausalLM"),
])
def test_what_is_refused(tmp_path, damage, message):
  damage(tmp_path, reward_directory.write(tmp_path))
  with pytest.raises(UserError, match=message) as error:
    transformers_files.read_directory(tmp_path)
  assert "\n" not in str(error.value)


def test_a_directory_that_is_absent(tmp_path):
  with pytest.raises(UserError, match="There is no directory"):
    transformers_files.read_directory(tmp_path / "absent")


@pytest.mark.skipif(not _DATA, reason="WD_PLASTICITY_DATA is not set")
def test_a_published_directory():
  """A random Llama in bfloat16 of 16 tokens, as transformers 4.43 wrote it."""
  fields, tensors = transformers_files.read_directory(
      pathlib.Path(_DATA) / "checkpoints" / "verl_tiny_llama")
  section = default_config().model
  section.update(transformers_config.section_from_transformers(fields))
  config = ModelConfig.from_section(section, 0)
  assert (config.num_layers, config.width, config.head_dim, config.vocab_size) == (4, 128, 32, 16)
  params = transformers_weights.from_transformers(tensors, config)
  logits = np.asarray(decoder.logits(params, config, np.arange(16)[None]))
  assert logits.shape == (1, 16, 16) and np.isfinite(logits).all() and logits.std() > 0.01
