"""Slices of a stack, or frames: what changed since the slice before stays.

EVS (arXiv 2510.14624) and Hulu-Med (arXiv 2510.08668). Hulu-Med's released code means to keep the first frame and keeps
one token of it; here the first slice stays whole wherever the budget has room for it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.pruning.methods.ordering import patch_cells
from lightbox.pruning.types import Selection, TokenGrid, VisualBatch


@torch.no_grad()
def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Divide the budget of a row's images by change: 1 - cosine to the same place in the slice before (EVS).

    The total of a stack is exact, and single slices get more or less than their share. Every slice keeps at least
    `options.min_tokens`. The first keeps all, or an even grid where the budget is too small for that. A single image
    has no slice before it and keeps an even grid.

    Raises:
        RequestError: slices of one row that differ in size.
    """
    kept: list[Tensor] = []
    kept_counts: list[int] = []
    device = batch.x.device
    for group in batch.groups:
        sizes = {batch.counts[image] for image in group}
        if len(sizes) > 1:
            raise RequestError(
                f"Slices of {sorted(sizes)} tokens in one prompt",
                "A place is compared with the same place in the slice before",
                "Give slices of one size, or use another method",
            )
        if not group:
            continue
        size, total = sizes.pop(), sum(counts[image] for image in group)
        least = min(options.min_tokens, total // len(group), size)
        first = min(size, total - least * (len(group) - 1))
        if first < size:  # too small a budget for a whole first slice: it has its share like any other
            first = counts[group[0]]
        start = batch.starts[group[0]]
        x = batch.x[start : start + size * len(group)].detach().float()
        kept.append(even(batch.grids[group[0]], first).to(device) + start)
        own_counts = [first]
        if len(group) > 1:
            change = 1 - F.cosine_similarity(x[size:], x[:-size], dim=1)
            places, later = _changed(change, size, total - first, least)
            kept.append(places + start + size)
            own_counts += later
        kept_counts += own_counts
    return Selection(torch.cat(kept), kept_counts)


def even(grid: TokenGrid, count: int) -> Int[Tensor, " n"]:
    """An even grid of one slice."""
    return patch_cells(grid, count)[1]


def _changed(change: Float[Tensor, " T"], size: int, total: int, least: int) -> tuple[Int[Tensor, " n"], list[int]]:
    """The most changed of all slices behind the first, at least so many of each; places ascending, and counts."""
    slices = change.view(-1, size)
    rank = torch.sort(slices, dim=1, descending=True, stable=True).indices.argsort(dim=1)
    # the least that a slice keeps comes before everything else, in the order of change
    scores = torch.where(rank < least, slices + 4.0, slices).flatten()
    places = torch.sort(scores, descending=True, stable=True).indices[:total].sort().values
    return places, torch.bincount(places // size, minlength=len(slices)).tolist()
