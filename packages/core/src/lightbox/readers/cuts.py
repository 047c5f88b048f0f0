"""One slice of a NIfTI file as a person names it, and masks drawn on it, written in the voxels of that file.

`volumes` says how a slice is turned and scaled. A mask is written as a volume of the file's own shape and place with
the one slice filled, not as that slice alone: so it lies over the scan voxel by voxel, in every viewer, and masks of
several slices can be added. A file of two axes, which `volumes` does not read, is a volume of one slice here.
"""

import gzip
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Int, UInt8
from nibabel.openers import Opener
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from lightbox.errors import RequestError
from lightbox.readers import volumes
from lightbox.readers.images import MAX_PIXELS
from lightbox.readers.volumes import BROKEN, PLANES, SlicePlace

ENDINGS = (".nii", ".nii.gz")
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_PLACE = re.compile(rf"({'|'.join(PLANES)})/(\d{{1,6}})(?:/c(\d{{1,4}}))?(?:/w{_NUMBER}_{_NUMBER})?", re.IGNORECASE)
_BLOCK = 1 << 20
_GEOMETRY = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
"""Fields of a NIfTI header that say where voxels lie. Others speak of the scan, free text among them: not of a mask."""


@dataclass(frozen=True)
class Cut:
    """A slice of a NIfTI file.

    Args:
        place: file, plane, index, and maybe a channel and a window; a file of two axes has one slice, of index 0.
        image: the file as nibabel opens it.
    """

    place: SlicePlace
    image: Any

    @property
    def name(self) -> str:
        """The slice in words, such as "axial 12, of 0 to 33"."""
        return f"{self.place.plane} {self.place.index}, of 0 to {_shape_ras(self.image)[self.place.axis] - 1}"

    def pixels(self) -> UInt8[np.ndarray, "h w"]:
        """Grey levels as a viewer shows them.

        Raises:
            RequestError: voxels that cannot be read, are no numbers or not finite.
        """
        if _is_volume_of_slices(self.image):
            return volumes.slice_pixels(self.place)
        values = self._values()
        low, high = self.place.window or np.percentile(values, (volumes.LOW_PERCENTILE, volumes.HIGH_PERCENTILE))
        if high <= low:
            return np.zeros(values.shape, np.uint8)
        return np.rint((values.astype(np.float64).clip(low, high) - low) * 255.0 / (high - low)).astype(np.uint8)

    def labels(self, file: Path) -> Int[np.ndarray, "h w"]:
        """Labels of this slice in a label volume of the same shape and place, int64.

        Raises:
            RequestError: a volume of another shape or place, one that cannot be read, or values that are no whole
                numbers.
        """
        image, channels = _opened(file)
        shape, own_shape = _shape_ras(image), _shape_ras(self.image)
        is_same_place = np.allclose(image.affine, self.image.affine, atol=1e-2)  # headers are rounded
        if channels is not None or shape != own_shape or not is_same_place:
            raise RequestError(
                f"Labels '{file}' of {_size(shape, channels)}",
                f"The image has {_size(own_shape)}, or another affine, so which voxels are marked would be a guess",
                "Resample the labels onto the image, by nearest neighbour",
            )
        values = Cut(SlicePlace(file, self.place.plane, self.place.index), image)._values()
        labels = np.rint(values)
        if not (labels == values).all():
            raise RequestError(
                f"Labels '{file}'",
                "They hold values that are no whole numbers, as an image has them or interpolation makes them",
                "Name the label volume, resampled by nearest neighbour if at all",
            )
        return labels.astype(np.int64)

    def volume(self, mask: Bool[np.ndarray, "h w"]) -> Any:
        """A mask of this slice as a NIfTI image of the file's shape and geometry: uint8, 1 inside and 0 elsewhere.

        Args:
            mask: of the pixels that `pixels` gives.
        """
        ras = np.zeros(_shape_ras(self.image), np.uint8)
        np.moveaxis(ras, self.place.axis, 0)[self.place.index] = _turned(mask)
        back = ornt_transform(axcodes2ornt("RAS"), io_orientation(self.image.affine))
        stored = apply_orientation(ras, back).reshape(self.image.shape[:3])
        written = type(self.image)(stored, self.image.affine)
        own, of_file = written.header, self.image.header
        for field in _GEOMETRY:
            own[field] = of_file[field]
        own["pixdim"][:4] = of_file["pixdim"][:4]  # the first is the handedness of the quaternion
        return written

    def _values(self) -> np.ndarray:
        """Values as they are stored, h w, turned as a viewer shows them."""
        if _is_volume_of_slices(self.image):
            return volumes.read_slice(self.place)
        label = f"Image '{self.place.file}'"
        try:
            stored = np.asanyarray(self.image.dataobj)[..., None]
            ras = apply_orientation(stored, io_orientation(self.image.affine))
        except BROKEN as err:
            raise RequestError(label, f"Its voxels cannot be read: {err}", "Fetch the file again") from err
        if not (np.issubdtype(ras.dtype, np.floating) or np.issubdtype(ras.dtype, np.integer)):
            raise RequestError(label, f"Its voxels are of type {ras.dtype}", "Convert it to numbers")
        if not np.isfinite(ras).all():
            raise RequestError(label, "It holds voxels that are not finite", "Write them anew")
        return _turned(ras.take(self.place.index, axis=self.place.axis))


