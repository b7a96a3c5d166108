"""From where members go on: only from what is theirs, whole, and reached by their metrics."""

import json
import os
import re
import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_stored_state import flip, make_older

from wd_plasticity.data import loader
from wd_plasticity.errors import UserError
from wd_plasticity.training import loop, resume, stored_state
from wd_plasticity.training.checkpoint import MemberCheckpoints, open_checkpoint

NAMES = ["wd0-seed0", "wd3-seed0"]
TOTAL = 24  # as if there was more to do than the 12 steps that are done


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / "run")


def stand(corpus, workdir, steps=TOTAL):
  """[(step, names of members)] that go on together, and what was said."""
  members, _, prepared = tiny.prepared_sweep(corpus, workdir)
  said = []
  parts = resume.parts(members, steps, prepared, workdir, said.append)
  return [(step, [m.name for m in part]) for step, part in parts], said


def step_path(workdir, step, name=NAMES[0]):
  return workdir / "members" / name / "checkpoints" / str(step)


def edit(path, item, **fields):
  """Changes fields of a JSON item, with checksums that fit."""
  file = path / item / "data.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))
  stored_state.seal(path)


def test_members_that_are_whole_go_on_together(corpus, workdir):
  assert stand(corpus, workdir) == ([(12, NAMES)], [])
  assert stand(corpus, workdir, 12) == ([(12, NAMES)], [])


def test_each_goes_on_from_where_it_stands(corpus, workdir):
  shutil.rmtree(step_path(workdir, 6))
  shutil.rmtree(step_path(workdir, 12, NAMES[1]))
  # The one at 12 has no earlier step to share.
  assert stand(corpus, workdir) == ([(12, NAMES[:1]), (6, NAMES[1:])], [])
  shutil.rmtree(step_path(workdir, 6, NAMES[1]))
  assert stand(corpus, workdir) == ([(12, NAMES[:1]), (0, NAMES[1:])], [])


def test_members_parted_by_a_kill_in_a_save_go_on_together(corpus, workdir):
  shutil.rmtree(step_path(workdir, 12, NAMES[1]))
  parts, said = stand(corpus, workdir)
  assert parts == [(6, NAMES)]
  assert said == ["wd0-seed0 is at step 12 and goes back to step 6, the save before, from which "
                  "all of its group go on together."]
  # But one that is done has nothing to go back for.
  assert stand(corpus, workdir, 12)[0] == [(12, NAMES[:1]), (6, NAMES[1:])]


def foreign(workdir):
  shutil.rmtree(step_path(workdir, 12))
  shutil.copytree(step_path(workdir, 12, NAMES[1]), step_path(workdir, 12))


def renamed(workdir):
  shutil.rmtree(step_path(workdir, 12))
  shutil.copytree(step_path(workdir, 6), step_path(workdir, 12))


def editing(item, **fields):
  return lambda workdir: edit(step_path(workdir, 12), item, **fields)


def other_decay(workdir):
  path = step_path(workdir, 12)
  config = json.loads((path / "meta/data.json").read_text())["config"]
  config["optim"]["weight_decay"] = 0.5
  edit(path, "meta", config=config)


def cut_metrics(workdir):
  path = workdir / "members" / NAMES[0] / "metrics.jsonl"
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:9]))


def flip_metrics(workdir):
  path = workdir / "members" / NAMES[0] / "metrics.jsonl"
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(content)


def older_with_cut_metrics(workdir):
  for step in (6, 12):
    path = step_path(workdir, step)
    position = json.loads((path / "position/data.json").read_text())
    del position["metrics"]
    (path / "position/data.json").write_text(json.dumps(position))
    make_older(path)
  cut_metrics(workdir)


@pytest.mark.parametrize("damage,words", [
    (lambda w: flip(next((step_path(w, 12) / "params").rglob("d/*"))),
     "its file params/.* is not what was saved"),
    (lambda w: flip(next((step_path(w, 12) / "opt_state").rglob("d/*"))),
     "its file opt_state/.* is not what was saved"),
    (lambda w: (step_path(w, 12) / "params/manifest.ocdbt").unlink(), "manifest.ocdbt is not ther"),
    (foreign, "it is of another run: its member is wd3-seed0 and that of this run wd0-seed0"),
    (renamed, "it is of step 6 by its meta, and its directory is named by another"),
    (editing("meta", member=NAMES[1]), "its member is wd3-seed0"),
    (editing("meta", step=11), "it is of step 11 by its meta"),
    (editing("position", next_step=11), "its step is 11 and that of this run 12"),
    (editing("position", seed=5), "its seed is 5 and that of this run 0"),
    (editing("meta", data_fingerprint="ab"), "its data .fingerprint. is ab"),
    (editing("meta", tokenizer_fingerprint="ab"), "its tokenizer .fingerprint. is ab"),
    (other_decay, "its optim.weight_decay is 0.5 and that of this run 0.0"),
    (cut_metrics, "metrics.jsonl ends before step 12"),
    (flip_metrics, "metrics.jsonl is not what was written up to step 12"),
    (older_with_cut_metrics, "metrics.jsonl ends before step 12"),
])
def test_what_cannot_be_believed_is_refused_by_name_and_said(corpus, workdir, damage, words):
  damage(workdir)
  before = sorted(p.name for p in step_path(workdir, 12).iterdir())
  parts, said = stand(corpus, workdir)
  assert parts == [(6, NAMES)]
  aside = workdir / "outdated/members" / NAMES[0] / "checkpoints/12"
  assert len(said) == 2 and "goes back" in said[1] and "delete" not in said[0]
  assert said[0].startswith("wd0-seed0: its checkpoint of step 12 is refused, because ")
  assert said[0].endswith(f"; it is now in {aside}, and the member goes on from step 6.")
  assert re.search(words, said[0])
  assert sorted(p.name for p in aside.iterdir()) == before  # nothing is lost
  assert not step_path(workdir, 12).exists()


