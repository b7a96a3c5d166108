"""Exports as transformers opens them, and what transformers wrote as our checkpoints."""

import dataclasses
import json
import pathlib
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity suite needs torch")
transformers = pytest.importorskip("transformers", reason="the parity suite needs transformers")

from tests.parity import test_transformers as models  # noqa: E402
from wd_plasticity.config import as_json, default_config  # noqa: E402
from wd_plasticity.data import tokenizers  # noqa: E402
from wd_plasticity.evals import targets  # noqa: E402
from wd_plasticity.generation.generate import Generator  # noqa: E402
from wd_plasticity.generation.sampling import Sampling  # noqa: E402
from wd_plasticity.interop import export, import_, transformers_files  # noqa: E402
from wd_plasticity.models import decoder, flops  # noqa: E402
from wd_plasticity.training import mesh as mesh_lib  # noqa: E402
from wd_plasticity.training.checkpoint import MemberCheckpoints  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import model_directory  # noqa: E402

TEXTS = ["the decay of a weight", "an end", "  two  spaces\n\tand 7 more: é 你 🙂"]
NEW = 24
# Grouped heads of a dimension that is not width / heads in all of them.
CASES = {
    "llama": dict(),
    "llama_tied": dict(tied_head=True),
    "llama_scaled": dict(rope_theta=400.0, rope_scaling=(8.0, 1.0, 4.0, 16.0), norm_eps=1e-6),
    "llama_width_over_heads": dict(head_dim=6, num_kv_heads=4),
    "olmo2": dict(family="olmo2"),
    "olmo2_tied": dict(family="olmo2", tied_head=True, num_kv_heads=1),
}


def config_of(case):
  config = model_directory.model_config(**CASES[case])
  return dataclasses.replace(config, init="scaled")


def open_theirs(folder):
  model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, attn_implementation="eager").eval()
  return model, transformers.AutoTokenizer.from_pretrained(folder)


def our_logits(target, tokens):
  return np.asarray(decoder.logits(target.stored.load_params(), target.model, tokens))


def our_greedy(target, prompts):
  made = Generator(target.model, mesh_lib.make_mesh(default_config().mesh), 1,
                   Sampling(max_new_tokens=NEW), target.tokenizer.eos_id,
                   num_tokens=target.tokenizer.vocab_size).generate(
                       jax.tree.map(lambda x: np.asarray(x)[None], target.stored.load_params()),
                       prompts)
  return [made.continuation(0, i).tolist() for i in range(len(prompts))]


def their_greedy(model, prompts):
  continuations = []
  for prompt in prompts:
    tokens = torch.tensor(prompt[None].astype(np.int64))
    out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW)
    ids = out[0, len(prompt):].tolist()
    ends = ids[-1] == model.generation_config.eos_token_id
    continuations.append(ids[:-1] if ends else ids)
  return continuations


def assert_alike(target, folder, same_text=True):
  """Logits within 1e-4 and the same ids, continuations and texts."""
  model, tokenizer = open_theirs(folder)
  assert type(model).__name__ == json.loads(
      (pathlib.Path(folder) / "config.json").read_text())["architectures"][0]
  tokens = np.random.default_rng(1).integers(
      target.tokenizer.vocab_size, size=(2, 40)).astype(np.int32)
  theirs = models.their_logits(model, tokens)
  assert theirs.std() > 0.3
  np.testing.assert_allclose(our_logits(target, tokens), theirs, atol=1e-4)
  prompts = target.tokenizer.encode_batch(TEXTS)
  for text, ids in zip(TEXTS, prompts, strict=True):
    assert tokenizer(text)["input_ids"] == ids.tolist()
    assert tokenizer.decode(ids.tolist()) == text
  ours = our_greedy(target, prompts)
  assert ours == their_greedy(model, prompts)
  assert len(set(map(tuple, ours))) > 1
  # Of bytes that are no UTF-8, `tokenizers` marks a whole run and SentencePiece each one.
  if same_text:
    for ids in ours:
      assert tokenizer.decode(ids, skip_special_tokens=True) == target.tokenizer.decode(ids)
  assert model.generation_config.eos_token_id == target.tokenizer.eos_id


