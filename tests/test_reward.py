"""Reward scores against a forward pass in numpy float64; the chat template; refusals."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import reward_directory
import tokenizers
from jax.sharding import AxisType
from safetensors.numpy import load_file, save_file

from wd_plasticity.errors import UserError
from wd_plasticity.reward import model as reward
from wd_plasticity.reward.chat import ChatTokenizer
from wd_plasticity.training.mesh import AXES

PAIRS = [
    ("How many legs has a spider?", "Eight."),
    ("How many legs has a spider?", "A spider has eight legs, and a fly has six. " * 8),
    ("7 * 6 = ", "42, so 42.\n"),
    ("é√ <s>", ""),
    ("How many legs has a spider?", "Eight."),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  folder = tmp_path_factory.mktemp("reward") / "model"
  reward_directory.write(folder)
  return folder


def one_device_mesh():
  return jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4,
                       devices=jax.devices()[:1])


def numpy_score(tensors, fields, ids, place):
  """LlamaForSequenceClassification in float64, scored at one place."""
  t = {name: array.astype(float) for name, array in tensors.items()}
  size, heads = fields["head_dim"], fields["num_attention_heads"]
  group = heads // fields["num_key_value_heads"]
  frequencies = fields["rope_theta"] ** (-np.arange(0, size, 2) / size)
  s = fields["rope_scaling"]
  for i, f in enumerate(frequencies):  # piece by piece, as the Llama 3.1 report has it
    wavelength, original = 2 * np.pi / f, s["original_max_position_embeddings"]
    if wavelength > original / s["low_freq_factor"]:
      frequencies[i] = f / s["factor"]
    elif wavelength > original / s["high_freq_factor"]:
      smooth = (original / wavelength - s["low_freq_factor"]) / (
          s["high_freq_factor"] - s["low_freq_factor"])
      frequencies[i] = (1 - smooth) * f / s["factor"] + smooth * f
  turn = np.exp(1j * np.arange(len(ids))[:, None] * frequencies)[:, None]

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + fields["rms_norm_eps"]) * scale

  def rotate(x_LxHxK):
    z = (x_LxHxK[..., :size // 2] + 1j * x_LxHxK[..., size // 2:]) * turn
    return np.concatenate([z.real, z.imag], -1)

  x = t["model.embed_tokens.weight"][ids]
  for i in range(fields["num_hidden_layers"]):
    w = lambda name, i=i: t[f"model.layers.{i}.{name}.weight"]
    split = lambda y: y.reshape(len(ids), -1, size)
    h = norm(x, w("input_layernorm"))
    q = rotate(split(h @ w("self_attn.q_proj").T))
    k = rotate(split(h @ w("self_attn.k_proj").T)).repeat(group, 1)
    v = split(h @ w("self_attn.v_proj").T).repeat(group, 1)
    scores = np.einsum("lhk,mhk->hlm", q, k) / np.sqrt(size)
    scores[:, ~np.tri(len(ids), dtype=bool)] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    y = np.einsum("hlm,mhk->lhk", shares, v).reshape(len(ids), -1)
    x = x + y @ w("self_attn.o_proj").T
    h = norm(x, w("post_attention_layernorm"))
    gate = h @ w("mlp.gate_proj").T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
  return (norm(x, t["model.norm.weight"]) @ t["score.weight"][0])[place]


def expected_scores(directory):
  tensors = load_file(directory / "model.safetensors")
  fields = json.loads((directory / "config.json").read_text())
  tokens = ChatTokenizer(directory).encode(PAIRS)
  assert len({reward.bucket_length(len(ids)) for ids in tokens}) > 1
  return np.array([numpy_score(tensors, fields, ids, len(ids) - 1) for ids in tokens])


def test_scores_of_numpy(directory):
  model = reward.load_reward_model(directory, one_device_mesh(), batch_size=2)
  expected, done = expected_scores(directory), []
  scores = model.score(PAIRS, on_batch=done.append)
  assert scores.dtype == np.float32 and expected.std() > 0.3
  np.testing.assert_allclose(scores, expected, atol=1e-4)
  assert scores[0] == scores[4]
  assert done[-1] == len(PAIRS) and done == sorted(set(done)) and len(done) == 3
  np.testing.assert_allclose(model.score(PAIRS[2:3]), expected[2:3], atol=1e-4)
  assert model.score([]).shape == (0,)
  model.parts = 2  # a row at a time
  np.testing.assert_allclose(model.score(PAIRS, on_batch=done.append), expected, atol=1e-4)
  assert len(done) > 6


def test_scores_on_a_mesh(directory):
  """Parameters over fsdp and tensor, rows over the rest, inside the context of a run."""
  mesh = jax.make_mesh((2, 1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 4)
  with jax.set_mesh(mesh):
    model = reward.load_reward_model(directory, mesh)
    np.testing.assert_allclose(model.score(PAIRS), expected_scores(directory), atol=1e-4)
  kernel = model._params["layers"]["feed_forward"]["up"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  embedding = reward.load_reward_model(directory)._params["embed"]["embedding"]
  assert embedding.addressable_shards[0].data.size == embedding.size // 8


def test_a_mesh_that_does_not_divide_is_refused(tmp_path):
  reward_directory.write(tmp_path, intermediate_size=46)
  mesh = jax.make_mesh((1, 2, 1, 4), AXES, axis_types=(AxisType.Auto,) * 4)
  with pytest.raises(UserError, match="mesh.tensor=4 does not divide the dimension 46"):
    reward.load_reward_model(tmp_path, mesh)


def test_bfloat16_file(tmp_path):
  """Kept in bfloat16, and computed in it only where config.json or the caller says so."""
  reward_directory.write(tmp_path, dtype=ml_dtypes.bfloat16)
  exact = reward.load_reward_model(tmp_path, one_device_mesh(), compute_dtype="float32")
  assert {leaf.dtype.name for leaf in jax.tree.leaves(exact._params)} == {"bfloat16"}
  expected = expected_scores(tmp_path)
  np.testing.assert_allclose(exact.score(PAIRS), expected, atol=1e-4)

  fields = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(fields | {"torch_dtype": "bfloat16"}))
  rough = reward.load_reward_model(tmp_path, one_device_mesh())
  assert rough.config.compute_dtype == "bfloat16"
  error = np.abs(rough.score(PAIRS) - expected)
  assert 1e-4 < error.max() < 0.05 * np.abs(expected).max()


def test_text_of_a_conversation(directory):
  chat = ChatTokenizer(directory)
  problem, response = " How many legs has a spider?\n", "Eight."
  text = "<s><|user|>\nHow many legs has a spider?</s><|assistant|>\nEight.</s>"
  assert chat.render(problem, response) == text
  ids = chat.encode([(problem, response)])[0]
  assert ids.dtype == np.int32 and list(ids[:2]) == [0, 3] and ids[-1] == 1
  assert (ids == 0).sum() == 1 and len(ids) > 4  # one <s>, and not cut to the stored length
  tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_templates_are_found_as_transformers_finds_them(directory, tmp_path):
  folder = tmp_path / "model"
  shutil.copytree(directory, folder)
  config = folder / "tokenizer_config.json"
  fields = json.loads(config.read_text())
  named = [{"name": "tool_use", "template": "no"},
           {"name": "default", "template": "{% generation %}{{ bos_token }}{% endgeneration %}d"}]
  config.write_text(json.dumps(fields | {"chat_template": named}))
  assert ChatTokenizer(folder).render("a", "b") == "<s>d"
  del fields["chat_template"], fields["bos_token"]
  config.write_text(json.dumps(fields))
  (folder / "chat_template.jinja").write_text("{{ bos_token }} of a file")
  (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<b>"}))
  before = ChatTokenizer(folder)
  assert before.render("a", "b") == "<b> of a file"
  (folder / "chat_template.jinja").write_text("another")
  assert ChatTokenizer(folder).fingerprint != before.fingerprint


@pytest.mark.parametrize("template, message", [
    ("{{ raise_exception('roles are wrong') }}", "does not take .*roles are wrong"),
    ("{{ bos + 1 }}", "does not take .*'bos' is undefined"),
    ("{% if %}", "is not valid"),
    ("{{ messages.__class__.__mro__ }}", "does not take .*unsafe"),
    ("{{ messages.append(1) }}", "does not take"),
    (None, "has no chat template"),
])
def test_templates_that_cannot_be_used(directory, tmp_path, template, message):
  folder = tmp_path / "model"
  shutil.copytree(directory, folder)
  fields = json.loads((folder / "tokenizer_config.json").read_text())
  fields["chat_template"] = template
  (folder / "tokenizer_config.json").write_text(json.dumps(fields))
  with pytest.raises(UserError, match=message):
    ChatTokenizer(folder).render("a", "b")


def test_tokenizer_files_that_are_missing_or_damaged(directory, tmp_path):
  folder = tmp_path / "model"
  shutil.copytree(directory, folder)
  (folder / "tokenizer_config.json").unlink()
  with pytest.raises(UserError, match="has no tokenizer_config.json"):
    ChatTokenizer(folder)
  (folder / "tokenizer.json").write_text("{}")
  with pytest.raises(UserError, match="is not a tokenizer"):
    ChatTokenizer(folder)
  (folder / "tokenizer.json").unlink()
  with pytest.raises(UserError, match="has no tokenizer.json"):
    reward.load_reward_model(folder, one_device_mesh())


def test_models_that_are_not_reward_models(tmp_path):
  tensors = reward_directory.write(tmp_path)
  tensors["score.weight"] = np.zeros((2, 32), np.float32)
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(UserError, match="with 2 label"):
    reward.load_reward_model(tmp_path, one_device_mesh())
  del tensors["score.weight"]
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(UserError, match="lacks the tensor score.weight"):
    reward.load_reward_model(tmp_path, one_device_mesh())
  fields = json.loads((tmp_path / "config.json").read_text())
  fields["architectures"] = ["LlamaForCausalLM"]
  (tmp_path / "config.json").write_text(json.dumps(fields))
  with pytest.raises(UserError, match="is a LlamaForCausalLM"):
    reward.load_reward_model(tmp_path, one_device_mesh())


@pytest.mark.parametrize("changes, message", [
    (dict(id2label={"0": "bad", "1": "good"}), "with 2 label"),
    (dict(num_labels=3), "with 3 label"),
    (dict(id2label={"0": "LABEL_0"}, num_labels=2), "with 2 label"),
    (dict(pad_token_id="2"), "pad_token_id='2' .* is not a token"),
    (dict(model_type="olmo2"), "do not belong together"),
    (dict(rope_theta=500.0, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
     "rope_scaling and rope_parameters .* contradict"),
    (dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope scaling 'linear'"),
    (dict(is_causal=False), "is_causal=false"),
])
def test_a_config_that_contradicts_itself_or_the_head(directory, tmp_path, changes, message):
  folder = tmp_path / "model"
  shutil.copytree(directory, folder)
  fields = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(fields | changes))
  with pytest.raises(UserError, match=message) as error:
    reward.load_reward_model(folder, one_device_mesh())
  assert "\n" not in str(error.value)


def test_scores_that_cannot_be(tmp_path):
  tensors = reward_directory.write(tmp_path)
  tensors["score.weight"][0, 0] = np.nan
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(UserError, match="not finite"):
    reward.load_reward_model(tmp_path, one_device_mesh()).score(PAIRS[:1])
  reward_directory.write(tmp_path, vocab_size=40)
  with pytest.raises(UserError, match="has 40 rows"):
    reward.load_reward_model(tmp_path, one_device_mesh()).score(PAIRS[:1])


def test_fingerprints_tell_models_apart(directory, tmp_path):
  fingerprint = lambda path: reward.load_reward_model(path, one_device_mesh()).fingerprint
  first = fingerprint(directory)
  tensors = reward_directory.write(tmp_path)
  assert fingerprint(tmp_path) == first
  tensors["score.weight"][0, 0] += 1
  save_file(tensors, tmp_path / "model.safetensors")
  assert fingerprint(tmp_path) != first


def test_place_of_the_score():
  last = lambda ids, pad: reward.last_token(np.array(ids), pad)
  assert last([5, 2, 7], 2) == 2
  assert last([5, 7, 2, 2], 2) == 1  # the template itself ends with the padding token
  assert last([5, 7, 2, 2], None) == 3
  assert last([2, 2], 2) == 0


def test_bucket_lengths():
  lengths = [1, 128, 129, 256, 257, 384, 385, 513, 768, 769, 1025, 1537, 3000]
  assert [reward.bucket_length(n) for n in lengths] == [
      128, 128, 256, 256, 384, 384, 512, 768, 768, 1024, 1536, 2048, 3072]
