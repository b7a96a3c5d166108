"""Multinomial logistic regression by L-BFGS, many problems at once, on the device.

The objective is scikit-learn's, 0.5 ||W||^2 + C * (sum of the log losses), without a penalty
on the intercepts; of two classes only the second has weights, also as there. It is convex, so
the optimum does not depend on who finds it. Three properties of a linear model make it cheap:

- Problems that share their features (other strengths, other labels) share the products with
  them: the columns of all are one matrix, and the products are two-dimensional.
- Logits are linear along a search direction, so a line search needs no product at all; the
  slope along it is monotone, so a bracketed Newton search on the slope cannot fail.
- The penalty does not change under rotation. In the eigenbasis of the features' covariance
  the Hessian at the start is diagonal for every strength, and L-BFGS (Nocedal and Wright 2006,
  algorithm 7.4) starts from its inverse. Hidden states are far from isotropic: this saves most
  of the iterations.

`optax.lbfgs` has no per-problem stopping under `jax.vmap` and pays products for its line search.

Letters beside those of docs/architecture.md: N examples, T test examples, D features, J problems
that share features, K columns of weights of a problem (classes, or 1 for two), S strengths.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wd_plasticity.errors import UserError

MEMORY = 10  # pairs kept of the history, as in scipy
TOLERANCE = 1e-6  # norm of the gradient of the objective over C * N
MAX_ITERATIONS = 300
_SLOPE_FALLS_TO = 0.5  # of its first size, where a line search ends
_MAX_SEARCH = 30
_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # not in TF32


class Fit(NamedTuple):
  """Solutions of J problems.

  Attributes:
    weights_JxDxK: K is the number of classes, or 1 for two.
    intercepts_JxK: not penalised.
    gradient_norm_J: of the objective over C * N, at the solution.
    iterations: of the slowest problem.
  """
  weights_JxDxK: jax.Array
  intercepts_JxK: jax.Array
  gradient_norm_J: jax.Array
  iterations: jax.Array


class Probe(NamedTuple):
  """What `probe` found on one set of features.

  Attributes:
    chosen: index of the strength.
    held_out_loss_S, held_out_S: mean log loss (nats) and accuracy of every strength on the
      held-out rows.
    train_2: accuracy on all training rows, of true and of permuted labels.
    predictions_2xT: classes of the test rows, of both.
    gradient_norm: the larger of both.
    iterations: of the selection and of the last fit together.
  """
  chosen: jax.Array
  held_out_loss_S: jax.Array
  held_out_S: jax.Array
  train_2: jax.Array
  predictions_2xT: jax.Array
  gradient_norm: jax.Array
  iterations: jax.Array


def standardise(train_NxD: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
  """All of them by mean and standard deviation of the first; constant features become 0."""
  mean_D = jnp.mean(train_NxD, axis=0)
  std_D = jnp.std(train_NxD, axis=0)
  varies_D = std_D > 1e-6 * jnp.maximum(jnp.abs(mean_D), 1e-30)
  scale_D = jnp.where(varies_D, 1 / jnp.where(varies_D, std_D, 1), 0)
  return tuple((x - mean_D) * scale_D for x in (train_NxD, *others))


def fit(x_NxD: jax.Array, labels_JxN: jax.Array, c_J: jax.Array, num_classes: int, *,
        tolerance: float = TOLERANCE, max_iterations: int = MAX_ITERATIONS) -> Fit:
  """Fits J problems on the same features.

  Args:
    x_NxD: float32 features, best standardised.
    labels_JxN: int classes of every problem; each class should occur, because the intercept
      of one that does not has no finite optimum.
    c_J: inverse strengths of the L2 penalty.
    num_classes: at least 2.
    tolerance: a problem stops at this norm of the gradient of its objective over C * N.
    max_iterations: a problem stops here in any case.

  Returns:
    The solutions.
  """
  rotation_DxD, variance_D = _principal_axes(x_NxD)
  columns_DxJK, norm_J, iterations = _minimise(
      _dot(x_NxD, rotation_DxD), variance_D, labels_JxN, c_J, num_classes, tolerance,
      max_iterations)
  num_columns = _num_columns(num_classes)
  w = columns_DxJK.reshape(columns_DxJK.shape[0], c_J.shape[0], num_columns)
  weights = _dot(rotation_DxD, columns_DxJK[:-1]).reshape(-1, *w.shape[1:])
  return Fit(weights.transpose(1, 0, 2), w[-1], norm_J, iterations)


def objective(solution: Fit, x_NxD: jax.Array, labels_JxN: jax.Array, c_J: jax.Array) -> jax.Array:
  """The minimised function of each problem [J], in scikit-learn's scale."""
  z_NxJxK = (jnp.einsum("nd,jdk->njk", x_NxD, solution.weights_JxDxK,
                        precision=jax.lax.Precision.HIGHEST) + solution.intercepts_JxK)
  losses_NxJ = _losses(z_NxJxK, _targets(labels_JxN, z_NxJxK.shape[2]))
  return 0.5 * jnp.sum(solution.weights_JxDxK**2, axis=(1, 2)) + c_J * jnp.sum(losses_NxJ, axis=0)


