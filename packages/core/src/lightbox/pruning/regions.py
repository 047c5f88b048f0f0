"""Connected regions of a finding map, and the tokens that show each. On the CPU; waits for the device."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.pruning.types import TokenGrid

EIGHT = np.ones((3, 3), dtype=int)
"""Pixels that touch at a corner are of one region: a thin lesion drawn aslant stays whole."""


def check_map(finding: Tensor) -> None:
    """Refuse a map that is no picture."""
    if finding.ndim != 2:
        raise RequestError(
            f"A finding map of shape {tuple(finding.shape)}", "It has rows and columns", "Give one map of h w an image"
        )


def tokens_of(finding: Float[Tensor, "h w"], grid: TokenGrid, threshold: float) -> list[list[int]]:
    """For each connected region of a map, the patches that show it, the best one first.

    Regions are found at the map's own resolution: two lesions that share a patch are still two.

    Args:
        finding: in [0, 1].
        grid: of patches only; the map is laid over its last plane, which has the finest view of the whole image.
        threshold: a region is where the map is at least this.

    Returns:
        A region's patches by falling peak of the map within the patch, ties by place; regions by falling peak.
    """
    values = finding.detach().cpu().double().numpy()
    labels: Any
    labels, n_regions = ndimage.label(values >= threshold, structure=EIGHT)  # type: ignore[reportGeneralTypeIssues]
    plane = len(grid.planes) - 1
    rows, columns = grid.planes[plane]
    place_of = {
        (row, column): place
        for place, (own, row, column) in enumerate(
            zip(grid.plane.tolist(), grid.row.tolist(), grid.column.tolist(), strict=True)
        )
        if own == plane
    }
    found = []
    for region in range(1, n_regions + 1):
        ys, xs = np.nonzero(labels == region)
        peaks: dict[int, float] = {}
        for y, x, value in zip(ys, xs, values[ys, xs], strict=True):
            # the middle of the pixel decides which patch it lies in
            key = (int((y + 0.5) * rows / values.shape[0]), int((x + 0.5) * columns / values.shape[1]))
            if key in place_of:
                peaks[place_of[key]] = max(peaks.get(place_of[key], 0.0), float(value))
        if peaks:
            order = sorted(peaks, key=lambda place: (-peaks[place], place))
            found.append((peaks[order[0]], order))
    return [order for _, order in sorted(found, key=lambda entry: (-entry[0], entry[1]))]
