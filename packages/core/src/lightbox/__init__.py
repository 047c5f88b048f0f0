"""Lightbox core: what five medical vision-language papers share.

Read in this order: `records` (one schema for every source), `phantom` (the procedural world),
`train` (the step driver), `claims` (experiments with verdicts), `report` (the page).
Importing this package imports neither torch nor transformers.
"""

__version__ = "0.1.0"