def predict(solution: Fit, x_NxD: jax.Array) -> jax.Array:
  """The most likely class [J, N] of every row."""
  z_NxJxK = (jnp.einsum("nd,jdk->njk", x_NxD, solution.weights_JxDxK,
                        precision=jax.lax.Precision.HIGHEST) + solution.intercepts_JxK)
  return _classes(z_NxJxK).T


def probe(train_NxD: jax.Array, test_TxD: jax.Array, labels_2xN: jax.Array, fit_rows: jax.Array,
          held_out_rows: jax.Array, c_S: jax.Array, num_classes: int) -> Probe:
  """Chooses the strength by its loss on held-out rows, then fits all training rows with it.

  The loss and not the accuracy, in which strengths are often equal but for one example, so that
  rounding would decide.

  The second problem of the last fit has permuted labels and the strength of the first: what
  the same classifier makes of labels that the features say nothing about.

  Args:
    train_NxD, test_TxD: float32 features, standardised here by those of training.
    labels_2xN: int classes of the training rows, true and permuted.
    fit_rows, held_out_rows: two sets of row indices, together all training rows.
    c_S: inverse strengths, ascending; of equally good ones the strongest penalty is chosen.
    num_classes: at least 2; each occurs in `fit_rows`.
  """
  train_NxD, test_TxD = standardise(train_NxD, test_TxD)
  rotation_DxD, variance_D = _principal_axes(train_NxD)
  train_NxD, test_TxD = _dot(train_NxD, rotation_DxD), _dot(test_TxD, rotation_DxD)
  num_columns = _num_columns(num_classes)

  def solve(x, labels_JxN, c_J):
    columns, norm_J, iterations = _minimise(x, variance_D, labels_JxN, c_J, num_classes,
                                            TOLERANCE, MAX_ITERATIONS)
    def logits(x):
      return (_dot(x, columns[:-1]) + columns[-1]).reshape(x.shape[0], -1, num_columns)
    return logits, jnp.max(norm_J), iterations

  def repeat(labels):
    return jnp.broadcast_to(labels, (c_S.shape[0], labels.shape[0]))

  logits, _, first_iterations = solve(train_NxD[fit_rows], repeat(labels_2xN[0, fit_rows]), c_S)
  held_out, z_held_out = repeat(labels_2xN[0, held_out_rows]), logits(train_NxD[held_out_rows])
  loss_S = jnp.mean(_losses(z_held_out, _targets(held_out, num_columns)), axis=0)
  chosen = jnp.argmin(loss_S)
  logits, norm, iterations = solve(train_NxD, labels_2xN, jnp.repeat(c_S[chosen], 2))
  return Probe(
      chosen, loss_S, jnp.mean(_classes(z_held_out).T == held_out, axis=1),
      jnp.mean(_classes(logits(train_NxD)).T == labels_2xN, axis=1),
      _classes(logits(test_TxD)).T, norm, first_iterations + iterations)


@functools.partial(jax.jit, static_argnames=("num_classes", "batched"))
def probes(train_PxNxD: jax.Array, test_PxTxD: jax.Array, labels_2xN: jax.Array,
           fit_rows: jax.Array, held_out_rows: jax.Array, c_S: jax.Array, *, num_classes: int,
           batched: bool) -> Probe:
  """`probe` on P sets of features of the same examples, as one program.

  Args:
    batched: all sets in step, for accelerators; else one after another, for CPUs, where a
      product of two matrices uses all cores and a batch of them does not.

  Returns:
    A Probe whose arrays have a leading axis P.
  """
  def one(features):
    return probe(*features, labels_2xN, fit_rows, held_out_rows, c_S, num_classes)
  return (jax.vmap(one) if batched else functools.partial(jax.lax.map, one))(
      (train_PxNxD, test_PxTxD))


