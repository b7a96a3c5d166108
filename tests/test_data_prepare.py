"""Preparation: splits, packing, the cache by content, interruptions, errors."""

import errno
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import threading

import numpy as np
import programs
import pytest

from wd_plasticity import files
from wd_plasticity.config import default_config
from wd_plasticity.data import documents, sources
from wd_plasticity.data import prepare as prepare_lib
from wd_plasticity.data import records as records_lib
from wd_plasticity.errors import UserError

EOS = 256
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()


def make_texts(n, seed=0):
  rng = random.Random(seed)
  return [f"{seed}.{i} " + " ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for i in range(n)]


def write_jsonl(path, texts):
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))


@pytest.fixture
def data(tmp_path):
  """A `data` section of 300 documents in a JSONL file, encoded as bytes."""
  write_jsonl(tmp_path / "a.jsonl", make_texts(300))
  section = default_config().data
  section.update(dict(source="files", train=f"{tmp_path}/a.jsonl", sequence_length=16,
                      validation_fraction=0.1, train_subset_fraction=0.1))
  section.tokenizer.kind = "byte"
  return section


def prepare(data, tmp_path, lines=None):
  return prepare_lib.prepare(data, str(tmp_path / "cache"),
                             (lines if lines is not None else []).append)


def stream_of(prepared, split):
  return prepared.records[split].reshape(-1).astype(np.int64)


def texts_of(prepared, split):
  """The whole documents of a split, cut at the end of sequence."""
  pieces = bytes_or_eos(stream_of(prepared, split))
  return pieces[:-1]  # what follows the last end of sequence was cut


def bytes_or_eos(ids):
  pieces, start = [], 0
  for end in [*np.flatnonzero(ids == EOS), len(ids)]:
    pieces.append(bytes(ids[start:end].tolist()).decode(errors="replace"))
    start = end + 1
  return pieces


def test_records_are_the_documents_joined_by_eos(data, tmp_path):
  prepared = prepare(data, tmp_path)
  texts = make_texts(300)
  found = {split: texts_of(prepared, split) for split in documents.SPLITS}
  everything = sum(found.values(), [])
  assert len(set(everything)) == len(everything)  # the three share no document
  assert set(everything) <= set(texts)
  assert len(everything) >= 297 - 3  # only what is cut at the end of a split is missing
  for split, pieces in found.items():
    assert sorted(pieces, key=texts.index) == pieces  # in the order of the source
    stats = prepared.stats["splits"][split]
    n = stats["records"]
    assert prepared.records[split].shape == (n, 17) and n > 0
    assert isinstance(prepared.records[split], np.memmap)
    assert prepared.records[split].dtype == np.uint16
    assert stats["tokens"] == n * 17 + stats["tokens_dropped"]
    assert stats["tokens"] == stats["bytes"] + stats["documents"]
  assert prepared.stats["documents"] == 300
  assert prepared.stats["bytes"] == sum(len(t.encode()) for t in texts)
  # Binomial(300, 0.1) lies within 30 +- 5 sqrt(27).
  assert abs(prepared.stats["splits"]["validation"]["documents"] - 30) < 26
  np.testing.assert_array_equal(
      prepared.training_records[np.arange(len(prepared.training_records))],
      np.concatenate([prepared.records["train"], prepared.records["train_subset"]]))


def test_splits_do_not_depend_on_order_or_other_documents(data, tmp_path):
  prepared = prepare(data, tmp_path)
  texts = make_texts(300)
  random.Random(1).shuffle(texts)
  write_jsonl(tmp_path / "b.jsonl", make_texts(100, seed=5) + texts)
  data.train = f"{tmp_path}/b.jsonl"
  again = prepare(data, tmp_path)
  for split in documents.SPLITS:
    mine = set(texts_of(prepared, split))
    assert not mine & set(sum((texts_of(again, s) for s in documents.SPLITS if s != split), []))


def test_duplicates_empty_documents_header_and_line_ends(data, tmp_path):
  texts = make_texts(100)
  raw = [f"# Title\r\n## Author\r\n-------\r\n\r\n{t}\r\nend" for t in texts]
  raw += [raw[3].replace("\r\n", "\n"), raw[3], "", " \r\n ", "# Title\n-------\n"]
  write_jsonl(tmp_path / "a.jsonl", raw)
  data.strip = r"(?s)# Title.*?-------\n+"
  prepared = prepare(data, tmp_path)
  assert prepared.stats["dropped"] == dict(duplicates=2, empty=3, in_validation=0)
  assert prepared.stats["documents"] == 100
  found = sum((texts_of(prepared, s) for s in documents.SPLITS), [])
  assert len(found) >= 94 and set(found) <= {f"{t}\nend" for t in texts}


