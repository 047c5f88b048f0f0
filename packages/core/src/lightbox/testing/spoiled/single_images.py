"""Images by themselves, as `lightbox predict` is given one: PNG, JPEG, TIFF, DICOM and NIfTI, and what they suffer."""

import gzip
import io
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from lightbox.paper.asked_images import check_whole, open_image
from lightbox.readers.dicom import dicom_size_wh
from lightbox.readers.pixels import load_pixels, pixels_size_wh
from lightbox.readers.volumes import read_volume, slice_labels, slice_place
from lightbox.testing.spoiled.entries import CHANGES, Change, Damage
from lightbox.testing.spoiled.inputs import Kind, Look, digest_of
from lightbox.testing.spoiled.pictures import DICOM_CHANGES, PICTURE_CHANGES, PNG, chunk
from lightbox.testing.spoiled.small import dicom_bytes

HUGE_PX = 20_000
OF_FILES = {name: change for name, change in CHANGES.items() if "for folder" not in name and name != "link to above"}
FORMS = (("PNG", "L"), ("PNG", "RGB"), ("PNG", "LA"), ("JPEG", "L"), ("JPEG", "RGB"), ("TIFF", "L"), ("TIFF", "RGB"))
ENDING = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif"}
ELEMENTS: dict[str, tuple[Any, ...]] = {
    "Rows": (0, 1, 65_535, 20_000),
    "Columns": (0, 1, 65_535, 20_000),
    "NumberOfFrames": (0, 2, -1, 10**9),
    "SamplesPerPixel": (0, 2, 3, 65_535),
    "PhotometricInterpretation": ("RGB", "PALETTE COLOR", "YBR_FULL_422", "", "DOE^JANE"),
    "BitsAllocated": (0, 1, 7, 8, 12, 32, 64, 65_535),
    "BitsStored": (0, 1, 32),
    "HighBit": (0, 31),
    "PixelRepresentation": (1, 2, 65_535),
    "RescaleSlope": ("0", "nan", "1e308", "-1", "abc"),
    "RescaleIntercept": ("nan", "-1e308", "inf"),
    "WindowWidth": ("0", "-5", "nan", "1e308", ["1", "2", "3"]),
    "WindowCenter": ("nan", "", ["1", "2"]),
    "PixelPaddingValue": (0, 65_535),
    "PlanarConfiguration": (7,),
}
SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.100",
    "9.9.9",
    "",
)
HEADER: dict[str, tuple[int, str, tuple[Any, ...]]] = {
    "sizeof_hdr": (0, "<i", (0, 347, 540, -1)),
    "dim[0]": (40, "<h", (0, 1, 2, 4, 7, 8, -1, 32_767)),
    "dim[1]": (42, "<h", (0, 1, -3, 32_767)),
    "dim[2]": (44, "<h", (0, 1, 32_767)),
    "dim[3]": (46, "<h", (0, 1, 32_767)),
    "dim[4]": (48, "<h", (0, 2, 32_767)),
    "datatype": (70, "<h", (0, 1, 2, 8, 16, 32, 64, 128, 256, 512, 1536, 2048, 9999)),
    "bitpix": (72, "<h", (0, 1, 3, 64)),
    "pixdim[1]": (80, "<f", (0.0, -1.0, float("nan"), float("inf"), 1e30)),
    "vox_offset": (108, "<f", (0.0, 1.0, 353.0, -16.0, 1e30, float("nan"))),
    "scl_slope": (112, "<f", (0.0, float("nan"), float("inf"), 1e38, -1.0)),
    "scl_inter": (116, "<f", (float("nan"), float("inf"), 1e38)),
    "qform_code": (252, "<h", (0, 9, -1)),
    "sform_code": (254, "<h", (0, 9, -1)),
    "srow_x": (280, "<4f", ((0.0,) * 4, (float("nan"),) * 4, (1e30, 0, 0, 0))),
    "magic": (344, "4s", (b"", b"ni1\0", b"n+2\0", b"xxxx")),
}
GEOMETRY = ("pixdim[1]", "scl_slope", "scl_inter", "qform_code", "sform_code", "srow_x")
"""Fields whose other values are as good as the first."""


