"""Pixels from files, safely: PNG, JPEG, DICOM -> uint8, h x w (x 3). A failure is a `RequestError` naming the path.

Rules, the same for every source:

* Formats are told by content, not by name; anything but PNG, JPEG and DICOM is refused.
* An image above `MAX_PIXELS` is refused before it is decoded. Files are decoded in full; a truncated one is an error.
* EXIF orientation is applied, so boxes are fractions of the upright image.
* Colour becomes grey by ITU-R 601 luminance unless it is asked for; transparency is laid over black.
* 16-bit grey and every DICOM image are scaled linearly, the image's own minimum to 0 and maximum to 255, so nothing
  saturates and 12 bits in a 16-bit file keep their contrast; a constant image becomes 0. 8-bit PNG and JPEG are never
  rescaled.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from lightbox.errors import RequestError
from lightbox.readers.parquet import image_bytes, is_row_path
from lightbox.records import Box

MAX_PIXELS = 64 * 1024 * 1024
MAX_FILE_BYTES = 1 << 30
MAX_SIDE_PX = 8192
_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    MemoryError,
)
_GOOD_FORMS = "Use a PNG, JPEG or DICOM file"


def load_image(
    path_or_array: Path | str | np.ndarray, *, image_px: int | None = None, in_colour: bool = False
) -> np.ndarray:
    """Load one 2D image.

    With `image_px`, the image is letterboxed: scaled, keeping its aspect, until its longer side has `image_px` pixels
    (bilinear, antialiased), then centred on black; an odd pixel of margin goes right and below. `letterbox_box` moves
    boxes likewise.

    Args:
        path_or_array: a file, a row of a parquet file as ``<file>.parquet/<row>``, or an array h w, h w 3 or h w 4 of
            uint8, or h w of uint16 or int16.
        image_px: side of the square result; None keeps the size.
        in_colour: keep the colours of an image that has some; colour DICOM becomes grey all the same.

    Returns:
        uint8, h w, or h w 3 for an image that keeps its colours, 0..255, own memory.

    Raises:
        RequestError: missing, unreadable, truncated, too large, of another format, or `image_px` outside 1..8192.
    """
    if image_px is not None and not 1 <= image_px <= MAX_SIDE_PX:
        raise RequestError(f"image_px={image_px}", f"The side must lie in 1..{MAX_SIDE_PX}", "Choose it in that range")
    if isinstance(path_or_array, np.ndarray):
        pixels = _from_array(path_or_array, in_colour)
    else:
        pixels = _from_path(Path(path_or_array), in_colour)
    return pixels if image_px is None else letterbox(pixels, image_px)


def image_size_wh(path: Path) -> tuple[int, int]:
    """Width and height of a PNG or JPEG, upright, from its header; pixels are not decoded."""
    with _opened(path, path) as image:
        # the header's size is that of the sensor, boxes are of the upright image
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
        return (image.height, image.width) if turned else (image.width, image.height)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Scale an array linearly, its minimum to 0 and its maximum to 255; a constant array becomes 0."""
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixel values are not finite")
    if low == high:
        return np.zeros(values.shape, np.uint8)
    # rounded: truncation would darken every image by half a level
    return np.rint((values - low) * 255.0 / (high - low)).astype(np.uint8)


def letterbox(pixels: np.ndarray, image_px: int) -> np.ndarray:
    """Scale uint8 h w or h w 3 into a black square of `image_px` pixels; the rule stands at `load_image`."""
    width, height, left, top = _letterbox_place(pixels.shape[:2], image_px)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    # black, as the surround of most medical images
    square = np.zeros((image_px, image_px, *pixels.shape[2:]), np.uint8)
    square[top : top + height, left : left + width] = np.asarray(resized)
    return square


def letterbox_box(box: Box, *, image_hw: tuple[int, int], image_px: int) -> Box:
    """The same region after `letterbox`: fractions of the h x w image to fractions of the square."""
    width, height, left, top = _letterbox_place(image_hw, image_px)
    return Box(
        (left + box.x0 * width) / image_px,
        (top + box.y0 * height) / image_px,
        (left + box.x1 * width) / image_px,
        (top + box.y1 * height) / image_px,
    )


