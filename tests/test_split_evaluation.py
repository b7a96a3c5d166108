"""Generated responses of one split: stops, votes, problems without answers."""

import types

import jax
import numpy as np
import pytest

from wd_plasticity.config import default_config
from wd_plasticity.data.tokenizers import ByteTokenizer
from wd_plasticity.errors import UserError
from wd_plasticity.evals import finetune, split_evaluation
from wd_plasticity.evals.config import finetune_config
from wd_plasticity.evals.split_evaluation import SplitEvaluation
from wd_plasticity.finetuning.examples import Template, stop_strings
from wd_plasticity.generation.generate import Generated
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.tasks import registry
from wd_plasticity.tasks.task import Problem
from wd_plasticity.training import mesh as mesh_lib

QUESTION = "Question: {prompt}\nAnswer:"
STUDY = "Human: {prompt}\nAssistant:"


class Said:
  """A generator that says the texts [problem][sample] it was given."""

  def __init__(self, texts):
    self.texts = texts

  def generate(self, params_M, prompts, seed, on_batch):
    ids = [[ByteTokenizer().encode_batch([t])[0] for t in row] for row in self.texts]
    lengths = np.array([[[len(i) for i in row] for row in ids]])
    tokens = np.zeros((*lengths.shape, lengths.max()), np.int32)
    for p, row in enumerate(ids):
      for s, i in enumerate(row):
        tokens[0, p, s, :len(i)] = i
    return Generated(tokens, lengths)


def evaluate(task, problems, samples, template=QUESTION, **fields):
  """Records and metrics of samples [problem][k]; the first of each is also the greedy one."""
  section = finetune_config().evaluate
  section.update(generate="always", samples=len(samples[0]), **fields)
  evaluation = SplitEvaluation(registry.get(task), problems,
                               Template(template, ByteTokenizer(), 4096), section, 4096)
  said = {False: Said([row[:1] for row in samples]), True: Said(samples)}
  [records] = evaluation.generations(
      None, lambda s: said[s.temperature > 0], 0, None, 1)
  return records, evaluation.metrics(records)


def values(metrics):
  return {name: m["value"] for name, m in metrics.items() if isinstance(m, dict)}


def test_a_response_ends_where_the_template_begins_again():
  problem = Problem("0", "What is it?", "", answer="5")
  text = "The answer is 5.\n\nQuestion: what is that?\nAnswer: The answer is 9."
  records, metrics = evaluate("gsm8k", [problem], [[text]])
  assert records[0]["greedy"] == "The answer is 5." and values(metrics)["greedy_pass@1"] == 1
  records, metrics = evaluate("gsm8k", [problem], [[text]], stop=("9",))
  assert records[0]["greedy"].endswith("answer is") and values(metrics)["greedy_pass@1"] == 0
  # The study's stops are those of its own template alone.
  text = "Human chorionic gonadotropin. The answer is 5."
  assert values(evaluate("gsm8k", [problem], [[text]])[1])["greedy_pass@1"] == 1
  assert values(evaluate("gsm8k", [problem], [[text]], STUDY)[1])["greedy_pass@1"] == 0
  assert values(evaluate("gsm8k", [problem], [[text]], STUDY, stop=("\nHuman:",))[1])[
      "greedy_pass@1"] == 1


@pytest.mark.parametrize("template, stops", [
    (STUDY, ("Human", "Human:", "Assistant", "Assistant:")),
    (QUESTION, ("\nQuestion:", "\nAnswer:")),
    ("Human: {prompt}\n\nAssistant: ", ("\nHuman:", "\nAssistant:")),
    ("Below is a task.\n\n### Task:\n{prompt}\n\n### Response:\n",
     ("\nBelow is a task.", "\n### Task:", "\n### Response:")),
    ("Q: {prompt} (yes or no)\nA:", ("\nQ:", "\nA:")), ("[INST] {prompt} [/INST]", ("[INST]",)),
    ("{prompt}\nAnswer:", ("\nAnswer:",)), ("{prompt}", ()), ("{prompt} =", ())])
def test_stops_of_a_template(template, stops):
  assert stop_strings(template) == stops


def test_votes_for_classes_of_several_words():
  names = ("New York", "Boston", "New Jersey", "New Haven")
  problem = Problem("0", "Where?", "New York", answer="New York", options=names, gold=0)
  said = ["New York", "Boston", "Boston", "New Jersey", "New Haven"]
  records, metrics = evaluate("labelled", [problem], [said])
  assert records[0]["answers"] == [s.lower() for s in said]
  assert values(metrics)["maj@5"] == 0 and values(metrics)["pass@5"] == 1
  said = ["very bad.", "Very good! " + "It goes on. " * 20, "very good", "VERY GOOD"]
  problem = Problem("0", "How?", "very good", answer="very good", options=("very bad", "very good"))
  assert values(evaluate("labelled", [problem], [said])[1])["maj@4"] == 1


def test_problems_without_an_answer_are_counted_and_left_out():
  problems = [Problem("0", "a", "", answer="5"), Problem("1", "b", ""), Problem("2", "c", "",
                                                                              answer="7")]
  records, metrics = evaluate("gsm8k", problems, [["The answer is 5.", "The answer is 4."]] * 3)
  assert [r["greedy_correct"] for r in records] == [True, None, False]
  assert [r["correct"] for r in records] == [[True, False], None, [False, False]]
  assert metrics["problems_ungraded"] == 1 and metrics["problems"] == 3
  assert {name: m["n"] for name, m in metrics.items() if isinstance(m, dict)} == {
      "greedy_pass@1": 2, "pass@2": 2, "maj@2": 2, "correct_ratio@2": 1}
  assert "problems_ungraded" not in evaluate("gsm8k", problems[:1], [["5"]])[1]


@pytest.mark.parametrize("task", ["gsm8k", "arc_easy"])
def test_nothing_to_grade_is_refused(task):
  with pytest.raises(UserError, match=f"none of the 1 problems of task {task} .*generate=never"):
    evaluate(task, [Problem("0", "a", "b", options=("b", "c"), gold=0)], [["b"]])


def test_stop_must_be_texts():
  for stop in (("",), (" ",)):
    config = finetune_config()
    config.evaluate.stop = stop
    with pytest.raises(UserError, match="evaluate.stop=.* must be a tuple of texts"):
      split_evaluation.check(config.evaluate)


def test_a_padded_vocabulary_is_not_sampled():
  section = default_config().model
  section.update(num_layers=1, width=8, num_heads=1, num_kv_heads=1, head_dim=8, ffn_width=8)
  model = ModelConfig.from_section(section, 64)
  params_M = jax.tree.map(lambda x: x[None], decoder.init_params(model, jax.random.key(0)))
  tuning = finetune.Tuning(types.SimpleNamespace(
      mesh=mesh_lib.make_mesh(default_config().mesh), parts=1))
  for size in (47, 11):  # two tokenizers of one model have programs of their own
    target = types.SimpleNamespace(
        tokenizer=types.SimpleNamespace(eos_id=1, vocab_size=size))
    generator = tuning._generator(model, 1, Sampling(16, temperature=5.0, num_samples=8), target)
    made = generator.generate(params_M, [np.array([1, 2, 3])])
    assert 8 < len(np.unique(made.tokens_MxPxSxT)) and made.tokens_MxPxSxT.max() < size
