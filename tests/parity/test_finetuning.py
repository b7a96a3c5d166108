"""Fine-tuning against transformers and torch: padded batches, torch AdamW, peft's LoRA by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from ml_collections import ConfigDict

from wd_plasticity.evals.config import finetune_config
from wd_plasticity.finetuning import batches, lora, tuner
from wd_plasticity.finetuning.examples import Example
from wd_plasticity.finetuning.step import TuneOptions, TuneProgram
from wd_plasticity.interop import transformers_config, transformers_weights
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.optim import adamw, groups
from wd_plasticity.training import mesh as mesh_lib

MODEL = ModelConfig(
    num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_width=48, vocab_size=64,
    norm_position="pre", qk_norm=False, rope_theta=1e4, norm_eps=1e-5, tied_head=False,
    init="scaled", compute_dtype="float32", attention="plain", document_mask=False,
    scan_layers=True, remat="none")
BATCH, EPOCHS, SEED, LR, DECAY = 4, 3, 3, 5e-3, 0.1


def _examples(n=13):
  rng = np.random.default_rng(0)
  return [Example(rng.integers(0, 64, k).astype(np.int32), int(rng.integers(1, k - 1)))
          for k in rng.integers(4, 20, n)]


def _ours(examples, params, **options):
  config = finetune_config().optim
  config.update(learning_rate=LR, weight_decay=DECAY)
  options = TuneOptions(**options)
  steps = -(-len(examples) // BATCH) * EPOCHS
  shapes = jax.eval_shape(lambda: params if not options.lora_rank else lora.init(
      params, options.lora_rank, options.lora_targets, jax.random.key(SEED)))
  group_of = groups.assign_groups(
      shapes, (r".*/lora_[ab]=lora",) if options.lora_rank else ())
  mesh = mesh_lib.make_mesh(ConfigDict(dict(sweep=1, data=8, fsdp=1, tensor=1)))
  program = TuneProgram(MODEL, adamw.from_section(config, group_of, steps, 100), options, mesh, 1)
  with jax.set_mesh(mesh):
    tuned = tuner.tune(
        program, jax.tree.map(lambda x: jnp.asarray(x)[None], params), examples, batch_size=BATCH,
        epochs=EPOCHS, seeds=[SEED], learning_rates=[LR],
        weight_decays=[[DECAY] * len(program.optimizer.group_names)])
  rates = [float(c["learning_rate"][0]) for c in tuned.curve]
  return tuned, [float(c["loss"][0]) for c in tuned.curve], rates


def _torch_model(params):
  fields = transformers_config.config_to_transformers(MODEL, 64)
  fields.pop("architectures")
  config = transformers.LlamaConfig(**fields, attn_implementation="eager", pad_token_id=None)
  model = transformers.LlamaForCausalLM(config).float()
  tensors = transformers_weights.to_transformers(params, MODEL)
  model.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()})
  return model


def _padded(chosen):
  """input ids, attention mask and labels as a Trainer's collator pads them."""
  length = max(len(e.tokens) for e in chosen)
  ids, mask = np.zeros((2, len(chosen), length), np.int64)
  labels = np.full((len(chosen), length), -100)
  for i, e in enumerate(chosen):
    ids[i, :len(e.tokens)], mask[i, :len(e.tokens)] = e.tokens, 1
    labels[i, e.prompt_length:len(e.tokens)] = e.tokens[e.prompt_length:]
  return [torch.tensor(a) for a in (ids, mask, labels)]


def _theirs(model, trained, examples, rates, before_step=lambda: None):
  optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
  source = batches.ExampleBatches(examples, BATCH, EPOCHS, SEED)
  losses = []
  for step, rate in enumerate(rates):
    ids, mask, labels = _padded(source.chosen(step))
    before_step()
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    losses.append(loss.item())
  return losses


def test_full_finetuning_equals_padded_batches_in_transformers():
  examples = _examples()
  params = jax.device_get(decoder.init_params(MODEL, jax.random.key(1)))
  tuned, losses, rates = _ours(examples, params)
  assert len(rates) == 12 and max(rates) == np.float32(LR) and rates[-1] < 1e-9
  model = _torch_model(params)
  want = _theirs(model, list(model.parameters()), examples, rates)
  np.testing.assert_allclose(losses, want, rtol=1e-4)
  got = transformers_weights.to_transformers(
      jax.tree.map(lambda x: np.asarray(x[0]), tuned.params), MODEL)
  for name, tensor in model.state_dict().items():
    np.testing.assert_allclose(got[name], tensor.numpy(), atol=1e-4, err_msg=name)


def test_lora_equals_two_products_trained_in_torch():
  examples = _examples()
  params = jax.device_get(decoder.init_params(MODEL, jax.random.key(1)))
  targets = ("query", "value", "down")
  tuned, losses, rates = _ours(examples, params, lora_rank=3, lora_alpha=6.0, lora_targets=targets)
  factors = jax.device_get(lora.init(params, 3, targets, jax.random.key(SEED)))
  model = _torch_model(params)
  for p in model.parameters():
    p.requires_grad_(False)
  trained = []

  class Adapted(torch.nn.Module):

    def __init__(self, inner, a, b):
      super().__init__()
      self.inner = inner
      self.a, self.b = (torch.nn.Parameter(torch.tensor(np.array(x))) for x in (a, b))
      trained.extend([self.a, self.b])

    def forward(self, x):
      return self.inner(x) + 2.0 * (x @ self.a) @ self.b

  for i, layer in enumerate(model.model.layers):
    for part, name, ours in ((layer.self_attn, "q_proj", ("attention", "query")),
                             (layer.self_attn, "v_proj", ("attention", "value")),
                             (layer.mlp, "down_proj", ("feed_forward", "down"))):
      f = factors["layers"][ours[0]][ours[1]]
      setattr(part, name, Adapted(getattr(part, name), f["lora_a"][i], f["lora_b"][i]))
  want = _theirs(model, trained, examples, rates)
  np.testing.assert_allclose(losses, want, rtol=1e-4)
  got = np.asarray(tuned.params["layers"]["attention"]["query"]["kernel"][0, 1])
  adapted = model.model.layers[1].self_attn.q_proj
  expected = adapted.inner.weight.T + 2.0 * adapted.a @ adapted.b
  np.testing.assert_allclose(got, expected.detach().numpy(), atol=1e-4)
