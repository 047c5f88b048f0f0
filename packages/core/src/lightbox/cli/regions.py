"""Regions as options of a command: a point, a box, or a file with a mask. Nothing heavy is imported here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightbox.errors import RequestError

if TYPE_CHECKING:
    from lightbox.paper.asked_images import Region


def parse_regions(points: Sequence[str], boxes: Sequence[str], masks: Sequence[str]) -> "tuple[Region, ...]":
    """Regions of one kind, in the order in which their options stand.

    Raises:
        RequestError: options of several kinds, or one that does not say where its region is.
    """
    options = {"--point": points, "--box": boxes, "--mask": masks}
    kinds = [name for name, texts in options.items() if texts]
    if len(kinds) > 1:
        raise RequestError(
            f"{' and '.join(kinds)} are given",
            "Which of them comes first in the question is not told by options of several names",
            "Give regions of one kind, several of them in the order of the question",
        )
    spots, corners = [parse_point(text) for text in points], [parse_box(text) for text in boxes]
    files = [parse_mask(text) for text in masks]
    if not kinds:
        return ()
    from lightbox.paper.asked_images import MaskFile
    from lightbox.paper.pixel_prompts import point
    from lightbox.records import Box

    return (*(point(*one) for one in spots), *(Box(*one) for one in corners), *(MaskFile(*one) for one in files))


def parse_point(text: str) -> tuple[float, float]:
    """Read "x,y" as fractions of the image.

    Raises:
        RequestError: unless there are two numbers in [0, 1].

    Example:
        >>> parse_point("0.25, 0.5")
        (0.25, 0.5)
    """
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as err:
        raise RequestError(f"--point is '{text}'", "A point is two numbers", "Write it as 0.4,0.6") from err
    if not (0 <= x <= 1 and 0 <= y <= 1):
        why = "A point is x,y as fractions of the image, from its left upper corner"
        raise RequestError(
            f"--point is '{text}'", why, "Divide the pixel's column by the width and its row by the height"
        )
    return x, y


def parse_box(text: str) -> tuple[float, float, float, float]:
    """Read "x0,y0,x1,y1" as fractions of the image, half-open.

    Raises:
        RequestError: unless there are four numbers with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1.

    Example:
        >>> parse_box("0.1, 0.2, 0.5, 0.6")
        (0.1, 0.2, 0.5, 0.6)
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as err:
        raise RequestError(f"--box is '{text}'", "A box is four numbers", "Write it as 0.1,0.2,0.5,0.6") from err
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        why = "A box is x0,y0,x1,y1 as fractions of the image, with x0 < x1 and y0 < y1"
        raise RequestError(f"--box is '{text}'", why, "Divide pixel columns by the width and pixel rows by the height")
    return x0, y0, x1, y1


def parse_mask(text: str) -> tuple[Path, int | None]:
    """Read "FILE" or "FILE:LABEL"; a file whose own name ends so is taken as it is.

    Raises:
        RequestError: no such file, or label 0, which is the background.
    """
    name, _, label = text.rpartition(":")
    if Path(text).is_file() or not label.isdecimal():
        name, label = text, ""
    if not Path(name).is_file():
        raise RequestError(f"--mask is '{text}'", f"There is no file '{name}'", "Give FILE, or FILE:LABEL")
    if label and int(label) == 0:
        raise RequestError(f"--mask is '{text}'", "0 is what lies outside of every region", "Name a label from 1 on")
    return Path(name), int(label) if label else None
