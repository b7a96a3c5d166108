"""Linear probes: what can be read off the frozen hidden states of a base model, layer by layer.

  python -m wd_plasticity.evals.probe --config=configs/probe.py \
      --checkpoint=runs/books --workdir=runs/books

Texts of a labelled task go through the model without a special token, cut at the length of its
pretraining records. Their states at the embedding and after every layer, pooled as mean over
the tokens and as last token, are standardised, and multinomial logistic regression is fitted
to each (analysis/logistic.py); its L2 strength is that of the least loss on held-out training
texts. Beside the accuracy on the test split stand

- the majority class of the training texts,
- *untrained*: the same probe on the same network at its initial parameters,
- *control* (after Hewitt and Liang 2019): the same probe, of the same strength, fitted to
  permuted labels. On test texts, their labels permuted as well, nothing above the larger classes'
  share is possible: more would be a leak. The share of the permuted training labels that it fits
  tells how much the probe can learn by heart.

Texts that occur more than once, in training or in both splits, are counted and said, not left out.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from wd_plasticity import members as members_lib
from wd_plasticity import memory
from wd_plasticity.analysis import logistic, pooled_states, statistics
from wd_plasticity.errors import UserError
from wd_plasticity.evals import probe_data, probe_report, program
from wd_plasticity.evals.targets import Target
from wd_plasticity.models import decoder
from wd_plasticity.training import distributed
from wd_plasticity.training import mesh as mesh_lib

_HOST_BYTES = 16e9  # of the states of members that are evaluated together
_FIT_BYTES_CPU = 1e9  # of the features that are fitted together, on a CPU
_COPIES = 6  # of features while they are fitted: standardised, rotated, parts of them
_DIVIDED = P(mesh_lib.AXES)  # over all devices

Arrays = dict[str, np.ndarray]


def main(session: program.Session) -> None:
  """Probes what is not done yet, then draws and prints everything asked for."""
  tasks = {name: probe_data.load(session, name) for name in session.config.tasks}
  for task in tasks.values():
    for note in task.notes:
      session.print(f"{note}.")
  waiting = {}
  for target in session.targets:
    names = tuple(name for name, task in tasks.items()
                  if not session.results.is_done(target, name, task.settings))
    if names:
      waiting.setdefault((names, target.sequence_length), []).append(target)
  work = [(group, [tasks[n] for n in names]) for (names, _), targets in waiting.items()
          for group in _groups(session, targets, [tasks[n] for n in names])]
  if work:
    _evaluate(session, work)
  if distributed.is_first():
    results = [session.results.load(t, name) for name in tasks for t in session.targets]
    probe_report.print_table(results)
    path = session.results.directory / "probe.png"
    probe_report.save_plot(results, path, session.config.name)
    session.print(f"plot: {path}")


def _groups(session: program.Session, targets: Sequence[Target],
            tasks: Sequence[probe_data.LabelledTask]) -> list[list[Target]]:
  """Members that are evaluated together: those whose states also fit into the host's memory."""
  tokens = session.config.batch_tokens / session.row_shares
  def need(t, members):  # the untrained networks are there as well
    return memory.total(memory.reading(t.model, session.mesh.shape, members, tokens=tokens,
                                       length=t.sequence_length, copies=2))
  host = min(_HOST_BYTES, memory.host_memory() / 2)
  groups = []
  for group in session.groups(targets, need):
    model, num_texts = group[0].model, max(len(t.texts) for t in tasks)
    per_member = 4 * (model.num_layers + 1) * len(pooled_states.POOLINGS) * num_texts * model.width
    groups += members_lib.chunks(group, max(1, int(host / per_member)))
  return groups


