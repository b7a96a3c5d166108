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
from safetensors.numpy import load_file, save_file

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


@pytest.mark.parametrize("files", [1, 2])
def test_files_without_their_index(tmp_path, files):
  written = reward_directory.write(tmp_path)
  if files == 1:
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
  else:
    write_shards(tmp_path, written)
    (tmp_path / INDEX).unlink()
  _, tensors = transformers_files.read_directory(tmp_path)
  assert sorted(tensors) == sorted(written)
  for name, array in written.items():
    np.testing.assert_array_equal(tensors[name], array)


def test_a_tensor_that_the_index_does_not_name(tmp_path):
  """transformers reads all that the files hold."""
  written = reward_directory.write(tmp_path)
  write_shards(tmp_path, written)
  index = json.loads((tmp_path / INDEX).read_text())
  del index["weight_map"]["model.norm.weight"]
  (tmp_path / INDEX).write_text(json.dumps(index))
  _, tensors = transformers_files.read_directory(tmp_path)
  np.testing.assert_array_equal(tensors["model.norm.weight"], written["model.norm.weight"])


def test_tables_of_positions_are_passed_over(tmp_path):
  """Old files keep one for each layer, in any dtype; transformers computes them anew."""
  written = reward_directory.write(tmp_path)
  extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.full(4, 0.5)}
  save_file(written | extra, tmp_path / "model.safetensors")
  fields, tensors = transformers_files.read_directory(tmp_path)
  section = default_config().model
  section.update(transformers_config.section_from_transformers(fields))
  config = ModelConfig.from_section(section, 0)
  places = transformers_weights.places_in(tensors, config, score_head=True)
  assert sorted(p.tensor for p in places) == sorted(written)
  save_file(written | {"model.inv_freq_of_another": np.ones(4, np.float32)},
            tmp_path / "model.safetensors")
  with pytest.raises(UserError, match="no place for, such as model.inv_freq_of_another"):
    transformers_weights.places_in(transformers_files.read_directory(tmp_path)[1], config,
                                   score_head=True)


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


def damage_dtype(dtype):
  def damage(folder, tensors):
    tensors["model.norm.weight"] = np.zeros(32, dtype)
    save_file(tensors, folder / "model.safetensors")
  return damage


def damage_set(folder, tensors):
  (folder / write_shards(folder, tensors)[0]).unlink()
  (folder / INDEX).unlink()


def damage_twice(folder, tensors):
  shards = write_shards(folder, tensors)
  for shard in shards:
    save_file(load_file(folder / shard) | {"model.norm.weight": np.zeros(32, np.float32)},
              folder / shard)


def add_adapter(folder, _):
  (folder / "adapter_config.json").write_text("{}")


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
    (damage_dtype(np.int8), "norm.weight in .* is stored as I8; .* save the model unquantized"),
    (damage_dtype(np.int64), "model.norm.weight in .* is stored as I64; only BF16, F16, F32 are"),
    (damage_dtype(np.float64), "is stored as F64, which .*; save the model in one of float32, "),
    (damage_set, "has no model.safetensors.index.json and not every file .* model-00002-of-00002"),
    (damage_twice, "norm.weight stands in model-00001-of-00002.* and in model-00002-of-00002"),
    (add_adapter, "holds an adapter .* merge it"),
    (lambda f, _: (f / "model.safetensors").unlink(), "has neither model.safetensors nor"),
    (lambda f, _: (f / "config.json").unlink(), "has no config.json"),
    (lambda f, _: write_config(f, "{"), "config.json is not JSON"),
    (lambda f, _: write_config(f, '{"a":' * 99_999), "config.json is not JSON"),
    (lambda f, _: (f / "config.json").unlink() or (f / "config.json").mkdir(), "cannot be read"),
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
