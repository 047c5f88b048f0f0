"""How far apart are the outlines of two masks? By MONAI, whose import costs what torch's does."""

import numpy as np
import torch
from jaxtyping import Bool
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

BOUNDARIES = ("hd95", "assd", "nsd")


def score_boundaries(
    drawn: Bool[np.ndarray, "_ _"] | None,
    true: Bool[np.ndarray, "_ _"],
    *,
    tolerance: float = 1.0,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> dict[str, float | None]:
    """Distances between the outlines of one item's masks.

    Args:
        drawn: None where the model emitted no mask.
        true: of the same size.
        tolerance: distance up to which an outline counts as met, in the unit of `spacing`.
        spacing: height and width of a pixel, in mm, or 1 for pixels.

    Returns:
        hd95: 95th percentile of the distances, the larger of both directions, >= 0.
        assd: average distance, over both outlines, >= 0.
        nsd: share of both outlines within the tolerance of the other, in [0, 1].
        All None where one of the masks is empty: there is no outline to be far from.

    Raises:
        ValueError: masks of different sizes.
    """
    if drawn is not None and drawn.shape != true.shape:
        raise ValueError(f"The mask drawn is {drawn.shape} and the true one {true.shape}")
    if drawn is None or not (drawn.any() and true.any()):
        return dict.fromkeys(BOUNDARIES)
    pair = [torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (drawn, true)]
    settings = {"include_background": True, "spacing": spacing}
    values = (
        compute_hausdorff_distance(*pair, percentile=95, **settings),
        compute_average_surface_distance(*pair, symmetric=True, **settings),
        compute_surface_dice(*pair, class_thresholds=[tolerance], **settings),
    )
    return {name: float(value) for name, value in zip(BOUNDARIES, values, strict=True)}
