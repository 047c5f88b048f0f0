"""The highest values of the caller's finding map; the rival of `lesion_safe`, without its promise."""

from collections.abc import Sequence
from typing import Any

from lightbox.pruning.methods.ordering import best, with_floor
from lightbox.pruning.types import Selection, VisualBatch


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Keep the highest values of the map; one large finding may take all, and a small one nothing."""
    scores = with_floor(batch.finding.float(), batch, counts, options.floor_uniform)
    return Selection(best(scores, batch.counts, counts), counts, scores=scores)
