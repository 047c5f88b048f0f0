"""Pictures of a conversation in rows, from plain arrays to a PNG: what was shown, which boxes, where a model looked."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lightbox.errors import RequestError
from lightbox.records import Box
from lightbox.report.figures import INK, SOFT, STYLE
from lightbox.report.kept_tokens import DRAWN, TRUE

MAP, MAP_ALPHA = "magma", 0.6
SIDE_IN, LETTER_IN, TITLE_LETTER_IN = 2.2, 0.065, 0.085
"""Side of a picture, and what a letter of the text under it and of the figure's title takes at most."""
MOST_LINES = 2
ROOM = 0.012
"""How far outside of its box an outline lies, as a fraction of the picture, so that it hides nothing in it."""


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        pixels: uint8 (h, w, 3).
        title: over it.
        text: under it, in at most `MOST_LINES` lines.
        true, drawn: boxes, as fractions of the picture; true ones are dashed.
        attention: (rows, columns) of tokens, by that of evenly spread attention, so 1 is chance; None draws none.
    """

    pixels: np.ndarray
    title: str = ""
    text: str = ""
    true: Sequence[Box] = ()
    drawn: Sequence[Box] = ()
    attention: np.ndarray | None = None


def draw_rows(rows: Sequence[Sequence[Panel]], *, title: str) -> bytes:
    """Draw pictures in rows; PNG bytes.

    All attention shares one scale, from none to the most that any picture has, so that rows and turns can be compared.

    Args:
        rows: pictures; a row may be shorter than another.
        title: over the figure; a synthetic image is to be called so.

    Raises:
        RequestError: no picture, pixels that are no colour image, or attention that is not a grid of finite numbers of
            at least 0.
    """
    panels = [panel for row in rows for panel in row]
    if not panels or not all(_is_sound(panel) for panel in panels):
        shapes = [(panel.pixels.shape, getattr(panel.attention, "shape", None)) for panel in panels]
        raise RequestError(
            f"Pictures and attention of the shapes {shapes}",
            "A picture is (h, w, 3) of at least one pixel, and attention (rows, columns) of finite numbers from 0",
            "Give at least one such picture",
        )
    columns = max(len(row) for row in rows)
    maps = [panel.attention for panel in panels if panel.attention is not None]
    scale = Normalize(0.0, max((float(own.max()) for own in maps), default=1.0) or 1.0)
    with matplotlib.rc_context(STYLE):
        width = SIDE_IN * columns + 0.9 * bool(maps)
        lines = textwrap.wrap(title, int(width / TITLE_LETTER_IN))
        size = width, (SIDE_IN + 0.6) * len(rows) + 0.55 + 0.17 * len(lines)
        figure = Figure(figsize=size, layout="constrained", dpi=130)
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10, color=INK)
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for axis in axes.ravel():
            axis.set_axis_off()
        for line, row in zip(axes, rows, strict=True):
            for axis, panel in zip(line, row, strict=False):
                _draw(axis, panel, scale)
        if maps:
            bar = figure.colorbar(ScalarMappable(scale, MAP), ax=axes, shrink=0.7, alpha=MAP_ALPHA)
            bar.set_label("attention, by that of evenly spread attention", color=SOFT)
        handles = [
            Line2D([], [], color=colour, lw=2.2, linestyle=style, label=label)
            for name, colour, style, label in (
                ("true", TRUE, (0, (2, 1)), "true box"),
                ("drawn", DRAWN, "-", "what the model wrote"),
            )
            if any(getattr(panel, name) for panel in panels)
        ]
        if handles:
            figure.legend(handles=handles, loc="outside lower left", ncols=2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def _is_sound(panel: Panel) -> bool:
    own, shape = panel.attention, panel.pixels.shape
    is_map = own is None or (own.ndim == 2 and own.size > 0 and bool(np.isfinite(own).all()) and float(own.min()) >= 0)
    return is_map and len(shape) == 3 and shape[2] == 3 and panel.pixels.size > 0


def _draw(axis: Axes, panel: Panel, scale: Normalize) -> None:
    height, width = panel.pixels.shape[:2]
    place = {"extent": (0, width, height, 0), "interpolation": "nearest"}
    axis.imshow(panel.pixels, **place)
    if panel.attention is not None:
        axis.imshow(panel.attention, cmap=MAP, norm=scale, alpha=MAP_ALPHA, **place)
    for boxes, colour, style in ((panel.drawn, DRAWN, "-"), (panel.true, TRUE, (0, (3, 2)))):
        for box in boxes:
            edge = {"xy": ((box.x0 - ROOM) * width, (box.y0 - ROOM) * height), "fill": False, "clip_on": False}
            edge |= {"width": (box.x1 - box.x0 + 2 * ROOM) * width, "height": (box.y1 - box.y0 + 2 * ROOM) * height}
            axis.add_patch(Rectangle(**edge, edgecolor="black", lw=3.2))
            axis.add_patch(Rectangle(**edge, edgecolor=colour, lw=1.6, linestyle=style))
    axis.set_title(panel.title, color=INK, fontsize=9)
    text = panel.text.replace("><", "> <")  # tokens stand without spaces, and lines break at spaces
    lines = textwrap.wrap(text, int(SIDE_IN / LETTER_IN), max_lines=MOST_LINES, placeholder=" …")
    axis.text(0, -0.03, "\n".join(lines), transform=axis.transAxes, va="top", fontsize=8, color=SOFT)
