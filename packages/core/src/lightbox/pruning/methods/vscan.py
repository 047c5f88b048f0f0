"""VScan's first stage (arXiv 2505.22654): half from every window, half from anywhere, the rest merged."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightbox.kernels.assign_merge.op import assign_merge
from lightbox.pruning.budgets import largest_remainder
from lightbox.pruning.methods.ordering import best_of, packed_counts
from lightbox.pruning.types import Selection, TokenGrid, VisualBatch, offsets


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Keep half of the count by windows, half over the image, and average the dropped into the kept.

    In every window of `options.windows` tokens a side the tokens that an early layer looks at most; among what is left
    those that the layer before the projector looks at most; every dropped token goes to the kept one that it is most
    like, which becomes the mean.

    Differs from the paper: projected features are compared and merged, not those of the tower.
    """
    device = batch.x.device
    pieces: list[Tensor] = []
    parts: list[int] = []
    local = [count // 2 for count in counts]
    for grid, own, start in zip(batch.grids, local, batch.starts[:-1], strict=True):
        windows = [places.to(device) + start for places in windows_of(grid, options.windows)]
        sizes = [len(places) for places in windows]
        pieces += windows
        parts += largest_remainder(sizes, own, sizes)
    spread = torch.tensor(parts, dtype=torch.int32, device=device)
    first = best_of(batch.early_attention.float(), pieces, spread, sum(local))
    scores = batch.attention.float().index_fill(0, first, torch.inf)  # they stay, and the others come behind
    cu, k = packed_counts(batch.counts, counts, device)
    wholes = [
        torch.arange(start, end, device=device) for start, end in zip(batch.starts, batch.starts[1:], strict=False)
    ]
    idx = best_of(scores, wholes, k, sum(counts))
    merged, _ = assign_merge(batch.x.detach(), batch.x, idx, cu, offsets(counts).to(device))
    return Selection(idx, counts, merged=merged, scores=scores)


def windows_of(grid: TokenGrid, side: int) -> list[Tensor]:
    """Places of the patches in each window of a plane, window by window; those at the edge may be smaller."""
    width = max(columns for _, columns in grid.planes) // side + 1
    height = max(rows for rows, _ in grid.planes) // side + 1
    window = (grid.plane * height + grid.row // side) * width + grid.column // side
    return [(window == own).nonzero().flatten() for own in window.unique().tolist()]
