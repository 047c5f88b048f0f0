"""Samples from the phantom and from a real format: counts, forms, splits, and refusals."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from lightbox import phantom
from lightbox.errors import RequestError
from lightbox.paper.samples import leaks
from medthink.config import resolve
from medthink.data import load_splits

SMALL = ["preset=smoke", "data.n_train=20", "data.n_test=10"]


def write_rationale_set(root, *, n_train=6, n_test=3, shared=1):
    """A folder in the format of R-SLAKE: `shared` test images are training images too."""
    (root / "closed-end").mkdir(parents=True)
    for split, first, count in (("train", 0, n_train), ("test", n_train - shared, n_test)):
        rows = {}
        for number in range(first, first + count):
            folder = root / "images" / f"xmlab{number}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (40, 60), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "source.jpg")
            rows[f"{split}{number}"] = {
                "question": "Is the lung clear?",
                "choices": ["Yes", "No"],
                "answer": number % 2,
                "solution": "The left lung shows a dense nodule in its upper zone.",
                "img_id": number,
                "img_name": f"xmlab{number}/source.jpg",
            }
        (root / "closed-end" / f"{split}set.json").write_text(json.dumps(rows))
    return root


def test_phantom_gives_exactly_the_items_asked_for():
    train, test = load_splits(resolve([*SMALL, "run.seed=1"]))
    assert (len(train.samples), len(test.samples)) == (20, 10)
    assert len({item.id for item in train.samples + test.samples}) == 30
    assert max(item.image for item in train.samples) == len(train.images) - 1 == len(train.case_ids) - 1
    assert all(len(sample.record.options) == 2 and sample.record.rationale for sample in train.samples)


def test_splits_and_seeds_share_no_case():
    seen = [
        {item.case_id for item in split.samples}
        for seed in (0, 1)
        for split in load_splits(resolve([*SMALL, f"run.seed={seed}"]), with_images=False)
    ]
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_item_shows_the_image_of_its_case():
    train, _ = load_splits(resolve([*SMALL, "run.seed=0"]))
    seeds = phantom.seed_range("train", 0, 6)
    for case in phantom.draw_cases(seeds, closed=True):
        for item in train.samples:
            if item.case_id == case.id:
                assert np.array_equal(train.images[item.image], case.images[0])


def test_text_alone_is_the_same_without_pixels():
    cfg = resolve([*SMALL, "run.seed=2"])
    with_pixels, without = load_splits(cfg), load_splits(cfg, with_images=False)
    assert [s.samples for s in with_pixels] == [s.samples for s in without]
    assert without[0].images == []


def test_open_form_has_no_options():
    train, _ = load_splits(resolve([*SMALL, "data.form=open"]), with_images=False)
    assert not any(sample.record.is_closed for sample in train.samples)
    assert {sample.record.kind for sample in train.samples} <= {"zone", "count", "presence"}


@pytest.mark.parametrize("split", ["validation", "test_shifted"])
def test_other_splits_can_be_scored(split):
    _, scored = load_splits(resolve([*SMALL, f"data.eval_split={split}"]), with_images=False)
    assert scored.name == split
    assert len(scored.samples) == 10


def test_digest_of_a_split_changes_with_one_pixel():
    train, test = load_splits(resolve([*SMALL, "run.seed=0"]))
    before = test.digest()
    assert before != train.digest()
    test.images[0] = test.images[0].copy()
    test.images[0][0, 0] ^= 1
    assert test.digest() != before


def test_real_set_gives_items_with_rationales(tmp_path):
    root = write_rationale_set(tmp_path)
    train, test = load_splits(resolve([*SMALL, "data.source=r_slake", f"data.root={root}"]))
    assert (len(train.samples), len(test.samples)) == (6, 3)
    assert train.samples[1].record.answer == "No"
    assert train.samples[1].record.rationale.startswith("The left lung")


def test_leaks_of_an_official_split_are_counted_and_by_image_has_none(tmp_path):
    root = write_rationale_set(tmp_path, n_train=20, n_test=10, shared=4)
    official = [*SMALL, "data.source=r_slake", f"data.root={root}"]
    assert "4 of 10 test images" in leaks(resolve(official).data)[0]
    clean = resolve([*official, "data.split=by_image"])
    assert all(sentence.startswith("0 of ") for sentence in leaks(clean.data))
    train, test = load_splits(clean)
    assert {i.case_id for i in train.samples}.isdisjoint({i.case_id for i in test.samples})


@pytest.fixture
def vqa_med(tmp_path):
    """VQA-Med 2019, two images a part, three questions each: two of modality, one of either form, and a plane."""
    asked = {
        "Modality": ["is this a t1 weighted image?|no", "what kind of image is this?|ct"],
        "Plane": ["what plane is this?|axial"],
    }
    for part, first in (("train", 1), ("val", 3)):
        folder = tmp_path / part
        (folder / "images").mkdir(parents=True)
        (folder / "QAPairsByCategory").mkdir()
        for number in (first, first + 1):
            Image.new("L", (8, 8), number).save(folder / "images" / f"synpic{number}.jpg")
        by_kind = {
            kind: [f"synpic{number}|{text}\n" for text in texts for number in (first, first + 1)]
            for kind, texts in asked.items()
        }
        for kind, lines in by_kind.items():
            (folder / "QAPairsByCategory" / f"C1_{kind}_{part}.txt").write_text("".join(lines))
        (folder / f"All_QA_Pairs_{part}.txt").write_text("".join(itertools.chain(*by_kind.values())))
    source = ["data.source=vqa_med_2019", f"data.root={tmp_path}", "data.eval_split=validation"]
    return [*SMALL, *source, "experiment=none"]


@pytest.mark.parametrize(
    ("form", "kinds", "number"),
    [("closed", "[]", 2), ("open", "[]", 4), ("any", "[]", 6), ("any", "[plane]", 2), ("open", "[modality]", 2)],
)
def test_form_and_kinds_choose_the_questions_of_a_real_set(vqa_med, form, kinds, number):
    for split in load_splits(resolve([*vqa_med, f"data.form={form}", f"data.kinds={kinds}"])):
        assert len(split.samples) == number
        assert {sample.record.kind for sample in split.samples} <= set(kinds.strip("[]").split(",")) or kinds == "[]"


def test_a_kind_that_a_set_lacks_is_named_and_the_phantom_takes_no_choice(vqa_med):
    with pytest.raises(RequestError, match="holds no closed question of kind organ or plane"):
        load_splits(resolve([*vqa_med, "data.kinds=[organ,plane]"]))
    for choice in ("data.kinds=[side]", "data.form=any"):
        with pytest.raises(RequestError, match=f"{choice.split('=')[0]} is .* and data.source is phantom"):
            resolve([*SMALL, choice])


def test_strategy_that_needs_rationales_refuses_data_without_them(tmp_path):
    folder = tmp_path / "slake"
    folder.mkdir()
    row = {"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "Is it clear?", "answer": "Yes", "qid": 1}
    row |= {"q_lang": "en", "answer_type": "CLOSED", "base_type": "vqa", "location": "Lung", "modality": "CT"}
    for name in ("train", "test"):
        (folder / f"{name}.json").write_text(json.dumps([row]))
    given = [*SMALL, "data.source=slake", f"data.root={folder}"]
    for arm in ("explanation", "reasoning", "stage1", "stage2_gold", "reader"):
        with pytest.raises(RequestError, match="1 of its 1 training questions have no rationale") as error:
            load_splits(resolve([*given, f"experiment={arm}"]))
        assert error.value.do.endswith("or objective.method=none.")
    assert len(load_splits(resolve([*given, "experiment=none"]))[0].samples) == 1
