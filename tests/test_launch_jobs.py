"""A sweep or a study as jobs, the flags that launchers share, and the programs of single jobs."""

import dataclasses
import json
import re
import shlex

import launching
import pytest

from launch import jobs, record
from launch.jobs import Launch
from wd_plasticity import members as members_lib
from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.evals.config import attention_rank_config, probe_config
from wd_plasticity.study.plan import Eval


def _launch(num_members=3, evals=(), points=None, **fields):
  config = default_config()
  points = points or [{"optim.weight_decay": w / 10, "seed": 0} for w in range(num_members)]
  members = members_lib.expand(config, lambda add: [add(p) for p in points])
  fields = dict(indices=tuple(range(len(members)))) | fields
  return Launch(
      config=config, filename="c.py:size=1b", overrides=("--config.optim.beta2=0.9",),
      workdir="w", name="n", tags=("t",), notes="a note", members=tuple(members),
      evals=tuple(Eval(e) for e in evals), **(dict(members_per_job=1) | fields))


def test_a_study_is_pretraining_then_evals_then_the_report():
  made = jobs.make_jobs(_launch(2, (attention_rank_config(), probe_config())))
  assert [(j.kind, j.index) for j in made] == [
      ("pretraining", 0), ("pretraining", 1), ("attention_rank", 0), ("probe", 0),
      ("attention_rank", 1), ("probe", 1), ("report", 0)]
  assert len({j.name for j in made}) == 7
  assert all(re.fullmatch(r"[\w.+-]+", j.name) for j in made)
  by_name = {j.name: j for j in made}
  probe = by_name["probe-wd0.1-seed0"]
  assert probe.after == ("pretraining-wd0.1-seed0",) and probe.members == ("wd0.1-seed0",)
  config = ("--config=c.py:size=1b", "--config.optim.beta2=0.9", "--workdir=w")
  assert probe.command == ("-m", "wd_plasticity.study", *config, "--step=probe", "--sweep_index=1")
  assert by_name["pretraining-wd0.1-seed0"].command == (
      "-m", "wd_plasticity.main", *config, "--sweep_index=1")
  report = made[-1]
  assert report.any_of and set(report.after) == {j.name for j in made[2:-1]}
  assert report.command == ("-m", "wd_plasticity.report", "--workdir=w")
  assert not any(j.any_of for j in made[:-1])


def test_jobs_hold_the_chosen_members_together_where_one_program_can():
  points = [{"optim.weight_decay": w, "model.num_layers": n}
            for n in (2, 4) for w in (0.1, 1.0, 3.0)]
  made = jobs.make_jobs(_launch(points=points, members_per_job=2, indices=(0, 1, 2, 3, 5)))
  assert [j.command[-1] for j in made] == [
      "--sweep_index=0,1", "--sweep_index=2", "--sweep_index=3,5"]
  assert [j.index for j in made] == [0, 1, 2]
  assert made[0].name == "pretraining-wd0.1-num_layers2-and-1-more"
  (alone,) = jobs.make_jobs(_launch(1, indices=()))
  assert alone.command[-1] == "--sweep_index=none"


@pytest.mark.parametrize("devices, members, axis", [
    (0, 2, None), (1, 2, None), (2, 1, None), (2, 2, 2), (4, 2, 2), (8, 3, None), (3, 3, 3)])
def test_members_of_a_job_lie_on_the_sweep_axis_where_devices_divide(devices, members, axis):
  job = jobs.make_jobs(_launch(members, members_per_job=members, devices_per_job=devices))[0]
  given = [a for a in job.command if "mesh.sweep" in a]
  assert given == ([f"--config.mesh.sweep={axis}"] if axis else [])


def test_what_cannot_be_run_is_refused_before_anything_is_submitted():
  launch = _launch(2, devices_per_job=2, members_per_job=2)
  jobs.check(launch)
  points = [{"optim.weight_decay": 0.1}, {"optim.weight_decay": -1.0}]
  with pytest.raises(UserError, match="weight_decay=-1"):
    jobs.check(_launch(points=points))
  points = [{"train.global_batch_size": 3}]
  with pytest.raises(UserError, match="2 devices, which must divide it"):
    jobs.check(_launch(points=points, devices_per_job=2))


def test_what_was_submitted_is_kept_and_read_again(tmp_path):
  launch = dataclasses.replace(_launch(2), workdir=str(tmp_path))
  made = jobs.make_jobs(launch)
  path = record.write(launch, "slurm", made, {made[1].name: {"id": "7_1"}})
  kept = json.loads(path.read_text())
  assert (kept["name"], kept["tags"], kept["notes"]) == ("n", ["t"], "a note")
  assert shlex.split(kept["jobs"][0]["command"]) == ["python", *made[0].command]
  damaged = tmp_path / "launch" / "damaged-slurm.json"
  damaged.write_text("{")
  with pytest.raises(UserError, match="damaged-slurm.json is not the record of a launch"):
    record.submitted(launch, "slurm")  # its jobs may run: they would be submitted twice
  damaged.unlink()
  assert record.submitted(launch, "slurm") == [{"id": "7_1"}]
  assert record.submitted(launch, "xpk") == []