def test_separate_validation_drops_its_documents_from_training(data, tmp_path):
  held_out = make_texts(40, seed=1)
  write_jsonl(tmp_path / "v.jsonl", held_out + held_out[:2] + make_texts(300)[:5])
  data.validation = f"{tmp_path}/v.jsonl"
  prepared = prepare(data, tmp_path)
  assert prepared.stats["dropped"] == dict(duplicates=2, empty=0, in_validation=5)
  assert prepared.stats["splits"]["validation"]["documents"] == 45
  training = prepared.stats["splits"]
  assert training["train"]["documents"] + training["train_subset"]["documents"] == 295
  assert set(texts_of(prepared, "validation")) <= set(held_out + make_texts(300)[:5])


def test_max_documents(data, tmp_path):
  data.max_documents = 120
  assert prepare(data, tmp_path).stats["documents"] == 120


def test_bpe_is_trained_on_training_documents_only(data, tmp_path):
  texts = make_texts(300)
  data.tokenizer.update(dict(kind="bpe", vocab_size=300))
  plain = prepare(data, tmp_path)
  write_jsonl(tmp_path / "v.jsonl", ["validation words " * 50 + str(i) for i in range(50)])
  write_jsonl(tmp_path / "w.jsonl", ["quite something else " * 50 + str(i) for i in range(50)])
  data.validation = f"{tmp_path}/v.jsonl"
  one = prepare(data, tmp_path)
  data.validation = f"{tmp_path}/w.jsonl"
  two = prepare(data, tmp_path)
  assert one.fingerprint != two.fingerprint
  assert one.tokenizer_fingerprint == two.tokenizer_fingerprint != plain.tokenizer_fingerprint
  decoded = plain.tokenizer.decode(stream_of(plain, "train")[:200])
  assert any(t[:30] in decoded for t in texts)
  assert (stream_of(plain, "train") < plain.tokenizer.vocab_size).all()


def test_the_same_input_is_opened_not_prepared(data, tmp_path, monkeypatch):
  first = prepare(data, tmp_path)
  monkeypatch.setattr(prepare_lib, "_write", None)  # would raise
  lines = []
  second = prepare(data, tmp_path, lines)
  assert second.directory == first.directory and not lines
  assert second.stats == first.stats
  for split in documents.SPLITS:
    np.testing.assert_array_equal(second.records[split], first.records[split])


def test_equal_content_elsewhere_is_the_same_data(data, tmp_path):
  first = prepare(data, tmp_path)
  (tmp_path / "moved").mkdir()
  shutil.copy(tmp_path / "a.jsonl", tmp_path / "moved" / "z.jsonl")
  data.train = f"{tmp_path}/moved/*"
  assert prepare(data, tmp_path).fingerprint == first.fingerprint


@pytest.mark.parametrize("field,value", [
    ("sequence_length", 17), ("strip", "x"), ("validation_fraction", 0.2),
    ("train_subset_fraction", 0.2), ("max_documents", 250), ("text_field", "body"),
    ("tokenizer", {"kind": "bpe", "vocab_size": 280})])
def test_every_field_that_matters_changes_the_fingerprint(data, tmp_path, field, value):
  (tmp_path / "a.jsonl").write_text("".join(
      json.dumps({"text": t, "body": t}) + "\n" for t in make_texts(300)))
  first = prepare(data, tmp_path).fingerprint
  data.update({field: value})
  assert prepare(data, tmp_path).fingerprint != first


def test_a_changed_source_is_noticed_even_with_its_old_size_and_date(data, tmp_path):
  path = tmp_path / "a.jsonl"
  os.utime(path, ns=(10**18, 10**18))
  first = prepare(data, tmp_path)
  path.write_text(path.read_text().replace("alpha", "alphq"))
  os.utime(path, ns=(10**18, 10**18))
  second = prepare(data, tmp_path)
  assert second.fingerprint != first.fingerprint
  assert "alphq" in second.tokenizer.decode(stream_of(second, "train"))