def is_nifti(file: Path) -> bool:
    """Whether a file is NIfTI, by its ending."""
    return file.name.lower().endswith(ENDINGS)


def open_cut(file: Path, asked: str = "") -> Cut:
    """Find a slice in a NIfTI file.

    Args:
        file: `.nii` or `.nii.gz`, of two to four axes, the fourth being channels.
        asked: PLANE/INDEX, then /cCHANNEL for a file with channels, then /wLOW_HIGH for the grey levels that become
            black and white, such as axial/40/w-160_240; "" where the file has one slice and no channels.

    Raises:
        RequestError: what `volumes.read_header` refuses, such as a file without spacing or orientation; several slices
            and none named; a slice, channel or window that there is not.
    """
    image, channels = _opened(file)
    shape = _shape_ras(image)
    flat = [plane for plane, count in zip(PLANES, shape, strict=True) if count == 1]
    if not asked and channels is None and len(flat) == 1:
        asked = f"{flat[0]}/0"
    return Cut(_place(file, asked, shape, channels), image)


def _opened(file: Path) -> tuple[Any, int | None]:
    """A NIfTI file whose header says what is needed, and the number of its channels; None for none."""
    try:
        image: Any = nib.load(file)
        axes = len(image.shape)
    except BROKEN as err:
        raise RequestError(f"Image '{file}'", f"Its header cannot be read: {err}", "Fetch the file again") from err
    if not isinstance(image, nib.Nifti1Pair):  # of which NIfTI-2 is one, and CIFTI is none
        raise RequestError(f"Image '{file}'", "It holds no picture or volume of voxels", "Name a NIfTI image")
    if axes == 2:
        _check_flat(file, image)
        channels = None
    else:
        channels = volumes.read_header(file).channels
    _check_length(file, image)
    return image, channels


def _check_length(file: Path, image: Any) -> None:
    """Refuse a file that goes on behind the voxels of its header, or whose gzip checksum does not hold.

    nibabel stops reading where the header says that it is done: of a header that says too little, or of voxels that
    were shifted, it would show a part, and a checksum behind it would never be compared.
    """
    label = f"Image '{file}'"
    said = int(image.dataobj.offset) + math.prod(image.shape) * image.dataobj.dtype.itemsize
    opened = gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb")
    try:
        with opened as stream:
            there = 0
            while there <= said and (block := stream.read(_BLOCK)):  # no further: it may be a decompression bomb
                there += len(block)
    except BROKEN as err:
        raise RequestError(label, f"Its voxels cannot be read: {err}", "Fetch the file again") from err
    if there > said:
        raise RequestError(
            label,
            f"Its header speaks of {said} bytes, and it goes on behind them: the header or the voxels are damaged",
            "Fetch the file again, or write it anew with its own shape and type",
        )