@cache
def png_of_20000_px() -> bytes:
    """A sound PNG of 20,000 x 20,000 px, one bit each, in 50 KB."""
    lines = zlib.compressobj(9)
    row = bytes(1 + HUGE_PX // 8)
    data = b"".join(lines.compress(row) for _ in range(HUGE_PX)) + lines.flush()
    header = struct.pack(">IIBBBBB", HUGE_PX, HUGE_PX, 1, 0, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _huge(_: random.Random, file: Path) -> Damage:
    file.write_bytes(png_of_20000_px())
    return Damage(f"{HUGE_PX} x {HUGE_PX} pixels that are all there")


def _tiff_tag(rng: random.Random, file: Path) -> Damage | None:
    """Another value in one entry of the first directory of a TIFF: sides, bits, offsets, counts."""
    content = bytearray(file.read_bytes())
    if not content.startswith(b"II*\0"):
        return None
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    place = start + 2 + 12 * rng.randrange(count)
    (tag,) = struct.unpack_from("<H", content, place)
    value = rng.choice((0, 1, 7, 255, 65_535, 1 << 31, 0xFFFFFFFF))
    struct.pack_into("<I", content, place + rng.choice((4, 8, 8, 8)), value)
    file.write_bytes(content)
    return Damage(f"{value} in tag {tag}", None)


def _picture_changes(file: Path) -> Mapping[str, Change]:
    own = {"20,000 pixels": _huge, "tiff tag": _tiff_tag}
    if file.suffix == ".tif":
        return OF_FILES | own
    # which data sets count; by itself a picture of another depth is a picture
    others = {name: _as_good(PICTURE_CHANGES[name]) for name in ("cmyk", "16 bits", "16 bits in colour")}
    return OF_FILES | PICTURE_CHANGES | own | others


def _as_good(change: Change) -> Change:
    def changed(rng: random.Random, file: Path) -> Damage | None:
        damage = change(rng, file)
        return None if damage is None else replace(damage, keeps_form=True)

    return changed


def _write_picture(folder: Path, rng: random.Random) -> None:
    form, mode = rng.choice(FORMS)
    shape = (rng.randint(9, 40), rng.randint(9, 40), {"L": 1, "LA": 2, "RGB": 3}[mode])
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 255, shape).astype(np.uint8)
    Image.fromarray(pixels.squeeze(-1) if mode == "L" else pixels, mode).save(folder / f"shown{ENDING[form]}", form)


def _look_at_picture(folder: Path) -> Look:
    (file,) = (path for path in _named(folder, "shown") if path.suffix != ".txt")
    check_whole(file)
    seen = [load_pixels(file, image_px=32, in_colour=True), load_pixels(file)]
    if file.suffix != ".tif":  # which data sets have, and `predict` does not take
        seen.append(open_image(file).pixels)
    return Look(digest_of(pixels_size_wh(file), *((array.shape, array.tobytes()) for array in seen)))


def _named(folder: Path, stem: str) -> list[Path]:
    """The file of a stem; a name where it is gone."""
    return sorted(folder.glob(f"{stem}.*")) or [folder / f"{stem}.png"]


def _write_dicom(folder: Path, rng: random.Random) -> None:
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 4095, (rng.randint(9, 30), rng.randint(9, 30)))
    file = folder / "shown.dcm"
    file.write_bytes(dicom_bytes(pixels.astype(np.uint16)))


def _look_at_dicom(folder: Path) -> Look:
    file = folder / "shown.dcm"
    with file.open("rb") if file.is_file() else io.BytesIO() as stream:
        is_dicom = stream.read(132)[128:] == b"DICM"
    size = dicom_size_wh(file, path=file) if is_dicom else ()
    seen = load_pixels(file, image_px=32), open_image(file).pixels
    return Look(digest_of(size, *((array.shape, array.tobytes()) for array in seen)))


