"""Writes a checkpoint as a model directory of transformers.

  python -m wd_plasticity.interop.export --checkpoint=runs/books/members/wd0.3-seed0 \
      --out=exports/wd0.3

OUT then holds config.json, safetensors, the tokenizer, generation_config.json and a model
card, and in wd_plasticity/ what `interop.import_` needs to make the same checkpoint again.
Tensors are written as they are read, so a model need not fit into memory.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from wd_plasticity import cli, commands, errors
from wd_plasticity.errors import Interrupted, UserError
from wd_plasticity.evals.targets import Target
from wd_plasticity.files import write_json, write_text
from wd_plasticity.interop import (
    model_card,
    parameter_stream,
    safetensors_writer,
    tokenizer_files,
    transformers_config,
    transformers_files,
    transformers_weights,
)
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.training import checkpoint as checkpoint_lib
from wd_plasticity.training import run_record
from wd_plasticity.training.progress import Progress

OWN_FOLDER = "wd_plasticity"  # in an export: what transformers does not read
OWN_FILE = "checkpoint.json"
FORMAT = "wd_plasticity export"
KEPT_FOLDER = "transformers"  # beside an import's checkpoints: files of the directory it is of
DTYPES = ("float32", "bfloat16")
DEFAULT_SHARD = "5GB"

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export(path: str | os.PathLike, out: str | os.PathLike, *, dtype: str = "",
           shard_size: str = DEFAULT_SHARD, command: str = "",
           report: Callable[[str], None] = print) -> pathlib.Path:
  """Writes a checkpoint as a model directory of transformers.

  Args:
    path: a step directory, or a member, of which the newest step is taken.
    out: the directory, which must not exist, or be empty.
    dtype: of the tensors, float32 or bfloat16; '' for float32, and for what was imported
      the dtypes that it had.
    shard_size: '5GB' or '500MB': the largest file.
    command: for the model card.
    report: called with lines of what was done.

  Returns:
    The directory.

  Raises:
    UserError: there is no such checkpoint, transformers has no such model, or the directory
      cannot be written.
  """
  shard_bytes = parse_size(shard_size)
  if dtype not in ("", *DTYPES):
    raise UserError(f"--dtype={dtype} is unknown; use one of {', '.join(DTYPES)}.")
  out = pathlib.Path(out).expanduser().absolute()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"--out={out} is there already; delete it or give another folder.")
  stored = checkpoint_lib.open_checkpoint(pathlib.Path(path).expanduser())
  target = Target(stored, ModelConfig.from_section(stored.meta["model"],
                                                   stored.meta["model"]["vocab_size"]))
  transformers_config.check_exportable(target.model)
  tokenizer = target.tokenizer
  tensors = _tensors(target, dtype)
  size = sum(safetensors_writer.num_bytes(*t) for t in tensors.values())
  parameter_stream.require_space(out.parent, size, "the exported model")

  temporary = out.with_name(f".{out.name}.tmp-export")
  try:
    shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
    temporary.mkdir(parents=True)
  except OSError as e:
    raise UserError(f"--out={out}: {errors.describe(e, out)}.") from e
  try:
    own = temporary / OWN_FOLDER
    own.mkdir()
    tokenizer.save(str(own / "tokenizer"))
    write_json(own / OWN_FILE, {"format": FORMAT, "format_version": 1, "meta": stored.meta})
    kept = _copy_kept(target, temporary)
    notes = []
    if not kept & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
      notes += tokenizer_files.write(tokenizer, own / "tokenizer", temporary, _length(target))
    _write_configs(target, temporary, tokenizer, tensors)
    for note in notes:
      report(f"note: {note}")
    dtypes = sorted({dtype for _, dtype in tensors.values()})
    write_text(temporary / "README.md", model_card.write(
        f"{target.member}, step {target.step}", stored.meta, target.model,
        architecture=transformers_config.architecture(target.model), dtype=" and ".join(dtypes),
        tokenizer=_on_tokenizer(target, tokenizer, kept), command=command,
        version=run_record.code_version(), notes=notes + _remarks(target)))
    _write_tensors(target, temporary, tensors, shard_bytes)
    if out.exists():
      out.rmdir()
    os.replace(temporary, out)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  report(f"{target.name}: {len(tensors)} tensors in {' and '.join(dtypes)}, {size / 1e6:.1f} MB, "
         f"as {transformers_config.architecture(target.model)} in {out}")
  return out


def parse_size(text: str) -> int:
  """Bytes of '5GB', '500MB' or '1GiB'.

  Raises:
    UserError: it is not a size.
  """
  found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
  size = float(found[1]) * _UNITS.get(found[2].upper(), 0) if found else 0
  if not 1 <= size < 1 << 63:
    raise UserError(f"--shard_size={text} is not a size; write it like 5GB or 500MB.")
  return int(size)


def _length(target: Target) -> int:
  """The longest sequence the model is meant for."""
  imported = target.meta.get("imported")
  return imported["max_position_embeddings"] if imported else target.sequence_length


def _tensors(target: Target, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
  """transformers' names to shape and dtype, in the order of its modules."""
  imported = target.meta.get("imported") or {"dtype": "float32", "dtypes": {}}
  found = {p.tensor: (p.shape, dtype or imported["dtypes"].get(p.tensor, imported["dtype"]))
           for p in transformers_weights.places(target.model)}
  def order(name):
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    first = 0 if name.startswith("model.embed") else 1 if layer else 3 if "lm_head" in name else 2
    return first, int(layer[1]) if layer else 0
  return dict(sorted(found.items(), key=lambda item: order(item[0])))


