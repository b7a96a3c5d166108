"""A small reward model as a directory of transformers, written without transformers."""

import json

import numpy as np
import tokenizers
from safetensors.numpy import save_file

TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('no system message here') }}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if loop.index0 > 7 %}{% break %}{% endif %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""
SPECIAL = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"]
TEXT = ["How many legs has a spider? Eight legs, and a fly has six.", "7 * 6 = 42, so 42."]
SIZES = dict(
    architectures=["LlamaForSequenceClassification"], model_type="llama", vocab_size=320,
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, max_position_embeddings=512,
    rope_theta=500.0, pad_token_id=2, hidden_act="silu",
    rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=32))


def write_tokenizer(directory):
  """A byte-level BPE that adds a beginning of sequence of its own, and a chat template."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator(TEXT, tokenizers.trainers.BpeTrainer(
      vocab_size=280, special_tokens=SPECIAL, show_progress=False,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", 0)])
  tokenizer.enable_truncation(4)  # to be switched off by the reader
  tokenizer.save(str(directory / "tokenizer.json"))
  (directory / "tokenizer_config.json").write_text(json.dumps(dict(
      tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", pad_token="<pad>",
      eos_token={"content": "</s>", "__type": "AddedToken", "lstrip": False, "rstrip": False,
                 "normalized": False, "single_word": False, "special": True},
      chat_template=TEMPLATE)))


def random_tensors(fields, seed=0):
  """Float32 weights far from their initial values, by transformers' names."""
  rng = np.random.default_rng(seed)
  width, ffn_width = fields["hidden_size"], fields["intermediate_size"]
  query = fields["num_attention_heads"] * fields["head_dim"]
  key = fields["num_key_value_heads"] * fields["head_dim"]
  shapes = {"model.embed_tokens.weight": (fields["vocab_size"], width),
            "model.norm.weight": (width,), "score.weight": (1, width)}
  for i in range(fields["num_hidden_layers"]):
    shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in {
        "input_layernorm": (width,), "post_attention_layernorm": (width,),
        "self_attn.q_proj": (query, width), "self_attn.k_proj": (key, width),
        "self_attn.v_proj": (key, width), "self_attn.o_proj": (width, query),
        "mlp.gate_proj": (ffn_width, width), "mlp.up_proj": (ffn_width, width),
        "mlp.down_proj": (width, ffn_width)}.items()}
  return {name: (rng.normal(size=shape) * 0.3 + ("norm" in name)).astype(np.float32)
          for name, shape in shapes.items()}


def write(directory, dtype=np.float32, **changes) -> dict[str, np.ndarray]:
  """Writes the whole directory; returns the tensors it holds."""
  directory.mkdir(exist_ok=True)
  fields = SIZES | changes
  (directory / "config.json").write_text(json.dumps(fields))
  tensors = {name: t.astype(dtype) for name, t in random_tensors(fields).items()}
  save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
  write_tokenizer(directory)
  return tensors
