"""What the builders of figures share: means over seeds, thinning, controls and sentences."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from scipy.special import stdtrit  # Student's t

from wd_plasticity.report.figure import LINE, Series
from wd_plasticity.report.items import enumerate_some
from wd_plasticity.report.study import Finetuned, Member, Result, Study

POINTS_OF_A_LINE = 150
PANELS = 6  # of a static figure
FEW_MEMBERS = 12  # up to as many are shown as lines of their own
_MEASURES = {"acc": "accuracy", "acc_per_byte": "accuracy", "acc_per_token": "accuracy",
             "greedy_pass@1": "greedy pass@1"}


def rounded(value: float | None) -> float | None:
  """To five significant digits; None for what is not finite."""
  return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def mean(values: Iterable[float | None]) -> float | None:
  """Of what is there; None of nothing."""
  known = [v for v in values if v is not None]
  return statistics.fmean(known) if known else None


def intervals(of: Sequence[Sequence[float]]) -> list[tuple[float | None, float | None]]:
  """95 % intervals of the means of each decay's seeds, with one spread for all decays.

  The spread over seeds is pooled, because that of two or three seeds is hardly known; the
  decays' own degrees of freedom add up. None where no decay has two seeds.
  """
  means = [statistics.fmean(v) for v in of]
  freedom = sum(len(v) - 1 for v in of)
  if not freedom:
    return [(None, None)] * len(of)
  squares = sum((x - m) ** 2 for v, m in zip(of, means, strict=True) for x in v)
  half = float(stdtrit(freedom, 0.975)) * math.sqrt(squares / freedom)
  return [(m - half / math.sqrt(len(v)), m + half / math.sqrt(len(v)))
          for v, m in zip(of, means, strict=True)]


def series(name: str, x: Sequence[float], y: Sequence[float | None], **fields) -> Series:
  """A `Series` with rounded y (x may be a weight decay, which must be found again).

  Intervals that are all unknown are left out.
  """
  for end in ("low", "high"):
    if end in fields:
      values = [rounded(v) for v in fields[end]]
      fields[end] = values if any(v is not None for v in values) else ()
  if not (fields.get("low") and fields.get("high")):
    fields |= {"low": (), "high": ()}
  return Series(name, list(x), [rounded(v) for v in y], **fields)


def thin(values: Sequence, most: int = POINTS_OF_A_LINE) -> list:
  """At most `most` of the values, evenly spaced, with the first and the last."""
  values, most = list(values), max(2, most)
  if len(values) <= most:
    return values
  return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def mean_curve(curves: Sequence[Sequence[tuple[float, float | None]]],
               most: int = POINTS_OF_A_LINE) -> tuple[list[float], list[float | None]]:
  """Mean of curves of (x, y) at the places that all of them have; None where any is None."""
  known = [dict(c) for c in curves if c]
  if not known:
    return [], []
  shared = sorted(set(known[0]).intersection(*known[1:]))
  x = thin(shared, most)
  return x, [None if any(c[v] is None for c in known) else statistics.fmean(c[v] for c in known)
             for v in x]


def by_decay(items: Iterable) -> dict[float, list]:
  """Items by their weight decay, growing."""
  found: dict[float, list] = {}
  for item in items:
    found.setdefault(item.weight_decay, []).append(item)
  return dict(sorted(found.items()))


def by_member(items: Iterable) -> dict[str, list]:
  """Items by their member: fine-tunings of one member with several seeds are no more seeds."""
  found: dict[str, list] = {}
  for item in items:
    found.setdefault(item.member if hasattr(item, "member") else item.name, []).append(item)
  return found


def decay_series(items: Iterable, value: Callable, name: str,
                 **fields) -> Series | None:
  """Mean and interval over seeds of `value(item)` against weight decay; None of nothing."""
  of = {decay: [v for v in (mean(map(value, runs)) for runs in by_member(same).values())
                if v is not None]
        for decay, same in by_decay(items).items()}
  of = {decay: values for decay, values in of.items() if values}
  ends = intervals(list(of.values()))
  return series(name, list(of), [statistics.fmean(v) for v in of.values()],
                low=[e[0] for e in ends], high=[e[1] for e in ends], **fields) if of else None


def decay_lines(items: Iterable, curve: Callable, *, style: str = LINE,
                most: int = POINTS_OF_A_LINE) -> list[Series]:
  """A line per weight decay: the mean over its items of `curve(item)`, [(x, y)]."""
  lines = []
  for decay, same in by_decay(items).items():
    x, y = mean_curve([curve(i) for i in same], most)
    if any(v is not None for v in y):
      lines.append(series(f"{decay:g}", x, y, weight_decay=decay, style=style))
  return lines


# Controls.


def groups(study: Study) -> list[str]:
  """Settings of the study beside weight decay and seed; [''] when there are no others."""
  of = [*study.members, *study.finetuned, *study.probed, *study.ranked, *study.overfit,
        *study.harness]
  return sorted({i.group for i in of}) or [""]


def with_setting(study: Study, group: str, choice: dict[str, str]) -> dict[str, str]:
  """The choice, with the setting in front where a study has several."""
  return ({"setting": group or "default"} if len(groups(study)) > 1 else {}) | choice


def controls(study: Study, *names: str) -> tuple[str, ...]:
  """Names of controls, that of the setting in front where a study has several."""
  return (("setting",) if len(groups(study)) > 1 else ()) + names


def select(items: Iterable, group: str, *, last: bool = False,
           setting: str | None = None) -> list:
  """Those of a group, of the last steps alone if wanted, or of one setting of the fine-tuning."""
  return [i for i in items if i.group == group and (not last or i.last)
          and (setting is None or i.setting == setting)]


def finished(study: Study, group: str) -> list[Member]:
  """Members of a group that are done, with a validation loss."""
  return [m for m in select(study.members, group)
          if m.status == "done" and m.validation_loss is not None]


def rates(items: Iterable[Finetuned]) -> list[str]:
  """Points of the fine-tuning's sweep, its seeds apart, by learning rate."""
  found = {f.point: f.learning_rate for f in items}
  return sorted(found, key=lambda r: (found[r], r))


