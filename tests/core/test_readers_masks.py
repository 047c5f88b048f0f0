"""Masks in files: how a part is decoded, folders of masks, sets with a layout of their own, and every planted fault."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.readers.all_sets import LATER_SETS, read_dataset
from lightbox.readers.catalog import read
from lightbox.readers.dataset_cards import load_dataset_card
from lightbox.readers.mask_audit import with_sound_masks
from lightbox.readers.mask_sets import MASK_SETS
from lightbox.readers.masks import (
    CHECKS,
    MaskedFinding,
    MaskError,
    MaskPart,
    instances_of,
    load_labels,
    mask_of,
    part_mask,
)
from lightbox.readers.pixels import load_pixels
from lightbox.readers.rows import ReadResult
from lightbox.readers.validate import validate
from lightbox.records import Box, Case, Finding, Question, check_case
from lightbox.runs.sources import CHOICES

HEIGHT, WIDTH = 6, 8


def save(file, values, mode=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(values))
    (picture.convert(mode) if mode else picture).save(file)
    return file


def image(file):
    return save(file, np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH))


def region(top, left, *, value=255, size=2):
    """A mask of the image's size with a square of `value`."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[top : top + size, left : left + size] = value
    return values


def problems(result):
    return [(problem.file.rpartition("/")[2], problem.row, problem.field) for problem in result.problems]


# ------------------------------------------------- one mask


@pytest.mark.parametrize("kind", ["L", "1", "P", "RGB", "RGBA", "clear", "LA", "16", "tif"])
def test_a_mask_marks_the_same_pixels_in_every_kind_of_file(tmp_path, kind):
    values = region(1, 3)
    file = tmp_path / ("m.tif" if kind == "tif" else "m.png")
    if kind == "P":
        picture = Image.fromarray((values > 0).astype(np.uint8), "P")
        picture.putpalette([200, 0, 0, 0, 0, 0])  # the background has a colour, the class is painted black
        picture.save(file)
    elif kind == "clear":  # colour everywhere, and only the region can be seen
        save(file, np.dstack([np.full_like(values, 90)] * 3 + [values]))
    elif kind == "16":
        save(file, (values > 0).astype(np.uint16) * 300)
    else:
        save(file, values, mode=None if kind in ("L", "tif") else kind)
    assert (part_mask(MaskPart(file), (WIDTH, HEIGHT)) == (values > 0)).all()


def test_labels_are_read_as_stored(tmp_path):
    values = np.array([[0, 1, 2], [255, 3, 0]], np.uint8)
    assert (load_labels(save(tmp_path / "a.png", values)) == values).all()
    assert part_mask(MaskPart(tmp_path / "a.png", (1, 3)), None).tolist() == [
        [False, True, False],
        [False, True, False],
    ]


def test_a_soft_mask_ends_at_half_of_white_and_a_mask_of_one_bit_has_no_edge(tmp_path):
    values = np.array([[0, 90, 127, 128, 255]], np.uint8)
    soft = MaskPart(save(tmp_path / "a.png", values), is_soft=True)
    assert part_mask(soft, None).tolist() == [[False, False, False, True, True]]
    bit = MaskPart(save(tmp_path / "b.png", values > 100), is_soft=True)
    assert part_mask(bit, None).tolist() == [[False, False, True, True, True]]


def test_a_crop_is_placed_into_its_image_of_any_shape(tmp_path):
    part = MaskPart(save(tmp_path / "a.png", np.full((2, 3), 9, np.uint8)), is_crop=True, left=5, top=1)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:3, 5:8] = True
    assert (part_mask(part, (WIDTH, HEIGHT)) == expected).all()
    with pytest.raises(MaskError, match="2 x 3|3 x 2 pixels at"):
        part_mask(MaskPart(part.path, is_crop=True, left=6, top=1), (WIDTH, HEIGHT))


