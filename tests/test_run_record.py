"""Records of a work directory: what may change between starts and what may not."""

import json
import re

import pytest

from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.training import run_record

FINGERPRINTS = {"tokenizer_fingerprint": "t1", "data_fingerprint": "d1"}


def test_same_configuration_is_accepted_and_recorded_once(tmp_path):
  member = tmp_path / "members" / "wd0.1"
  run_record.check_member(member, default_config(), **FINGERPRINTS)
  first = (member / "config.json").read_text()
  assert json.loads(first)["config"]["checkpoint"]["keep_at"] == [0.25, 0.5, 0.75]
  run_record.check_member(member, default_config(), **FINGERPRINTS)  # tuples against lists
  assert (member / "config.json").read_text() == first
  assert [p.name for p in member.iterdir()] == ["config.json"]  # no temporary file is left


def test_changed_fields_are_named_with_both_values(tmp_path):
  run_record.check_member(tmp_path, default_config(), **FINGERPRINTS)
  config = default_config()
  config.optim.weight_decay = 0.3
  config.seed = 7
  with pytest.raises(UserError) as e:
    run_record.check_member(tmp_path, config, **FINGERPRINTS)
  message = str(e.value)
  assert "seed was 0 and is now 7" in message
  assert "optim.weight_decay was 0.1 and is now 0.3" in message
  assert "undo the change or give another --workdir" in message and "\n" not in message


def test_at_most_three_changes_are_spelled_out(tmp_path):
  run_record.check_member(tmp_path, default_config(), **FINGERPRINTS)
  config = default_config()
  config.seed, config.model.width, config.optim.beta1, config.optim.eps = 1, 64, 0.8, 1e-6
  config.optim.decay.rules = ("embed=norm",)
  with pytest.raises(UserError, match=r"\(and 2 more\)") as e:
    run_record.check_member(tmp_path, config, **FINGERPRINTS)
  assert len(re.findall(" was .*? and is now ", str(e.value))) == 3


def test_fields_that_do_not_decide_the_result_may_change(tmp_path):
  run_record.check_member(tmp_path, default_config(), **FINGERPRINTS)
  config = default_config()
  config.log.wandb = True
  config.checkpoint.every = "5%"
  config.checkpoint.keep_at = ()
  config.mesh.fsdp = 2
  config.distributed.mode = "off"
  config.sweep.members_at_once = 3
  config.data.num_workers = 0
  config.data.cache_dir = "/elsewhere"
  config.train.log_every = "5 steps"
  run_record.check_member(tmp_path, config, **FINGERPRINTS)


NAMED = {"name": "a better name", "data.train": "/moved/*.txt", "data.validation": "/moved/v.txt",
         "data.tokenizer.path": "/moved/t.json", "data.tokenizer.eos": "</s>"}


def test_what_is_named_is_compared_by_its_content(tmp_path):
  run_record.check_member(tmp_path, default_config(), **FINGERPRINTS)
  config = default_config()
  config.update_from_flattened_dict(NAMED)
  run_record.check_member(tmp_path, config, **FINGERPRINTS)
  with pytest.raises(UserError, match='data.train was "" and is now "/moved/[*].txt".*, and the '
                                      "content is another; bring"):
    run_record.check_member(tmp_path, config, **FINGERPRINTS | {"data_fingerprint": "d2"})
  config.data.train_subset_fraction = 0.2  # begins like data.train
  with pytest.raises(UserError, match="data.train_subset_fraction was 0.05 and is now 0.2"):
    run_record.check_member(tmp_path, config, **FINGERPRINTS)


@pytest.mark.parametrize("what", ["tokenizer", "data"])
def test_another_fingerprint_has_its_own_sentence(tmp_path, what):
  run_record.check_member(tmp_path, default_config(), **FINGERPRINTS)
  changed = {**FINGERPRINTS, f"{what}_fingerprint": "other"}
  with pytest.raises(UserError, match=f"started with another {what} .*now other.*--workdir"):
    run_record.check_member(tmp_path, default_config(), **changed)


def test_a_record_older_than_a_field_counts_as_its_default(tmp_path):
  run_record.check_member(tmp_path, default_config(), **FINGERPRINTS)
  record = json.loads((tmp_path / "config.json").read_text())
  del record["config"]["train"]["z_loss"]
  (tmp_path / "config.json").write_text(json.dumps(record))
  run_record.check_member(tmp_path, default_config(), **FINGERPRINTS)
  config = default_config()
  config.train.z_loss = 1e-4
  with pytest.raises(UserError, match="train.z_loss was 0.0 and is now 0.0001"):
    run_record.check_member(tmp_path, config, **FINGERPRINTS)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 3}'])
def test_a_broken_record_is_one_sentence(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match="not the record of a member"):
    run_record.check_member(tmp_path, default_config(), **FINGERPRINTS)


def test_versions_keep_what_an_earlier_start_ran_with(tmp_path):
  run_record.open_workdir(tmp_path)
  run_record.open_workdir(tmp_path)
  path = tmp_path / "versions.json"
  now = json.loads(path.read_text())
  assert now["earlier"] == [] and now["device_kind"] == "cpu" and now["orbax-checkpoint"]
  path.write_text(json.dumps({**now, "jax": "0.0.1"}))
  run_record.open_workdir(tmp_path)
  now = json.loads(path.read_text())
  assert [v["jax"] for v in now["earlier"]] == ["0.0.1"] and now["jax"] != "0.0.1"


def test_a_workdir_that_is_a_file_is_one_sentence(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written to"):
    run_record.open_workdir(tmp_path / "file")