# Flags, as the launcher of this machine understands them.


def test_flags_reach_the_jobs(tmp_path, corpus):
  config = launching.write_study(tmp_path, corpus)
  base = [f"--config={config}", "--dry_run"]
  place = f"--workdir={tmp_path}"
  made = launching.many(
      "launch.local",
      [*base, "--workdir=/d/{name}/{user}", "--name=a b/c", "--set_config=optim.beta2=0.9",
       "--set_config", "seed=3", "--config.name", "x", "--tag=t1", "--tag=t2", "--notes=it's",
       "--config.log.wandb"],
      [*base, place, "--sweep=1", "--noevals"], [*base, place, "--sweep=none", "--noevals"],
      [*base, place, "--sweep=0,7"], [*base, place, "--set_config=optim.nothing=1"],
      [*base, place, "--set_config=beta2"], [*base, "--workdir=/d/{job}"],
      [*base, place, "--members_per_job=0"], [*base], ["--dry_run", place])
  said = made[0][1]
  commands = [line for line in said.splitlines() if " -m wd_plasticity" in line]
  assert len(commands) == 5
  words = shlex.split(commands[0])
  assert words[1:8] == ["-m", "wd_plasticity.main", f"--config={config}", "--config.name=x",
                        "--config.log.wandb", "--config.optim.beta2=0.9", "--config.seed=3"]
  assert re.fullmatch(r"--workdir=/d/a_b_c/\w+", words[8]), words
  exports = dict(shlex.split(line)[1].split("=", 1) for line in said.splitlines()
                 if line.startswith("export "))
  assert exports["WANDB_TAGS"] == "t1,t2" and exports["WANDB_NOTES"] == "it's"
  about = json.loads(exports["WD_PLASTICITY_LAUNCH"])
  assert about == {"backend": "local", "name": "a b/c", "notes": "it's", "tags": ["t1", "t2"]}
  chosen = [re.findall(r"--sweep_index=\S+", said) for _, said in made[1:3]]
  assert chosen == [["--sweep_index=1"], ["--sweep_index=none"]]
  mistakes = ["0,7 does not name some of the 2 members", "'optim.nothing'", "'beta2'",
              "{job}, which cannot be filled in", "--members_per_job=0", "--workdir=FOLDER",
              "--config=FILE"]
  for (status, said), sentence in zip(made[3:], mistakes, strict=True):
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert sentence in said


# The programs of single jobs.


def test_a_step_of_a_study_is_its_eval_for_some_members(tmp_path, corpus):
  config = launching.write_study(tmp_path, corpus)
  flags = [f"--config={config}", f"--workdir={tmp_path}"]
  made = launching.many(
      "wd_plasticity.study", [*flags, "--step=attention_rank", "--dry_run"],
      [*flags, "--step=attention_rank", "--sweep_index=1", "--dry_run"],
      [*flags, "--step=attention_rank", "--sweep_index=none", "--dry_run"],
      [*flags, "--step=probe"], [*flags, "--sweep_index=1"],
      [*flags, "--step=attention_rank", "--sweep_index=9"])
  folders = [[a for a in shlex.split(said) if a.startswith("--checkpoint=")] for _, said in made]
  of = lambda *names: [f"--checkpoint={tmp_path}/members/{n}" for n in names]
  assert folders[0] == of("wd0-seed1", "wd1-seed1")
  assert folders[1] == of("wd1-seed1") and folders[2] == of("wd0.1-seed0")
  words = shlex.split(made[1][1])
  assert words[:3] == ["python", "-m", "wd_plasticity.evals.attention_rank"]
  assert {f"--config={tmp_path}/study/attention_rank.py", "--replace"} <= set(words)
  assert not (tmp_path / "study").exists()
  for (status, said), sentence in zip(made[3:], (
      "--step=probe is not an eval of this study; it has attention_rank",
      "--sweep_index chooses members for one --step", "does not name some of the 2"), strict=True):
    assert status == 2 and sentence in said and said.count("\n") == 1


@pytest.mark.slow
def test_sweep_index_chooses_members(tmp_path, corpus):
  config = launching.write_study(tmp_path, corpus)
  texts = ("1", "none", "x")
  made = launching.many("wd_plasticity.main", *(
      [f"--config={config}", "--dry_run", f"--sweep_index={t}"] for t in texts))
  listed = [re.findall(r"^ +\d+  (wd\S+)", said, re.MULTILINE) for _, said in made]
  assert listed == [["wd1-seed1"], ["wd0.1-seed0"], []]
  assert [status for status, _ in made] == [0, 0, 2]