@pytest.mark.parametrize(
    ("values", "part", "check"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), {}, "empty_masks"),
        (np.ones((WIDTH, HEIGHT), np.uint8), {}, "masks_of_another_size"),
        (np.ones((2, 2), np.uint8), {}, "masks_of_another_size"),
        (region(0, 0, value=7), {"values": (1,), "labels": frozenset({0, 1})}, "masks_with_unknown_labels"),
        (region(0, 0, value=2), {"values": (1,), "labels": frozenset({0, 1, 2})}, "masks_without_their_class"),
        (None, {}, "unreadable_masks"),
    ],
)
def test_each_fault_of_a_mask_has_its_check_and_says_what_to_do(tmp_path, values, part, check):
    file = tmp_path / "m.png"
    if values is not None:
        save(file, values)
    with pytest.raises(MaskError) as caught:
        part_mask(MaskPart(file, **part), (WIDTH, HEIGHT))
    assert caught.value.check == check
    assert "m.png" in caught.value.reason
    assert len(caught.value.reason.replace(". ", "; ").split("; ")) >= 3 - (check == "unreadable_masks")


def test_a_damaged_mask_is_unreadable_and_no_other_mask(tmp_path):
    content = bytearray(save(tmp_path / "m.png", region(0, 0)).read_bytes())
    content[content.index(b"IDAT") - 8] ^= 1  # the checksum of the header
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(MaskError, match="checksum|decoded in full") as caught:
        part_mask(MaskPart(tmp_path / "m.png"), None)
    assert caught.value.check == "unreadable_masks"


def test_a_finding_keeps_its_files_through_records_and_gives_union_and_instances(tmp_path):
    parts = tuple(MaskPart(save(tmp_path / f"{n}.png", region(n, n))) for n in (0, 3))
    finding = MaskedFinding("nucleus", parts=parts, size_wh=(WIDTH, HEIGHT))
    case = check_case(Case("a", (tmp_path / "x.png",), findings=(finding,)), where="a")
    assert case.findings[0] is finding
    assert finding.mask is None  # nothing is decoded before it is asked for
    assert [mask.sum() for mask in instances_of(finding)] == [4, 4]
    assert mask_of(finding).sum() == 8
    (tmp_path / "3.png").unlink()
    with pytest.raises(RequestError, match="lightbox data validate"):
        mask_of(finding)


def test_masks_of_arrays_and_findings_without_any_are_handed_on():
    mask = np.ones((2, 2), bool)
    assert mask_of(Finding("a", mask=mask)) is mask
    assert mask_of(Finding("a")) is None


# ------------------------------------------------- folders


@pytest.fixture
def folders(tmp_path):
    """Two images; a has liver and spleen, b has liver."""
    for name in ("P1_a", "P2_b"):
        image(tmp_path / "images" / f"{name}.png")
    return tmp_path


def by_value(root):
    save(root / "masks" / "P1_a.png", region(0, 0, value=1) + region(3, 3, value=4))
    save(root / "masks" / "P2_b.png", region(2, 2, value=1))
    (root / "labels.json").write_text(json.dumps({"liver": 1, "spleen": 4}))


def by_name(root):
    save(root / "masks" / "P1_a_liver.png", region(0, 0))
    save(root / "masks" / "P1_a_spleen.png", region(3, 3))
    save(root / "masks" / "P2_b_liver_000.png", region(2, 2))


def by_folder(root):
    save(root / "masks" / "liver" / "P1_a.png", region(0, 0))
    save(root / "masks" / "spleen" / "P1_a.png", region(3, 3))
    save(root / "masks" / "liver" / "P2_b.png", region(2, 2))


@pytest.mark.parametrize("write", [by_value, by_name, by_folder])
def test_the_three_forms_of_folders_give_the_same_masks(folders, write):
    write(folders)
    result = read_dataset("mask_folders", folders, patient=r"^(P\d+)_")
    assert result.problems == ()
    first, second = result.cases
    assert (first.id, first.patient_id, second.patient_id) == ("P1_a", "P1", "P2")
    assert [(f.name, f.present) for f in first.findings] == [("liver", True), ("spleen", True)]
    assert (mask_of(first.findings[0]) == (region(0, 0) > 0)).all()
    assert (mask_of(first.findings[1]) == (region(3, 3) > 0)).all()
    assert first.findings[0].boxes == (Box(0, 0, 2 / WIDTH, 2 / HEIGHT),)
    # only where levels are classes was each class looked for on each image
    absent = [f.name for f in second.findings if not f.present]
    assert absent == (["spleen"] if write is by_value else [])


