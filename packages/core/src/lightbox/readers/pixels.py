"""Pixels of every image that a case may show: those of `images`, and TIFF, slices of NIfTI, members of a zip in parts.

`images.load_image` is in the key of every published job, so what came later is opened here, and all else is handed on
to it. The rules of that module hold here too: formats are told by content, an image above the cap is refused before it
is decoded, files are decoded in full, and a failure is a `RequestError` that names the path.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from lightbox.errors import RequestError
from lightbox.readers import images, split_zip, volumes
from lightbox.readers.parquet import image_bytes, is_row_path
from lightbox.readers.stores import InnerPath, image_fault, image_note, image_size_wh

FORMATS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Endings by which folders are searched for images; what a file is, its content tells."""
Tag = ExifTags.Base
YCBCR = 6  # whose colours may be stored at another size than its brightness
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, MemoryError)


class PartPath(InnerPath):
    """A path to a member of a zip file in parts, or to a slice of a volume, equal to the plain path."""

    def open(self, mode: str = "r", *_: object, **__: object) -> io.BytesIO:
        if mode != "rb":
            raise io.UnsupportedOperation(f"'{self}' can only be read as bytes")
        return io.BytesIO(file_bytes(Path(self)))

    def is_file(self) -> bool:
        """True for a member that is there, and for a slice whose file is."""
        place = split_zip.member_place(Path(self))
        if place is None:
            return volumes.slice_place(Path(self)) is not None or super().is_file()
        return place[1] in split_zip.open_parts(place[0])


def load_pixels(
    path_or_array: Path | str | np.ndarray, *, image_px: int | None = None, in_colour: bool = False
) -> np.ndarray:
    """Load one 2D image; arguments, result and errors as `images.load_image`."""
    if isinstance(path_or_array, np.ndarray):
        return images.load_image(path_or_array, image_px=image_px, in_colour=in_colour)
    path = Path(path_or_array)
    place = volumes.slice_place(path)
    if place is not None:
        return images.load_image(volumes.slice_pixels(place), image_px=image_px)
    if not _is_opened_here(path):
        return images.load_image(path, image_px=image_px, in_colour=in_colour)
    with open_picture(path) as picture:
        # an array from here on, so that grey, transparency and 16 bits follow the one rule that there is
        array = _as_array(picture)
    return images.load_image(array, image_px=image_px, in_colour=in_colour)


def pixels_size_wh(path: Path) -> tuple[int, int]:
    """Width and height, upright; as `stores.image_size_wh`, for every image of this module. Pixels are not decoded."""
    place = volumes.slice_place(path)
    if place is not None:
        return volumes.slice_size_wh(place)
    if not _is_opened_here(path):
        return image_size_wh(path)
    with open_picture(path, is_decoded=False) as picture:
        turned = picture.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
        return (picture.height, picture.width) if turned else (picture.width, picture.height)


def pixels_fault(path: Path) -> str:
    """As `stores.image_fault`: damage that decoding does not show. TIFF and NIfTI have no checksum of their own."""
    is_other = volumes.slice_place(path) is not None or _is_opened_here(path)
    return "" if is_other else image_fault(path)


