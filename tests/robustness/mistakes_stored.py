"""Damage to what programs have stored: each is refused by name, or made good again to the bit."""

import json
import os
import shutil

import worlds
from judge import Case
from mistakes_written import MAIN, PROGRAMS

_GO_ON = ("--config=@/run.py", "--workdir=@/half")
_RANK = ("--config=@/attention_rank.py", "--checkpoint=@/done", "--workdir=@/done")


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def _flip_array(path):
  """In numbers, not in an index, whose damage any reader would see."""
  files = [p for p in path.rglob("*") if p.is_file() and p.parent.name == "d"]
  _flip(max(files, key=lambda p: p.stat().st_size))


def _cut(path):
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def _edit(**changes):
  """Sets fields of a JSON file; a field of the value `...` is removed."""
  def damage(path):
    fields = json.loads(path.read_text())
    for key, value in changes.items():
      if value is ...:
        fields.pop(key, None)
      else:
        fields[key] = value
    path.write_text(json.dumps(fields))
  return damage


def _write(content):
  return lambda path: path.write_bytes(content)


_JSON = {"gone": os.unlink, "empty": _write(b""), "cut": _cut, "bytes": _write(b"\xff\x00\x80"),
         "{}": _write(b"{}"), "[]": _write(b"[]"), "null": _write(b"null"),
         "deep": _write(b"[" * 100_000), "long number": _write(b"9" * 5000)}
_BINARY = {"gone": os.unlink, "empty": _write(b""), "cut": _cut, "bytes": _write(b"\xff\x00\x80"),
           "flipped": _flip}
_LAST = "members/wd1/checkpoints/6"
# stored files of the run that is to go on, and how each is damaged
_STORED = {
    "members/wd1/config.json": _JSON, "members/wd1/plan.json": _JSON,
    "members/wd1/metrics.jsonl": {
        k: _JSON[k] for k in ("gone", "empty", "cut", "bytes", "[]")} | {"flipped": _flip},
    "members/wd1/tokenizer/meta.json": _JSON,
    f"{_LAST}/meta/data.json": _JSON, f"{_LAST}/position/data.json": _JSON,
    f"{_LAST}/_CHECKPOINT_METADATA": _BINARY, f"{_LAST}/params/_METADATA": _BINARY,
    f"{_LAST}/params/manifest.ocdbt": _BINARY, f"{_LAST}/opt_state/manifest.ocdbt": _BINARY,
    f"{_LAST}/opt_state/_METADATA": _BINARY, f"{_LAST}/params/_sharding": _BINARY,
    f"{_LAST}/commit_success.txt": {"gone": os.unlink},
    f"{_LAST}/params/array_metadatas/process_0": _BINARY,
    "versions.json": {k: _JSON[k] for k in ("gone", "empty", "bytes", "[]", "null")},
    "cache/source_hashes.json": _JSON,
}


def _same(world):
  """What the run that went on differs in from one that nothing had happened to."""
  got, wanted = ({k: v for k, v in worlds.without_paths(
      worlds.outcome(world / w, plans=False)).items() if _compared(k)} for w in ("half", "done"))
  return worlds.differences(got, wanted)


def _compared(name):
  return name.endswith(("metrics.jsonl", f"/{worlds.STEPS}"))


def _words(file):
  """Names by which a sentence may call a file: its own, or the folder that it is a part of."""
  parts = file.split("/")
  if "checkpoints" in parts:
    return "/".join(parts[:4]).replace(".", r"\.")
  return parts[-1].replace(".", r"\.") + "|wd1" * (parts[0] == "members")


