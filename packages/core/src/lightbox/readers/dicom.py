"""DICOM pixels and a short allow-list of technical tags; everything else in the header is dropped at this boundary.

Removing header fields does not remove a name burned into the pixels or a face from a head scan. Messages here name
the path and the kind of failure, never a value from the header: a parser's own text may quote one.
"""

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import RLELossless

from lightbox.errors import RequestError

# the whole data set is compressed, so its size shows only after it was inflated into memory
DEFLATED = b"1.2.840.10008.1.2.1.99"
CODE_TAGS = (
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "Laterality",
    "PhotometricInterpretation",
    "BurnedInAnnotation",
)
NUMBER_TAGS = (
    "Rows",
    "Columns",
    "BitsStored",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
)
GREY_KINDS = ("MONOCHROME1", "MONOCHROME2")
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # a DICOM code string; free text could hold a name
_BROKEN = (  # all that pydicom and its decoders were seen to raise on spoiled files
    InvalidDicomError,
    BytesLengthException,
    AttributeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    MemoryError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)


def read_dicom(
    source: Path | io.BytesIO, *, path: Path, max_pixels: int
) -> tuple[np.ndarray, dict[str, str | float | tuple[float, ...]]]:
    """Decode one single-frame DICOM image.

    Stored values go through padding (set to the lowest other value), the modality LUT or rescale, and the first VOI
    LUT or window; MONOCHROME1 is then inverted, so that high is bright. Colour is turned to luminance.

    Args:
        source: the file, or its bytes.
        path: what messages call it.
        max_pixels: cap on rows x columns x samples.

    Returns:
        Values h w, float64 and not yet scaled to 0..255, and the allowed tags. A code tag whose value is not a plain
        DICOM code string is dropped.

    Raises:
        RequestError: not DICOM, no pixels, truncated, several frames, too large, or an encoding without a decoder.
    """
    if DEFLATED in _start(source):
        raise RequestError(f"DICOM image '{path}'", "It is deflated, so its real size is unknown", "Inflate it before")
    with _quiet():
        try:
            dataset = pydicom.dcmread(source)
            _check_size(dataset, path, max_pixels)
            _check_rows(dataset)
            values = _decode(dataset)
            tags = _tags(dataset)
        except _BROKEN as err:
            raise RequestError(
                f"DICOM image '{path}'",
                f"It cannot be decoded in full ({type(err).__name__})",
                "Fetch the file again, or leave it out",
            ) from None  # the parser's text may quote the header
    if values.ndim != 2 or values.size == 0:
        raise RequestError(f"DICOM image '{path}'", "It holds no single 2D frame", "Split it into one file a frame")
    return values, tags


def dicom_size_wh(source: Path | io.BytesIO, *, path: Path) -> tuple[int, int]:
    """Width and height of a DICOM image that `read_dicom` could decode, from its header.

    Raises:
        RequestError: not DICOM, no size, deflated, several frames, or a photometric interpretation that is not read.
    """
    with _quiet():
        try:
            if DEFLATED in _start(source):
                raise NotImplementedError  # as there
            dataset = pydicom.dcmread(source, stop_before_pixels=True)
            frames, kind = int(dataset.get("NumberOfFrames") or 1), str(dataset.PhotometricInterpretation)
            size_wh = int(dataset.Columns), int(dataset.Rows)
        except _BROKEN as err:
            raise RequestError(
                f"DICOM image '{path}'",
                f"Its header cannot be read ({type(err).__name__})",
                "Fetch the file again, or leave it out",
            ) from None  # the parser's text may quote the header
    if frames != 1 or min(size_wh) < 1:
        raise RequestError(
            f"DICOM image '{path}'", f"It has {frames} frames of {size_wh} pixels; one is read", "Split it by frame"
        )
    # a code of the standard, or else a stranger's text that is not quoted
    if int(dataset.get("SamplesPerPixel") or 1) == 1 and kind not in GREY_KINDS:
        name = kind if _CODE.fullmatch(kind) else "another"
        raise RequestError(
            f"DICOM image '{path}'", f"Its photometric interpretation is {name}", f"Convert it to {GREY_KINDS[1]}"
        )
    return size_wh


def _start(source: Path | io.BytesIO) -> bytes:
    """The first 2 KiB, where the transfer syntax stands."""
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:2048]
    with source.open("rb") as stream:
        return stream.read(2048)


def _check_size(dataset: pydicom.Dataset, path: Path, max_pixels: int) -> None:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise RequestError(
            f"DICOM image '{path}' has {frames} frames", "One is read here", "Split it into one file a frame"
        )
    pixels = int(dataset.Rows) * int(dataset.Columns)
    if pixels > max_pixels:
        raise RequestError(
            f"DICOM image '{path}' claims {dataset.Columns:d} x {dataset.Rows:d} pixels",
            f"Above {max_pixels} pixels an image is taken for a decompression bomb",
            "Scale the image down before, if it is genuine",
        )


def _check_rows(dataset: pydicom.Dataset) -> None:
    """Refuse a header that says fewer rows than its pixels fill; pydicom reads the first of them and warns at most."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        return
    values = int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    row_bytes = max(1, values * int(dataset.BitsAllocated) // 8)
    # less than a row is padding, which some scanners write
    if len(dataset.PixelData) >= (int(dataset.Rows) + 1) * row_bytes:
        raise ValueError("more rows than the header says")


def _decode(dataset: pydicom.Dataset) -> np.ndarray:
    # pydicom's own RLE decoder raises on a broken stream; the faster Rust one panics past every except clause
    is_rle = dataset.file_meta.TransferSyntaxUID == RLELossless
    stored = pixel_array(dataset, decoding_plugin="pydicom" if is_rle else "")
    if int(dataset.get("SamplesPerPixel") or 1) == 3:
        # the weights of ITU-R 601, as PIL's for PNG and JPEG
        return stored.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    kind = dataset.PhotometricInterpretation
    # a palette or YBR read as grey would be a wrong picture without a word
    if kind not in GREY_KINDS:
        raise NotImplementedError(kind)
    padding = dataset.get("PixelPaddingValue")
    # left in, one padding value would take the whole grey scale
    if padding is not None and (is_image := stored != padding).any():
        stored = np.where(is_image, stored, stored[is_image].min())
    values = np.asarray(apply_voi_lut(apply_modality_lut(stored, dataset), dataset), dtype=np.float64)
    return values.max() - values if kind == "MONOCHROME1" else values


def _tags(dataset: pydicom.Dataset) -> dict[str, str | float | tuple[float, ...]]:
    tags: dict[str, str | float | tuple[float, ...]] = {}
    for name in CODE_TAGS:
        value = dataset.get(name)
        if isinstance(value, str) and _CODE.fullmatch(value):
            tags[name] = value
    for name in NUMBER_TAGS:
        value = dataset.get(name)
        if value is not None and value != "":
            is_list = isinstance(value, MultiValue)
            tags[name] = tuple(float(v) for v in value) if is_list else float(value)
    return tags


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom's warnings and log while it works: both quote header values."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
