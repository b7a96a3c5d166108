"""What fine-tuning is asked to do: points of its sweep, what is shared, what judges a task."""

import json
import math
import types

import numpy as np
import pytest
import tiny
from test_finetuning import MODEL, TEMPLATE, _config, write_task

from wd_plasticity import members as members_lib
from wd_plasticity.data.tokenizers import ByteTokenizer
from wd_plasticity.errors import UserError
from wd_plasticity.evals import checks, finetune, finetune_plan, finetune_summary
from wd_plasticity.evals import config as eval_config
from wd_plasticity.evals.split_evaluation import SplitEvaluation
from wd_plasticity.finetuning.batches import ExampleBatches
from wd_plasticity.finetuning.examples import Template
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.study import plan as study_plan
from wd_plasticity.tasks import registry, sample_metrics
from wd_plasticity.tasks.task import Problem


def _points(config, *overrides):
  return members_lib.expand(config, lambda add: [add(dict(p)) for p in overrides], alone=())


def _session(trained, tmp_path, config, *overrides):
  if not (tmp_path / "train.tsv").exists():
    write_task(tmp_path)
  return tiny.session("finetune", config, [trained], tmp_path / "w",
                      _points(config, *overrides) if overrides else ())


def _plans(session):
  return finetune_plan.plans(
      session, finetune_plan.waiting(session, finetune_plan.load_splits(session)))


# Points.


@pytest.mark.parametrize("field,value", [
    ("tasks", ("sst2",)), ("steps", "all"), ("compute_dtype", "bfloat16"), ("members_at_once", 2),
    ("cache_dir", "x"), ("tokenizer_dir", "x"), ("sources.labelled.test", "x"), ("mesh.data", 1),
    ("name", "x")])
def test_a_point_cannot_set_what_is_read_once(field, value, tmp_path):
  config = _config(tmp_path)
  config.cache_dir = config.tokenizer_dir = "y"
  with pytest.raises(UserError, match=f"sets {field}, which is the same for all points; a point"):
    checks.check("finetune", _points(config, {field: value}))


def test_every_field_of_finetune_is_a_points_or_is_read_once():
  fields = set(eval_config.finetune_config()) - set(eval_config.FREE_FIELDS)
  assert set(eval_config.POINT_FIELDS["finetune"]) == fields - {"compute_dtype"}


@pytest.mark.parametrize("program,field,value", [
    ("probe", "max_train", 10), ("overfit", "sequences", 4), ("attention_rank", "power", 2),
    ("lm_eval", "num_fewshot", 1)])
def test_programs_without_a_sweep_refuse_one(trained, tmp_path, program, field, value):
  config = getattr(eval_config, f"{program}_config")()
  with pytest.raises(UserError, match=f"program {program} takes no sweep, and one sets {field}"):
    tiny.session(program, config, [trained], tmp_path, _points(config, {field: value}))
  with pytest.raises(UserError, match="takes no sweep"):  # before any training
    study_plan.read_tasks(study_plan.Eval(config, sweep=({field: value},)))


def test_a_point_is_run_with_what_it_says(trained, tmp_path):
  points = [
      ({"max_train": 7}, lambda p: len(p.examples) == 7),
      ({"max_test": 5}, lambda p: len(p.evaluations["test"].problems) == 5),
      ({"template": "Q: {prompt} A:"},
       lambda p: ByteTokenizer().decode(p.examples[0].tokens).startswith("Q: ")),
      ({"max_length": 40}, lambda p: p.examples_cut == 24),
      ({"epochs": 5}, lambda p: p.num_steps == 15),
      ({"batch_size": 4}, lambda p: p.num_steps == 12),
      ({"optim.schedule.warmup": "3 steps"},
       lambda p: float(p.optimizer.learning_rate_schedule(0)) == pytest.approx(1 / 3)),
      ({"optim.weight_decay": 0.5}, lambda p: max(p.decays) == 0.5),
      ({"lora.rank": 3}, lambda p: p.options.lora_rank == 3),
      ({"replay.fraction": 0.25}, lambda p: p.options.replay_rows == 2),
      ({"evaluate.generate": "never"}, lambda p: not p.evaluations["test"].generates),
      ({"evaluate.observed_problems": 3}, lambda p: len(p.observed["test"].problems) == 3)]
  session = _session(trained, tmp_path, _config(tmp_path), *(o for o, _ in points))
  session.targets = session.targets[:1]
  plans = _plans(session)
  for plan, (overrides, holds) in zip(plans, points, strict=True):
    assert plan.work.point.overrides == overrides and holds(plan), overrides
    settings = finetune_plan.settings_of(session, plan.work.point, "labelled", plan.work.splits)
    for split, found in settings["data"].items():
      assert found["problems"] == len(plan.work.splits[split].problems)
    assert sum(holds(other) for other in plans) == 1, overrides  # it can fail