def _letterbox_place(image_hw: tuple[int, int], image_px: int) -> tuple[int, int, int, int]:
    height, width = image_hw
    scale = image_px / max(height, width)
    # a strip of 1 x 9000 pixels keeps a pixel of width
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    return new_width, new_height, (image_px - new_width) // 2, (image_px - new_height) // 2


def _from_array(array: np.ndarray, in_colour: bool) -> np.ndarray:
    is_grey, is_colour = array.ndim == 2, array.ndim == 3 and array.shape[-1] in (3, 4)
    if array.size and array.dtype == np.uint8 and (is_grey or is_colour):
        return _values(Image.fromarray(np.ascontiguousarray(array)), in_colour)
    if array.size and array.dtype in (np.uint16, np.int16) and is_grey:
        return to_uint8(array)
    raise RequestError(
        f"An image array of shape {array.shape} and type {array.dtype}",
        "Images are uint8 h w, h w 3 or h w 4, or 16-bit h w",
        "Convert the array before, with a scaling that you chose",
    )


def _from_path(path: Path, in_colour: bool) -> np.ndarray:
    source = io.BytesIO(image_bytes(path)) if is_row_path(path) else path
    head = source.getvalue()[:132] if isinstance(source, io.BytesIO) else _head(path)  # DICOM says DICM at byte 128
    if head[128:132] == b"DICM":
        return _from_dicom(path, source)
    with _opened(source, path, head) as image:
        try:
            image.load()
            return _values(ImageOps.exif_transpose(image), in_colour)
        except _BROKEN as err:
            raise RequestError(
                f"Image '{path}'", f"It cannot be decoded in full: {err}", "Fetch the file again, or leave it out"
            ) from err


def _head(path: Path) -> bytes:
    image_label = f"Image '{path}'"
    try:
        if not path.is_file():
            raise RequestError(image_label, "There is no such file", "Check the root folder and the image folder in it")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RequestError(image_label, f"It is larger than {MAX_FILE_BYTES} bytes", _GOOD_FORMS)
        with path.open("rb") as stream:
            return stream.read(132)
    except OSError as err:
        raise RequestError(image_label, f"It cannot be opened: {err.strerror}", "Check its permissions") from err


def _opened(source: Path | io.BytesIO, path: Path, head: bytes | None = None) -> Image.Image:
    """Open a PNG or JPEG and check its size against the cap; nothing is decoded yet."""
    head = _head(path) if head is None else head
    image_label = f"Image '{path}'"
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        hint = " (it is a Git LFS pointer)" if head.startswith(b"version https://git-lfs") else ""
        raise RequestError(image_label, f"Its content is neither PNG, JPEG nor DICOM{hint}", _GOOD_FORMS)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RequestError(
            image_label,
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so half an image would pass as a whole one",
            "Leave that flag off",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own cap, below, is lower
            image = Image.open(source, formats=(kind,))
    except Image.DecompressionBombError as err:
        raise _too_large(path, "far more") from err
    except _BROKEN as err:
        raise RequestError(
            image_label, f"Its {kind} header is broken: {err}", "Fetch the file again, or leave it out"
        ) from err
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path, f"{image.width} x {image.height}")
    return image


def _too_large(path: Path, size: str) -> RequestError:
    return RequestError(
        f"Image '{path}' claims {size} pixels",
        f"Above {MAX_PIXELS} pixels an image is taken for a decompression bomb",
        "Scale the image down before, if it is genuine",
    )


def _values(image: Image.Image, in_colour: bool) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # PIL's own convert("L") would clip 16 bits at 255
        return to_uint8(np.asarray(image))
    has_colour = image.mode not in ("1", "L", "LA", "La")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB" if in_colour and has_colour else "L"), dtype=np.uint8)


def _from_dicom(path: Path, source: Path | io.BytesIO) -> np.ndarray:
    from lightbox.readers import dicom  # noqa: PLC0415  pydicom costs seconds that every command would pay

    values, _ = dicom.read_dicom(source, path=path, max_pixels=MAX_PIXELS)
    try:
        return to_uint8(values)
    except ValueError as err:
        raise RequestError(f"Image '{path}'", "Its DICOM pixel values are not finite", "Leave the file out") from err
