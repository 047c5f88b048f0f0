"""The tokens that the class token looks at most: FasterVLM (arXiv 2412.01818)."""

from collections.abc import Sequence
from typing import Any

from lightbox.pruning.methods.ordering import best, with_floor
from lightbox.pruning.types import Selection, VisualBatch


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Keep the highest attention of the class token; in several planes, over all together.

    Differs from the paper for towers without a class token, where the mean look of all patches takes its place.
    """
    scores = with_floor(batch.attention.float(), batch, counts, options.floor_uniform)
    return Selection(best(scores, batch.counts, counts), counts, scores=scores)
