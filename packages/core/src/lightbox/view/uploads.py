"""An upload as pixels: bytes in, an image or a volume out, in memory. Nothing is written, and no file name is kept.

The rules are those of `readers.images`, `readers.dicom` and `readers.volumes`, which read files by their path: formats
are told by content, what is too large is refused before it is decoded, and a failure is a `RequestError`. Here the
messages name no file, since file names of scans often hold a name, and say nothing from a header.
"""

import gzip
import io
import struct
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, io_orientation
from nibabel.spatialimages import HeaderDataError, HeaderTypeError, ImageDataError
from nibabel.wrapstruct import WrapStructError
from PIL import Image, ImageOps

from lightbox.errors import RequestError
from lightbox.readers.images import MAX_PIXELS, load_image, to_uint8
from lightbox.readers.volumes import HIGH_PERCENTILE, LOW_PERCENTILE, MAX_VOXELS, PLANES

MAX_UPLOAD_BYTES = 256 * 1024 * 1024
PLAIN = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
GZIP = b"\x1f\x8b"
NIFTI_HEADERS = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
"""Class by the size that the header says of itself, in its first four bytes."""
PIXEL_DATA_TAG = struct.pack("<HH", 0x7FE0, 0x0010), struct.pack(">HH", 0x7FE0, 0x0010)
LABEL = "The image"
_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, MemoryError, OverflowError),
    *(struct.error, zlib.error, gzip.BadGzipFile, ImageFileError, WrapStructError),
    *(HeaderDataError, HeaderTypeError, ImageDataError),
)


class Upload:
    """A 2D image.

    Args:
        pixels: uint8, h w or h w 3.
        kind: PNG, JPEG or DICOM.
    """

    def __init__(self, pixels: np.ndarray, kind: str) -> None:
        self._pixels, self.kind = pixels, kind

    @property
    def counts(self) -> dict[str, int]:
        """How many slices there are by plane; empty for a 2D image."""
        return {}

    @property
    def first_plane(self) -> str:
        """The plane that is shown at first; "" for a 2D image."""
        return ""

    @property
    def channels(self) -> int:
        """Of a 4-D volume; 1 for everything else."""
        return 1

    def pixels(self, plane: str = "", index: int = 0, channel: int = 0) -> np.ndarray:
        """Grey levels or colours, uint8 h w or h w 3; a 2D image has one choice of them."""
        return self._pixels


class UploadedVolume(Upload):
    """A NIfTI volume, turned to RAS+ and shown as radiologists look at it; see `readers.volumes`.

    Args:
        values: x y z channel in RAS+.
    """

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(np.zeros((1, 1), np.uint8), "NIfTI")
        self._values = values
        self._range: dict[int, tuple[float, float]] = {}

    @property
    def counts(self) -> dict[str, int]:
        return dict(zip(PLANES, self._values.shape[:3], strict=True))

    @property
    def first_plane(self) -> str:
        return PLANES[-1]

    @property
    def channels(self) -> int:
        return self._values.shape[3]

    def pixels(self, plane: str = "axial", index: int = 0, channel: int = 0) -> np.ndarray:
        """One slice, scaled for its whole volume so that neighbours compare.

        Raises:
            RequestError: there is no such slice.
        """
        counts = self.counts
        if not (0 <= index < counts.get(plane, 0) and 0 <= channel < self.channels):
            raise RequestError(
                f"Slice {index} of plane '{plane}', channel {channel}",
                f"There are {counts} slices and {self.channels} channels, counted from 0",
                "Choose one of them",
            )
        if channel not in self._range:
            whole = self._values[..., channel]
            low, high = np.percentile(whole, (LOW_PERCENTILE, HIGH_PERCENTILE))
            self._range[channel] = float(low), float(high)
        low, high = self._range[channel]
        # both axes in the plane run the wrong way for a viewer, and the second of them goes down the picture
        values = np.take(self._values[..., channel], index, axis=PLANES.index(plane))[::-1, ::-1].T
        if high <= low:
            return np.zeros(values.shape, np.uint8)
        return np.rint(((values.astype(np.float64) - low) * 255.0 / (high - low)).clip(0, 255)).astype(np.uint8)


def read_upload(content: bytes) -> Upload:
    """Decode what was uploaded.

    Args:
        content: of a PNG, JPEG, DICOM or NIfTI file, `.nii` or `.nii.gz`.

    Raises:
        RequestError: empty, another format, damaged, too large, a DICOM without pixels or with words burned into them,
            a volume without spacing or orientation.
    """
    check_size(len(content))
    kind = next((kind for magic, kind in PLAIN.items() if content.startswith(magic)), None)
    if kind is not None:
        return Upload(_decoded(content, kind), kind)
    if content[128:132] == b"DICM":
        return Upload(_dicom_pixels(content), "DICOM")
    if content.startswith(GZIP) or _is_nifti(content):
        return UploadedVolume(_volume_values(content))
    raise RequestError(
        f"{LABEL} of {len(content)} bytes",
        "Its content is neither PNG, JPEG, DICOM nor NIfTI",
        "Give a file of one of these; what it is called does not matter",
    )


def check_size(size_bytes: int) -> None:
    """Refuse an upload by its size alone.

    Raises:
        RequestError: nothing, or more than `MAX_UPLOAD_BYTES`.
    """
    if not 0 < size_bytes <= MAX_UPLOAD_BYTES:
        raise RequestError(
            f"{LABEL} of {size_bytes} bytes",
            f"An upload is held in memory, so it has 1 to {MAX_UPLOAD_BYTES} bytes",
            "Cut the volume, or compress it" if size_bytes else "Give a file that holds something",
        )


