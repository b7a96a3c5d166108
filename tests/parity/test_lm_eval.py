"""Our models in lm-evaluation-harness score as its transformers backend on exported weights.

The tasks are served from files of the test, one of every kind of request; the models are
trained on them briefly, so that right and wrong answers, stops and greedy matches all occur.
"""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="the parity suite needs torch")
transformers = pytest.importorskip("transformers", reason="the parity suite needs transformers")
lm_eval = pytest.importorskip("lm_eval", reason="this needs the extra lm_eval")
pytest.importorskip("accelerate", reason="the harness's transformers backend needs accelerate")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from tests.parity import test_transformers as models  # noqa: E402
from wd_plasticity.config import default_config  # noqa: E402
from wd_plasticity.data.tokenizers import train_bpe  # noqa: E402
from wd_plasticity.interop import (  # noqa: E402
  lm_eval_model,
  lm_eval_text,
  transformers_config,
  transformers_weights,
)
from wd_plasticity.models import decoder  # noqa: E402
from wd_plasticity.training import mesh as mesh_lib  # noqa: E402

LENGTH = 128
SIZES = dict(num_layers=2, width=48, num_heads=4, num_kv_heads=2, ffn_width=96)

SCIENCE = [
    ("Which of these is a liquid at room temperature?", ["iron", "water", "oxygen", "salt"], 1),
    ("Which of these keeps a plant upright?", ["its stem", "its pollen", "the rain", "a bee"], 0),
    ("What do the lungs take in?", ["light", "blood", "air", "bones and joints"], 2),
    ("What pulls a falling stone to the ground?", ["heat", "sound", "its colour", "gravity"], 3),
    ("Which animal lays eggs?", ["a horse", "a hen", "a whale", "a dog"], 1),
    ("What is ice?", ["frozen water", "dry sand", "a kind of glass", "cold air"], 0),
    ("Which tool measures temperature?", ["a ruler", "a scale", "a thermometer", "a clock"], 2),
    ("What gives the Earth its light by day?", ["the Moon", "Mars", "a comet", "the Sun"], 3)]
RHYMES = [
    "The old man went down to the harbour to look at the ships, and he stayed to count the ships",
    "She put the kettle on the stove and waited, and at last steam rose out of the kettle",
    "A fox came by the farm at night; in the morning the hens spoke only about the fox",
    "He wrote a letter to his brother, and a week later there came an answer from his brother",
    "They planted an oak behind the house, and forty years later they sat below the oak"]
PAGES = [
    "The river rises in the hills. It runs past three villages before it meets the sea, and in "
    "spring it carries so much water that the lower meadows are flooded. " * 3,
    "A short page.",
    "Wind mills were built along the coast.\n\nMost of them are gone now; two still grind corn, "
    "and one has become a house with a view over the whole of the bay, its harbour and the town."]
SUMS = [(f"Tom has {a} marbles and finds {b} more. How many has he?", a, b)
        for a, b in ((2, 3), (4, 1), (5, 5), (7, 2), (3, 3), (6, 2))]

TASKS = {
    "nouns": """
task: nouns
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{gold}}"
doc_to_choice: "{{options}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    # Few-shot examples, and options of one token that share what is read.
    "animals": """
task: animals
output_type: multiple_choice
test_split: test
fewshot_split: test
num_fewshot: 2
doc_to_text: >-
  {{question}}{% for o in options %} {{'ABCD'[loop.index0]}}. {{o}}{% endfor %} Answer:
doc_to_target: gold
doc_to_choice: ["A", "B", "C", "D"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "rhymes": """
task: rhymes
output_type: loglikelihood
test_split: test
doc_to_text: "{{text.rsplit(' ', 1)[0]}} "
doc_to_target: "{{text.rsplit(' ', 1)[1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "pages": """
task: pages
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: byte_perplexity}
  - {metric: bits_per_byte}
""",
    "sums": """
task: sums
output_type: generate_until
test_split: test
fewshot_split: test
num_fewshot: 1
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:", "\\n\\n"], do_sample: false, max_gen_toks: %d}
filter_list:
  - name: strict
    filter: [{function: regex, regex_pattern: "#### (\\\\d+)"}, {function: take_first}]
  - name: loose
    filter:
      - {function: regex, group_select: -1, regex_pattern: "(\\\\d+)"}
      - {function: take_first}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    regexes_to_ignore: ["(?s).*#### "]
""",
    "both": """
group: both
task: [nouns, animals]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""}
ROWS = {
    "nouns": [{"question": q, "options": o, "gold": g} for q, o, g in SCIENCE],
    "rhymes": [{"text": t} for t in RHYMES],
    "pages": [{"page": p} for p in PAGES],
    "sums": [{"question": q, "answer": f"He has {a} + {b} = {a + b} marbles.\n#### {a + b}"}
             for q, a, b in SUMS]}


