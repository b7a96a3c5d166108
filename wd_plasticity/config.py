"""The default configuration of a pretraining run, and the lengths written in it.

A config file starts from `default_config()` and changes fields; no other fields are taken
(typed_config.py). Every field is typed by its default; what its number can be says limits.py.
A length is a string: '10%' of training, '200 steps' or '1e6 tokens'.
"""

import functools
import json
import math
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from wd_plasticity.errors import UserError
from wd_plasticity.typed_config import Config, declares, plain


def schedule_section(name: str, warmup: str, final_fraction: float) -> ConfigDict:
  """Fields of a learning-rate or decay schedule (see optim/schedules.py)."""
  return ConfigDict(dict(
      name=name,  # cosine, wsd (warmup-stable-decay), linear, constant
      warmup=warmup,  # length of the linear warmup from 0
      decay="20%",  # wsd only: length of the final decay
      final_fraction=final_fraction,  # value at the end over the peak
  ))


@declares("")
def default_config() -> ConfigDict:
  """A small Llama-2 on the embedded corpus; every known field with its default."""
  c = Config()
  c.name = ""  # shown in logs and plots
  c.seed = 0  # of the initialisation and of the data order

  c.model = ConfigDict(dict(
      num_layers=4,  # N
      width=128,  # D, of the residual stream
      num_heads=4,  # H, query heads
      num_kv_heads=4,  # G, key/value heads; each serves as many query heads
      head_dim=0,  # 0: width / num_heads
      ffn_width=344,  # F, of the SwiGLU
      vocab_size=0,  # 0: as large as the tokenizer's
      norm_position="pre",  # pre (Llama-2) or post (OLMo-2: on each sublayer's output)
      qk_norm=False,  # RMSNorm over the full query and key projections (OLMo-2)
      rope_theta=10_000.0,  # base of the rotary frequencies
      norm_eps=1e-5,  # of every RMSNorm
      tied_head=False,  # the output head is the embedding
      init="scaled",  # scaled: std sqrt(2/(5 width)); truncated: std 0.02 cut at 3 sigma
      compute_dtype="float32",  # float32 or bfloat16; parameters are always float32
      attention="auto",  # auto, plain, cudnn (GPU), splash (TPU), blocks (CPU)
      document_mask=False,  # attend only within a document of a packed record
      scan_layers=True,  # one compiled layer, looped; False unrolls
      remat="none",  # none, dots (recompute all but matrix products), full
      rope_scaling=(),  # or (factor, low, high, original length) of Llama 3.1
  ))

  c.data = ConfigDict(dict(
      source="embedded",  # embedded, files, tfds
      train="",  # files: glob(s), comma separated; tfds: name or directory
      validation="",  # the same; empty: a share of the documents of `train`
      text_field="text",  # of JSONL, Parquet and TFDS records
      strip="",  # regular expression removed from the start of each document
      validation_fraction=0.05,  # of documents, when `validation` is empty
      train_subset_fraction=0.05,  # of training documents, on which a loss is measured, read or not
      max_documents=0,  # of each input, the first ones; 0: all
      sequence_length=256,  # tokens predicted per record; records hold one more
      cache_dir="",  # empty: <workdir>/cache
      num_workers=2,  # threads that read ahead
  ))
  c.data.tokenizer = ConfigDict(dict(
      kind="bpe",  # byte, bpe (trained on the corpus), json, sentencepiece, gpt2, saved
      path="",  # json: tokenizer.json; sentencepiece: .model; gpt2: a directory; saved: a run's
      vocab_size=4096,  # bpe only
      eos="",  # json, sentencepiece, gpt2: the token that ends a document; empty: guessed, and said
  ))

  c.optim = ConfigDict(dict(
      learning_rate=3e-3,  # peak
      beta1=0.9,  # of Adam, first moment
      beta2=0.95,  # of Adam, second moment
      eps=1e-8,  # of Adam
      clip_norm=1.0,  # of all gradients together; 0: no clipping
      weight_decay=0.1,  # lambda, before the multipliers of `optim.decay`
  ))
  c.optim.schedule = schedule_section("cosine", warmup="10%", final_fraction=0.1)
  c.optim.decay = ConfigDict(dict(
      convention="learning_rate",  # learning_rate, independent, l2 (see optim/adamw.py)
      preset="all",  # all, no_embeddings, matrices, no_norms_biases (see optim/groups.py)
      rules=(),  # own rules 'regular expression=group', tried before the standard table
  ))
  c.optim.decay.schedule = schedule_section("constant", warmup="0%", final_fraction=1.0)
  c.optim.decay.multipliers = ConfigDict(dict(
      embedding=1.0,  # times `optim.weight_decay` for this group
      head=1.0,  # the same
      query_key=1.0,  # the same
      value_output=1.0,  # the same
      feed_forward=1.0,  # the same
      norm=1.0,  # the same
  ))

  c.train = ConfigDict(dict(
      steps=0,  # 0: from tokens_per_parameter
      tokens_per_parameter=20.0,  # all parameters count, embeddings included
      global_batch_size=16,  # sequences per step
      accumulate_steps=1,  # micro-batches a step is split into
      z_loss=0.0,  # weight of the squared log of the softmax's normaliser
      loss_tile_tokens=0,  # tokens whose logits exist at once; 0: chosen for the platform
      log_every="1%",  # length between lines of metrics
      eval_every="10%",  # length between evaluations
      eval_sequences=64,  # validation and train-subset records per evaluation
  ))

  c.sweep = ConfigDict(dict(
      members_at_once=0,  # members in one compiled program; 0: measured
  ))
  c.mesh = ConfigDict(dict(
      sweep=1,  # devices that members are divided among; -1: those that are left
      data=-1,  # devices that hold whole copies and divide the batch
      fsdp=1,  # devices that divide parameters, optimizer state and the batch
      tensor=1,  # devices that divide heads, feed-forward units and the vocabulary
      cpu_devices=0,  # on a CPU: devices it is shown as; 0: one
  ))
  c.checkpoint = ConfigDict(dict(
      every="20%",  # length between checkpoints
      keep_latest=1,  # newest checkpoints kept for resuming
      keep_at=(0.25, 0.5, 0.75),  # fractions of training kept for good, beside the last
  ))
  c.log = ConfigDict(dict(
      wandb=False,  # also log to Weights & Biases
      wandb_project="wd_plasticity",  # of Weights & Biases
  ))
  c.distributed = ConfigDict(dict(
      mode="auto",  # auto: when a cluster is detected; on; off
      coordinator="",  # host:port, when not detected
      num_processes=0,  # with a coordinator: of the run
      process_id=-1,  # with a coordinator: this one's, from 0
      timeout_seconds=120,  # for the processes to find each other
  ))
  return c