def test_without_any_that_can_be_believed_the_run_ends(corpus, workdir):
  metrics = workdir / "members" / NAMES[0] / "metrics.jsonl"
  metrics.write_text("")
  with pytest.raises(UserError) as e:
    stand(corpus, workdir)
  assert "has no checkpoint to go on from: that of step 12 is refused" in str(e.value)
  assert f"{metrics} ends before step 12" in str(e.value) and "(and of step 6)" in str(e.value)
  assert "to train this member from the beginning" in str(e.value) and "\n" not in str(e.value)
  assert step_path(workdir, 12).exists() and not (workdir / "outdated").exists()
  metrics.unlink()
  with pytest.raises(UserError, match="ends before step 12"):
    stand(corpus, workdir)


def test_a_member_that_is_done_is_compared_too(corpus, workdir):
  foreign(workdir)
  parts, said = stand(corpus, workdir, 12)
  assert parts == [(12, NAMES[1:]), (6, NAMES[:1])] and "its member is wd3-seed0" in said[0]


def test_checkpoints_of_an_earlier_version_are_gone_on_from(corpus, workdir):
  for name in NAMES:
    for step in (6, 12):
      make_older(step_path(workdir, step, name))
  assert stand(corpus, workdir) == ([(12, NAMES)], [])


def test_an_interrupted_save_is_said_and_made_again(corpus, workdir):
  for name in NAMES:
    (step_path(workdir, 12, name) / "checksums.json").unlink()
  parts, said = stand(corpus, workdir)
  assert parts == [(6, NAMES)]
  assert said == [f"{n}: its save of step 12 was interrupted; the member goes on from step 6."
                  for n in NAMES]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"step": null}', "[" * 100_000])
def test_a_broken_record_of_a_failure_is_one_sentence(corpus, workdir, text):
  path = workdir / "members" / NAMES[0] / "FAILED.json"
  path.write_text(text)
  with pytest.raises(UserError, match="is not the record of a member that failed") as e:
    stand(corpus, workdir)
  assert str(path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("start", [5, 6, 7, 12])
def test_batches_go_on_at_the_end_of_an_epoch_as_anywhere(start):
  source = loader.BatchSource(np.arange(24 * 3).reshape(24, 3), [0, 1], 4)  # 6 steps an epoch
  for step, batch in enumerate(loader.read_ahead(source, start, 8, 1), start):
    np.testing.assert_array_equal(batch, source[step])
  seen = np.concatenate([source[s][0, :, 0] for s in range(6, 12)])
  assert sorted(seen) == list(range(0, 72, 3))  # each record once an epoch


def test_a_state_of_the_optimizer_that_counted_other_steps_is_refused(workdir):
  trainer = types.SimpleNamespace(start=6)
  checkpoints = MemberCheckpoints(step_path(workdir, 6).parent)
  loop.ChunkTrainer._check_count(trainer, checkpoints, {"count": jnp.int32(6), "m": jnp.ones(2)})
  with pytest.raises(UserError, match="checkpoints/6 is refused: its optimizer has counted 5 "
                                      "updates and not 6"):
    loop.ChunkTrainer._check_count(trainer, checkpoints, {"count": jnp.int32(5)})


def _content(workdir, name):
  stored = open_checkpoint(workdir / "members" / name)
  params, opt_state, position, meta = MemberCheckpoints(stored.directory.parent).restore(
      12, *_abstract(stored))
  return ([np.asarray(x).tobytes() for x in _leaves((params, opt_state))], position, meta,
          (workdir / "members" / name / "metrics.jsonl").read_bytes())


def _abstract(stored):
  from wd_plasticity.training.orbax_arrays import stored_shapes
  return [stored_shapes(stored.directory, item) for item in ("params", "opt_state")]


def _leaves(tree):
  import jax
  return jax.tree.leaves(tree)


def test_a_workdir_that_vanishes_ends_the_run_and_members_apart_end_bit_equal(
    corpus, trained, tmp_path):
  """One member at step 6, one not begun; the work directory is moved in the midst, and back."""
  workdir = tmp_path / "[run]"
  shutil.copytree(trained, workdir)
  for step in (6, 12):
    shutil.rmtree(step_path(workdir, step, NAMES[1]))
  shutil.rmtree(step_path(workdir, 12))

  class Moves(loop.StopSignal):
    def requested(self, step):
      if step == 8:
        os.rename(workdir, tmp_path / "moved")
      return False
  with pytest.raises(UserError, match="was moved or deleted while the run was under way"):
    tiny.train(corpus, workdir, Moves())
  assert not workdir.exists()
  os.rename(tmp_path / "moved", workdir)
  tiny.train(corpus, workdir)
  for name in NAMES:
    assert _content(workdir, name) == _content(trained, name)