def write_tasks(folder, new_tokens=32):
  """The tasks' files; all rows are read from disk."""
  folder.mkdir(exist_ok=True)
  for name, text in TASKS.items():
    text = text % new_tokens if "%d" in text else text
    if name != "both":
      data = folder / f"{'nouns' if name == 'animals' else name}.jsonl"
      text += f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}'}}}}\n"
      rows = ROWS.get(name, ROWS["nouns"])
      data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / f"{name}.yaml").write_text(text)
  return folder


def texts():
  # A third of the answers is learnt wrong.
  made = [f"Question: {q}\nAnswer: {o[g if i % 3 else g - 1]}"
          for i, (q, o, g) in enumerate(SCIENCE)] + RHYMES[:4] + PAGES[:1]
  sums = [f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in ROWS["sums"]]
  return made + [a + b for a in sums for b in sums[:3]]


def train(config, tokenizer):
  """Parameters after a few steps on half of what is asked."""
  rows = []
  for ids in tokenizer.encode_batch(texts()):
    ids = np.concatenate([[tokenizer.eos_id], ids, [tokenizer.eos_id]])[:LENGTH]
    rows.append(np.pad(ids, (0, LENGTH - len(ids)), constant_values=tokenizer.eos_id))
  tokens_BxL = np.stack(rows).astype(np.int32)
  params = decoder.init_params(config, jax.random.key(0))
  optimizer = optax.adam(4e-3)

  def loss(params):
    logp = jax.nn.log_softmax(decoder.logits(params, config, tokens_BxL[:, :-1]))
    return -jnp.take_along_axis(logp, tokens_BxL[:, 1:, None], 2).mean()

  # Here the steps take longer than their compilation.
  @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3,
                                                "xla_llvm_disable_expensive_passes": False})
  def step(params, state):
    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _ in range(100):
    params, state = step(params, state)
  return jax.tree.map(np.asarray, params)


@pytest.fixture(scope="module", params=["llama2", "olmo2"])
def both(request, tmp_path_factory):
  """One model twice: in the harness's transformers backend and in ours."""
  folder = tmp_path_factory.mktemp(request.param)
  tokenizer = train_bpe(texts() + PAGES, 400)
  config = models.our_config(request.param, **SIZES, head_dim=12, vocab_size=403)  # padded
  config = dataclasses.replace(config, compute_dtype="float32")
  params = train(config, tokenizer)
  fields = transformers_config.config_to_transformers(config, LENGTH)
  (folder / "config.json").write_text(json.dumps(fields | {"torch_dtype": "float32"}))
  save_file(transformers_weights.to_transformers(params, config), folder / "model.safetensors",
            metadata={"format": "pt"})
  tokenizer.save(str(folder))
  (folder / "tokenizer_config.json").write_text(json.dumps(
      {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}))
  mesh = mesh_lib.make_mesh(default_config().mesh)
  text = lm_eval_text.TextModel(config, tokenizer, mesh, 1, jax.tree.map(lambda x: x[None], params),
                                max_length=LENGTH)
  return types.SimpleNamespace(
      theirs=HFLM(str(folder), device="cpu", dtype="float32", batch_size=3),
      ours=lm_eval_model.TextModelLM(text, max_gen_toks=16))


def evaluate(model, folder, tasks, limit=None):
  manager = TaskManager(include_path=str(folder), include_defaults=False)
  return lm_eval.simple_evaluate(model, tasks=list(tasks), task_manager=manager,
                                 bootstrap_iters=100, limit=limit)


def leaves(value):
  if isinstance(value, (list, tuple)):
    for inner in value:
      yield from leaves(inner)
  else:
    yield value


