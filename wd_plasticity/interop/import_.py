"""Makes a checkpoint of a model directory of transformers, for every eval program.

  python -m wd_plasticity.interop.import_ --model=DIR --workdir=runs/published \
      --name=wd0.1 --weight_decay=0.1 --config=configs/llama2.py

DIR holds a Llama or OLMo-2 as `save_pretrained` writes it, with its tokenizer. The section
`data` of --config names the text on which losses are measured (overfit, forgetting, replay);
without it the programs run that need none. A directory that `interop.export` wrote brings
its weight decay, steps and configuration with it.

Tensors are written as they are read, so a model need not fit into memory. They are kept in
float32, which holds every number of bfloat16 and float16, so the dtype is all that has to be
remembered for `interop.export` to give the same bits back.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from wd_plasticity import cli, errors, ownership, paths
from wd_plasticity.config import as_json, default_config
from wd_plasticity.data import prepare, tokenizers
from wd_plasticity.errors import UserError
from wd_plasticity.files import sha256, write_json, write_text
from wd_plasticity.interop import (
    parameter_stream,
    tokenizer_files,
    transformers_config,
    transformers_files,
    transformers_weights,
)
from wd_plasticity.interop.export import (
    FORMAT,
    KEPT_FOLDER,
    OWN_FILE,
    OWN_FOLDER,
    prepare_process,
)
from wd_plasticity.models import flops
from wd_plasticity.models.config import ModelConfig
from wd_plasticity.training import checkpoint as checkpoint_lib
from wd_plasticity.training import run_record
from wd_plasticity.training.progress import Progress

_LONGEST = 2048  # tokens at once where no configuration says, see `--config`
_KEPT = ("config.json", "generation_config.json")


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be imported, and as what.

  Attributes:
    model: the directory of transformers.
    workdir, name: the checkpoint goes to <workdir>/members/<name>/checkpoints/<step>.
    weight_decay, seed, step, tokens: of its pretraining; None: as an export of ours says,
      else seed 0, step 1, 0 tokens (not known), and weight_decay must be given.
    config: a pretraining configuration with the data, or None.
    tokenizer: file or folder in place of the directory's own; '' for that.
    harmless: fields of config.json, unknown here, that do not change the computation.
  """
  model: pathlib.Path
  workdir: pathlib.Path
  name: str
  weight_decay: float | None = None
  seed: int | None = None
  step: int | None = None
  tokens: int | None = None
  config: ConfigDict | None = None
  tokenizer: str = ""
  harmless: tuple[str, ...] = ()


def import_model(request: Request, report: Callable[[str], None] = print) -> pathlib.Path:
  """Makes the checkpoint; does nothing when it is there already.

  Args:
    request: what and where.
    report: called with lines of what was done, and of what differs from transformers.

  Returns:
    The step directory.

  Raises:
    UserError: the directory cannot be read, uses what this decoder has not, or there is
      another checkpoint of that name and step.
  """
  source = pathlib.Path(request.model).expanduser().absolute()
  workdir = pathlib.Path(request.workdir).expanduser().absolute()
  directory = workdir / "members" / request.name
  _check_request(request)
  fields, tensors = transformers_files.read_directory(source)
  model_section = _model_section(fields, request)
  own = _own_record(source)
  tokenizer, notes = _tokenizer(source, fields, request, own)
  config = _config(request, own, fields)
  config["model"] |= model_section
  model = ModelConfig.from_section(config["model"], model_section["vocab_size"])
  _check_tokenizer(tokenizer, model, source)
  places = transformers_weights.places_in(tensors, model)
  for place in places:
    transformers_weights.check_shape(place, tensors.stored(place.tensor).shape)
  if fields.get("attention_dropout"):
    notes.append(f"attention_dropout={fields['attention_dropout']} is of training with "
                 "transformers; nothing is dropped here.")
  for note in notes:
    report(f"note: {note}")
  data_fingerprint = _data_fingerprint(request, own, config, tokenizer, workdir, report)
  meta = _meta(request, own, fields, tensors, places, config, model, tokenizer, data_fingerprint,
               source)
  path = directory / "checkpoints" / str(meta["step"])
  is_new = not directory.exists()
  with ownership.hold(directory, f"member {request.name}"):
    if _is_there(path, meta):
      report(f"{path} holds this model already; nothing was done.")
      return path
    # The checkpoint comes last: without it the member is not there, and a second run goes on.
    _open_member(directory, config, tokenizer, data_fingerprint, workdir)
    try:
      _keep_files(source, directory / KEPT_FOLDER, with_tokenizer=not request.tokenizer)
      _write_records(directory, meta, config, model)
      _write_checkpoint(path, places, tensors, meta)
    except UserError:
      if is_new:  # what a refused model has left is no member
        shutil.rmtree(directory, ignore_errors=True)
      raise
  report(f"{request.name}/{meta['step']}: {len(places)} tensors, "
         f"{meta['parameters']['total']:,} parameters, in {path}")
  return path


