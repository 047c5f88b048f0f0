"""MedPLIB's entries: train, evaluate, predict, and `run_job` for claims."""

from lightbox.paper.entries import Entries
from medplib.config import check

ENTRIES = Entries("medplib", check=check, takes_regions=True, example="segment the liver .")
train, evaluate, predict, run_job = ENTRIES.train, ENTRIES.evaluate, ENTRIES.predict, ENTRIES.run_job
