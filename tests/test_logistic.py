"""Logistic regression against scikit-learn, and the optimum's own conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from wd_plasticity.analysis import logistic
from wd_plasticity.errors import UserError

STRENGTHS = np.array([1e-3, 3e-2, 1.0], np.float32)


def _data(n, d, num_classes, seed=0):
  """Correlated features whose scales span two orders, and labels that partly follow them."""
  random = np.random.default_rng(seed)
  mixing = random.normal(size=(d, d)) * np.logspace(0, -2, d)[:, None]
  labels = random.integers(0, num_classes, n)
  x = (random.normal(size=(num_classes, d))[labels] * 0.5 + random.normal(size=(n, d))) @ mixing
  return (3 + x).astype(np.float32), labels.astype(np.int32)


def _reference(x, labels, c):
  """scikit-learn's solution in float64, and its objective."""
  model = LogisticRegression(C=float(c), solver="newton-cholesky", tol=1e-9).fit(x, labels)
  losses = -model.predict_log_proba(x)[np.arange(len(x)), labels]
  return model, 0.5 * np.sum(model.coef_**2) + float(c) * losses.sum()


_fit = jax.jit(logistic.fit, static_argnames=("num_classes", "together", "gap"))
_objective, _predict = jax.jit(logistic.objective), jax.jit(logistic.predict)


def _standardised(*arrays):
  made = [np.array(x) for x in logistic.standardise(*map(jnp.array, arrays))]
  return made if len(made) > 1 else made[0]


@pytest.mark.parametrize("num_classes,together", [(2, False), (4, True)])
def test_optimum_is_that_of_scikit_learn(num_classes, together):
  x, labels = _data(600, 12, num_classes)
  x, x_test = _standardised(x[:300], x[300:])
  labels, labels_test = labels[:300], labels[300:]
  # Every problem has its own labels and its own strength.
  flipped = np.where(np.arange(300) % 5 == 0, (labels + 1) % num_classes, labels)
  labels_JxN = np.stack([labels, flipped, labels])
  found = _fit(x, labels_JxN, STRENGTHS, num_classes=num_classes, together=together, gap=1e-9)
  objectives = _objective(found, x, labels_JxN, STRENGTHS)
  predicted = _predict(found, x_test)
  for j, c in enumerate(STRENGTHS):
    model, objective = _reference(x.astype(np.float64), labels_JxN[j], c)
    assert objectives[j] == pytest.approx(objective, rel=1e-5)
    np.testing.assert_allclose(found.weights_JxKxD[j], model.coef_, atol=2e-3)
    np.testing.assert_allclose(found.intercepts_JxK[j] - found.intercepts_JxK[j, 0],
                               model.intercept_ - model.intercept_[0], atol=2e-3)
    accuracy = np.mean(predicted[j] == labels_test)
    assert abs(accuracy - np.mean(model.predict(x_test) == labels_test)) <= 0.005
    _check_gradient(found, j, x, labels_JxN[j], c)
  assert np.all(found.iterations_J < 40)  # a hundred or more without the principal axes


def _check_gradient(found, j, x, labels, c):
  """It vanishes, in double precision."""
  x, w, b = (np.asarray(a, np.float64) for a in (
      x, found.weights_JxKxD[j], found.intercepts_JxK[j]))
  z = x @ w.T + b
  if z.shape[1] == 1:
    residual = 1 / (1 + np.exp(-z)) - labels[:, None]
  else:
    p = np.exp(z - z.max(1, keepdims=True))
    residual = p / p.sum(1, keepdims=True) - np.eye(z.shape[1])[labels]
  gradient = np.concatenate([w.T + c * x.T @ residual, c * residual.sum(0)[None]])
  # What strong convexity asks for an objective this close to its minimum.
  limit = min(max(np.sqrt(2e-9 / (c * len(x))), 3e-7), 1e-5)
  assert np.linalg.norm(gradient) / (c * len(x)) < limit + 1e-7
  assert found.gradient_norm_J[j] <= limit


