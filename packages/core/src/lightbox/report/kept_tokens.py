"""Figures of visual-token pruning, each from plain data to a PNG: which patches stay, and what is left at a budget."""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from lightbox.errors import RequestError
from lightbox.eval.boxes import score_boxes
from lightbox.records import Box
from lightbox.report.figures import BAND, INK, LINES, MARKERS, SOFT, STYLE, arm_colour

TINT, TINT_SHARE = "#9cc3e6", 0.72
"""What is laid over a patch whose token goes: a hue, since phantoms are grey from black to white."""
STAYS, GOES = "#ffb000", "#c2185b"
"""Outlines of regions that keep a token and of those that do not; the second are crossed out too."""
TRUE, DRAWN = "#56b4e9", "#ffb000"
"""True boxes and drawn ones, as `paper.overlay` paints them; true ones are dashed too."""
WINDOW = 0.5
"""Side of the part of an image that is shown around a box, as a share of the image."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class BoxRow:
    """One image with boxes.

    Args:
        pixels: uint8 (h, w), grey.
        true: boxes, at least one.
        drawn: way to run the model -> boxes that it wrote, maybe none.
    """

    pixels: np.ndarray
    true: Sequence[Box]
    drawn: Mapping[str, Sequence[Box]]


def kept_patches(
    pixels: np.ndarray,
    regions: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
    *,
    title: str = "the image",
    columns: int = 4,
) -> bytes:
    """Draw the patches that each policy keeps over one image; PNG bytes.

    The first panel is the image with its patches and the names of its regions. In each other one the patches whose
    tokens go lie under a blue tint; a region without a token is crossed out.

    Args:
        pixels: uint8 (h, w), grey.
        regions: name -> bool (h, w).
        kept: policy -> bool (rows, columns of patches), True where the token stays.
        title: what the image is, over the first panel; a synthetic one is to be called so.
        columns: panels side by side.

    Raises:
        RequestError: no policy, or an image or regions that are not made of whole patches of every policy.
    """
    if not kept:
        raise RequestError("No policy", "There would be nothing to compare", "Give what at least one policy keeps")
    for name, own in kept.items():
        _check_patches(f"'{name}'", own, pixels.shape)
    for name, mask in regions.items():
        if mask.shape != pixels.shape:
            raise RequestError(
                f"The region '{name}' of shape {mask.shape} on an image of shape {pixels.shape}",
                "It is drawn over the pixels",
                "Give a mask of the image's height and width",
            )
    rows = -(-(len(kept) + 1) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * columns, 3.0 * rows + 0.45), layout="constrained", dpi=130)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        first = next(iter(kept.values()))
        _draw_whole(axes[0], pixels, regions, first.shape)
        axes[0].set_title(f"{title}: {first.shape[0]} x {first.shape[1]} patches")
        for axis, (name, own) in zip(axes[1:], kept.items(), strict=False):
            _draw_kept(axis, name, own, pixels, regions)
        counts = sorted({int(own.sum()) for own in kept.values()})
        said = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        handles = [
            Patch(facecolor="#8a8a8a", edgecolor=INK, lw=0.5, label=f"token stays ({said} of {first.size})"),
            Patch(color=TINT, label="token goes"),
            Line2D([], [], color=STAYS, lw=2.2, label="lesion with a token"),
            Line2D([], [], color=GOES, lw=2.2, marker="x", ms=8, mew=2.2, label="lesion without"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=4)
        return _png(figure)


def against_budget(
    panels: Mapping[str, Mapping[str, Points]],
    *,
    unit: str,
    whole: float | None = None,
    baselines: Collection[str] = (),
) -> bytes:
    """Draw what is left against the share of tokens that stay, a line a policy; PNG bytes.

    Lines of equal height stand side by side and not on each other: each is moved a little along its budgets.

    Args:
        panels: title -> policy -> points of (budget, value), budgets and values as shares in [0, 1].
        unit: of the values.
        whole: value without pruning; a line across, None draws none.
        baselines: policies that are drawn grey.

    Raises:
        RequestError: no panel, or a panel without points.
    """
    if not panels or not all(points for lines in panels.values() for points in lines.values()):
        raise RequestError("A panel without points", "There is nothing to draw", "Give each policy a point")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colours = _colours(names, baselines)
    budgets = sorted({budget for lines in panels.values() for points in lines.values() for budget, _ in points})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.0 * len(panels) + 2.2, 4.6), layout="constrained", dpi=130)
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            for name, points in lines.items():
                place = names.index(name)
                x, y = np.array(points, dtype=np.float64).T
                style = {"color": colours[name], "linestyle": LINES[place % len(LINES)], "lw": 1.6}
                style |= {"marker": MARKERS[place % len(MARKERS)], "ms": 5, "mfc": "white", "mew": 1.3}
                shift = 2 ** (0.05 * (place - (len(names) - 1) / 2))
                axis.plot(x * shift, y, label=name, **style)
            if whole is not None:
                axis.axhline(whole, color=INK, lw=1, label="all tokens")
            axis.set_title(title)
            axis.set_xscale("log", base=2)
            axis.set_xticks(budgets, [f"{budget:.0%}" for budget in budgets])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel("tokens that stay (lines moved a little apart)")
            _grid(axis)
        axes[0].set_ylabel(unit)
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1f}"))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", handlelength=3.2)
        return _png(figure)


def side_by_side(
    rows: Mapping[str, Mapping[str, float]], *, unit: str, references: Mapping[str, float] | None = None
) -> bytes:
    """Draw a row for each policy, with a mark for each way to run it, and a line between them; PNG bytes.

    Args:
        rows: policy -> way -> value; the first way is a filled mark, the others are hollow.
        unit: of the values.
        references: name -> value of lines from top to bottom.

    Raises:
        RequestError: no row.
    """
    if not rows:
        raise RequestError("No row", "There is nothing to draw", "Give at least one policy")
    ways = list(dict.fromkeys(way for values in rows.values() for way in values))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 0.36 * len(rows) + 1.5), layout="constrained", dpi=130)
        axis = figure.subplots()
        for place, values in enumerate(rows.values()):
            axis.plot([min(values.values()), max(values.values())], [place] * 2, color=SOFT, lw=1.2, zorder=1)
            for way, value in values.items():
                number = ways.index(way)
                fill = arm_colour(number) if number == 0 else "white"
                axis.plot(value, place, MARKERS[number], color=arm_colour(number), mfc=fill, mew=1.6, ms=8)
        for number, (name, value) in enumerate((references or {}).items()):
            axis.axvline(value, color=INK, lw=1, linestyle=LINES[number], label=name, zorder=0)
        for number, way in enumerate(ways):
            fill = arm_colour(number) if number == 0 else "white"
            axis.plot([], [], MARKERS[number], color=arm_colour(number), mfc=fill, mew=1.6, ms=8, label=way)
        axis.set_yticks(range(len(rows)), list(rows), color=INK)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(left=0)
        axis.set_xlabel(unit)
        _grid(axis)
        figure.legend(loc="outside upper left", ncols=4)
        return _png(figure)


def boxes_by_way(rows: Sequence[BoxRow]) -> bytes:
    """Draw the boxes that a model wrote, a row an image and a column a way to run it; PNG bytes.

    Each panel shows the part of the image around the first true box, and says the best overlap.

    Args:
        rows: images with the same ways.

    Raises:
        RequestError: no row, rows with different ways, or an image without a true box.
    """
    ways = list(rows[0].drawn) if rows else []
    if not ways or any(list(row.drawn) != ways or not row.true for row in rows):
        raise RequestError(
            f"{len(rows)} images with the ways {[list(row.drawn) for row in rows]}",
            "Each panel is an image with a true box under one way",
            "Give rows with true boxes and the same ways",
        )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * len(ways), 3.0 * len(rows) + 0.45), layout="constrained", dpi=130)
        axes = figure.subplots(len(rows), len(ways), squeeze=False)
        for row, line in zip(rows, axes, strict=True):
            for way, axis in zip(ways, line, strict=True):
                _draw_boxes(axis, row, way)
        handles = [
            Line2D([], [], color=TRUE, lw=2.2, linestyle=(0, (2, 1)), label="true box"),
            Line2D([], [], color=DRAWN, lw=2.2, label="what the model writes"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2)
        return _png(figure)


def _draw_boxes(axis: Axes, row: BoxRow, way: str) -> None:
    height, width = row.pixels.shape
    axis.set_axis_off()
    _show(axis, np.repeat(row.pixels[..., None] / 255, 3, axis=2))
    for box, colour, style in (
        *((box, DRAWN, "-") for box in row.drawn[way]),
        *((box, TRUE, (0, (3, 2))) for box in row.true),
    ):
        place = {"xy": (box.x0 * width, box.y0 * height)}
        place |= {"width": (box.x1 - box.x0) * width, "height": (box.y1 - box.y0) * height, "fill": False}
        axis.add_patch(Rectangle(**place, edgecolor="black", lw=3.4))
        axis.add_patch(Rectangle(**place, edgecolor=colour, lw=1.8, linestyle=style))
    first = row.true[0]
    for centre, side, limit in (
        ((first.x0 + first.x1) / 2, width, axis.set_xlim),
        ((first.y0 + first.y1) / 2, height, lambda low, high: axis.set_ylim(high, low)),
    ):
        low = min(max(centre - WINDOW / 2, 0.0), 1.0 - WINDOW)
        limit(low * side, (low + WINDOW) * side)
    overlap = score_boxes(row.drawn[way], row.true).best_iou
    axis.set_title(f"{way}: {overlap:.2f}" if row.drawn[way] else f"{way}: no box")


def _draw_whole(axis: Axes, pixels: np.ndarray, regions: Mapping[str, np.ndarray], grid: tuple[int, ...]) -> None:
    height, width = pixels.shape
    _show(axis, np.repeat(pixels[..., None] / 255, 3, axis=2))
    lines = [[(x, 0), (x, height)] for x in np.linspace(0, width, grid[1] + 1)]
    lines += [[(0, y), (width, y)] for y in np.linspace(0, height, grid[0] + 1)]
    axis.add_collection(LineCollection(lines, colors=TINT, linewidths=0.4, alpha=0.8))
    for name, mask in regions.items():
        _outline(axis, mask, is_kept=True)
        ys, xs = np.nonzero(mask)
        # away from the side that is near, so that a name stays in its panel
        is_right = xs.mean() > width / 2
        place = {"ha": "right", "x": xs.min() - 3} if is_right else {"ha": "left", "x": xs.max() + 4}
        words = axis.text(y=float(ys.mean()), s=name, va="center", fontsize=8.5, color="white", **place)
        words.set_bbox({"facecolor": "black", "alpha": 0.65, "pad": 1.2, "lw": 0})


def _draw_kept(axis: Axes, name: str, kept: np.ndarray, pixels: np.ndarray, regions: Mapping[str, np.ndarray]) -> None:
    patch = tuple(np.array(pixels.shape) // np.array(kept.shape))
    large = kept.repeat(patch[0], axis=0).repeat(patch[1], axis=1)
    grey = np.repeat(pixels[..., None] / 255, 3, axis=2)
    tinted = (1 - TINT_SHARE) * grey + TINT_SHARE * np.array(to_rgb(TINT))
    _show(axis, np.where(large[..., None], grey, tinted))
    n_kept = 0
    for mask in regions.values():
        is_kept = bool((large & _whole_patches(mask, patch)).any())
        n_kept += is_kept
        _outline(axis, mask, is_kept=is_kept)
    axis.set_title(f"{name}: {n_kept} of {len(regions)} lesions")


def _whole_patches(mask: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """The pixels of every patch that holds a pixel of a mask."""
    rows, columns = (side // own for side, own in zip(mask.shape, patch, strict=True))
    held = mask.reshape(rows, patch[0], columns, patch[1]).any(axis=(1, 3))
    return held.repeat(patch[0], axis=0).repeat(patch[1], axis=1)


def _show(axis: Axes, picture: np.ndarray) -> None:
    height, width = picture.shape[:2]
    axis.imshow(np.clip(picture, 0, 1), extent=(0, width, height, 0), interpolation="nearest")


def _outline(axis: Axes, mask: np.ndarray, *, is_kept: bool) -> None:
    """A line around a region, along the edges of its pixels, over a dark one so that it shows on any ground."""
    padded = np.pad(mask, 1)
    lines = [[(x, y - 1), (x, y)] for y, x in zip(*np.nonzero(padded[:, 1:] != padded[:, :-1]), strict=True)]
    lines += [[(x - 1, y), (x, y)] for y, x in zip(*np.nonzero(padded[1:] != padded[:-1]), strict=True)]
    axis.add_collection(LineCollection(lines, colors="black", linewidths=2.6))
    axis.add_collection(LineCollection(lines, colors=STAYS if is_kept else GOES, linewidths=1.6))
    if not is_kept:
        y, x = np.argwhere(mask).mean(axis=0) + 0.5
        axis.plot(x, y, "x", color="black", ms=13, mew=4.2)
        axis.plot(x, y, "x", color=GOES, ms=12, mew=2.2)


def _colours(names: Sequence[str], baselines: Collection[str]) -> dict[str, str]:
    coloured = [name for name in names if name not in baselines]
    return {name: arm_colour(coloured.index(name)) if name in coloured else SOFT for name in names}


def _check_patches(name: str, kept: np.ndarray, shape: tuple[int, ...]) -> None:
    if kept.ndim != 2 or len(shape) != 2 or any(side % own for side, own in zip(shape, kept.shape, strict=True)):
        raise RequestError(
            f"What {name} keeps, of shape {kept.shape}, on an image of shape {shape}",
            "A patch is a whole number of pixels high and wide",
            "Give the grey image that the tower reads, and one value a patch",
        )


def _grid(axis: Axes) -> None:
    axis.grid(color=BAND)
    axis.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
