"""Figures on what is inside the models: probes, ranks of attention, loss by token frequency."""

import math
from collections.abc import Iterable, Sequence

from wd_plasticity.evals.attention_rank_summary import TITLES
from wd_plasticity.report import figure_parts as parts
from wd_plasticity.report.figure import LINE, REFERENCE, Figure, Series, View
from wd_plasticity.report.study import Result, Study

INSIDE = "Inside the models"
_DECAY = "weight decay in pretraining"
_ALL_HEADS = 150_000  # numbers of all views of the heads together
_SHARE = "pseudo-rank (%)"
_RANKS = {"pseudo_rank_share": ("pseudo-rank", _SHARE, 100.0),
          "effective_rank": ("effective rank", "effective rank", 1.0),
          "stable_rank": ("stable rank", "stable rank", 1.0),
          "spectral_norm": ("spectral norm", "spectral norm", 1.0)}


def probe_by_layer(study: Study) -> Figure:
  """Accuracy of linear probes by layer, by task and pooling."""
  views = []
  for group in parts.groups(study):
    tasks: dict[str, list[Result]] = {}
    for r in parts.select(study.probed, group, last=True):
      tasks.setdefault(r.values.get("title", r.item), []).append(r)
    for title, results in sorted(tasks.items(), key=lambda i: i[0].lower()):
      for pooling, name in enumerate(results[0].values.get("poolings", ())):
        lines = _probe_lines(results, pooling)
        if lines:
          pooled = "mean over tokens" if name == "mean" else "last token"
          views.append(View(
              parts.with_setting(study, group, {"task": title, "pooling": pooled}), lines,
              "accuracy (%)", pooling == 0 and sum(v.on_paper for v in views) < parts.PANELS))
  return Figure(
      "probe_by_layer", INSIDE, "What linear probes read off each layer",
      "Test accuracy of logistic regression on hidden states, mean over "
      f"{parts.seeds(study.probed)}; bars are the mean of the seeds' 95 % intervals over test "
      "texts. Dashed: the same network untrained, and the majority class.",
      "layer (0: embedding)", views, "count", controls=parts.controls(study, "task", "pooling"),
      missing="" if views else parts.missing(study, "No probes have been fitted.", "probe"))


def pseudo_rank(study: Study) -> Figure:
  """Pseudo-rank of W_QK and W_VP over training, a line per weight decay."""
  views = []
  for group in parts.groups(study):
    results = parts.select(study.ranked, group)
    for matrix in _matrices(results):
      layers = _num_layers(results, matrix)
      for layer in (None, *range(layers)):
        lines = parts.decay_lines(*parts.as_members(
            results, lambda r, m=matrix, k=layer: _share(r, m, k)))
        if lines:
          name = "all layers" if layer is None else f"layer {layer + 1}"
          views.append(View(
              parts.with_setting(study, group, {"matrix": TITLES[matrix], "layer": name}), lines,
              _SHARE, layer is None))
  return Figure(
      "pseudo_rank", INSIDE, "Rank of the attention products over training",
      "How many of a head's singular values hold most of their sum (95 % unless set otherwise), in "
      "% of the head dimension (Kobayashi et al. 2410.23819), mean over heads and "
      f"{parts.seeds(study.ranked)}.",
      "training tokens", views, controls=parts.controls(study, "matrix", "layer"),
      missing="" if views else _no_ranks(study))