def test_separable_data_and_useless_features():
  random = np.random.default_rng(0)
  labels = np.repeat([0, 1], 150).astype(np.int32)
  x = random.normal(size=(300, 12))
  x[:, 0] = np.sign(labels - 0.5) * (1 + random.random(300))
  x[:, 1] = 7.0
  x = _standardised(x.astype(np.float32))
  assert np.all(x[:, 1] == 0)  # a constant feature
  strengths = np.array([1e-4, 1.0, 1e3], np.float32)
  labels_JxN = np.tile(labels, (3, 1))
  found = _fit(x, labels_JxN, strengths, num_classes=2, together=False, gap=1e-9)
  assert np.all(_predict(found, x)[1:] == labels)
  objectives = _objective(found, x, labels_JxN, strengths)
  for j, c in enumerate(strengths):
    assert objectives[j] == pytest.approx(_reference(x.astype(np.float64), labels, c)[1], rel=1e-4)
  # Features of no use at all: the intercepts alone, which are the classes' shares.
  skewed = np.tile(np.repeat([0, 1], [225, 75]).astype(np.int32), (3, 1))
  found = _fit(np.zeros((300, 12), np.float32), skewed, strengths, num_classes=2, together=False,
               gap=1e-9)
  np.testing.assert_allclose(found.intercepts_JxK[:, 0], np.log(75 / 225), atol=1e-4)


def test_fewer_examples_than_features():
  x, labels = _data(40, 90, 3)
  x, labels_JxN = _standardised(x), np.tile(labels, (3, 1))
  found = _fit(x, labels_JxN, STRENGTHS, num_classes=3, together=True)
  objectives = _objective(found, x, labels_JxN, STRENGTHS)
  for j, c in enumerate(STRENGTHS):
    assert objectives[j] == pytest.approx(_reference(x.astype(np.float64), labels, c)[1], rel=1e-4)


def test_probe_chooses_on_held_out_rows_and_fits_again_on_all():
  random = np.random.default_rng(1)
  x, labels = _data(500, 10, 3)
  noisy = x + random.normal(size=x.shape).astype(np.float32) * x.std(0)
  sets, tests = np.stack([x[:350], noisy[:350]]), np.stack([x[350:], noisy[350:]])
  labels, labels_test = labels[:350], labels[350:]
  fit_rows, held_out = logistic.stratified_split(labels, 0.2, seed=0)
  permuted = random.permutation(labels)
  found, together = (
      logistic.probes(sets, tests, np.stack([labels, permuted]), fit_rows, held_out, STRENGTHS,
                      num_classes=3, together=t) for t in (False, True))
  for a, b in zip(found, together, strict=True):
    np.testing.assert_allclose(a, b, rtol=0.01, atol=1e-4)
  for p in range(2):
    x, x_test = (a.astype(np.float64) for a in _standardised(sets[p], tests[p]))
    tried = [_reference(x[fit_rows], labels[fit_rows], c)[0] for c in STRENGTHS]
    losses = [-model.predict_log_proba(x[held_out])[np.arange(len(held_out)), labels[held_out]]
              for model in tried]
    np.testing.assert_allclose(found.held_out_loss_S[p], np.mean(losses, axis=1), rtol=1e-4)
    np.testing.assert_allclose(
        found.held_out_S[p], [model.score(x[held_out], labels[held_out]) for model in tried],
        atol=1e-6)
    chosen = np.argmin(np.mean(losses, axis=1))
    assert found.chosen[p] == chosen
    for k, these in enumerate((labels, permuted)):
      model, _ = _reference(x, these, STRENGTHS[chosen])
      assert np.mean(found.predictions_2xT[p, k] != model.predict(x_test)) <= 0.005
      assert found.train_2[p, k] == pytest.approx(model.score(x, these), abs=0.005)
  right = np.mean(found.predictions_2xT[:, 0] == labels_test, axis=1)
  assert right[0] > right[1] + 0.05  # noise in the features costs accuracy
  assert found.train_2[0, 0] > found.train_2[0, 1] + 0.2


def test_split_keeps_the_shares_of_classes():
  labels = np.array([0] * 50 + [1] * 10 + [2])
  fit_rows, held_out = logistic.stratified_split(labels, 0.2, seed=3)
  assert np.bincount(labels[held_out], minlength=3).tolist() == [10, 2, 0]
  assert sorted([*fit_rows, *held_out]) == list(range(61))
  again = logistic.stratified_split(labels, 0.2, seed=3)[1]
  other = logistic.stratified_split(labels, 0.2, seed=4)[1]
  assert again.tolist() == held_out.tolist() != other.tolist()
  with pytest.raises(UserError, match="2 training examples leave none"):
    logistic.stratified_split(np.array([0, 1]), 0.2, seed=0)
