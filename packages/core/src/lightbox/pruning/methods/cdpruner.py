"""CDPruner (arXiv 2506.10967): the likeliest set of a determinantal process that is drawn to what a question asks."""

from collections.abc import Sequence
from typing import Any

from lightbox.kernels.greedy_select.op import greedy_select
from lightbox.pruning.methods.ordering import packed_counts
from lightbox.pruning.types import Selection, VisualBatch


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Pick greedily the set with the largest determinant of diag(r) S diag(r), S cosines and r relevance.

    Differs from the paper: r comes from the caller, who has a text tower or not (`relevance`), and is 1 without one;
    it is scaled per image and not over the batch, so an image's tokens do not depend on its neighbours. Where the rank
    is used up the rest goes by relevance (the released code takes the root of a negative number there).
    """
    cu, k = packed_counts(batch.counts, counts, batch.x.device)
    idx = greedy_select(
        batch.x.detach(),
        cu,
        k,
        sum(counts),
        rule="dpp",
        relevance=None if batch.relevance is None else batch.relevance.float(),
        max_len=max(batch.counts),
    )
    return Selection(idx, counts)