def test_seeds_share_problems_and_differ_in_order(trained, tmp_path):
  config = _config(tmp_path, max_train=20, max_test=6)
  session = _session(trained, tmp_path, config, {"seed": 1}, {"seed": 2})
  session.targets = session.targets[:1]
  first, second = _plans(session)
  for split in ("train", "test"):
    assert first.work.splits[split].fingerprint == second.work.splits[split].fingerprint
  orders = [[e.tokens.tolist() for e in ExampleBatches(p.examples, 8, 1, p.config.seed).chosen(0)]
            for p in (first, second)]
  assert orders[0] != orders[1]
  with pytest.raises(UserError, match="seed=2147483648 must be .* below 2\\^31"):
    checks.check("finetune", _points(config, {"seed": 2**31}))


# What is shared.


def test_one_compiled_program_serves_equal_schedules_alone(trained, tmp_path):
  """Two tasks of as many problems, one with prompts several times as long."""
  made = {}
  for name, words in (("short", 1), ("long", 30)):
    folder = tmp_path / name
    folder.mkdir()
    for split, count in (("train", 24), ("test", 4)):
      (folder / f"{split}.tsv").write_text("text\tlabel\n" + "".join(
          f"{'good bad '[4 * (i % 2):][:4] * words} {i}\t{i % 2}\n" for i in range(count)))
    for warmup in ("1200 tokens", "50%"):
      config = _config(folder, max_length=400)
      config.optim.schedule.warmup = warmup
      session = _session(trained, folder, config)
      session.targets = session.targets[:1]
      made[name, warmup] = _plans(session)[0]
  tuning = finetune.Tuning(session)
  programs = {key: tuning._tune_program(plan, 1) for key, plan in made.items()}
  assert programs["short", "50%"] is programs["long", "50%"]
  assert programs["short", "1200 tokens"] is not programs["long", "1200 tokens"]
  for (name, warmup), plan in made.items():
    tokens = sum(len(e.tokens) for e in plan.examples) * 2 // 6  # 2 epochs in 6 steps
    n = 3 if warmup == "50%" else math.ceil(1200 / tokens)
    found = programs[name, warmup].optimizer.learning_rate_schedule(np.arange(n))
    np.testing.assert_allclose(found, [(k + 1) / n for k in range(n)], rtol=1e-6)


def test_a_generator_is_of_one_tokenizer(trained, tmp_path):
  tuning = finetune.Tuning(_session(trained, tmp_path, _config(tmp_path)))
  def of(name, eos_id):
    tokenizer = types.SimpleNamespace(fingerprint=name, eos_id=eos_id, vocab_size=257)
    return tuning._generator(MODEL, 1, Sampling(4), types.SimpleNamespace(tokenizer=tokenizer))
  assert of("a", 256) is of("a", 256)
  assert of("a", 256) is not of("b", 7)


def test_the_base_model_is_evaluated_again_where_that_differs(trained, tmp_path, monkeypatch):
  same = [{}, {"optim.learning_rate": 0.1}, {"epochs": 1}, {"max_train": 12}]
  other = [{"max_test": 4}, {"template": "{prompt}"}, {"max_length": 50}, {"seed": 1},
           {"evaluate.samples": 1}, {"reward_model": "."}]
  session = _session(trained, tmp_path, _config(tmp_path), *same[1:], *other)
  session.targets = session.targets[:1]
  tuning, made = finetune.Tuning(session), []
  monkeypatch.setattr(tuning, "_evaluate", lambda plan, *_: made.append(plan.work.point.name))
  for plan in _plans(session):
    tuning._before(plan, None, None)
  assert made == [session.points[0].name, *(p.name for p in session.points[len(same) - 1:])]


def test_models_of_other_data_are_not_tuned_together(trained, tmp_path):
  config = _config(tmp_path, members_at_once=2)
  config.evaluate.forgetting_sequences = 0
  session = _session(trained, tmp_path, config)
  loaded = finetune_plan.load_splits(session)
  assert [len(w.group) for w in finetune_plan.waiting(session, loaded)] == [2]
  session.targets[1].meta["data_fingerprint"] = "f" * 64
  assert [len(w.group) for w in finetune_plan.waiting(session, loaded)] == [1, 1]


# Problems.


