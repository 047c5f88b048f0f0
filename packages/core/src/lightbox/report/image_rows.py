"""A figure of images beside copies of them, from plain arrays to a PNG: what was changed, and where."""

import io
from collections.abc import Mapping

import matplotlib
import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightbox.errors import RequestError
from lightbox.report.figures import INK, STYLE

REGION = "#ffb000"
"""Outline of a region; over a dark line, so that it shows on any grey."""


def image_rows(
    rows: Mapping[str, Mapping[str, UInt8[np.ndarray, "h w"]]],
    regions: Mapping[str, Bool[np.ndarray, "h w"]],
    *,
    title: str,
) -> bytes:
    """Draw grey images in rows; PNG bytes.

    Args:
        rows: name of a row -> column -> pixels; the columns of the first row are those of all.
        regions: name of a row -> where; outlined in the row's first image. A region that covers the image, or nothing
            of it, has no outline.
        title: over the figure; a synthetic image is to be called so.

    Raises:
        RequestError: no image, rows with other columns, or a region of another size than its image.
    """
    columns = list(next(iter(rows.values()), {}))
    if not columns or any(list(images) != columns for images in rows.values()):
        raise RequestError(
            f"Rows of the columns {[list(images) for images in rows.values()]}",
            "Images stand below each other by column",
            "Give each row the same columns, at least one",
        )
    for name, region in regions.items():
        if name not in rows or region.shape != rows[name][columns[0]].shape:
            raise RequestError(
                f"A region of shape {region.shape} for the row '{name}'",
                "It is outlined in the first image of its row",
                f"Name one of the rows {list(rows)}, and give a region of its height and width",
            )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.75 * len(columns) + 1.0, 1.75 * len(rows) + 0.8), layout="constrained", dpi=130)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for place, (line, (name, images)) in enumerate(zip(axes, rows.items(), strict=True)):
            for axis, column in zip(line, columns, strict=True):
                axis.imshow(images[column], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axis.set(xticks=[], yticks=[], title=column if place == 0 else "")
                axis.spines[:].set_visible(False)
            line[0].set_ylabel(name, color=INK)
            if name in regions:
                _outline(line[0], regions[name])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def _outline(axis: Axes, region: np.ndarray) -> None:
    if region.any() and not region.all():
        for colour, width in (("black", 2.8), (REGION, 1.5)):
            axis.contour(region.astype(float), levels=[0.5], colors=colour, linewidths=width)
