"""CommonsenseQA (tau/commonsense_qa; Talmor et al. 2019): five options, no public test answers.

See `question_answers` for the format.
"""

from wd_plasticity.tasks import question_answers
from wd_plasticity.tasks.task import Task

TASK = Task(
    name="commonsenseqa", title="CommonsenseQA", source="tau/commonsense_qa",
    splits={"train": 9741, "validation": 1221}, problems=question_answers.problems,
    grading="none",
)