def _check_request(request: Request) -> None:
  def need(ok, field, value, what):
    if not ok:
      raise UserError(f"--{field}={value} must be {what}.")
  need(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", request.name), "name", request.name,
       "a folder's name of letters, digits and .+_-")
  for field, least in (("weight_decay", 0), ("seed", 0), ("step", 1), ("tokens", 0)):
    value = getattr(request, field)
    need(value is None or least <= value < float("inf"), field, value,
         "at least 1" if least else "zero or positive")


def _model_section(fields: Mapping[str, Any], request: Request) -> dict[str, Any]:
  architecture = fields["architectures"][0]
  if architecture not in transformers_config.CAUSAL.values():
    raise UserError(f"{request.model} holds a {architecture}, which scores texts and has no head "
                    "for next tokens; name it as the reward_model of configs/finetune.py instead.")
  return transformers_config.section_from_transformers(fields, request.harmless)


def _own_record(source: pathlib.Path) -> dict[str, Any]:
  """The `meta` of the checkpoint that `interop.export` wrote; {} for other directories."""
  path = source / OWN_FOLDER / OWN_FILE
  if not path.is_file():
    return {}
  record = transformers_files.read_json(path)
  meta = record.get("meta")
  if record.get("format") != FORMAT or record.get("format_version") != 1 or not _is_meta(meta):
    raise UserError(f"{path} is not a record that this code can read; update wd_plasticity, or "
                    f"remove the folder {path.parent} to import the model without it.")
  return meta


# What is used of it, and its types.
_META = {"weight_decay": (int, float), "step": int, "steps": int, "tokens": int, "config": dict,
         "tokenizer_fingerprint": str, "data_fingerprint": str}


def _is_meta(meta: Any) -> bool:
  def has(fields, name, kind):
    return isinstance(fields.get(name), kind) and not isinstance(fields[name], bool)
  def alike(defaults, fields):  # sections are sections
    return all(isinstance(fields.get(name, default), dict) and alike(default, fields.get(name, {}))
               for name, default in defaults.items() if isinstance(default, dict))
  return (isinstance(meta, dict) and all(has(meta, name, kind) for name, kind in _META.items())
          and has(meta["config"], "seed", int) and isinstance(meta.get("imported", {}), dict)
          and alike(as_json(default_config()), meta["config"])
          and has(meta["config"].get("data", {}), "sequence_length", int)
          and min(meta["config"]["data"]["sequence_length"], meta["step"], meta["steps"]) > 0
          and all(0 <= meta[name] < 1e30
                  for name in ("weight_decay", "tokens", "step", "steps")))


def _tokenizer(source, fields, request, own):
  if request.tokenizer:
    return tokenizer_files.open_named(pathlib.Path(request.tokenizer).expanduser())
  saved = source / OWN_FOLDER / "tokenizer"
  if own and saved.is_dir():
    tokenizer = tokenizers.load(str(saved))
    if tokenizer.fingerprint != own["tokenizer_fingerprint"]:
      raise UserError(f"the tokenizer in {saved} is not the one that {saved.parent / OWN_FILE} "
                      "names (its fingerprint differs); copy the directory again.")
    return tokenizer, []
  return tokenizer_files.read(source, fields)


def _check_tokenizer(tokenizer, model: ModelConfig, source) -> None:
  if tokenizer.vocab_size > model.vocab_size:
    raise UserError(f"The tokenizer has {tokenizer.vocab_size} tokens and the embedding of {source}"
                    f" {model.vocab_size} rows, so they are not of one model; name the right one "
                    "by --tokenizer=PATH.")


def _config(request: Request, own: Mapping, fields: Mapping) -> dict[str, Any]:
  """The whole configuration that the checkpoint gets, in JSON's types, without the sizes."""
  config = as_json(default_config())
  longest = fields.get("max_position_embeddings") or _LONGEST
  if request.config is not None:
    config = _merged(config, as_json(request.config))
  elif own:
    config = _merged(config, own["config"])
  else:
    config["data"] |= {"source": "none", "sequence_length": min(longest, _LONGEST)}
  decay = request.weight_decay
  if decay is None:
    if not own:
      raise UserError("--weight_decay=NUMBER is missing; give what the model was pretrained with.")
    decay = own["weight_decay"]
  config["optim"]["weight_decay"] = float(decay)
  config["seed"] = request.seed if request.seed is not None else (
      own["config"]["seed"] if own else 0)
  return config


