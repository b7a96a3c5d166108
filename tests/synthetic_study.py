"""A study on disk without any model: the files of pretraining and evals, with known truths."""

import dataclasses
import functools
import json
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wd_plasticity.analysis import statistics
from wd_plasticity.config import as_json, default_config
from wd_plasticity.evals.attention_rank import summarise as summarise_ranks
from wd_plasticity.evals.results import finite
from wd_plasticity.tasks import registry

GROUPS = ("embedding", "head", "query_key", "value_output", "feed_forward", "norm")
BINS = 5
TOKENS_PER_STEP = 64
VERSION = "0.1.0+synthetic"


@dataclasses.dataclass
class Truth:
  """What the files were drawn from.

  Attributes:
    accuracy: (task, rate, weight decay) to the probability of a right answer, to which each
      seed adds its own deviation.
    loss: weight decay to the mean validation loss over seeds.
    members: names by (weight decay, seed), of the first pretraining learning rate.
  """
  accuracy: dict[tuple[str, str, float], float] = dataclasses.field(default_factory=dict)
  loss: dict[float, float] = dataclasses.field(default_factory=dict)
  members: dict[tuple[float, int], str] = dataclasses.field(default_factory=dict)


def write(workdir: Path, decays: Sequence[float] = (0.0, 0.1, 1.0), seeds: Sequence[int] = (0, 1),
          steps: Sequence[int] = (50, 100), tasks: Sequence[str] = ("sst2", "arc_easy"),
          rates: Sequence[float] = (), layers: int = 2, heads: int = 2,
          rng: np.random.Generator | None = None, *, problems: int = 120, logged: int = 20,
          accuracy: Callable[[str, float, float], float] | None = None,
          loss: Callable[[float], float] | None = None, seed_deviation: float = 0.0,
          loss_deviation: float = 0.01, shared: float = 0.5,
          pretraining_rates: Sequence[float] = (), pretraining: bool = True,
          programs: Sequence[str] = ("finetune", "probe", "attention_rank", "overfit", "lm_eval"),
          scores: bool = True, failed: dict[str, int] | None = None,
          without: Sequence[str] = ()) -> Truth:
  """Writes a work directory.

  Args:
    workdir: made if missing.
    decays, seeds: of the members, 'wd0.1-seed0'.
    steps: with checkpoints, of which the last ends pretraining; fine-tuning and probes are
      of the last alone.
    tasks: of fine-tuning and of the probes.
    rates: learning rates of the fine-tuning's own sweep, points 'lr0.001'; none for a single
      fine-tuning.
    layers, heads: of the model, with a head dimension of 8.
    rng: of all draws; seeded when it is not given.
    problems: per task.
    logged: training losses per member.
    accuracy: (task, rate or 0.0, weight decay) to the probability of a right answer; by
      default highest at the middle decay.
    loss: weight decay to validation loss; by default lowest at the second decay.
    seed_deviation, loss_deviation: standard deviation over seeds of the two.
    shared: share of the problems that is right or wrong alike for all members.
    pretraining_rates: learning rates of pretraining; more than one make groups.
    pretraining: whether there are folders of the members.
    programs: whose results to write.
    scores: whether fine-tuning has its arrays.
    failed: member to the step at which it failed; it has no results.
    without: members that have no results.
  """
  rng = rng or np.random.default_rng(0)
  truth = Truth()
  accuracy = accuracy or functools.partial(_hill, list(decays))
  loss = loss or (lambda w: 3.0 + 0.1 * abs(list(decays).index(w) - min(1, len(decays) - 1)))
  last = max(steps)
  failed = failed or {}
  points = {f"lr{r:g}": r for r in rates} or {"": 0.001}
  luck = {task: rng.random(problems) for task in tasks}
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / "versions.json", {"wd_plasticity": VERSION, "jax": "0.10", "earlier": []})
  for w in decays:
    truth.loss[w] = loss(w)
    for task in tasks:
      for point, rate in points.items():
        truth.accuracy[task, point, w] = accuracy(task, rate if rates else 0.0, w)
  for number, learning_rate in enumerate(pretraining_rates or (0.004,)):
    for w in decays:
      for seed in seeds:
        name = f"wd{w:g}-seed{seed}" + (f"-lr{learning_rate:g}" if pretraining_rates else "")
        if not number:
          truth.members[w, seed] = name
        config = _config(w, seed, learning_rate, layers, heads)
        end = truth.loss[w] + loss_deviation * rng.standard_normal()
        ended = failed.get(name)
        if pretraining:
          _write_member(workdir / "members" / name, config, w, last, logged, end, ended, rng)
        if ended is not None or name in without:
          continue
        checkpoint = functools.partial(_checkpoint, name, config, w, seed, last)
        put = functools.partial(_put, workdir / "evals")
        deviation = seed_deviation * rng.standard_normal()
        for task in tasks:
          if "finetune" in programs:
            base = _right(0.5, luck[task], shared, rng)
            for point, rate in points.items():
              p = truth.accuracy[task, point, w] + deviation
              values, arrays = _finetuned(
                  task, base, _right(p, luck[task], shared, rng), w, rng)
              put("finetune", checkpoint(last), f"{task}-{point}" if point else task, values,
                  {"point": point, "task": task, "optim": {"learning_rate": rate},
                   "overrides": {"optim.learning_rate": rate} if point else {}},
                  arrays if scores else None)
          if "probe" in programs:
            put("probe", checkpoint(last), task, _probed(task, layers, w, rng), {"seed": 0})
        if "lm_eval" in programs:
          for item in ("arc_easy", "lambada", "mmlu"):
            put("lm_eval", checkpoint(last), item, _harness(item, w, rng),
                {"task": item, "harness": "0.4.13"})
        for step in steps:
          if "attention_rank" in programs:
            put("attention_rank", checkpoint(step), "spectra",
                _ranks(layers, heads, w * step / last, rng), {"threshold": 0.95, "power": 1})
          if "overfit" in programs:
            values, arrays = _overfit(end + 0.5 * (1 - step / last), step, rng)
            put("overfit", checkpoint(step), "losses", values, {"sequences": 64}, arrays)
  return truth


