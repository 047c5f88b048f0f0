"""NIfTI volumes and their slices: `<file>.nii.gz/<plane>/<index>` names a slice, as a path of a case does.

A volume is turned to RAS+ by its affine: x from left to right, y from posterior to anterior, z from inferior to
superior. A slice is then shown as radiologists look at it: anterior or superior is up, and the patient's right (of a
sagittal slice: anterior) is on the left. Pixels are not resampled, so a slice across thick sections looks flat;
`slice_spacing_mm` tells by how much. A volume that does not say its spacing or orientation is refused: distances,
volumes and which side is left would be guesses.

Grey levels are scaled for a whole volume, not a slice, so that neighbours compare: from the 0.5th to the 99.5th
percentile, since MR has a few very bright voxels. For CT, give a window: `<file>.nii.gz/axial/40/w-160_240`.
Of a 4-D file one channel is named: `<file>.nii.gz/axial/40/c2`.
"""

import gzip
import logging
import re
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import aff2axcodes, apply_orientation, io_orientation
from nibabel.spatialimages import HeaderDataError, HeaderTypeError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from lightbox.errors import RequestError

PLANES = ("sagittal", "coronal", "axial")
"""By the axis of RAS+ that a slice is cut across."""
MAX_VOXELS = 1 << 29
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
_PLACE = re.compile(r"(.*\.nii(?:\.gz)?)/(sagittal|coronal|axial)/(\d{1,6})((?:/[cw][0-9._-]+)*)", re.IGNORECASE)
_WINDOW = re.compile(r"w(-?\d+(?:\.\d+)?)_(-?\d+(?:\.\d+)?)")
_CHANNEL = re.compile(r"c(\d{1,4})")
BROKEN = (
    *(ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError),
    *(struct.error, zlib.error, gzip.BadGzipFile, MemoryError, OverflowError),
    *(HeaderTypeError, ImageDataError, WrapStructError),
)
"""What nibabel raises for a damaged file."""
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it reports headers that are refused here anyway


@dataclass(frozen=True)
class Volume:
    """One channel of a NIfTI file.

    `values` are x y z in RAS+. `spacing_mm` is the distance of voxels along those axes, `stored_axes` what the axes of
    the file point to ("LPS"), `affine` the file's own, from voxel of the file to mm: what a mask is written with.
    `low` and `high` are the percentiles that pixels are scaled by.
    """

    values: np.ndarray
    spacing_mm: tuple[float, float, float]
    stored_axes: str
    affine: np.ndarray
    low: float
    high: float


@dataclass(frozen=True)
class SlicePlace:
    """What a path of a slice names; `channel` is None for a 3-D file, `window` None for the percentiles."""

    file: Path
    plane: str
    index: int
    channel: int | None = None
    window: tuple[float, float] | None = None

    @property
    def axis(self) -> int:
        """The axis of RAS+ that the slice is cut across."""
        return PLANES.index(self.plane)


def slice_path(
    file: Path, plane: str, index: int, *, channel: int | None = None, window: tuple[float, float] | None = None
) -> Path:
    """The path that names a slice; `slice_place` takes it apart."""
    path = file / plane / str(index)
    if channel is not None:
        path = path / f"c{channel}"
    return path if window is None else path / f"w{window[0]:g}_{window[1]:g}"


def slice_place(path: Path) -> SlicePlace | None:
    """What a path of a slice names; None for every other path, and where there is no such file."""
    match = _PLACE.fullmatch(path.as_posix())
    if match is None or not Path(match[1]).is_file():
        return None
    channel, window = _CHANNEL.search(match[4]), _WINDOW.search(match[4])
    return SlicePlace(
        Path(match[1]),
        match[2].lower(),
        int(match[3]),
        int(channel[1]) if channel else None,
        (float(window[1]), float(window[2])) if window else None,
    )


