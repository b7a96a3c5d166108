"""Mistakes in what a user gives to be read: texts, tables, tokenizers, models, and to launchers."""

import gzip
import io
import json
import os
import shutil
import tarfile

import zstandard
from judge import Case
from mistakes_written import PROGRAMS, with_flag

PREPARE = "wd_plasticity.data.prepare"
IMPORT = "wd_plasticity.interop.import_"
_LINES = "".join(json.dumps({"text": f"the decay of weight {i} keeps the norm"}) + "\n"
                 for i in range(400)).encode()


def _parquet(**columns):
  import pyarrow as pa
  import pyarrow.parquet
  out = io.BytesIO()
  pa.parquet.write_table(pa.table(columns), out)
  return out.getvalue()


def _tar(cut=None, **members):
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as tar:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return out.getvalue()[:cut]


def _inside(bad):
  lines = _LINES.splitlines(keepends=True)
  return b"".join([*lines[:200], bad + b"\n", *lines[200:]])


# file name, its bytes, words beside the file's name
_TEXTS = {
    "a line that is cut": ("a.jsonl", _inside(b'{"text": "the dec'), "201"),
    "a line of text": ("a.jsonl", _inside(b"the decay"), "201"),
    "a line that is a list": ("a.jsonl", _inside(b'["text"]'), "201"),
    "a line that is a number": ("a.jsonl", _inside(b"3"), "201"),
    "a line without the field": ("a.jsonl", _inside(b'{"txt": "x"}'), "text"),
    "a line with a number as text": ("a.jsonl", _inside(b'{"text": 3}'), "text"),
    "a line with a list as text": ("a.jsonl", _inside(b'{"text": ["x"]}'), "text"),
    "a line that is not UTF-8": ("a.jsonl", _inside(b'{"text": "caf\xe9"}'), "201|UTF-8"),
    "a line of 100,000 brackets": ("a.jsonl", _inside(b"[" * 100_000), "201"),
    "a number of 5,000 digits": ("a.jsonl", _inside(b'{"text": "a", "n": ' + b"9" * 5000 + b"}"),
                                 "201"),
    "one document of JSON": ("a.json", json.dumps([{"text": "x"}] * 5, indent=1).encode(), "1"),
    "empty lines": ("a.jsonl", b"", "no |empty|document|text"),
    "white space": ("a.txt", b" \n \n", "no |empty|document|text"),
    "too little": ("a.txt", b"three words only", "record|document|text|token"),
    "bytes": ("a.txt", os.urandom(20_000), "UTF-8|text"),
    "UTF-16": ("a.txt", "the decay of a weight ".encode("utf-16") * 100, "UTF-8|text|UTF-16"),
    "an unknown ending": ("a.xyz", _LINES, "xyz|extension|ending"),
    "no ending": ("a", _LINES, "extension|ending|a "),
    "a word file": ("a.docx", b"PK\x03\x04" + b"x" * 100, "docx|extension|ending"),
    "gzip that is cut": ("a.jsonl.gz", gzip.compress(_LINES)[:-200], ""),
    "gzip that is none": ("a.jsonl.gz", _LINES, ""),
    "gzip of nothing": ("a.jsonl.gz", b"", ""),
    "gzip with a flipped bit": ("a.jsonl.gz", gzip.compress(_LINES)[:400] + b"\x00" +
                                gzip.compress(_LINES)[401:], ""),
    "zstd that is cut": ("a.jsonl.zst", zstandard.compress(_LINES)[:-20], ""),
    "zstd that is none": ("a.jsonl.zst", _LINES, ""),
    "xz that is none": ("a.txt.xz", _LINES, ""), "bz2 that is none": ("a.txt.bz2", _LINES, ""),
    "tar that is cut": ("a.tar", _tar(cut=2000, **{"x.jsonl": _LINES}), ""),
    "tar that is none": ("a.tar", _LINES, ""), "tar of nothing": ("a.tar", b"", ""),
    "tar with a bad member": ("a.tar", _tar(**{"x.jsonl": _LINES, "y.jsonl": b"{"}), r"y\.jsonl"),
    "parquet that is none": ("a.parquet", _LINES, ""),
    "parquet that is cut": ("a.parquet", _parquet(text=["a b c"] * 500)[:-50], ""),
    "parquet without the field": ("a.parquet", _parquet(txt=["a b c"] * 500), "text"),
    "parquet of numbers": ("a.parquet", _parquet(text=[1, 2, 3] * 100), "text"),
    "parquet of nothing": ("a.parquet", b"", ""),
}
_TOKENIZERS = {
    "json: {}": ("json", "t.json", b"{}"), "json: []": ("json", "t.json", b"[]"),
    "json: null": ("json", "t.json", b"null"), "json: empty": ("json", "t.json", b""),
    "json: cut": ("json", "t.json", b'{"version": "1.0", "model": {'),
    "json: bytes": ("json", "t.json", b"\xff\x00\x80"),
    "json: deep": ("json", "t.json", b"[" * 100_000),
    "json: no words": ("json", "t.json", json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {
            "type": "BPE", "vocab": {}, "merges": []}}).encode()),
    "json: unknown kind": ("json", "t.json", b'{"version": "1.0", "model": {"type": "Odd"}}'),
    "sentencepiece: empty": ("sentencepiece", "t.model", b""),
    "sentencepiece: bytes": ("sentencepiece", "t.model", b"\x0a\xff\xff" * 40),
    "sentencepiece: JSON": ("sentencepiece", "t.model", b"{}"),
    "gpt2: nothing": ("gpt2", "t/readme", b""),
    "gpt2: a list": ("gpt2", "t/vocab.json", b"[]"),
    "gpt2: no merges": ("gpt2", "t/vocab.json", b'{"a": 0}'),
    "saved: nothing": ("saved", "t/readme", b""), "saved: {}": ("saved", "t/meta.json", b"{}"),
    "saved: []": ("saved", "t/meta.json", b"[]"), "saved: null": ("saved", "t/meta.json", b"null"),
    "saved: another kind": ("saved", "t/meta.json", b'{"kind": "odd", "format": 1}'),
    "not there": ("json", "", b""), "not named": ("json", None, b""),
}
# rows of sst2; what is wrong in them
_ROWS = {
    "cut line": b'{"sentence": "a", "label"', "a list": b"[1]", "no label": b'{"sentence": "a"}',
    "no sentence": b'{"label": 1}', "label of 7": b'{"sentence": "a", "label": 7}',
    "label of null": b'{"sentence": "a", "label": null}',
    "label of words": b'{"sentence": "a", "label": "odd"}',
    "not UTF-8": b'{"sentence": "\xe9"}',
    "deep": b"[" * 100_000, "long number": b'{"label": ' + b"9" * 5000 + b"}"}
