"""Programs are started with what was parsed, however it was typed."""

import shlex

import launching
import pytest
import tiny
from absl import flags
from ml_collections import config_flags

from launch import cloud
from wd_plasticity import commands, paths
from wd_plasticity.config import default_config, flatten
from wd_plasticity.errors import UserError
from wd_plasticity.evals.config import finetune_config, lm_eval_config

_FILE = tiny.ROOT / "configs" / "quickstart.py"


def _parsed(monkeypatch, *arguments):
  """A command line as a program reads it: flags of its own, and the words to hand on."""
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_multi_string("checkpoint", [], "", flag_values=values)
  flags.DEFINE_bool("replace", False, "", flag_values=values)
  config_flags.DEFINE_config_file("config", None, flag_values=values, lock_config=True)
  monkeypatch.setattr(flags, "FLAGS", values)
  monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
  values(["program", *map(str, arguments)])
  return values


@pytest.mark.parametrize("arguments, field, value", [
    (["--config={f}", "--noconfig.model.scan_layers"], "model.scan_layers", False),
    (["--config={f}", "--config.log.wandb"], "log.wandb", True),
    (["--config", "{f}", "--config.seed", "7"], "seed", 7),
    (["-config={f}", "-config.seed=7"], "seed", 7),
    (["--flagfile={flags}"], "train.steps", 20),
    (["--config={f}", "--flagfile={over}"], "train.steps", 20),
    (["--config={f}", "--config.name=it's = a \"b\" $c"], "name", "it's = a \"b\" $c"),
    (["--config={f}", "--config.name="], "name", ""),
    (["--config={f}", "--config.checkpoint.keep_at=(0.5,)"], "checkpoint.keep_at", (0.5,)),
    (["--config={f}", "--config.checkpoint.keep_at=()"], "checkpoint.keep_at", ()),
    (["--config={f}", "--config.optim.decay.rules=('a.*=b', 'c,d=e')"], "optim.decay.rules",
     ("a.*=b", "c,d=e")),
    (["--config={f}", "--config.optim.eps=1e-300"], "optim.eps", 1e-300),
    (["--config={f}", "--config.seed=1", "--config.seed=2"], "seed", 2)])
def test_what_was_parsed_is_what_a_child_parses(monkeypatch, tmp_path, arguments, field, value):
  (tmp_path / "over.txt").write_text("--config.train.steps=20\n--config.name=of a file\n")
  (tmp_path / "flags.txt").write_text(f"--config={_FILE}\n--config.train.steps=20\n")
  arguments = [a.format(f=_FILE, over=tmp_path / "over.txt", flags=tmp_path / "flags.txt")
               for a in arguments]
  before = _parsed(monkeypatch, "--workdir=w", *arguments).config
  assert flatten(before.to_dict())[field] == value
  words = commands.config_words()
  assert words[0] == f"--config={_FILE}"
  words = shlex.split(shlex.join(words))
  again = _parsed(monkeypatch, *words).config
  assert flatten(again.to_dict()) == flatten(before.to_dict())
  assert commands.config_words() == words


def test_the_command_of_an_eval_is_that_of_its_flags(monkeypatch, tmp_path):
  (tmp_path / "flags.txt").write_text("--checkpoint=b c\n--replace\n")
  _parsed(monkeypatch, "--checkpoint", "a", f"--flagfile={tmp_path / 'flags.txt'}",
          f"--config={_FILE}", "--config.seed=3")
  assert commands.words("m", ("config", "checkpoint", "workdir", "replace")) == [
      "-m", "m", f"--config={_FILE}", "--config.seed=3", "--checkpoint=a", "--checkpoint=b c",
      "--replace"]
  _parsed(monkeypatch, "--noreplace")
  assert commands.words("m", ("replace",)) == ["-m", "m", "--noreplace"]


def test_studies_and_launchers_hand_on_flags_of_files(tmp_path, corpus):
  config = launching.write_study(tmp_path, corpus)
  (tmp_path / "over.txt").write_text("--config.train.steps=20\n--noconfig.model.scan_layers\n")
  (tmp_path / "launch.txt").write_text("--set_config=train.steps=20\n--sweep=1\n--noevals\n")
  base = [f"--config={config}", f"--workdir={tmp_path}", "--dry_run"]
  (_, study), = launching.many("wd_plasticity.study", [*base, f"--flagfile={tmp_path}/over.txt"])
  local, sets = launching.many(
      "launch.local", [*base, f"--flagfile={tmp_path}/over.txt", "--noevals"],
      [*base, f"--flagfile={tmp_path}/launch.txt"])
  for said in (study, local[1]):
    words = next(line for line in said.splitlines() if "wd_plasticity.main" in line)
    assert {"--config.train.steps=20", "--config.model.scan_layers=False"} <= set(words.split())
  words = [line.split() for line in sets[1].splitlines() if "wd_plasticity.main" in line]
  assert len(words) == 1 and {"--config.train.steps=20", "--sweep_index=1"} <= set(words[0])


