"""Changes of PNG, JPEG and DICOM files beyond their bytes: other modes, sides that lie, checksums, foreign content."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lightbox.testing.spoiled.entries import Change, Damage

PICTURES = (".png", ".jpg", ".jpeg")
PNG = b"\x89PNG\r\n\x1a\n"
SIDES = ((0, 0), (0, 8), (8, 0), (60_000, 60_000), (9000, 9000), (1 << 31, 1), (1, 20_000))


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """(kind, data, checksum as written) of each chunk of a PNG."""
    place = len(PNG)
    while place + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, place)
        kind, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        if place + 12 + size > len(content):
            return
        yield kind, data, struct.unpack_from(">I", content, place + 8 + size)[0]
        place += 12 + size


def chunk(kind: bytes, data: bytes, *, crc: int | None = None) -> bytes:
    """One chunk of a PNG."""
    value = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", value)


def _saved(kind: str, form: str, note: str, *, keeps_form: bool = False) -> Change:
    """The picture again, as another kind of picture; where it is valid data it must still be counted."""

    def change(_: random.Random, file: Path) -> Damage:
        with Image.open(file) as image:
            turned = image.convert("RGB").convert(kind)
        stream = io.BytesIO()
        turned.save(stream, form)
        file.write_bytes(stream.getvalue())
        return Damage(note, keeps_form)

    return change


def _sixteen_bits(rng: random.Random, file: Path) -> Damage:
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 60_000, (12, 14)).astype(np.uint16)
    Image.fromarray(pixels).save(file, "PNG")
    return Damage("16 bits a pixel")


def _sixteen_bits_in_colour(rng: random.Random, file: Path) -> Damage:
    header = struct.pack(">IIBBBBB", 6, 5, 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + rng.randbytes(6 * 6) for _ in range(5))
    file.write_bytes(PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    return Damage("16 bits a colour")


def _sides(rng: random.Random, file: Path) -> Damage | None:
    width, height = rng.choice(SIDES)
    content = file.read_bytes()
    if content.startswith(PNG):
        header = struct.pack(">II", width, height) + content[24:29]
        file.write_bytes(PNG + chunk(b"IHDR", header) + content[33:])
    else:
        place = next((content.find(bytes((255, kind))) for kind in (0xC0, 0xC2) if bytes((255, kind)) in content), -1)
        if place < 0:
            return None
        sides = struct.pack(">HH", min(height, 65_535), min(width, 65_535))
        file.write_bytes(content[: place + 5] + sides + content[place + 9 :])
    # fewer pixels than are there are another picture, whole as far as anyone can tell
    return Damage(f"says {width} x {height} pixels", None if (width, height) == (1, 20_000) else False)


def _png_change(
    edit: Callable[[random.Random, list[bytes], bytes], None], note: str, *, keeps_form: bool = False
) -> Change:
    """`edit` gets the chunks as bytes and the compressed data of all IDAT chunks."""

    def change(rng: random.Random, file: Path) -> Damage | None:
        content = file.read_bytes()
        if not content.startswith(PNG):
            return None
        found = list(chunks(content))
        parts = [chunk(kind, data) for kind, data, _ in found if kind != b"IDAT"]
        edit(rng, parts, b"".join(data for kind, data, _ in found if kind == b"IDAT"))
        file.write_bytes(PNG + b"".join(parts))
        return Damage(note, keeps_form)

    return change


def _wrong_sum(rng: random.Random, parts: list[bytes], data: bytes) -> None:
    parts.insert(-1, chunk(b"IDAT", data, crc=rng.randrange(1 << 32)))


def _other_data(rng: random.Random, parts: list[bytes], data: bytes) -> None:
    """Pixels that are not what the chunk's checksum was made of; the one inside the compressed data holds."""
    pixels = bytearray(zlib.decompress(data))
    for _ in range(20):
        pixels[rng.randrange(len(pixels))] ^= 1  # which leaves the filter of a line, its first byte, a filter
    parts.insert(-1, chunk(b"IDAT", zlib.compress(bytes(pixels)), crc=zlib.crc32(b"IDAT" + data)))


def _no_data(_: random.Random, parts: list[bytes], data: bytes) -> None:
    del data, parts[1:-1]


