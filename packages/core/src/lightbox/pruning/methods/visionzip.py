"""VisionZip (arXiv 2412.04467): tokens that are looked at most, and a few that stand for all others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightbox.kernels.assign_merge.op import assign_merge
from lightbox.pruning.methods.ordering import bands, best
from lightbox.pruning.types import Selection, VisualBatch, offsets


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Keep dominant tokens by attention, and merge the rest into contextual ones by likeness of keys.

    Contextual targets stand at even steps among the rest; each of the others goes to the target whose keys are most
    like its own, and a target becomes the mean of its group. `compat="reference_code"` adds the mean of the others to
    the target, as the released code does, so that norms grow.

    Differs from the paper: projected features are merged and not those of the tower; contextual tokens stand at their
    targets' places and not behind all others; the class token is not one of the dominant ones.
    """
    contextual = [min(round(options.contextual * count), count - 1) for count in counts]
    dominant = [count - own for count, own in zip(counts, contextual, strict=True)]
    chosen = best(batch.attention.float(), batch.counts, dominant)
    is_rest = torch.ones(len(batch.x), dtype=torch.bool, device=batch.x.device).index_fill(0, chosen, False)
    rest_sizes = [size - own for size, own in zip(batch.counts, dominant, strict=True)]
    # the rest first, in order: as many as the host knows, without waiting for their places
    rest = torch.argsort((~is_rest).long(), stable=True)[: sum(rest_sizes)]
    targets = torch.cat(
        [
            torch.tensor([start for start, _ in bands(size, own)], dtype=torch.int64) + before
            for size, own, before in zip(rest_sizes, contextual, offsets(rest_sizes).tolist()[:-1], strict=True)
        ]
    ).to(batch.x.device)
    merged, _ = assign_merge(
        batch.metric[rest],
        batch.x[rest],
        targets,
        offsets(rest_sizes).to(batch.x.device),
        offsets(contextual).to(batch.x.device),
        mode="sum_plus_target" if options.compat else "mean",
    )
    return in_order(chosen, batch.x[chosen], rest[targets], merged, counts)


def in_order(kept: Tensor, kept_x: Tensor, others: Tensor, others_x: Tensor, counts: Sequence[int]) -> Selection:
    """Two groups of tokens as one selection, by place."""
    idx, order = torch.cat([kept, others]).sort()
    return Selection(idx, counts, merged=torch.cat([kept_x, others_x])[order])