def assert_same_tensors(a, b):
  (_, a), (_, b) = (transformers_files.read_directory(folder) for folder in (a, b))
  assert set(a) == set(b)
  for name in a:
    assert a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(a[name].view(np.uint8), b[name].view(np.uint8), err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_what_transformers_wrote(tmp_path, case, dtype):
  """Imported: logits and greedy text of transformers; exported again: the same bits."""
  theirs = tmp_path / "theirs"
  theirs.mkdir()
  model_directory.write_tokenizer(theirs)
  model = models.their_model(config_of(case)).to(getattr(torch, dtype))
  model.config.eos_token_id, model.config.bos_token_id = 0, None
  model.generation_config = transformers.GenerationConfig(eos_token_id=0, pad_token_id=0)
  model.config.architectures = [type(model).__name__]
  sharded = case in ("llama", "olmo2")
  model.save_pretrained(theirs, max_shard_size="8KB" if sharded else "5GB")
  transformers.AutoTokenizer.from_pretrained(theirs).save_pretrained(theirs)
  assert (len(list(theirs.glob("*.safetensors"))) > 2) == sharded
  path = import_.import_model(import_.Request(theirs, tmp_path / "w", "x", weight_decay=0.1))
  [target], _ = targets.find([str(path)])
  # Generation here chooses among the tokenizer's tokens, transformers among all rows.
  generation = theirs / "generation_config.json"
  fields = json.loads(generation.read_text())
  generation.write_text(json.dumps(fields | {"suppress_tokens": list(
      range(target.tokenizer.vocab_size, target.model.vocab_size))}))
  assert_alike(target, theirs)
  out = export.export(path, tmp_path / "out", shard_size="10KB" if sharded else "5GB")
  assert_same_tensors(out, theirs)
  assert (out / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
  if not sharded:
    assert (out / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
  tokens = np.arange(40)[None]
  np.testing.assert_array_equal(models.their_logits(open_theirs(out)[0], tokens),
                                models.their_logits(open_theirs(theirs)[0], tokens))


def write_ours(workdir, config, tokenizer):
  """A checkpoint as pretraining leaves it, with weights far from their initial values."""
  params = decoder.init_params(config, jax.random.key(3))
  params = jax.tree.map(lambda p: p * 1.7, params)
  member = workdir / "members" / "wd0.3-seed5"
  whole = default_config()
  whole.seed, whole.optim.weight_decay, whole.data.sequence_length = 5, 0.3, 64
  tokenizer.save(str(member / "tokenizer"))
  checkpoints = MemberCheckpoints(member / "checkpoints")
  checkpoints.save(9, params, {"none": np.zeros(1)}, {}, {
      "member": member.name, "steps": 9, "tokens": 900, "config": as_json(whole),
      "model": dataclasses.asdict(config), "parameters": flops.count_parameters(config),
      "weight_decay": 0.3, "tokenizer_fingerprint": tokenizer.fingerprint,
      "data_fingerprint": "ab" * 32})
  checkpoints.close()
  [target], _ = targets.find([str(member)])
  return target


def tokenizer_of(kind, folder):
  if kind == "byte":
    return tokenizers.ByteTokenizer()
  if kind == "bpe":
    return tokenizers.train_bpe(TEXTS * 3, 280)
  import sentencepiece
  (folder / "text").write_text("\n".join(TEXTS * 20 + [f"a {i} text" for i in range(99)]))
  sentencepiece.SentencePieceTrainer.train(
      input=str(folder / "text"), model_prefix=str(folder / "made"), model_type="bpe",
      vocab_size=295, byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
      remove_extra_whitespaces=False)
  return tokenizers.make("sentencepiece", str(folder / "made.model"), 0, ())


@pytest.mark.parametrize("kind", ["byte", "bpe", "sentencepiece"])
@pytest.mark.parametrize("case", CASES)
def test_what_we_wrote(tmp_path, case, kind):
  """Opened by transformers: our logits and greedy text; imported again: the same bits."""
  if kind != "bpe" and case not in ("llama", "olmo2"):
    pytest.skip("the tokenizer does not depend on the sizes")
  if case.startswith("llama") and config_of(case).width % config_of(case).num_heads:
    pytest.skip("transformers' Llama has no such sizes")
  target = write_ours(tmp_path / "w", config_of(case), tokenizer_of(kind, tmp_path))
  out = export.export(target.directory, tmp_path / "out", shard_size="20KB")
  assert len(list(out.glob("*.safetensors"))) > 2
  assert_alike(target, out, same_text=kind != "sentencepiece")
  path = import_.import_model(import_.Request(out, tmp_path / "again", "wd0.3-seed5"))
  [again], _ = targets.find([str(path)])
  jax.tree.map(np.testing.assert_array_equal, again.stored.load_params(),
               target.stored.load_params())
  assert (again.weight_decay, again.seed, again.step, again.tokens) == (0.3, 5, 9, 900)
  assert_same_tensors(export.export(path, tmp_path / "out2", shard_size="20KB"), out)


def test_bfloat16_of_ours(tmp_path):
  target = write_ours(tmp_path / "w", config_of("llama"), tokenizer_of("bpe", tmp_path))
  out = export.export(target.directory, tmp_path / "out", dtype="bfloat16")
  model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
  assert model.dtype == torch.bfloat16
  ours = np.asarray(target.stored.load_params()["head"]["kernel"]).T.astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(model.lm_head.weight.detach().float().numpy(),
                                ours.astype(np.float32))


def test_a_tokenizer_of_transformers_comes_back(tmp_path):
  """What save_pretrained wrote of a tokenizer with special tokens around a text."""
  model_directory.write(tmp_path / "theirs", config_of("llama"))
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
  tokenizer.add_special_tokens({"pad_token": "<pad>"})
  tokenizer.chat_template = "{{ messages[0]['content'] }}"
  tokenizer.save_pretrained(tmp_path / "theirs")
  path = import_.import_model(import_.Request(
      tmp_path / "theirs", tmp_path / "w", "x", weight_decay=0.1))
  out = export.export(path, tmp_path / "out")
  again = transformers.AutoTokenizer.from_pretrained(out)
  assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
  assert (again.pad_token, again.eos_token, again.chat_template) == (
      "<pad>", "<|endoftext|>", tokenizer.chat_template)