def pseudo_rank_heads(study: Study) -> Figure:
  """Pseudo-rank of every head over training, of the first seed of each weight decay."""
  wanted = []
  for group in parts.groups(study):
    results = parts.select(study.ranked, group)
    for decay, same in parts.by_decay(results).items():
      first = min((r.seed, r.member) for r in same)
      of_seed = [r for r in same if (r.seed, r.member) == first]
      for matrix in _matrices(of_seed):
        wanted += [(group, decay, matrix, layer, of_seed)
                   for layer in range(_num_layers(of_seed, matrix))]
  lines = sum(_num_heads(w[4], w[2]) for w in wanted)
  most = max(2, min(parts.POINTS_OF_A_LINE, _ALL_HEADS // (2 * max(1, lines))))
  steps = max((len(w[4]) for w in wanted), default=0)
  views: list[View] = []
  decays = [w[1] for w in wanted]
  for group, decay, matrix, layer, results in wanted:
    results = parts.thin(sorted(results, key=lambda r: r.step), most)
    made = []
    for head in range(_num_heads(results, matrix)):
      y = [_head(r, matrix, layer, head) for r in results]
      if any(v is not None for v in y):
        made.append(parts.series(f"head {head + 1}", [r.tokens for r in results], y))
    if made:
      choice = {"matrix": TITLES[matrix], "layer": f"layer {layer + 1}",
                "weight decay": f"decay {decay:g}"}
      outer = layer in (0, _num_layers(results, matrix) - 1)
      views.append(View(
          parts.with_setting(study, group, choice), made, _SHARE,
          outer and decay in (min(decays), max(decays)) and matrix == wanted[0][2] and sum(
              v.on_paper for v in views) < 4))
  return Figure(
      "pseudo_rank_heads", INSIDE, "Rank of every head over training",
      parts.join("Pseudo-rank of each head in % of the head dimension; heads of different "
                 "seeds do not correspond, so one seed of each weight decay is shown.",
                 f"{most} of {steps} stored steps are shown." if steps > most else ""),
      "training tokens", views,
      controls=parts.controls(study, "matrix", "layer", "weight decay"),
      missing="" if views else _no_ranks(study))


def rank_by_decay(study: Study) -> Figure:
  """Ranks of W_QK and W_VP at the end of training, by weight decay."""
  views = []
  for group in parts.groups(study):
    results = parts.select(study.ranked, group, last=True)
    for measure, (title, label, factor) in _RANKS.items():
      lines = []
      for matrix in _matrices(results):
        def value(r, matrix=matrix, measure=measure, factor=factor):
          found = r.values.get(matrix, {}).get("mean", {}).get(measure)
          return None if found is None else factor * found
        line = parts.decay_series(results, value, TITLES[matrix])
        lines += [line] if line else []
      if lines:
        views.append(View(parts.with_setting(study, group, {"measure": title}), lines, label,
                          measure in ("pseudo_rank_share", "effective_rank")))
  return Figure(
      "rank_by_decay", INSIDE, "Rank of the attention products by weight decay",
      f"At the last step, mean over layers, heads and {parts.seeds(study.ranked)}; bars are 95 % "
      "intervals over seeds, with one spread for all weight decays. Pseudo-rank in % of the head "
      "dimension.", _DECAY, views, "decay", controls=parts.controls(study, "measure"),
      missing="" if views else _no_ranks(study))


def loss_by_frequency(study: Study) -> Figure:
  """Validation loss by how often a token occurs in training, a line per weight decay."""
  views, is_unseen = [], False
  for group in parts.groups(study):
    results = [r for r in parts.select(study.overfit, group, last=True) if r.values.get("bins")]
    curves = {id(r): _frequencies(r) for r in results}
    is_unseen |= any(b.get("high") == 0 for r in results for b in r.values["bins"])
    lines = parts.decay_lines(results, lambda r, c=curves: c[id(r)])
    if not lines:
      continue
    views.append(View(parts.with_setting(study, group, {"shown": "loss"}), lines,
                      "validation loss (nats per token)"))
    zero = next((dict(zip(line.x, line.y, strict=True)) for line in lines
                 if line.weight_decay == 0), None)
    if zero and len(lines) > 1:
      views.append(View(
          parts.with_setting(study, group, {"shown": "against decay 0"}),
          [_minus(line, zero) for line in lines], "difference (nats per token)"))
  return Figure(
      "loss_by_frequency", "Pretraining", "Which tokens pay for weight decay?",
      parts.join("Validation loss of tokens by how often they occur in the training corpus, at the "
                 f"last step, a line per weight decay, mean over {parts.seeds(study.overfit)}.",
                 "Tokens that never occur there are left out." if is_unseen else ""),
      "occurrences per million training tokens", views, "log",
      controls=parts.controls(study, "shown"), missing="" if views else
      parts.missing(study, "Losses by token have not been evaluated.", "overfit"))


# Parts of them.


def _probe_lines(results: Sequence[Result], pooling: int) -> list[Series]:
  def layers(values: dict, name: str) -> list[float | None]:
    return [None if layer[pooling] is None else 100 * layer[pooling] for layer in values[name]]

  lines = []
  for decay, same in parts.by_decay(results).items():
    means = {name: _mean_by_layer(layers(r.values, name) for r in same if name in r.values)
             for name in ("accuracy", "accuracy_low", "accuracy_high")}
    lines.append(parts.series(
        f"{decay:g}", range(len(means["accuracy"])), means["accuracy"],
        low=means["accuracy_low"], high=means["accuracy_high"], weight_decay=decay))
  # A network untrained is the same for all decays of a seed.
  untrained = {r.seed: layers(r.values["untrained"], "accuracy") for r in results
               if r.values.get("untrained")}
  if untrained:
    y = _mean_by_layer(untrained.values())
    lines.append(parts.series("untrained", range(len(y)), y, style=REFERENCE))
  majority = (results[0].values.get("majority") or {}).get("value")
  if majority is not None:
    n = len(lines[0].x)
    lines.append(parts.series("majority class", range(n), [100 * majority] * n, style=REFERENCE))
  return lines


def _mean_by_layer(curves: Iterable[Sequence[float | None]]) -> list[float | None]:
  return [parts.mean(values) for values in zip(*curves, strict=False)]


def _matrices(results: Sequence[Result]) -> list[str]:
  return [name for name in ("qk", "qk_folded", "vp") if any(name in r.values for r in results)]


def _num_layers(results: Sequence[Result], matrix: str) -> int:
  return max((len(_heads(r, matrix)) for r in results), default=0)


def _num_heads(results: Sequence[Result], matrix: str) -> int:
  return max((len(layer) for r in results for layer in _heads(r, matrix)), default=0)


def _heads(r: Result, matrix: str) -> list[list[float | None]]:
  return r.values.get(matrix, {}).get("heads", {}).get("pseudo_rank_share") or []


def _head(r: Result, matrix: str, layer: int, head: int) -> float | None:
  heads = _heads(r, matrix)
  found = heads[layer][head] if layer < len(heads) and head < len(heads[layer]) else None
  return None if found is None else 100 * found


def _share(r: Result, matrix: str, layer: int | None) -> float | None:
  """In %, mean over the heads of a layer, or of all."""
  of = r.values.get(matrix, {})
  if layer is None:
    found = of.get("mean", {}).get("pseudo_rank_share")
  else:
    layers = of.get("layers", {}).get("pseudo_rank_share") or []
    found = layers[layer] if layer < len(layers) else None
  return None if found is None else 100 * found


def _frequencies(r: Result) -> list[tuple[float, float | None]]:
  """(occurrences per million at the middle of each bin, loss)."""
  return [(1e6 * math.sqrt(b["low"] * b["high"]), b["validation"]["mean"])
          for b in r.values["bins"] if b["low"] > 0]


def _minus(line: Series, zero: dict[float, float | None]) -> Series:
  y = [None if v is None or zero.get(x) is None else v - zero[x]
       for x, v in zip(line.x, line.y, strict=True)]
  return parts.series(line.name, line.x, y, weight_decay=line.weight_decay,
                      style=REFERENCE if line.weight_decay == 0 else LINE)


def _no_ranks(study: Study) -> str:
  return parts.missing(study, "No ranks have been computed.", "attention_rank",
                       "--config.steps=all")
