"""A token for every finding: each connected region of the caller's finding map keeps at least one. Our own."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from lightbox.pruning.methods.ordering import best, with_grid
from lightbox.pruning.types import Selection, VisualBatch

_log = logging.getLogger(__name__)
PROMISED, GRID = 3.0, 2.0
"""Scores above any value of the map: first what is promised, then the grid, then the map."""


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Keep the peak of every region, then an even grid, then the highest values of the map.

    The grid gets `options.floor_uniform` of the count, and all that the regions do not need. Two regions that share a
    token are both kept by it. With more regions than tokens those of the highest peaks stay, and a warning says so.
    """
    promised: list[int] = []
    grid_counts = []
    for own, count, start in zip(batch.regions, counts, batch.starts[:-1], strict=True):
        peaks = list(dict.fromkeys(region[0] for region in own))
        if len(peaks) > count:
            _log.warning("An image has %d regions apart and keeps %d tokens: the weakest are lost", len(peaks), count)
        promised += [start + peak for peak in peaks[:count]]
        in_regions = {token for region in own for token in region}
        grid_counts.append(max(round(options.floor_uniform * count), count - len(in_regions)))
    scores = with_grid(batch.finding.float(), batch, grid_counts, GRID)
    if promised:
        scores = scores.index_fill(0, torch.tensor(promised, device=scores.device), PROMISED)
    return Selection(best(scores, batch.counts, counts), counts, scores=scores)
