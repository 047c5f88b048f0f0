"""Losses as pure functions of tensors: `language` (tokens, sequences) and `regions` (a phrase and places in an image).

Each returns sums and counts, so that the caller decides what a mean is taken over. A paper's own objective lives in
its `objective.py`.
"""
