"""GSM8K (openai/gsm8k, TFDS gsm8k; Cobbe et al. 2021): grade-school word problems.

Responses are the published solutions, which end in `#### answer`, without the marks of
calculations.
"""

from wd_plasticity.tasks import math_problems
from wd_plasticity.tasks.task import Task

TASK = Task(
    name="gsm8k", title="GSM8K", source="openai/gsm8k (main)",
    splits={"train": 7473, "test": 1319},
    problems=lambda rows, split: math_problems.gsm8k_problems(rows),
    grading="math", generated=True,
)
