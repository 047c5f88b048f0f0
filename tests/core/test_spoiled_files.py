"""Spoiled files that once gave a traceback, a hang or silence, found by benchmarks/fuzz_readers.py."""

import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.readers import validate as validation
from lightbox.readers.all_sets import read_dataset
from lightbox.readers.catalog import read
from lightbox.readers.members import open_archive
from lightbox.readers.rows import MAX_TEXT, is_finite, shown
from lightbox.readers.validate import validate
from lightbox.testing.spoiled.pictures import PNG, chunk
from lightbox.testing.spoiled.sets import SETS, write_set
from lightbox.testing.spoiled.trial import BAD, keeps_form, run_trial

HUGE = 10**399


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def small(tmp_path):
    """Write a small set and return its folder."""

    def write(name):
        write_set(name, tmp_path / "set", 0)
        return tmp_path / "set"

    return write


def rewrite(file, change):
    rows = json.loads(file.read_text())
    change(rows)
    file.write_text(json.dumps(rows))


def problems(result):
    return [(problem.row, problem.field) for problem in result.problems]


@pytest.mark.parametrize(
    ("name", "file", "field"),
    [
        ("vqa_rad/public", "VQA_RAD Dataset Public.json", "answer"),
        ("vqa_rad/public", "VQA_RAD Dataset Public.json", "qid"),
        ("slake/folder", "train.json", "answer_type"),
        ("omnimedvqa/folder", "QA_information/Open-access/Shapes.json", "question"),
    ],
)
def test_number_of_400_digits_is_a_malformed_row_and_the_rest_is_read(small, name, file, field):
    folder = small(name)
    whole = read(SETS[name].dataset, folder).counts["questions"]
    rewrite(folder / file, lambda rows: rows[1].update({field: -HUGE}))
    result = read(SETS[name].dataset, folder)
    assert problems(result) == [("2", field)]
    assert len(result.problems[0].reason) < 120
    assert result.counts["questions"] == whole - 1


def test_number_of_400_digits_in_json_lines_an_index_and_a_box_is_malformed_too(small, tmp_path):
    folder = small("medxpertqa_mm/folder")
    first, *rest = (folder / "MM" / "dev.jsonl").read_text().splitlines()
    (folder / "MM" / "dev.jsonl").write_text("\n".join([json.dumps({**json.loads(first), "id": HUGE}), *rest]))
    assert problems(read("medxpertqa_mm", folder)) == [("1", "id")]
    item = {"question": "q?", "choices": ["yes", "no"], "answer": HUGE, "solution": "s", "image": "a.png"}
    (tmp_path / "trainset.json").write_text(json.dumps({"1": item, "2": {**item, "answer": 0}}))
    result = read("r_rad", tmp_path)
    assert problems(result) == [("1", "answer")]
    assert len(result.problems[0].reason) < 150


def test_boxes_of_huge_numbers_and_names_that_are_no_text_are_malformed(small):
    folder = small("slake/folder")
    file = folder / "imgs" / "xmlab0" / "detection.json"
    good = json.loads(file.read_text())
    near = int(1.7e308)  # two of them add up to more than a float holds
    bad = [{"Liver": [HUGE, 1, 2, 2]}, {"Liver": [near, 1, near, 2]}, {"\ud800": [1, 1, 2, 2]}, {"x" * 20_001: [1] * 4}]
    file.write_text(json.dumps([*good, *bad]))
    result = read("slake", folder)
    boxes = [problem for problem in result.problems if problem.file == str(file)]
    assert [problem.row for problem in boxes[:4]] == ["3", "4", "5", "6"]
    assert all(str(problem).isprintable() and len(problem.field) < 100 for problem in boxes)
    assert len(result.cases[0].findings) == 2


def test_finite_numbers_are_those_that_a_float_holds():
    assert [is_finite(value) for value in (0, -2.5, 10**300, 1.7e308)] == [True] * 4
    assert not any(is_finite(value) for value in (HUGE, -HUGE, float("nan"), float("inf"), True, None, "1"))