def test_folders_of_splits_keep_them_and_a_patient_on_two_sides_is_counted(tmp_path):
    for split, name in (("train", "P1_a"), ("test", "P1_b"), ("test", "P2_c")):
        image(tmp_path / split / "images" / f"{name}.png")
        save(tmp_path / split / "masks" / f"{name}_liver.png", region(1, 1))
    found = validate("mask_folders", tmp_path, patient=r"^(P\d+)_")
    (leak,) = found.leakage
    assert (leak.patients, leak.patients_shared) == (2, 1)
    (tmp_path / "ours.json").write_text(json.dumps({"train": ["P1_a"], "test": ["P1_b", "P2_c"]}))
    ours = validate("mask_folders", tmp_path, patient=r"^(P\d+)_", split_file=tmp_path / "ours.json")
    assert any("1 of 2 known test patients occur in train" in failure for failure in ours.failures)


def test_every_planted_fault_of_a_folder_is_counted_and_good_masks_are_read(folders):
    by_name(folders)
    save(folders / "masks" / "P2_b_kidney.png", region(0, 0) * 0)
    save(folders / "masks" / "P2_b_colon.png", np.ones((3, 3), np.uint8))
    (folders / "masks" / "P2_b_aorta.png").write_bytes(b"no picture")
    save(folders / "masks" / "P9_z_liver.png", region(0, 0))
    found = validate("mask_folders", folders)
    faults = {check: found.notes.get(check, 0) for check in CHECKS}
    assert faults == dict.fromkeys(CHECKS, 0) | {
        "empty_masks": 1,
        "masks_of_another_size": 1,
        "unreadable_masks": 1,
    }
    assert (found.malformed, found.notes["masks"], found.notes["masks_without_an_image"]) == (3, 3, 1)
    assert {problem.file.rpartition("_")[2] for problem in found.problems} == {"kidney.png", "colon.png", "aorta.png"}
    assert not found.is_ok


def test_unknown_labels_are_named_and_the_class_that_nothing_names_is_not_read(folders):
    by_value(folders)
    (folders / "labels.json").write_text(json.dumps({"liver": 1}))
    result = read_dataset("mask_folders", folders)
    assert problems(result) == [("P1_a.png", "all", "mask")]
    assert "holds the labels 4; no class has them" in result.problems[0].reason
    assert result.counts["masks_with_unknown_labels"] == 1
    assert [[f.name for f in case.findings] for case in result.cases] == [[], ["liver"]]


def test_a_black_mask_is_a_fault_or_the_absence_of_its_class(folders):
    by_name(folders)
    save(folders / "masks" / "P2_b_spleen.png", region(0, 0) * 0)
    assert read_dataset("mask_folders", folders).counts["empty_masks"] == 1
    result = read_dataset("mask_folders", folders, blank="absent")
    assert result.problems == ()
    assert result.cases[1].findings[-1] == Finding("spleen", present=False)


def test_wrong_options_of_folders_are_refused(folders):
    by_value(folders)
    for options, reason in (
        ({"form": "x"}, "auto, value, folder, name"),
        ({"patient": "P\\d+"}, "It has no group"),
        ({"patient": "("}, "no regular expression"),
        ({"labels": "0=liver"}, "0 is background"),
        ({"split": "test"}, "no train/images/"),
    ):
        with pytest.raises(RequestError, match=reason):
            read_dataset("mask_folders", folders, **options)
    (folders / "labels.json").unlink()
    with pytest.raises(RequestError, match="Nothing names the levels"):
        read_dataset("mask_folders", folders)


# ------------------------------------------------- sets with a layout of their own