def test_hashes_are_remembered_but_not_of_files_just_written(tmp_path, monkeypatch):
  path = tmp_path / "x"
  path.write_text("content")
  hashes = records_lib.FileHashes(str(tmp_path / "h.json"))
  digest = hashes(str(path))
  hashes.save()
  assert not (tmp_path / "h.json").exists()  # too new to trust its times
  now = records_lib.time.time_ns()
  monkeypatch.setattr(records_lib.time, "time_ns", lambda: now + 10**10)
  hashes(str(path))
  hashes.save()
  again = records_lib.FileHashes(str(tmp_path / "h.json"))
  monkeypatch.setattr(records_lib.hashlib, "file_digest", None)  # would raise
  assert again(str(path)) == digest
  monkeypatch.undo()
  for damaged in ("{damaged", "[1]", "3", "[" * 100_000, '{"/x": 1' + "0" * 5000 + "}"):
    (tmp_path / "h.json").write_text(damaged)
    assert records_lib.FileHashes(str(tmp_path / "h.json"))(str(path)) == digest


def test_an_interrupted_preparation_leaves_nothing_that_passes(data, tmp_path, monkeypatch):
  good = prepare(data, tmp_path / "reference")

  def fail(self):
    raise KeyboardInterrupt

  with monkeypatch.context() as m:
    m.setattr(records_lib.RecordWriter, "close", fail)
    with pytest.raises(KeyboardInterrupt):
      prepare(data, tmp_path)
  assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
  # A killed process cannot clean up: its temporary folder stays, and is removed by the next.
  left = tmp_path / "cache" / (good.fingerprint[:32] + ".tmp-dead")
  shutil.copytree(good.directory, left)
  prepared = prepare(data, tmp_path)
  assert not left.exists()
  np.testing.assert_array_equal(prepared.records["train"], good.records["train"])


@pytest.mark.parametrize("name,cut", [("train.npy", 100), ("stats.json", 10)])
def test_a_damaged_cache_is_prepared_anew(data, tmp_path, name, cut):
  first = prepare(data, tmp_path)
  wanted = np.array(first.records["train"])
  path = os.path.join(first.directory, name)
  del first
  os.truncate(path, os.path.getsize(path) - cut)
  lines = []
  np.testing.assert_array_equal(prepare(data, tmp_path, lines).records["train"], wanted)
  assert lines


@pytest.mark.parametrize("damage", ["no tokenizer", "stats of others", "meta of others"])
def test_a_cache_that_misses_a_part_is_prepared_anew(data, tmp_path, damage):
  first = prepare(data, tmp_path)
  folder = pathlib.Path(first.directory)
  if damage == "no tokenizer":
    shutil.rmtree(folder / "tokenizer")
  elif damage == "stats of others":
    (folder / "stats.json").write_text("[1]")
  else:
    (folder / "tokenizer" / "meta.json").write_text("{}")
  lines = []
  prepare(data, tmp_path, lines)
  assert any("preparing" in line for line in lines)


def test_null_texts_are_counted_as_empty(data, tmp_path):
  with open(tmp_path / "a.jsonl", "a") as f:
    f.write('{"text": null}\n' * 3)
  lines = []
  assert prepare(data, tmp_path, lines).stats["dropped"]["empty"] == 3
  assert lines[-1].endswith("dropped 0 duplicates and 3 empty")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
def test_a_folder_that_cannot_be_locked_is_one_sentence(data, tmp_path, monkeypatch, number):
  def open_lock(path):
    raise OSError(number, os.strerror(number), path)
  monkeypatch.setattr(files, "open_lock", open_lock)
  with pytest.raises(UserError, match="cannot be written to .*or set data.cache_dir to another"):
    prepare(data, tmp_path)


def test_an_unclosed_record_file_holds_no_record(tmp_path):
  writer = records_lib.RecordWriter(str(tmp_path / "a.npy"), 4, np.uint16)
  writer.add(np.arange(10))
  writer.abort()
  assert np.load(tmp_path / "a.npy").shape == (0, 4)
  writer = records_lib.RecordWriter(str(tmp_path / "b.npy"), 4, np.int32)
  for part in (np.arange(3), np.arange(3, 10)):
    writer.add(part)
  assert writer.close() == (2, 2)
  np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), np.arange(8).reshape(2, 4))


def test_a_source_that_changes_meanwhile_is_refused(data, tmp_path, monkeypatch):
  read = sources.FileSource.documents

  def documents_of_a_growing_file(self):
    yield from read(self)
    with open(tmp_path / "a.jsonl", "a") as f:
      f.write('{"text": "more"}\n')

  monkeypatch.setattr(sources.FileSource, "documents", documents_of_a_growing_file)
  with pytest.raises(UserError, match="changed while it was read"):
    prepare(data, tmp_path)
  assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def _prepare_in_process(section, cache, results):
  lines = []
  prepared = prepare_lib.prepare(section, cache, lines.append)
  results.put((prepared.fingerprint, any("preparing" in line for line in lines)))


