"""Spoiled files of sets with boxes that once gave a traceback or silence, found by benchmarks/fuzz_readers.py."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.readers.catalog import read
from lightbox.readers.findings import MAX_NAME
from lightbox.testing.spoiled.box_sets import BOX_SETS
from lightbox.testing.spoiled.sets import write_set


@pytest.fixture
def small(tmp_path):
    """Write a small set and return its folder."""

    def write(name):
        write_set(name, tmp_path / "set", 0)
        return tmp_path / "set"

    return write


def problems(result):
    return [(problem.file.rpartition("/")[2], problem.row, problem.field) for problem in result.problems]


def cut_pixels(file):
    """A PNG whose header is whole and whose pixels break off: looking for EXIF behind them, Pillow stumbles."""
    content = file.read_bytes()
    place = content.index(b"IDAT")
    file.write_bytes(content[: place + 10])


@pytest.mark.parametrize("name", ["coco", "cvat", "kitti"])
def test_an_image_with_a_whole_header_and_half_its_pixels_costs_itself(small, name):
    folder = small(name)
    whole = read(BOX_SETS[name].dataset, folder)
    cut_pixels(next(case for case in whole.cases if any(f.boxes for f in case.findings)).images[0])
    result = read(BOX_SETS[name].dataset, folder)
    assert len(result.cases) == len(whole.cases) - 1
    (problem,) = result.problems
    assert "cannot be measured" in problem.reason


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.timeout(60)  # a pipe that is opened is waited for without end
def test_a_label_file_that_is_no_file_is_a_problem(small, kind):
    folder = small("kitti")
    file = folder / "labels" / "p1.txt"
    file.unlink()
    {"link": lambda: file.symlink_to("nothing"), "pipe": lambda: os.mkfifo(file), "folder": file.mkdir}[kind]()
    assert problems(read("kitti", folder)) == [("p1.txt", "all", "row")]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vindr_cxr", "annotations/annotations_test.csv"),
        ("chestx_det/json", "ChestX_Det_test.json"),
        ("padchest_gr", "master_table.csv"),
        ("pascal_voc", "ImageSets/Main/test.txt"),
    ],
)
def test_a_link_to_nothing_in_the_place_of_a_part_is_refused(small, name, file):
    folder = small(name)
    (folder / file).unlink()
    assert read(BOX_SETS[name].dataset, folder).cases  # without the part, the rest is read
    (folder / file).symlink_to("nothing")
    with pytest.raises(RequestError, match=file.rpartition("/")[2].replace(".", r"\.")):
        read(BOX_SETS[name].dataset, folder)


def test_lists_of_a_voc_set_that_do_not_match_its_annotations_are_counted(small):
    folder = small("pascal_voc")
    lists = folder / "ImageSets" / "Main"
    assert read("pascal_voc", folder).counts["images_in_no_list"] == 0
    (lists / "train.txt").write_text("p0\np1\n")
    assert read("pascal_voc", folder).counts["images_in_no_list"] == 1
    (lists / "train.txt").write_text("p0\np1\np9\n\u2028\n")
    result = read("pascal_voc", folder)
    assert result.counts["listed_images_without_annotation"] == 1
    assert problems(result) == [("train.txt", "4", "row")]
    for file in lists.iterdir():
        file.unlink()
    assert read("pascal_voc", folder).counts["images_in_no_list"] == 0  # there are no lists, so none lacks an image


@pytest.mark.parametrize("name", ["x" * (MAX_NAME + 1), "a\u0007b"])
def test_what_is_no_name_of_a_class_is_a_malformed_row(small, name):
    folder = small("kitti")
    file = folder / "labels" / "p3.txt"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([name + first[first.index(" ") :], *rest]))
    assert problems(read("kitti", folder)) == [("p3.txt", "1", "name")]


def test_blanks_in_the_place_of_boxes_are_no_empty_file(small):
    folder = small("yolo")
    file = folder / "train" / "labels" / "trainp2.txt"
    for content, count in (("", 0), ("\n", 0), ("    ", 1)):
        file.write_text(content)
        assert len(read("yolo", folder).problems) == count


def test_annotations_without_their_images_say_so(small):
    folder = small("coco")
    count = "cases_without_an_image"
    assert read("coco", folder).counts[count] == 0
    for image in (folder / "images").iterdir():
        image.unlink()
    result = read("coco", folder)
    assert result.counts[count] == len(result.cases) > 0


def test_padchest_says_what_its_table_does_not_tell(small):
    folder = small("padchest_gr")
    table = folder / "master_table.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows[1:]]))
    assert read("padchest_gr", folder).counts["images_without_a_table_row"] == 1
    table.write_text("\n".join([header, rows[0].rpartition(",")[0] + ",", *rows[1:]]))
    assert read("padchest_gr", folder).counts["images_without_a_patient"] == 1
    table.write_text(header)
    with pytest.raises(RequestError, match=r"master_table\.csv"):
        read("padchest_gr", folder)


def test_ms_cxr_without_its_column_of_splits_says_so(small):
    folder = small("ms_cxr")
    (file,) = folder.glob("*.csv")
    assert read("ms_cxr", folder).counts["rows_without_a_split"] == 0
    file.write_text(file.read_text().replace(",split", ",other"))
    assert read("ms_cxr", folder).counts["rows_without_a_split"] == 6


def test_a_text_that_is_no_utf_8_costs_its_row_of_parquet_alone(small):
    file = small("chestx_det/parquet") / "train-00000.parquet"
    table = pq.read_table(file)
    values = [value.encode() for value in table.column("annotation_json").to_pylist()]
    values[1] = b"\xb2" + values[1]
    data = pa.array(values, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(data), data.buffers())
    pq.write_table(table.set_column(table.column_names.index("annotation_json"), "annotation_json", text), file)
    result = read("chestx_det", file.parent)
    assert problems(result) == [("train-00000.parquet", "2", "annotation_json")]
    assert len(result.cases) == 3


@pytest.mark.parametrize("kind", ["checksum", "cmyk"])
def test_a_damaged_mask_is_a_problem_and_no_other_box(small, kind):
    folder = small("covid_cxr_masks")
    mask = folder / "p1m0.png"
    if kind == "checksum":
        content = bytearray(mask.read_bytes())
        content[content.index(b"IDAT") - 8] ^= 1  # the checksum of the header
        mask.write_bytes(content)
    else:
        with Image.open(mask) as image:
            size = image.size
        stream = io.BytesIO()
        Image.fromarray(np.full((size[1], size[0], 4), 9, np.uint8), mode="CMYK").save(stream, "JPEG")
        mask.write_bytes(stream.getvalue())
    (problem,) = read("covid_cxr_masks", folder).problems
    assert "mask" in problem.reason