def _merged(defaults: dict, given: Mapping) -> dict:
  merged = dict(defaults)
  for key, value in given.items():
    deeper = isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping)
    merged[key] = _merged(defaults[key], value) if deeper else value
  return merged


def _data_fingerprint(request, own, config, tokenizer, workdir, report) -> str:
  """Prepares the data of `--config` with the model's tokenizer; '' when there are none."""
  if request.config is None:  # with another tokenizer the data are others
    same = tokenizer.fingerprint == own.get("tokenizer_fingerprint")
    return own["data_fingerprint"] if same else ""
  cache = pathlib.Path(config["data"]["cache_dir"] or workdir / "cache").expanduser().absolute()
  # Not the member's folder: configurations of members with one tokenizer are the same.
  saved = cache / f"tokenizer-{tokenizer.fingerprint[:16]}"
  try:
    tokenizer.save(str(saved))
  except OSError as e:
    raise UserError(f"{errors.describe(e, cache)}.") from e
  config["data"]["tokenizer"] |= {"kind": "saved", "path": str(saved), "eos": ""}
  return prepare.prepare(ConfigDict(config["data"]), cache, report).fingerprint


def _meta(request, own, fields, tensors, places, config, model, tokenizer, data_fingerprint,
          source):
  """What the checkpoint says of itself, as of pretraining (training/loop.py)."""
  step = request.step or own.get("step", 1)
  tokens = request.tokens if request.tokens is not None else own.get("tokens", 0)
  exported = transformers_weights.places(model)  # a tied head may be stored by another name
  dtypes = {to.tensor: transformers_files.DTYPES[tensors.stored(place.tensor).dtype]
            for to, place in zip(exported, places, strict=True)}
  usual = max(sorted(set(dtypes.values())), key=list(dtypes.values()).count)
  return {
      "member": request.name, "step": step, "steps": max(step, own.get("steps", step)),
      "tokens": tokens, "config": config, "model": as_json(dataclasses.asdict(model)),
      "parameters": flops.count_parameters(model),
      "weight_decay": config["optim"]["weight_decay"],
      "tokenizer_fingerprint": tokenizer.fingerprint, "data_fingerprint": data_fingerprint,
      "imported": {
          "source": str(source), "sha256": _sha256(source, tensors), "dtype": usual,
          "dtypes": {name: d for name, d in dtypes.items() if d != usual},
          "max_position_embeddings": fields.get("max_position_embeddings") or _LONGEST,
          "pretraining_known": bool(own) or request.config is not None,
          "order_known": _order_known(request, own, step, config, data_fingerprint)}}


def _order_known(request, own, step, config, data_fingerprint) -> bool:
  """Whether the records it has read follow from seed and step: it was pretrained here."""
  return (bool(own) and request.config is None and own["data_fingerprint"] == data_fingerprint
          and own["step"] == step and own["config"]["seed"] == config["seed"]
          and own.get("imported", {"order_known": True}).get("order_known", False))


def _sha256(source: pathlib.Path, tensors: transformers_files.Tensors) -> str:
  """Of config.json and the weights."""
  total = hashlib.sha256()
  for path in sorted({source / "config.json", *(tensors.stored(n).path for n in tensors)}):
    total.update(f"{path.name} {sha256(path)}\n".encode())
  return total.hexdigest()


def _is_there(path: pathlib.Path, meta: Mapping[str, Any]) -> bool:
  """Whether this checkpoint is there; raises when another one is."""
  member = path.parents[1]
  for step in checkpoint_lib.finished_steps(path.parent):
    before = checkpoint_lib.read_meta(path.parent / str(step))
    if "imported" not in before:
      raise UserError(f"{member} was pretrained here; give the import another --name.")
  if int(path.name) not in checkpoint_lib.finished_steps(path.parent):
    return False
  before = checkpoint_lib.read_meta(path)
  different = [name for name in ("tokens", "tokenizer_fingerprint",
                                 "data_fingerprint", "model") if before[name] != meta[name]]
  different += [name for name, *_ in run_record.changed_fields(before["config"], meta["config"])]
  if before["imported"]["sha256"] != meta["imported"]["sha256"]:
    different.insert(0, "weights or config.json")
  if different:
    raise UserError(f"{path} was imported with other {', '.join(different[:3])}; give this one "
                    f"another --name or --step, or delete {member}.")
  return True


