"""The answer in words; every number in them is one of the comparisons."""

from collections.abc import Sequence

from wd_plasticity.report import cautions
from wd_plasticity.report.comparison import Comparison, Evidence
from wd_plasticity.report.scores import Group, is_loss
from wd_plasticity.report.wording import gap, level, number, rate, where
from wd_plasticity.report.words import enumerate_all

_MOST_RATES = 4


def write(group: Group, loss: Evidence | None, evidence: Sequence[Evidence],
          head: Evidence | None, is_learnt: bool = True) -> tuple[list[str], list[str]]:
  """Findings, of which the first answers the mission's question, and cautions.

  Args:
    group: whose results they are.
    loss: of the pretraining.
    evidence: of the fine-tuned models.
    head: the evidence to answer by.
    is_learnt: whether some task of it was learnt.
  """
  of_loss = loss.comparison if loss else None
  found = _choice(head, of_loss, is_learnt)
  if of_loss and len(of_loss.estimates) > 1:
    found.append(_loss(of_loss))
  if head and len(head.decays) > 1 and is_learnt:
    if of_loss:
      found += [_apart(head.comparison, of_loss), _cost(head.comparison), _correlation(head)]
    found += _rates(head, evidence, of_loss)
  return [s for s in found if s], cautions.write(group, loss, head, evidence)


def _loss_best(head: Comparison, loss: Comparison | None) -> float | None:
  """The decay with the lowest pretraining loss among those that were fine-tuned."""
  known = [e for e in loss.estimates if head.at(e.weight_decay)] if loss else []
  return min(known, key=lambda e: e.value).weight_decay if known else None


def _choice(head: Evidence | None, loss: Comparison | None, is_learnt: bool) -> list[str]:
  """The answer in a short sentence, then what it rests on."""
  if head is None:
    return ["Which weight decay is best after fine-tuning is not known yet: there are no results "
            "of fine-tuning; run the finetune program on the checkpoints."]
  c = head.comparison
  best = c.at(c.best)
  reached = f"{number(best.value, c.measure)} {where(c)}"
  if not is_learnt:
    return ["No weight decay can be called the best after fine-tuning, because nothing was learnt: "
            "by more than the error no decay is better than its base model, or none is away from "
            f"chance, on {enumerate_all(c.parts)}; fine-tune for longer, at another learning rate, "
            "or on easier tasks."]
  if len(head.decays) == 1:
    return [f"There is nothing to compare: only weight decay {c.best:g} was fine-tuned.",
            f"It reaches {reached}."]
  no_best = "No weight decay can be called the best after fine-tuning"
  if not head.fit.known:
    return [f"{no_best}, because nothing tells the error of this study.",
            f"The best value is that of {c.best:g}: {reached}."]
  interval = (f"{number(c.best_interval.low, c.measure, unit=False)} to "
              f"{number(c.best_interval.high, c.measure, unit=False)}")
  chosen = _loss_best(c, loss)
  if chosen == c.best:
    beside = " It is also the best for pretraining loss."
  elif chosen is not None:
    beside = (f" {chosen:g}, the best for pretraining loss, reaches "
              f"{number(c.at(chosen).value, c.measure)}.")
  else:
    beside = ""
  of = _rests_on(c)
  if not c.has_seeds:
    return [f"{no_best}, because there is one pretraining seed of every decay, and another seed "
            "may turn the order.",
            f"The best value is that of {c.best:g}: {reached} (95 % interval {interval} for other "
            f"test problems{' and fine-tuning seeds' if c.runs > 1 else ''}, not for other "
            f"pretraining seeds).{beside}{of}"]
  told = (f"{reached}, the largest of {len(head.decays)} and so on the high side (95 % interval, "
          f"which allows for that, {interval}; probability of being the best "
          f"{_probability(best.best)})")
  if not c.ties:
    return [f"Pretrain with weight decay {c.best:g} if the model will be fine-tuned.",
            f"It reaches {told}.{beside}{of}"]
  together = sorted([c.best, *c.ties])
  worse = [d for d in head.decays if d not in together]
  below = f" Worse than the best: {enumerate_all(worse)}." if worse else ""
  return [f"{no_best}: {level(together)} within the error of this study.",
          f"The best mean is that of {c.best:g}: {told}.{below}{beside}{of}"]


def _rests_on(c: Comparison) -> str:
  """Which tasks and splits are in the number to answer by."""
  if not c.parts:
    return ""
  if c.task:
    return f" The answer is by {c.parts[0]} alone."
  return (f" The average is over {enumerate_all(c.parts)}; tasks count the same, and the splits "
          "of a task by their problems.")


def _probability(p: float) -> str:
  return "over 99 %" if p > 0.99 else "under 1 %" if p < 0.01 else f"{100 * p:.0f} %"