def other_things(file):
    """What may stand in the place of a file, each made and taken away again."""
    yield "folder", file.mkdir, file.rmdir
    yield "link to itself", lambda: file.symlink_to(file.name), file.unlink
    yield "link to nothing", lambda: file.symlink_to("nothing-here"), file.unlink
    yield "device", lambda: file.symlink_to(os.devnull), file.unlink
    yield "pipe", lambda: os.mkfifo(file), file.unlink


@pytest.mark.timeout(60)  # a pipe that is opened is waited for without end
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vqa_rad/public", "VQA_RAD Dataset Public.json"),
        ("vqa_rad/parquet", "data/test-00000-of-00001.parquet"),
        ("slake/folder", "test.json"),
        ("slake/zip", "imgs.zip"),
        ("r_rad", "open-end/testset.json"),
        ("pmc_vqa/v1", "test.csv"),
        ("pmc_vqa/v2", "images_2.zip"),
        ("omnimedvqa/zip", "OmniMedVQA.zip"),
        ("medxpertqa_mm/zip", "MM/dev.jsonl"),
        ("preference_json", "pairs.json"),
        ("vqa_med_2019/test", "VQAMed2019_Test_Questions_w_Ref_Answers.txt"),
    ],
)
def test_what_stands_in_the_place_of_a_file_is_refused_and_not_passed_over(small, name, path):
    """Such a split was left out without a word; a pipe was waited for."""
    folder = small(name)
    if name == "vqa_med_2019/test":  # beside a split that is sound
        (folder / "All_QA_Pairs_train.txt").write_text("synpic1|what?|this\n")
    if name == "vqa_rad/public":
        (folder / "trainset.json").write_bytes((folder / path).read_bytes())
    (folder / path).unlink()
    for what, make, remove in other_things(folder / path):
        make()
        with pytest.raises(RequestError) as caught:
            read_dataset(SETS[name].dataset, folder)
        assert str(folder / path) in caught.value.given, what
        remove()


@pytest.mark.parametrize("path", ["imgs/xmlab0/mask.png", "imgs/xmlab0/detection.json"])
def test_what_stands_in_the_place_of_a_mask_or_of_boxes_is_a_problem(small, path):
    folder = small("slake/folder")
    (folder / path).unlink()
    for what, make, remove in other_things(folder / path):
        make()
        result = read("slake", folder, use_masks=True)
        assert {problem.file for problem in result.problems} == {str(folder / path)}, what
        assert result.counts["questions"] == 12
        remove()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("slake/by image", "imgs/xmlab1"),
        ("pmc_vqa/v1", "images"),
        ("r_rad", "open-end"),
        ("preference_json", "images"),
    ],
)
def test_file_in_the_place_of_a_folder_is_refused(small, name, path):
    folder = small(name)
    shutil.rmtree(folder / path)
    (folder / path).write_bytes(b"no folder")
    with pytest.raises(RequestError) as caught:
        read_dataset(SETS[name].dataset, folder)
    assert str(folder / path) in caught.value.given


def test_image_name_longer_than_a_file_system_allows_gives_an_unreadable_image(small):
    folder = small("slake/folder")
    rewrite(folder / "train.json", lambda rows: rows[0].update(img_id="long", img_name="x/" * 3000 + "source.jpg"))
    found = validate("slake", folder)
    assert (found.malformed, found.unreadable_images) == (0, 1)


@pytest.mark.parametrize(
    ("name", "file", "field"),
    [
        ("slake/folder", "train.json", "content_type"),
        ("slake/folder", "train.json", "triple"),
        ("slake/folder", "train.json", "q_lang"),
        ("vqa_rad/public", "VQA_RAD Dataset Public.json", "image_case_url"),
        ("omnimedvqa/folder", "QA_information/Open-access/Forms.json", "option_C"),
    ],
)
def test_optional_field_that_other_rows_have_is_counted_where_it_lacks(small, name, file, field):
    """A key that was misspelled passed for one that the source never had."""
    folder = small(name)
    assert f"rows_without_{field}" not in read(SETS[name].dataset, folder).counts
    values = ({}, {field: None}, {field: " "})

    def change(rows):
        for row, value in zip(rows, values, strict=False):
            del row[field]
            row.update(value)

    rewrite(folder / file, change)
    assert read(SETS[name].dataset, folder).counts[f"rows_without_{field}"] == 3


