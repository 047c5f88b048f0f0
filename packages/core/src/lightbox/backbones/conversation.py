"""Placeholder of the branch: the main branch's file of this name takes its place at the merge."""

from typing import Any

from PIL import Image

from lightbox.errors import RequestError

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # PIL also has I;16, I and F, whose values are wider
MOST_EXTREME_ASPECT = 200


def in_colour(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB; `Conversation` has refused any other."""
    return image.convert("RGB")


def check_image(image: Any, where: str) -> None:
    """Refuse what no tower reads.

    Raises:
        RequestError: no image, wider values, which would be cut off, or a strip.
    """
    if not isinstance(image, Image.Image):
        raise RequestError(
            f"{where} is {type(image).__name__}",
            "An image is a PIL image",
            "Open it first, and give one image a place",
        )
    if image.mode not in EIGHT_BIT_MODES:
        raise RequestError(
            f"{where} is an image of mode '{image.mode}'",
            "Towers read 8-bit images, and cutting wider values off would lose the picture",
            "Window it to 0..255 first",
        )
    if max(image.size) > MOST_EXTREME_ASPECT * min(image.size):
        raise RequestError(
            f"{where} is {image.width} x {image.height} px",
            f"One side is over {MOST_EXTREME_ASPECT} times the other, and no tower keeps anything of such a strip",
            "Crop it, or cut it into pieces",
        )
