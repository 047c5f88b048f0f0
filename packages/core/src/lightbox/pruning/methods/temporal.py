"""Slices of a stack, or frames: what changed since the slice before stays.

EVS (arXiv 2510.14624) and Hulu-Med (arXiv 2510.08668). Hulu-Med's released code means to keep the first frame and keeps
one token of it; here the first slice stays whole wherever the budget has room for it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightbox.kernels.temporal_keep.op import temporal_keep
from lightbox.pruning.methods.ordering import patch_cells
from lightbox.pruning.types import Selection, TokenGrid, VisualBatch


@torch.no_grad()
def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Divide the budget of a stack by change: 1 - cosine to the same place in the slice before (EVS).

    Images of one prompt that follow each other and have one size are a stack; another size begins a new one. The total
    of a stack is exact, and single slices get more or less than their share. Every slice keeps at least
    `options.min_tokens`. The first keeps all, or an even grid where the budget is too small for that. A single image
    has no slice before it and keeps an even grid.
    """
    kept: list[Tensor] = []
    kept_counts: list[int] = []
    device = batch.x.device
    for stack in (own for group in batch.groups for own in stacks(group, batch.grids)):
        size, total = batch.counts[stack[0]], sum(counts[image] for image in stack)
        least = min(options.min_tokens, total // len(stack), size)
        first = min(size, total - least * (len(stack) - 1))
        if first < size:  # too small a budget for a whole first slice: it has its share like any other
            first = min(first, counts[stack[0]])
        start = batch.starts[stack[0]]
        kept.append(patch_cells(batch.grids[stack[0]], first)[1].to(device) + start)
        kept_counts.append(first)
        if len(stack) > 1:
            slices = batch.x[start : start + size * len(stack)].detach().view(len(stack), size, -1)
            # a whole first slice is counted here, and an even grid of it is what stays
            later = temporal_keep(slices, k_total=size + total - first, min_tokens=least)[0][1:]
            kept.append(later.flatten().nonzero().flatten() + start + size)
            kept_counts += later.sum(dim=1).tolist()
    return Selection(torch.cat(kept), kept_counts)


def stacks(group: Sequence[int], grids: Sequence[TokenGrid]) -> list[list[int]]:
    """Runs of images with one size."""
    found: list[list[int]] = []
    for image in group:
        if found and grids[found[-1][-1]].planes == grids[image].planes:
            found[-1].append(image)
        else:
            found.append([image])
    return found