def _evaluate(session: program.Session,
              work: Sequence[tuple[Sequence[Target], Sequence[probe_data.LabelledTask]]]) -> None:
  """Probes groups of members, and each network untrained, once per seed."""
  def network(target, task):
    return target.model, target.meta["tokenizer_fingerprint"], target.sequence_length, (
        target.seed), task.name
  untrained = {network(t, task): task for group, tasks in work for t in group for task in tasks}
  total = sum(len(t.texts) for t in untrained.values()) + sum(
      len(group) * len(t.texts) for group, tasks in work for t in tasks)
  found: dict[Any, Arrays] = {}  # of the networks untrained
  with session.progress(total, "texts") as progress:
    probing, done = _Probing(session, progress), 0

    def run(group, tasks):
      nonlocal done
      probing.done = done
      target, params = group[0], session.load(group)
      for task in tasks:
        texts, cut = probing.tokenize(task, target)
        new = {network(t, task): t.seed for t in group if network(t, task) not in found}
        if new:
          start = (_initial(session, target.model, seed) for seed in new.values())
          made = probing.probe(session.stack(start, session.num_members(new)), target.model, task,
                               texts, [f"untrained, seed {seed}" for seed in new.values()])
          found.update(zip(new, made, strict=True))
        made = probing.probe(params, target.model, task, texts, [t.name for t in group])
        for t, arrays in zip(group, made, strict=True):
          _write(session, t, task, cut, arrays, found[network(t, task)])
      done = probing.done

    session.evaluate(work, run)


def _initial(session: program.Session, model, seed: int):
  """The parameters that a pretraining with this seed starts from."""
  def init():
    return decoder.init_params(model, jax.random.key(seed))
  specs = mesh_lib.parameter_specs(jax.eval_shape(init))
  return jax.jit(init, out_shardings=mesh_lib.shardings(session.mesh, specs))()


