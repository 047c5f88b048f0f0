"""Readers on real files that nobody here wrote, found through LIGHTBOX_DATA_ROOT. A set that is missing there fails."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from lightbox.readers.all_sets import read_dataset
from lightbox.readers.catalog import ROOT_VARIABLE, read
from lightbox.readers.images import load_image
from lightbox.readers.leakage import leakage
from lightbox.readers.preferences import write_preferences
from lightbox.readers.splits import split_by_image
from lightbox.readers.validate import validate
from lightbox.testing.spoiled.sets import SETS
from lightbox.testing.spoiled.trial import BAD, run_trial

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get(ROOT_VARIABLE), reason=f"{ROOT_VARIABLE} is not set: no real data here"),
]


@pytest.fixture(scope="module")
def data_root():
    return Path(os.environ[ROOT_VARIABLE])


def test_vqa_rad_split_form_is_read_whole(data_root):
    found = validate("vqa_rad", data_root / "vqa_rad")
    assert found.is_ok
    assert (found.questions, found.images, found.cases) == (254, 20, 30)
    assert found.identical_images == 0
    assert found.counts["split"] == {"train": 228, "test": 26}
    assert found.counts["answer_type"] == {"closed": 183, "open": 71}
    assert found.counts["body_part"] == {"chest": 110, "head": 103, "abdomen": 41}
    assert found.counts["kind"]["pres"] == 110
    assert found.notes["closed_without_options"] == 3


@pytest.mark.parametrize(("form", "train"), [("split", 228), ("llava_med", 127)])
def test_vqa_rad_official_split_leaks_every_test_image(data_root, form, train):
    """All 10 test images of this part occur in training; the full set leaks 202 of 203."""
    cases = read("vqa_rad", data_root / "vqa_rad", form=form).cases
    assert sum(len(case.questions) for case in cases if case.split == "train") == train
    (found,) = leakage(cases)
    assert (found.images, found.images_shared) == (10, 10)
    assert (found.items, found.items_on_shared_images) == (26, 26)
    assert found.repeated_pairs == 0
    divided = split_by_image(cases, 0)
    assert all(leak.is_clean for leak in leakage(divided))
    assert sum(len(case.questions) for case in divided) == train + 26


def test_vqa_rad_forms_agree_on_the_test_questions(data_root):
    questions = []
    for form in ("split", "llava_med"):
        cases = read("vqa_rad", data_root / "vqa_rad", "test", form=form).cases
        questions.append({(case.id, question.text, question.answer) for case in cases for question in case.questions})
    assert questions[0] == questions[1]


def test_vqa_rad_images_decode_and_letterbox(data_root):
    case = read("vqa_rad", data_root / "vqa_rad").cases[0]
    assert load_image(case.images[0]).shape == (451, 337)
    small = load_image(case.images[0], image_px=64)
    assert small.shape == (64, 64)
    assert small.std() > 10
    assert not np.any(small[:, :8])  # an upright image has black margins left and right


def test_vqa_med_2019_is_read_whole(data_root):
    found = validate("vqa_med_2019", data_root / "vqa_med_2019")
    assert found.is_ok
    assert (found.questions, found.images) == (719, 180)
    assert found.counts["kind"] == {"modality": 180, "plane": 180, "organ": 180, "abnormality": 179}
    assert found.counts["answer_type"] == {"open": 644, "closed": 75}
    assert found.leakage == ()


def test_vqa_med_2019_shares_no_image_with_vqa_rad(data_root):
    names = [{case.id for case in read(name, data_root / name).cases} for name in ("vqa_rad", "vqa_med_2019")]
    assert names[0].isdisjoint(names[1])


def test_slake_text_is_read_whole(data_root):
    found = validate("slake", data_root / "slake_qa_text")
    assert found.is_ok
    assert (found.questions, found.cases, found.images) == (1053, 96, 0)
    assert found.counts["answer_type"] == {"open": 695, "closed": 358}  # 358 yes or no; 64 closed items name no options
    assert found.notes["closed_without_options"] == 64
    assert found.counts["modality"] == {"CT": 482, "X-Ray": 338, "MRI": 233}
    facts = [q.facts for case in read("slake", data_root / "slake_qa_text").cases for q in case.questions if q.facts]
    assert len(facts) == 155


def checks_of(audit):
    return {check.name: (check.count, check.of) for check in audit.checks if check.of}


def test_mmedpo_pairs_on_vqa_rad_are_read_whole_and_audited(data_root):
    found = validate("mmedpo_vqa_rad", scored_on="vqa_rad")
    assert found.is_ok
    assert (found.cases, found.images) == (20, 20)
    assert (found.audit.pairs, found.audit.image_pairs) == (127, 0)
    assert (found.audit.chosen_words, found.audit.rejected_words) == (1, 11)
    assert found.audit.relevance[:3] == ((1.0, 50), (0.8, 37), (0.9, 19))
    assert found.audit.relevance_mean == pytest.approx(0.7913, abs=1e-4)
    checks = checks_of(found.audit)
    assert checks.pop("bag of words")[0] / 254 > 0.9
    assert checks == {
        "length": (121, 127),
        "leaked wording, rejected": (0, 127),
        "leaked wording, chosen": (2, 127),
        "identical texts": (0, 127),
        "right yes or no rejected": (0, 86),
        "right answer inside the rejected": (2, 41),
        "contradictions": (0, 127),
        "repeated prompts": (1, 127),
        "scores of 0": (3, 127),
        "one score for all": (0, 127),
        "missing images": (0, 127),
        "images of the scored questions": (60, 127),
    }


def test_mmedpo_pairs_on_slake_are_read_as_text_and_audited(data_root):
    """19 chosen answers hold words of the curation, which the dossier does not name; 1 pair rejects what it prefers."""
    found = validate("mmedpo_slake")
    assert found.failures == ("1 malformed rows",)
    assert found.problems[0].row == "138"
    assert found.problems[0].reason == "is the chosen answer itself"
    assert (found.cases, found.images, found.notes["pairs_without_images"]) == (60, 0, 676)
    assert (found.audit.chosen_words, found.audit.rejected_words) == (1, 12)
    checks = checks_of(found.audit)
    assert checks.pop("bag of words")[0] / 1352 > 0.9
    assert checks == {
        "length": (634, 676),
        "leaked wording, rejected": (2, 676),
        "leaked wording, chosen": (19, 676),
        "identical texts": (1, 677),
        "right yes or no rejected": (0, 218),
        "right answer inside the rejected": (18, 458),
        "contradictions": (0, 676),
        "repeated prompts": (0, 676),
        "scores of 0": (8, 676),
        "one score for all": (0, 676),
        "missing images": (676, 676),
    }


@pytest.mark.parametrize(("name", "file"), [("mmedpo_vqa_rad", "vqa-rad"), ("mmedpo_slake", "slake")])
def test_mmedpo_files_are_written_as_they_are_read(data_root, tmp_path, name, file):
    images = data_root / "vqa_rad" / "images"  # of SLAKE none is here, and names need no file
    cases = read_dataset(name, images=str(images)).cases
    write_preferences(tmp_path / "pairs.json", cases, images=images)
    again = read_dataset("preference_json", tmp_path, images=str(images)).cases
    assert [dataclasses.replace(case, split="train", licence="Apache-2.0") for case in again] == list(cases)
    source = json.loads((data_root / "mmedpo_preferences" / "data" / f"{file}_dpo_weighted.json").read_text("utf-8"))
    written = {row["id"]: row for row in json.loads((tmp_path / "pairs.json").read_text("utf-8"))}
    assert len(written) == {"vqa-rad": 127, "slake": 676}[file]

    def answers(row):
        return [row[talk][1]["value"] for talk in ("conversations", "rejected_conversations")]

    # most answers begin with one space and end with none, and so do all that are written
    usual = [row for row in source if all(text == f" {text.strip()}" for text in answers(row)) and row["id"] in written]
    assert len(usual) > 0.9 * len(written)
    assert [row for row in usual if row != written[row["id"]]] == []


@pytest.mark.parametrize("name", [name for name, small in SETS.items() if small.folder])
def test_spoiled_parts_of_real_sets_give_no_traceback_and_no_silence(data_root, tmp_path, name):
    """`benchmarks/fuzz_readers.py` runs thousands."""
    outcomes = [run_trial(name, seed, tmp_path, data_root) for seed in range(10)]
    assert [outcome for outcome in outcomes if outcome.verdict in BAD] == []
