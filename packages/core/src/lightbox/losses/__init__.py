"""Losses as pure functions of tensors: `language` (token cross-entropy, sequence log-probabilities), `regions` (a phrase
against places of its image).

Each returns sums and counts, so that the caller decides what a mean is taken over. A paper's own objective lives in
its `objective.py`.
"""
