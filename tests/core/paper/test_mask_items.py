"""Images with the mask of a class: what is asked for, what is left out and counted, and who is held out."""

import sys
from dataclasses import replace
from subprocess import run

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.drawn_regions import MASK, PRESENCE, load_asked
from lightbox.paper.mask_items import ItemRules, divided_items, load_items, mask_requests
from lightbox.records import Case, Finding

HW = (12, 20)


def square(top, left, side):
    mask = np.zeros(HW, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.fixture
def cases():
    """Ten images of five patients: a liver in all, a cyst in every second one and looked for in all."""
    made = []
    for n in range(10):
        image = np.full(HW, 10 * n, dtype=np.uint8)
        cyst = Finding("Cyst", mask=square(2, 2, 2)) if n % 2 else Finding("Cyst", present=False)
        findings = (Finding("Liver", mask=square(4, 8, 6)), cyst)
        made.append(Case(f"scan{n}", (image,), patient_id=f"patient{n // 2}", findings=findings, modality="CT"))
    return made


def test_an_item_holds_the_image_the_words_and_the_mask_of_its_class(cases):
    items = {item.id: item for item in divided_items(cases, seed=0).train}
    item = next(item for key, item in items.items() if key.endswith("-mask-cyst"))
    number = int(item.case_id.removeprefix("scan"))
    assert (item.name, item.modality, item.patient_id) == ("cyst", "CT", f"patient{number // 2}")
    assert "cyst" in item.question
    assert (item.image == 10 * number).all()
    np.testing.assert_array_equal(item.mask, square(2, 2, 2))


def test_no_patient_is_on_two_sides_and_as_many_seeds_as_parts_score_every_item_once(cases):
    splits = [divided_items(cases, seed=seed) for seed in range(5)]
    for own in splits:
        assert not {item.patient_id for item in own.train} & {item.patient_id for item in own.held}
        assert (own.counts["train_images"], own.counts["test_images"]) == (8, 2)
    assert sorted(item.id for own in splits for item in own.held) == sorted(
        [f"scan{n}-mask-liver" for n in range(10)] + [f"scan{n}-mask-cyst" for n in range(1, 10, 2)]
    )


def test_items_depend_on_the_seed_and_not_on_the_order_of_cases(cases):
    first, again, other = (
        divided_items(given, seed=seed) for given, seed in ((cases, 3), (cases[::-1], 3), (cases, 8))
    )
    said = [[(item.id, item.question) for item in (*own.train, *own.held)] for own in (first, again, other)]
    assert said[0] == said[1] != said[2]


def test_absent_classes_make_up_their_share_and_have_empty_masks(cases):
    none, third, most = (divided_items(cases, seed=0, rules=ItemRules(absent_pct=pct)).train for pct in (0, 33, 90))
    assert all(item.is_present for item in none)
    absent = [item for item in third if not item.is_present]
    # four cysts are there, so 33 of 100 are one (1 of 5) and not two (2 of 6)
    assert [(item.name, item.mask.shape) for item in absent] == [("cyst", HW)]
    assert sum(not item.is_present for item in most) == 4


@pytest.mark.parametrize(
    ("rules", "n_train", "reason", "n_left_out"),
    [
        (ItemRules(per_case=1), 8, "over_per_case", 5),
        (ItemRules(per_patient=2), 8, "over_per_patient", 5),
        (ItemRules(most=6), 6, "over_most", 6),
        (ItemRules(), 12, "over_most", 0),
    ],
)
def test_what_is_above_a_cap_is_left_out_and_counted(cases, rules, n_train, reason, n_left_out):
    splits = divided_items(cases, seed=0, rules=rules)
    assert (len(splits.train), splits.counts["train_items"]) == (n_train, n_train)
    assert splits.counts[reason] == n_left_out
    assert splits.counts["absent_beyond_share"] == 5


def test_a_class_that_is_not_drawn_and_one_that_training_never_shows_are_left_out_and_counted(cases):
    held = divided_items(cases, seed=0).held[0].case_id
    cases = [
        replace(case, findings=(case.findings[0], Finding("Stone", mask=square(0, 0, 1)))) if case.id == held else case
        for case in cases
    ]
    other = next(place for place, case in enumerate(cases) if case.id != held)
    cases[other] = replace(cases[other], findings=(Finding("Liver"), *cases[other].findings))
    splits = divided_items(cases, seed=0)
    assert splits.counts["classes_not_trained"] == 1
    assert splits.counts["present_without_a_mask"] == 1
    assert not {f"{held}-mask-stone", f"{cases[other].id}-mask-liver"} & {i.id for i in (*splits.train, *splits.held)}


def test_large_images_are_shrunk_with_their_masks_and_what_vanishes_is_counted(cases):
    splits = divided_items(cases, seed=0, rules=ItemRules(longest_px=5))
    assert {item.image.shape for item in splits.train} == {(3, 5)}
    assert {item.name for item in splits.train} == {"liver"}  # of 2 x 2 pixels no cell of 4 x 4 is covered by half
    # so training shows no cyst, and neither of the two held-out images is asked for one
    assert (splits.counts["masks_lost_by_shrinking"], splits.counts["classes_not_trained"]) == (4, 2)
    liver = splits.train[0].mask
    assert liver[1:, 2:4].any()
    assert not liver[:, [0, 4]].any()
    small = divided_items(cases, seed=0, rules=ItemRules(longest_px=100)).train[0]
    assert small.image.shape == HW


def test_grey_levels_fill_the_range_alike_for_all_channels(cases):
    image = np.zeros((*HW, 3), dtype=np.uint8)
    image[:, 10:, 0], image[:, 10:, 1] = 30, 15
    cases = [replace(case, images=(image + n,)) if n < 9 else case for n, case in enumerate(cases)]
    train = divided_items(cases, seed=0, rules=ItemRules(use_full_range=True)).train
    dark = [item.image for item in train if item.case_id != "scan9"]
    assert dark
    for own in dark:
        assert [own[0, 0].tolist(), own[0, 19].tolist()] == [[0, 0, 0], [255, 128, 0]]
    assert {int(item.image.max()) for item in train if item.case_id == "scan9"} <= {90}  # it is constant
    assert max(item.image.max() for item in divided_items(cases[:9], seed=0).train) <= 38


def test_an_image_that_cannot_be_read_costs_its_own_items(cases, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    cases[0] = replace(cases[0], images=(tmp_path / "broken.png",))
    splits = [divided_items(cases, seed=seed) for seed in range(5)]
    assert [own.counts["unreadable_images"] for own in splits] == [1] * 5
    assert not any(item.case_id == "scan0" for own in splits for item in (*own.train, *own.held))


def test_folders_of_images_and_masks_are_read_and_a_broken_mask_is_a_problem(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for n in range(6):
        Image.fromarray(np.full((*HW, 3), 40 * n, dtype=np.uint8)).save(tmp_path / "images" / f"p{n}.png")
        mask = Image.fromarray(square(1, n, 4).astype(np.uint8) * 255)
        mask.save(tmp_path / "masks" / f"p{n}_liver.png")
    Image.new("L", (3, 3), 255).save(tmp_path / "masks" / "p5_spleen.png")
    splits = load_items("mask_folders", tmp_path, seed=1, parts=3)
    items = (*splits.train, *splits.held)
    assert sorted(item.id for item in items) == [f"p{n}-mask-liver" for n in range(6)]
    assert all((item.mask == square(1, int(item.case_id[1]), 4)).all() for item in items)
    assert {item.image.shape for item in items} == {(*HW, 3)}
    assert ["p5_spleen.png" in str(problem) for problem in splits.problems] == [True]


def test_requests_of_the_phantom_take_the_same_form():
    split = load_asked("test", seed=0, modalities=("ct",), tasks={MASK: 6, PRESENCE: 6})
    pairs = list(mask_requests(split))
    assert [sample.id for sample, _ in pairs] == [s.id for s in split.samples if s.record.task == MASK] != []
    for sample, item in pairs:
        asked = sample.record
        assert (item.id, item.question, item.name, item.modality) == (sample.id, asked.text, asked.name, "ct")
        assert item.is_present == (asked.answer == "present")
        assert item.image is split.images[sample.image]
        assert item.mask.shape == item.image.shape[:2]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"absent_pct": 91}, "absent_pct=91"),
        ({"per_case": 0}, "per_case"),
        ({"longest_px": -1}, "longest_px"),
        ({"texts": ("segment it .",)}, r"Write \{name\}"),
    ],
)
def test_rules_out_of_range_are_refused(rules, message):
    with pytest.raises(RequestError, match=message):
        ItemRules(**rules)


def test_a_split_without_an_item_and_two_images_of_one_name_are_refused(cases):
    with pytest.raises(RequestError, match="The split 'test' of these cases .* none that the training images show"):
        divided_items([replace(case, findings=(Finding(case.id, mask=square(0, 0, 1)),)) for case in cases], seed=0)
    with pytest.raises(RequestError, match="such as 'scan0'"):
        divided_items([*cases, replace(cases[0], images=(np.ones(HW, np.uint8),))], seed=0)


@pytest.mark.slow
def test_items_are_made_without_torch():
    code = "import sys, lightbox.paper.mask_rivals; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