def read_volume(file: Path, *, channel: int | None = None) -> Volume:
    """Read a NIfTI file; the last four are kept, since slices of one volume are asked for together.

    Args:
        file: `.nii` or `.nii.gz`.
        channel: of a 4-D file, from 0; None for a 3-D file.

    Raises:
        RequestError: missing, damaged, too large, without spacing or orientation, of other than three dimensions, 4-D
            without a channel, or with values that are not finite.
    """
    if not file.is_file():
        raise RequestError(f"Volume '{file}'", "There is no such file", "Check the root folder")
    return _volume(file, file.stat().st_mtime_ns, channel)


def read_slice(place: SlicePlace) -> np.ndarray:
    """Values of one slice as they are stored, h w, turned as the module says.

    Raises:
        RequestError: as `read_volume`, or there is no such slice.
    """
    values = read_volume(place.file, channel=place.channel).values
    count = values.shape[place.axis]
    if place.index >= count:
        raise RequestError(
            f"Slice {place.index} of '{place.file}'",
            f"It has {count} {place.plane} slices, counted from 0",
            "Read the dataset again",
        )
    # both axes in the plane run the wrong way for a viewer, and the second of them goes down the picture
    return np.take(values, place.index, axis=place.axis)[::-1, ::-1].T


def slice_pixels(place: SlicePlace) -> np.ndarray:
    """Grey levels of one slice, uint8 h w, scaled as the module says."""
    volume = read_volume(place.file, channel=place.channel)
    low, high = place.window or (volume.low, volume.high)
    if high <= low:
        return np.zeros(read_slice(place).shape, np.uint8)  # a constant volume, as `images.to_uint8` has it
    scaled = (read_slice(place).astype(np.float64) - low) * 255.0 / (high - low)
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def slice_labels(place: SlicePlace) -> np.ndarray:
    """Labels of one slice of a label volume, int64 h w.

    Raises:
        RequestError: as `read_slice`, or a value is no whole number: the file is no label volume, or was resampled.
    """
    values = read_slice(place)
    labels = np.rint(values)
    if not (labels == values).all():
        raise RequestError(
            f"Labels '{place.file}'",
            "It holds values that are no whole numbers, as an image has them or interpolation makes them",
            "Name the label volume, resampled by nearest neighbour if at all",
        )
    return labels.astype(np.int64)


def slice_spacing_mm(place: SlicePlace) -> tuple[float, float]:
    """Height and width of one pixel of a slice, in mm."""
    width, height = (step for axis, step in enumerate(_header(place.file).spacing_mm) if axis != place.axis)
    return height, width


def slice_size_wh(place: SlicePlace) -> tuple[int, int]:
    """Width and height of a slice in pixels, from the header alone."""
    width, height = (side for axis, side in enumerate(_header(place.file).shape) if axis != place.axis)
    return width, height