def _no_end(_: random.Random, parts: list[bytes], data: bytes) -> None:
    parts[-1] = chunk(b"IDAT", data)


def _half_data(_: random.Random, parts: list[bytes], data: bytes) -> None:
    parts.insert(-1, chunk(b"IDAT", data[: len(data) // 2]))


def _text_bomb(_: random.Random, parts: list[bytes], data: bytes) -> None:
    parts.insert(1, chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(80_000_000))))
    parts.insert(-1, chunk(b"IDAT", data))


def _sums_of_noise(rng: random.Random, parts: list[bytes], data: bytes) -> None:
    parts.insert(1, chunk(b"iCCP", rng.randbytes(40)))
    parts.insert(1, chunk(b"eXIf", rng.randbytes(40)))
    parts.insert(-1, chunk(b"IDAT", data))


def _exif(rng: random.Random, file: Path) -> Damage | None:
    content = file.read_bytes()
    if not content.startswith(b"\xff\xd8"):
        return None
    tags = rng.choice((b"MM\0*", b"II*\0", b"Exif")) + rng.randbytes(rng.randint(0, 60))
    if rng.random() < 0.5:  # an orientation of a wrong kind
        tags = b"MM\0*\0\0\0\x08\0\x01\x01\x12" + rng.randbytes(10)
    body = b"Exif\0\0" + tags
    file.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:])
    return Damage("EXIF of noise", True)


def _segment(rng: random.Random, file: Path) -> Damage | None:
    """Noise in a table of a JPEG: quantisation, Huffman codes, frame or scan."""
    content = bytearray(file.read_bytes())
    starts = [place for kind in (0xDB, 0xC4, 0xC0, 0xC2, 0xDA) if (place := content.find(bytes((255, kind)))) > 0]
    if not content.startswith(b"\xff\xd8") or not starts:
        return None
    start = rng.choice(starts)
    for _ in range(rng.randint(1, 4)):
        content[min(len(content) - 1, start + rng.randint(2, 24))] = rng.randrange(256)
    file.write_bytes(content)
    return Damage(f"noise in the segment at {start}", None)


def _without_end(_: random.Random, file: Path) -> Damage | None:
    content = file.read_bytes()
    if not content.startswith(b"\xff\xd8") or not content.endswith(b"\xff\xd9"):
        return None
    file.write_bytes(content[: len(content) * 3 // 4])
    return Damage("a JPEG without its last quarter")


def _dicom_size(rng: random.Random, file: Path) -> Damage:
    content = bytearray(file.read_bytes())
    place = content.index(b"\x28\x00" + rng.choice((b"\x10\x00", b"\x11\x00")) + b"US")
    struct.pack_into("<H", content, place + 8, rng.choice((0, 1, 15, 65_535)))
    file.write_bytes(content)
    return Damage("another number of rows or columns")


PICTURE_CHANGES: dict[str, Change] = {
    "cmyk": _saved("CMYK", "JPEG", "CMYK"),
    "16 bits": _sixteen_bits,
    "16 bits in colour": _sixteen_bits_in_colour,
    "gif": _saved("P", "GIF", "a GIF in its place"),
    "tiff": _saved("RGB", "TIFF", "a TIFF in its place"),
    "bmp": _saved("RGB", "BMP", "a BMP in its place"),
    "one bit": _saved("1", "PNG", "one bit a pixel", keeps_form=True),
    "palette": _saved("P", "PNG", "a palette", keeps_form=True),
    "sides": _sides,
    "wrong checksum": _png_change(_wrong_sum, "an IDAT whose checksum is wrong"),
    "pixels against their checksum": _png_change(_other_data, "pixels that the checksum was not made of"),
    "no pixels": _png_change(_no_data, "no IDAT"),
    "no end": _png_change(_no_end, "no IEND"),
    "half the pixels": _png_change(_half_data, "half the IDAT"),
    "text bomb": _png_change(_text_bomb, "a text of 80 MB"),
    "profile of noise": _png_change(_sums_of_noise, "profile and EXIF of noise", keeps_form=True),
    "exif of noise": _exif,
    "segment": _segment,
    "without end": _without_end,
}
DICOM_CHANGES: dict[str, Change] = {"dicom size": _dicom_size}