_TABLES = {
    "csv without columns": ("t.csv", b"a,b\n1,2\n"), 
    "csv of one line": ("t.csv", b"sentence,label\n"),
    "csv that is ragged": ("t.csv", b"sentence,label\na,1,2,3\nb,0\n"),
    "csv with an open quote": ("t.csv", b'sentence,label\n"a,1\nb,0\n'),
    "csv of bytes": ("t.csv", b"sentence,label\n\xff\xfe,1\n"), "csv of nothing": ("t.csv", b""),
    "parquet that is none": ("t.parquet", b"PAR1 no"), "an unknown ending": ("t.doc", b"x"),
    "gzip that is none": ("t.jsonl.gz", b"{}"), "not there": ("", b"")}


def texts():
  for name, (file, content, words) in _TEXTS.items():
    yield Case(f"text: {name}", PREPARE,
               ("--config=@/run.py", "--cache_dir=@/new", f"--config.data.train=@/texts/{file}"),
               f"(?=.*{file.partition('.')[0]}.*)(?=.*({words}))" if words else r"a\.",
               lambda w, f=file, c=content: _put(w / "texts" / f, c))
  for name, flags, words in (
      ("no file of the glob", ("--config.data.train=@/none/*.txt",), "none"),
      ("a folder", ("--config.data.train=@/corpus",), "corpus"),
      ("a bucket", ("--config.data.train=gs://b/x.txt",), "gs:"),
      ("one of two is missing", ("--config.data.train=@/corpus/*.txt,@/none.txt",), "none"),
      ("of tfds is missing", ("--config.data.source=tfds", "--config.data.train=nothing_here"),
       "nothing_here|tensorflow|tfds"),
      ("a field without a name", ("--config.data.text_field=", "--config.data.train=@/sst2.jsonl"),
       "text_field"),
      ("validation is training", ("--config.data.validation=@/corpus/*.txt",),
       "train|validation|document")):
    yield Case(f"text: {name}", PREPARE, ("--config=@/run.py", "--cache_dir=@/new", *flags), words)


def tokenizers():
  for name, (kind, file, content) in _TOKENIZERS.items():
    path = "" if file is None else f"@/{(file or 'none').partition('/')[0]}"
    yield Case(f"tokenizer {name}", PREPARE,
               ("--config=@/run.py", "--cache_dir=@/new", f"--config.data.tokenizer.kind={kind}",
                f"--config.data.tokenizer.path={path}"), r"tokenizer|/t\b|t\.json|t\.model",
               (lambda w, f=file, c=content: _put(w / f, c)) if file else None)


