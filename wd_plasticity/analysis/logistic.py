"""Multinomial logistic regression by L-BFGS, many problems at once, on the device.

The objective is scikit-learn's, 0.5 ||W||^2 + C * (sum of the log losses), without a penalty
on the intercepts; of two classes only the second has weights, also as there. It is convex, so
the optimum does not depend on who finds it. Three properties of a linear model make it cheap:

- Logits are linear along a search direction, so a line search needs no product at all; the
  slope along it is monotone, so that a bracket on the slope always closes.
- The penalty does not change under rotation. In the eigenbasis of the features' covariance
  the Hessian at the start is diagonal for every strength, and L-BFGS (Nocedal and Wright 2006,
  algorithm 7.4) starts from its inverse. Hidden states are far from isotropic: this saves most
  of the iterations.
- Problems that share their features (other strengths, other labels) may share the products
  with them, the columns of all being one matrix.

`optax.lbfgs` knows none of the three: it pays a product for every step of a line search, and
under `jax.vmap` all problems search as long as the slowest.

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
# Nats per example that the objective over C * N may be above its minimum. With f strongly convex,
# f - min f <= |gradient|^2 C N / 2, which says when to stop.
GAP = 1e-7
MAX_ITERATIONS = 300
_GRADIENT = (3e-7, 1e-5)  # limits of that norm: what float32 reaches; intercepts have no penalty
_SLOPE_FALLS_TO = 0.5  # of its first size, where a line search ends
_MAX_SEARCH = 30
_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # not in TF32


class Fit(NamedTuple):
  """Solutions of J problems.

  Attributes:
    weights_JxKxD: K is the number of classes, or 1 for two.
    intercepts_JxK: not penalised.
    gradient_norm_J: of the objective over C * N, at the solution.
    iterations_J: until it was found.
  """
  weights_JxKxD: jax.Array
  intercepts_JxK: jax.Array
  gradient_norm_J: jax.Array
  iterations_J: jax.Array


class Probe(NamedTuple):
  """What `probe` found on one set of features.

  Attributes:
    chosen: index of the strength.
    held_out_loss_S, held_out_S: mean log loss (nats) and accuracy of every strength on the
      held-out rows.
    train_2: accuracy on all training rows, of true and of permuted labels.
    predictions_2xT: classes of the test rows, of both.
    gradient_norm: the larger of both, see `Fit`.
    iterations: of all fits together.
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
        together: bool, gap: float = GAP, max_iterations: int = MAX_ITERATIONS) -> Fit:
  """Fits J problems on the same features.

  Args:
    x_NxD: float32 features, best standardised.
    labels_JxN: int classes of every problem; each class should occur, because the intercept
      of one that does not has no finite optimum.
    c_J: inverse strengths of the L2 penalty.
    num_classes: at least 2.
    together: all problems in step, for accelerators; else one after another, for CPUs, where
      those that converge early then cost nothing more.
    gap: how far above its minimum an objective over C * N may stay, as long as float32 can tell.
    max_iterations: a problem stops here in any case.

  Returns:
    The solutions.
  """
  rotation_DxD, variance_D = _principal_axes(x_NxD)
  start = jnp.zeros((len(c_J), _num_columns(num_classes), x_NxD.shape[1] + 1))
  w, norm_J, iterations_J = _minimise(
      _with_ones(_dot(x_NxD, rotation_DxD)), variance_D, labels_JxN, c_J, start, num_classes,
      together, gap, max_iterations)
  return Fit(_dot(w[..., :-1], rotation_DxD.T), w[..., -1], norm_J, iterations_J)


def objective(solution: Fit, x_NxD: jax.Array, labels_JxN: jax.Array, c_J: jax.Array) -> jax.Array:
  """The minimised function of each problem [J], in scikit-learn's scale."""
  losses_JxN = _losses(_logits_of(solution, x_NxD), labels_JxN)
  return 0.5 * jnp.sum(solution.weights_JxKxD**2, axis=(1, 2)) + c_J * jnp.sum(losses_JxN, axis=1)


