"""The study's entries: `train`, which trains nothing here and scores one policy, and `run_job` for claims."""

from lightbox.paper.entries import Entries
from lightbox.studies.pruning.config import check

ENTRIES = Entries("lightbox.studies.pruning", check=check)
train, evaluate, predict, run_job = ENTRIES.train, ENTRIES.evaluate, ENTRIES.predict, ENTRIES.run_job
