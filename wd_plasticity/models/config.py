"""Sizes and switches of the decoder, and the published sizes it is built in.

Shape letters are those of docs/architecture.md: B batch, L length, D width,
H query heads, G key/value heads, K head dim, F feed-forward width, V vocabulary,
N layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wd_plasticity.errors import UserError

CHOICES = {
    "norm_position": ("pre", "post"),
    "init": ("scaled", "truncated"),
    "compute_dtype": ("float32", "bfloat16"),
    "attention": ("auto", "plain", "cudnn", "splash", "blocks"),
    "remat": ("none", "dots", "full"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """One decoder: the `model` section of a configuration with its zeros resolved.

  Hashable, so that it can be a static argument of a jitted function.

  Attributes:
    rope_scaling: empty, or (factor, low, high, original length) of Llama 3.1, see
      `layers.rope_tables`. Configurations stored before it existed do not have it.

  Raises:
    UserError: at construction, when the sizes do not fit together or a name is unknown.
  """

  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  ffn_width: int
  vocab_size: int
  norm_position: str
  qk_norm: bool
  rope_theta: float
  norm_eps: float
  tied_head: bool
  init: str
  compute_dtype: str
  attention: str
  document_mask: bool
  scan_layers: bool
  remat: str
  rope_scaling: tuple[float, ...] = ()

  def __post_init__(self):
    self._set_rope_scaling()
    for name in ("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width",
                 "vocab_size", "rope_theta", "norm_eps"):
      if getattr(self, name) <= 0:
        raise UserError(f"model.{name}={getattr(self, name)} must be above 0.")
    for name, choices in CHOICES.items():
      if getattr(self, name) not in choices:
        raise UserError(
            f"model.{name}={getattr(self, name)!r} is unknown; use one of {', '.join(choices)}.")
    if self.num_heads % self.num_kv_heads:
      raise UserError(
          f"model.num_kv_heads={self.num_kv_heads} does not divide "
          f"model.num_heads={self.num_heads}; each key/value head serves as many query heads.")
    if self.head_dim % 2:
      raise UserError(
          f"The head dimension {self.head_dim} is odd; rotary embeddings turn pairs, so choose "
          "model.width, model.num_heads or model.head_dim to make it even.")

  def _set_rope_scaling(self):
    """Makes `rope_scaling` a tuple again, which JSON has turned into a list, and checks it."""
    try:
      scaling = tuple(float(number) for number in self.rope_scaling)
      factor, low, high, length = scaling or (1.0, 1.0, 4.0, 1.0)
    except (TypeError, ValueError):
      factor = low = high = length = 0.0
    if not (factor >= 1 and 0 < low < high and length > 0):
      raise UserError(
          f"model.rope_scaling={self.rope_scaling!r} must be empty or (factor, low_freq_factor, "
          "high_freq_factor, original_max_position_embeddings) with a factor of at least 1 and "
          "0 < low < high.")
    object.__setattr__(self, "rope_scaling", scaling)

  @classmethod
  def from_section(cls, section: Mapping[str, Any], vocab_size: int) -> "ModelConfig":
    """The configuration meant by a `model` section.

    Args:
      section: every field of the section `model` of `wd_plasticity.config`; `rope_scaling`
        may be absent.
      vocab_size: the tokenizer's, used where the section says 0.

    Raises:
      UserError: a field is missing or unknown, or the values do not fit together.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    missing = sorted(fields - set(section) - {"rope_scaling"})
    unknown = sorted(set(section) - fields)
    if missing or unknown:
      raise UserError(f"The model section lacks {missing} and does not know {unknown}; "
                      "start from default_config().model.")
    values = dict(section)
    if not values["head_dim"] and values["num_heads"] > 0:
      if values["width"] % values["num_heads"]:
        raise UserError(
            f"model.num_heads={values['num_heads']} does not divide "
            f"model.width={values['width']}; change one of them or set model.head_dim.")
      values["head_dim"] = values["width"] // values["num_heads"]
    if not values["vocab_size"]:
      values["vocab_size"] = vocab_size
    elif values["vocab_size"] < vocab_size:
      raise UserError(
          f"model.vocab_size={values['vocab_size']} is smaller than the tokenizer's {vocab_size}; "
          "set it to 0 to follow the tokenizer.")
    return cls(**values)


_FAMILIES = {
    "llama2": dict(norm_position="pre", qk_norm=False, rope_theta=10_000.0, norm_eps=1e-5,
                   init="scaled"),
    "olmo2": dict(norm_position="post", qk_norm=True, rope_theta=500_000.0, norm_eps=1e-6,
                  init="truncated"),
}

# Layers, width, heads, key/value heads, feed-forward width (8/3 of the width, as a
# multiple of 8). Names are the rounded parameter counts with an untied vocabulary of
# 4,096 and no preset vocabulary, so that any tokenizer fits.
_LADDER = {
    "0.3m": (2, 32, 2, 2, 88),
    "1m": (3, 96, 3, 3, 256),
    "3m": (4, 192, 4, 4, 512),
    "7m": (6, 256, 4, 4, 688),
    "15m": (7, 384, 6, 6, 1024),
    "35m": (10, 512, 8, 8, 1368),
    "75m": (14, 640, 10, 10, 1712),
    "150m": (20, 768, 12, 12, 2048),
}

# Sizes of "Weight Decay Improves Language Model Plasticity" (arXiv 2602.11137), with the
# vocabulary of their tokenizers. OLMo-2's 100,278 tokens are padded to 100,352.
_PUBLISHED = {
    "llama2": {
        "0.5b": (20, 1536, 32, 4, 3216, 32_000),
        "1b": (22, 2048, 32, 4, 4896, 32_000),
        "4b": (28, 4096, 32, 4, 7792, 32_000),
    },
    "olmo2": {
        "1b": (16, 2048, 16, 16, 8192, 100_352),
    },
}


def _preset(family: str, layers: int, width: int, heads: int, kv_heads: int, ffn_width: int,
            vocab_size: int = 0) -> dict[str, Any]:
  return dict(num_layers=layers, width=width, num_heads=heads, num_kv_heads=kv_heads, head_dim=0,
              ffn_width=ffn_width, vocab_size=vocab_size, tied_head=False, **_FAMILIES[family])


# PRESETS[family][size]: fields of the model section, for `config.model.update(...)`.
PRESETS = {
    family: {size: _preset(family, *numbers)
             for size, numbers in (_LADDER | _PUBLISHED[family]).items()}
    for family in _FAMILIES
}


def preset_section(family: str, size: str) -> dict[str, Any]:
  """Fields of the `model` section for one of `PRESETS`.

  Raises:
    UserError: there is no such size.
  """
  if size not in PRESETS[family]:
    raise UserError(f"size={size} is not a size of {family}; known are "
                    f"{', '.join(PRESETS[family])}.")
  return dict(PRESETS[family][size])