def predict(solution: Fit, x_NxD: jax.Array) -> jax.Array:
  """The most likely class [J, N] of every row."""
  return _classes(_logits_of(solution, x_NxD))


def probe(train_NxD: jax.Array, test_TxD: jax.Array, labels_2xN: jax.Array, fit_rows: jax.Array,
          held_out_rows: jax.Array, c_S: jax.Array, num_classes: int, together: bool) -> Probe:
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
    together: as of `fit`.
  """
  train_NxD, test_TxD = standardise(train_NxD, test_TxD)
  rotation_DxD, variance_D = _principal_axes(train_NxD)
  train, test = (_with_ones(_dot(x, rotation_DxD)) for x in (train_NxD, test_TxD))

  def solve(x, labels_JxN, c_J, start):
    return _minimise(x, variance_D, labels_JxN, c_J, start, num_classes, together, GAP,
                     MAX_ITERATIONS)

  start = jnp.zeros((c_S.shape[0], _num_columns(num_classes), train.shape[1]))
  labels_N = labels_2xN[0]
  tried, _, first_iterations = solve(
      train[fit_rows], jnp.broadcast_to(labels_N[fit_rows], (len(c_S), len(fit_rows))), c_S, start)
  z_held_out, held_out = _logits(tried, train[held_out_rows]), labels_N[held_out_rows][None]
  loss_S = jnp.mean(_losses(z_held_out, held_out), axis=1)
  chosen = jnp.argmin(loss_S)
  w, norm, iterations = solve(train, labels_2xN, jnp.repeat(c_S[chosen], 2),
                              jnp.stack([tried[chosen], start[0]]))
  return Probe(
      chosen, loss_S, jnp.mean(_classes(z_held_out) == held_out, axis=1),
      jnp.mean(_classes(_logits(w, train)) == labels_2xN, axis=1), _classes(_logits(w, test)),
      jnp.max(norm), jnp.sum(first_iterations) + jnp.sum(iterations))


@functools.partial(jax.jit, static_argnames=("num_classes", "together"))
def probes(train_PxNxD: jax.Array, test_PxTxD: jax.Array, labels_2xN: jax.Array,
           fit_rows: jax.Array, held_out_rows: jax.Array, c_S: jax.Array, *, num_classes: int,
           together: bool) -> Probe:
  """`probe` on P sets of features of the same examples, as one program.

  Args:
    together: all sets and problems in step, for accelerators; else one after another, for
      CPUs, where a product of two matrices uses all cores and a batch of them does not.

  Returns:
    A Probe whose arrays have a leading axis P.
  """
  def one(features):
    return probe(*features, labels_2xN, fit_rows, held_out_rows, c_S, num_classes, together)
  return (jax.vmap(one) if together else functools.partial(jax.lax.map, one))(
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


def _with_ones(x_NxD):
  """Another feature, of the intercept."""
  return jnp.concatenate([x_NxD, jnp.ones((x_NxD.shape[0], 1), x_NxD.dtype)], axis=1)


def _logits(w_JxKxD, x_NxD):
  # Examples come last: sums over few classes are then sums of long vectors.
  return _dot(w_JxKxD.reshape(-1, x_NxD.shape[1]), x_NxD.T).reshape(*w_JxKxD.shape[:2], -1)


def _logits_of(solution, x_NxD):
  return _logits(solution.weights_JxKxD, x_NxD) + solution.intercepts_JxK[..., None]


def _targets(labels_JxN, num_columns):
  """y [J, K, N] of the residual p - y."""
  if num_columns == 1:
    return labels_JxN[:, None].astype(jnp.float32)
  return jax.nn.one_hot(labels_JxN, num_columns, dtype=jnp.float32, axis=1)


def _losses(z_JxKxN, labels_JxN):
  y_JxKxN = _targets(labels_JxN, z_JxKxN.shape[1])
  if z_JxKxN.shape[1] == 1:
    return (jax.nn.softplus(z_JxKxN) - y_JxKxN * z_JxKxN)[:, 0]
  return jax.nn.logsumexp(z_JxKxN, axis=1) - jnp.sum(y_JxKxN * z_JxKxN, axis=1)


def _probabilities(z_JxKxN):
  return jax.nn.sigmoid(z_JxKxN) if z_JxKxN.shape[1] == 1 else jax.nn.softmax(z_JxKxN, axis=1)


def _classes(z_JxKxN):
  if z_JxKxN.shape[1] == 1:
    return (z_JxKxN[:, 0] > 0).astype(jnp.int32)
  return jnp.argmax(z_JxKxN, axis=1)


def _principal_axes(x_NxD):
  """Eigenvectors of x^T x / N in columns, and the eigenvalues."""
  variance_D, rotation_DxD = jnp.linalg.eigh(_dot(x_NxD.T, x_NxD) / x_NxD.shape[0])
  return rotation_DxD, jnp.maximum(variance_D, 0)


def _minimise(x_NxD, variance_D, labels_JxN, c_J, start_JxKxD, num_classes, together, gap,
              max_iterations):
  """L-BFGS of J problems, in step or one after another.

  Args:
    x_NxD: features along their principal axes, then ones.
    variance_D: their second moments (without the ones), which only the speed depends on.
    start_JxKxD: weights to start from.

  Returns:
    Weights [J, K, D], gradient norms [J], iterations [J].
  """
  if not together and len(c_J) > 1:
    def one(problem):
      labels, c, start = (a[None] for a in problem)
      return jax.tree.map(lambda a: a[0], _minimise(
          x_NxD, variance_D, labels, c, start, num_classes, True, gap, max_iterations))
    return jax.lax.map(one, (labels_JxN, c_J, start_JxKxD))

  n, d = x_NxD.shape
  k = start_JxKxD.shape[1]
  penalty_Jx1xD = jnp.ones(d).at[-1].set(0) / (c_J[:, None, None] * n)
  # Of p (1 - p), or of diag(p) - p p^T off its null space, at the uniform p.
  curvature = 1 / 4 if k == 1 else 1 / num_classes
  inverse_Jx1xD = 1 / (curvature * jnp.append(variance_D, 1.0) + penalty_Jx1xD + 1e-12)
  tolerance_J = jnp.clip(jnp.sqrt(2 * gap / (c_J * n)), *_GRADIENT)
  y_JxKxN = _targets(labels_JxN, k)

  def gradient(w, p_JxKxN):
    residual = (p_JxKxN - y_JxKxN).reshape(-1, n) / n
    return _dot(residual, x_NxD).reshape(w.shape) + penalty_Jx1xD * w

  def step(state):
    w, z, g, history, i, iterations_J = state
    moving = _norm(g) > tolerance_J  # the others stay where they are
    direction = -_two_loop(g, history, inverse_Jx1xD)
    slope_z = _logits(direction, x_NxD)
    t_J, p_JxKxN = _line_search(
        z, slope_z, y_JxKxN, moving, _inner(g, direction), _inner(penalty_Jx1xD * w, direction),
        _inner(penalty_Jx1xD * direction, direction))
    move = t_J[:, None, None] * direction
    new_w, new_z = w + move, z + t_J[:, None, None] * slope_z
    new_g = jnp.where(moving[:, None, None], gradient(new_w, p_JxKxN), g)
    return (new_w, new_z, new_g, _remember(history, move, new_g - g), i + 1,
            iterations_J + moving)

  def unfinished(state):
    return jnp.any(_norm(state[2]) > tolerance_J) & (state[4] < max_iterations)

  z = _logits(start_JxKxD, x_NxD)
  pairs = jnp.zeros((MEMORY, *start_JxKxD.shape))
  state = (start_JxKxD, z, gradient(start_JxKxD, _probabilities(z)),
           (pairs, pairs, jnp.zeros((MEMORY, len(c_J)))), 0, jnp.zeros(len(c_J), jnp.int32))
  w, _, g, _, _, iterations_J = jax.lax.while_loop(unfinished, step, state)
  return w, _norm(g), iterations_J


def _inner(a_JxKxD, b_JxKxD):
  return jnp.sum(a_JxKxD * b_JxKxD, axis=(1, 2))


def _norm(g_JxKxD):
  return jnp.sqrt(_inner(g_JxKxD, g_JxKxD))


def _remember(history, move, change):
  """Adds a pair; one without positive curvature (a problem that stands still) has no effect."""
  moves, changes, inverse = history
  curvature_J = _inner(move, change)
  new_J = jnp.where(curvature_J > 1e-30, 1 / jnp.maximum(curvature_J, 1e-30), 0)
  push = lambda stack, new: jnp.concatenate([stack[1:], new[None]])
  return push(moves, move), push(changes, change), push(inverse, new_J)


def _two_loop(g, history, inverse):
  """The gradient times L-BFGS's inverse Hessian, which starts from the diagonal `inverse`."""
  moves, changes, inverse_products = history
  q, factors = g, [None] * MEMORY
  for i in reversed(range(MEMORY)):
    factors[i] = inverse_products[i] * _inner(moves[i], q)
    q = q - factors[i][:, None, None] * changes[i]
  # The newest pair tells how far curvature has fallen since the start.
  scale_J = inverse_products[-1] * _inner(changes[-1], inverse * changes[-1])
  q = inverse * q / jnp.where(scale_J > 0, scale_J, 1)[:, None, None]
  for i in range(MEMORY):
    factor_J = factors[i] - inverse_products[i] * _inner(changes[i], q)
    q = q + factor_J[:, None, None] * moves[i]
  return q


