"""Scores of lm-evaluation-harness: the base models on any of its tasks, or on your own.

  python -m wd_plasticity.evals.lm_eval --config=configs/lm_eval.py \
      --checkpoint=runs/books --workdir=runs/books

Prompts, few-shot examples, filters and metrics are the harness's (the extra `lm_eval`), and the
scores those that it gives for the exported weights; the models run here, on all devices, one
after another.
"""

from collections.abc import Sequence
from typing import Any

from rich import box

from wd_plasticity.console import Console, Table
from wd_plasticity.errors import UserError
from wd_plasticity.evals import lm_eval_tasks as harness
from wd_plasticity.evals import program
from wd_plasticity.evals.targets import Target
from wd_plasticity.training import distributed
from wd_plasticity.training.summary import wide_console


def main(session: program.Session) -> None:
  """Evaluates what is not done yet, then prints everything asked for."""
  config = session.config
  harness.check(config)
  catalogue = harness.Catalogue(config)
  shared = {k: v for k, v in session.settings().items() if k != "include_path"}
  settings = {name: shared | catalogue.settings(name) for name in config.tasks}
  work = [(target, name) for target in session.targets for name in config.tasks
          if not session.results.is_done(target, name, settings[name])]
  if work:
    loaded = {name: catalogue.load(name) for name in dict.fromkeys(name for _, name in work)}
    _check_room(session, [target for target, _ in work], loaded)
    _evaluate(session, work, loaded, settings, catalogue.version)
  if distributed.is_first():
    results = [session.results.load(t, name) for name in config.tasks for t in session.targets]
    print_table(results)
    for r in results:
      if count := r["values"].get("requests_cut"):
        session.print(f"note: {count:,} requests of {r['item']} were longer than "
                      f"{r['checkpoint']['member']} reads and lost their beginning.")


def _check_room(session: program.Session, targets: Sequence[Target],
                loaded: dict[str, dict]) -> None:
  """Refuses tasks whose continuations cannot be made, before any work."""
  from wd_plasticity.interop import lm_eval_model, lm_eval_text

  shortest = session.config.max_length or min(t.sequence_length for t in targets)
  for parts in loaded.values():
    for task in parts["tasks"].values():
      if task.OUTPUT_TYPE != "generate_until":
        continue
      try:
        _, sampling = lm_eval_model.decoding(
            task.config.generation_kwargs or {}, session.config.max_gen_toks)
        lm_eval_text.prompt_room(shortest, sampling.max_new_tokens)
      except UserError as e:
        raise UserError(f"{task.task_name}: {e}") from e


def _evaluate(session: program.Session, work: Sequence[tuple[Target, str]],
              loaded: dict[str, dict], settings: dict[str, dict], version: str) -> None:
  from wd_plasticity.interop import lm_eval_model

  config = session.config
  documents = {name: harness.num_documents(parts, config.limit)
               for name, parts in loaded.items()}
  models: dict[Any, lm_eval_model.TextModelLM] = {}  # compiled once for members of one size
  current, lm, done = None, None, 0
  with session.progress(sum(documents[name] for _, name in work), "documents") as progress:

    def run(group, name):
      nonlocal current, lm, done
      (target,), before = group, done
      progress.skip(done)
      progress.print(f"{name}: {target.name}")
      if target is not current:
        current, lm = None, _model_of(session, models, target)
        current = target
      lm.on_done = lambda n, total: progress.update(
          before + documents[name] * n // max(1, total), task=name)
      lm.text.num_cut, lm.text.parts = 0, session.parts
      results = harness.evaluate(lm, loaded[name], config)
      if distributed.is_first():
        values = harness.summarise(name, results, version) | {"requests_cut": lm.text.num_cut}
        session.results.write(target, name, settings[name], values,
                              records=harness.records(results))
      done += documents[name]

    session.evaluate([([target], name) for target, name in work], run)
    progress.skip(done)


def _model_of(session: program.Session, models: dict, target: Target):
  """The harness's model of a target; the parameters of the one before are let go."""
  from wd_plasticity.interop import lm_eval_model

  config = session.config
  key = target.model, target.meta["tokenizer_fingerprint"], target.sequence_length
  for lm in models.values():
    lm.text.params_M = None
  if key in models:
    models[key].text.params_M = session.load([target])
  else:
    models[key] = lm_eval_model.TextModelLM(
        lm_eval_model.of_target(session, target, max_length=config.max_length,
                                add_bos_token=config.add_bos_token),
        max_gen_toks=config.max_gen_toks, seed=config.seed)
  return models[key]


def print_table(results: Sequence[dict], console: Console | None = None) -> None:
  """One line per task, measure and checkpoint; +- is one standard error over problems."""
  table = Table(title="Scores of lm-evaluation-harness, ± standard error over problems",
                title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
  for column in ("task", "measure", "member"):
    table.add_column(column, no_wrap=True)
  for column in ("step", "score", "problems", "examples before each"):
    table.add_column(column, justify="right")
  for r in results:
    # The tasks of a group are in its result, not in the table.
    shown = r["values"]["groups"] or r["values"]["tasks"]
    for name, one in shown.items():
      for measure, m in one["measures"].items():
        error = "" if m["se"] is None else f" ± {_number(m['se'])}"
        value = "-" if m["value"] is None else f"{_number(m['value'])}{error}"
        table.add_row(name, measure, r["checkpoint"]["member"], f"{r['checkpoint']['step']:,}",
                      value, str(m["n"]), str(one["num_fewshot"]))
  (console or wide_console()).print(table)


def _number(value: float) -> str:
  return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"


if __name__ == "__main__":
  program.run("lm_eval", main)
