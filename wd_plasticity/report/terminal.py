"""The answer of a study in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.padding import Padding

from wd_plasticity.console import Console, text
from wd_plasticity.report.answer import Answer
from wd_plasticity.report.study import Study


def show(study: Study, answers: Sequence[Answer], path: Path, console: Console) -> None:
  """Prints the answers in words, what is missing, and where the report is."""
  console.print(text(f"\n{study.name}: what was found", style="bold"))
  for answer in answers:
    if answer.name:
      console.print(text(f"\n{answer.name}", style="bold"))
    for i, sentence in enumerate(answer.sentences):
      console.print(text(sentence, style="bold" if i == 0 else ""))
    for caution in answer.cautions:
      console.print(Padding(text(f"Caution: {caution}", style="yellow"), (0, 0, 0, 2)))
  if study.notes:
    console.print(text(f"{len(study.notes)} notes on what is missing or left out are in the "
                       "report." if len(study.notes) > 1 else study.notes[0], style="yellow"))
  console.print(text(f"report: {path}"), soft_wrap=True)
