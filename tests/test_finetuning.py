"""Fine-tuning: examples, batches, LoRA, scores of responses, the step and the loop."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from wd_plasticity.data.tokenizers import ByteTokenizer
from wd_plasticity.errors import UserError
from wd_plasticity.evals.config import finetune_config
from wd_plasticity.finetuning import batches, lora, scoring, tuner
from wd_plasticity.finetuning.examples import Example, Template
from wd_plasticity.finetuning.step import TuneOptions, TuneProgram, response_sums
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import adamw, groups
from wd_plasticity.tasks.task import Problem
from wd_plasticity.training import mesh as mesh_lib

MODEL = ModelConfig(
    num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_width=24, vocab_size=258,
    norm_position="pre", qk_norm=False, rope_theta=1e4, norm_eps=1e-5, tied_head=False,
    init="scaled", compute_dtype="float32", attention="plain", document_mask=False,
    scan_layers=True, remat="none")
TEMPLATE = "Human: {prompt}\nAssistant:"


def _examples(n=11, seed=0):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(4, 30, n)
  return [Example(rng.integers(0, 256, k).astype(np.int32), int(rng.integers(1, k - 1)))
          for k in lengths]


def _mesh(**sizes):
  section = ConfigDict(dict(sweep=1, data=1, fsdp=1, tensor=1) | (sizes or dict(data=8)))
  return mesh_lib.make_mesh(section)


def _program(mesh, num_members=1, steps=20, optim=(), **options):
  config = finetune_config().optim
  config.update(dict(optim))
  options = TuneOptions(**options)

  def trained():
    params = decoder.init_params(MODEL, jax.random.key(0))
    return params if not options.lora_rank else lora.init(
        params, options.lora_rank, options.lora_targets, jax.random.key(0))

  group_of = groups.assign_groups(
      jax.eval_shape(trained), (r".*/lora_[ab]=lora",) if options.lora_rank else ())
  optimizer = adamw.from_section(config, group_of, steps, 100)
  return TuneProgram(MODEL, optimizer, options, mesh, num_members)


def _params(mesh, num_members=1):
  trees = [decoder.init_params(MODEL, jax.random.key(i)) for i in range(num_members)]
  specs = jax.tree.map(mesh_lib.with_members, mesh_lib.parameter_specs(trees[0]),
                       is_leaf=lambda s: isinstance(s, jax.sharding.PartitionSpec))
  return jax.jit(lambda *t: jax.tree.map(lambda *x: jnp.stack(x), *t),
                 out_shardings=mesh_lib.shardings(mesh, specs))(*trees)


def _tune(mesh, num_members=1, lrs=None, examples=None, params=None, **options):
  tune_options = {k: options.pop(k) for k in ("replay", "observe", "observations")
                  if k in options}
  program = _program(mesh, num_members, **options)
  examples = examples or _examples()
  with jax.set_mesh(mesh):
    return tuner.tune(
        program, params or _params(mesh, num_members), examples, batch_size=4, epochs=2,
        seeds=[7] * num_members, learning_rates=lrs or [1e-2] * num_members,
        weight_decays=np.zeros((num_members, len(program.optimizer.group_names))),
        **tune_options)


# Examples.


def test_examples_hold_prompt_response_and_ends():
  tokenizer = ByteTokenizer()
  template = Template(TEMPLATE, tokenizer, 100)
  problems = [Problem("0", "Is it?", "yes"), Problem("1", "x" * 200, "no"),
              Problem("2", "y" * 200, "z" * 200)]
  (first, second, third), cut = template.examples(problems)
  assert tokenizer.decode(first.tokens) == "Human: Is it?\nAssistant: yes"
  assert first.tokens[0] == first.tokens[-1] == 256
  assert tokenizer.decode(first.tokens[first.prompt_length:]) == " yes"
  # A long prompt loses its beginning, a long response its end; the end mark is a target.
  assert cut == 2
  assert len(second.tokens) == len(third.tokens) == 101
  assert tokenizer.decode(second.tokens).endswith("x\nAssistant: no")
  assert tokenizer.decode(third.tokens[:third.prompt_length]).endswith("y\nAssistant:")
  assert len(third.tokens) - third.prompt_length > 70
  prompts, cut = template.prompts(["Is it?", "x" * 200], room=10)
  assert prompts[0].tolist() == first.tokens[:first.prompt_length].tolist()
  assert cut == 1 and len(prompts[1]) == 90
  with pytest.raises(UserError, match="must contain {prompt} once"):
    Template("Human:", tokenizer, 100)


def test_a_tokenizer_that_brings_its_space_gets_none():
  class Spaced(ByteTokenizer):
    adds_space = True
  examples, _ = Template(TEMPLATE, Spaced(), 100).examples([Problem("0", "Is it?", "yes")])
  assert ByteTokenizer().decode(examples[0].tokens) == "Human: Is it?\nAssistant:yes"


# Batches.


def test_rows_hold_every_example_once():
  examples = _examples(9)
  shape = batches.shape_of(iter([examples]), batches.row_length(examples), 2)
  rows = batches.lay_out(examples, shape)
  assert shape.rows % 2 == 0 and shape.length == 32
  want = sorted(tuple(e.tokens[e.prompt_length:].tolist()) for e in examples)
  assert int(rows["weights"].sum()) == sum(len(w) for w in want)
  got = []
  for r in range(shape.rows):
    for segment in range(1, rows["segments"][r].max() + 1):
      place = np.flatnonzero(rows["segments"][r] == segment)
      mine = (rows["weights"][r] > 0) & np.isin(rows["positions"][r], place)
      got.append(tuple(rows["targets"][r][mine].tolist()))
  assert sorted(got) == want


def test_rows_give_the_loss_and_gradient_of_single_sequences():
  examples = [Example(e.tokens[:k], e.prompt_length) for e, k in
              zip(_examples(7), (12, 12, 12, 12, 7, 7, 7), strict=True)]
  examples = [Example(e.tokens, min(e.prompt_length, len(e.tokens) - 2)) for e in examples]
  params = decoder.init_params(MODEL, jax.random.key(1))
  shape = batches.shape_of(iter([examples]), batches.row_length(examples), 1)
  assert shape.rows < 7

  def packed(params):
    return response_sums(params, MODEL, batches.lay_out(examples, shape))[0]

  def alone(params):  # one sequence a row; what pads them on the right comes after
    tokens = np.stack([np.pad(e.tokens, (0, 12 - len(e.tokens))) for e in examples])
    place = np.arange(1, 12)
    learnt = [(place >= e.prompt_length) & (place < len(e.tokens)) for e in examples]
    logp = jax.nn.log_softmax(decoder.logits(params, MODEL, tokens[:, :-1]))
    return -(jnp.take_along_axis(logp, tokens[:, 1:, None], 2)[..., 0] * np.stack(learnt)).sum()

  (a, da), (b, db) = (jax.jit(jax.value_and_grad(f))(params) for f in (packed, alone))
  assert float(a) == pytest.approx(float(b), rel=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), da, db)


def test_every_epoch_reads_every_example_once():
  examples = _examples(11)
  source = batches.ExampleBatches(examples, 4, 3, seed=5)
  assert len(source) == 9
  order = [[id(e) for step in range(3 * epoch, 3 * epoch + 3) for e in source.chosen(step)]
           for epoch in range(3)]
  for epoch in order:
    assert sorted(epoch) == sorted(map(id, examples))
  assert order[0] != order[1] != order[2]
  assert len(source.chosen(2)) == 3  # the last of an epoch
  again = batches.ExampleBatches(examples, 4, 3, seed=5)
  for name, array in source[4].items():
    np.testing.assert_array_equal(array, again[4][name])
  other = batches.ExampleBatches(examples, 4, 3, seed=6)
  assert [id(e) for e in other.chosen(0)] != order[0][:4]


# The step and the loop.


def test_members_and_meshes_give_the_same_losses():
  lrs = [1e-2, 3e-3]
  want = _tune(_mesh(data=8), 2, lrs)
  got = _tune(_mesh(sweep=2, fsdp=2, tensor=2), 2, lrs)
  for a, b in zip(got.curve, want.curve, strict=True):
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got.params, want.params)
  losses = np.array([c["loss"] for c in want.curve])
  assert losses[-1, 0] < losses[0, 0] - 0.3 and not np.allclose(losses[:, 0], losses[:, 1])


def test_a_member_that_is_not_finite_keeps_its_last_good_state():
  tuned = _tune(_mesh(data=4, sweep=2), 2, lrs=[1e-2, 1e38])
  assert tuned.failed_at[0] == -1 and tuned.failed_at[1] > 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(tuned.params))
  assert np.isfinite([c["loss"][0] for c in tuned.curve]).all()


def test_copies_that_fill_up_replayed_rows_do_not_count():
  records = np.random.default_rng(0).integers(0, 256, (6, 1, 3, 17)).astype(np.int32)
  copies = records[:, :, [0, 1, 2, 0, 1, 2, 0, 1]]  # for eight devices
  even = records[:, :, np.arange(24) % 3]  # each as often
  want = _tune(_mesh(), replay=even, replay_fraction=0.5)
  got = _tune(_mesh(), replay=copies, replay_fraction=0.5, replay_rows=3)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got.params, want.params)


def test_replay_adds_the_loss_of_records_and_observations_come_at_even_steps():
  records = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 17)).astype(np.int32)
  seen = []
  plain = _tune(_mesh(), observe=lambda p: seen.append(p) or len(seen), observations=2)
  assert plain.observed == {2: 1, 4: 2} and jax.tree.leaves(seen[0])[0].shape[0] == 1
  half = _tune(_mesh(), replay=records, replay_fraction=0.5)
  # The loss that is told is that of the task alone, and the same before the first update.
  np.testing.assert_allclose(plain.curve[0]["loss"], half.curve[0]["loss"], rtol=1e-5)
  def replayed(tuned):
    params = jax.tree.map(lambda x: x[0], tuned.params)
    tokens = records.reshape(-1, 17)
    logp = jax.nn.log_softmax(decoder.logits(params, MODEL, tokens[:, :-1]))
    return -float(jnp.take_along_axis(logp, tokens[:, 1:, None], 2).mean())
  assert replayed(half) < replayed(plain) - 0.05


# LoRA.


def test_lora_begins_where_the_model_is_and_trains_factors_only():
  mesh = _mesh()
  params = _params(mesh)
  tuned = _tune(mesh, params=params, lora_rank=4, lora_alpha=8.0,
                lora_targets=("query", "down"), lrs=[3e-2])
  first = jax.tree.map(lambda x: np.asarray(x[0]), params)
  last = jax.tree.map(lambda x: np.asarray(x[0]), tuned.params)
  np.testing.assert_array_equal(first["embed"]["embedding"], last["embed"]["embedding"])
  np.testing.assert_array_equal(first["layers"]["attention"]["key"]["kernel"],
                                last["layers"]["attention"]["key"]["kernel"])
  for part, target in (("attention", "query"), ("feed_forward", "down")):
    change = last["layers"][part][target]["kernel"] - first["layers"][part][target]["kernel"]
    assert np.abs(change).max() > 1e-3
    assert [np.linalg.matrix_rank(c, tol=1e-5) for c in change] == [4, 4]
  assert tuned.curve[-1]["loss"][0] < tuned.curve[0]["loss"][0]


def test_merged_kernels_are_those_of_two_products():
  params = decoder.init_params(MODEL, jax.random.key(0))
  factors = lora.init(params, 3, ("gate",), jax.random.key(1))
  merged = lora.merge(params, factors, 2.0)
  jax.tree.map(np.testing.assert_array_equal, merged, params)  # B is zero
  f = factors["layers"]["feed_forward"]["gate"]
  f["lora_b"] = jax.random.normal(jax.random.key(2), f["lora_b"].shape)
  x = jax.random.normal(jax.random.key(3), (5, 16))
  got = x @ lora.merge(params, factors, 2.0)["layers"]["feed_forward"]["gate"]["kernel"][1]
  want = x @ params["layers"]["feed_forward"]["gate"]["kernel"][1] + 2.0 * (
      (x @ f["lora_a"][1]) @ f["lora_b"][1])
  np.testing.assert_allclose(got, want, atol=1e-5)
  for rank, targets in ((-1, ("gate",)), (2, ()), (2, ("gates",))):
    with pytest.raises(UserError, match="lora"):
      lora.check(rank, targets)


# Scores.


def test_scores_are_log_likelihoods():
  mesh = _mesh(sweep=2, data=2, tensor=2)
  params_M = _params(mesh, 2)
  rng = np.random.default_rng(0)
  draw = lambda n: rng.integers(0, 256, n).astype(np.int32)
  prompts = [draw(n) for n in (3, 20, 7, 20)]
  responses = [[draw(1), draw(1)], [draw(3), draw(1), draw(3)], [], [draw(3)]]
  wanted = scoring.requests(prompts, responses)
  assert len(wanted) == 1 + 3 + 1  # single tokens share one reading of their prompt
  done = []
  with jax.set_mesh(mesh):
    got = scoring.Scorer(MODEL, mesh, 2).score(params_M, wanted, 6, done.append)
  assert done[-1] == 5
  logits = jax.jit(lambda params, tokens: decoder.logits(params, MODEL, tokens))
  for m in range(2):
    params = decoder.init_params(MODEL, jax.random.key(m))
    want = []
    for prompt, options in zip(prompts, responses, strict=True):
      for option in options:
        tokens = np.concatenate([prompt, option])
        padded = np.pad(tokens[:-1], (0, 32 - len(tokens)))[None]
        logp = jax.nn.log_softmax(logits(params, padded)[0])
        want.append(sum(float(logp[len(prompt) - 1 + k, t]) for k, t in enumerate(option)))
    np.testing.assert_allclose(got[m], want, rtol=1e-5)


# The program.


def write_task(folder):
  words = {"good": ["fine", "great", "lovely"], "bad": ["awful", "poor", "dire"]}
  rows = [f"{adjective} {noun}\t{i % 2}" for i, (adjective, noun) in enumerate(
      x for pair in itertools.zip_longest(
          *([(a, n) for n in ("film", "book", "song", "play", "tale", "show") for a in v]
            for v in words.values())) for x in pair)]
  for name, part in (("train", rows[:24]), ("test", rows[24:])):
    (folder / f"{name}.tsv").write_text("text\tlabel\n" + "\n".join(part) + "\n")


def _config(folder, **fields):
  config = finetune_config()
  config.tasks = ("labelled",)
  config.sources.labelled.update(train=f"{folder}/train.tsv#labels=good|bad",
                                  test=f"{folder}/test.tsv#labels=good|bad")
  config.max_length = 96
  config.epochs, config.batch_size = 2, 8
  config.optim.learning_rate = 1e-2
  config.evaluate.update(generate="always", samples=2, max_new_tokens=8, observations=1,
                         forgetting_sequences=8)
  with config.unlocked():
    config.update(fields)
  return config


def _run(trained, workdir, config, points=(), **mesh):
  from wd_plasticity.evals import finetune, program
  session = tiny.session("finetune", config, [trained], workdir, points, **mesh)
  program.execute(session, finetune.main)
  return session


def test_program_tells_before_after_and_what_was_forgotten(trained, tmp_path, capsys):
  from wd_plasticity import members as members_lib
  write_task(tmp_path)
  config = _config(tmp_path)
  points = members_lib.expand(config, lambda add: [add(p) for p in (
      {"optim.learning_rate": 1e-2}, {"optim.learning_rate": 1e-3},
      {"optim.learning_rate": 1e-2, "seed": 7})])
  session = _run(trained, tmp_path, config, points)
  made = session.results.load(session.targets[0], "labelled-lr0.01")
  values = made["values"]
  assert values["training"]["steps"] == 6 and values["training"]["examples"] == 24
  for stage in ("before", "after"):
    test = values[stage]["test"]
    assert test["acc"]["n"] == 12 and 0 <= test["acc"]["value"] <= 1
    assert {"pass@2", "maj@2", "greedy_pass@1", "response_loss"} <= set(test)
    assert "rm@2" not in test and "orm_score" not in test
  assert (values["after"]["test"]["response_loss"]["value"]
          < values["before"]["test"]["response_loss"]["value"])
  assert values["forgetting"]["n"] == 8
  assert values["forgetting"]["value"] == pytest.approx(
      values["forgetting"]["after"] - values["forgetting"]["before"])
  assert [o["step"] for o in values["observed"]] == [3]
  assert len(values["curve"]) == 6 and values["failed_at"] is None
  lines = session.results.path(
      session.targets[0], "labelled-lr0.01", ".jsonl").read_text().splitlines()
  assert len(lines) == 24  # 12 problems, before and after
  assert made["settings"]["optim"]["learning_rate"] == 1e-2
  slow = session.results.load(session.targets[0], "labelled-lr0.001")["values"]
  assert slow["before"] == values["before"] and slow["after"] != values["after"]
  # The seed of a point decides the order and the samples, and is told.
  seeded = session.results.load(session.targets[0], "labelled-lr0.01-seed7")
  assert seeded["settings"]["seed"] == seeded["values"]["training"]["seed"] == 7
  assert seeded["values"]["curve"] != values["curve"]
  assert seeded["settings"]["data"] == made["settings"]["data"]
  assert "Before and after fine-tuning" in capsys.readouterr().out
  # Again: nothing is done; members on another mesh: the same numbers.
  stamp = session.results.path(session.targets[0], "labelled-lr0.01").stat().st_mtime_ns
  _run(trained, tmp_path, config, points)
  assert session.results.path(
      session.targets[0], "labelled-lr0.01").stat().st_mtime_ns == stamp
  other = _run(trained, tmp_path / "other", _config(tmp_path, members_at_once=2), sweep=2, fsdp=2,
               data=1, tensor=2)
  for target in session.targets:
    a = session.results.load(target, "labelled-lr0.01")["values"]
    b = other.results.load(target, "labelled")["values"]
    for path in (("after", "test", "response_loss"), ("before", "test", "response_loss")):
      x, y = a, b
      for key in path:
        x, y = x[key], y[key]
      assert x["value"] == pytest.approx(y["value"], rel=1e-4)
    assert a["forgetting"]["value"] == pytest.approx(b["forgetting"]["value"], abs=1e-4)


@pytest.mark.slow
def test_lora_replay_and_a_reward_model_in_the_program(trained, tmp_path):
  import reward_directory
  write_task(tmp_path)
  reward_directory.write(tmp_path / "reward")
  config = _config(tmp_path, reward_model=str(tmp_path / "reward"))
  config.lora.rank, config.replay.fraction = 2, 0.25
  session = _run(trained, tmp_path, config)
  made = session.results.load(session.targets[0], "labelled")
  after = made["values"]["after"]["test"]
  assert after["rm@2"]["n"] == after["orm_score"]["n"] == 12
  lines = session.results.path(session.targets[0], "labelled", ".jsonl").read_text().splitlines()
  scores = [json.loads(line)["scores"] for line in lines if '"after"' in line]
  assert np.mean(scores) == pytest.approx(after["orm_score"]["value"], rel=1e-5)
  assert made["settings"]["lora"]["rank"] == 2
  assert (after["response_loss"]["value"]
          < made["values"]["before"]["test"]["response_loss"]["value"])


def test_mistakes_are_told_before_any_work(trained, tmp_path):
  write_task(tmp_path)

  def refused(match, **fields):
    config = _config(tmp_path)
    for field, value in fields.items():
      *path, last = field.split("__")
      section = config
      for name in path:
        section = section[name]
      section[last] = value
    with pytest.raises(UserError, match=match):
      _run(trained, tmp_path, config)

  refused("no task 'nothing'", tasks=("nothing",))
  refused("tasks is empty", tasks=())
  refused("set --config.sources.gsm8k.train=FILES", tasks=("gsm8k",))
  refused("set --config.sources.labelled.validation=FILES", sources__labelled__test="")
  refused("epochs=0 must be at least 1", epochs=0)
  refused("replay.fraction=1.0", replay__fraction=1.0)
  refused("evaluate.generate='maybe'", evaluate__generate="maybe")
  refused("evaluate.samples=-1", evaluate__samples=-1)
  refused("lora.rank=-1", lora__rank=-1)
  refused("must contain {prompt} once", template="Human:")
