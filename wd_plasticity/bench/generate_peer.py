"""The peer of generation as a benchmark worker: `generate` of transformers on torch."""

import os

from wd_plasticity.bench import measure


def build(spec: dict):
  """Builds one continuation of all prompts; `spec` is written in generate.py.

  Returns:
    As `measure.serve` wants it.
  """
  os.environ["JAX_PLATFORMS"] = "cpu"  # JAX only makes the weights here
  import torch
  import transformers

  from wd_plasticity.bench import generate_worker
  from wd_plasticity.interop import transformers_config, transformers_weights

  sizes = generate_worker.model_of(spec)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_num_threads(os.cpu_count())
  fields = transformers_config.config_to_transformers(
      sizes, length=spec["length"] + spec["new_tokens"])
  config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
  model = transformers.AutoModelForCausalLM.from_config(config)
  tensors = transformers_weights.to_transformers(generate_worker.params_of(sizes), sizes)
  model.load_state_dict({name: torch.tensor(t) for name, t in tensors.items()}, strict=False)
  model = model.to(device, getattr(torch, spec["dtype"])).eval()
  model.generation_config = transformers.GenerationConfig()  # no end mark of Llama's

  prompts = generate_worker.prompts_of(spec, sizes.vocab_size)
  tokens = torch.zeros(len(prompts), spec["length"], dtype=torch.long, device=device)
  mask = torch.zeros_like(tokens)
  for i, prompt in enumerate(prompts):  # padded on the left
    tokens[i, -len(prompt):] = torch.tensor(prompt)
    mask[i, -len(prompt):] = 1
  settings = dict(do_sample=True, temperature=spec["temperature"], top_k=0,
                  num_return_sequences=spec["samples"]) if spec["temperature"] else {}
  generation = transformers.GenerationConfig(
      max_new_tokens=spec["new_tokens"], pad_token_id=0, use_cache=True, **settings)

  def step():
    with torch.inference_mode():
      out = model.generate(tokens, attention_mask=mask, generation_config=generation)
    assert out.shape[1] == spec["length"] + spec["new_tokens"]
    return out.cpu()  # waits for the device

  peak = measure.resident_peak if device == "cpu" else torch.cuda.max_memory_allocated
  return step, {"version": transformers.__version__}, peak


if __name__ == "__main__":
  measure.serve(build)