def test_field_that_no_row_has_is_not_counted(small):
    folder = small("slake/folder")
    for name in ("train.json", "test.json"):
        rewrite(folder / name, lambda rows: [row.pop("content_type") for row in rows])
    assert not [name for name in read("slake", folder).counts if name.startswith("rows_without")]


def test_knowledge_triple_that_is_no_list_of_three_is_malformed(small):
    folder = small("slake/folder")
    knowledge = {1: "Liver", 3: ["Liver", "Function"], 5: ["Liver", "Liver", "Function", "_"]}
    rewrite(folder / "train.json", lambda rows: [rows[n].update(triple=triple) for n, triple in knowledge.items()])
    assert problems(read("slake", folder)) == [("2", "triple"), ("4", "triple"), ("6", "triple")]


def test_nul_in_a_text_is_malformed_in_every_form(small, tmp_path):
    folder = small("vqa_med_2019/test")
    file = folder / "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
    file.write_bytes(file.read_bytes().replace(b"picture 1", b"pict\0re 1"))
    assert problems(read("vqa_med_2019", folder)) == [("2", "question")]
    item = {"question": "q?", "choices": ["yes", "n\0"], "answer": 0, "solution": "s", "image": "a.png"}
    (tmp_path / "trainset.json").write_text(json.dumps({"1": item, "2": {**item, "choices": ["yes", "no"]}}))
    assert problems(read("r_rad", tmp_path)) == [("1", "choices")]


def test_key_that_is_no_text_is_malformed_and_named_in_print(tmp_path):
    item = {"question": "q?", "choices": ["yes", "no"], "answer": 0, "solution": "s", "image": "a.png"}
    keys = ["good", "\ud800", "a\x1b[2J", "y" * (MAX_TEXT + 1)]
    (tmp_path / "trainset.json").write_text(json.dumps({**dict.fromkeys(keys, item), "bad\x07": []}))
    result = read("r_rad", tmp_path)
    assert [problem.row for problem in result.problems] == ["'\\ud800'", shown("y" * (MAX_TEXT + 1)), "'bad\\x07'"]
    assert [q.id for case in result.cases for q in case.questions] == ["train-good", "train-a\x1b[2J"]


def png(*parts):
    return PNG + b"".join(parts)


def stored(pixels):
    """IHDR and the compressed lines of a grey PNG; stored and not packed, so that each byte is a pixel."""
    height, width = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), zlib.compress(lines, 0)


PIXELS = np.arange(30, dtype=np.uint8).reshape(5, 6)
HEADER, DATA = stored(PIXELS)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (png(HEADER, chunk(b"IDAT", DATA, crc=7), chunk(b"IEND", b"")), "The checksum of its 'IDAT' chunk is wrong"),
        (png(HEADER, chunk(b"IDAT", DATA)), "It has no end"),
        (png(HEADER, chunk(b"IDAT", DATA), b"\0" * 12), "The checksum of its '\\x00\\x00\\x00\\x00' chunk is wrong"),
    ],
)
def test_png_that_decodes_against_its_checksum_or_without_end_is_unreadable(small, content, why):
    """Pillow decodes each without a word."""
    folder = small("omnimedvqa/folder")
    (folder / "Images" / "Shapes" / "0.png").write_bytes(content)
    found = validate("omnimedvqa", folder)
    assert [reason.rstrip(".") for _, reason in found.unreadable] == [why]
    (folder / "Images" / "Shapes" / "0.png").write_bytes(png(HEADER, chunk(b"IDAT", DATA), chunk(b"IEND", b"")) + b"..")
    assert validate("omnimedvqa", folder).is_ok


def jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


JPEG_PIXELS = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
THUMBNAIL = b"\xff\xe1\x00\x12Exif\0\0\xff\xd8\xff\xda\0\0\xff\xd9"