def stratified_split(labels_N: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray,
                                                                               np.ndarray]:
  """Row indices (fit, held out), the same share of every class held out, at least one kept.

  Raises:
    UserError: nothing would be held out.
  """
  random = np.random.default_rng(seed)
  held_out = []
  for label in np.unique(labels_N):
    rows = random.permutation(np.flatnonzero(labels_N == label))
    held_out.append(rows[:min(round(fraction * len(rows)), len(rows) - 1)])
  held_out = np.sort(np.concatenate(held_out))
  if not len(held_out):
    raise UserError(f"{len(labels_N)} training examples leave none to choose the strength on; "
                    "give more.")
  return np.setdiff1d(np.arange(len(labels_N)), held_out), held_out


def _num_columns(num_classes: int) -> int:
  return 1 if num_classes == 2 else num_classes


def _targets(labels_JxN, num_columns):
  """y [N, J, K] of the residual p - y."""
  if num_columns == 1:
    return labels_JxN.T[:, :, None].astype(jnp.float32)
  return jax.nn.one_hot(labels_JxN.T, num_columns, dtype=jnp.float32)


def _losses(z_NxJxK, y_NxJxK):
  if z_NxJxK.shape[2] == 1:
    return (jax.nn.softplus(z_NxJxK) - y_NxJxK * z_NxJxK)[:, :, 0]
  return jax.nn.logsumexp(z_NxJxK, axis=2) - jnp.sum(y_NxJxK * z_NxJxK, axis=2)


def _probabilities(z_NxJxK):
  return jax.nn.sigmoid(z_NxJxK) if z_NxJxK.shape[2] == 1 else jax.nn.softmax(z_NxJxK, axis=2)


def _classes(z_NxJxK):
  if z_NxJxK.shape[2] == 1:
    return (z_NxJxK[:, :, 0] > 0).astype(jnp.int32)
  return jnp.argmax(z_NxJxK, axis=2)


def _principal_axes(x_NxD):
  """Eigenvectors of x^T x / N in columns, and the eigenvalues."""
  variance_D, rotation_DxD = jnp.linalg.eigh(_dot(x_NxD.T, x_NxD) / x_NxD.shape[0])
  return rotation_DxD, jnp.maximum(variance_D, 0)


def _minimise(x_NxD, variance_D, labels_JxN, c_J, num_classes, tolerance, max_iterations):
  """L-BFGS of all problems in step; those that have converged stay where they are.

  Args:
    x_NxD: features along their principal axes.
    variance_D: their second moments, which only the speed depends on.

  Returns:
    Columns [D + 1, J * K] with the intercepts in the last row, gradient norms [J], iterations.
  """
  n, num_problems, k = x_NxD.shape[0], c_J.shape[0], _num_columns(num_classes)
  x_NxD = jnp.concatenate([x_NxD, jnp.ones((n, 1), x_NxD.dtype)], axis=1)  # the intercept
  d = x_NxD.shape[1]
  penalised_D = jnp.ones(d).at[-1].set(0)
  penalty_DxJx1 = (penalised_D[:, None] / (c_J * n))[:, :, None]
  # Of p (1 - p) or diag(p) - p p^T at uniform p, but for the direction that is not seen.
  curvature = 1 / 4 if k == 1 else 1 / num_classes
  second_D = jnp.concatenate([variance_D, jnp.ones(1)])
  start_DxJx1 = 1 / (curvature * second_D[:, None, None] + penalty_DxJx1 + 1e-12)
  y_NxJxK = _targets(labels_JxN, k)

  def products(w_DxJxK):
    return _dot(x_NxD, w_DxJxK.reshape(d, -1)).reshape(n, num_problems, k)

  def gradient(w_DxJxK, p_NxJxK):
    residual = (p_NxJxK - y_NxJxK).reshape(n, -1) / n
    return _dot(x_NxD.T, residual).reshape(w_DxJxK.shape) + penalty_DxJx1 * w_DxJxK

  def step(state):
    w, z, g, history, norm_J, i = state
    direction = -_two_loop(g, history, start_DxJx1)
    slope_z = products(direction)
    t_J = _line_search(z, slope_z, y_NxJxK, _inner(g, direction),
                       _inner(penalty_DxJx1 * w, direction),
                       _inner(penalty_DxJx1 * direction, direction))
    t_J = jnp.where(norm_J > tolerance, t_J, 0)
    move = t_J[:, None] * direction
    new_w, new_z = w + move, z + t_J[:, None] * slope_z
    new_g = gradient(new_w, _probabilities(new_z))
    return (new_w, new_z, new_g, _remember(history, move, new_g - g),
            jnp.where(norm_J > tolerance, _norm(new_g), norm_J), i + 1)

  def unfinished(state):
    return jnp.any(state[4] > tolerance) & (state[5] < max_iterations)

  w = jnp.zeros((d, num_problems, k))
  z = jnp.zeros((n, num_problems, k))
  g = gradient(w, 1 / max(k, 2))
  pairs = jnp.zeros((MEMORY, *w.shape))
  state = (w, z, g, (pairs, pairs, jnp.zeros((MEMORY, num_problems))), _norm(g), 0)
  w, _, _, _, norm_J, i = jax.lax.while_loop(unfinished, step, state)
  return w.reshape(d, -1), norm_J, i


