"""SA-Med2D-20M and MeCoVQA on made-up folders and archives in parts: golden records, and faults that users report."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.readers.all_sets import read_dataset
from lightbox.readers.masks import CHECKS, mask_of
from lightbox.readers.mecovqa import KINDS
from lightbox.readers.pixels import load_pixels
from lightbox.readers.sa_med2d_files import slice_name
from lightbox.readers.validate import validate
from lightbox.testing.split_zips import write_split_zip

A, B = "ct_00--ABD--p1--x_0003", "mr_t1--BRAIN--p2--y_0001"
CLASSES = {"ABD": {"liver": 1, "liver_tumor": 2, "spleen": 3}, "BRAIN": {"union_tumor": 1}}


def png(top=None, *, shape=(6, 8), value=255):
    """A picture, or a mask with a square of 2 x 2 from row `top` on."""
    values = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
    if top is not None:
        values = np.zeros(shape, np.uint8)
        values[top : top + 2, 1:3] = value
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def files():
    """SA-Med2D in small: two images; the first has two livers and a spleen, the second a tumour."""
    masks = {f"{A}--0001_000": 0, f"{A}--0001_001": 3, f"{A}--0003_000": 2, f"{B}--0001_000": 1}
    content = {f"images/{name}.png": png() for name in (A, B)}
    content |= {f"masks/{name}.png": png(top) for name, top in masks.items()}
    listed = {f"images/{image}.png": [f"masks/{m}.png" for m in masks if m.startswith(image)] for image in (A, B)}
    return content | {
        "SAMed2D_v1.json": json.dumps(listed).encode(),
        "SAMed2D_v1_class_mapping_id.json": json.dumps(CLASSES).encode(),
    }


def unpack(root, content):
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def sample(image, *turns, **more):
    talk = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]
    return {"image": f"images/{image}.png", "conversations": talk} | more


GROUNDING = ("<image>\nPlease segment the liver.", f"It is <SEG>. <mask>masks_merged/{A}--0001_merged.png</mask>")
REGION = (f"<image>\nWhat is in <region>masks/{A}--0003_000.png</region>?", "The spleen.")
COMPLEX = ("<image>\nIs this an abdomen?", "Yes.")


def ask(root, **kinds):
    """Write the training files, by kind."""
    for kind, rows in kinds.items():
        file = root / "train" / f"MeCoVQA-{kind.capitalize()}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows))


@pytest.fixture
def mecovqa(tmp_path):
    unpack(tmp_path, files())
    ask(tmp_path, complex=[sample(A, *COMPLEX)], region=[sample(A, *REGION)], grounding=[sample(A, *GROUNDING)])
    return tmp_path


# ------------------------------------------------- SA-Med2D-20M


@pytest.mark.parametrize("form", ["folder", "inner folder", "parts"])
def test_sa_med2d_is_read_alike_from_folders_and_from_the_archive_in_parts(tmp_path, form):
    if form == "parts":
        write_split_zip(tmp_path / "SA-Med2D-16M.zip", {f"SAMed2Dv1/{name}": data for name, data in files().items()})
    else:
        unpack(tmp_path / ("SAMed2Dv1" if form == "inner folder" else ""), files())
    result = read_dataset("sa_med2d_20m", tmp_path)
    first, second = result.cases
    assert result.problems == ()
    assert (first.id, first.patient_id, first.modality, second.modality) == (A, "ABD--p1", "CT", "MR")
    assert [(f.name, len(f.parts)) for f in first.findings] == [("liver", 2), ("spleen", 1)]
    assert [f.name for f in second.findings] == ["tumor"]
    rows = np.flatnonzero(mask_of(first.findings[0]).any(axis=1))
    assert rows.tolist() == [0, 1, 3, 4]  # both instances
    assert load_pixels(first.images[0]).shape == (6, 8)
    found = validate("sa_med2d_20m", tmp_path)
    assert found.is_ok
    assert (found.images, found.notes["masks_decoded"]) == (2, 4)


def test_a_missing_part_of_the_archive_is_an_error_in_three_parts(tmp_path):
    parts = write_split_zip(tmp_path / "SA-Med2D-16M.zip", {f"SAMed2Dv1/{n}": data for n, data in files().items()})
    parts[2].unlink()
    with pytest.raises(RequestError, match=r"missing: SA-Med2D-16M\.z03.*Put all parts of one download"):
        read_dataset("sa_med2d_20m", tmp_path)
    (tmp_path / "SA-Med2D-16M.zip").unlink()
    with pytest.raises(RequestError, match="the last part, which ends in .zip"):
        read_dataset("sa_med2d_20m", tmp_path)


def test_a_part_of_sa_med2d_is_chosen_by_dataset_modality_or_number(tmp_path):
    unpack(tmp_path, files())
    for options, ids in (
        ({"datasets": "BRAIN"}, [B]),
        ({"modality": "ct"}, [A]),
        ({"n_cases": "1"}, [A]),
        ({"datasets": "BRAIN,ABD", "n_cases": 2}, [A, B]),
    ):
        assert [case.id for case in read_dataset("sa_med2d_20m", tmp_path, **options).cases] == ids
    with pytest.raises(RequestError, match="no readable row"):
        read_dataset("sa_med2d_20m", tmp_path, datasets="none")


def test_faulty_masks_of_sa_med2d_are_counted_and_the_rest_is_read(tmp_path):
    content = files()
    content[f"masks/{A}--0001_001.png"] = png(0, value=0)
    content[f"masks/{B}--0001_000.png"] = png(0, shape=(5, 5))
    listed = json.loads(content["SAMed2D_v1.json"])
    listed[f"images/{A}.png"] += [f"masks/{A}--0009_000.png", f"masks/{B}--0001_000.png", "masks/odd.png"]
    content["SAMed2D_v1.json"] = json.dumps(listed).encode()
    unpack(tmp_path, content)
    found = validate("sa_med2d_20m", tmp_path)
    assert {check: found.notes.get(check, 0) for check in CHECKS} == dict.fromkeys(CHECKS, 0) | {
        "masks_with_unknown_labels": 1,  # a class that the list of names does not hold
        "masks_of_another_image": 1,
        "empty_masks": 1,
        "masks_of_another_size": 1,
    }
    assert found.malformed == 5
    assert found.cases == 2


def test_without_the_list_of_names_classes_are_numbers(tmp_path):
    content = files()
    del content["SAMed2D_v1_class_mapping_id.json"]
    unpack(tmp_path, content)
    assert [f.name for f in read_dataset("sa_med2d_20m", tmp_path).cases[0].findings] == ["class 1", "class 3"]


def test_names_of_slices_are_taken_apart_wherever_the_sign_stands():
    assert slice_name("us_0--SET--a--b--x_1", "image") == ("ultrasound", "SET", "a--b")
    assert slice_name("dermoscopy_00--isic--ISIC_7", "image") == ("dermoscopy", "isic", "ISIC_7")


# ------------------------------------------------- MeCoVQA


def test_golden_questions_of_the_three_kinds_share_one_case(mecovqa):
    result = read_dataset("mecovqa", mecovqa)
    assert result.problems == ()
    (case,) = result.cases
    assert (case.id, case.split, case.patient_id, case.images) == (
        A,
        "train",
        "ABD--p1",
        (mecovqa / "images" / f"{A}.png",),
    )
    asked = {question.kind: question for question in case.questions}
    assert asked.keys() == set(KINDS)
    assert (asked["complex"].text, asked["complex"].options, asked["complex"].facts) == (
        "Is this an abdomen?",
        ("yes", "no"),
        (),
    )
    assert (asked["region"].text, asked["region"].answer) == ("What is in <region>?", "The spleen.")
    assert (asked["grounding"].text, asked["grounding"].answer) == ("Please segment the liver.", "It is <SEG>.")
    by_id = {finding.id: finding for finding in case.findings}
    assert asked["region"].facts == (f"{A}--0003_000",)
    assert by_id[f"{A}--0003_000"].name == "spleen"
    assert (mask_of(by_id[f"{A}--0003_000"]) == (np.asarray(Image.open(io.BytesIO(png(2)))) > 0)).all()
    assert validate("mecovqa", mecovqa).is_ok


def test_a_merged_mask_is_joined_from_its_instances_and_the_merged_file_wins(mecovqa):
    result = read_dataset("mecovqa", mecovqa, kind="grounding")
    (liver,) = result.cases[0].findings
    assert result.counts["masks_joined_from_instances"] == 1
    assert np.flatnonzero(mask_of(liver).any(axis=1)).tolist() == [0, 1, 3, 4]
    unpack(mecovqa, {f"masks_merged/{A}--0001_merged.png": png(4)})
    result = read_dataset("mecovqa", mecovqa, kind="grounding")
    assert result.counts["masks_joined_from_instances"] == 0
    assert np.flatnonzero(mask_of(result.cases[0].findings[0]).any(axis=1)).tolist() == [4, 5]


@pytest.mark.parametrize("has_list", [True, False])
def test_images_and_masks_are_found_in_the_archive_beside_it(tmp_path, has_list):
    content = {name: data for name, data in files().items() if has_list or name != "SAMed2D_v1.json"}
    write_split_zip(tmp_path / "sa_med2d_20m" / "SA.zip", {f"SAMed2Dv1/{name}": data for name, data in content.items()})
    ask(tmp_path / "mecovqa", grounding=[sample(A, *GROUNDING)])
    for options in ({}, {"images": "../sa_med2d_20m/SA.zip"}):
        (case,) = read_dataset("mecovqa", tmp_path / "mecovqa", **options).cases
        assert mask_of(case.findings[0]).sum() == 8
        assert load_pixels(case.images[0]).shape == (6, 8)


def test_official_parts_are_splits_and_a_patient_in_two_of_them_is_counted(mecovqa):
    unpack(mecovqa, {f"images/{A[:-1]}4.png": png()})
    (mecovqa / "test").mkdir()
    (mecovqa / "test" / "MeCoVQA_Complex_VQA_test.json").write_text(json.dumps([sample(f"{A[:-1]}4", *COMPLEX)]))
    (mecovqa / "zeroshot4grounding").mkdir()
    rows = [sample(B, "Segment the tumor.", f"<SEG> <mask>{B}--0001_merged.png</mask>")]
    (mecovqa / "zeroshot4grounding" / "mr.json").write_text(json.dumps(rows))
    found = validate("mecovqa", mecovqa)
    assert found.counts["split"] == {"train": 3, "test": 1, "zeroshot": 1}
    assert [(leak.earlier, leak.later, leak.patients_shared) for leak in found.leakage] == [
        ("train", "test", 1),
        ("train", "zeroshot", 0),
        ("test", "zeroshot", 0),
    ]
    assert read_dataset("mecovqa", mecovqa, split="zeroshot").cases[0].findings[0].name == "tumor"


MASK = f"<mask>masks_merged/{A}--0001_merged.png</mask>"


@pytest.mark.parametrize(
    ("row", "field", "check"),
    [
        (sample(A, "Segment the spleen.", f"<SEG> {MASK}"), "mask", "questions_of_another_class"),
        (sample(A, "Segment the liver.", f"<SEG> <mask>{B}--0001_merged.png</mask>"), "mask", "masks_of_another_image"),
        (
            sample(A, "Segment the colon.", f"<SEG> <mask>{A}--0007_merged.png</mask>"),
            "mask",
            "masks_with_unknown_labels",
        ),
        (sample(A, "Segment it.", f"<SEG> <mask>{A}--0002_merged.png</mask>"), "mask", "unreadable_masks"),
        (sample(A, "Segment the liver.", f"<SEG> <SEG> {MASK}"), "conversations", None),
        (sample(A, "Segment the liver.", "It is <SEG>."), "conversations", None),
        (sample(A, "Segment the liver.", "No."), "conversations", None),
        (sample(A, "Segment the liver."), "conversations", None),
        ({"image": "llavamed/x.jpg", "conversations": []}, "image", None),
        (sample("ct_00--ABD--p9--x_0001", "Segment the liver.", f"<SEG> {MASK}"), "image", None),
        ({"conversations": []}, "image", None),
        ("text", "row", None),
    ],
)
def test_each_wrong_sample_is_named_and_good_ones_are_read_and_counted(mecovqa, row, field, check):
    ask(mecovqa, grounding=[row, sample(A, *GROUNDING)])
    result = read_dataset("mecovqa", mecovqa, kind="grounding")
    (problem,) = result.problems
    assert (problem.row, problem.field) == ("1", field)
    assert {name: result.counts.get(name, 0) for name in CHECKS} == {name: int(name == check) for name in CHECKS}
    assert (result.counts["questions"], result.counts["samples"]) == (1, 2)


@pytest.mark.parametrize(
    ("question", "is_good"),
    [
        ("Segment the tumor of the liver.", True),  # all words of its class, in another order
        ("Where are the liver tumors?", True),
        ("Segment the lesion.", True),  # no class is named, so nothing disagrees
        ("Segment the spleen.", False),
        ("Segment the liver.", False),
    ],
)
def test_a_question_disagrees_only_where_it_names_another_class(mecovqa, question, is_good):
    unpack(mecovqa, {f"masks_merged/{A}--0002_merged.png": png(1)})
    ask(mecovqa, grounding=[sample(A, question, f"<SEG> <mask>{A}--0002_merged.png</mask>"), sample(A, *GROUNDING)])
    counts = read_dataset("mecovqa", mecovqa, kind="grounding").counts
    assert counts.get("questions_of_another_class", 0) == int(not is_good)


def test_an_image_without_its_ending_is_found_and_counted(mecovqa):
    row = sample(A, *COMPLEX)
    row["image"] = row["image"].removesuffix(".png")
    ask(mecovqa, complex=[row])
    result = read_dataset("mecovqa", mecovqa, kind="complex")
    assert (result.problems, result.counts["images_without_an_ending"]) == ((), 1)


def test_an_empty_merged_mask_is_found_by_validate_which_drops_the_question(mecovqa):
    unpack(mecovqa, {f"masks_merged/{A}--0001_merged.png": png(1, value=0)})
    found = validate("mecovqa", mecovqa)
    assert (found.notes["empty_masks"], found.notes["questions_without_a_sound_mask"]) == (1, 1)
    assert (found.questions, found.cases) == (2, 1)
    assert "liver" in found.problems[0].reason
    assert not found.is_ok


def test_several_turns_and_several_masks_keep_their_order(mecovqa):
    many = sample(
        A,
        "Segment liver and spleen.",
        f"<SEG> and <SEG> {MASK}<mask>{A}--0003_000.png</mask>",
        *GROUNDING,
    )
    ask(mecovqa, grounding=[many])
    (case,) = read_dataset("mecovqa", mecovqa, kind="grounding").cases
    assert [question.facts for question in case.questions] == [
        (f"{A}--0001_merged", f"{A}--0003_000"),
        (f"{A}--0001_merged",),
    ]
    assert [finding.name for finding in case.findings] == ["liver", "spleen"]  # each mask once


def test_wrong_requests_are_refused(mecovqa):
    for options, reason in (
        ({"kind": "counting"}, "complex, region, grounding"),
        ({"split": "validation"}, "train, test, zeroshot"),
        ({"split": "test"}, "There is no such file in train/"),
        ({"images": "none"}, "holds 0 zip files and no images/"),
    ):
        with pytest.raises(RequestError, match=reason):
            read_dataset("mecovqa", mecovqa, **options)
    (mecovqa / "train" / "MeCoVQA-Other.json").write_text("[1]")
    with pytest.raises(RequestError, match="holds none of complex, region, grounding"):
        read_dataset("mecovqa", mecovqa)