def going_on():
  def case(name, damage, words, **fields):
    return Case(f"going on: {name}", MAIN, _GO_ON, words, damage,
                **{"status": (0, 2), "same": _same} | fields)
  for file, damages in _STORED.items():
    for how, damage in damages.items():
      yield case(f"{file} {how}", lambda w, f=file, d=damage: d(w / "half" / f), _words(file))
  for item in ("params", "opt_state"):
    yield case(f"a bit of {item} flipped", lambda w, i=item: _flip_array(w / "half" / _LAST / i),
               _LAST)
    yield case(f"{item} gone", lambda w, i=item: shutil.rmtree(w / "half" / _LAST / i), _LAST)
    yield case(f"arrays of {item} gone",
               lambda w, i=item: shutil.rmtree(w / "half" / _LAST / i / "d"), _LAST)
    yield case(f"{item} of another step", lambda w, i=item: _replace(
        w / "half/members/wd1/checkpoints/4" / i, w / "half" / _LAST / i), _LAST)
    yield case(f"{item} of another member", lambda w, i=item: _replace(
        w / "half/members/wd0/checkpoints/6" / i, w / "half" / _LAST / i), _LAST)
  yield case("the checkpoint of another member", lambda w: _replace(
      w / "half/members/wd0/checkpoints/6", w / "half" / _LAST), _LAST + "|wd0")
  yield case("a step under another number", lambda w: _replace(
      w / "half/members/wd1/checkpoints/4", w / "half" / _LAST), _LAST)
  yield case("an earlier step as the last", lambda w: _replace(
      w / "half/members/wd1/checkpoints/2", w / "half/members/wd1/checkpoints/8"), "checkpoints/8")
  yield case("a member under another name", lambda w: _replace(
      w / "half/members/wd0", w / "half/members/wd1"), "wd0|wd1")
  yield case("metrics of another member", lambda w: _replace(
      w / "half/members/wd0/metrics.jsonl", w / "half/members/wd1/metrics.jsonl"),
             "metrics|wd1")
  for key, value in (("step", 4), ("member", "wd0"), ("member", "../../../x"), ("member", ...),
                     ("step", ...), ("format_version", 99), ("format_version", ...),
                     ("format", "odd"), ("model", ...), ("model", None), ("model", "text"),
                     ("config", ...), ("config", []), ("weight_decay", ...), ("weight_decay", "x"),
                     ("weight_decay", 7.0), ("tokens", "x"), ("data_fingerprint", "0" * 64),
                     ("tokenizer_fingerprint", "0" * 64), ("parameters", ...), ("steps", "x")):
    damage = _edit(**{key: value})
    yield case(f"meta.{key}={'gone' if value is ... else value}",
               lambda w, d=damage: d(w / "half" / _LAST / "meta/data.json"), _LAST)
  for key, value in (("next_step", 4), ("next_step", "x"), ("next_step", ...)):
    damage = _edit(**{key: value})
    yield case(f"position.{key}={'gone' if value is ... else value}",
               lambda w, d=damage: d(w / "half" / _LAST / "position/data.json"), _LAST)
  for name in ("train.npy", "train_subset.npy", "validation.npy", "stats.json",
               "tokenizer/meta.json"):
    for how, damage in (_BINARY if name.endswith("npy") else _JSON).items():
      yield case(f"cache {name} {how}", lambda w, n=name, d=damage: d(_cached(w, n)),
                 "cache|" + name)
  yield case("members is a file", lambda w: _as_file(w / "half/members"), "members")
  yield case("a member is a file", lambda w: _as_file(w / "half/members/wd1"), "wd1")
  yield case("checkpoints is a file", lambda w: _as_file(w / "half/members/wd1/checkpoints"),
             "checkpoints")
  yield case("metrics is a folder", lambda w: _as_folder(w / "half/members/wd1/metrics.jsonl"),
             "metrics")
  yield case("config is a folder", lambda w: _as_folder(w / "half/members/wd1/config.json"),
             "config")
  yield case("cache is a file", lambda w: _as_file(w / "half/cache"), "cache")
  for how in ("{}", "[]", "null", "bytes", "empty", "deep"):
    yield case(f"members_at_once.json {how}", lambda w, h=how: _JSON[h](
        _touched(w / "half/members_at_once.json")), "members_at_once")
    yield case(f"FAILED.json {how}", lambda w, h=how: _JSON[h](
        _touched(w / "half/members/wd1/FAILED.json")), "FAILED|wd1")
  yield case("a stranger's file among the members", lambda w: (
      w / "half/members/notes.txt").write_text("x"), "notes", status=(0,))
  yield case("an unfinished save", lambda w: (
      w / "half/members/wd1/checkpoints/8.orbax-checkpoint-tmp/params").mkdir(parents=True),
             "", status=(0,))
  for field, value in (("optim.learning_rate", "0.02"), ("seed", "3"), ("model.width", "24"),
                       ("train.steps", "10"), ("data.sequence_length", "16")):
    yield Case(f"going on with another {field}", MAIN, (*_GO_ON, f"--config.{field}={value}"),
               field)
  yield Case("going on with other texts", MAIN, _GO_ON, "data|corpus|text",
             lambda w: (w / "corpus/00.txt").write_text("something else " * 90))


def _rank_is_same(world):
  wanted = json.loads((world / "done/evals/attention_rank/wd1/8/spectra.json").read_text())
  got = json.loads((world / "new/evals/attention_rank/wd1/8/spectra.json").read_text())
  return [] if got["values"] == wanted["values"] else ["values"]