def _line_search(z, slope_z, y, moving_J, slope_0_J, linear_J, square_J):
  """Step lengths [J] at which the slope has fallen to half its size, by either sign.

  The approximate Wolfe conditions of Hager and Zhang (2005): they look at slopes alone, which
  stay exact where differences of values are lost to rounding. The objective is convex along a
  direction: where its slope is negative the minimum lies ahead, where it is positive behind,
  so that a bracket closes around it.

  Args:
    z, slope_z: logits and their change per unit of step length [J, K, N].
    y: targets [J, K, N].
    moving_J: which problems search; the others take no step.
    slope_0_J: of the objective at the start.
    linear_J, square_J: slope of the penalty at the start, and its second derivative.

  Returns:
    Step lengths [J], and the probabilities [J, K, N] there.
  """
  moving_J &= slope_0_J < 0  # else only rounding is left

  def search(state):
    t, _, _, (low, slope_low), (high, slope_high), found, i = state
    p = _probabilities(z + t[:, None, None] * slope_z)
    slope = jnp.sum((p - y) * slope_z, axis=(1, 2)) / z.shape[2] + linear_J + t * square_J
    found |= jnp.abs(slope) <= _SLOPE_FALLS_TO * jnp.abs(slope_0_J)
    ahead = slope < 0
    low, slope_low, before, slope_before = (
        jnp.where(ahead, t, low), jnp.where(ahead, slope, slope_low), low, slope_low)
    high, slope_high = jnp.where(ahead, high, t), jnp.where(ahead, slope_high, slope)
    # Secant steps; within a bracket every other one halves it, ahead of all they may grow.
    inside = low - slope_low * (high - low) / (slope_high - slope_low)
    inside = jnp.where(i % 2 == 1, (low + high) / 2, inside)
    beyond = t - slope * (t - before) / jnp.maximum(slope - slope_before, 1e-30)
    beyond = jnp.clip(beyond, 1.5 * t, 10 * t)
    then = jnp.where(found, t, jnp.where(jnp.isinf(high), beyond, inside))
    return then, t, p, (low, slope_low), (high, slope_high), found, i + 1

  def unfinished(state):
    return (state[-1] == 0) | (~jnp.all(state[-2]) & (state[-1] < _MAX_SEARCH))

  t = jnp.where(moving_J, 1.0, 0.0)
  zero = jnp.zeros_like(t)
  state = (t, t, z, (zero, slope_0_J), (jnp.full_like(t, jnp.inf), zero), ~moving_J, 0)
  _, t, p, *_ = jax.lax.while_loop(unfinished, search, state)
  return t, p
