"""Speed of probes: all sets of features at once, beside scikit-learn, one fit after another.

  python -m wd_plasticity.bench.probe --width=96
  python -m wd_plasticity.bench.probe --width=512 --sets=3

Features are made up, with the power-law spectrum of hidden states. Both get them standardised,
minimise the same function for every set and strength, and predict the same test examples. In
each round both fit another share of the sets, in turns. scikit-learn runs with its defaults but
for the limit on iterations. On a busy machine its threads wait for each other, which makes it
many times slower: OPENBLAS_NUM_THREADS=1 gives it a fair chance.
"""

import functools
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from wd_plasticity import cli
from wd_plasticity.analysis import logistic
from wd_plasticity.bench import measure
from wd_plasticity.errors import UserError

_SETS = flags.DEFINE_integer("sets", 12, "Sets of features: members x layers x poolings.",
                             lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 8000, "Training examples.", lower_bound=10)
_TEST = flags.DEFINE_integer("test_examples", 2000, "Test examples.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 96, "Features of an example.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 4, "Classes.", lower_bound=2)
_STRENGTHS = flags.DEFINE_list("inverse_strengths", ["1e-3", "1e-2", "1e-1", "1"],
                               "scikit-learn's C of each fit.")


def _are_strengths(texts: Sequence[str]) -> bool:
  try:
    return bool(texts) and all(0 < float(c) < math.inf for c in texts)
  except ValueError:
    return False


flags.register_validator(_STRENGTHS, _are_strengths, "must be positive numbers, such as 0.1,1")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Shares of the sets.", lower_bound=1)


def main(argv: Sequence[str]):
  del argv
  try:
    from sklearn.linear_model import LogisticRegression
  except ImportError as e:
    raise UserError("scikit-learn is not installed; run pip install scikit-learn.") from e
  if _SETS.value % _ROUNDS.value:
    raise UserError(f"--sets={_SETS.value} cannot be shared by --rounds={_ROUNDS.value}; choose a "
                    "multiple.")
  c_S = np.array([float(c) for c in _STRENGTHS.value], np.float32)
  per_round = _SETS.value // _ROUNDS.value
  together = jax.default_backend() != "cpu"
  fit = jax.jit(functools.partial(_fit_all, num_classes=_CLASSES.value, together=together))
  begin = time.perf_counter()
  run = fit.lower(*_features(per_round, 0), c_S).compile()
  compile_seconds = time.perf_counter() - begin
  rows, seconds, differences, iterations = [], ([], []), [], []
  for r in range(_ROUNDS.value):
    sets = _features(per_round, r)
    jax.block_until_ready(run(*sets, c_S))  # the first call also warms up
    begin = time.perf_counter()
    predicted, norms, steps = jax.block_until_ready(run(*sets, c_S))
    seconds[0].append(time.perf_counter() - begin)
    train, labels, test, labels_test = sets
    begin, theirs = time.perf_counter(), []
    for x, x_test in zip(train, test, strict=True):
      for c in c_S:
        model = LogisticRegression(C=float(c), max_iter=100_000).fit(x, labels)
        theirs.append(model.predict(x_test))
        iterations.append(int(model.n_iter_[0]))
    seconds[1].append(time.perf_counter() - begin)
    accuracies = [np.mean(p == labels_test, axis=-1) for p in (
        np.asarray(predicted).reshape(-1, _TEST.value), np.array(theirs))]
    differences.append(np.abs(accuracies[0] - accuracies[1]).max())
    rows.append((f"round {r + 1}", f"{seconds[0][-1]:.3f}", f"{seconds[1][-1]:.3f}",
                 f"{seconds[1][-1] / seconds[0][-1]:.1f}", f"{100 * differences[-1]:.2f}",
                 f"{int(np.max(steps))}", f"{max(iterations[-per_round * len(c_S):])}",
                 f"{float(np.max(norms)):.1e}"))
  ratio = np.median(np.array(seconds[1]) / np.array(seconds[0]))
  with_compilation = sum(seconds[1]) / (sum(seconds[0]) + compile_seconds)
  print(f"{_SETS.value} sets x {len(c_S)} strengths, {_EXAMPLES.value} examples of "
        f"{_WIDTH.value} features, {_CLASSES.value} classes, {jax.devices()[0].device_kind}")
  print(measure.table(("", "ours s", "scikit-learn s", "ratio", "accuracy differs by %",
                       "our iterations", "its iterations", "our gradient"), rows))
  print(f"{ratio:.1f} times as fast (median of rounds), {with_compilation:.1f} times with "
        f"{compile_seconds:.1f} s of compilation counted; accuracies differ by at most "
        f"{100 * max(differences):.2f} points")


def _fit_all(train_PxNxD, labels_N, test_PxTxD, labels_test_T, c_S, *, num_classes, together):
  """Predictions [P, S, T], gradient norms and iterations of every set and strength."""
  del labels_test_T
  labels_SxN = jnp.broadcast_to(labels_N, (len(c_S), len(labels_N)))
  def one(features):
    found = logistic.fit(features[0], labels_SxN, c_S, num_classes, together=together)
    return logistic.predict(found, features[1]), found.gradient_norm_J, jnp.max(found.iterations_J)
  return (jax.vmap(one) if together else functools.partial(jax.lax.map, one))(
      (train_PxNxD, test_PxTxD))


def _features(sets: int, seed: int):
  """Standardised training features, labels, test features and labels."""
  random = np.random.default_rng(seed)
  n, d, k = _EXAMPLES.value, _WIDTH.value, _CLASSES.value
  labels = random.integers(0, k, n + _TEST.value)
  spectrum = np.arange(1, d + 1) ** -0.5
  made = []
  for _ in range(sets):
    rotation = np.linalg.qr(random.normal(size=(d, d)))[0]
    centres = random.normal(size=(k, d)) * 0.1
    noise = random.normal(size=(len(labels), d))
    x = ((centres[labels] + noise) * spectrum) @ rotation
    x = (x - x[:n].mean(0)) / x[:n].std(0)
    made.append(x.astype(np.float32))
  made = np.stack(made)
  return made[:, :n], labels[:n].astype(np.int32), made[:, n:], labels[n:]


if __name__ == "__main__":
  cli.run(main)
