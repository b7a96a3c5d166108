"""What the evidence of a study does not suffice for, and what would."""

import math
from collections.abc import Sequence

from wd_plasticity.analysis import two_way
from wd_plasticity.report.comparison import Comparison, Evidence
from wd_plasticity.report.items import enumerate_some
from wd_plasticity.report.scores import Group
from wd_plasticity.report.wording import gap, rounded
from wd_plasticity.report.words import enumerate_all, plural

_MOST_TIMES = 1000


def write(group: Group, loss: Evidence | None, head: Evidence | None,
          evidence: Sequence[Evidence]) -> list[str]:
  """Cautions, the weightiest first."""
  found = []
  if head is not None:
    found += [_seeds(head), *_grid(head.comparison, "after fine-tuning", group),
              _rates(head, group), _more_needed(head), _averaged(head, evidence)]
  if loss is not None:
    found += _grid(loss.comparison, "for pretraining loss", group)
  elif group.members:
    found.append("No member has finished with a validation loss, so nothing is known of the best "
                 "decay for pretraining.")
  found += _left_out(group, head)
  return list(dict.fromkeys(f for f in found if f))


def _seeds(head: Evidence) -> str:
  c, seeds = head.comparison, [e.seeds for e in head.comparison.estimates]
  if len(head.decays) < 2:
    return ""
  if not c.has_seeds:
    return ("There is one seed of every weight decay: intervals tell what other test "
            f"problems {'and fine-tuning seeds ' if c.runs > 1 else ''}would change, not what "
            "other pretraining seeds would; pretrain with at least three seeds.")
  text = ""
  if min(seeds) < 3:
    fewest = "one seed" if min(seeds) == 1 else "two seeds"
    text = (f"Some or all decays have {fewest} only, so that little is known of how much seeds "
            "differ and intervals are wide; three or more make them much shorter.")
    if c.rate == "best":
      text += (" A learning rate that is chosen on one other seed may miss the best one, so that "
               "a decay may reach more than is said.")
  if head.fit.shared is None:
    text += (" " if text else "") + (
        "Decays share too few seeds, so seeds are taken as independent between decays, "
        "which makes the intervals of differences too wide rather than too narrow.")
  elif min(seeds) < max(seeds):
    text += (" " if text else "") + (
        "Not every decay has the same seeds: differences are paired by those that decays share, "
        "and the others are taken as independent between decays.")
  return text


def _grid(c: Comparison, what: str, group: Group) -> list[str]:
  decays = [e.weight_decay for e in c.estimates]
  if len(decays) < 2:
    return []
  # 0 is an end beyond which there is nothing
  for end, word, beyond in ((decays[-1], "largest", [d for d in group.decays if d > decays[-1]]),
                            (decays[0], "smallest", [d for d in group.decays if d < decays[0]])):
    if c.best == end and end > 0:
      more = (f"compare {enumerate_all(beyond)} too" if beyond else
              f"extend the grid {'beyond' if word == 'largest' else 'below'} {end:g}")
      return [f"The best weight decay {what}, {end:g}, is the {word} that is compared; {more}."]
  if len(decays) < 3:
    return [f"There are only {len(decays)} weight decays {what}; three or more tell where "
            "the best lies."]
  return []


def _rates(head: Evidence, group: Group) -> str:
  c = head.comparison
  rates = sorted({f.learning_rate for f in group.finetuned})
  if len(head.decays) < 2:
    return ""
  if len(rates) == 1:
    return (f"All fine-tuning was at one learning rate, {rates[0]:g}: an advantage may be that of "
            "a larger relative step, not of a better model; sweep optim.learning_rate of the "
            "finetune program.")
  if len(rates) == 2 and c.rate == "best":
    return (f"Only two fine-tuning rates were tried, {rates[0]:g} and {rates[1]:g}, so that the "
            "best one of a decay may lie between or beyond them; sweep more.")
  if c.rate != "best" and (c.task or len(rates) > 1) and c.rate:
    return ("Not every decay has results at several fine-tuning rates, so none could be given its "
            "own best rate; finish the sweep of the finetune program.")
  high = [d for d, chosen in c.rates.items() if rates[-1] in chosen]
  low = [d for d, chosen in c.rates.items() if rates[0] in chosen]
  texts = [f"{word} ({rate:g}) for {enumerate_all(where)}"
           for word, rate, where in (("smallest", rates[0], low), ("largest", rates[-1], high))
           if where]
  if not texts:
    return ""
  where = "" if c.task else " on one task or another"
  return (f"The best fine-tuning rate is{where} the {' and the '.join(texts)}; rates beyond may do "
          "better, extend the sweep of the finetune program.")


