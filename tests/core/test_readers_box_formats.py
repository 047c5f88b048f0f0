"""COCO, Pascal VOC, CVAT, YOLO and KITTI: one golden image each, every field written out, and malformed rows."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lightbox.cli.data import app
from lightbox.errors import RequestError
from lightbox.readers.catalog import read
from lightbox.readers.images import load_image
from lightbox.records import Box, Finding

CELL = Box(0.1, 0.2, 0.5, 0.6)  # 10..50 x 10..30 pixels of 100 x 50
VOC_OBJECT = "<object><name>cell</name><part><name>head</name></part><bndbox>{}</bndbox></object>"
VOC_EDGES = "<xmin>10</xmin><ymin>10</ymin><xmax>50</xmax><ymax>30</ymax>"


def picture(path, size_wh=(100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size_wh, 90).save(path)
    return path


def problems(result):
    return [(problem.file.rpartition("/")[2], problem.row, problem.field) for problem in result.problems]


def coco(annotations, images=({"id": 7, "file_name": "a.png", "width": 100, "height": 50},), names=("cell", "dust")):
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=3)]
    return json.dumps({"images": list(images), "annotations": annotations, "categories": categories})


COCO_BOX = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 20], "iscrowd": 0}


def test_coco_golden_with_a_class_that_is_absent(tmp_path):
    image = picture(tmp_path / "pictures" / "a.png")
    other = {**COCO_BOX, "id": 2, "bbox": [0, 0, 100, 50]}
    (tmp_path / "instances_train.json").write_text(coco([COCO_BOX, other, COCO_BOX]))
    (tmp_path / "notes.json").write_text("[]")
    result = read("coco", tmp_path)
    (case,) = result.cases
    assert (case.id, case.split, case.images, case.patient_id) == ("a", "train", (image,), None)
    assert case.findings == (Finding("cell", boxes=(CELL, Box(0, 0, 1, 1))), Finding("dust", present=False))
    assert result.problems == ()
    counts = {"boxes": 2, "boxes_repeated": 1, "findings_present": 1, "findings_absent": 1, "box_rows": 3}
    assert counts.items() <= result.counts.items()
    assert result.counts["json_files_of_another_kind"] == 1
    assert read("coco", tmp_path, "train").cases == result.cases
    with pytest.raises(RequestError, match="split 'test'"):
        read("coco", tmp_path, "test")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bbox": [10, 10, -40, 20]}, "bbox"),
        ({"bbox": [10, 10, 0, 20]}, "bbox"),
        ({"bbox": [90, 10, 40, 20]}, "bbox"),
        ({"bbox": [10, 10, 40]}, "bbox"),
        ({"bbox": [10, 10, 40, None]}, "bbox"),
        ({"bbox": None}, "bbox"),
        ({"category_id": 99}, "category_id"),
        ({"image_id": 99}, "image_id"),
    ],
)
def test_a_malformed_coco_box_costs_itself_and_what_would_be_absent(tmp_path, change, field):
    picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(coco([{**COCO_BOX, **change}, COCO_BOX]))
    result = read("coco", tmp_path)
    assert problems(result) == [("a.json", "annotations 1", field)]
    assert result.cases[0].findings[0] == Finding("cell", boxes=(CELL,))
    # the row may have been the missing class, unless it was of no image at all
    assert len(result.cases[0].findings) == (2 if field == "image_id" else 1)


def test_a_coco_crowd_is_no_object_and_nothing_is_called_absent(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(coco([{**COCO_BOX, "iscrowd": 1}, COCO_BOX]))
    result = read("coco", tmp_path)
    assert result.cases[0].findings == (Finding("cell", boxes=(CELL,)),)
    assert result.counts["boxes_of_crowds"] == 1


def test_an_image_of_another_size_is_one_problem_and_its_boxes_are_counted(tmp_path):
    picture(tmp_path / "a.png", (100, 60))
    picture(tmp_path / "b.png")
    images = [{"id": n, "file_name": f"{name}.png", "width": 100, "height": 50} for n, name in ((7, "a"), (8, "b"))]
    (tmp_path / "a.json").write_text(coco([COCO_BOX, COCO_BOX, {**COCO_BOX, "image_id": 8}], images))
    result = read("coco", tmp_path)
    assert problems(result) == [("a.json", "images 1", "file_name")]
    assert "100 x 60 pixels, but the annotation says 100 x 50" in result.problems[0].reason
    assert [case.id for case in result.cases] == ["b"]
    assert result.counts["boxes_of_malformed_images"] == 2


@pytest.mark.parametrize("name", ["../a.png", "b.png", "/a.png"])
def test_an_image_that_is_not_there_or_outside_is_a_problem(tmp_path, name):
    picture(tmp_path / "a.png")
    images = [
        {"id": 7, "file_name": name, "width": 100, "height": 50},
        {"id": 8, "file_name": "a.png", "width": 100, "height": 50},
    ]
    (tmp_path / "a.json").write_text(coco([], images))
    assert problems(read("coco", tmp_path)) == [("a.json", "images 1", "file_name")]


def test_an_image_of_one_name_in_two_folders_is_not_guessed(tmp_path):
    picture(tmp_path / "one" / "a.png")
    picture(tmp_path / "two" / "a.png")
    (tmp_path / "a.json").write_text(
        coco([], [{"id": n, "file_name": f, "width": 100, "height": 50} for n, f in ((1, "a.png"), (2, "two/a.png"))])
    )
    result = read("coco", tmp_path)
    assert "more than one member" in result.problems[0].reason
    assert [case.images for case in result.cases] == [(tmp_path / "two" / "a.png",)]


def test_images_in_a_zip_file_are_read_in_place_and_annotations_alone_too(tmp_path):
    (tmp_path / "a.json").write_text(coco([COCO_BOX]))
    (case,) = read("coco", tmp_path).cases
    assert (case.images, case.findings[0].boxes) == ((), (CELL,))
    inside = picture(tmp_path / "away" / "a.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(inside, "deep/a.png")
    inside.unlink()
    (case,) = read("coco", tmp_path).cases
    assert load_image(case.images[0]).shape == (50, 100)


def test_images_of_16_bits_are_measured_and_loaded(tmp_path):
    Image.fromarray(np.arange(5000, dtype=np.uint16).reshape(50, 100) * 13).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(coco([COCO_BOX]))
    (case,) = read("coco", tmp_path).cases
    loaded = load_image(case.images[0])
    assert (loaded.dtype, loaded.min(), loaded.max()) == (np.uint8, 0, 255)


def voc(root, objects, size="<width>100</width><height>50</height>", name="a"):
    folder = root / "SET" / "Annotations"
    folder.mkdir(parents=True, exist_ok=True)
    body = "\n".join(objects)
    text = f"<annotation><filename>{name}.png</filename><size>{size}</size>\n{body}</annotation>"
    (folder / f"{name}.xml").write_text(text)
    picture(root / "SET" / "JPEGImages" / f"{name}.png")


def test_voc_golden_with_split_and_absence(tmp_path):
    voc(tmp_path, [VOC_OBJECT.format(VOC_EDGES)])
    voc(tmp_path, [VOC_OBJECT.format(VOC_EDGES).replace("cell", "dust")], name="b")
    lists = tmp_path / "SET" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, stem in (("train", "a\n"), ("val", "b 1\n"), ("test", "")):
        (lists / f"{split}.txt").write_text(stem)
    result = read("pascal_voc", tmp_path)
    assert [(case.id, case.split) for case in result.cases] == [("a", "train"), ("b", "validation")]
    assert result.cases[0].findings == (Finding("cell", boxes=(CELL,)), Finding("dust", present=False))
    assert result.cases[0].images == (tmp_path / "SET" / "JPEGImages" / "a.png",)
    assert [case.id for case in read("bccd", tmp_path, "validation").cases] == ["b"]
    with pytest.raises(RequestError, match=r"There is no ImageSets/Main/test\.txt"):
        read("pascal_voc", tmp_path, "test")


def test_voc_counted_from_one_begins_a_pixel_earlier(tmp_path):
    voc(tmp_path, [VOC_OBJECT.format(VOC_EDGES)])
    (case,) = read("pascal_voc", tmp_path, counts_from_one=True).cases
    assert case.findings[0].boxes == (Box(0.09, 0.18, 0.5, 0.6),)


def test_malformed_voc_objects_name_their_line_and_the_rest_is_read(tmp_path):
    half = VOC_EDGES.replace("<xmax>50</xmax>", "")
    twice = VOC_EDGES + "<xmin>11</xmin>"
    words = VOC_EDGES.replace("10", "ten", 1)
    nameless = VOC_OBJECT.format(VOC_EDGES).replace("cell", " ")
    objects = [VOC_OBJECT.format(edges) for edges in (half, VOC_EDGES, twice, words)]
    voc(tmp_path, [*objects, nameless, "<object><name>cell</name></object>"])
    result = read("pascal_voc", tmp_path)
    assert problems(result) == [
        ("a.xml", "line 2", "xmax"),
        ("a.xml", "line 4", "xmin"),
        ("a.xml", "line 5", "xmin"),
        ("a.xml", "line 6", "name"),
        ("a.xml", "line 7", "bndbox"),
    ]
    assert result.cases[0].findings == (Finding("cell", boxes=(CELL,)),)


@pytest.mark.parametrize(
    ("size", "field"),
    [
        ("<width>100</width><height>51</height>", "filename"),
        ("<width>0</width><height>50</height>", "width"),
        ("<width>100</width>", "height"),
    ],
)
def test_a_voc_file_with_a_wrong_size_is_a_problem_and_the_next_is_read(tmp_path, size, field):
    voc(tmp_path, [VOC_OBJECT.format(VOC_EDGES)], size)
    voc(tmp_path, [VOC_OBJECT.format(VOC_EDGES)], name="b")
    result = read("pascal_voc", tmp_path)
    assert problems(result) == [("a.xml", "all", field)]
    assert [case.id for case in result.cases] == ["b"]


def test_a_broken_xml_among_many_is_a_problem_of_its_own(tmp_path):
    voc(tmp_path, [VOC_OBJECT.format(VOC_EDGES)])
    (tmp_path / "SET" / "Annotations" / "broken.xml").write_text("<annotation>")
    result = read("pascal_voc", tmp_path)
    assert problems(result) == [("broken.xml", "all", "row")]
    assert len(result.cases) == 1


CVAT = """<annotations><meta><task><labels><label><name>cell</name></label><label><name>dust</name></label></labels>
</task></meta><image id="0" name="a.png" width="100" height="50">
<box label="cell" xtl="10.0" ytl="10" xbr="50" ybr="30"/>
{}
</image></annotations>"""


def test_cvat_golden_and_what_is_no_box(tmp_path):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "a.xml").write_text(CVAT.format(""))
    (case,) = read("cvat", tmp_path).cases
    assert case.findings == (Finding("cell", boxes=(CELL,)), Finding("dust", present=False))
    (tmp_path / "a.xml").write_text(CVAT.format('<polygon label="dust" points="1,1;2,2;3,1"/>'))
    result = read("cvat", tmp_path)
    assert result.cases[0].findings == (Finding("cell", boxes=(CELL,)),)
    assert result.counts["shapes_that_are_no_boxes"] == 1


@pytest.mark.parametrize(
    ("box", "field"),
    [
        ('<box label="cell" xtl="50" ytl="10" xbr="10" ybr="30"/>', "box"),
        ('<box label="cell" xtl="10" ytl="10" xbr="50"/>', "ybr"),
        ('<box xtl="10" ytl="10" xbr="50" ybr="30"/>', "label"),
        ('<bo label="cell" xtl="10" ytl="10" xbr="50" ybr="30"/>', "shape"),
    ],
)
def test_malformed_cvat_boxes_name_their_line(tmp_path, box, field):
    picture(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(CVAT.format(box))
    result = read("cvat", tmp_path)
    assert problems(result) == [("a.xml", "line 4", field)]
    assert result.cases[0].findings == (Finding("cell", boxes=(CELL,)),)


def yolo(root, text, names="cell\ndust\n"):
    picture(root / "train" / "images" / "a.png")
    (root / "train" / "labels").mkdir(exist_ok=True)
    (root / "train" / "labels" / "a.txt").write_text(text)
    if names:
        (root / "classes.txt").write_text(names)


def test_yolo_golden_with_an_empty_and_a_missing_file(tmp_path):
    yolo(tmp_path, "0 0.3 0.4 0.4 0.4\n")
    picture(tmp_path / "train" / "images" / "b.png")
    picture(tmp_path / "train" / "images" / "c.png")
    (tmp_path / "train" / "labels" / "b.txt").write_text("")
    result = read("yolo", tmp_path)
    first, second = result.cases
    assert (first.id, first.split, second.id) == ("a", "train", "b")
    (box,) = first.findings[0].boxes
    assert np.allclose(box, CELL)
    assert first.findings[1] == Finding("dust", present=False)
    assert second.findings == (Finding("cell", present=False), Finding("dust", present=False))
    assert result.counts["images_without_a_file"] == 1


def test_yolo_without_names_of_classes_asks_for_them(tmp_path):
    yolo(tmp_path, "1 0.3 0.4 0.4 0.4", names="")
    with pytest.raises(RequestError, match="option classes"):
        read("yolo", tmp_path)
    (case,) = read("yolo", tmp_path, classes="cell, dust").cases
    assert [finding.name for finding in case.findings if finding.present] == ["dust"]
    with pytest.raises(RequestError, match="option classes"):
        read("yolo", tmp_path, classes="cell,,dust")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("0 30 20 40 20", "x"),
        ("0 0.9 0.4 0.4 0.4", "box"),
        ("0 0.3 0.4 0 0.4", "box"),
        ("0 0.3 0.4 -0.4 0.4", "box"),
        ("0 0.3 0.4 0.4", "row"),
        ("2 0.3 0.4 0.4 0.4", "class"),
        ("0.5 0.3 0.4 0.4 0.4", "class"),
        ("-1 0.3 0.4 0.4 0.4", "class"),
        ("0 0.3 nan 0.4 0.4", "y"),
        ("cell 0.3 0.4 0.4 0.4", "class"),
    ],
)
def test_malformed_yolo_lines_are_problems_and_the_rest_is_read(tmp_path, line, field):
    yolo(tmp_path, f"{line}\n0 0.3 0.4 0.4 0.4\n")
    result = read("yolo", tmp_path)
    assert problems(result) == [("a.txt", "1", field)]
    assert len(result.cases[0].findings) == 1


def test_kitti_golden_and_a_region_that_nobody_annotated(tmp_path):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    line = "{} 0 0 0 10 10 50 30 0 0 0 0 0 0 0\n"
    (tmp_path / "labels" / "a.txt").write_text(line.format("cell"))
    assert read("kitti", tmp_path).cases[0].findings == (Finding("cell", boxes=(CELL,)),)
    (tmp_path / "labels" / "a.txt").write_text(line.format("cell") + line.format("DontCare") + "cell 1 2\n")
    result = read("kitti", tmp_path)
    assert result.counts["regions_without_annotation"] == 1
    assert problems(result) == [("a.txt", "3", "row")]


def test_a_folder_without_annotations_is_refused_with_what_belongs_there(tmp_path):
    picture(tmp_path / "a.png")
    for name, reason in {
        "coco": "images, annotations, categories",
        "pascal_voc": "Annotations",
        "cvat": r"\*\.xml",
        "kitti": "labels",
    }.items():
        with pytest.raises(RequestError, match=reason):
            read(name, tmp_path)


def test_command_line_validates_shows_and_draws_boxes(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(coco([COCO_BOX, {**COCO_BOX, "bbox": [1]}]))
    runner = CliRunner()
    result = runner.invoke(app, ["validate", "coco", "--root", str(tmp_path)])
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "boxes: 1" in said
    assert "row annotations 2, field 'bbox'" in said
    shown = runner.invoke(app, ["show", "coco", "--root", str(tmp_path)])
    assert shown.exit_code == 0
    assert "cell" not in shown.stdout  # whoever's data: ids alone
    drawn = runner.invoke(app, ["render", "coco", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    assert drawn.exit_code == 0
    pixels = np.asarray(Image.open(tmp_path / "out" / "0000.png"))
    assert (pixels[29, 10:50] == (255, 176, 0)).all()  # half-open: the last row inside