def rate_name(rate: str, items: Iterable[Finetuned] = ()) -> str:
  """In a control: 'learning rate 0.001' where points differ in it alone, else the name."""
  if rate == "best":
    return "each at its best rate"
  found = {f.learning_rate for f in items if f.point == rate} if rate else set()
  every = {(f.point, f.learning_rate) for f in items}
  if len(found) == 1 and len({r for _, r in every}) == len(every):
    return f"learning rate {found.pop():g}"
  return rate


def tasks(items: Iterable[Finetuned]) -> dict[tuple[str, str], str]:
  """(task, split) to a title, the split in it where a task has several."""
  found = {(f.task, f.split): f.title for f in items}
  split = {t for t, _ in found if sum(o == t for o, _ in found) > 1}
  titles = {k: f"{title}, {k[1]}" if k[0] in split else title for k, title in found.items()}
  return dict(sorted(titles.items(), key=lambda i: i[1].lower()))


def value(f: Finetuned, stage: str, measure: str) -> float | None:
  """A measure 'before' or 'after'; None where it is missing or was not finite."""
  return (getattr(f, stage).get(measure) or {}).get("value")


# Units and sentences.


def scale(measures: Iterable[str]) -> float:
  """Factor from measures to what is shown: shares are in %."""
  return 100.0 if all(m in _MEASURES for m in measures) else 1.0


def scaled(values: Sequence[float | None], factor: float) -> list[float | None]:
  """Times the factor; None stays None."""
  return [None if v is None else v * factor for v in values]


def y_label(measures: Sequence[str]) -> str:
  """With the unit; of several measures their mean."""
  names = list(dict.fromkeys(_MEASURES.get(m, m.replace("_", " ")) for m in measures))
  if names == ["response loss"]:
    return "loss of the response (nats per token)"
  unit = " (%)" if scale(measures) == 100 else ""
  return f"{names[0]}{unit}" if len(names) == 1 else f"mean of the tasks' scores{unit}"


def count(n: int, what: str) -> str:
  """'one seed', '3 seeds'."""
  return f"one {what}" if n == 1 else f"{n} {what}s"


def seeds(items: Iterable) -> str:
  """'3 seeds', or '2 to 3 seeds' where decays have different numbers."""
  numbers = {len({i.seed for i in same}) for same in by_decay(items).values()}
  if not numbers:
    return "no seed"
  low, high = min(numbers), max(numbers)
  return count(low, "seed") if low == high else f"{low} to {high} seeds"


def failed_members(study: Study) -> str:
  """A sentence about members that are left out of losses; '' when there are none."""
  out = [m.name for m in study.members if m.status.startswith("failed")]
  unfinished = [m.name for m in study.members if m.status == "unfinished"]
  words = [f"Left out because they failed: {enumerate_some(out)}." if out else "",
           f"Not finished yet: {enumerate_some(unfinished)}." if unfinished else ""]
  return " ".join(w for w in words if w)


def command(study: Study, program: str, more: str = "") -> str:
  """The command line that makes the results of a program in the study's work directory."""
  line = (f"python -m wd_plasticity.evals.{program} --checkpoint={study.workdir} "
          f"--config=configs/{program}.py --workdir={study.workdir}")
  return f"{line} {more}".rstrip()


def missing(study: Study, what: str, program: str, more: str = "") -> str:
  """Why a figure is empty, and what to run."""
  return f"{what} Run: {command(study, program, more)}"


def nothing_finetuned(study: Study) -> str:
  """Why figures on fine-tuning are empty."""
  return missing(study, "Nothing has been fine-tuned yet.", "finetune")


def join(*sentences: str) -> str:
  """A caption of sentences, without the empty ones."""
  return " ".join(s for s in sentences if s)


@dataclasses.dataclass(frozen=True)
class _Of:
  weight_decay: float
  points: list[tuple[float, float | None]]


def as_members(results: Iterable[Result], value: Callable) -> tuple[list[_Of], Callable]:
  """Results of several steps as one curve over tokens per member, for `decay_lines`."""
  found: dict[str, _Of] = {}
  for r in results:
    found.setdefault(r.member, _Of(r.weight_decay, [])).points.append((r.tokens, value(r)))
  return list(found.values()), lambda of: of.points
