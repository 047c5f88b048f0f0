"""DivPrune (arXiv 2503.02175): tokens as far from each other as can be. From its equations; the code is not free."""

from collections.abc import Sequence
from typing import Any

from lightbox.kernels.greedy_select.op import greedy_select
from lightbox.pruning.methods.ordering import packed_counts
from lightbox.pruning.types import Selection, VisualBatch


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Pick, again and again, the token farthest in cosine distance from all picked ones."""
    cu, k = packed_counts(batch.counts, counts, batch.x.device)
    idx = greedy_select(batch.x.detach(), cu, k, sum(counts), rule="maxmin", max_len=max(batch.counts))
    return Selection(idx, counts)
