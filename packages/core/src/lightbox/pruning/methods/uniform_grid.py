"""Tokens at even distances: the middle of each of as many cells of about the same shape as tokens are kept."""

from collections.abc import Sequence
from typing import Any

import torch

from lightbox.pruning.methods.ordering import patch_cells
from lightbox.pruning.types import Selection, VisualBatch


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Keep an even grid; no pixel decides."""
    chosen = [
        patch_cells(grid, count)[1] + start
        for grid, count, start in zip(batch.grids, counts, batch.starts[:-1], strict=True)
    ]
    return Selection(torch.cat(chosen).to(batch.x.device), counts)