def tasks():
  good = PROGRAMS["wd_plasticity.evals.finetune"]
  def case(name, damage, path, program="finetune", words="sst2|bad|t\\."):
    return Case(f"task: {name}", f"wd_plasticity.evals.{program}",
                (*PROGRAMS.get(f"wd_plasticity.evals.{program}", good), "--config.tasks=('sst2',)",
                 "--config.sources.sst2.train=" + path,
                 "--config.sources.sst2.validation=@/sst2.jsonl"), words, damage)
  for program in ("finetune", "probe"):
    for name, row in _ROWS.items():
      yield case(f"{program}: row with {name}", lambda w, r=row: _put(
          w / "bad.jsonl", (w / "sst2.jsonl").read_bytes() + r + b"\n"), "@/bad.jsonl", program)
  for name, (file, content) in _TABLES.items():
    yield case(name, (lambda w, f=file, c=content: _put(w / f, c)) if file else None,
               f"@/{file or 'none.jsonl'}", words=r"t\.|none")
  yield case("column that is not there", None, "@/sst2.jsonl#text=review", words="review")
  yield case("split is missing", None, "", words="sst2|train")


def _config(**changes):
  def damage(world):
    path = world / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return damage


def models():
  good = (*PROGRAMS[IMPORT],)
  for name, changes, words in (
      ("layers as text", {"num_hidden_layers": "2"}, "num_hidden_layers"),
      ("more layers", {"num_hidden_layers": 3}, "model.layers|tensor"),
      ("heads of 0", {"num_attention_heads": 0}, "num_attention_heads"),
      ("another architecture", {"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
      ("architectures as an object", {"architectures": {"a": 1}}, "architectures|known"),
      ("code of its own", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
      ("an unknown field", {"mystery": 3}, "mystery"),
      ("theta of nan", {"rope_theta": float("nan"), "rope_parameters": None}, "rope_theta"),
      ("eps of null", {"rms_norm_eps": None}, "rms_norm_eps"),
      ("width of a list", {"hidden_size": [16]}, "hidden_size"),
      ("quantised", {"quantization_config": {"bits": 4}}, "quantization_config"),
      ("vocabulary too large", {"vocab_size": 999}, "embed_tokens|vocab|shape")):
    yield Case(f"model: {name}", IMPORT, good, words, _config(**changes))
  for file in ("config.json", "model.safetensors", "wd_plasticity/checkpoint.json",
               "wd_plasticity/tokenizer/meta.json", "tokenizer.json"):
    for how, content in (("gone", None), ("empty", b""), ("{}", b"{}"), ("[]", b"[]"),
                         ("null", b"null"), ("bytes", b"\xff\x00" * 30), ("cut", "cut")):
      if file == "tokenizer.json" and how not in ("gone", "empty", "{}"):
        continue
      own = file.startswith("wd_plasticity") or file == "tokenizer.json"
      yield Case(f"model: {file} {how}", IMPORT, (*good, "--weight_decay=1.0"),
                 file.rpartition("/")[2].partition(".")[0] + "|wd_plasticity|model",
                 lambda w, f=file, c=content: _spoil(w / "model" / f, c),
                 # What is of ours alone may be missing: then it is a model like any other.
                 status=(0, 2) if own and how == "gone" or file == "tokenizer.json" else (2,),
                 same=lambda w: [])
  yield Case("model: weights of nan", IMPORT, good, "nan|finite|NaN", _weights("nan"))
  yield Case("model: weights of infinity", IMPORT, good, "inf|finite", _weights("inf"))
  yield Case("model: an index that leaves the folder", IMPORT, good, "index|/etc", _index)
  yield Case("model: a pickle alone", IMPORT, good, "safetensors", lambda w: os.rename(
      w / "model/model.safetensors", w / "model/pytorch_model.bin"))
  yield Case("model: a name that is taken", IMPORT,
             ("--model=@/model", "--workdir=@/done", "--name=wd0"), "wd0")
  for what, flags, words in (
      ("of a sweep", ("--checkpoint=@/done", "--out=@/new"), "sweep|member"),
      ("of nothing", ("--checkpoint=@/corpus", "--out=@/new"), "corpus"),
      ("to what is there", ("--checkpoint=@/done/members/wd1", "--out=@/corpus"), "corpus"),
      ("into its own checkpoint", ("--checkpoint=@/done/members/wd1",
                                   "--out=@/done/members/wd1/checkpoints/8"), "checkpoints/8")):
    yield Case(f"export {what}", "wd_plasticity.interop.export", flags, words)


def launchers():
  for program, flag, words in (
      ("launch.local", "--devices_per_job=3", "devices_per_job"),
      ("launch.local", "--jobs_at_once=0", "jobs_at_once"),
      ("launch.local", "--jobs_at_once=1000", "jobs_at_once|cores"),
      ("launch.slurm", "--gpus_per_node=x", "gpus_per_node"),
      ("launch.slurm", "--nodes=0", "nodes"), ("launch.slurm", "--nodes=x", "nodes"),
      ("launch.slurm", "--seconds_to_save=-1", "seconds_to_save"),
      ("launch.slurm", "--time=yesterday", "time"), ("launch.slurm", "--mem=much", "mem"),
      ("launch.slurm", "--max_restarts=-1", "max_restarts"),
      ("launch.slurm", "--cpus_per_task=-1", "cpus_per_task"),
      ("launch.slurm", "--jobs_at_once=-1", "jobs_at_once"),
      ("launch.slurm", "--sbatch=constraint=a", "sbatch"),
      ("launch.slurm", "--processes_per_node=0", "processes_per_node"),
      ("launch.slurm", "--gpus_per_node=4 --processes_per_node=3", "processes_per_node|gpus"),
      ("launch.tpu_vm", "--workdir=/disk/x", "deleted|workdir"),
      ("launch.tpu_vm", "--workdir=gs://Bad_/x", "bucket"),
      ("launch.tpu_vm", "--accelerator_type=v9-8", "runtime_version|accelerator_type"),
      ("launch.tpu_vm", "--tpu_name=T_", "lower-case|tpu_name"),
      ("launch.tpu_vm", "--slices=0", "slices"), ("launch.tpu_vm", "--zone=", "zone"),
      ("launch.tpu_vm", "--poll_seconds=-1", "poll_seconds"),
      ("launch.tpu_vm", "--poll_seconds=nan", "poll_seconds"),
      ("launch.tpu_vm", "--max_restarts=-1", "max_restarts"),
      ("launch.tpu_vm", "--revision=main", "repository|revision"),
      ("launch.xpk", "--device_type=h100-80gb-8", "tpu_type"),
      ("launch.xpk", "--docker_image=", "docker_image"),
      ("launch.xpk", "--workdir=gs://b/x", "gs:"),
      ("launch.xpk", "--cluster=", "cluster"), ("launch.xpk", "--workloads=W", "lower-case"),
      ("launch.xpk", "--priority=urgent", "priority"),
      ("launch.xpk", "--num_slices=0", "num_slices"),
      ("launch.xpk", "--max_restarts=-1", "max_restarts"),
      ("launch.xm", "--executor=moon", "executor"), ("launch.xm", "--cpu=many", "cpu")):
    yield Case(f"{program} {flag}", program, with_flag(program, *flag.split()), words)
  for program in ("launch.local", "launch.slurm", "launch.tpu_vm", "launch.xpk"):
    good = PROGRAMS[program]
    for flag, words in (
        ("--members_per_job=0", "members_per_job"), ("--members_per_job=x", "members_per_job"),
        ("--sweep=9", r"\b9\b"), ("--sweep=x", "sweep|x"), ("--set_config=x", "x|set_config"),
        ("--set_config=optim.weigth_decay=1", "weigth_decay"),
        ("--set_config=optim.weight_decay=nan", "weight_decay"),
        ("--config.mesh.data=3", "mesh"), ("--config.train.steps=-1", "steps"),
        ("--config.checkpoint.every=0 steps", "every"), ("--config.seed=2147483648", "seed")):
      yield Case(f"{program} {flag}", program, with_flag(program, flag), words)
    yield Case(f"{program} braces", program,
               (*(f for f in good if not f.startswith("--workdir")), "--workdir=/a/{host}"), "host")


def _put(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)


def _spoil(path, content):
  if content is None:
    path.unlink()
  else:
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2] if content == "cut" else content)


def _weights(value):
  def damage(world):
    import numpy as np
    from safetensors.numpy import load_file, save_file
    path = world / "model" / "model.safetensors"
    tensors = {k: np.array(v) for k, v in load_file(path).items()}
    next(iter(tensors.values())).flat[3] = float(value)
    save_file(tensors, path)
  return damage


def _index(world):
  folder = world / "model"
  shutil.move(folder / "model.safetensors", folder / "a.safetensors")
  (folder / "model.safetensors.index.json").write_text(json.dumps(
      {"weight_map": {"model.embed_tokens.weight": "../../../../etc/passwd"}}))


GROUPS = {"text": texts, "tokenizer": tokenizers, "task": tasks, "model": models,
          "launcher": launchers}
