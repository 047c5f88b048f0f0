"""Masks for controls: as large as a region and somewhere else, or near to where it lies. No torch."""

import numpy as np

IOU_RANGE = (0.3, 0.7)
TRIES = 16


def elsewhere(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same shape, as many pixels, moved to where it covers the mask least of `TRIES` random places.

    Args:
        mask: bool (h, w); what leaves the image on one side comes in on the other.
        rng: decides the places.
    """
    shifts = rng.integers(0, mask.shape, size=(TRIES, 2)).tolist()
    places = [np.roll(mask, shift, axis=(0, 1)) for shift in shifts]
    return min(places, key=lambda place: np.count_nonzero(place & mask))


def degraded(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask moved in a random direction as far as it keeps an IoU of at least 0.3 with itself, mostly below 0.7.

    Args:
        mask: bool (h, w); what leaves the image on one side comes in on the other.
        rng: decides direction and how far.
    """
    angle, wanted = rng.uniform(0, 2 * np.pi), rng.uniform(*IOU_RANGE)
    best = mask
    for distance in range(1, max(mask.shape)):
        shift = (round(distance * np.sin(angle)), round(distance * np.cos(angle)))
        moved = np.roll(mask, shift, axis=(0, 1))
        overlap = mask_iou(mask, moved)
        if overlap < IOU_RANGE[0]:
            break
        best = moved
        if overlap <= wanted:
            break
    return best


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks, in [0, 1]; 0 where both are empty.

    Example:
        >>> mask_iou(np.array([True, True, False]), np.array([False, True, True])) == 1 / 3
        True
    """
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 0.0
