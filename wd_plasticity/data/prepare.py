"""Prepares a data set: documents to fixed-length records of token ids, cached by content.

    python -m wd_plasticity.data.prepare --config=configs/x.py --cache_dir=/data/cache

prepares ahead what a training run prepares by itself when it starts.

The documents of a split are joined, each followed by the end of sequence (there is
no beginning of sequence), and cut into records of `sequence_length + 1` tokens;
neighbouring records share no token. What is left at the end of a split is dropped.

    <cache_dir>/<fingerprint>/   train.npy train_subset.npy validation.npy   [n, L+1]
                                 tokenizer/ stats.json
    <cache_dir>/source_hashes.json   hashes of source files, to start faster

The fingerprint covers the content of every source file, the tokenizer and all fields
that change the result, so a changed source is prepared anew. stats.json has a checksum of every
file of records, compared at each start; what is damaged is prepared anew, and that is said.
"""

import contextlib
import dataclasses
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags

from wd_plasticity import cli, errors, paths
from wd_plasticity.data import documents, sources, text_checks, tokenizers
from wd_plasticity.data import records as records_lib
from wd_plasticity.errors import UserError
from wd_plasticity.files import locked, parse_json, write_json

FORMAT = 1  # raised when the same input would be prepared differently
_BATCH_CHARACTERS = 4_000_000  # of text that is tokenised at once
_REPORT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A prepared data set, opened.

  Attributes:
    directory: where it lies.
    fingerprint: sha256 of everything that it was made from.
    tokenizer: its tokenizer.
    records: memory-mapped [n, L+1] of each split: train, train_subset, validation. The
      three share no document.
    training_records: train and train_subset as one, what a model is trained on.
    stats: documents, bytes, tokens and records of each split, what was dropped,
      bytes_per_token and tokens_per_document, characters that the tokenizer loses, and
      notes: sentences on what to know of text and tokenizer.
  """

  directory: str
  fingerprint: str
  tokenizer: tokenizers.Tokenizer
  records: dict[str, np.ndarray]
  training_records: records_lib.JoinedRecords
  stats: dict

  @property
  def tokenizer_fingerprint(self) -> str:
    return self.tokenizer.fingerprint


def prepare(data, cache_dir: str | os.PathLike, report: Callable[[str], None] = print,
            verify: bool = True) -> Prepared:
  """Opens the prepared data of a configuration, and prepares them first if need be.

  Args:
    data: the `data` section of a configuration.
    cache_dir: folder of prepared data, shared by runs and processes.
    report: called with lines of progress.
    verify: compare what is there with its checksums. One process of a run is enough.

  Raises:
    UserError: for a wrong field, unreadable sources, too little data or disk space.
  """
  train, validation, hashes = _sources(data, cache_dir)
  cache_dir = os.path.abspath(os.path.expanduser(cache_dir))
  fingerprint = _fingerprint(data, train, validation, hashes)
  hashes.save()
  directory = os.path.join(cache_dir, fingerprint[:32])
  prepared = _open(directory, fingerprint, report, verify)
  if prepared is not None:
    for note in prepared.stats.get("notes", ()):
      report(f"data: {note}")
    return prepared
  def waiting():
    report(f"data: another process prepares {directory}; waiting for it")
  with contextlib.ExitStack() as held:
    try:
      held.enter_context(locked(directory, waiting))
    except OSError as e:
      raise _cannot_write(cache_dir, e) from e
    prepared = _open(directory, fingerprint, lambda line: None)  # another process was first
    if prepared is None:
      _write(data, train, validation, fingerprint, directory, report)
      if _fingerprint(data, train, validation, hashes) != fingerprint:
        shutil.rmtree(directory)
        raise UserError("a source file changed while it was read; run the same command again "
                        "once it is complete.")
      prepared = _open(directory, fingerprint, report, verify=False)
  return prepared


def fingerprint_of(data, cache_dir: str | os.PathLike) -> str:
  """The fingerprint of the data of a configuration as they are now; prepares nothing.

  Raises:
    UserError: as `prepare`.
  """
  train, validation, hashes = _sources(data, cache_dir)
  fingerprint = _fingerprint(data, train, validation, hashes)
  hashes.save()
  return fingerprint


def _sources(data, cache_dir):
  """The checked sources of training and validation, and the known hashes of their files."""
  _check(data)
  cache_dir = os.path.abspath(os.path.expanduser(cache_dir))
  try:
    os.makedirs(cache_dir, exist_ok=True)
  except OSError as e:
    raise _cannot_write(cache_dir, e) from e
  train = sources.open_source(data.source, data.train, data.text_field, "data.train")
  validation = None
  if data.validation:
    validation = sources.open_source(
        data.source, data.validation, data.text_field, "data.validation")
  hashes = records_lib.FileHashes(os.path.join(cache_dir, "source_hashes.json"))
  return train, validation, hashes


def open_prepared(cache_dir: str | os.PathLike, fingerprint: str) -> Prepared | None:
  """The data set of a fingerprint that was prepared in `cache_dir`; None when it is not there."""
  return _open(os.path.join(cache_dir, fingerprint[:32]), fingerprint, print)


def check(data) -> None:
  """Refuses a section that `prepare` would refuse, without reading or writing data.

  Raises:
    UserError: a wrong field, or files that are not there.
  """
  _check(data)
  if data.source != "embedded":
    for field in ("train", "validation") if data.validation else ("train",):
      sources.open_source(data.source, data[field], data.text_field, f"data.{field}")


def _cannot_write(folder: str, e: OSError) -> UserError:
  return UserError(f"prepared data cannot be written to {folder}: {errors.describe(e, folder)}; "
                   "or set data.cache_dir to another folder.")


def _check(data) -> None:
  for name in ("validation_fraction", "train_subset_fraction"):
    if not 0 < data[name] < 1:
      raise UserError(f"data.{name}={data[name]} must lie between 0 and 1.")
  if data.sequence_length < 1:
    raise UserError(f"data.sequence_length={data.sequence_length} must be at least 1.")
  if data.max_documents < 0:
    raise UserError(f"data.max_documents={data.max_documents} must be 0 (all) or more.")
  if data.source == "embedded" and data.validation:
    raise UserError("data.validation needs data.source='files' or 'tfds'; the embedded corpus "
                    "holds out data.validation_fraction of its documents.")
  documents.compile_strip(data.strip)
  tokenizers.files(data.tokenizer.kind, data.tokenizer.path)


def _fingerprint(data, train, validation, hashes: records_lib.FileHashes) -> str:
  def content(source):
    return source and [[label, hashes(path)] for label, path in source.files]

  section = data.tokenizer
  return records_lib.combined_hash([
      FORMAT, data.source, content(train), content(validation), data.strip,
      data.text_field if data.source != "embedded" else "",
      data.validation_fraction if validation is None else 0.0,
      data.train_subset_fraction, data.max_documents, data.sequence_length, section.kind,
      section.vocab_size if section.kind == "bpe" else 0,
      [hashes(path) for path in tokenizers.files(section.kind, section.path)],
      *_eos(section),
  ])


def _eos(section) -> list[str]:
  """The end of a document, where a field names another than the one that would be guessed."""
  eos = section.get("eos", "")  # older configurations have no such field
  eos = eos and tokenizers.make(section.kind, section.path, section.vocab_size, (), eos).eos
  return [eos] if eos else []


def _open(directory: str, fingerprint: str, report: Callable[[str], None],
          verify: bool = True) -> Prepared | None:
  """The finished data set in `directory`; None when there is none, or it is damaged."""
  try:
    with open(os.path.join(directory, records_lib.STATS), "rb") as f:
      stats = parse_json(f.read())
    if verify and "checksums" not in stats:
      report(f"data: {directory} was prepared before there were checksums; damage is not seen")
    elif verify and (damaged := records_lib.damaged_file(directory, stats)):
      report(f"data: {damaged} is not what was written (its checksum differs); the data are "
             "prepared again")
      return None
    records = {split: np.load(os.path.join(directory, f"{split}.npy"), mmap_mode="r",
                              allow_pickle=False) for split in documents.SPLITS}
    tokenizer = tokenizers.load(os.path.join(directory, "tokenizer"))
    if (stats["fingerprint"] != fingerprint
        or stats["tokenizer_fingerprint"] != tokenizer.fingerprint
        or any(len(records[s]) != stats["splits"][s]["records"] for s in documents.SPLITS)):
      return None
  except (FileNotFoundError, NotADirectoryError, ValueError, EOFError, KeyError, TypeError,
          AttributeError, UserError):
    return None  # what is not there, or damaged, is prepared anew
  except OSError as e:
    raise UserError(f"{directory} cannot be read ({e.strerror}); set data.cache_dir to another "
                    "folder.") from e
  return Prepared(
      directory=directory, fingerprint=fingerprint, tokenizer=tokenizer, records=records,
      training_records=records_lib.JoinedRecords([records["train"], records["train_subset"]]),
      stats=stats)


def _write(data, train, validation, fingerprint, directory, report) -> None:
  """Prepares into a temporary folder and renames it to `directory` when it is complete."""
  start = time.monotonic()
  text_bytes = sum(s.text_bytes() for s in (train, validation) if s is not None)
  report(f"data: preparing {data.source} data, about {text_bytes / 1e6:.0f} MB of text")
  parent, name = os.path.split(directory)
  for entry in os.listdir(parent):  # we hold the lock: what is left is of a dead process
    if entry.startswith(f"{name}.tmp-") or entry == name:
      shutil.rmtree(os.path.join(parent, entry))
  temporary = f"{directory}.tmp-{uuid.uuid4().hex[:8]}"
  os.mkdir(temporary)  # unlike tempfile's, readable by a group that shares the cache
  try:
    stream = documents.DocumentStream(
        train.documents, validation and validation.documents,
        strip=data.strip, validation_fraction=data.validation_fraction,
        train_subset_fraction=data.train_subset_fraction, max_documents=data.max_documents)
    section = data.tokenizer
    long_words = text_checks.LongWords(report)
    if section.kind == "bpe":
      report(f"data: training a tokenizer of {section.vocab_size} ids")
    tokenizer = tokenizers.make(section.kind, section.path, section.vocab_size,
                                _training_texts(stream, report, long_words),
                                section.get("eos", ""))
    notes = []
    if tokenizer.guesses and section.kind in ("json", "gpt2", "sentencepiece"):
      notes.append(f"{tokenizers.on_guess(tokenizer)}; to name another, set data.tokenizer.eos.")
      report(f"data: {notes[-1]}")
    tokenizer.save(os.path.join(temporary, "tokenizer"))
    _require_space(parent, text_bytes, tokenizer)
    round_trip = text_checks.RoundTrip(tokenizer)

    def look(texts):
      if section.kind != "byte":
        for text in texts:
          long_words.see(text)
      round_trip.see(texts)

    stats = _write_records(stream, tokenizer, data.sequence_length, temporary, report, look)
    _require_records(stats, data)
    if round_trip.lost:
      report(f"data: {round_trip.note()}")
    notes += filter(None, [long_words.note, round_trip.note()])
    stats.update(notes=notes, lost_characters=dict(round_trip.lost.most_common()),
                 fingerprint=fingerprint, tokenizer_fingerprint=tokenizer.fingerprint,
                 seconds=round(time.monotonic() - start, 1))
    stats["checksums"] = records_lib.checksums(temporary, stats)
    write_json(os.path.join(temporary, records_lib.STATS), stats)
    os.rename(temporary, directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  report(f"data: {stats['tokens'] / 1e6:.2f} M tokens, {stats['bytes_per_token']:.2f} bytes each, "
         f"of {stats['documents']} documents in {stats['seconds']} s; dropped "
         f"{stats['dropped']['duplicates']} duplicates and {stats['dropped']['empty']} empty")


def _training_texts(stream, report, long_words) -> Iterator[str]:
  """What a tokenizer is trained on: the documents that are not held out."""
  reported, num_characters = time.monotonic(), 0
  for split, text in documents.in_background(stream, 64):
    if split != "validation":
      long_words.see(text)
      yield text
      num_characters += len(text)
      if time.monotonic() - reported > _REPORT_SECONDS:
        reported = time.monotonic()
        report(f"data: read {num_characters / 1e6:.0f} M characters for the tokenizer")


def _require_space(folder: str, text_bytes: int, tokenizer: tokenizers.Tokenizer) -> None:
  bytes_per_token = 1.0 if tokenizer.vocab_size <= 257 else 2.5  # less than any text we met
  needed = text_bytes / bytes_per_token * records_lib.smallest_dtype(tokenizer.vocab_size).itemsize
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise UserError(f"the prepared data need about {needed / 1e9:.1f} GB in {folder}, which has "
                    f"{free / 1e9:.1f} GB free; free some or set data.cache_dir to another disk.")


def _write_records(stream, tokenizer, sequence_length, folder, report, look) -> dict:
  dtype = records_lib.smallest_dtype(tokenizer.vocab_size)
  writers = {split: records_lib.RecordWriter(os.path.join(folder, f"{split}.npy"),
                                             sequence_length + 1, dtype)
             for split in documents.SPLITS}
  splits = {split: dict(documents=0, bytes=0, tokens=0) for split in documents.SPLITS}
  start = reported = time.monotonic()
  try:
    batches = documents.in_batches(stream, _BATCH_CHARACTERS)
    for batch in documents.in_background(batches, 2):
      texts = [text for _, text in batch]
      look(texts)
      ids_of = tokenizer.encode_batch(texts)
      for (split, text), ids in zip(batch, ids_of, strict=True):
        writers[split].add(np.append(ids, tokenizer.eos_id))
        counts = splits[split]
        counts["documents"] += 1
        counts["bytes"] += len(text.encode("utf-8"))
        counts["tokens"] += len(ids) + 1
      now = time.monotonic()
      if now - reported > _REPORT_SECONDS:
        reported = now
        report("data: " + _progress(splits, now - start))
    for split, writer in writers.items():
      splits[split]["records"], splits[split]["tokens_dropped"] = writer.close()
  finally:
    for writer in writers.values():
      writer.abort()
  for counts in splits.values():
    counts["bytes_per_token"] = counts["bytes"] / max(counts["tokens"], 1)
  total = {k: sum(c[k] for c in splits.values()) for k in ("documents", "bytes", "tokens")}
  return dict(
      total, splits=splits, dropped=dict(stream.counts),
      bytes_per_token=total["bytes"] / max(total["tokens"], 1),
      tokens_per_document=total["tokens"] / max(total["documents"], 1))


def _progress(splits: dict, seconds: float) -> str:
  num_bytes = sum(c["bytes"] for c in splits.values())
  return (f"{sum(c['documents'] for c in splits.values())} documents, {num_bytes / 1e6:.0f} MB, "
          f"{sum(c['tokens'] for c in splits.values()) / 1e6:.1f} M tokens, "
          f"{num_bytes / 1e6 / seconds:.1f} MB/s")


def _require_records(stats: dict, data) -> None:
  if not stats["documents"]:
    raise UserError("the source holds no text: every document is empty (after data.strip); check "
                    "data.train and data.strip.")
  for split, counts in stats["splits"].items():
    if not counts["records"]:
      more = {"train": "", "train_subset": "raise data.train_subset_fraction, ",
              "validation": ("add to data.validation, " if data.validation else
                             "raise data.validation_fraction, ")}[split]
      raise UserError(
          f"too little data: the {split} split has {counts['documents']} documents with "
          f"{counts['tokens']} tokens, less than one record of {data.sequence_length + 1}; {more}"
          "use more documents or a shorter data.sequence_length.")


def main(argv) -> None:
  """Prepares the data of `--config`."""
  del argv
  if _CONFIG.value is None:
    raise UserError("--config is missing; name a configuration file, like --config=configs/x.py.")
  paths.check_config(_CONFIG.value)
  data = _CONFIG.value.data
  cache_dir = _CACHE_DIR.value or data.cache_dir
  if not cache_dir:
    raise UserError("there is no folder to write to; set --cache_dir.")
  prepared = prepare(data, cache_dir)
  for split, counts in prepared.stats["splits"].items():
    print(f"{split}: {counts['documents']} documents, {counts['tokens']} tokens, "
          f"{counts['records']} records, {counts['bytes_per_token']:.3f} bytes per token")
  print(prepared.directory)


if __name__ == "__main__":
  _CONFIG = cli.define_config_flag()
  _CACHE_DIR = flags.DEFINE_string("cache_dir", "", "Folder of prepared data.")
  cli.run(main)