@dataclass(frozen=True)
class VolumeHeader:
    """Shape and spacing along the axes of RAS+; `channels` is None for a 3-D file."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    stored_axes: str
    affine: np.ndarray
    channels: int | None


def read_header(file: Path) -> VolumeHeader:
    """Shape, spacing and orientation of a NIfTI file; no voxel is read. Errors as `read_volume`."""
    if not file.is_file():
        raise RequestError(f"Volume '{file}'", "There is no such file", "Check the root folder")
    return _header(file)


def _header(file: Path) -> VolumeHeader:
    return _open(file, file.stat().st_mtime_ns)[1]


@lru_cache(maxsize=256)  # asked for every slice
def _open(file: Path, mtime_ns: int) -> tuple[Any, VolumeHeader]:
    label = f"Volume '{file}'"
    try:
        image: Any = nib.load(file)
        header, shape = image.header, tuple(int(side) for side in image.shape)
        if "pixdim" not in header:
            raise RequestError(label, "It is no NIfTI file", "Convert it to .nii.gz")
        spacing = tuple(float(step) for step in header["pixdim"][1:4])
        codes = int(header["sform_code"]), int(header["qform_code"])
        affine = np.asarray(image.affine, np.float64)
    except BROKEN as err:
        raise RequestError(label, f"Its header cannot be read: {err}", "Fetch the file again") from err
    if len(shape) == 4 and shape[3] == 1:  # a 3-D volume, written with a time axis
        shape = shape[:3]
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise RequestError(f"{label} has the shape {shape}", "A volume has three axes, or four with channels", "Cut it")
    if np.prod(shape[:3], dtype=np.float64) > MAX_VOXELS:
        raise RequestError(f"{label} has the shape {shape}", f"The cap is {MAX_VOXELS} voxels", "Crop it")
    # nibabel puts 1 in the place of a spacing of 0 as it loads, so the file itself is asked
    if not all(np.isfinite(step) and step > 0 for step in (*spacing, *_stored_spacing(file))):
        raise RequestError(
            f"{label} has the spacing {tuple(_stored_spacing(file))} mm",
            "Without the distance of its voxels, sizes and volumes would be guesses",
            "Write the spacing of the scan into pixdim[1..3], or leave the file out",
        )
    is_placed = codes != (0, 0) and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) >= 1e-9
    turn = io_orientation(affine) if is_placed else np.full((3, 2), np.nan)
    if np.isnan(turn).any():  # also where two of its axes point the same way
        raise RequestError(
            f"{label} has no orientation (sform_code {codes[0]}, qform_code {codes[1]})",
            "Which side of it is the patient's left would be a guess",
            "Write the affine of the scan with sform_code 1, or leave the file out",
        )
    order = [int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in range(3)]  # axis of the file, by axis of RAS+
    return image, VolumeHeader(
        shape=(shape[order[0]], shape[order[1]], shape[order[2]]),
        spacing_mm=(spacing[order[0]], spacing[order[1]], spacing[order[2]]),
        stored_axes="".join(str(code) for code in aff2axcodes(affine)),
        affine=affine,
        channels=shape[3] if len(shape) == 4 else None,
    )


def _stored_spacing(file: Path) -> tuple[float, ...]:
    """`pixdim[1..3]` as the file has them, or nothing for NIfTI-2, which nibabel does not repair."""
    opened = gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb")
    with opened as stream:
        head = stream.read(348)
    order = {348: "<", 0x5C010000: ">"}.get(struct.unpack_from("<i", head)[0])
    return struct.unpack_from(f"{order}3f", head, 80) if order else ()


@lru_cache(maxsize=4)
def _volume(file: Path, mtime_ns: int, channel: int | None) -> Volume:
    image, header = _open(file, mtime_ns)
    label = f"Volume '{file}'"
    if (header.channels is None) != (channel is None) or (channel or 0) >= (header.channels or 1):
        raise RequestError(
            f"{label}, channel {channel}",
            f"It has {'one channel' if header.channels is None else f'{header.channels} channels, counted from 0'}",
            "Leave the channel out" if header.channels is None else "Name one of them with option channel=",
        )
    try:
        stored = image.dataobj[..., channel] if channel is not None else np.asanyarray(image.dataobj)
        values = apply_orientation(np.asarray(stored).reshape(stored.shape[:3]), io_orientation(header.affine))
    except BROKEN as err:
        raise RequestError(label, f"Its voxels cannot be read: {err}", "Fetch the file again") from err
    if values.dtype == np.float64:  # what a slope and intercept in the header make of 16-bit integers
        values = values.astype(np.float32)
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise RequestError(label, f"Its voxels are of type {values.dtype}", "Convert it to numbers")
    if not np.isfinite(values).all():
        raise RequestError(label, "It holds voxels that are not finite", "Write them anew, or leave the file out")
    low, high = np.percentile(values, (LOW_PERCENTILE, HIGH_PERCENTILE))
    return Volume(values, header.spacing_mm, header.stored_axes, header.affine, float(low), float(high))