def _loss(loss: Comparison) -> str:
  best = loss.at(loss.best)
  text = f"For pretraining alone the best is {loss.best:g}: validation loss {best.value:.4f}"
  text += " nats per token"
  if not loss.has_seeds:
    return text + ", of one seed, so that another may turn the order."
  if loss.best_interval is not None:
    text += (f" (95 % interval {loss.best_interval.low:.4f} to {loss.best_interval.high:.4f}, "
             "which allows for its having been picked)")
  if loss.ties:
    return text + f"; {enumerate_all(loss.ties)} cannot be told from it."
  return text + ("; all others are worse." if loss.best_interval is not None else ".")


def _apart(c: Comparison, loss: Comparison) -> str:
  chosen = _loss_best(c, loss)
  if chosen is None:
    return ""
  both = {c.best, *c.ties} & {loss.best, *loss.ties}
  if chosen == c.best:
    text = f"By the means the same decay, {c.best:g}, is best before and after fine-tuning"
  elif 0.0 in (chosen, c.best):
    text = f"By the means the best decay is {c.best:g} after fine-tuning and {chosen:g} before"
  else:
    factor = c.best / chosen
    text = (f"By the means the best decay after fine-tuning, {c.best:g}, is {factor:.2g} times "
            f"that for pretraining loss, {chosen:g}")
  if chosen != c.best and both:
    what = "is" if len(both) == 1 else "are"
    text += f"; {enumerate_all(sorted(both))} {what} among the best of both within the error"
  return text + "."


def _cost(c: Comparison) -> str:
  if c.gain is None:
    return ""
  if c.gain.low is None:
    return (f"Choosing by pretraining loss alone costs {gap(c.gain.value, c.measure)}; the error "
            "of this is not known.")
  if not c.has_seeds:
    return ("By these seeds choosing by pretraining loss alone costs "
            f"{gap(c.gain.value, c.measure)}; what other seeds would say is not known.")
  if c.gain.value == 0:
    if c.gain.high == 0:
      return "Choosing by pretraining loss alone costs nothing."
    return ("Choosing by pretraining loss alone costs nothing by the means, and at most "
            f"{gap(c.gain.high, c.measure)} (95 % interval from 0).")
  text = (f"Choosing by pretraining loss alone costs {gap(c.gain.value, c.measure)} (95 % interval "
          f"{gap(c.gain.low, c.measure, unit=False)} to {gap(c.gain.high, c.measure)})")
  return text + (", more than the error of this study." if c.gain.low > 0 else
                 ", which cannot be told from nothing.")


def _correlation(head: Evidence) -> str:
  c = head.comparison
  if c.correlation is None:
    return ""
  r = c.correlation
  text = (f"Over {r.n} weight decays pretraining loss and the result after fine-tuning correlate "
          f"with r = {r.value:.2f} (95 % interval {r.low:.2f} to {r.high:.2f}, the means taken "
          "for exact)")
  without = head.leave_one_out
  if without:
    furthest = max(without, key=lambda x: abs(x - r.value))
    if furthest * r.value < 0 or abs(furthest - r.value) > 0.3:
      text += (f"; without one of them it lies between {min(without):.2f} and {max(without):.2f}: "
               "a single decay, such as one whose pretraining broke, can dominate it")
  return text + "."


def _rates(head: Evidence, evidence: Sequence[Evidence], loss: Comparison | None) -> list[str]:
  """Each decay at its own best rate against one rate for all."""
  c = head.comparison
  common = [e for e in evidence if c.rate == "best" and e.comparison.rate != "best"
            and e.comparison.tasks == c.tasks
            and e.comparison.measure == c.measure and len(e.decays) > 1]
  if not common:
    return []
  told = [f"at {rate(e.comparison.rate)} {_at_rate(e)}" for e in common[:_MOST_RATES]]
  more = "" if len(common) <= _MOST_RATES else f" (the first {_MOST_RATES} of {len(common)} rates)"
  text = [f"With one fine-tuning rate for all{more}, {'; '.join(told)}; with each decay at its own "
          f"best rate, {_at_rate(head)}."]
  sign = -1.0 if is_loss(c.measure) else 1.0
  chosen = _loss_best(c, loss)
  found = []
  for e in common:
    at_rate, winner = e.comparison, e.comparison.best
    if winner != chosen and chosen is not None and at_rate.at(chosen) and c.at(winner):
      found.append((sign * (at_rate.at(winner).value - at_rate.at(chosen).value), at_rate))
  if found:
    before, at_rate = max(found, key=lambda f: f[0])
    after = sign * (c.at(at_rate.best).value - c.at(chosen).value)
    end = ("does not survive tuning" if after <= 0 else
           f"is {gap(after, c.measure)} when each has its own best rate")
    most = f", the most of {len(found)} rates," if len(found) > 1 else ""
    text.append(f"By the means the advantage of {at_rate.best:g} over {chosen:g}, the best for "
                f"pretraining loss, is {gap(before, c.measure)} at {rate(at_rate.rate)} for "
                f"both{most} and {end}.")
  return text


def _at_rate(e: Evidence) -> str:
  c = e.comparison
  text = f"the best mean is that of {c.best:g} ({number(c.at(c.best).value, c.measure)}"
  return text + (f", level with {enumerate_all(c.ties)})" if c.ties and c.has_seeds else ")")