def checkpoints():
  """Of eval programs, and of the export."""
  last = "done/members/wd1/checkpoints/8"
  programs = {"attention_rank": ("--config=@/attention_rank.py", "--checkpoint=@/done",
                                 "--workdir=@/new"),
              "export": PROGRAMS["wd_plasticity.interop.export"]}
  def cases(name, damage, words="checkpoints/8"):
    for program, flags in programs.items():
      module = f"wd_plasticity.{'interop' if program == 'export' else 'evals'}.{program}"
      same = _rank_is_same if program == "attention_rank" else lambda w: []
      yield Case(f"{program}: {name}", module, flags, words, damage,
                 status=(0, 2) if program == "attention_rank" else (2,), same=same)
  for file in ("meta/data.json", "params/_METADATA", "params/manifest.ocdbt"):
    for how, damage in (_JSON if file.endswith("json") else _BINARY).items():
      yield from cases(f"{file} {how}", lambda w, f=file, d=damage: d(w / last / f))
  for key, value in (("member", "../../../x"), ("member", "/abs"), ("member", ""), ("member", 3),
                     ("member", ...), ("step", ...), ("step", 4), ("model", None), ("model", {}),
                     ("config", {}), ("weight_decay", None), ("weight_decay", "big"),
                     ("format_version", 99), ("tokenizer_fingerprint", "0" * 64)):
    damage = _edit(**{key: value})
    yield from cases(f"meta.{key}={'gone' if value is ... else value}",
                     lambda w, d=damage: d(w / last / "meta/data.json"),
                     "tokenizer|checkpoints/8" if "tokenizer" in key else "checkpoints/8")
  yield from cases("a bit of params flipped", lambda w: _flip_array(w / last / "params"))
  yield from cases("params gone", lambda w: shutil.rmtree(w / last / "params"))
  for how in ("gone", "{}", "[]", "bytes"):
    yield from cases(f"tokenizer {how}", lambda w, h=how: _JSON[h](
        w / "done/members/wd1/tokenizer/meta.json"), "tokenizer")


def results():
  """What the report and a second start of an eval make of results."""
  file = "evals/attention_rank/wd1/8/spectra.json"
  def cases(name, damage, words="spectra"):
    yield Case(f"results again: {name}", "wd_plasticity.evals.attention_rank", _RANK, words, damage,
               status=(0, 2), same=_results_are_good)
    yield Case(f"report: {name}", "wd_plasticity.report", ("--workdir=@/done", "--out=@/new"),
               words, damage, status=(0, 2), same=lambda w, x=words: _is_mentioned(w, x))
  for how, damage in _JSON.items():
    if how != "gone":
      yield from cases(f"spectra.json {how}", lambda w, d=damage: d(w / "done" / file))
  for how, damage in _BINARY.items():
    yield from cases(f"spectra.npz {how}",
                     lambda w, d=damage: d(w / "done" / file.replace("json", "npz")))
  for key, value in (("settings", ...), ("settings", None), ("values", ...), ("values", None),
                     ("values", []), ("values", {}), ("schema_version", 99),
                     ("schema_version", ...), ("checkpoint", ...), ("checkpoint", None)):
    damage = _edit(**{key: value})
    yield from cases(f"spectra.{key}={'gone' if value is ... else value}",
                     lambda w, d=damage: d(w / "done" / file))
  for file_, how in (("members/wd1/config.json", "{}"), ("members/wd1/config.json", "bytes"),
                     ("members/wd1/plan.json", "[]"), ("members/wd1/metrics.jsonl", "bytes"),
                     ("members/wd1/metrics.jsonl", "[]"), ("evals/attention_rank/results.jsonl",
                                                           "bytes")):
    yield Case(f"report: {file_} {how}", "wd_plasticity.report",
               ("--workdir=@/done", "--out=@/new"), "wd1|results",
               lambda w, f=file_, h=how: _JSON[h](w / "done" / f), status=(0, 2),
               same=(lambda w: []) if "results" in file_ else lambda w: _is_mentioned(w, "wd1"))
  yield Case("report: of an empty folder", "wd_plasticity.report", ("--workdir=@/empty",), "empty",
             lambda w: (w / "empty").mkdir())
  yield Case("report: of texts", "wd_plasticity.report", ("--workdir=@/corpus",), "corpus")
  yield Case("report: of a file", "wd_plasticity.report", ("--workdir=@/run.py",), "run.py")
  yield Case("other settings without --replace", "wd_plasticity.evals.attention_rank",
             (*_RANK, "--config.threshold=0.9"), "replace")


def _results_are_good(world):
  path = world / "done/evals/attention_rank/wd1/8"
  try:
    made = json.loads((path / "spectra.json").read_text())
    whole = all(isinstance(made[k], dict) and made[k] for k in ("settings", "values", "checkpoint"))
    import numpy as np
    with np.load(path / "spectra.npz") as arrays:
      whole = whole and all(np.isfinite(arrays[k]).all() for k in arrays.files)
  except Exception as e:
    return [f"{type(e).__name__} of {path.name}"]
  return [] if whole else ["spectra.json"]


def _is_mentioned(world, words):
  page = (world / "new/report.html").read_text()
  return [] if any(word in page for word in words.split("|")) else [f"{words} not in the report"]


def _replace(source, place):
  if place.is_dir():
    shutil.rmtree(place)
  (shutil.copytree if source.is_dir() else shutil.copyfile)(source, place)


def _cached(world, name):
  return next((world / "half/cache").glob(f"*/{name}"))


def _as_file(path):
  shutil.rmtree(path)
  path.write_text("x")


def _as_folder(path):
  path.unlink()
  path.mkdir()


def _touched(path):
  path.touch()
  return path


GROUPS = {"going on": going_on, "checkpoint": checkpoints, "results": results}