def _place(file: Path, asked: str, shape: tuple[int, ...], channels: int | None) -> SlicePlace:
    counts = ", ".join(f"{plane} 0 to {count - 1}" for plane, count in zip(PLANES, shape, strict=True))
    middle = f"--slice axial/{shape[2] // 2}" + ("" if channels is None else "/c0")
    if not asked:
        raise RequestError(
            f"'{file}' is a 3-D volume of {_size(shape, channels)}",
            "A question is about one slice, and which one is meant would be a guess",
            f"Name it, such as {middle}; there are {counts}",
        )
    parts = _PLACE.fullmatch(asked)
    if parts is None:
        raise RequestError(
            f"--slice is '{asked}'",
            "A slice is PLANE/INDEX, then maybe /cCHANNEL and /wLOW_HIGH",
            f"Write for example {middle} or {middle}/w-160_240",
        )
    plane, index = parts[1].lower(), int(parts[2])
    if index >= shape[PLANES.index(plane)]:
        raise RequestError(f"--slice is '{asked}'", f"'{file}' has {counts}", "Name one of these")
    channel = None if parts[3] is None else int(parts[3])
    if (channel is None) != (channels is None) or (channel or 0) >= (channels or 1):
        raise RequestError(
            f"--slice is '{asked}'",
            f"'{file}' has " + ("no channels" if channels is None else f"{channels} channels, counted from 0"),
            f"Write for example {middle}",
        )
    window = None if parts[4] is None else (float(parts[4]), float(parts[5]))
    if window is not None and window[0] >= window[1]:
        raise RequestError(
            f"--slice is '{asked}'", "A window is LOW_HIGH with LOW below HIGH", f"Write for example {middle}/w-160_240"
        )
    return SlicePlace(file, plane, index, channel, window)


def _check_flat(file: Path, image: Any) -> None:
    """Refuse a file of two axes for what `volumes` refuses in one of three."""
    label = f"Image '{file}'"
    if min(image.shape) < 1 or np.prod(image.shape, dtype=np.float64) > MAX_PIXELS:
        raise RequestError(f"{label} has the shape {image.shape}", f"It has 1 to {MAX_PIXELS} pixels", "Crop it")
    with Opener(str(file)) as stream:
        # nibabel puts 1 in the place of a spacing of 0 as it loads, so the file itself is asked
        as_stored = type(image.header).from_fileobj(stream, check=False)
    spacing = tuple(float(step) for step in as_stored["pixdim"][1:3])
    if not all(np.isfinite(step) and step > 0 for step in spacing):
        raise RequestError(
            f"{label} has the spacing {spacing} mm",
            "Without the distance of its pixels, sizes would be guesses",
            "Write the spacing of the scan into pixdim[1..2], or save the image as PNG",
        )
    codes, affine = [int(image.header[field]) for field in ("sform_code", "qform_code")], image.affine
    is_placed = codes != [0, 0] and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) >= 1e-9
    if not is_placed or np.isnan(io_orientation(affine)).any():  # also where two of its axes point the same way
        raise RequestError(
            f"{label} has no orientation (sform_code {codes[0]}, qform_code {codes[1]})",
            "Which side of it is up, and which the patient's left, would be a guess",
            "Write the affine of the scan with sform_code 1, or save the image as PNG",
        )


def _is_volume_of_slices(image: Any) -> bool:
    return len(image.shape) > 2


def _shape_ras(image: Any) -> tuple[int, ...]:
    """Voxels along x, y and z of RAS+."""
    stored, turn = (*image.shape[:3], 1)[:3], io_orientation(image.affine)
    by_axis = {int(axis): count for axis, count in zip(turn[:, 0], stored, strict=True)}
    return tuple(by_axis[axis] for axis in range(3))


def _turned(values: np.ndarray) -> np.ndarray:
    """From RAS+, without the axis that was cut, to what a viewer shows, as `volumes.read_slice`; or the way back."""
    return values.T[::-1, ::-1]


def _size(shape: tuple[int, ...], channels: int | None = None) -> str:
    return f"{' x '.join(map(str, shape))} voxels" + ("" if channels is None else f" and {channels} channels")
