"""The dispreferred image: where it is noised, and how. Pure functions of arrays and seeds. No torch.

The paper, with mask h, image x and noise eps: x* = sqrt(a_k) (x h) + sqrt(1 - a_k) (eps h) + x (1 - h), where a_k is
the product of 1 - beta_i over i <= k, counted from 0. Step k and schedule are not in it; the schedule here is the one
that stands unused in its training code (POVID's).
"""

from collections.abc import Sequence

import numpy as np

from lightbox.errors import RequestError
from lightbox.paper.moved_masks import degraded, elsewhere
from mmedpo.config import MAPPED, MASKS, MOST_STEP

FOUND = 0.5
"""Probability of a finding above which a pixel of a map counts as one."""


def signal_share(step: int) -> float:
    """a_k: the share of the image's variance that is left at a step.

    Args:
        step: 0 to 999.

    Raises:
        RequestError: another step.

    Example:
        >>> [round(signal_share(k) ** 0.5, 3) for k in (300, 500, 700, 900)]
        [0.981, 0.863, 0.593, 0.365]
    """
    if not 0 <= step <= MOST_STEP:
        raise RequestError(f"Noise step {step}", f"The schedule ends at {MOST_STEP}", "Choose a step from 0 to that")
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, MOST_STEP + 1))) * (0.005 - 1e-5) + 1e-5
    return float(np.prod(1 - betas[: step + 1]))


def noised(images: np.ndarray, masks: np.ndarray, step: int, seeds: Sequence[int]) -> np.ndarray:
    """Images whose masked pixels are noised by the paper's formula.

    Args:
        images: uint8 (n, h, w); 0..255 stands for -1..1, the range of diffusion models.
        masks: bool (n, h, w).
        step: of the schedule, 0 to 999.
        seeds: one an image, >= 0, so that a pair's noise does not depend on its neighbours.

    Returns:
        uint8 (n, h, w), rounded and cut to 0..255; pixels outside the masks are as they were.

    Raises:
        RequestError: masks of another shape than the images, a mask without a pixel, or a step that is not there.
    """
    if masks.shape != images.shape or len(seeds) != len(images):
        raise RequestError(
            f"{len(seeds)} seeds, images {images.shape} and masks {masks.shape}",
            "Each image has its own mask, of its size, and its own seed",
            "Resize the masks to the images",
        )
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise RequestError(
            f"Mask {empty[0]} of {len(masks)} has no pixel",
            "Without noise both images of a pair are the same, and nothing is preferred",
            "Leave the pair out",
        )
    share = signal_share(step)
    eps = np.stack([np.random.default_rng(seed).standard_normal(images.shape[1:], np.float32) for seed in seeds])
    x = images.astype(np.float32) / 127.5 - 1
    mixed = np.sqrt(share) * x + np.sqrt(1 - share) * eps
    return np.where(masks, np.rint((mixed + 1) * 127.5).clip(0, 255), images).astype(np.uint8)


def masks_of(kind: str, lesions: np.ndarray, seeds: Sequence[int], maps: np.ndarray | None = None) -> np.ndarray:
    """Where images are noised, bool (n, h, w); empty where a tower finds nothing.

    Args:
        kind: see `data.mask`.
        lesions: bool (n, h, w), the findings.
        seeds: one an image.
        maps: for tower and mean_std: how sure a tower is of a finding at a pixel, (n, h, w) in [0, 1].

    Raises:
        RequestError: an unknown kind, or no maps where they are needed.
    """
    if kind not in MASKS or (kind in MAPPED and maps is None):
        raise RequestError(
            f"Masks of kind '{kind}'{'' if maps is None else ' with maps'}",
            f"The kinds are {', '.join(MASKS)}; tower and mean_std read maps",
            "Choose one of them, and give maps= where it needs them",
        )
    if kind == "oracle":
        return lesions
    if kind == "full":
        return np.ones_like(lesions)
    if kind == "tower":
        return maps > FOUND
    if kind == "mean_std":  # the official script's threshold, which keeps most of a peaked map
        return maps > (maps.mean(axis=(1, 2)) - maps.std(axis=(1, 2)))[:, None, None]
    make = degraded if kind == "degraded" else elsewhere
    return np.stack([make(mask, np.random.default_rng(seed)) for mask, seed in zip(lesions, seeds, strict=True)])
