"""Figures and an answer made by hand, for tests of how a report is drawn."""

import math

from wd_plasticity.report.answer import Answer, Comparison, Estimate
from wd_plasticity.report.figure import POINTS, REFERENCE, Figure, Series, View

DECAYS = (0.0, 0.1, 1.0)
HOSTILE = ("</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}",
           "%{x} %{meta[0]}", '<a href="javascript:alert(1)">link</a>', "<b>bold</b>&lt;&amp;",
           "$x^2$ and $\\frac{1}", "\u2028a\nb", "'`${alert(1)}`")


def by_decay(name: str = "by_decay", tasks=("SST-2", "AG News")) -> Figure:
  """Points on a decay axis with intervals, a reference, single seeds; two controls.

  The view of the second task at the rate 'lr0.003' does not exist.
  """
  views = []
  for k, task in enumerate(tasks):
    for rate in ("best", "lr0.001", "lr0.003"):
      if (k, rate) == (1, "lr0.003"):
        continue
      y = [0.5 + 0.1 * k + 0.05 * i + 0.01 * len(rate) for i in range(3)]
      views.append(View({"task": task, "rate": rate}, [
          Series("fine-tuned", DECAYS, y, [v - 0.02 for v in y], [v + 0.03 for v in y]),
          Series("base model", DECAYS, [0.4] * 3, style=REFERENCE),
          Series("seeds", [d for d in DECAYS for _ in "ab"], [v for v in y for _ in "ab"],
                 style=POINTS, labels=["seed 0", "seed 1"] * 3)], "accuracy", rate == "best"))
  return Figure(name, "After fine-tuning", "Accuracy by weight decay", "The caption.",
                "weight decay in pretraining", views, x_axis="decay", controls=("task", "rate"))


def curves(name: str = "curves") -> Figure:
  """A line of 20 points per decay with a band that has a gap, on logarithmic axes."""
  x = [10.0 * (i + 1) for i in range(20)]
  series = []
  for d in DECAYS:
    y = [2 + math.exp(-i / 5) - 0.1 * d for i in range(20)]
    y[7], y[8] = None, float("nan")
    low = [None if v is None or math.isnan(v) else v - 0.1 for v in y]
    high = [None if v is None else v + 0.1 for v in low]
    series.append(Series(f"{d:g}", x, y, low, high, weight_decay=d))
  return Figure(name, "Pretraining", "Loss", "Caption.", "step", [View({}, series, "nats")],
                x_axis="log", y_axis="log")


def by_layer(name: str = "by_layer") -> Figure:
  """Seven views, one more than there is room for on paper."""
  views = [View({"task": f"task {k}"}, [
      Series(f"{d:g}", range(4), [d + k + j for j in range(4)], weight_decay=d)
      for d in DECAYS], "accuracy") for k in range(7)]
  return Figure(name, "Probes", "Probes by layer", "Caption.", "layer", views, x_axis="count",
                controls=("task",))


def nothing() -> Figure:
  return Figure("ranks", "Ranks", "Ranks of attention", "", "layer", [],
                missing="There are no ranks; run the program attention_rank.")


def hostile() -> Figure:
  """Every text of it tries to be markup, a script, a template or mathematics."""
  views = [View({text: text}, [Series(t, DECAYS, [0.1, 0.2, 0.3], labels=[t] * 3)
                               for t in HOSTILE], text) for text in HOSTILE[:1]]
  return Figure("hostile", HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[4], views,
                x_axis="decay", controls=(HOSTILE[0],))


def answer(text: str = "Pretrain with weight decay 1.") -> Answer:
  loss = Comparison("", "loss", "", "loss", [
      Estimate(d, 3.2 - 0.1 * d, 3.1, 3.3, 0.999 if d == 1 else 0.0005, 2, 0) for d in DECAYS],
      1.0, [0.1], None, None, {})
  after = Comparison("", "average of 2 tasks", "best", "accuracy", [
      Estimate(d, 0.5 + 0.1 * d, None, None, None, 2, 2) for d in DECAYS],
      1.0, [], None, None, {d: ["0.001"] for d in DECAYS})
  return Answer("", loss, [after], [text, "A second sentence."], ["Two seeds are few."])
