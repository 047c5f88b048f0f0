"""`validate` on datasets with one fault each, and through the command line with its exit codes."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lightbox.cli.data import app
from lightbox.errors import RequestError
from lightbox.readers.validate import validate

ROW = {
    "image_organ": "HEAD",
    "answer": "Yes",
    "answer_type": "CLOSED",
    "question_type": "PRES",
    "phrase_type": "freeform",
}
runner = CliRunner()


def row(qid, image, **changes):
    return {**ROW, "qid": qid, "image_name": f"{image}.png", "question": f"Question {qid}?", **changes}


@pytest.fixture
def root(tmp_path):
    """Three images, two training rows and one test row on an image of its own: nothing is wrong."""
    (tmp_path / "images").mkdir()
    for value, name in enumerate(("a", "b", "c"), start=1):
        Image.fromarray(np.full((4, 4), value * 10, np.uint8)).save(tmp_path / "images" / f"{name}.png")
    put(tmp_path, train=[row(1, "a"), row(2, "b", answer="left", question_type="POS")], test=[row(3, "c")])
    return tmp_path


def put(root, **splits):
    for split, rows in splits.items():
        (root / f"{split}set.json").write_text(json.dumps(rows))


def test_sound_dataset_is_counted_and_passes(root):
    found = validate("vqa_rad", root)
    assert found.is_ok
    assert found.failures == ()
    assert (found.cases, found.questions, found.images, found.identical_images) == (3, 3, 3, 0)
    assert found.counts == {
        "split": {"train": 2, "test": 1},
        "answer_type": {"closed": 2, "open": 1},
        "body_part": {"head": 3},
        "modality": {"unknown": 3},
        "kind": {"pres": 2, "pos": 1},
        "language": {"en": 3},
    }
    assert [leak.images_shared for leak in found.leakage] == [0]
    assert json.loads(json.dumps(found.to_plain()))["is_ok"] is True


def test_official_leakage_is_counted_and_no_failure(root):
    put(root, test=[row(3, "a"), row(4, "c"), row(5, "a", question="question  1?")])
    found = validate("vqa_rad", root)
    (leak,) = found.leakage
    assert (leak.images, leak.images_shared, leak.items, leak.items_on_shared_images) == (2, 1, 3, 2)
    assert leak.repeated_pairs == 1
    assert found.is_ok


def test_same_pixels_under_two_names_count_as_one_image(root):
    Image.open(root / "images" / "a.png").save(root / "images" / "c.png", compress_level=0)
    found = validate("vqa_rad", root)
    assert found.identical_images == 1
    assert found.leakage[0].images_shared == 1


def test_unreadable_images_are_named_each_once(root):
    (root / "images" / "a.png").unlink()
    content = (root / "images" / "b.png").read_bytes()
    (root / "images" / "b.png").write_bytes(content[:50])
    put(root, train=[row(1, "a"), row(2, "b"), row(4, "b")])
    found = validate("vqa_rad", root)
    assert found.unreadable_images == 2
    assert found.failures == ("2 unreadable images",)
    assert {key.rsplit("/", 1)[1]: why.split(".")[0].split(":")[0] for key, why in found.unreadable} == {
        "a.png": "There is no such file",
        "b.png": "It cannot be decoded in full",
    }


def test_duplicate_ids_are_named(root):
    put(root, train=[row(1, "a"), row(1, "b"), row(1, "b"), row(2, "b")])
    found = validate("vqa_rad", root)
    assert (found.duplicates, found.duplicate_ids) == (2, ("1",))
    assert found.failures == ("2 duplicate ids",)


def test_repeated_items_are_reported_and_no_failure(root):
    put(
        root,
        train=[
            row(1, "a", question="Same?"),
            row(2, "a", question=" same? "),
            row(4, "a", question="Same?", answer="No"),
        ],
    )
    found = validate("vqa_rad", root)
    assert found.repeated_items == 1
    assert found.is_ok


def test_first_twenty_malformed_rows_are_listed_and_all_are_counted(root):
    put(root, train=[row(1, "a"), *(row(n, "a", question="") for n in range(2, 32))])
    found = validate("vqa_rad", root)
    assert found.malformed == 30
    assert len(found.problems) == 20
    assert found.failures == ("30 malformed rows",)


def test_leakage_in_a_split_of_ours_is_a_failure(root):
    shared = {**row(9, "a"), "image_case_url": "https://medpix.nlm.nih.gov/case?id=77", "phrase_type": "freeform"}
    other = {**shared, "qid": 10, "image_name": "b.png"}  # another image of the same patient
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps([shared, other]))
    (root / "ours.json").write_text(json.dumps({"train": ["a"], "test": ["b"]}))
    found = validate("vqa_rad", root, split_file=root / "ours.json", form="public")
    assert not found.is_ok
    assert found.failures[0].startswith("leakage: 0 of 1 test images (0 of 1 items) and 1 of 1 known test patients")
    (root / "ours.json").write_text(json.dumps({"train": ["a", "b"]}))
    assert validate("vqa_rad", root, split_file=root / "ours.json", form="public").is_ok


def test_file_that_differs_from_its_recorded_digest_is_said(tmp_path):
    item = {"question": "q?", "choices": ["yes", "no"], "answer": 0, "solution": "s", "image": "a.png"}
    (tmp_path / "closed-end").mkdir()
    (tmp_path / "closed-end" / "trainset.json").write_text(json.dumps({"1": item}))
    found = validate("r_rad", tmp_path)
    assert found.differing_files == ("closed-end/trainset.json",)


def test_empty_dataset_is_a_request_error(root):
    put(root, train=[], test=[])
    with pytest.raises(RequestError, match="It is JSON without a row"):
        validate("vqa_rad", root)


def test_progress_is_called_once_an_image(root):
    seen = []
    validate("vqa_rad", root, on_image=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_command_exits_0_when_sound_and_prints_json(root):
    result = runner.invoke(app, ["validate", "vqa_rad", "--root", str(root), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["counts"]["split"] == {"train": 2, "test": 1}


@pytest.mark.parametrize(
    ("train", "text"),
    [
        ([row(1, "a"), row(2, "a", question="")], "1 malformed rows"),
        ([row(1, "a"), row(1, "b")], "1 duplicate ids"),
        ([row(1, "a"), row(2, "none")], "1 unreadable images"),
    ],
)
def test_command_exits_1_when_a_rule_is_broken(root, train, text):
    put(root, train=train)
    result = runner.invoke(app, ["validate", "vqa_rad", "--root", str(root)])
    assert result.exit_code == 1
    assert text in result.stdout


def test_command_exits_1_for_leakage_of_our_own_split(root):
    (root / "images" / "b.png").write_bytes((root / "images" / "a.png").read_bytes())
    (root / "ours.json").write_text(json.dumps({"train": ["a", "c"], "test": ["b"]}))
    arguments = ["validate", "vqa_rad", "--root", str(root), "--split-file", str(root / "ours.json")]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert "leakage: 1 of 1 test images" in " ".join(result.stdout.split())


def test_wrong_requests_carry_exit_code_2(root):
    for arguments in (
        ["validate", "nothing"],
        ["validate", "vqa_rad", "--root", str(root / "none")],
        ["validate", "vqa_rad", "--root", str(root), "--option", "form"],
        ["validate", "vqa_rad", "--root", str(root), "-o", "shape=x"],
        ["show", "vqa_rad", "--root", str(root), "--split", "validation"],
    ):
        result = runner.invoke(app, arguments)
        assert isinstance(result.exception, RequestError), arguments
        assert result.exception.exit_code == 2