def test_nuclei_are_instances_of_one_finding_and_boxes_are_those_of_the_reader_of_boxes(tmp_path):
    image(tmp_path / "stage1_train" / "a" / "images" / "a.png")
    for number in range(2):
        save(tmp_path / "stage1_train" / "a" / "masks" / f"{number}.png", region(number * 3, number * 3))
    (case,) = read_dataset("dsb2018_nuclei", tmp_path).cases
    (nuclei,) = case.findings
    assert [mask.sum() for mask in instances_of(nuclei)] == [4, 4]
    assert nuclei.boxes == read("dsb2018_nuclei", tmp_path).cases[0].findings[0].boxes


COVID = "Filename,Template Name,Mask,Resolution,Top,Left,Width,Height\n"


def covid(root, *rows):
    image(root / "images" / "a.png")
    colour = np.zeros((2, 3, 4), np.uint8)
    colour[..., 3], colour[0, :, 0] = 255, 200  # coloured on opaque black: the upper row marks
    save(root / "masks" / "m.png", colour)
    (root / "structure.csv").write_text(COVID + "".join(f"{row}\n" for row in rows))
    (root / "metadata.csv").write_text("filename,patientid\na.png,7\n")


def test_a_covid_crop_lies_in_its_frame_of_an_image_that_is_not_square(tmp_path):
    covid(tmp_path, f"a.png,Lung,masks/m.png,{WIDTH}x{HEIGHT},1,4,3,2", f"a.png,Tube,,{WIDTH}x{HEIGHT},0,0,2,2")
    (case,) = read_dataset("covid_cxr_masks", tmp_path).cases
    lung, tube = case.findings
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1, 4:7] = True
    assert (mask_of(lung) == expected).all()
    assert (case.patient_id, tube) == ("7", Finding("Tube"))
    assert [(f.name, f.boxes) for f in case.findings] == [
        (f.name, f.boxes) for f in read("covid_cxr_masks", tmp_path).cases[0].findings
    ]


@pytest.mark.parametrize(
    ("row", "field", "check"),
    [
        ("a.png,Lung,masks/m.png,8x6,1,4,2,2", "Mask", "masks_of_another_size"),
        ("a.png,Lung,masks/m.png,8x6,1,6,3,2", "mask", "masks_of_another_size"),
        ("a.png,Lung,masks/none.png,8x6,1,4,3,2", "Mask", "unreadable_masks"),
        ("a.png,Lung,masks/m.png,6x8,1,4,3,2", "Resolution", None),
    ],
)
def test_a_malformed_covid_row_is_named_and_the_rest_is_read(tmp_path, row, field, check):
    covid(tmp_path, f"a.png,Heart,masks/m.png,{WIDTH}x{HEIGHT},1,4,3,2", row)
    result = read_dataset("covid_cxr_masks", tmp_path)
    assert problems(result) == [("structure.csv", "3", field)]
    assert check is None or result.counts[check] == 1
    assert [finding.name for finding in result.cases[0].findings] == ["Heart"]


def test_sections_of_the_fly_are_read_from_tiff_with_masks_of_any_depth(tmp_path):
    stack = tmp_path / "stack1"
    save(stack / "raw" / "00.tif", np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH))
    save(stack / "membranes" / "00.png", region(0, 0) > 0)
    save(stack / "mitochondria" / "00.png", region(2, 2) + region(4, 4, value=100))  # a soft edge
    save(stack / "synapses" / "00.png", region(4, 0))
    save(
        stack / "labels" / "labels00000000.png",
        region(2, 2, value=191) + region(0, 0, value=159) + region(4, 4, value=223),
    )
    (case,) = read_dataset("drosophila_vnc_em", tmp_path).cases
    assert load_pixels(case.images[0])[0, :3].tolist() == [0, 1, 2]
    assert {f.name: int(mask_of(f).sum()) for f in case.findings} == {"membrane": 4, "mitochondrion": 4, "synapse": 4}
    result = read_dataset("drosophila_vnc_em", tmp_path, form="labels")
    assert {f.name: int(mask_of(f).sum()) for f in result.cases[0].findings} == {
        "membrane": 48 - 12,
        "glia or extracellular": 4,
        "mitochondrion": 4,
        "synapse": 4,
    }
    assert result.counts["masks_without_their_class"] == 1  # nothing is intracellular
    save(stack / "labels" / "labels00000000.png", region(2, 2, value=17))
    result = read_dataset("drosophila_vnc_em", tmp_path, form="labels")
    assert result.counts["masks_with_unknown_labels"] == 5


