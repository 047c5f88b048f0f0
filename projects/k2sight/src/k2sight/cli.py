"""K2Sight's entries: train, evaluate, predict, and `run_job` for claims."""

from k2sight.config import check
from lightbox.paper.entries import Entries

ENTRIES = Entries("k2sight", check=check, example="any means coin, white, dextral top")
train, evaluate, predict, run_job = ENTRIES.train, ENTRIES.evaluate, ENTRIES.predict, ENTRIES.run_job
