"""TFDS data sets by name, prepared in their default format: needs TensorFlow."""

import pytest

from wd_plasticity.data import sources

pytest.importorskip("tensorflow", reason="pip install wd_plasticity[tensorflow]")


def test_a_name_is_prepared_and_read(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

  class SmallText(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(30):
        yield i, {"text": f"document {i}"}

  def read(split):
    source = sources.open_source("tfds", f"small_text:{split}", "text", "data.train")
    return list(source.documents())

  assert sorted(read("train")) == sorted(f"document {i}" for i in range(30))
  assert tfds.builder("small_text").info.file_format.value == "tfrecord"
  assert len(read("train[:50%]")) == 15
