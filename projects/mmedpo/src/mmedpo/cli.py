"""MMedPO's entries: train, evaluate, predict, and `run_job` for claims."""

from lightbox.paper.entries import Entries
from mmedpo.config import check

ENTRIES = Entries("mmedpo", check=check, shows_attention=True, example="is there a nodule ?")
train, evaluate, predict, run_job = ENTRIES.train, ENTRIES.evaluate, ENTRIES.predict, ENTRIES.run_job
