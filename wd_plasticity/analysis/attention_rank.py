"""Singular values of the attention products W_QK and W_VP of every head, and their ranks.

Query head h reads key/value head g = h // (H / G). Its two products are

  W_QK = W_Q[:, h] W_K[:, g]^T     what a position attends to
  W_VP = W_V[:, g] W_O[h, :]       what it moves when it attends (values, then projection)

both [D, D] of rank K at most (Kobayashi et al. 2024, arXiv 2410.23819). Neither is formed:
with A = Q_A R_A and B = Q_B R_B the singular values of A B^T are those of R_A R_B^T,
[K, K]. Householder QR and the SVD keep float32's accuracy relative to the largest value;
Gram matrices would keep half of its digits.

What is left out: 1/sqrt(K), which changes no rank; the rotation by rotary positions, so
that W_QK is that of two tokens at one position; the gains of the norm before the layer.
OLMo-2 normalises queries and keys: the gains of that norm belong to single channels and
can be folded into W_Q and W_K, the division by the root mean square cannot.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg.lapack  # noqa: F401  what XLA calls on a CPU; see one_lapack_thread
import threadpoolctl

from wd_plasticity.models.config import ModelConfig

# Sums that fall short by less count as reached: singular values are known to float32.
_TOLERANCE = 1e-6


def attention_spectra(params: Mapping[str, Any], config: ModelConfig,
                      fold_qk_norm: bool = False) -> dict[str, jax.Array]:
  """Singular values of W_QK and W_VP of every head.

  Args:
    params: as of `decoder.init_params`; there may be axes before the layer axis.
    config: sizes.
    fold_qk_norm: whether the gains of the QK-norm are part of W_Q and W_K.

  Returns:
    {"qk", "vp"}: float32 [..., N, H, min(K, D)], descending.
  """
  return {"qk": query_key_spectra(params, config, fold_qk_norm),
          "vp": value_output_spectra(params, config)}


def query_key_spectra(params: Mapping[str, Any], config: ModelConfig,
                      fold_qk_norm: bool = False) -> jax.Array:
  """The part "qk" of `attention_spectra`."""
  attention = params["layers"]["attention"]
  query, key = (jnp.asarray(attention[name]["kernel"], jnp.float32) for name in ("query", "key"))
  if fold_qk_norm and config.qk_norm:
    query *= attention["query_norm"]["scale"][..., None, :]
    key *= attention["key_norm"]["scale"][..., None, :]
  return _product_spectra(_columns_by_head(query, config), _columns_by_head(key, config))


def value_output_spectra(params: Mapping[str, Any], config: ModelConfig) -> jax.Array:
  """The part "vp" of `attention_spectra`."""
  attention = params["layers"]["attention"]
  value, output = (jnp.asarray(attention[name]["kernel"], jnp.float32)
                   for name in ("value", "output"))
  rows = output.reshape(*output.shape[:-2], -1, config.head_dim, output.shape[-1])
  # W_V W_O and its transpose have the same singular values.
  return _product_spectra(jnp.swapaxes(rows, -1, -2), _columns_by_head(value, config))


def _columns_by_head(kernel: jax.Array, config: ModelConfig) -> jax.Array:
  """[..., D, heads * K] as [..., heads, D, K]."""
  heads = kernel.reshape(*kernel.shape[:-1], -1, config.head_dim)
  return jnp.moveaxis(heads, -2, -3)


def _product_spectra(a: jax.Array, b: jax.Array) -> jax.Array:
  """Singular values of A_h B_g^T for a [..., H, D, K] and b [..., G, D, K]."""
  a, b = _triangular_factor(a), _triangular_factor(b)
  size, groups = a.shape[-2], b.shape[-3]
  a = a.reshape(*a.shape[:-3], groups, -1, *a.shape[-2:])
  core = jnp.einsum("...ghik,...gjk->...ghij", a, b, precision=jax.lax.Precision.HIGHEST)
  return jnp.linalg.svd(core.reshape(*b.shape[:-3], -1, size, size), compute_uv=False)


def _triangular_factor(w: jax.Array) -> jax.Array:
  """R of the QR factorisation of [..., D, K]: [..., min(D, K), K]."""
  return jnp.linalg.qr(w, mode="r")


def one_lapack_thread() -> threadpoolctl.threadpool_limits:
  """A context in which LAPACK starts no threads of its own.

  On a CPU XLA calls LAPACK once per matrix, from threads of its own. The matrices here are
  small, and threads within threads make them several times slower on an idle machine and
  a hundred times on one with other work. Results must be waited for inside.
  """
  return threadpoolctl.threadpool_limits(limits=1, user_api="blas")


def measures(s: np.ndarray, *, threshold: float = 0.95, power: int = 1) -> dict[str, np.ndarray]:
  """Ranks and norms of matrices from their singular values.

  Args:
    s: [..., K] singular values in any order; a matrix of zeros has rank 0 by all measures.
    threshold, power: of `pseudo_rank`.

  Returns:
    float64 arrays [...], NaN for spectra that are not finite:
      pseudo_rank: see there.
      effective_rank: exp of the entropy of s / sum(s) (Roy and Vetterli 2007).
      stable_rank: squared Frobenius over squared spectral norm, sum(s^2) / max(s)^2.
      participation_ratio: sum(s^2)^2 / sum(s^4).
      spectral_norm, frobenius_norm, nuclear_norm: max(s), sqrt(sum(s^2)), sum(s).
  """
  s = np.asarray(s, np.float64)
  largest = s.max(axis=-1)
  with np.errstate(invalid="ignore"):
    scaled = s / np.where(largest == 0, 1, largest)[..., None]  # so that no power underflows
    share = scaled / np.where(largest == 0, 1, scaled.sum(axis=-1))[..., None]
    logs = np.log(np.where(share > 0, share, 1))
    squares = (scaled**2).sum(axis=-1)
    fourths = np.where(largest == 0, 1, (scaled**4).sum(axis=-1))
    found = {
        "pseudo_rank": pseudo_rank(s, threshold, power),
        "effective_rank": np.where(largest == 0, 0, np.exp(-(share * logs).sum(axis=-1))),
        "stable_rank": squares,
        "participation_ratio": squares**2 / fourths,
        "spectral_norm": largest,
        "frobenius_norm": largest * np.sqrt(squares),
        "nuclear_norm": s.sum(axis=-1),
    }
  finite = np.isfinite(s).all(axis=-1)
  return {name: np.where(finite, value, np.nan) for name, value in found.items()}


def pseudo_rank(s: np.ndarray, threshold: float = 0.95, power: int = 1) -> np.ndarray:
  """The smallest k whose k largest singular values reach a share of the sum of all.

  (Kobayashi et al. 2024 with threshold 0.95 and power 1, there over the head dimension.)
  A sum within a millionth of the threshold reaches it, so that rounding decides no tie:
  of 20 equal values 19 are 95 %.

  Args:
    s: [..., K] singular values in any order.
    threshold: share of the sum, in (0, 1].
    power: 1 for the sum of singular values, 2 for that of their squares.

  Returns:
    [...] counts; 0 where all values are 0, NaN where one is not finite.
  """
  s = np.sort(np.asarray(s, np.float64), axis=-1)[..., ::-1]
  with np.errstate(invalid="ignore"):
    s = s / np.where(s[..., :1] == 0, 1, s[..., :1])
    sums = np.cumsum(s**power, axis=-1)
    short = sums < threshold * sums[..., -1:] * (1 - _TOLERANCE)
  count = np.where(sums[..., -1] == 0, 0, 1 + short.sum(axis=-1))
  return np.where(np.isfinite(sums[..., -1]), count, np.nan)
