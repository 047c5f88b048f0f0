"""Members of zip files: found by name, read in place, refused where they lead outside; SLAKE from its imgs.zip."""

import hashlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.files import file_sha256
from lightbox.readers.catalog import read
from lightbox.readers.images import load_image
from lightbox.readers.members import open_archive
from lightbox.readers.rows import Gathering, RowError
from lightbox.readers.stores import find_store, image_size_wh, zip_store
from lightbox.readers.validate import validate
from lightbox.records import Box


def picture(value=7, size=(20, 10), kind="PNG", **options):
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, kind, **options)
    return stream.getvalue()


def pack(file, members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file


@pytest.fixture
def rows():
    return Gathering("test", "none")


def test_member_is_found_by_the_end_of_its_name_and_read_in_place(tmp_path, rows):
    file = pack(tmp_path / "a.zip", [("top/figures/a.png", picture(9)), ("top/figures/b/c.png", picture(8))])
    store = zip_store(file, rows)
    path = store.path("a.png", "image")
    assert path == file / "top" / "figures" / "a.png"
    assert store.path("b/c.png", "image") == file / "top" / "figures" / "b" / "c.png"
    assert load_image(path).tolist() == np.full((10, 20), 9).tolist()
    assert file_sha256(path) == hashlib.sha256(picture(9)).hexdigest()
    assert image_size_wh(path) == (20, 10)
    assert path.is_file()
    assert not (path.parent / "d.png").is_file()
    assert sorted(tmp_path.iterdir()) == [file]  # nothing was unpacked


def test_size_of_a_member_is_that_of_the_upright_image(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    file = pack(tmp_path / "a.zip", [("a.jpg", picture(kind="JPEG", exif=turned)), ("b.jpg", b"\xff\xd8\xff none")])
    assert image_size_wh(file / "a.jpg") == (10, 20) == load_image(file / "a.jpg").shape[::-1]
    with pytest.raises(RequestError, match="Its header cannot be read"):
        image_size_wh(file / "b.jpg")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.png", "names no member of a.zip"),
        ("x.png", "names more than one member of a.zip"),
        ("../a.png", "does not name a file inside the image folder"),
        ("/a.png", "does not name a file inside the image folder"),
    ],
)
def test_row_that_names_no_single_member_inside_is_refused(tmp_path, rows, name, reason):
    file = pack(tmp_path / "a.zip", [("one/x.png", b"1"), ("two/x.png", b"2"), ("../a.png", b"3")])
    with pytest.raises(RowError, match=reason):
        zip_store(file, rows).path(name, "image")


def test_whole_name_wins_over_the_end_of_another(tmp_path, rows):
    file = pack(tmp_path / "a.zip", [("one/x.png", b"1"), ("x.png", b"2")])
    assert zip_store(file, rows).path("x.png", "image") == file / "x.png"


def test_members_that_lead_outside_or_stand_twice_are_counted_and_the_rest_is_read(tmp_path, rows):
    file = tmp_path / "a.zip"
    names = ["../out.png", "/root.png", "..\\win.png", "a.png", "__MACOSX/._a.png", "folder/"]
    with pytest.warns(UserWarning, match="Duplicate name"):
        pack(file, [*((name, picture()) for name in names), ("a.png", picture(99))])
    store = zip_store(file, rows)
    assert [(p.file, p.row, p.field, p.reason.split(",")[0]) for p in rows.problems] == [
        (str(file), "../out.png", "member", "leads outside the zip file"),
        (str(file), "/root.png", "member", "leads outside the zip file"),
        (str(file), "..\\win.png", "member", "leads outside the zip file"),
        (str(file), "a.png", "member", "stands twice in the zip file; the first is kept"),
    ]
    assert rows.counts["zip_members"] == 5
    assert load_image(store.path("a.png", "image"))[0, 0] == 7


def test_names_written_with_backslashes_are_found(tmp_path, rows):
    file = pack(tmp_path / "a.zip", [("images\\a.png", picture(3))])
    assert load_image(zip_store(file, rows).path("a.png", "image"))[0, 0] == 3


def test_file_that_is_no_zip_and_a_damaged_or_missing_member_are_said_in_three_parts(tmp_path, rows):
    (tmp_path / "none.zip").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(RequestError, match=r"none\.zip'\. It cannot be read as a zip file: .*Git LFS pointer"):
        zip_store(tmp_path / "none.zip", rows)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", picture())
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"IDAT")] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(RequestError, match=r"a\.png'\. The member cannot be read: Bad CRC"):
        load_image(tmp_path / "a.zip" / "a.png")
    with pytest.raises(RequestError, match=r"b\.png'\. The zip file has no such member"):
        load_image(tmp_path / "a.zip" / "b.png")


