"""ARC-Easy (allenai/ai2_arc, TFDS ai2_arc; Clark et al. 2018): grade-school science questions.

See `question_answers` for the format.
"""

from wd_plasticity.tasks import question_answers
from wd_plasticity.tasks.task import Task

TASK = Task(
    name="arc_easy", title="ARC-Easy", source="allenai/ai2_arc (ARC-Easy)",
    splits={"train": 2251, "validation": 570, "test": 2376}, problems=question_answers.problems,
    grading="none",
)