def _inner(a_DxJxK, b_DxJxK):
  return jnp.sum(a_DxJxK * b_DxJxK, axis=(0, 2))


def _norm(g_DxJxK):
  return jnp.sqrt(_inner(g_DxJxK, g_DxJxK))


def _remember(history, move, change):
  """Adds a pair; one without positive curvature (a problem that stands still) has no effect."""
  moves, changes, inverse = history
  curvature_J = _inner(move, change)
  new_J = jnp.where(curvature_J > 1e-30, 1 / jnp.maximum(curvature_J, 1e-30), 0)
  push = lambda stack, new: jnp.concatenate([stack[1:], new[None]])
  return push(moves, move), push(changes, change), push(inverse, new_J)


def _two_loop(g, history, start):
  """The gradient times L-BFGS's inverse Hessian."""
  def backward(q, pair):
    move, change, inverse_J = pair
    factor_J = inverse_J * _inner(move, q)
    return q - factor_J[:, None] * change, factor_J

  def forward(q, pair):
    move, change, inverse_J, factor_J = pair
    return q + (factor_J - inverse_J * _inner(change, q))[:, None] * move, None

  # Loops and not unrolled: a third of the time to compile, none to run.
  q, factors = jax.lax.scan(backward, g, history, reverse=True)
  _, changes, inverse = history
  # The newest pair tells how far curvature has fallen since the start.
  scale_J = inverse[-1] * _inner(changes[-1], start * changes[-1])
  q = start * q / jnp.where(scale_J > 0, scale_J, 1)[:, None]
  return jax.lax.scan(forward, q, (*history, factors))[0]


def _line_search(z, slope_z, y, slope_0_J, linear_J, square_J):
  """Step lengths [J] at which the slope has fallen to half its size without any increase.

  The objective along a direction is convex: where its slope is negative the minimum lies
  ahead, where it is positive behind, so the bracket shrinks in every pass.

  Args:
    z, slope_z: logits and their change per unit of step length [N, J, K].
    y: targets [N, J, K].
    slope_0_J: of the objective at the start.
    linear_J, square_J: slope of the penalty at the start, and its second derivative.
  """
  n = z.shape[0]
  value_0 = jnp.sum(_losses(z, y), axis=0) / n
  # Rounding of a sum of N float32 losses: differences below it say nothing.
  ceiling_J = value_0 + 1e-6 * jnp.abs(value_0)

  def search(state):
    t, low, high, found, i = state
    z_t = z + t[:, None] * slope_z
    p = _probabilities(z_t)
    value = jnp.sum(_losses(z_t, y), axis=0) / n + t * (linear_J + 0.5 * t * square_J)
    slope = jnp.sum((p - y) * slope_z, axis=(0, 2)) / n + linear_J + t * square_J
    mean_NxJ = jnp.sum(p * slope_z, axis=2)
    # Variance of the change of the logits; with one column the other's logit is 0.
    curvature = jnp.sum(jnp.sum(p * slope_z**2, axis=2) - mean_NxJ**2, axis=0) / n + square_J
    good = (jnp.abs(slope) <= _SLOPE_FALLS_TO * jnp.abs(slope_0_J)) & (value <= ceiling_J)
    low = jnp.where(slope < 0, t, low)
    high = jnp.where(slope < 0, high, t)
    newton = t - slope / jnp.maximum(curvature, 1e-30)
    middle = jnp.where(jnp.isinf(high), 4 * t, (low + high) / 2)
    inside = (newton > low) & (newton < jnp.minimum(high, 10 * t))
    t = jnp.where(found | good, t, jnp.where(inside, newton, middle))
    return t, low, high, found | good, i + 1

  t = jnp.ones_like(linear_J)
  at_rest = slope_0_J >= 0  # only rounding is left
  state = (t, jnp.zeros_like(t), jnp.full_like(t, jnp.inf), at_rest, 0)
  t, low, _, found, _ = jax.lax.while_loop(
      lambda s: ~jnp.all(s[3]) & (s[4] < _MAX_SEARCH), search, state)
  return jnp.where(at_rest, 0, jnp.where(found, t, low))
