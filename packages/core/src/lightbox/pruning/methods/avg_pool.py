"""Means over cells of about the same shape: nothing is thrown away, and everything is blurred."""

from collections.abc import Sequence
from typing import Any

import torch

from lightbox.pruning.methods.ordering import patch_cells
from lightbox.pruning.types import Selection, VisualBatch


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Average projected features over cells; each stands at the position of the cell's middle patch."""
    chosen, cell_of, before = [], [], 0
    for grid, count, start in zip(batch.grids, counts, batch.starts[:-1], strict=True):
        cell, middle = patch_cells(grid, count)
        chosen.append(middle + start)
        cell_of.append(torch.where(cell >= 0, cell + before, sum(counts)))  # a plane without cells goes to a spare row
        before += count
    idx, cells = torch.cat(chosen).to(batch.x.device), torch.cat(cell_of).to(batch.x.device)
    rows = batch.x.new_zeros(sum(counts) + 1, batch.x.shape[1], dtype=torch.float32)
    sums = rows.index_add(0, cells, batch.x.float())[:-1]
    sizes = torch.bincount(cells, minlength=sum(counts) + 1)[:-1]
    # a cell of one patch is that patch, bit for bit
    merged = torch.where(sizes[:, None] == 1, batch.x[idx], (sums / sizes[:, None]).to(batch.x.dtype))
    return Selection(idx, counts, merged=merged)