@pytest.mark.parametrize("segment", [b"", THUMBNAIL, b"\xff\xff"], ids=["plain", "thumbnail", "filled"])
def test_jpeg_whose_tail_is_zeros_is_unreadable(small, segment):
    """The decoder takes zeros for pixels until it has enough, and Pillow says nothing."""
    folder = small("omnimedvqa/folder")
    file = folder / "Images" / "Shapes" / "0.png"
    sound, progressive = (jpeg(JPEG_PIXELS, progressive=choice) for choice in (False, True))
    content = sound[:2] + segment + sound[2:]
    tail = len(content) // 4
    file.write_bytes(content[:-tail] + bytes(tail))
    found = validate("omnimedvqa", folder)
    assert [reason.rstrip(".") for _, reason in found.unreadable] == ["It has no end"]
    for whole in (content, progressive):
        file.write_bytes(whole + b"..")
        assert validate("omnimedvqa", folder).is_ok


def test_mask_that_is_damaged_or_no_8_bit_png_is_a_problem(small):
    folder = small("slake/folder")
    file = folder / "imgs" / "xmlab0" / "mask.png"
    with Image.open(file) as image:
        mask = np.asarray(image)
    header, data = stored(mask)
    jpeg, deep = io.BytesIO(), io.BytesIO()
    Image.fromarray(mask).save(jpeg, "JPEG")
    Image.fromarray(mask.astype(np.uint16)).save(deep, "PNG")
    bad = png(header, chunk(b"IDAT", data, crc=7), chunk(b"IEND", b""))
    for content, why in ((bad, "is damaged"), (jpeg.getvalue(), "no PNG of 8"), (deep.getvalue(), "no PNG of 8")):
        file.write_bytes(content)
        result = read("slake", folder, use_masks=True)
        assert {(p.file, p.field) for p in result.problems} == {(str(file), "mask.png")}
        assert why in result.problems[0].reason
    file.write_bytes(png(header, chunk(b"IDAT", data), chunk(b"IEND", b"")))
    assert read("slake", folder, use_masks=True).problems == ()


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_member_packed_by_another_method_and_damaged_is_unreadable(small, kind):
    """A broken LZMA stream raises an error of its own kind."""
    folder = small("pmc_vqa/v2")
    file = folder / "images_2.zip"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert validate("pmc_vqa", folder).is_ok
    content = bytearray(file.read_bytes())
    start = content.index(b"P1_F1.jpg") + 60
    content[start : start + 40] = random.Random(0).randbytes(40)
    file.write_bytes(content)
    assert validate("pmc_vqa", folder).unreadable_images == 1


@pytest.mark.parametrize(("tag", "less"), [("Rows", 1), ("Columns", 5)])
def test_dicom_whose_header_says_fewer_rows_or_columns_than_it_holds_is_unreadable(small, tag, less):
    """The first pixels of it passed for the whole."""
    folder = small("vqa_rad/dicom")
    file = folder / "images" / "0.dcm"
    dataset = pydicom.dcmread(file)
    pixels = dataset.PixelData
    for extra, unreadable in ((b"\0" * 38, 0), (b"\0" * 40, 1)):  # a row is 40 bytes
        dataset.PixelData = pixels + extra
        dataset.save_as(file)
        assert validate("vqa_rad", folder).unreadable_images == unreadable
    dataset.PixelData = pixels
    dataset[tag].value -= less
    dataset.save_as(file)
    assert validate("vqa_rad", folder).unreadable_images == 1


def test_shard_whose_name_is_no_printable_text_is_refused(small):
    """Ids are made of the name."""
    file = small("path_vqa") / "data" / "train-00000-of-00001.parquet"
    file.rename(os.fsdecode(os.fsencode(file.parent) + b"/train-\xff.parquet"))
    with pytest.raises(RequestError, match="Its name is no printable text"):
        read("path_vqa", file.parent.parent)