def _more_needed(head: Evidence) -> str:
  """How much more would tell the two leading decays apart, if they are level."""
  c = head.comparison
  if len(head.decays) < 2 or not head.fit.known or not c.ties:
    return ""
  order = sorted(range(len(head.decays)), key=lambda i: -head.fit.mean_D[i])
  first, second = order[:2]
  apart = float(head.fit.mean_D[first] - head.fit.mean_D[second])
  named = f"{head.decays[first]:g} and {head.decays[second]:g}"
  if not apart > 0:
    return f"The two leading decays, {named}, have the same mean."
  items, seeds, both = two_way.needed(head.fit, first, second)
  start = (f"The two leading decays, {named}, are {gap(apart, c.measure)} apart; to tell such a "
           "gap from nothing, ")
  if both > _MOST_TIMES:
    return start + "more than 1,000 times as many test problems and seeds would be needed."
  ways = []
  if 1 < items <= _MOST_TIMES and head.fit.items > 1:
    ways.append(f"{rounded(items)} times as many test problems")
  if c.has_seeds and 1 < seeds <= _MOST_TIMES:
    count = math.ceil(seeds * max(head.fit.seeds_D))
    ways.append(f"{count if count < 100 else rounded(count)} seeds of every decay")
  if not ways and both > 1:
    ways.append(f"{rounded(both)} times as many of both, test problems and seeds,")
  if not ways:
    return ""  # the pair could be told; it is the choice among several that is not settled
  return start + f"about {' or '.join(ways)} would be needed."


def _averaged(head: Evidence, evidence: Sequence[Evidence]) -> str:
  """Tasks whose own best decay is not among the best of the average."""
  c = head.comparison
  if c.task or c.ties or not c.has_seeds:
    return ""
  other = [e.comparison.title for e in evidence
           if e.comparison.task and e.comparison.rate == c.rate and e.fit.known
           and len(e.decays) > 1
           and c.best not in (e.comparison.best, *e.comparison.ties)]
  if not other:
    return ""
  return (f"The best decay of the average, {c.best:g}, is worse than the best on "
          f"{enumerate_all(list(dict.fromkeys(other)))}; the answer depends on the task.")


def _left_out(group: Group, head: Evidence | None) -> list[str]:
  found = []
  if group.left_out:
    found.append("Left out, because their pretraining failed or has not finished: "
                 f"{enumerate_some(group.left_out)}.")
  tuned = {f.member for f in group.finetuned}
  waiting = [m.name for m in group.members if m.status == "done" and m.name not in tuned]
  if waiting and head is not None:
    found.append(f"Pretrained but not fine-tuned yet: {enumerate_some(waiting)}.")
  if head is not None:
    used = {(e.weight_decay, e.seeds) for e in head.comparison.estimates}
    have = {d: len({f.seed for f in group.finetuned if f.weight_decay == d})
            for d in head.decays}
    partly = sum(have.values()) - sum(n for _, n in used)
    if partly > 0:
      found.append(f"{plural(partly, 'member')} without all of the results that are compared "
                   f"{'is' if partly == 1 else 'are'} left out of the answer; finish the "
                   "fine-tuning.")
  if group.ruined:
    names = list(dict.fromkeys(f"{f.member} on {f.title}" + (f" at {f.point}" if f.point else "")
                               for f in group.ruined))
    found.append("Fine-tuning was not finite and counts with the scores of the step before: "
                 f"{enumerate_some(names)}.")
  if group.early:
    found.append(f"Results of {enumerate_some(group.early)} are of a checkpoint before the last "
                 "step; run the finetune program on the last one.")
  missing = [f for f in group.finetuned if not f.scores.get("after")]
  if missing:
    has = "has" if len(missing) == 1 else "have"
    found.append(f"{plural(len(missing), 'result')} of fine-tuning {has} no scores per problem; "
                 "so decays cannot be compared problem by problem, and intervals, of differences "
                 "above all, are too wide.")
  return found