# Addresses.


def test_a_cloud_knows_buckets_of_one_kind():
  assert cloud.split_bucket("gs://bucket/run") == ("bucket", "/gcs/bucket/run")
  with pytest.raises(UserError, match="--workdir=s3://b/c is an address"):
    cloud.split_bucket("s3://b/c")


@pytest.mark.parametrize("path", [
    "gs://bucket/run", "s3://b/c", "file:///tmp/x", "hf://a/b", "hdfs://h/x", "gs:/bucket/run",
    "a.txt, gs://b/*.txt", "https://x/y.jsonl"])
def test_an_address_is_no_path(path):
  with pytest.raises(UserError, match="--workdir=.* is an address.*mount .*gcsfuse"):
    paths.local_path(path, "--workdir")


@pytest.mark.parametrize("path", [None, "", "runs/a", "/a/b:c", "tfds:wiki/train", "a,b", "x:y",
                                  "tfds:/data/set", "dir/a://b", "C:/x", "a b://c"])
def test_other_paths_are_let_through(path):
  paths.local_path(path, "--workdir")


@pytest.mark.parametrize("make, field", [
    *((default_config, f) for f in ("data.train", "data.validation", "data.cache_dir",
                                    "data.tokenizer.path")),
    *((finetune_config, f) for f in ("cache_dir", "tokenizer_dir", "reward_model",
                                     "sources.gsm8k.train", "sources.sst2.validation")),
    (lm_eval_config, "include_path")])
def test_no_field_of_a_path_takes_an_address(make, field):
  config = make()
  paths.check_config(config)
  config.update_from_flattened_dict({field: "gs://b/c"})
  with pytest.raises(UserError, match=f"{field}=gs://b/c is an address"):
    paths.check_config(config)


def test_texts_that_are_no_paths_may_hold_addresses():
  config = finetune_config()
  config.template = "https://x {prompt}"
  paths.check_config(config)


@pytest.mark.parametrize("module, flags", [
    ("wd_plasticity.main", ["--workdir=gs://b/c"]),
    ("wd_plasticity.main", ["--workdir=w", "--config.data.train=s3://b/*.txt"]),
    ("wd_plasticity.study", ["--workdir=gs://b/c"]),
    ("wd_plasticity.report", ["--workdir=gs://b/c"]),
    ("wd_plasticity.report", ["--workdir=w", "--out=gs://b/c"]),
    ("wd_plasticity.training.summary", ["--workdir=gs://b/c"]),
    ("wd_plasticity.evals.probe", ["--workdir=w", "--checkpoint=gs://b/c"]),
    ("wd_plasticity.evals.finetune", ["--workdir=s3://w", "--checkpoint=c"]),
    ("wd_plasticity.interop.export", ["--checkpoint=hf://a/b", "--out=o"]),
    ("wd_plasticity.interop.import_", ["--model=hf://a/b", "--workdir=w", "--name=n"]),
    ("wd_plasticity.data.prepare", ["--cache_dir=gs://b"]),
    ("launch.local", ["--workdir=gs://b/c"]), ("launch.slurm", ["--workdir=gs://b/c"])])
def test_every_program_refuses_addresses(module, flags, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  if not module.endswith(("report", "summary", "export", "import_")):
    name = module.rpartition(".")[2] if ".evals." in module else "quickstart"
    flags = [f"--config={tiny.ROOT / 'configs' / name}.py", *flags]
  (status, said), = launching.many(module, flags)
  assert status == 2 and said.count("\n") == 1 and "is an address" in said, said
  assert not list(tmp_path.iterdir())


def test_a_path_is_no_longer_than_paths_can_be():
  paths.local_path("a/" * 2000 + "," + "b/" * 2000, "data.train")  # two files
  with pytest.raises(UserError, match="--cache_dir has 5000 characters, more than a path can"):
    paths.local_path("a/" * 2500, "--cache_dir")


@pytest.mark.parametrize("given", ["--workdir=", "--workdir= "])
def test_a_folder_without_a_name_is_refused(given, monkeypatch):
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  monkeypatch.setattr(paths.flags, "FLAGS", values)
  values(["program"])
  paths.check_flags()
  values(["program", given])
  with pytest.raises(UserError, match="--workdir is empty; name a folder"):
    paths.check_flags()