def test_encrypted_member_is_refused(tmp_path):
    file = pack(tmp_path / "a.zip", [("a.png", picture())])
    content = bytearray(file.read_bytes())
    for place in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[place] |= 1
    file.write_bytes(content)
    with pytest.raises(RequestError, match="The member cannot be read: .*encrypted"):
        load_image(file / "a.png")


def test_folder_named_like_a_zip_file_is_a_folder(tmp_path):
    (tmp_path / "a.zip").mkdir()
    (tmp_path / "a.zip" / "a.png").write_bytes(picture(5))
    assert load_image(tmp_path / "a.zip" / "a.png")[0, 0] == 5


def test_replaced_zip_file_and_forked_process_open_it_anew(tmp_path):
    file = pack(tmp_path / "a.zip", [("a.png", picture(1))])
    first = open_archive(file)
    assert open_archive(file) is first
    child = os.fork()
    if child == 0:
        os._exit(0 if open_archive(file) is not first and load_image(file / "a.png")[0, 0] == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    pack(file, [("b.png", picture(2))])
    assert load_image(file / "b.png")[0, 0] == 2


def test_folder_with_something_in_it_comes_before_the_zip_file(tmp_path, rows):
    file = pack(tmp_path / "images.zip", [("a.png", picture())])
    (tmp_path / "images").mkdir()
    wanted = {"folders": ("images",), "zips": ("images.zip",)}
    assert find_store(tmp_path, rows, **wanted).root == file
    (tmp_path / "images" / "a.png").write_bytes(picture())
    assert find_store(tmp_path, rows, **wanted).root == tmp_path / "images"
    assert find_store(tmp_path / "images", rows, **wanted).root == tmp_path / "images"


SLAKE = {
    "img_id": 8,
    "img_name": "xmlab8/source.jpg",
    "question": "Is it a liver?",
    "answer": "Yes",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "CLOSED",
    "base_type": "vqa",
    "content_type": "Organ",
    "triple": ["vhead", "_", "_"],
    "qid": 11,
}
MISSING = {**SLAKE, "img_id": 9, "img_name": "xmlab9/source.jpg", "qid": 12}


@pytest.fixture
def slake(tmp_path):
    mask = np.zeros((10, 20), np.uint8)
    mask[3:5, 2:6] = 70
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    pack(
        tmp_path / "imgs.zip",
        [
            ("imgs/xmlab8/source.jpg", picture(90, kind="JPEG")),
            ("imgs/xmlab8/detection.json", '[{"Liver": [2, 3, 4, 2]}, {"Spleen": [19, 3, 4, 2]}]'),
            ("imgs/xmlab8/mask.png", stream.getvalue()),
            ("__MACOSX/imgs/xmlab8/._source.jpg", b"notes"),
        ],
    )
    (tmp_path / "train.json").write_text(json.dumps([SLAKE, MISSING]))
    (tmp_path / "test.json").write_text(json.dumps([{**SLAKE, "question": "Is it red?"}]))
    return tmp_path


def test_slake_zip_golden_with_boxes_and_masks(slake):
    result = read("slake", slake, use_masks=True)
    train, test = result.cases
    assert train.images == (slake / "imgs.zip" / "imgs" / "xmlab8" / "source.jpg",) == test.images
    (liver,) = train.findings
    assert (liver.name, liver.boxes, int(liver.mask.sum())) == ("Liver", (Box(0.1, 0.3, 0.3, 0.5),), 8)
    assert [(p.file.rpartition("/")[2], p.row, p.field) for p in result.problems] == [
        ("train.json", "2", "img_name"),
        ("detection.json", "2", "Spleen"),
        ("detection.json", "2", "Spleen"),  # of the case of each split
    ]
    assert "names no member of imgs.zip" in result.problems[0].reason


def test_slake_zip_validates_like_its_folder(slake):
    found = validate("slake", slake)
    assert (found.questions, found.images, found.malformed, found.unreadable_images) == (2, 1, 3, 0)
    assert found.duplicate_ids == ("11",)
    assert found.leakage[0].images_shared == 1
    (slake / "train.json").write_text(json.dumps([SLAKE]))  # a folder learns of a missing image by decoding alone
    with zipfile.ZipFile(slake / "imgs.zip") as archive:
        archive.extractall(slake)
    unpacked = validate("slake", slake)
    assert unpacked.counts == found.counts
    assert [leak.images_shared for leak in unpacked.leakage] == [1]
