"""IMDB reviews (stanfordnlp/imdb, TFDS imdb_reviews; Maas et al. 2011): sentiment.

Rows with text and label, or the original archive, a file per review in the folders neg
and pos (`aclImdb/train/neg/*.txt,aclImdb/train/pos/*.txt`).
"""

from wd_plasticity.tasks import sst2
from wd_plasticity.tasks.task import Task

TASK = Task(
    name="imdb", title="IMDB", source="stanfordnlp/imdb",
    splits={"train": 25000, "test": 25000}, problems=sst2.reviews, grading="word",
    labels=sst2.SENTIMENTS,
)
