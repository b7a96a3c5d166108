"""The README.md of an exported model: what it was pretrained with, and how it is opened."""

from collections.abc import Mapping, Sequence
from typing import Any

from wd_plasticity.models.config import ModelConfig

_NOT_KNOWN = "not known"
_CONVENTIONS = {
    "learning_rate": "decoupled, multiplied by the learning rate (AdamW)",
    "independent": "decoupled, independent of the learning rate",
    "l2": "coupled: added to the gradient (L2 regularisation)",
}


def write(name: str, meta: Mapping[str, Any], model: ModelConfig, *, architecture: str,
          dtype: str, tokenizer: str, command: str, version: str, notes: Sequence[str]) -> str:
  """The text of the card.

  Args:
    name: of the model.
    meta: of its checkpoint.
    model: its sizes.
    architecture: the class of transformers.
    dtype: of the exported tensors.
    tokenizer: sentence on the tokenizer.
    command: that exported it.
    version: of this code.
    notes: further sentences.
  """
  imported = meta.get("imported")
  known = imported is None or imported["pretraining_known"]
  facts = [*_decay(meta, known), *_training(meta, known), *_origin(meta, imported)]
  facts += [("exported by", f"wd_plasticity {version}"), ("export command", f"`{command}`")]
  rows = "\n".join(f"| {_cell(k)} | {_cell(v)} |" for k, v in facts)
  remarks = "".join(f"\n- {_cell(note)}" for note in [tokenizer, *notes])
  return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- weight-decay
---

# {name}

A language model of {meta['parameters']['total']:,} parameters, pretrained in a study of weight
decay. `{architecture}` with {model.num_layers} layers of width {model.width},
{model.num_heads} query heads and {model.num_kv_heads} key/value heads of dimension
{model.head_dim}, a vocabulary of {model.vocab_size:,}; stored in {dtype}.

| pretraining | |
|---|---|
{rows}

```python
import transformers
model = transformers.AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = transformers.AutoTokenizer.from_pretrained("PATH")
```

Of note:
{remarks}

This card states no licence: which one applies follows from the data and from whoever
trained the model.
"""


def _decay(meta: Mapping, known: bool) -> list[tuple[str, Any]]:
  rows = [("weight decay", f"{meta['weight_decay']:g}")]
  if not known:
    return [*rows, ("decay convention", _NOT_KNOWN), ("parameters that are decayed", _NOT_KNOWN)]
  decay = meta["config"]["optim"]["decay"]
  convention = decay["convention"]
  rows.append(("decay convention", f"`{convention}`: {_CONVENTIONS.get(convention, convention)}"))
  rows.append(("parameters that are decayed", f"preset `{decay['preset']}`"))
  other = {group: m for group, m in decay.get("multipliers", {}).items() if m != 1}
  if other:
    rows.append(("multipliers of the decay", ", ".join(f"{g} {m:g}" for g, m in other.items())))
  if decay.get("rules"):
    rows.append(("own rules of the decay", ", ".join(f"`{rule}`" for rule in decay["rules"])))
  schedule = decay.get("schedule", {}).get("name", "constant")
  if schedule != "constant":
    rows.append(("schedule of the decay", schedule))
  return rows


def _training(meta: Mapping, known: bool) -> list[tuple[str, Any]]:
  config = meta["config"]
  rows = [("tokens", f"{meta['tokens']:,}" if meta["tokens"] else _NOT_KNOWN),
          ("steps", f"{meta['step']:,} of {meta['steps']:,}" if known else _NOT_KNOWN)]
  optim, train = config["optim"], config["train"]
  rows += [
      ("learning rate", f"{optim['learning_rate']:g}, schedule {optim['schedule']['name']}"
       if known else _NOT_KNOWN),
      ("seed", config["seed"] if known else _NOT_KNOWN),
      ("sequences per step", train["global_batch_size"] if known else _NOT_KNOWN),
      ("tokens per sequence", config["data"]["sequence_length"] if known else _NOT_KNOWN)]
  return rows


def _origin(meta: Mapping, imported: Mapping | None) -> list[tuple[str, Any]]:
  fingerprint = meta["data_fingerprint"]
  rows = [("data fingerprint", f"`{fingerprint}`" if fingerprint else _NOT_KNOWN),
          ("tokenizer fingerprint", f"`{meta['tokenizer_fingerprint']}`")]
  if imported:
    rows.append(("imported from a model directory with the sha256", f"`{imported['sha256']}`"))
  else:
    rows.append(("pretrained by", f"wd_plasticity {meta.get('code_version', _NOT_KNOWN)}"))
  return rows


def _cell(value: Any) -> str:
  return str(value).replace("|", "\\|").replace("\n", " ")