def _element(rng: random.Random, file: Path) -> Damage | None:
    name = rng.choice(sorted(ELEMENTS))
    value = rng.choice(ELEMENTS[name])
    # a slope, a window, a padding or a sign of another value are as good; so is 1 of 16 bits that are stored
    is_other = name.startswith(("Rescale", "Window", "PixelPadding", "PixelRep", "High", "BitsStored", "Planar"))

    def edit(data: Dataset) -> None:
        setattr(data, name, value)

    return _edited(file, edit, f"{name} is {value}", keeps_form=is_other)


def _gone(rng: random.Random, file: Path) -> Damage | None:
    data = pydicom.dcmread(file)
    element = rng.choice(sorted(element.keyword for element in data if element.keyword))

    def edit(data: Dataset) -> None:
        delattr(data, element)

    return _edited(file, edit, f"no {element}", keeps_form=element.startswith(("Window", "SOP")))


def _no_pixels(_: random.Random, file: Path) -> Damage | None:
    def edit(data: Dataset) -> None:
        del data.PixelData

    return _edited(file, edit, "no pixels")


def _other_amount(rng: random.Random, file: Path) -> Damage | None:
    factor = rng.choice((0.0, 0.5, 0.9, 1.5, 3.0))

    def edit(data: Dataset) -> None:
        data.PixelData = (data.PixelData * 3)[: int(len(data.PixelData) * factor) // 2 * 2]

    return _edited(file, edit, f"{factor} times the pixels")


def _syntax(rng: random.Random, file: Path) -> Damage | None:
    """Another transfer syntax in the header than the pixels have."""
    name = rng.choice(SYNTAXES)
    content = file.read_bytes()
    own = b"1.2.840.10008.1.2.1\0"
    other = name.encode().ljust(len(own), b"\0")
    if len(other) > len(own):
        other = name.encode() + b"\0" * (len(name) % 2)
    place = content.index(own)
    file.write_bytes(content[: place - 2] + struct.pack("<H", len(other)) + other + content[place + len(own) :])
    return Damage(f"transfer syntax '{name}'", None)


def _table(rng: random.Random, file: Path) -> Damage | None:
    """A look-up table that does not fit its description."""

    def edit(data: Dataset) -> None:
        table = Dataset()
        table.LUTDescriptor = rng.choice(([0, 0, 16], [4, 0, 16], [65_535, 0, 8], [4, 0, 99]))
        table.LUTData = [1] * rng.choice((1, 4, 40))
        setattr(data, rng.choice(("ModalityLUTSequence", "VOILUTSequence")), Sequence([table]))

    return _edited(file, edit, "a table that does not fit", keeps_form=True)


def _nested(_: random.Random, file: Path) -> Damage | None:
    def edit(data: Dataset) -> None:
        inner = Dataset()
        for _depth in range(30):
            outer = Dataset()
            outer.ReferencedImageSequence = Sequence([inner])
            inner = outer
        data.ReferencedImageSequence = Sequence([inner])

    return _edited(file, edit, "sequences 30 deep", keeps_form=True)


def _edited(file: Path, edit: Callable[[Dataset], None], note: str, *, keeps_form: bool = False) -> Damage | None:
    """Write the file again with a change that pydicom itself would not make; None where it cannot be written."""
    data = pydicom.dcmread(file)
    stream = io.BytesIO()
    try:
        edit(data)
        data.save_as(stream)
    except (ValueError, TypeError, AttributeError, OverflowError, struct.error, RecursionError, KeyError):
        return None
    file.write_bytes(stream.getvalue())
    return Damage(note, keeps_form)


DICOM_ONLY: dict[str, Change] = {
    "element": _element,
    "element again": _element,
    "element once more": _element,
    "element gone": _gone,
    "without pixels": _no_pixels,
    "other amount": _other_amount,
    "transfer syntax": _syntax,
    "look-up table": _table,
    "nested": _nested,
    "20,000 pixels": _huge,
} | DICOM_CHANGES


def _write_volume(folder: Path, rng: random.Random) -> None:
    kind = rng.choice((np.uint8, np.int16, np.float32))
    shape = tuple(rng.randint(4, 9) for _ in range(rng.choice((3, 3, 3, 2))))
    values = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 3, shape).astype(kind)
    ending = rng.choice((".nii", ".nii.gz"))
    affine = np.diag([rng.choice((-1.0, 1.0)) * rng.uniform(0.5, 3) for _ in range(3)] + [1.0])
    nib.save(nib.Nifti1Image(values, affine), folder / f"shown{ending}")