def test_member_without_a_name_is_a_problem_and_the_rest_is_read(small):
    folder = small("omnimedvqa/zip")
    file = folder / "OmniMedVQA.zip"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("abcd", b"")
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    struct.pack_into("<HH", content, entry + 28, 0, 4)  # the place of the name becomes an extra field, which is empty
    struct.pack_into("<HH", content, entry + 46, 9, 0)
    file.write_bytes(content)
    result = read("omnimedvqa", folder)
    assert [(problem.row, problem.field) for problem in result.problems] == [("", "member")]
    assert result.counts["questions"] == 12


@pytest.mark.parametrize(
    ("name", "archive", "member"),
    [
        ("slake/zip", "imgs.zip", "imgs/xmlab0/detection.json"),
        ("omnimedvqa/zip", "OmniMedVQA.zip", "OmniMedVQA/QA_information/Open-access/Forms.json"),
    ],
)
def test_folder_in_the_place_of_a_member_is_a_problem(small, name, archive, member):
    folder = small(name)
    with zipfile.ZipFile(folder / archive) as whole:
        members = {each: whole.read(each) for each in whole.namelist()}
    with zipfile.ZipFile(folder / archive, "w") as changed:
        for each, content in members.items():
            changed.writestr(
                zipfile.ZipInfo(f"{each}/") if each == member else each, b"" if each == member else content
            )
    result = read(SETS[name].dataset, folder)
    assert {problem.file for problem in result.problems} == {str(folder / archive / member)}


def test_archive_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(RequestError, match="it is no regular file"):
        open_archive(tmp_path / "a.zip")


def replace_column(file, name, values, *, is_added=False):
    table = pq.read_table(file, partitioning=None)
    place = table.column_names.index(name)
    pq.write_table(table.append_column(name, values) if is_added else table.set_column(place, name, values), file)


def test_parquet_column_that_stands_twice_is_refused(small):
    """Only the last of them was read."""
    folder = small("path_vqa")
    file = folder / "data" / "test-00000-of-00001.parquet"
    replace_column(file, "question", pa.array(["another"] * 6), is_added=True)
    with pytest.raises(RequestError, match="The column question stands twice") as caught:
        read("path_vqa", folder)
    assert str(file) in caught.value.given


SPANS = pa.array([2**62] * 6, pa.duration("s"))


@pytest.mark.parametrize(
    "values",
    [
        SPANS,
        pa.array([2**53] * 6, pa.timestamp("ms")),
        pa.StructArray.from_arrays([SPANS], ["bytes"]),
        pa.FixedSizeListArray.from_arrays(SPANS, 1),
    ],
    ids=["duration", "timestamp", "struct", "list"],
)
@pytest.mark.parametrize("column", ["image", "answer"])
def test_parquet_column_of_times_is_refused(small, values, column):
    """Python's own times hold fewer years than pyarrow's."""
    folder = small("path_vqa")
    replace_column(folder / "data" / "train-00000-of-00001.parquet", column, values)
    with pytest.raises(RequestError, match=f"The column {column} holds times"):
        read("path_vqa", folder)


def test_box_that_stands_twice_is_counted(small):
    folder = small("slake/folder")
    rewrite(folder / "imgs" / "xmlab0" / "detection.json", lambda boxes: boxes.append(boxes[0]))
    result = read("slake", folder)
    assert (result.counts["repeated_boxes"], len(result.cases[0].findings)) == (2, 3)  # of the case of each split
    assert result.problems == ()


def test_question_file_without_a_row_is_refused_and_an_image_without_a_box_is_not(small):
    folder = small("slake/folder")
    (folder / "imgs" / "xmlab0" / "detection.json").write_text("[]")
    assert read("slake", folder).problems == ()
    (folder / "train.json").write_text("[]")
    with pytest.raises(RequestError, match=r"train.json'. It is JSON without a row"):
        read("slake", folder)


def test_image_that_lost_its_boxes_or_mask_is_counted(small):
    folder = small("slake/folder")
    sound = read("slake", folder, use_masks=True).counts
    assert (sound["images_without_boxes"], sound["images_without_masks"]) == (0, 0)
    for name in ("detection.json", "mask.png"):
        (folder / "imgs" / "xmlab0" / name).unlink()
    counts = read("slake", folder, use_masks=True).counts
    assert counts["images_without_boxes"] == counts["images_without_masks"] > 0