def same(ours, theirs, where):
  """Numbers within 1e-4 of a log-likelihood, all else equal."""
  for a, b in zip(leaves(ours), leaves(theirs), strict=True):
    assert type(a) is type(b), where
    assert a == (pytest.approx(b, rel=2e-6, abs=1e-4) if isinstance(a, float) else b), where


def test_scores_and_answers_of_every_kind_of_task(both, tmp_path):
  folder = write_tasks(tmp_path / "tasks")
  names = ("both", "rhymes", "pages", "sums")
  ours, theirs = (evaluate(m, folder, names) for m in (both.ours, both.theirs))
  assert set(ours["results"]) == {"both", "nouns", "animals", "rhymes", "pages", "sums"}
  for task, metrics in theirs["results"].items():
    assert metrics.keys() == ours["results"][task].keys()
    for key, value in metrics.items():
      assert ours["results"][task][key] == (
          pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), (task, key)
  for task, samples in theirs["samples"].items():
    for a, b in zip(ours["samples"][task], samples, strict=True):
      assert a["arguments"] == b["arguments"]
      same(a["resps"], b["resps"], (task, b["doc_id"]))
  scores = theirs["results"]
  # The comparison says something: models are neither perfect nor hopeless.
  assert 0.3 < scores["nouns"]["acc,none"] < 1 and scores["sums"]["exact_match,strict"] > 0.3
  greedy = [r[0][1] for s in theirs["samples"]["rhymes"] for r in s["resps"]]
  assert any(greedy) and not all(greedy)
  assert scores["pages"]["word_perplexity,none"] > 2


def test_continuations_looked_through_in_stages(both, tmp_path, monkeypatch):
  monkeypatch.setattr(lm_eval_text, "_FIRST_TOKENS", 5)
  folder = write_tasks(tmp_path / "tasks", new_tokens=30)
  ours, theirs = (evaluate(m, folder, ["sums"]) for m in (both.ours, both.theirs))
  texts_of = lambda r: [s["resps"] for s in r["samples"]["sums"]]
  assert texts_of(ours) == texts_of(theirs)
  assert ours["results"]["sums"] == theirs["results"]["sums"]


PAIRS = [
    ("", "Question: What is ice?"), ("Question: What is", " ice?"), ("Question: What is ", "ice?"),
    ("A fox came \n ", "by the farm"), ("Wind", "mills"), ("x", " y"), ("é", "ü — ß"),
    ("The river rises in the hills. " * 30, "It runs past three villages"),
    ("The river rises in the hills. " * 30, "It runs past three villages before it " * 8)]


def instances(kind, arguments):
  return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


def test_spaces_empty_contexts_and_what_is_too_long(both):
  ours, theirs = (m.loglikelihood(instances("loglikelihood", PAIRS))
                  for m in (both.ours, both.theirs))
  same(ours, theirs, "pairs")
  rolled = [("",), ("a",), (PAGES[0] * 4,), *((p,) for p in PAGES)]
  ours, theirs = (m.loglikelihood_rolling(instances("loglikelihood_rolling", rolled))
                  for m in (both.ours, both.theirs))
  np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-4)
  kwargs = {"until": ["."], "max_gen_toks": 40}
  wanted = [(PAGES[0] * 4, kwargs), ("Question: What", kwargs), ("The river", {"until": []})]
  ours = both.ours.generate_until(instances("generate_until", wanted))
  # Theirs takes 256 new tokens where a task does not say.
  wanted[2] = ("The river", {"until": [], "max_gen_toks": 16})
  assert ours == both.theirs.generate_until(instances("generate_until", wanted))


def test_beginning_of_sequence_before_contexts(both):
  text = both.ours.text
  eos = text._eos
  begun = lm_eval_text.TextModel(
      text._model, text._tokenizer, text._mesh, 1, text.params_M, max_length=LENGTH,
      add_bos_token=True)
  ids = text._encode(["Question:", " What is ice?"])
  with_eos = both.theirs._loglikelihood_tokens(
      [(None, [*eos.tolist(), *ids[0].tolist()], ids[1].tolist())], disable_tqdm=True)
  same(begun.likelihoods([("Question:", " What is ice?")]), with_eos, "bos")
  assert begun.likelihoods([("Question:", " What is ice?")]) != text.likelihoods(
      [("Question:", " What is ice?")])
