"""Three exercises on MedPLIB: recall, modify, break. Fill in the functions; `solutions.py` is beside this file.

Check your work from the checkout, in under a minute:

    uv run pytest tests/medplib/test_exercises.py -k untouched_or_right

A function that still raises NotImplementedError counts as untouched; any other must be right. None trains a model.
"""

from collections.abc import Sequence

import numpy as np

from lightbox.paper.drawn_regions import Asked
from lightbox.paper.samples import Sample


def pool_region(patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Recall: what does a region mean to the model?

    Write it by hand, without `lightbox.paper.pixel_prompts`: the mean of the patches, each weighed by the share of it
    that the region covers. A region of one pixel means its patch.

    Args:
        patches: features of the patches, (rows, columns, d).
        mask: bool (h, w), at least one pixel True; h is a multiple of rows, w of columns, and patches tile the image.

    Returns:
        The region's feature, (d,).
    """
    raise NotImplementedError("exercise 1")


def with_mirrored_region(samples: Sequence[Sample[Asked]]) -> list[Sample[Asked]]:
    """Modify: a control for claim E4, beside the whole picture and another region.

    Show each region question the mirror image of its region, left for right: as large, of the same shape, and most
    often somewhere else. Does the model read where a region lies, or only how large it is? The region as the question
    has it is `regions["own"]`, what is meant is `mask`, which stays; a mask is a prompt too.

    Args:
        samples: of all tasks; they must not be changed.

    Returns:
        New ones, in the order of `samples`, that differ in the own region of region questions only.
    """
    raise NotImplementedError("exercise 2")


def draw_blindly(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Break: make claim E6-threshold fail without looking at an image.

    The official code cuts masks at a probability of 0.1. Draw one map for every image of a class such that masks cut
    at 0.1 are better than those cut at 0.5 by 10 points of Dice and more. Each of its probabilities has to be honest:
    of the pixels where it says a third, a third are inside. What does that say about who gains from a low threshold?

    Args:
        masks: true ones of the class in training images, bool (h, w), whose place varies.

    Returns:
        Logits (h, w), finite.
    """
    raise NotImplementedError("exercise 3")