def test_what_is_evaluated_on_the_way_is_no_prefix(trained, tmp_path):
  for name, count in (("train", 8), ("test", 60)):  # sorted by class, as folders are read
    (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + "".join(
        f"text {i}\t{int(i >= count // 2)}\n" for i in range(count)))
  config = _config(tmp_path)
  config.evaluate.observed_problems = 16
  session = _session(trained, tmp_path, config)
  plan = _plans(session)[0]
  golds = [p.gold for p in plan.observed["test"].problems]
  assert len(golds) == 16 and 4 <= sum(golds) <= 12
  assert plan.observed["test"].problems == registry.subset(plan.evaluations["test"].problems, 16)


def test_a_prompt_is_cut_for_its_own_responses(tmp_path):
  config = _config(tmp_path).evaluate
  config.generate = "never"
  template = Template(TEMPLATE, ByteTokenizer(), 64)
  task = registry.get("labelled")
  short = Problem("0", "s" * 38, "yes", options=("yes", "no"), gold=0)
  long = Problem("1", "l" * 38, "z" * 40, options=("z" * 40, "no"), gold=0)
  alone = SplitEvaluation(task, [short], template, config, 64)
  both = SplitEvaluation(task, [short, long], template, config, 64)
  assert alone._prompts[0].tolist() == both._prompts[0].tolist()
  assert (alone.prompts_cut, alone.too_long, both.prompts_cut, both.too_long) == (0, 0, 1, 1)


def test_problems_that_are_learnt_from_are_counted(trained, tmp_path):
  write_task(tmp_path)
  lines = (tmp_path / "train.tsv").read_text().splitlines()
  with (tmp_path / "test.tsv").open("a") as f:
    f.write("\n".join(lines[1:4]) + "\n")
  assert _plans(_session(trained, tmp_path, _config(tmp_path)))[0].in_training == {"test": 3}


# Which measure judges a task.


@pytest.mark.parametrize("options,classes", [
    ([("bad", "excellent")] * 3, True), ([("a", "b"), ("b", "a")], True),
    ([("A", "B", "C"), ("A", "B")], True), ([("one", "two"), ("two", "three")], False),
    ([()], False)])
def test_options_that_are_the_same_for_all_problems_are_classes(options, classes):
  assert finetune_plan._are_classes(options) == classes


def test_the_headline_follows_from_the_problems(trained, tmp_path):
  assert _plans(_session(trained, tmp_path, _config(tmp_path)))[0].class_options
  both = {"acc": {}, "acc_per_byte": {}, "response_loss": {}}
  for classes, name in ((True, "acc"), (False, "acc_per_byte")):
    assert finetune_summary.headline("race", both | {"class_options": classes}) == name
  # Results without a word on it.
  for task, name in (("boolq", "acc"), ("labelled", "acc"), ("sst2", "acc"),
                     ("hellaswag", "acc_per_byte")):
    assert finetune_summary.headline(task, both) == name


def test_class_names_are_not_divided_by_their_bytes():
  """A calibrated model that likes 'bad' and 'excellent' equally is right in 3 of 4 texts."""
  p = (np.arange(2000) // 20 + 0.5) / 100  # of 'excellent', twenty texts of each
  golds = np.arange(2000) % 20 < 20 * p
  records = [{"option_logprobs": [math.log1p(-x), math.log(x)], "option_bytes": [3, 9],
              "option_tokens": [1, 1], "gold": int(g)} for x, g in zip(p, golds, strict=True)]
  scores = sample_metrics.option_scores(records)
  judged = finetune_summary.headline("labelled", scores | {"class_options": True})
  assert scores[judged].mean() == pytest.approx(0.75, abs=0.01)
  assert scores["acc_per_byte"].mean() < 0.73


def test_members_that_differ_in_more_than_the_seed_are_not_averaged():
  def result(seed, rate, value):
    return {"checkpoint": {"member": f"{seed}{rate}", "weight_decay": 0.1, "seed": seed, "step": 5,
                           "data_fingerprint": "", "pretraining": {
                               "optim": {"learning_rate": rate, "weight_decay": 0.1}}},
            "settings": {"point": ""}, "values": {
                "task": "sst2", "forgetting": None,
                **{stage: {"test": {"acc": {"value": value, "se": 0.1, "n": 9}}}
                   for stage in ("before", "after")}}}
  cells = finetune_summary.cells(json.loads(json.dumps(
      [result(0, 1e-3, 0.5), result(1, 1e-3, 0.7), result(0, 1e-2, 0.9)])))
  assert [(c.setting, c.seeds, round(c.after, 9)) for c in cells] == [
      ("learning rate 0.001", 2, 0.6), ("learning rate 0.01", 1, 0.9)]
