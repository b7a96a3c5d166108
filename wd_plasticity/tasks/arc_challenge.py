"""ARC-Challenge (allenai/ai2_arc, TFDS ai2_arc; Clark et al. 2018): the harder part of ARC.

See `question_answers` for the format.
"""

from wd_plasticity.tasks import question_answers
from wd_plasticity.tasks.task import Task

TASK = Task(
    name="arc_challenge", title="ARC-Challenge", source="allenai/ai2_arc (ARC-Challenge)",
    splits={"train": 1119, "validation": 299, "test": 1172}, problems=question_answers.problems,
    grading="none",
)