def _decoded(content: bytes, kind: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is lower
            picture = Image.open(io.BytesIO(content), formats=(kind,))
        if picture.width * picture.height > MAX_PIXELS:
            raise _too_large(f"{picture.width} x {picture.height} pixels")
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError as err:
        # Pillow does not say how many; a PNG has its sides behind the name of its first chunk
        sides = struct.unpack_from(">II", content, 16) if kind == "PNG" else ()
        raise _too_large(f"{sides[0]} x {sides[1]} pixels" if sides else "far more pixels") from err
    except _BROKEN as err:
        raise _broken(kind) from err
    if upright.mode.startswith(("I", "F")):
        return to_uint8(np.asarray(upright))
    is_clear = upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info
    mode = "RGBA" if is_clear else "L" if upright.mode in ("1", "L") else "RGB"
    # an array from here on, so that transparency follows the one rule that there is
    return load_image(np.asarray(upright.convert(mode)), in_colour=upright.mode not in ("1", "L", "LA"))


def _dicom_pixels(content: bytes) -> np.ndarray:
    from lightbox.readers.dicom import read_dicom  # noqa: PLC0415  pydicom costs seconds that a PNG need not pay

    if not any(tag in content for tag in PIXEL_DATA_TAG):
        raise RequestError(
            "The DICOM file", "It holds no pixels, as reports, plans and folders of images do", "Give an image"
        )
    values, tags = read_dicom(io.BytesIO(content), path=Path("upload"), max_pixels=MAX_PIXELS)
    if tags.get("BurnedInAnnotation") == "YES":
        raise RequestError(
            "The DICOM image says BurnedInAnnotation YES",
            "Words are burned into its pixels, they may name the patient, and this page shows pixels",
            "Blank them out and say NO in that field",
        )
    try:
        return to_uint8(values)
    except ValueError as err:
        raise RequestError("The DICOM image", "Its pixel values are not finite", "Leave it out") from err


def _is_nifti(content: bytes) -> bool:
    return len(content) >= 4 and any(struct.unpack_from(f"{end}i", content)[0] in NIFTI_HEADERS for end in "<>")


def _volume_values(content: bytes) -> np.ndarray:
    """Voxels x y z channel in RAS+; the header is judged before the rest is inflated."""
    try:
        is_packed = content.startswith(GZIP)
        head = gzip.GzipFile(fileobj=io.BytesIO(content)).read(544) if is_packed else content[:544]
        if not _is_nifti(head):
            raise RequestError("The compressed file", "It holds no NIfTI volume", "Give a .nii.gz, or an image")
        size = struct.unpack_from("<i", head)[0]
        volume_class = NIFTI_HEADERS.get(size) or NIFTI_HEADERS[struct.unpack_from(">i", head)[0]]
        header = volume_class.header_class.from_fileobj(io.BytesIO(head), check=False)
        shape = tuple(int(side) for side in header.get_data_shape())
        _check_header(header, shape)
        whole = int(header["vox_offset"]) + int(np.prod(shape)) * header.get_data_dtype().itemsize
        plain = gzip.GzipFile(fileobj=io.BytesIO(content)).read(whole) if is_packed else content
        volume = volume_class.from_bytes(plain)
        affine = np.asarray(volume.affine, np.float64)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise _unplaced("its affine says nothing")
        turn = io_orientation(affine)
        if np.isnan(turn).any():  # two axes of the file point the same way more than any other
            raise _unplaced("its affine is no turn of three axes")
        values = apply_orientation(np.asanyarray(volume.dataobj).reshape(*shape[:3], -1), turn)
    except _BROKEN as err:
        raise _broken("NIfTI") from err
    if values.dtype == np.float64:  # what a slope and intercept in the header make of 16-bit integers
        values = values.astype(np.float32)
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise RequestError("The volume", f"Its voxels are of type {values.dtype}", "Convert it to numbers")
    if not np.isfinite(values).all():
        raise RequestError("The volume", "It holds voxels that are not finite", "Write them anew, or leave it out")
    return values


def _check_header(header: nib.Nifti1Header, shape: tuple[int, ...]) -> None:
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise RequestError(f"The volume has the shape {shape}", "It has three axes, or four with channels", "Cut it")
    if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise RequestError(f"The volume has the shape {shape}", f"The cap is {MAX_VOXELS} voxels", "Crop it")
    spacing = [float(step) for step in header["pixdim"][1:4]]
    if not all(np.isfinite(step) and step > 0 for step in spacing):
        raise RequestError(
            f"The volume has the spacing {spacing} mm",
            "Without the distance of its voxels it would be shown in a shape that it has not",
            "Write the spacing of the scan into pixdim[1..3]",
        )
    if (int(header["sform_code"]), int(header["qform_code"])) == (0, 0):
        raise _unplaced("sform_code and qform_code are 0")


def _unplaced(why: str) -> RequestError:
    return RequestError(
        f"The volume has no orientation: {why}",
        "Which side of it is the patient's left would be a guess",
        "Write the affine of the scan with sform_code 1",
    )


def _too_large(claimed: str) -> RequestError:
    return RequestError(
        f"{LABEL} claims {claimed}",
        f"Above {MAX_PIXELS} pixels an image is taken for a decompression bomb",
        "Scale it down before, if it is genuine",
    )


def _broken(kind: str) -> RequestError:
    return RequestError(f"The {kind} file", "It cannot be decoded in full", "Fetch it again, or give another one")
