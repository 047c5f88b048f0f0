"""Solutions of the exercises on MedPLIB. Try first: each takes less than ten lines."""

from collections.abc import Sequence

import numpy as np
from einops import reduce

from lightbox.paper.drawn_regions import OWN, REGION, Asked
from lightbox.paper.samples import Sample


def pool_region(patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Exercise 1."""
    rows, columns, _ = patches.shape
    cover = reduce(mask.astype(float), "(rows h) (columns w) -> rows columns", "mean", rows=rows, columns=columns)
    return (patches * cover[..., None]).sum(axis=(0, 1)) / cover.sum()


def with_mirrored_region(samples: Sequence[Sample[Asked]]) -> list[Sample[Asked]]:
    """Exercise 2. A model that answers as before has read no place; questions about size stay answerable."""
    mirrored = []
    for sample in samples:
        asked = sample.record
        if asked.task == REGION and asked.mask is not None:
            sample = sample.with_record(regions={**asked.regions, OWN: asked.mask[:, ::-1].copy()})
        mirrored.append(sample)
    return mirrored


def draw_blindly(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Exercise 3. Where the place varies no pixel is inside as often as not, so a cut at a half draws nothing.

    Who does not look, or hardly, gains most from a low threshold.
    """
    share = np.clip(np.mean(masks, axis=0), 1e-4, 1 - 1e-4)
    return np.log(share / (1 - share))