def _open_member(directory, config, tokenizer, data_fingerprint, workdir) -> None:
  try:
    if not (workdir / "versions.json").exists():  # else it tells of a pretraining
      run_record.open_workdir(workdir)
    run_record.check_member(directory, config, tokenizer_fingerprint=tokenizer.fingerprint,
                            data_fingerprint=data_fingerprint)
    tokenizer.save(str(directory / "tokenizer"))
  except OSError as e:
    raise UserError(f"{errors.describe(e, workdir)}.") from e


def _keep_files(source: pathlib.Path, folder: pathlib.Path, with_tokenizer: bool) -> None:
  """Copies what an export gives back as it was."""
  folder.mkdir(parents=True, exist_ok=True)
  for name in (*_KEPT, *(tokenizer_files.FILES if with_tokenizer else ())):
    if (source / name).is_file():
      shutil.copyfile(source / name, folder / name)


def _write_records(directory: pathlib.Path, meta, config, model: ModelConfig) -> None:
  """plan.json and metrics.jsonl, as far as they are known."""
  known = {meta["step"]: meta["tokens"]}
  for step in checkpoint_lib.finished_steps(directory / "checkpoints"):
    known[step] = checkpoint_lib.read_meta(directory / "checkpoints" / str(step))["tokens"]
  last = max(known)
  length = config["data"]["sequence_length"]
  write_json(directory / "plan.json", {
      "parameters": meta["parameters"], "steps": max(last, meta["steps"]), "tokens": known[last],
      "tokens_per_step": known[last] // last,
      "flops": flops.train_flops_per_token(model, length) * known[last],
      "timescale": None, "decay_table": []})
  write_text(directory / "metrics.jsonl", "".join(
      json.dumps({"step": step, "tokens": known[step]}) + "\n" for step in sorted(known)))


def _write_checkpoint(path: pathlib.Path, places, tensors, meta) -> None:
  size = 4 * meta["parameters"]["total"]
  parameter_stream.require_space(path.parent, size, "the imported checkpoint")
  position = {"next_step": meta["step"], "seed": meta["config"]["seed"], "tokens": meta["tokens"],
              "data_fingerprint": meta["data_fingerprint"]}
  with Progress(len(places), "tensors", "import") as progress, \
      parameter_stream.ParameterWriter(path.parent, meta["step"], places, position,
                                       meta) as writer:
    for done, place in enumerate(places):
      for start, stop in parameter_stream.pieces(place):
        rows = tensors.rows(place.tensor, start, stop)
        transformers_weights.check_finite(place.tensor, rows)
        writer.write(place, start, rows)
      progress.update(done + 1)
    writer.finish()


def run() -> None:
  """Imports from the command line."""
  config = cli.define_config_flag()
  model = flags.DEFINE_string("model", None, "Folder of the model, as transformers writes it.")
  workdir = flags.DEFINE_string("workdir", None, "Work directory that the member goes to.")
  name = flags.DEFINE_string("name", None, "Name of the member, such as wd0.1-seed0.")
  weight_decay = flags.DEFINE_float(
      "weight_decay", None, "That the model was pretrained with; an export of ours tells it.")
  seed = flags.DEFINE_integer("seed", None, "Of its pretraining; 0 when nothing tells.")
  step = flags.DEFINE_integer(
      "step", None, "Steps of its pretraining; 1 when nothing tells.")
  tokens = flags.DEFINE_integer("tokens", None, "Tokens it has seen; 0 when nothing tells.")
  tokenizer = flags.DEFINE_string(
      "tokenizer", "", "tokenizer.json, SentencePiece .model or folder in place of the model's.")
  harmless = flags.DEFINE_multi_string(
      "harmless", [], "Field of config.json, unknown here, that does not change the computation; "
      "may be given repeatedly.")

  def main(argv: Sequence[str]) -> None:
    del argv
    for flag, what in ((model, "the folder of the model"), (workdir, "where the member goes"),
                       (name, "the name of the member")):
      if not flag.value:
        raise UserError(f"--{flag.name}=... is missing; it names {what}.")
    if config.value is not None:
      paths.check_config(config.value)
    prepare_process("nothing that looks finished was left")
    import_model(Request(
        model=pathlib.Path(model.value), workdir=pathlib.Path(workdir.value), name=name.value,
        weight_decay=weight_decay.value, seed=seed.value, step=step.value, tokens=tokens.value,
        config=config.value, tokenizer=tokenizer.value, harmless=tuple(harmless.value)))

  cli.run(main)


if __name__ == "__main__":
  run()