def test_the_demonstration_of_sam_med2d_is_read_from_both_lists(tmp_path):
    base = tmp_path / "data_demo"
    for name in ("v1_3", "v2_4"):
        image(base / "images" / f"{name}.png")
    save(base / "masks" / "v1_3_left_lung_000.png", region(1, 1))
    pair = ("data_demo/images/v1_3.png", "data_demo/masks/v1_3_left_lung_000.png")
    (base / "image2label_train.json").write_text(json.dumps({pair[0]: [pair[1], "data_demo/masks/v2_4_liver_000.png"]}))
    (base / "label2image_test.json").write_text(json.dumps({pair[1]: pair[0]}))
    result = read_dataset("sam_med2d_demo", tmp_path)
    assert [(case.id, case.split, case.patient_id) for case in result.cases] == [
        ("v1_3", s, "v1") for s in ("train", "test")
    ]
    assert [f.name for f in result.cases[0].findings] == ["left lung"]
    assert problems(result) == [("image2label_train.json", "1", "mask")]
    assert (result.counts["masks_of_another_image"], result.counts["images_in_no_list"]) == (1, 1)


# ------------------------------------------------- audit


def test_the_audit_drops_a_faulty_mask_with_its_questions_and_keeps_the_rest(tmp_path):
    path = image(tmp_path / "x.png")
    good = MaskedFinding("liver", parts=(MaskPart(save(tmp_path / "l.png", region(1, 1))),), id="l")
    bad = MaskedFinding("spleen", parts=(MaskPart(save(tmp_path / "s.png", np.ones((3, 3), np.uint8))),), id="s")
    questions = tuple(Question(f"q{name}", "Where?", "It is <SEG>.", facts=(name,)) for name in ("l", "s"))
    case = Case("a", (path,), findings=(good, Finding("colon"), bad), questions=questions)
    seen = []
    result = with_sound_masks(ReadResult((case,)), on_mask=lambda done, total: seen.append((done, total)))
    (sound,) = result.cases
    assert [f.name for f in sound.findings] == ["liver", "colon"]
    assert sound.findings[0].boxes == (Box(1 / WIDTH, 1 / HEIGHT, 3 / WIDTH, 3 / HEIGHT),)
    assert sound.findings[0].size_wh == (WIDTH, HEIGHT)
    assert [q.id for q in sound.questions] == ["ql"]
    assert [(p.file, p.row, p.field) for p in result.problems] == [(str(tmp_path / "s.png"), "a", "mask")]
    counts = result.counts
    assert (counts["masks_of_another_size"], counts["questions_without_a_sound_mask"], counts["masks_decoded"]) == (
        1,
        1,
        1,
    )
    assert seen == [(1, 2), (2, 2)]


def test_every_mask_set_has_a_card_with_its_licence_and_its_module_is_a_choice():
    for name, reader in MASK_SETS.items():
        card = load_dataset_card(name)
        assert (card.licence, card.title) == (reader.licence, reader.title)
    assert {reader.module for reader in MASK_SETS.values()} == set(CHOICES["lightbox.readers.mask_sets"])
    assert LATER_SETS.keys() > MASK_SETS.keys()


@pytest.mark.timeout(60)  # a pipe that is opened is waited for without end
def test_a_pipe_in_the_place_of_a_mask_is_a_problem(folders):
    by_name(folders)
    (folders / "masks" / "P2_b_liver_000.png").unlink()
    os.mkfifo(folders / "masks" / "P2_b_liver_000.png")
    result = read_dataset("mask_folders", folders)
    assert problems(result) == [("P2_b_liver_000.png", "all", "mask")]
    assert result.counts["unreadable_masks"] == 1