def test_two_processes_at_once_prepare_once(data, tmp_path):
  context = multiprocessing.get_context("spawn")
  results = context.Queue()
  processes = [context.Process(target=_prepare_in_process,
                               args=(data, str(tmp_path / "cache"), results)) for _ in range(2)]
  for p in processes:
    p.start()
  found = [results.get() for _ in processes]
  for p in processes:
    p.join()
  assert len({fingerprint for fingerprint, _ in found}) == 1
  assert sorted(prepared for _, prepared in found) == [False, True]


def test_threads_wait_for_the_lock(data, tmp_path):
  found = []
  threads = [threading.Thread(target=lambda: found.append(prepare(data, tmp_path)))
             for _ in range(3)]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  assert len(found) == 3 and len({p.directory for p in found}) == 1


@pytest.mark.parametrize("change,message", [
    (dict(sequence_length=100_000), "too little data: the train split"),
    (dict(max_documents=1), "too little data.*shorter data.sequence_length"),
    (dict(validation_fraction=1e-9), "the validation split has 0 documents.*validation_fraction"),
    (dict(train_subset_fraction=1e-9), "train_subset split.*raise data.train_subset_fraction"),
    (dict(validation_fraction=0.0), "validation_fraction=0.0 must lie between"),
    (dict(sequence_length=0), "sequence_length=0 must be at least 1"),
    (dict(max_documents=-1), "max_documents=-1"),
    (dict(strip="("), "data.strip='\\(' is not a regular expression"),
    (dict(strip="(?s).*"), "holds no text"),
    (dict(train="/nowhere/*.txt"), "no file matches '/nowhere/\\*.txt'"),
    (dict(train=""), "needs data.train"),
    (dict(text_field="body"), "no text in a field 'body'.*one of text"),
    (dict(source="embedded", validation="x"), "data.validation needs"),
    (dict(tokenizer=dict(kind="json", path="/nowhere.json")), "'/nowhere.json' is not a file"),
    (dict(tokenizer=dict(kind="word")), "kind='word' is unknown"),
])
def test_mistakes_are_one_sentence(data, tmp_path, change, message):
  data.update(change)
  with pytest.raises(UserError, match=message) as e:
    prepare(data, tmp_path)
  assert "\n" not in str(e.value)
  assert not [p for p in (tmp_path / "cache").glob("*") if p.is_dir()]


def test_full_disk_is_said_before_the_work(data, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(prepare_lib.shutil, "disk_usage", lambda _: usage)
  with pytest.raises(UserError, match="the prepared data need about .* GB in .*free"):
    prepare(data, tmp_path)


def test_background_iteration_keeps_order_and_passes_errors():
  assert list(documents.in_background(range(100), 3)) == list(range(100))

  def broken():
    yield 1
    raise UserError("no more")

  iterator = documents.in_background(broken(), 3)
  assert next(iterator) == 1
  with pytest.raises(UserError, match="no more"):
    next(iterator)
  # A consumer that stops early ends the thread.
  before = threading.active_count()
  iterator = documents.in_background(iter(int, 1), 2)
  next(iterator)
  iterator.close()
  for _ in range(100):
    if threading.active_count() <= before:
      break
    threading.Event().wait(0.05)
  assert threading.active_count() <= before


def test_half_surrogates_become_replacement_characters():
  assert documents.clean("a\ud83eb", None) == "a\ufffdb"
  assert documents.clean("🦊", None) == "🦊"


def run_program(*arguments, **kwargs):
  return programs.run("wd_plasticity.data.prepare", *arguments, **kwargs)


def test_program(tmp_path):
  write_jsonl(tmp_path / "a.jsonl", make_texts(300))
  config = tmp_path / "config.py"
  config.write_text(f"""
from wd_plasticity.config import default_config
def get_config():
  c = default_config()
  c.data.source = "files"
  c.data.train = {str(tmp_path / "a.jsonl")!r}
  c.data.sequence_length = 16
  c.data.tokenizer.kind = "byte"
  return c
""")
  cache = f"--cache_dir={tmp_path}/cache"
  assert "bytes per token" in run_program(f"--config={config}", cache)
  wrong = run_program(f"--config={config}", cache, "--config.data.train=/nowhere/*.md", expect=2)
  assert wrong.strip().splitlines()[-1].startswith("error: data.train: no file matches")
  assert "Traceback" not in wrong
  shown = run_program("--help")
  assert "--cache_dir" in shown and "--config" in shown
