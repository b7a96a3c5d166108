"""The peer as a benchmark worker: transformers' LlamaForCausalLM trained by torch's AdamW.

torch is no dependency of the project: `pip install wd_plasticity[parity]`.
"""

import importlib.util
import time

from wd_plasticity.bench import measure
from wd_plasticity.config import default_config
from wd_plasticity.errors import UserError
from wd_plasticity.models.config import ModelConfig, preset_section

# (compiled, bfloat16 autocast)
VARIANTS = {
    "torch eager float32": (False, False), "torch compiled float32": (True, False),
    "torch eager bfloat16": (False, True), "torch compiled bfloat16": (True, True),
}


def check_installed():
  """Raises UserError where torch or transformers is missing."""
  missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
  if missing:
    raise UserError(f"--peer needs {' and '.join(missing)}; "
                    "pip install 'wd_plasticity[parity]' brings it.")


def build(spec: dict):
  """Builds the step of `spec`: size, batch, length, compiled, bfloat16.

  Returns:
    As `measure.serve` wants it.
  """
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  section = default_config().model
  section.update(preset_section("llama2", spec["size"]))
  sizes = ModelConfig.from_section(section, default_config().data.tokenizer.vocab_size)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  model = LlamaForCausalLM(LlamaConfig(
      vocab_size=sizes.vocab_size, hidden_size=sizes.width, intermediate_size=sizes.ffn_width,
      num_hidden_layers=sizes.num_layers, num_attention_heads=sizes.num_heads,
      num_key_value_heads=sizes.num_kv_heads, head_dim=sizes.head_dim,
      rms_norm_eps=sizes.norm_eps, max_position_embeddings=spec["length"],
      tie_word_embeddings=sizes.tied_head, use_cache=False)).to(device)
  o = default_config().optim
  optimizer = torch.optim.AdamW(
      model.parameters(), lr=o.learning_rate, betas=(o.beta1, o.beta2), eps=o.eps,
      weight_decay=o.weight_decay, fused=True)
  tokens = torch.randint(sizes.vocab_size, (spec["batch"], spec["length"] + 1), device=device)
  inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)
  run = torch.compile(model) if spec["compiled"] else model

  def step():
    with torch.autocast(device, dtype=torch.bfloat16, enabled=spec["bfloat16"]):
      logits = run(input_ids=inputs).logits
      loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()  # waits for the device

  begin = time.perf_counter()
  step()
  info = {"compile_seconds": time.perf_counter() - begin, "version": torch.__version__}
  peak = measure.resident_peak if device == "cpu" else torch.cuda.max_memory_allocated
  return step, info, peak


if __name__ == "__main__":
  measure.serve(build)