class _Probing:
  """States and fits of stacked members, with what is compiled or tokenized only once.

  `done` counts texts, for the progress.
  """

  def __init__(self, session: program.Session, progress):
    self._session, self._progress, self.done = session, progress, 0
    self._states, self._fits, self._texts = {}, {}, {}

  def tokenize(self, task: probe_data.LabelledTask, target: Target):
    key = task.name, target.meta["tokenizer_fingerprint"], target.sequence_length
    if key not in self._texts:
      self._texts[key] = probe_data.tokenize(task, target.tokenizer, target.sequence_length)
    return self._texts[key]

  def probe(self, params_M, model, task: probe_data.LabelledTask, texts: Sequence[np.ndarray],
            names: Sequence[str]) -> list[Arrays]:
    """Probes every layer and pooling of the members called `names`; arrays [N + 1, 2, ...]."""
    session, before = self._session, self.done
    def report(texts_done):
      self.done = before + texts_done * len(names)
      self._progress.update(self.done, task=task.name, checkpoint=names[0])
    states = self._compiled_states(model, jax.tree.leaves(params_M)[0].shape[0])
    x_MxNx2xTxD = pooled_states.collect(
        lambda tokens, lengths: states(params_M, session.put(tokens), session.put(lengths)),
        texts, max(1, session.config.batch_tokens // session.parts), session.row_shares,
        report)[:len(names)]
    for name, x in zip(names, x_MxNx2xTxD, strict=True):
      if not np.isfinite(x).all():
        raise UserError(f"hidden states of {name} are not finite; leave it out of --checkpoint.")
    *shape, num_texts, width = x_MxNx2xTxD.shape
    found = self._fit(x_MxNx2xTxD.reshape(-1, num_texts, width), task)
    return [{k: v.reshape(*shape, *v.shape[1:])[m] for k, v in found.items()}
            for m in range(len(names))]

  def _compiled_states(self, model, num_members: int):
    key = model, num_members
    if key not in self._states:
      def states(params, tokens_BxL, lengths_B):
        return pooled_states.pooled_states(params, model, tokens_BxL, lengths_B)
      self._states[key] = self._session.compile(states, (0, None, None), num_members)
    return self._states[key]

  def _fit(self, x_PxTxD: np.ndarray, task: probe_data.LabelledTask) -> Arrays:
    """Fits all sets of features, as many at once as the devices' memory takes."""
    session, n = self._session, task.num_train
    count, devices = len(x_PxTxD), session.mesh.size
    limit = _FIT_BYTES_CPU if jax.default_backend() == "cpu" else memory.device_limit() / 4
    at_once = devices * max(1, int(limit / session.parts / (_COPIES * x_PxTxD[0].nbytes)))
    at_once = min(at_once, -(-count // devices) * devices)
    made = []
    for start in range(0, count, at_once):
      part = x_PxTxD[start:start + at_once]
      part = np.concatenate([part, np.repeat(part[-1:], at_once - len(part), axis=0)])
      probe = self._compiled_fit(task)(session.put(part[:, :n], _DIVIDED),
                                       session.put(part[:, n:], _DIVIDED))
      made.append(jax.tree.map(np.asarray, probe)._asdict())
    return {k: np.concatenate([m[k] for m in made])[:count] for k in made[0]}

  def _compiled_fit(self, task: probe_data.LabelledTask):
    if task.name not in self._fits:
      strengths = np.array(sorted(self._session.config.inverse_strengths), np.float32)
      together = jax.default_backend() != "cpu"
      def fit(train, test):
        return logistic.probes(train, test, task.train_2xN, task.fit_rows, task.held_out_rows,
                               strengths, num_classes=len(task.classes), together=together)
      # Each device fits its own, without waiting for those of others to converge.
      divided = jax.shard_map(fit, mesh=self._session.mesh, in_specs=_DIVIDED,
                              out_specs=_DIVIDED, check_vma=False)
      self._fits[task.name] = jax.jit(
          divided, out_shardings=mesh_lib.sharding(self._session.mesh, program.REPLICATED))
    return self._fits[task.name]


def _write(session: program.Session, target: Target, task: probe_data.LabelledTask,
           cut: Sequence[int], trained: Arrays, untrained: Arrays) -> None:
  test, classes = task.test_2xT[0], task.classes
  majority = np.bincount(task.train_2xN[0]).argmax()
  strengths = sorted(session.config.inverse_strengths)
  values = {
      "title": task.title, "poolings": list(pooled_states.POOLINGS), "classes": classes.tolist(),
      "train": {"n": task.num_train, "cut": cut[0]}, "test": {
          "n": len(test), "cut": cut[1], "in_training": task.in_training},
      "notes": task.notes,
      "majority": statistics.proportion(int((test == majority).sum()), len(test)),
      **_summarise(task, strengths, trained), "untrained": _summarise(task, strengths, untrained)}
  dtype = np.int8 if classes.max() < 2**7 else np.int16 if classes.max() < 2**15 else np.int64
  arrays = {"labels": np.where(test < 0, -1, classes[test]),
            "predictions": classes[trained["predictions_2xT"][..., 0, :]],
            "untrained_predictions": classes[untrained["predictions_2xT"][..., 0, :]]}
  session.results.write(target, task.name, task.settings, values,
                        arrays={k: v.astype(dtype) for k, v in arrays.items()})


def _summarise(task: probe_data.LabelledTask, strengths: Sequence[float], made: Arrays) -> dict:
  """Values [layer][pooling] of one network, and where its loss on held-out texts is least."""
  num_test = task.test_2xT.shape[1]
  right_Nx2x2 = (made["predictions_2xT"] == task.test_2xT).sum(-1)
  accuracy = [[statistics.proportion(int(k), num_test) for k in row] for row in right_Nx2x2[..., 0]]
  def of_chosen(values):
    return np.take_along_axis(values, made["chosen"][..., None], -1)[..., 0]
  held_out_loss = of_chosen(made["held_out_loss_S"])
  held_out = _share(of_chosen(made["held_out_S"]), len(task.held_out_rows))
  train = _share(made["train_2"], task.num_train)
  layer, pooling = np.unravel_index(np.argmin(held_out_loss), held_out_loss.shape)
  control = right_Nx2x2[..., 1] / num_test
  return {
      "accuracy": [[a["value"] for a in row] for row in accuracy],
      **{f"accuracy_{k}": [[a[k] for a in row] for row in accuracy] for k in ("se", "low", "high")},
      "train_accuracy": train[..., 0].tolist(),
      "held_out_accuracy": held_out.tolist(), "held_out_loss": held_out_loss.tolist(),
      "inverse_strength": np.array(strengths)[made["chosen"]].tolist(),
      "control_accuracy": control.tolist(),
      "control_train_accuracy": train[..., 1].tolist(),
      "selectivity": (right_Nx2x2[..., 0] / num_test - control).tolist(),
      "gradient_norm": made["gradient_norm"].tolist(),
      "best": accuracy[layer][pooling] | {
          "layer": int(layer), "pooling": pooled_states.POOLINGS[pooling],
          "control_accuracy": float(control[layer, pooling])}}


def _share(float32: np.ndarray, n: int) -> np.ndarray:
  """Shares of n examples in double precision."""
  return np.round(float32.astype(np.float64) * n) / n


if __name__ == "__main__":
  program.run("probe", main)