def tiff_fault(picture: Image.Image, n_bytes: int) -> str:
    """What is wrong with the plan of a TIFF; Pillow fills in black what the file does not hold.

    Its pieces, strips or tiles, are as many as its sides ask for, and lie in the file; without compression each is as
    long as its rows.

    Args:
        picture: opened.
        n_bytes: length of its file.

    Returns:
        A sentence, or "" where nothing is wrong.
    """
    tags: Any = picture.tag_v2  # pyright: ignore[reportAttributeAccessIssue]  of a TIFF
    width, height = tags[Tag.ImageWidth], tags[Tag.ImageLength]
    is_tiled = Tag.TileOffsets in tags
    across = tags[Tag.TileWidth] if is_tiled else width
    down = tags[Tag.TileLength] if is_tiled else min(tags.get(Tag.RowsPerStrip, height), height)
    offsets = tags.get(Tag.TileOffsets if is_tiled else Tag.StripOffsets, ())
    lengths = tags.get(Tag.TileByteCounts if is_tiled else Tag.StripByteCounts, ())
    samples, bits = tags.get(Tag.SamplesPerPixel, 1), tags.get(Tag.BitsPerSample, (1,))
    planes = samples if tags.get(Tag.PlanarConfiguration, 1) == 2 else 1
    if min(across, down, samples) < 1 or len(bits) != samples:
        return f"Its tags are of pieces of {across} x {down} pixels, with {samples} samples of {len(bits)} sizes"
    n_pieces = -(-width // across) * -(-height // down) * planes
    if not len(offsets) == len(lengths) == n_pieces:
        return (
            f"Its sides ask for {n_pieces} pieces, and its tags name {len(offsets)} places and {len(lengths)} lengths"
        )
    if any(place + length > n_bytes for place, length in zip(offsets, lengths, strict=True)):
        return f"A piece of it lies behind its end, at {n_bytes} bytes"
    if tags.get(Tag.Compression, 1) == 1 and tags.get(Tag.PhotometricInterpretation) != YCBCR:
        row = -(-across * (sum(bits) // planes) // 8)
        last = down if is_tiled else height - (n_pieces // planes - 1) * down  # rows of the last strip of a plane
        for number, length in enumerate(lengths, start=1):
            whole = row * down
            least = row * last if number % (n_pieces // planes) == 0 else whole
            # some writers fill the last strip, or an odd byte
            if length not in (least, least + least % 2, whole, whole + whole % 2):
                return f"Its piece {number} has {length} bytes, and its rows have {row} each"
    return ""


def pixels_note(path: Path) -> str:
    """As `stores.image_note`: what decoding changed, as a count calls it."""
    place = volumes.slice_place(path)
    if place is not None:
        return "slices_of_volumes"
    if not _is_opened_here(path):
        return image_note(path)
    with open_picture(path, is_decoded=False) as picture:
        return "images_of_16_bits" if picture.mode.startswith(("I", "F")) else ""


def open_picture(path: Path, *, is_decoded: bool = True) -> Image.Image:
    """Open a PNG, JPEG or TIFF, wherever it lies, as Pillow has it: labels of a mask are not to be converted.

    Args:
        path: a file, or a path into a zip or parquet file.
        is_decoded: decode in full; False reads the header alone.

    Raises:
        RequestError: missing, of another format, of several pages, too large, truncated or damaged, as far as the file
            lets it be known: TIFF has no checksum.
    """
    content = file_bytes(path)
    label = f"Image '{path}'"
    kind = next((kind for magic, kind in FORMATS.items() if content.startswith(magic)), None)
    if kind is None:
        hint = " (it is a Git LFS pointer)" if content.startswith(b"version https://git-lfs") else ""
        raise RequestError(label, f"Its content is neither PNG, JPEG nor TIFF{hint}", "Use one of these")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is lower
            picture = Image.open(io.BytesIO(content), formats=(kind,))
            if picture.width * picture.height > images.MAX_PIXELS:
                why = f"Above {images.MAX_PIXELS} pixels an image is taken for a decompression bomb"
                raise RequestError(f"{label} claims {picture.width} x {picture.height} pixels", why, "Scale it down")
            pages = getattr(picture, "n_frames", 1)
            if pages > 1:
                raise RequestError(label, f"It has {pages} pages, and one image is read", "Save each page")
            if kind == "TIFF" and (fault := tiff_fault(picture, len(content))):
                raise RequestError(label, fault, "Fetch the file again")
            if not is_decoded:
                return picture
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (*_BROKEN, Image.DecompressionBombError) as err:
        raise RequestError(label, f"It cannot be decoded in full: {err}", "Fetch the file again") from err


def file_bytes(path: Path) -> bytes:
    """The bytes of an image file, wherever it lies; of a slice, those of its volume and its place.

    Raises:
        RequestError: missing, unreadable, larger than `images.MAX_FILE_BYTES`, or what an archive refuses.
    """
    place = split_zip.member_place(path)
    if place is not None:
        return split_zip.open_parts(place[0]).read(place[1])
    if is_row_path(path):
        return image_bytes(path)
    piece = volumes.slice_place(path)
    if piece is not None:
        return piece.file.read_bytes() + path.as_posix().removeprefix(piece.file.as_posix()).encode()
    label = f"Image '{path}'"
    try:
        if not path.is_file():
            raise RequestError(label, "There is no such file", "Check the root folder and the folder in it")
        if path.stat().st_size > images.MAX_FILE_BYTES:
            raise RequestError(label, f"It is larger than {images.MAX_FILE_BYTES} bytes", "Use a smaller file")
        return path.read_bytes()
    except OSError as err:
        raise RequestError(label, f"It cannot be opened: {err.strerror}", "Check its permissions") from err


def _is_opened_here(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff") or split_zip.member_place(path) is not None


def _as_array(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("F") or picture.mode == "I":  # 32 bits, which no array of `load_image` has
        return images.to_uint8(np.asarray(picture))
    if picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.uint16)
    has_colour = picture.mode not in ("1", "L", "LA")
    is_clear = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
    if is_clear:
        return np.asarray(picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB" if has_colour else "L"))
