"""OpenBookQA (allenai/openbookqa, TFDS openbookqa; Mihaylov et al. 2018): elementary science.

See `question_answers` for the format.
"""

from wd_plasticity.tasks import question_answers
from wd_plasticity.tasks.task import Task

TASK = Task(
    name="openbookqa", title="OpenBookQA", source="allenai/openbookqa (main)",
    splits={"train": 4957, "validation": 500, "test": 500}, problems=question_answers.problems,
    grading="none",
)
