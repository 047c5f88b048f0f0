"""What can be drawn without looking: the mean mask of a class. No torch."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lightbox.paper.drawn_regions import MASK, Asked
from lightbox.paper.samples import Sample

LEAST_SHARE = 1e-6
"""Of the masks that hold a pixel: a logit is finite."""


def mean_masks(samples: Sequence[Sample[Asked]]) -> dict[tuple[str, str], Float[np.ndarray, "h w"]]:
    """Logit of the share of masks that hold a pixel, by modality and class; frames of a modality are alike.

    Args:
        samples: of training; requests for what is absent do not count.
    """
    masks: dict[tuple[str, str], list[np.ndarray]] = {}
    for sample in samples:
        asked = sample.record
        if asked.task == MASK and asked.mask is not None and asked.mask.any():
            masks.setdefault((asked.modality, asked.name), []).append(asked.mask)
    shares = {name: np.clip(np.mean(own, axis=0), LEAST_SHARE, 1 - LEAST_SHARE) for name, own in masks.items()}
    return {name: np.log(share / (1 - share)) for name, share in shares.items()}
