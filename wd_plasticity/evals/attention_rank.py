"""Pseudo-rank and other ranks of the attention products W_QK and W_VP of every head.

  python -m wd_plasticity.evals.attention_rank --config=configs/attention_rank.py \
      --checkpoint=runs/books --workdir=runs/books

Needs the weights alone, no data. What the products are and how they are computed:
analysis/attention_rank.py. Each checkpoint's result has the measures of every layer and
head, their means, and in its .npz the whole spectra.
"""

from collections.abc import Mapping

import jax
import numpy as np

from wd_plasticity import memory
from wd_plasticity.analysis import attention_rank as ar
from wd_plasticity.evals import attention_rank_plot, attention_rank_summary, program
from wd_plasticity.evals.results import finite
from wd_plasticity.evals.targets import Target
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.training import distributed

ITEM = "spectra"


def main(session: program.Session) -> None:
  """Computes what is not done yet, then draws and prints everything asked for."""
  config = session.config
  waiting = [t for t in session.targets
             if not session.results.is_done(t, ITEM, _settings(session, t))]
  if waiting:
    _compute(session, waiting)
  if distributed.is_first():
    results = [session.results.load(t, ITEM) for t in session.targets]
    attention_rank_summary.print_table(results)
    path = session.results.directory / "attention_rank.png"
    attention_rank_plot.save(results, path, config.name)
    session.print(f"plot: {path}")


def _settings(session: program.Session, target: Target) -> dict:
  config = session.config
  settings = {"threshold": config.threshold, "power": config.power}
  if target.model.qk_norm:
    settings["fold_qk_norm"] = config.fold_qk_norm
  return settings


def _compute(session: program.Session, targets: list[Target]) -> None:
  compiled, done = {}, 0
  groups = session.groups(targets, lambda t, n: memory.total(
      memory.spectra(t.model, session.mesh.shape, n)))
  with session.progress(len(targets), "checkpoints") as progress, ar.one_lapack_thread():

    def run(group):
      nonlocal done
      key = group[0].model, session.num_members(group)
      if key not in compiled:
        compiled[key] = session.compile(lambda p, model=key[0]: _spectra(p, model), (0,), key[1])
        progress.skip(done)
      spectra = jax.device_get(compiled[key](session.load(group)))
      for m, target in enumerate(group):
        of_member = {name: s_MxNxHxK[m] for name, s_MxNxHxK in spectra.items()}
        values = summarise(of_member, target.model, **_settings(session, target))
        session.results.write(target, ITEM, _settings(session, target), values, arrays=of_member)
      done += len(group)
      progress.update(done, checkpoint=group[-1].name)

    session.evaluate([(group,) for group in groups], run, divisible=False)


def _spectra(params, model: ModelConfig) -> dict[str, jax.Array]:
  """Spectra [N, H, K] of one member; with a QK-norm W_QK without and with its gains."""
  spectra = ar.attention_spectra(params, model)
  if model.qk_norm:
    spectra["qk_folded"] = ar.query_key_spectra(params, model, fold_qk_norm=True)
  return spectra


def summarise(spectra: Mapping[str, np.ndarray], model: ModelConfig, *, threshold: float,
              power: int, fold_qk_norm: bool = False) -> dict:
  """The values of a result.

  Args:
    spectra: [N, H, K] by name: "qk", "vp", and "qk_folded" where the model has a QK-norm.
    model: its sizes.
    threshold, power: of the pseudo-rank.
    fold_qk_norm: which W_QK `pseudo_rank` is of.

  Returns:
    head_dim; pseudo_rank: {"qk", "vp"}, means over layers and heads as a share of the head
    dimension; for each name of `spectra` {"heads": {measure: [layer][head]}, "layers":
    {measure: [layer]}, "mean": {measure: value}} with the measures of
    `analysis.attention_rank.measures` and pseudo_rank_share, over the head dimension.
    Layers and the mean are plain means over heads. None for what is not finite.
  """
  values = {"head_dim": model.head_dim}
  for name, s_NxHxK in spectra.items():
    found = ar.measures(s_NxHxK, threshold=threshold, power=power)
    found["pseudo_rank_share"] = found["pseudo_rank"] / model.head_dim
    values[name] = {
        "heads": found,
        "layers": {k: v.mean(axis=1) for k, v in found.items()},
        "mean": {k: v.mean() for k, v in found.items()}}
  qk = "qk_folded" if fold_qk_norm and model.qk_norm else "qk"
  values["pseudo_rank"] = {"qk": values[qk]["mean"]["pseudo_rank_share"],
                           "vp": values["vp"]["mean"]["pseudo_rank_share"]}
  return finite(values)


if __name__ == "__main__":
  program.run("attention_rank", main)
