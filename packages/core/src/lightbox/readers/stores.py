"""Where the images of a dataset lie: a folder, or a zip file whose members are read in place.

`find_store` and `tree_store` choose; `ImageStore.path` turns the name in a row into the path of a case, checked. A path
into a zip or parquet file is an `InnerPath`, which opens like a file.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from lightbox.errors import RequestError
from lightbox.readers import images
from lightbox.readers.members import check_folder, is_there, open_archive, split_member
from lightbox.readers.parquet import image_bytes, is_row_path
from lightbox.readers.rows import Gathering, RowError, inside, shown

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG, _JPEG_END, _SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
_CHUNK_FRAME = 12  # bytes of a chunk of a PNG around its data
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
_PNG_DEPTH = 24  # the byte of a PNG that says how many bits a sample has


class InnerPath(type(Path())):  # Path itself cannot be subclassed before Python 3.12
    """A path into a zip or parquet file, equal to the plain path; `open` gives what lies there.

    So a digest of a case's image is made of its bytes, as for a file of its own.
    """

    def open(self, mode: str = "r", *_: object, **__: object) -> io.BytesIO:
        if mode != "rb":
            raise io.UnsupportedOperation(f"'{self}' can only be read as bytes")
        return io.BytesIO(image_bytes(Path(self)))

    def is_file(self) -> bool:
        """True for a member that is there, and for any row."""
        place = split_member(Path(self))
        return is_row_path(Path(self)) if place is None else place[1] in open_archive(place[0]).members


@dataclass(frozen=True)
class ImageStore:
    """A folder, or a zip file, with its members by every ending of their names ("" where an ending names several).

    A folder without members was not searched.
    """

    root: Path
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_zip(self) -> bool:
        """True where the images are members of a zip file."""
        return self.root.is_file()

    def path(self, name: str, field_name: str) -> Path:
        """The path of the image that a row calls `name`; whether a folder has it, decoding tells.

        Raises:
            RowError: it leads outside, or no member or several members are called so.
        """
        place = inside(self.root, name, field_name)
        if not self.is_zip and not self.members:
            return place
        member = self.members.get(place.relative_to(self.root).as_posix())
        if not member:
            count = "no member" if member is None else "more than one member"
            raise RowError(field_name, f"is {shown(name)}, which names {count} of {self.root.name}")
        return InnerPath(self.root, member) if self.is_zip else self.root / member


def find_store(root: Path, rows: Gathering, *, folders: Sequence[str], zips: Sequence[str]) -> ImageStore:
    """The first of `folders` with something in it, else the first of `zips` that is there, else `root` itself.

    Raises:
        RequestError: something else stands in the place of a folder, or the zip file is none.
    """
    for name in folders:
        if check_folder(root / name).is_dir() and any((root / name).iterdir()):
            return ImageStore(root / name)
    file = next((root / name for name in zips if is_there(root / name)), None)
    return ImageStore(root) if file is None else zip_store(file, rows)


def tree_store(root: Path, rows: Gathering) -> ImageStore | None:
    """The images anywhere below `root`, else those in its one zip file; None where there are none.

    Each is found by every ending of its path, with or without the ending of its name: annotations name an image as
    a/b.png, b.png or b.

    Raises:
        RequestError: no image file, and several zip files.
    """
    names = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()
    ]
    if names:
        return ImageStore(root, _by_ending(names, without_suffix=True))
    zips = sorted(root.glob("*.zip"))
    if len(zips) > 1:
        raise RequestError(
            f"Folder '{root}' holds {len(zips)} zip files and no image", "One is read in place", "Unpack them"
        )
    if not zips:
        return None
    store = zip_store(zips[0], rows)
    names = [name for name in open_archive(store.root).members if name.lower().endswith(IMAGE_ENDINGS)]
    return ImageStore(store.root, _by_ending(names, without_suffix=True))


def zip_store(file: Path, rows: Gathering) -> ImageStore:
    """A store of a zip file; members that lead outside it or stand twice become malformed rows of `rows`.

    Raises:
        RequestError: not a zip file.
    """
    archive = open_archive(file)
    rows.counts["zip_members"] += len(archive.members)
    for name, reason in archive.refused:
        with rows.row(file, name, counter="zip_members"):
            raise RowError("member", reason)
    return ImageStore(file, _by_ending(archive.members))


def _by_ending(names: Iterable[str], *, without_suffix: bool = False) -> dict[str, str]:
    """Rows name an image from some folder on, the zip file from its top: figures/a.jpg is found as a.jpg too."""
    endings: dict[str, str] = {}
    for name in names:
        forms = (name, str(PurePosixPath(name).with_suffix(""))) if without_suffix else (name,)
        for ending in (form.split("/", start)[-1] for form in forms for start in range(name.count("/") + 1)):
            if ending != name:
                endings[ending] = "" if ending in endings else name
    return endings | {name: name for name in names}  # a whole name means that member, whatever ends like it


def image_size_wh(path: Path) -> tuple[int, int]:
    """As `images.image_size_wh`, also of DICOM, a member of a zip file or a row of parquet; pixels are not decoded.

    Raises:
        RequestError: missing, unreadable, DICOM of several frames or of colours that are not read, or another format.
    """
    if path.suffix.lower() in (".dcm", ".dicom"):
        from lightbox.readers import dicom  # noqa: PLC0415  as in `images`

        return dicom.dicom_size_wh(io.BytesIO(image_bytes(path)) if is_row_path(path) else path, path=path)
    try:
        if not is_row_path(path):
            return images.image_size_wh(path)  # looking for EXIF, Pillow reads a PNG to its end, and may stumble there
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `load_image` has the cap
            with Image.open(io.BytesIO(image_bytes(path)), formats=("PNG", "JPEG")) as image:
                turned = image.getexif().get(0x0112, 1) >= 5  # as there
                return (image.height, image.width) if turned else (image.width, image.height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise RequestError(f"Image '{path}'", f"Its header cannot be read: {err}", "Fetch the file again") from err


def image_fault(path: Path) -> str:
    """What is wrong with an image that decodes all the same; "" for most images.

    A PNG whose checksums fail, or a PNG or JPEG without its end: Pillow decodes such a file without a word, to other
    pixels than were written. Within its end, a JPEG says nothing of damage, as it has no checksum; nor has DICOM.
    """
    with io.BytesIO(image_bytes(path)) if is_row_path(path) else path.open("rb") as source:
        head = source.read(len(_PNG))
        if head == _PNG:
            return _png_fault(head + source.read())
        # nothing else is read to its end: DICOM may be large, and tells nothing
        return _jpeg_fault(head + source.read()) if head.startswith(_JPEG) else ""


def _png_fault(content: bytes) -> str:
    place = len(_PNG)
    while place + _CHUNK_FRAME <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        stop = place + _CHUNK_FRAME + size
        if stop > len(content):
            break
        # a length, a kind of four letters, the data, the checksum of kind and data
        if zlib.crc32(content[place + 4 : stop - 4]) != struct.unpack_from(">I", content, stop - 4)[0]:
            return f"The checksum of its {kind.decode('latin-1')!a} chunk is wrong"
        if kind == b"IEND":
            return ""
        place = stop
    return "It has no end"


def _jpeg_fault(content: bytes) -> str:
    """Segments are walked to the first scan: a thumbnail in one of them has an end of its own."""
    place = len(_JPEG)
    while place + 4 <= len(content):
        sign, kind, size = struct.unpack_from(">BBH", content, place)
        if sign == 0xFF and kind == 0xFF:  # any number of these may stand before a marker
            place += 1
            continue
        if sign != 0xFF or kind == _SCAN:
            break
        place += 2 + size
    return "" if _JPEG_END in content[place:] else "It has no end"


def image_note(path: Path) -> str:
    """What decoding changed in an image that `load_image` has read, as a count calls it; "" for most images.

    "cmyk_images" lose their printing colours; "images_of_16_bits" are scaled to 8, or cut to 8 where they are coloured.
    """
    with io.BytesIO(image_bytes(path)) if is_row_path(path) else path.open("rb") as source:
        head = source.read(_PNG_DEPTH + 1)
        if head.startswith(b"\x89PNG"):
            return "images_of_16_bits" if head[_PNG_DEPTH] == 16 else ""
        if not head.startswith(b"\xff\xd8"):  # DICOM, which is always scaled
            return ""
        with Image.open(source, formats=("JPEG",)) as image:
            return "cmyk_images" if image.mode == "CMYK" else ""