# ------------------------------------------------- the judge itself

FOUND = [
    ("vqa_rad/public", 15, "value 400 digits"),
    ("slake/folder", 0, "key gone"),
    ("slake/zip", 0, "lzma"),
    ("slake/by image", 3, "pipe"),
    ("vqa_rad/parquet", 0, "column twice"),
    ("pmc_vqa/v1", 2, "link to nothing"),
    ("omnimedvqa/folder", 0, "pixels against their checksum"),
    ("omnimedvqa/zip", 7016, "member renamed"),
    ("preference_json", 0, "key gone"),
    ("preference_json", 1, "value 400 digits"),
]


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "seed", "change"), FOUND, ids=[f"{name}: {change}" for name, _, change in FOUND])
def test_spoiled_file_is_refused_or_said(work, name, seed, change):
    """A trial of each kind that broke something, through the command line too."""
    outcome = run_trial(name, seed, work, change=change)
    assert outcome.verdict in ("refused", "said"), outcome
    assert outcome == run_trial(name, seed, work, change=change)


def test_judge_names_silence_and_a_traceback(work, monkeypatch):
    monkeypatch.setattr(validation, "pixels_fault", lambda path: "")
    name, change = "omnimedvqa/folder", "pixels against their checksum"
    assert run_trial(name, 0, work, change=change).verdict == "silent"
    monkeypatch.setattr(validation, "pixels_note", lambda path: 1 / 0)
    outcome = run_trial(name, 0, work, change=change)
    assert (outcome.verdict, outcome.detail.partition(" ")[0]) == ("traceback", "ZeroDivisionError:")


def zip_of(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_form_is_kept_where_values_alone_differ(tmp_path):
    def kept(ending, first, second):
        for name, content in (("a", first), ("b", second)):
            (tmp_path / f"{name}{ending}").write_bytes(content)
        return keeps_form(tmp_path / f"a{ending}", tmp_path / f"b{ending}")

    assert kept(".json", b'[{"a": "x"}]', b'[{"a": "y"}]')
    assert not kept(".json", b'[{"a": "x"}]', b'[{"b": "x"}]')
    assert not kept(".json", b'[{"a": "x"}]', b'[{"a": 1}]')
    assert not kept(".json", b'[{"a": "x"}]', b'[{"a": "x"')
    assert kept(".jsonl", b'{"a": 1}\n{"a": 2}\n', b'{"a": 1}\n')
    assert kept(".txt", b"a|b\nc|d\n", b"a|x\n")
    assert not kept(".txt", b"a|b\nc|d\n", b"a|b\nc|\0\n")
    assert not kept(".csv", b"a,b\n", b"a;b\n")
    assert kept(".csv", b'a,b\n"c d",e\n', b'a,b\n"c\n d",e\n')
    assert not kept(".csv", b"a,b\nc,d\n", b"a,b\nc,\nd\n")
    whole = png(HEADER, chunk(b"IDAT", DATA), chunk(b"IEND", b""))
    assert kept(".png", whole, whole)
    assert not kept(".png", whole, whole[:-8])
    assert not kept(".png", whole, whole.replace(DATA[20:24], b"\xff" * 4))
    assert not kept(".parquet", b"PAR1", b"PAR2 cut")
    packed = zip_of({"a.png": whole, "b.csv": b"a,b\nc,d\n"})
    assert kept(".zip", packed, zip_of({"a.png": whole, "b.csv": b"a,b\nc,x\n"}))
    assert not kept(".zip", packed, zip_of({"a.png": whole[:-8], "b.csv": b"a,b\nc,d\n"}))
    assert not kept(".zip", packed, zip_of({"b.csv": b"a,b\nc,d\n"}))
    assert not kept(".zip", packed, packed[:-30])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, small in SETS.items() if not small.folder])
def test_twenty_spoiled_files_of_every_form(work, name):
    """`benchmarks/fuzz_readers.py` runs thousands, over real sets too."""
    outcomes = [run_trial(name, seed, work) for seed in range(1000, 1020)]
    assert [outcome for outcome in outcomes if outcome.verdict in BAD] == []
