"""Every reader meets every failure of its class: one sentence that names the file, or a note.

A row is a file and what reads it; a column is what is wrong with the file.
"""

import builtins
import dataclasses
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import model_directory
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import reward_directory
import sentencepiece
import synthetic_study

from launch import record as launch_record
from wd_plasticity.data import records as data_records
from wd_plasticity.data import sources, tokenizers
from wd_plasticity.errors import UserError
from wd_plasticity.files import write_json
from wd_plasticity.interop import import_, llama2c, tokenizer_files, transformers_files
from wd_plasticity.report import study as report_study
from wd_plasticity.reward.chat import ChatTokenizer
from wd_plasticity.study import records as study_records
from wd_plasticity.tasks import reading
from wd_plasticity.training import summary
from wd_plasticity.training.progress import read_progress

DEEP, DIGITS = b"[" * 100_000, b"7" * 5000

# What a file holds instead.
CONTENTS = {
    "empty": lambda old: b"",
    "cut in half": lambda old: old[:len(old) // 2],
    "random bytes": lambda old: np.random.default_rng(0).bytes(len(old)),
    "not UTF-8": lambda old: b'{"text": "\xe9"}',
    "UTF-16": lambda old: old.decode("latin-1").encode("utf-16"),
    "UTF-16 cut": lambda old: old.decode("latin-1").encode("utf-16")[:-1],
    "a list": lambda old: b"[]", "an object": lambda old: b"{}", "null": lambda old: b"null",
    "a text": lambda old: b'"x"', "a number": lambda old: b"3",
    "100,000 brackets": lambda old: DEEP,
    "100,000 brackets within": lambda old: b'{"text": ' + DEEP,
    "5,000 digits": lambda old: DIGITS,
    "5,000 digits within": lambda old: b'{"text": "", "a": ' + DIGITS + b"}",
    "NaN": lambda old: b"NaN",
    "byte order mark": lambda old: b"\xef\xbb\xbf" + old,
    "zeros": lambda old: bytes(len(old)),
}
# What the system says when it is opened.
SYSTEM = {"denied": errno.EACCES, "input/output error": errno.EIO, "stale": errno.ESTALE}
PLACES = ("missing", "a folder")
ALL = (*CONTENTS, *SYSTEM, *PLACES)
_KINDS = ("a list", "an object", "null", "a text", "a number", "NaN")


@dataclasses.dataclass(frozen=True)
class Reader:
  """A row.

  Attributes:
    make: writes all that is needed into a folder; returns the file and what reads it.
    fine: columns that are no mistake in such a file.
    quiet: it goes on without the file, and returns what it says of that.
    opens: whether Python opens the file, so that the system's failures can be simulated.
  """
  make: Callable[[Path], tuple[Path, Callable]]
  fine: tuple[str, ...] = ("byte order mark",)
  quiet: bool = False
  opens: bool = True


def _written(path: Path, content: bytes | str) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return path


def _parquet() -> bytes:
  stream = io.BytesIO()
  pa.parquet.write_table(pa.table({"text": ["a text", "another"]}), stream)
  return stream.getvalue()


def corpus(name, content):
  def make(folder):
    path = _written(folder / name, content)
    return path, lambda: list(sources.FileSource([str(path)], "text").documents())
  return make


def rows(name, content):
  def make(folder):
    path = _written(folder / name, content)
    return path, lambda: list(reading.rows(str(path), "sources.x.train"))
  return make


def tokenizer(kind, name):
  def make(folder):
    if kind == "sentencepiece":
      model = io.BytesIO()
      sentencepiece.SentencePieceTrainer.train(
          sentence_iterator=iter(["the weight decay of a model", "a decay"] * 9), vocab_size=40,
          model_writer=model, hard_vocab_limit=False, minloglevel=2)
      path = _written(folder / name, model.getvalue())
    elif kind == "gpt2":
      _written(folder / "vocab.json", json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
      _written(folder / "merges.txt", "#version: 0.2\na b\n")
      return folder / name, lambda: tokenizers.make("gpt2", str(folder), 0, ())
    elif kind == "saved":
      model_directory.write_tokenizer(folder)
      _written(folder / "meta.json", '{"kind": "hf"}')
      return folder / name, lambda: tokenizers.load(str(folder))
    else:
      model_directory.write_tokenizer(folder)
      path = folder / name
    return path, lambda: tokenizers.make(kind, str(path), 0, ())
  return make


def model(name, read=transformers_files.read_directory):
  def make(folder):
    model_directory.write(folder)
    if name.startswith("model-") or name.endswith("index.json"):
      shard = "model-00001-of-00001.safetensors"
      (folder / "model.safetensors").rename(folder / shard)
      names = list(transformers_files._headers(folder / shard))
      _written(folder / "model.safetensors.index.json",
               json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    for extra in ("generation_config.json", "special_tokens_map.json"):
      _written(folder / extra, "{}")
    return folder / name, lambda: read(folder)
  return make


def reward(name):
  def make(folder):
    reward_directory.write_tokenizer(folder)
    _written(folder / "chat_template.jinja", reward_directory.TEMPLATE)
    _written(folder / "special_tokens_map.json", '{"bos_token": "<s>"}')
    return folder / name, lambda: ChatTokenizer(folder).encode([("a", "b")])
  return make


def own_record(folder):
  meta = {"weight_decay": 0.1, "step": 1, "steps": 1, "tokens": 1, "tokenizer_fingerprint": "",
          "data_fingerprint": "", "config": {"seed": 0, "data": {"sequence_length": 8}}}
  path = _written(folder / import_.OWN_FOLDER / import_.OWN_FILE, json.dumps(
      {"format": import_.FORMAT, "format_version": 1, "meta": meta}))
  return path, lambda: import_._own_record(folder)


def llama2c_model(folder):
  sizes = np.array([8, 12, 1, 2, 2, 10, 4], "<i4").tobytes()
  count = 10 * 8 + 8 + 4 * 64 + 8 + 3 * 96 + 8 + 2 * 4 * 2
  path = _written(folder / "model.bin", sizes + np.ones(count, "<f4").tobytes())
  return path, lambda: llama2c.read_model(path)


def llama2c_tokenizer(folder):
  piece = np.float32(0).tobytes() + np.int32(1).tobytes() + b"a"
  path = _written(folder / "tokenizer.bin", np.int32(1).tobytes() + piece * 300)
  return path, lambda: llama2c.Tokenizer.read(path)


def launched(folder):
  path = _written(folder / "launch" / "1-slurm.json", json.dumps(
      {"jobs": [{"name": "a", "submitted": {"id": "1"}}]}))
  launch = type("Launch", (), {"workdir": str(folder)})
  return path, lambda: launch_record.submitted(launch, "slurm")


def _study(folder) -> str:
  synthetic_study.write(folder, decays=(0.1, 1.0), seeds=(0,), steps=(50,), tasks=("sst2",),
                        problems=4, logged=2)
  return next(p.name for p in (folder / "members").iterdir())


def swept(name):
  def make(folder):
    path = folder / "members" / _study(folder) / name
    if not path.exists():
      _written(path, '{"step": 3, "reason": "x"}')
    return path, lambda: summary.summarise(folder)
  return make


def reported(pattern):
  def make(folder):
    pattern_here = pattern.replace("members/*", f"members/{_study(folder)}")
    found = sorted(folder.glob(pattern_here))
    path = found[0] if found else _written(folder / pattern_here.replace("*", "a"), "{}")
    return path, lambda: "\n".join(report_study.read(folder).notes)
  return make


def quietly(name, write, read):
  """A file that only saves time or shows how far a program is: without it there is less."""
  def make(folder):
    path = folder / name
    write(path)
    return path, lambda: f"{read(path)} {path.name}"
  return make


def _progress(path):
  write_json(path, {"done": 1, "total": 2, "unit": "steps", "seconds_left": None, "status": "1/2"})


def _step(path):
  study_records.Records(path.parents[2]).write(study_records.Record(
      "finetune", "c", "done", "i", {}, 1.0, 2.0, "l"))


_JSON_LINES = '{"text": "a text"}\n{"text": "a text that is longer"}\n'
_TABLE = "text,label\na,1\nb,0\n"
_TEXT_FINE = tuple(c for c in CONTENTS if c not in ("random bytes", "not UTF-8", "UTF-16",
                                                    "UTF-16 cut"))
READERS = {
    "corpus .jsonl": Reader(corpus("a.jsonl", _JSON_LINES), ("empty", "byte order mark")),
    "corpus .txt": Reader(corpus("a.txt", "a text"), _TEXT_FINE),
    "corpus .parquet": Reader(corpus("a.parquet", _parquet()), ()),
    **{f"corpus .txt{end}": Reader(corpus(f"a.txt{end}", b"x"), ())
       for end in (".gz", ".bz2", ".xz", ".zst")},
    "corpus .tar": Reader(corpus("a.tar", b"x"), ()),
    "task .jsonl": Reader(rows("a.jsonl", _JSON_LINES), (
        "empty", "byte order mark", "UTF-16", "an object")),
    "task .json": Reader(rows("a.json", json.dumps([{"text": "a"}])), (
        "byte order mark", "UTF-16", "an object", "a list")),
    "task .csv": Reader(rows("a.csv", _TABLE), (*_TEXT_FINE, "UTF-16")),
    "task .tsv": Reader(rows("a.tsv", _TABLE.replace(",", "\t")), (*_TEXT_FINE, "UTF-16")),
    "task .parquet": Reader(rows("a.parquet", _parquet()), ()),
    "task .txt": Reader(rows("a.txt", "a text"), tuple(CONTENTS)),
    "task .neg": Reader(rows("a.neg", "a text\n"), tuple(CONTENTS)),
    "tokenizer.json": Reader(tokenizer("json", "tokenizer.json"), ()),
    "SentencePiece": Reader(tokenizer("sentencepiece", "a.model"), ()),
    "vocab.json": Reader(tokenizer("gpt2", "vocab.json"), ()),
    "merges.txt": Reader(tokenizer("gpt2", "merges.txt"), tuple(CONTENTS), opens=False),
    "saved meta.json": Reader(tokenizer("saved", "meta.json"), ("byte order mark", "UTF-16")),
    "saved tokenizer.json": Reader(tokenizer("saved", "tokenizer.json"), ()),
    "model config.json": Reader(model("config.json"), ("byte order mark", "UTF-16")),
    "model index": Reader(model("model.safetensors.index.json"), (
        "byte order mark", "UTF-16", "missing")),
    "model.safetensors": Reader(model("model.safetensors"), (), opens=False),
    "model shard": Reader(model("model-00001-of-00001.safetensors"), (), opens=False),
    **{f"model {name}": Reader(
        model(name, lambda folder: tokenizer_files.read(folder, {})),
        ("byte order mark", "UTF-16", "an object", "missing", "a folder"))
       for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")},
    "reward tokenizer.json": Reader(reward("tokenizer.json"), ()),
    "reward tokenizer_config.json": Reader(reward("tokenizer_config.json"), (
        "byte order mark", "UTF-16", "an object")),
    "reward special_tokens_map.json": Reader(reward("special_tokens_map.json"), (
        "byte order mark", "UTF-16", "an object", "missing")),
    "reward template": Reader(reward("chat_template.jinja"), ("missing", *(
        c for c in CONTENTS if c not in ("random bytes", "not UTF-8", "UTF-16", "UTF-16 cut",
                                         "cut in half")))),
    "own record": Reader(own_record, ("byte order mark", "UTF-16", "missing", "a folder")),
    "llama2.c model": Reader(llama2c_model, ()),
    "llama2.c tokenizer": Reader(llama2c_tokenizer, ()),
    "launch record": Reader(launched, ("byte order mark", "UTF-16", "missing")),
    "sweep config.json": Reader(swept("config.json"), (
        "byte order mark", "UTF-16", "missing", "an object")),
    "sweep plan.json": Reader(swept("plan.json"), (
        "byte order mark", "UTF-16", "missing", "an object")),
    "sweep FAILED.json": Reader(swept("FAILED.json"), (
        "byte order mark", "UTF-16", "missing", "an object")),
    "progress": Reader(quietly("progress.json", _progress, read_progress), quiet=True),
    "study step": Reader(quietly(
        "study/steps/finetune.json", _step,
        lambda path: study_records.Records(path.parents[2]).read("finetune")), quiet=True),
    "source hashes": Reader(quietly(
        "source_hashes.json", lambda path: write_json(path, {}),
        lambda path: data_records.FileHashes(str(path))), quiet=True),
    **{f"report {pattern}": Reader(reported(pattern), (
        "byte order mark", "UTF-16", "missing", "an object", *fine), quiet=True)
       for pattern, *fine in (
           ("members/*/config.json",), ("members/*/plan.json",), ("members/*/FAILED.json",),
           # What follows its last line end was still being written.
           ("members/*/metrics.jsonl", *(c for c in CONTENTS if c != "random bytes")),
           ("versions.json",), ("evals/finetune/*/*/*.json",),
           ("evals/finetune/*/*/*.npz",), ("study/steps/*.json",))},
}


def _damage(path: Path, column: str, monkeypatch) -> None:
  if column in CONTENTS:
    path.write_bytes(CONTENTS[column](path.read_bytes()))
  elif column in PLACES:
    path.unlink()
    if column == "a folder":
      path.mkdir()
  else:
    real = io.open
    def refuse(file, *args, **kwargs):
      if isinstance(file, (str, os.PathLike)) and Path(file) == path:
        raise OSError(SYSTEM[column], os.strerror(SYSTEM[column]), str(file))
      return real(file, *args, **kwargs)
    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)


@pytest.fixture(scope="module", params=READERS)
def made(request, tmp_path_factory):
  """A reader, its file whole, and how to have it whole again."""
  folder = tmp_path_factory.mktemp("reader")
  path, read = READERS[request.param].make(folder)
  return READERS[request.param], path, read, path.read_bytes()


@pytest.mark.parametrize("column", ALL)
def test_one_sentence_that_names_the_file(made, column, monkeypatch, capfd):
  reader, path, read, content = made
  if column in SYSTEM and not reader.opens:
    pytest.skip("it is opened by a library of another language")
  try:
    with monkeypatch.context() as patch:
      _damage(path, column, patch)
      try:
        said = read() if reader.quiet else None
        if not reader.quiet:
          read()
      except UserError as e:
        assert not reader.quiet, e
        said = str(e)
        assert "\n" not in said and "; " in said and said.endswith("."), said
      else:
        assert said is not None or column in reader.fine, "it is taken as it is"
      if said is not None and column not in reader.fine:
        assert path.name in said or str(path.parent) in said, said
  finally:
    if path.is_dir():
      path.rmdir()
    _written(path, content)
  assert "Traceback" not in capfd.readouterr().err
