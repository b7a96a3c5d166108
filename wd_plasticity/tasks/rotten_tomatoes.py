"""Rotten Tomatoes (cornell-movie-review-data/rotten_tomatoes; Pang and Lee 2005): sentiment.

Rows with text and label, or the two files of the original archive (rt-polarity.neg and
.pos, which have no splits).
"""

from wd_plasticity.tasks import sst2
from wd_plasticity.tasks.task import Task

TASK = Task(
    name="rotten_tomatoes", title="Rotten Tomatoes",
    source="cornell-movie-review-data/rotten_tomatoes",
    splits={"train": 8530, "validation": 1066, "test": 1066}, problems=sst2.reviews,
    grading="word", labels=sst2.SENTIMENTS,
)