def _hill(decays: list[float], task: str, rate: float, decay: float) -> float:
  """Highest at the middle decay, by 0.05 a place, and at a fine-tuning rate of 0.001."""
  lost = 0.05 * abs(decays.index(decay) - len(decays) // 2)
  return 0.8 - lost - (0.1 if rate not in (0.0, 0.001) else 0.0)


def damage(path: Path) -> None:
  """Cuts a file in half."""
  content = path.read_bytes()
  path.write_bytes(content[:len(content) // 2])


def write_json(path: Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, allow_nan=False))


@functools.cache
def _default() -> str:
  return json.dumps(as_json(default_config()))


def _config(decay, seed, learning_rate, layers, heads) -> dict:
  config = json.loads(_default())
  config |= {"name": "synthetic", "seed": seed}
  config["optim"] |= {"weight_decay": decay, "learning_rate": learning_rate}
  config["model"] |= {"num_layers": layers, "num_heads": heads, "width": 8 * heads}
  return config


def _write_member(folder, config, decay, last, logged, end, failed, rng) -> None:
  write_json(folder / "config.json", {"config": config, "tokenizer_fingerprint": "t",
                                      "data_fingerprint": "d"})
  rate = config["optim"]["learning_rate"]
  write_json(folder / "plan.json", {
      "steps": last, "tokens": last * TOKENS_PER_STEP, "tokens_per_step": TOKENS_PER_STEP,
      "timescale": _timescale(rate, decay, last),
      "decay_table": [{"parameter": f"{g}/kernel", "group": g, "decay": decay} for g in GROUPS]})
  lines = [{"step": 0, "tokens": 0, "validation/loss": 6.0, "train_subset/loss": 6.0}]
  until = last if failed is None else failed - 1
  for i in range(1, logged + 1):
    step = max(1, round(i * last / logged))
    if step > until:
      break
    share = step / last
    now = end + 2 * (1 - share) ** 2
    line = {"step": step, "tokens": step * TOKENS_PER_STEP,
            "train/loss": now + 0.02 * rng.standard_normal(), "optim/learning_rate": rate,
            **{f"optim/weight_decay/{g}": decay for g in GROUPS},
            **{f"weight_norm/{g}": 10.0 / (1 + decay * share) for g in GROUPS}}
    if i % max(1, logged // 10) == 0 or i == logged:
      line |= {"validation/loss": now, "train_subset/loss": now - 0.05 * share}
    lines.append(line)
  if failed is not None:
    lines.append({"step": failed, "tokens": failed * TOKENS_PER_STEP, "train/loss": None,
                  "validation/loss": None, "train_subset/loss": None})
    write_json(folder / "FAILED.json", {"step": failed, "reason": "the loss is nan"})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def _timescale(rate, decay, last):
  if not decay:
    return None
  steps = 1 / (rate * decay)
  return {"steps": steps, "tokens": steps * TOKENS_PER_STEP, "fraction": steps / last}


def _checkpoint(name, config, decay, seed, last, step) -> dict:
  return {"member": name, "step": step, "steps": last, "tokens": step * TOKENS_PER_STEP,
          "path": f"members/{name}/checkpoints/{step}", "weight_decay": decay, "seed": seed,
          "parameters": 1000, "tokenizer_fingerprint": "t", "data_fingerprint": "d",
          "pretraining": {"name": config["name"], "model": config["model"],
                          "optim": config["optim"], "train": {"steps": 0},
                          "sequence_length": 16, "seed": seed}}


def _put(evals, program, checkpoint, item, values, settings, arrays=None) -> None:
  path = evals / program / checkpoint["member"] / str(checkpoint["step"]) / f"{item}.json"
  write_json(path, {
      "schema": f"wd_plasticity.{program}", "schema_version": 1, "item": item,
      "checkpoint": checkpoint, "settings": settings, "values": finite(values),
      "command": f"python -m wd_plasticity.evals.{program} --checkpoint=runs/synthetic",
      "code_version": VERSION})
  if arrays is not None:
    with open(path.with_suffix(".npz"), "wb") as f:
      np.savez_compressed(f, **arrays)


def _measure(scores: np.ndarray) -> dict:
  made = statistics.mean_with_error(scores[~np.isnan(scores)])
  return {"value": made["mean"], "se": made["se"], "n": made["n"]}


def _right(p: float, luck: np.ndarray, shared: float, rng) -> np.ndarray:
  """Which problems are solved, each with probability p, some alike for all members."""
  alike = np.arange(len(luck)) < shared * len(luck)
  return (np.where(alike, luck, rng.random(len(luck))) < p).astype(np.float32)


def _finetuned(task, base, tuned, decay, rng) -> tuple[dict, dict]:
  n = len(base)
  is_generated = registry.get(task).generated
  arrays = {"test/keys": np.array([f"{task}-{i}" for i in range(n)])}
  values = {"task": task, "training": {"examples": 640, "examples_cut": 0, "steps": 30,
                                       "epochs": 3, "response_tokens": 1280}}
  for stage, right in (("before", base), ("after", tuned)):
    measures = {"acc": right, "acc_per_byte": right, "acc_per_token": right,
                "response_loss": rng.exponential(1.5 - right.mean(), n).astype(np.float32)}
    if is_generated:
      measures["greedy_pass@1"] = right
    arrays |= {f"test/{stage}/{name}": scores for name, scores in measures.items()}
    values[stage] = {"test": {"problems": n, "prompts_cut": 0,
                              **{name: _measure(s) for name, s in measures.items()}}}
  values |= {
      "curve": [{"step": i, "loss": 0.5 + 3 / i, "learning_rate": 0.001} for i in range(1, 31)],
      "observed": [{"step": 15, "splits": values["after"]}],
      "forgetting": {"before": 3.0, "after": 3.3 + 0.1 * decay, "value": 0.3 + 0.1 * decay,
                     "se": 0.01, "n": 64},
      "failed_at": None}
  return values, arrays


@functools.cache
def _proportion(successes: int, n: int) -> dict:
  return statistics.proportion(successes, n)


def _probed(task, layers, decay, rng) -> dict:
  n = 200
  def network(shift):
    found = [[_proportion(int(n * min(0.95, 0.5 + 0.1 * i + shift)), n) for _ in range(2)]
             for i in range(layers + 1)]
    return {"accuracy": [[a["value"] for a in row] for row in found],
            **{f"accuracy_{k}": [[a[k] for a in row] for row in found]
               for k in ("se", "low", "high")},
            "control_accuracy": [[0.5, 0.5]] * (layers + 1),
            "best": found[-1][0] | {"layer": layers, "pooling": "mean", "control_accuracy": 0.5}}
  return {"title": registry.get(task).title, "poolings": ["mean", "last"], "classes": [0, 1],
          "train": {"n": 400, "cut": 0}, "test": {"n": n, "cut": 0}, "notes": [],
          "majority": _proportion(100, n), **network(0.1 + 0.01 * rng.integers(0, 3)),
          "untrained": network(0.0)}


def _harness(item, decay, rng) -> dict:
  """Scores of a task with options, of one with a perplexity, and of a group of two tasks."""
  def entry(title, **measures):
    return {"title": title, "version": "1.0", "num_fewshot": 0, "documents": 100, "measures": {
        name: {"value": value, "se": se, "n": 100, "higher_is_better": se is not None}
        for name, (value, se) in measures.items()}}
  acc = lambda: (0.4 + 0.05 * decay + 0.01 * rng.standard_normal(), 0.05)
  made = {"task": item, "harness": "0.4.13", "tasks": {}, "groups": {}}
  if item == "mmlu":
    made["tasks"] = {name: entry(name, acc=acc()) for name in ("mmlu_one", "mmlu_two")}
    made["groups"] = {item: entry(item, acc=acc())}
  elif item == "lambada":
    made["tasks"] = {item: entry(item, perplexity=(20.0 + decay, None), acc=acc())}
  else:
    made["tasks"] = {item: entry(item, acc=acc(), acc_norm=acc())}
  return made


def _ranks(layers, heads, decay, rng) -> dict:
  model = types.SimpleNamespace(head_dim=8, qk_norm=False)
  fall = np.exp(-np.arange(8) * (0.1 + 0.5 * decay))
  spectra = {name: fall * (1 + 0.05 * rng.random((layers, heads, 1))) for name in ("qk", "vp")}
  return summarise_ranks(spectra, model, threshold=0.95, power=1)


def _overfit(loss, step, rng) -> tuple[dict, dict]:
  documents, tokens = 12, 100.0
  values = {"tokens": step * TOKENS_PER_STEP, "epochs": 0.5, "share_read": 0.5}
  arrays = {}
  counts = np.full(documents, tokens)
  for name, level in (("trained_on", loss - 0.05), ("validation", loss)):
    sums = counts * (level + 0.1 * rng.standard_normal(documents))
    arrays |= {f"{name}_documents": np.arange(documents), f"{name}_document_sums": sums,
               f"{name}_document_counts": counts,
               f"{name}_bin_sums": np.ones((documents, BINS))}
    balanced = {"mean": level + 1, "se": 0.1, "n": 30, "clusters": documents}
    values[name] = statistics.cluster_mean(sums, counts, np.arange(documents)) | {
        "records": 64, "balanced": balanced}
  values["gap"] = _difference(values["validation"], values["trained_on"])
  values["balanced_gap"] = values["gap"] | {"n": 30}
  values["bins"] = [
      {"low": 10.0 ** (k - 6) if k else 0.0, "high": 10.0 ** (k - 5) if k else 0.0, "types": 10,
       "type_share": 0.2, "training_token_share": 0.2,
       **{name: {"mean": None if k == 0 else level + 4 - k, "se": 0.05, "n": 200,
                 "clusters": documents, "token_share": 0.2}
          for name, level in (("trained_on", loss - 0.05), ("validation", loss))},
       "gap": {"value": None if k == 0 else 0.05, "se": 0.02, "low": 0.01, "high": 0.09}}
      for k in range(BINS)]
  return values, arrays


def _difference(a, b) -> dict:
  value, se = a["mean"] - b["mean"], float(np.hypot(a["se"], b["se"]))
  return {"value": value, "se": se, "low": value - 2 * se, "high": value + 2 * se}
