"""Logistic regression against scikit-learn, and the optimum's own conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from wd_plasticity.analysis import logistic
from wd_plasticity.errors import UserError

STRENGTHS = np.array([1e-3, 1e-1, 10.0], np.float32)


def _data(n, d, num_classes, seed=0):
  """Correlated features whose scales span three orders, and labels that partly follow them."""
  random = np.random.default_rng(seed)
  mixing = random.normal(size=(d, d)) * np.logspace(0, -3, d)[:, None]
  labels = random.integers(0, num_classes, n)
  x = (random.normal(size=(num_classes, d))[labels] * 0.5 + random.normal(size=(n, d))) @ mixing
  return (3 + x).astype(np.float32), labels.astype(np.int32)


def _reference(x, labels, c):
  """scikit-learn's solution in float64, and its objective."""
  model = LogisticRegression(C=float(c), tol=1e-8, max_iter=20_000).fit(x, labels)
  losses = -model.predict_log_proba(x)[np.arange(len(x)), labels]
  return model, 0.5 * np.sum(model.coef_**2) + float(c) * losses.sum()


_fit = jax.jit(logistic.fit, static_argnames=("num_classes", "tolerance", "max_iterations"))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_optimum_is_that_of_scikit_learn(num_classes):
  x, labels = _data(600, 12, num_classes)
  x_test, labels_test = _data(400, 12, num_classes, seed=0)
  x, x_test = (np.array(a) for a in logistic.standardise(jnp.array(x), jnp.array(x_test)))
  # Every problem has its own labels and its own strength.
  flipped = np.where(np.arange(600) % 5 == 0, (labels + 1) % num_classes, labels)
  labels_JxN = np.stack([labels, flipped, labels])
  found = _fit(x, labels_JxN, STRENGTHS, num_classes=num_classes, tolerance=1e-6)
  objectives = np.asarray(logistic.objective(found, x, labels_JxN, STRENGTHS))
  predicted = np.asarray(logistic.predict(found, x_test))
  for j, c in enumerate(STRENGTHS):
    model, objective = _reference(x.astype(np.float64), labels_JxN[j], c)
    assert objectives[j] == pytest.approx(objective, rel=1e-5)
    np.testing.assert_allclose(found.weights_JxDxK[j].T, model.coef_, atol=2e-3)
    np.testing.assert_allclose(found.intercepts_JxK[j] - found.intercepts_JxK[j, 0],
                               model.intercept_ - model.intercept_[0], atol=2e-3)
    accuracy = np.mean(predicted[j] == labels_test)
    assert abs(accuracy - np.mean(model.predict(x_test) == labels_test)) <= 0.005
  assert np.all(found.gradient_norm_J <= 1e-6)
  assert found.iterations < 60  # hundreds without the principal axes


def test_gradient_vanishes_at_the_optimum_in_double_precision():
  x, labels = _data(300, 8, 3)
  x = np.array(logistic.standardise(jnp.array(x))[0])
  found = _fit(x, np.tile(labels, (3, 1)), STRENGTHS, num_classes=3)
  for j, c in enumerate(STRENGTHS.astype(np.float64)):
    w, b = (np.asarray(a[j], np.float64) for a in found[:2])
    z = x.astype(np.float64) @ w + b
    p = np.exp(z - z.max(1, keepdims=True))
    residual = p / p.sum(1, keepdims=True) - np.eye(3)[labels]
    gradient = np.concatenate([w + c * x.T @ residual, c * residual.sum(0)[None]]) / (c * 300)
    assert np.linalg.norm(gradient) < 1.1 * logistic.TOLERANCE


def test_separable_data_and_useless_features():
  random = np.random.default_rng(0)
  labels = np.repeat([0, 1], 40).astype(np.int32)
  x = np.concatenate([np.sign(labels - 0.5)[:, None] * (1 + random.random((80, 1))),
                      np.full((80, 1), 7.0), random.normal(size=(80, 3))], 1).astype(np.float32)
  x = np.array(logistic.standardise(jnp.array(x))[0])
  assert np.all(x[:, 1] == 0)  # a constant feature
  found = _fit(x, labels[None], np.array([1e3], np.float32), num_classes=2)
  _, objective = _reference(x.astype(np.float64), labels, 1e3)
  assert np.all(logistic.predict(found, x)[0] == labels)
  assert logistic.objective(found, x, labels[None], np.array([1e3]))[0] == pytest.approx(
      objective, rel=1e-4)
  # Features of no use at all: the intercepts alone, which are the classes' shares.
  skewed = np.array([0] * 60 + [1] * 20, np.int32)
  found = _fit(np.zeros((80, 2), np.float32), skewed[None], np.array([1.0], np.float32),
               num_classes=2)
  assert found.intercepts_JxK[0, 0] == pytest.approx(np.log(20 / 60), abs=1e-3)


def test_fewer_examples_than_features():
  x, labels = _data(40, 90, 3)
  x = np.array(logistic.standardise(jnp.array(x))[0])
  found = _fit(x, np.tile(labels, (3, 1)), STRENGTHS, num_classes=3)
  for j, c in enumerate(STRENGTHS):
    _, objective = _reference(x.astype(np.float64), labels, c)
    assert logistic.objective(found, x, np.tile(labels, (3, 1)), STRENGTHS)[j] == pytest.approx(
        objective, rel=1e-4)


@pytest.mark.parametrize("batched", [False, True])
def test_probe_chooses_on_held_out_rows_and_fits_again_on_all(batched):
  random = np.random.default_rng(1)
  sets, tests = [], []
  for seed in range(2):
    x, labels = _data(500, 10, 3, seed=0)
    noise = random.normal(size=x.shape).astype(np.float32) * seed * x.std(0)
    sets.append((x + noise)[:350])
    tests.append((x + noise)[350:])
  labels, labels_test = labels[:350], labels[350:]
  fit_rows, held_out = logistic.stratified_split(labels, 0.2, seed=0)
  permuted = random.permutation(labels)
  found = logistic.probes(np.stack(sets), np.stack(tests), np.stack([labels, permuted]), fit_rows,
                          held_out, STRENGTHS, num_classes=3, batched=batched)
  accuracies = []
  for p, (x, x_test) in enumerate(zip(sets, tests, strict=True)):
    x, x_test = (np.array(a, np.float64) for a in
                 logistic.standardise(jnp.array(x), jnp.array(x_test)))
    held = [np.mean(_reference(x[fit_rows], labels[fit_rows], c)[0].predict(x[held_out])
                    == labels[held_out]) for c in STRENGTHS]
    np.testing.assert_allclose(found.held_out_S[p], held, atol=1e-6)
    assert found.chosen[p] == np.argmax(held)  # the first, the strongest penalty, of equals
    for k, these in enumerate((labels, permuted)):
      model, _ = _reference(x, these, STRENGTHS[np.argmax(held)])
      assert np.mean(found.predictions_2xT[p, k] != model.predict(x_test)) <= 0.005
      assert found.train_2[p, k] == pytest.approx(model.score(x, these), abs=0.005)
    accuracies.append(np.mean(found.predictions_2xT[p, 0] == labels_test))
  assert accuracies[0] > accuracies[1] + 0.05  # noise in the features costs accuracy
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
