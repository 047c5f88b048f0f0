"""DART (arXiv 2502.11494): drop duplicates of a few pivots, whatever their importance."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightbox.pruning.budgets import largest_remainder
from lightbox.pruning.types import Selection, VisualBatch


@torch.no_grad()
def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Keep pivots, and for each in turn an equal part of the tokens least like it.

    Differs from the paper: it acts before the language model and not behind its second layer, so pivots are the tokens
    of largest L1 norm among projected features (there: among keys), and none is taken from the text.
    """
    pieces = [
        _kept(x, count, options.pivots) + start
        for x, count, start in zip(
            batch.x.detach().float().split(list(batch.counts)), counts, batch.starts[:-1], strict=True
        )
    ]
    return Selection(torch.cat(pieces), counts)


def _kept(x: Float[Tensor, "p d"], count: int, n_pivots: int) -> Int[Tensor, " n"]:
    """Places that stay of one image, ascending; ties go to the lower place."""
    n_pivots = min(n_pivots, count)
    pivots = torch.sort(x.abs().sum(dim=1), descending=True, stable=True).indices[:n_pivots]
    unit = F.normalize(x, dim=1)
    likeness = unit[pivots] @ unit.T  # n p
    kept = [pivots]
    for pivot, own in enumerate(largest_remainder([1.0] * n_pivots, count - n_pivots, [len(x)] * n_pivots)):
        # what was taken is put behind everything: a cosine is at most 1
        open_likeness = likeness[pivot].index_fill(0, torch.cat(kept), 2.0)
        kept.append(torch.sort(open_likeness, stable=True).indices[:own])
    return torch.cat(kept).sort().values