def parse_length(text: str, total_steps: int, tokens_per_step: int, field: str, *,
                 least: int = 0) -> int:
  """Steps meant by a length such as '10%', '200 steps' or '1e6 tokens' (rounded up).

  Args:
    text: the length.
    total_steps: of the whole training.
    tokens_per_step: to read lengths in tokens.
    field: where it stands in the configuration, for messages.
    least: 1 for an interval, which cannot be 0.

  Raises:
    UserError: it is not a length, or 0 where it cannot be.
  """
  steps = exact_length(text, total_steps, tokens_per_step, field)
  if least and not steps:
    raise UserError(f"{field}={text!r} must be above 0; write '100%' for once, at the end.")
  return max(least, math.ceil(steps - 1e-9))


def exact_length(text: str, total_steps: int, tokens_per_step: int, field: str) -> float:
  """As `parse_length`, but not rounded to whole steps."""
  words = text.strip().lower()
  units = {"%": total_steps / 100, "steps": 1.0, "step": 1.0, "tokens": 1.0 / tokens_per_step}
  for unit, scale in units.items():
    if words.endswith(unit):
      try:
        value = float(words.removesuffix(unit)) * scale
      except (ValueError, OverflowError):
        break
      if not math.isfinite(value) or value < 0:
        break
      return value
  raise UserError(
      f"{field}={text!r} is not a length; write it like '10%', '200 steps' or '1e6 tokens'.")


def as_json(value: Any) -> Any:
  """The value with JSON's types: dicts, lists (also for tuples), numbers, strings, None."""
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  return json.loads(json.dumps(plain(value)))


@functools.cache
def flat_defaults() -> Mapping[str, Any]:
  """The default configuration, flat, in JSON's types.

  A field that a stored configuration does not have, because it was written before the
  field existed, had its default.
  """
  return types.MappingProxyType(flatten(as_json(default_config())))


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
  """{'optim.decay.preset': 'all', ...} of nested dicts."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
