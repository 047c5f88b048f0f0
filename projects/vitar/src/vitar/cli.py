"""ViTAR's entries: train, evaluate, predict, and `run_job` for claims."""

from lightbox.paper.entries import Entries
from vitar.config import check

ENTRIES = Entries("vitar", check=check, shows_attention=True, example="what is seen in the left hilum ?")
train, evaluate, predict, run_job = ENTRIES.train, ENTRIES.evaluate, ENTRIES.predict, ENTRIES.run_job
