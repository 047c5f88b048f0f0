"""Zip files in parts and JSON too large to hold: read where they lie, and refused by name where a piece is missing."""

import copy

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.readers.json_pairs import read_pairs
from lightbox.readers.pixels import PartPath, file_bytes, load_pixels
from lightbox.readers.split_zip import Archive, is_read_here, open_parts
from lightbox.testing.split_zips import write_split_zip

MEMBERS = {f"top/m{number}.bin": bytes([number]) * 40 + bytes(range(256)) for number in range(9)}


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("part_bytes", [97, 500, 100_000])
def test_every_member_is_read_whichever_parts_it_spans(tmp_path, part_bytes, is_long):
    parts = write_split_zip(tmp_path / "a.zip", MEMBERS, part_bytes=part_bytes, is_long=is_long)
    archive = Archive(tmp_path / "a.zip")
    assert archive.parts == parts
    assert {name: archive.read(name) for name in archive.names()} == MEMBERS
    assert "top/m9.bin" not in archive
    with pytest.raises(RequestError, match="no such member"):
        archive.read("top/m9.bin")


def test_a_missing_part_is_named_with_what_to_do(tmp_path):
    parts = write_split_zip(tmp_path / "a.zip", MEMBERS, part_bytes=400)
    parts[1].unlink()
    with pytest.raises(RequestError, match=r"last of \d+ parts.*missing: a\.z02") as caught:
        open_parts(tmp_path / "a.zip")
    assert "nothing has to be joined" in caught.value.do


def test_the_numbered_parts_without_the_last_say_which_is_needed(tmp_path):
    parts = write_split_zip(tmp_path / "a.zip", MEMBERS, part_bytes=400)
    parts[-1].unlink()
    with pytest.raises(RequestError, match=r"The list of members stands at the end of the last part"):
        open_parts(tmp_path / "a.zip")


def test_a_changed_byte_costs_its_member_alone(tmp_path):
    parts = write_split_zip(tmp_path / "a.zip", MEMBERS, part_bytes=150)
    content = bytearray(parts[1].read_bytes())
    content[100] ^= 255
    parts[1].write_bytes(content)
    archive, lost = open_parts(tmp_path / "a.zip"), []
    for name, expected in MEMBERS.items():
        try:
            assert archive.read(name) == expected
        except RequestError as err:
            assert "a.zip" in err.given  # noqa: PT017  which member is hit depends on how deflate packs
            lost.append(name)
    assert len(lost) == 1


@pytest.mark.parametrize("cut", [1, 30, 90])
def test_a_last_part_that_is_cut_short_is_refused(tmp_path, cut):
    last = write_split_zip(tmp_path / "a.zip", MEMBERS, part_bytes=400)[-1]
    last.write_bytes(last.read_bytes()[:-cut])
    with pytest.raises(RequestError, match=r"a\.zip"):
        open_parts(tmp_path / "a.zip")


def test_a_replaced_part_is_opened_anew(tmp_path):
    write_split_zip(tmp_path / "a.zip", MEMBERS)
    assert "top/m0.bin" in open_parts(tmp_path / "a.zip")
    for part in tmp_path.glob("a.z*"):
        part.unlink()
    write_split_zip(tmp_path / "a.zip", {"other": b"new"}, part_bytes=60)
    assert open_parts(tmp_path / "a.zip").read("other") == b"new"


def test_an_image_in_parts_is_decoded_like_a_file_of_its_own(tmp_path):
    pixels = np.arange(24 * 18, dtype=np.uint8).reshape(18, 24)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    write_split_zip(tmp_path / "a.zip", {"images/x.png": content})
    path = PartPath(tmp_path / "a.zip", "images/x.png")
    assert is_read_here(tmp_path / "a.zip")
    assert path.is_file()
    assert not PartPath(tmp_path / "a.zip", "images/y.png").is_file()
    assert path.open("rb").read() == file_bytes(path) == content
    assert (load_pixels(path) == pixels).all()
    assert (load_pixels(copy.copy(path)) == pixels).all()  # by the protocol by which a worker gets it


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pairs_are_the_same_however_the_text_is_cut(size):
    text = '\ufeff{ "a": ["x", "\u00fc"] , "b":[], "c" : 12.5,"d": {"e": [1, {"f": null}]} }'.encode()
    pieces = [text[cut : cut + size] for cut in range(0, len(text), size)]
    expected = [("a", ["x", "ü"]), ("b", []), ("c", 12.5), ("d", {"e": [1, {"f": None}]})]
    assert list(read_pairs(pieces, source="text")) == expected


@pytest.mark.parametrize(
    ("text", "why", "before"),
    [
        ("[1]", "'\\[' stands where '{' belongs", 0),
        ('{"a": 1, "b": [2', "at character", 1),
        ('{"a": 1 "b": 2}', "stands where ',' belongs", 1),
        ('{"a": 1,', "ends too early", 1),
        ("{1: 2}", "a key is 1", 0),
        ("", "ends too early", 0),
    ],
)
def test_broken_json_gives_what_came_before_and_names_the_place(text, why, before):
    pairs = read_pairs([text.encode()], source="File 'x'")
    seen = []
    with pytest.raises(RequestError, match=why) as caught:
        seen.extend(iter(pairs))
    assert caught.value.given == "File 'x'."
    pairs = read_pairs([text.encode()], source="File 'x'")
    assert [next(pairs) for _ in range(before)] == [("a", 1)][:before]