def _kept_folder(target: Target) -> pathlib.Path:
  return target.directory.parents[1] / KEPT_FOLDER


def _copy_kept(target: Target, out: pathlib.Path) -> set[str]:
  """Copies what an import has kept of its directory; returns the names."""
  folder = _kept_folder(target)
  if not target.meta.get("imported") or not folder.is_dir():
    return set()
  names = {p.name for p in folder.iterdir() if p.is_file()}
  for name in names:
    shutil.copyfile(folder / name, out / name)
  return names


def _write_configs(target: Target, out: pathlib.Path, tokenizer, tensors) -> None:
  """config.json and generation_config.json, where an import has not kept them."""
  counts: dict[str, int] = {}
  for shape, dtype in tensors.values():
    counts[dtype] = counts.get(dtype, 0) + safetensors_writer.num_bytes(shape, dtype)
  dtype = max(counts, key=counts.get)
  path = out / "config.json"
  if path.exists():
    fields = transformers_files.read_json(path)
    names = [n for n in ("torch_dtype", "dtype") if n in fields] or ["torch_dtype", "dtype"]
    if any(fields.get(n) not in (dtype, None) for n in names):
      write_json(path, fields | dict.fromkeys(names, dtype))
  else:
    # transformers' classes have ids of their own for what is left out.
    fields = transformers_config.config_to_transformers(target.model, _length(target)) | {
        "bos_token_id": None, "eos_token_id": tokenizer.eos_id, "pad_token_id": None,
        "torch_dtype": dtype, "dtype": dtype, "use_cache": True}
    write_json(path, fields)
  if not (out / "generation_config.json").exists():
    write_json(out / "generation_config.json", _generation(target, tokenizer))


def _generation(target: Target, tokenizer) -> dict[str, Any]:
  """Greedy decoding that ends as ours does."""
  fields = {"do_sample": False, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.eos_id}
  if tokenizer.vocab_size < target.model.vocab_size:  # rows of the head that are no token
    fields["suppress_tokens"] = list(range(tokenizer.vocab_size, target.model.vocab_size))
  return fields


def _write_tensors(target: Target, out: pathlib.Path, tensors, shard_bytes: int) -> None:
  places = transformers_weights.places(target.model)
  shapes = transformers_weights.parameter_shapes(places)
  reader, name, done = None, None, 0
  with Progress(len(places), "tensors", "export") as progress, \
      safetensors_writer.ShardedWriter(out, tensors, shard_bytes) as writer:
    for place in places:
      if place.parameter != name:
        reader = None  # not two in memory
        name = place.parameter
        reader = parameter_stream.ParameterReader(target.stored, name, shapes[name])
      for start, stop in parameter_stream.pieces(place):
        writer.write(place.tensor, start, reader.rows(place, start, stop))
      done += 1
      progress.update(done)


def _on_tokenizer(target: Target, tokenizer, kept: set[str]) -> str:
  if kept & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
    return "The tokenizer is the one that came with the model."
  return (f"Texts were encoded without special tokens around them, and each document ends with the "
          f"token {tokenizer.eos_id}; the tokenizer here does the same, but that it takes a "
          "special token spelled in a text for the token.")


def _remarks(target: Target) -> list[str]:
  remarks = []
  if target.model.document_mask:
    remarks.append("In pretraining a token attended only to those of its own document; give one "
                   "document at a time.")
  if not target.meta.get("imported"):
    remarks.append(f"It was trained on sequences of {target.sequence_length} tokens; longer ones "
                   "are outside of what it has seen.")
  return remarks


def prepare_process(left: str) -> None:
  """Leaves accelerators alone, and lets SIGTERM end the program in good order."""
  import jax
  jax.config.update("jax_platforms", "cpu")
  def stop(number, _):
    raise Interrupted(f"stopped by {signal.Signals(number).name}; {left}, run the same command "
                      "again.")
  signal.signal(signal.SIGTERM, stop)


def run() -> None:
  """Exports from the command line."""
  checkpoint = flags.DEFINE_string(
      "checkpoint", None, "A step of a member's checkpoints, or a member, of which the newest step "
      "is taken.")
  out = flags.DEFINE_string("out", None, "Folder of the model, which must not be there yet.")
  dtype = flags.DEFINE_string(
      "dtype", "", "float32 or bfloat16; by default float32, and for what was imported as it was.")
  shard_size = flags.DEFINE_string("shard_size", DEFAULT_SHARD, "Largest file, such as 500MB.")

  def main(argv: Sequence[str]) -> None:
    del argv
    if not checkpoint.value:
      raise UserError("--checkpoint=PATH is missing; give a member or a step of its checkpoints.")
    if not out.value:
      raise UserError("--out=FOLDER is missing; the model is written there.")
    prepare_process("nothing was written")
    command = shlex.join(["python", *commands.words(
        "wd_plasticity.interop.export", ("checkpoint", "out", "dtype", "shard_size"))])
    export(checkpoint.value, out.value, dtype=dtype.value, shard_size=shard_size.value,
           command=command)

  cli.run(main)


if __name__ == "__main__":
  run()
