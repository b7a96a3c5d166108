"""Loss on training documents and on held-out ones, their gap, and loss by token frequency.

  python -m wd_plasticity.evals.overfit --config=configs/overfit.py \
      --checkpoint=runs/books --workdir=runs/books

Every checkpoint is evaluated on two token sets: `trained_on`, evenly spaced records among those
that it has read in pretraining (which follow from its seed and its step), and `validation`,
evenly spaced records of documents held out. `share_read` is the share of the training records
that had been read. All errors are over documents (analysis/token_frequency.py): those of the gap
say how far it would move with other documents, and are as wide as these differ; between
checkpoints of one seed and step the documents are the same, so that differences are known much
better, see the table's last column and the plot.

Of a model that was imported with data it is not known which records it has read: its training
side is of all of them, and `share_read` is empty.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from wd_plasticity import memory
from wd_plasticity.analysis import statistics
from wd_plasticity.analysis import token_frequency as tf
from wd_plasticity.data import loader
from wd_plasticity.data.prepare import Prepared
from wd_plasticity.evals import overfit_plot, overfit_summary, program, record_losses
from wd_plasticity.evals.results import finite
from wd_plasticity.evals.targets import Target
from wd_plasticity.files import parse_json, write_json
from wd_plasticity.training import distributed

ITEM = "losses"


def main(session: program.Session) -> None:
  """Evaluates what is not done yet, then draws and prints everything asked for."""
  config = session.config
  settings = {k: v for k, v in session.settings().items() if k != "batch_size"}
  settings["training_side"] = "records read"
  waiting: dict[tuple, list[Target]] = {}
  for target in session.targets:
    if not session.results.is_done(target, ITEM, settings):
      key = target.meta["data_fingerprint"], _reading(session.pretraining_data(target), target)
      waiting.setdefault(key, []).append(target)
  work = [(group, reading) for (_, reading), targets in waiting.items()
          for group in session.groups(targets, _need(session))]
  if work:
    _evaluate(session, settings, work)
  if distributed.is_first():
    rows = overfit_summary.read(session.results, session.targets, ITEM)
    overfit_summary.print_table(rows)
    path = session.results.directory / "overfit.png"
    overfit_plot.save(rows, path, config.name)
    session.print(f"plot: {path}")


@dataclasses.dataclass(frozen=True)
class _Reading:
  """Which of n training records a checkpoint has read: the first `positions` of a seed's order.

  Where all have been read, or it is not known which, there is no seed.
  """
  positions: int
  seed: int | None
  known: bool = True

  def indices(self, num_records: int, wanted: int) -> np.ndarray:
    return loader.read_records(self.positions, num_records, self.seed or 0, wanted)

  def share(self, num_records: int) -> float | None:
    return min(1.0, self.positions / num_records) if self.known else None


def _reading(prepared: Prepared, target: Target) -> _Reading:
  count = len(prepared.training_records)
  if not target.order_known:
    return _Reading(count, None, known=False)
  positions = target.step * target.pretraining["train"]["global_batch_size"]
  return _Reading(count, None) if positions >= count else _Reading(positions, target.seed)


@dataclasses.dataclass(frozen=True)
class _Data:
  """The token sets and the frequency bins of checkpoints that have read the same records."""
  reading: _Reading
  records: dict[str, Any]
  sets: dict[str, tf.TokenSet]
  bins: tf.Bins
  vocab_size: int
  end_of_document: int


def _open_data(session: program.Session, target: Target, before: _Data | None = None) -> _Data:
  """Those of a target; `before` if it has read the same, or what of it is the same."""
  prepared = session.pretraining_data(target)
  config, tokenizer, reading = session.config, prepared.tokenizer, _reading(prepared, target)
  size, end, training = tokenizer.vocab_size, tokenizer.eos_id, prepared.training_records
  validation = prepared.records["validation"]
  alike = before is not None and before.records["validation"] is validation
  if alike and before.reading == reading:
    return before
  read = tf.choose_tokens(training, reading.indices(len(training), config.sequences), end, size,
                          (0, len(prepared.records["train"])))
  if alike:
    return dataclasses.replace(before, reading=reading, sets=before.sets | {"trained_on": read})
  held_out = tf.choose_tokens(
      validation, loader.spaced(len(validation), config.sequences), end, size)
  counts_V = _training_counts(session, prepared, size)
  return _Data(
      reading=reading, records={"trained_on": training, "validation": validation},
      sets={"trained_on": read, "validation": held_out},
      bins=tf.make_bins(counts_V, config.frequency.binning, config.frequency.bins),
      vocab_size=size, end_of_document=end)


def _training_counts(session: program.Session, prepared, vocab_size: int) -> np.ndarray:
  """Occurrences of each token id in the training corpus [V], counted once per data set."""
  path = session.results.directory / f"token_counts_{prepared.fingerprint[:16]}.json"
  try:
    known = parse_json(path.read_bytes())
    if known["data_fingerprint"] == prepared.fingerprint and len(known["counts"]) == vocab_size:
      counts_V = np.array(known["counts"])
      if counts_V.shape == (vocab_size,) and counts_V.dtype.kind == "i" and counts_V.min() >= 0:
        return counts_V
  except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
    pass  # it only saves time: count again when it is missing or damaged
  session.print("counting the tokens of the training corpus")
  # The parts of prepared.training_records, which are read in chunks without a copy.
  counts_V = sum(tf.count_tokens(prepared.records[name], vocab_size)
                 for name in ("train", "train_subset"))
  if distributed.is_first():
    write_json(path, {"data_fingerprint": prepared.fingerprint, "counts": counts_V.tolist()})
  return counts_V


def _need(session: program.Session):
  """Bytes of a device for members like a target, see `Session.groups`."""
  rows = session.rows(session.config.batch_size) // session.row_shares
  return lambda t, n: memory.total(memory.reading(
      t.model, session.mesh.shape, n, tokens=rows * t.sequence_length, length=t.sequence_length))


def _evaluate(session: program.Session, settings: dict,
              work: Sequence[tuple[Sequence[Target], _Reading]]) -> None:
  compiled, data, done = {}, None, 0
  total = sum(_num_records(session, reading, group[0]) * len(group) for group, reading in work)
  with session.progress(total, "records") as progress:

    def run(group, reading):
      nonlocal data, done
      if not reading.known:
        progress.print(f"note: it is not known which records {group[0].name} has read, as it was "
                       "imported; its training side is of all of them.")
      data = _open_data(session, group[0], data)
      key = group[0].model, session.num_members(group), data.end_of_document
      if key not in compiled:
        compiled[key] = record_losses.compile_losses(session, *key)
        progress.skip(done)
      token_losses = functools.partial(compiled[key], session.load(group))
      rows, read = session.rows(session.config.batch_size), done
      sums = {}
      for name, tokens in data.sets.items():
        sums[name] = np.zeros((len(group), len(tokens.cell_counts)))
        for start, losses_MxBxL in record_losses.batches(
            session, token_losses, data.records[name], tokens.indices, rows):
          cells_BxL = tokens.cells[start:start + rows]
          tf.add_losses(sums[name], cells_BxL, losses_MxBxL[:len(group), :len(cells_BxL)])
          read += len(cells_BxL) * len(group)
          progress.update(read, checkpoint=group[0].name)
      for m, target in enumerate(group):
        values, arrays = _summarise(
            session, data, target, {name: s[m] for name, s in sums.items()})
        session.results.write(target, ITEM, settings, values, arrays=arrays)
      done = read

    session.evaluate(work, run)


def _num_records(session: program.Session, reading: _Reading, target: Target) -> int:
  validation = session.pretraining_data(target).records["validation"]
  return sum(min(session.config.sequences, n) or n for n in (reading.positions, len(validation)))


@np.errstate(invalid="ignore")  # a member may have diverged
def _summarise(session: program.Session, data: _Data, target: Target,
               sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
  """Values and arrays of one checkpoint from its losses summed over cells."""
  size, min_count = data.vocab_size, session.config.frequency.min_count
  num_records, width = data.records["trained_on"].shape
  # Of an imported model the tokens may not be known, and are then 0.
  values = {"tokens": target.tokens,
            "epochs": target.tokens / (num_records * (width - 1)) if target.tokens else None,
            "share_read": data.reading.share(num_records)}
  arrays, frequent, bins = {}, {}, {}
  for name, tokens in data.sets.items():
    losses = sums[name]
    frequent[name] = tf.frequent_types(tokens, size, min_count)
    by_document, counts = tokens.document_sums(losses), tokens.document_counts()
    bins[name] = tf.bin_means(tokens, losses, data.bins)
    values[name] = statistics.cluster_mean(by_document, counts, tokens.documents) | {
        "records": len(tokens.indices),
        "balanced": tf.balanced_mean(tokens, losses, frequent[name])}
    arrays |= {
        f"{name}_documents": tokens.documents,
        f"{name}_document_sums": by_document, f"{name}_document_counts": counts,
        f"{name}_bin_sums": tokens.bin_sums(losses, data.bins),
        f"{name}_bin_counts": tokens.bin_sums(tokens.cell_counts, data.bins),
        f"{name}_type_sums": tokens.type_sums(losses, size),
        f"{name}_type_counts": tokens.type_sums(tokens.cell_counts, size)}
  values["gap"] = tf.difference(values["validation"], values["trained_on"])
  # Over the same token ids: those of one set only would make a difference of their own.
  both = frequent["validation"] & frequent["trained_on"]
  balanced = [tf.balanced_mean(data.sets[name], sums[name], both)
              for name in ("validation", "trained_on")]
  values["balanced_gap"] = tf.difference(*balanced) | {"n": balanced[0]["n"]}
  values["bins"] = [
      {"low": float(data.bins.low[k]), "high": float(data.bins.high[k]),
       "types": int(data.bins.types[k]), "type_share": float(data.bins.types[k] / size),
       "training_token_share": float(data.bins.mass[k]),
       **{name: bins[name][k] | {"token_share": bins[name][k]["n"] / values[name]["n"]}
          for name in overfit_summary.SETS},
       "gap": tf.difference(bins["validation"][k], bins["trained_on"][k])}
      for k in range(len(data.bins))]
  return finite(values), arrays


if __name__ == "__main__":
  program.run("overfit", main)