def _look_at_volume(folder: Path) -> Look:
    file = next(iter([*folder.glob("shown.nii*"), folder / "shown.nii"]))
    head = open_image(file, "axial/0")
    assert head.cut is not None
    seen: list[Any] = [head.pixels.shape, head.pixels.tobytes(), head.cut.name]
    if len(head.cut.image.shape) > 2:
        volume = read_volume(file)
        place = slice_place(file / "coronal" / "1")
        assert place is not None
        labels = slice_labels(place)
        seen += [volume.values.shape, volume.values.tobytes(), volume.spacing_mm, labels.shape, labels.tobytes()]
    drawn = head.cut.volume(np.ones(head.pixels.shape, bool))
    return Look(digest_of(*seen, drawn.shape))


def _field(rng: random.Random, file: Path) -> Damage | None:
    name = rng.choice(sorted(HEADER))
    place, form, values = HEADER[name]
    value = rng.choice(values)
    is_packed = file.suffix == ".gz"
    content = bytearray(gzip.decompress(file.read_bytes()) if is_packed else file.read_bytes())
    struct.pack_into(form, content, place, *(value if isinstance(value, tuple) else (value,)))
    file.write_bytes(gzip.compress(bytes(content)) if is_packed else bytes(content))
    return Damage(f"{name} is {value}", name in GEOMETRY)


def _voxels(rng: random.Random, file: Path) -> Damage | None:
    """Voxels that are cut off, too many, or a gigabyte of zeros behind them."""
    is_packed = file.suffix == ".gz"
    content = gzip.decompress(file.read_bytes()) if is_packed else file.read_bytes()
    factor = rng.choice((0.5, 0.99, 2.0))
    voxels = (content[352:] * 2)[: int((len(content) - 352) * factor)]
    content = content[:352] + voxels
    file.write_bytes(gzip.compress(content) if is_packed else content)
    return Damage(f"{factor} times the voxels")


@cache
def _zeros() -> bytes:
    return gzip.compress(bytes(1 << 28), compresslevel=1)


def _bomb(_: random.Random, file: Path) -> Damage | None:
    if file.suffix != ".gz":
        return None
    file.write_bytes(file.read_bytes() + _zeros() * 8)
    return Damage("2 GiB of zeros behind it, packed", True)


VOLUME_ONLY: dict[str, Change] = {f"header field {turn}": _field for turn in range(8)} | {
    "amount of voxels": _voxels,
    "gzip bomb": _bomb,
}


def _dicom_form(sound: Path, spoiled: Path) -> bool:
    """Bytes inside the pixels, which have no checksum, or text of the header of the same length."""
    return spoiled.stat().st_size >= sound.stat().st_size


def _volume_form(sound: Path, spoiled: Path) -> bool:
    """Another voxel, or another number in a field that says where it lies; gzip has a checksum."""
    if sound.suffix == ".gz":
        return False
    one, other = sound.read_bytes(), spoiled.read_bytes()
    fixed = [(0, 4), (40, 56), (70, 74), (108, 112), (344, 348)]
    return len(other) == len(one) and all(one[a:b] == other[a:b] for a, b in fixed)


PICTURE = Kind(_write_picture, _look_at_picture, _picture_changes, variants=40)
DICOM = Kind(_write_dicom, _look_at_dicom, lambda _: OF_FILES | DICOM_ONLY, _dicom_form, variants=8)
VOLUME = Kind(_write_volume, _look_at_volume, lambda _: OF_FILES | VOLUME_ONLY, _volume_form, variants=24)
