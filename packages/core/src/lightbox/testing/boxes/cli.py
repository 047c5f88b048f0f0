"""Entries."""

from lightbox.paper.entries import Entries

ENTRIES = Entries("lightbox.testing.boxes", eval_key="needs")
train, evaluate, predict, run_job = ENTRIES.train, ENTRIES.evaluate, ENTRIES.predict, ENTRIES.run_job
