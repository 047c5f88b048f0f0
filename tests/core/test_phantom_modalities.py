"""Modalities of the phantom: the same everywhere, true by construction, told apart by look and not by grey value."""

import hashlib
from itertools import combinations

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.canvas import PictureKnobs, Stream
from lightbox.phantom.modalities import (
    EVALUATION_SPLITS,
    HELD_OUT,
    MODALITIES,
    TRAINED,
    VERSION,
    draw_case,
    draw_modality,
    shared_classes,
)
from lightbox.phantom.splits import SPLITS
from lightbox.records import Case, box_from_mask, check_case

FROZEN_VERSION = "modalities-1"
FROZEN = {
    "radiograph": "97e7ae969fb45cf3",
    "ultrasound": "6005947e501b115e",
    "fundus": "1593818ca423b8a9",
    "endoscopy": "eef43dc909cc2e1a",
    "dermoscopy": "cf45975419918be3",
    "ct": "cb183664e63d67ca",
    "mr": "8e407e1260e37a6b",
    "pet": "7eb2412a67be17d9",
    "microscopy": "be799e5e2573ad9a",
}


@pytest.fixture(scope="module")
def cases():
    return {name: draw_modality(name, "development", n=120) for name in MODALITIES}


def _digest(case: Case) -> str:
    told = hashlib.sha256(np.ascontiguousarray(case.images[0]).tobytes())
    for finding in case.findings:
        told.update(f"{finding.name} {sorted(finding.attributes.items())}".encode())
        told.update(np.packbits(finding.mask).tobytes())
    return told.hexdigest()


def frozen_digest(name: str) -> str:
    drawn = [draw_case(name, seed, PictureKnobs()) for seed in seed_range("development", 999, 6)]
    drawn.append(draw_case(name, 7, PictureKnobs(image_px=96, finding_scale_pct=140, noise_pct=50)))
    return hashlib.sha256("".join(map(_digest, drawn)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", MODALITIES)
def test_a_modality_is_redrawn_to_the_last_pixel_or_changes_its_version(name):
    drawn = frozen_digest(name)
    assert name in FROZEN, f"{name} has no frozen digest; look at its pictures, then add '{name}': '{drawn}' to FROZEN"
    assert (VERSION, drawn) == (FROZEN_VERSION, FROZEN[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODALITIES)
def test_a_case_depends_on_its_own_seed_and_modality_only(name, cases):
    for other in MODALITIES:
        draw_modality(other, "development", n=1)
    alone = draw_modality(name, "development", n=1, start=17)[0]
    assert _digest(alone) == _digest(cases[name][17])
    assert alone.id == cases[name][17].id
    assert _digest(alone) != _digest(cases[name][18])


def test_each_modality_draws_from_a_sub_stream_of_its_own():
    numbers = [modality.number for modality in MODALITIES.values()]
    assert len(set(numbers)) == len(numbers)
    firsts = [tuple(Stream(11, number).below(1 << 40) for _ in range(4)) for number in (*numbers, 101)]
    assert len(set(firsts)) == len(firsts)


def test_noise_does_not_move_with_the_size_of_the_image():
    small, large = Stream(3, 1, n_noise=10), Stream(3, 1, n_noise=1000)
    assert small.noise.tolist() == large.noise[:10].tolist()
    assert [small.below(100) for _ in range(50)] == [large.below(100) for _ in range(50)]


@pytest.mark.parametrize("name", MODALITIES)
def test_masks_lie_in_the_frame_and_boxes_are_theirs(name, cases):
    modality = MODALITIES[name]
    shape = tuple(64 * part // 8 for part in modality.eighths)
    for case in cases[name]:
        check_case(case, where=case.id)
        image = case.images[0]
        assert image.dtype == np.uint8
        assert image.shape == (*shape, 3) if modality.is_colour else image.shape == shape
        assert case.modality == f"phantom {name}"
        for finding in case.findings:
            assert finding.mask.shape == shape
            assert finding.mask.any()
            assert not finding.mask.all()
            assert finding.boxes == (box_from_mask(finding.mask),)


@pytest.mark.parametrize("name", MODALITIES)
def test_every_class_occurs_and_none_is_unheard_of(name, cases):
    names = [{finding.name for finding in case.findings} for case in cases[name]]
    assert set.union(*names) == set(MODALITIES[name].classes)
    assert len(MODALITIES[name].classes) >= 4
    shares = {word: np.mean([word in seen for seen in names]) for word in MODALITIES[name].classes}
    always = {"lung", "heart"} if name == "radiograph" else set()
    for word, share in shares.items():
        assert 0.04 < share < 0.96 or word in always, (word, share)  # to ask for what is absent it must be absent


def test_several_frames_are_not_square_and_one_is_upright():
    shapes = [modality.eighths for modality in MODALITIES.values()]
    assert sum(high != wide for high, wide in shapes) >= 5
    assert any(high > wide for high, wide in shapes)


@pytest.mark.parametrize("name", MODALITIES)
def test_another_size_shows_the_same_scene(name, cases):
    finer = draw_modality(name, "development", n=8, knobs=PictureKnobs(image_px=128))
    for fine, coarse in zip(finer, cases[name], strict=False):
        h, w = coarse.images[0].shape[:2]
        halved = [(f.name, f.mask.reshape(h, 2, w, 2).sum(axis=(1, 3)) >= 2) for f in fine.findings]
        for finding in (f for f in coarse.findings if f.mask.mean() > 0.02):
            overlaps = [
                (mask & finding.mask).sum() / (mask | finding.mask).sum()
                for word, mask in halved
                if word == finding.name
            ]
            assert max(overlaps) > 0.6, finding.name  # a vessel is a pixel wide: half of it may fall on the next one


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MODALITIES) - {"radiograph"}))
def test_scale_and_noise_do_what_they_say(name):
    def draw(**knobs):
        return draw_modality(name, "development", n=24, seed=1, knobs=PictureKnobs(**knobs))

    def mean_area(drawn):
        return np.mean([f.mask.sum() for case in drawn for f in case.findings if "size" in f.attributes])

    assert mean_area(draw(finding_scale_pct=60)) * 1.5 < mean_area(draw(finding_scale_pct=120))
    quiet, plain, loud = (
        np.array([case.images[0] for case in draw(noise_pct=pct)], dtype=int) for pct in (0, 100, 200)
    )
    assert 0 < np.abs(plain - quiet).mean() < np.abs(loud - quiet).mean()


@pytest.mark.parametrize("name", MODALITIES)
def test_attributes_are_those_that_the_mask_shows(name, cases):
    width = 8 * MODALITIES[name].eighths[1]
    halves = []
    for finding in (f for case in cases[name] for f in case.findings):
        columns = np.flatnonzero(finding.mask.any(axis=0))
        aside = np.argwhere(finding.mask)[:, 1].mean() + 0.5 - width / 2
        half = finding.attributes.get("half")
        if half is not None:
            assert (aside < 0) == (half == "left")
        else:
            assert abs(aside) < width / 8 + 0.5
        if columns[0] == 0 or columns[-1] == width - 1:
            assert "size" not in finding.attributes  # it is cut: nobody can tell
        halves.append(half)
    assert {"left", "right"} <= set(halves)


@pytest.mark.parametrize("name", sorted(set(MODALITIES) - {"radiograph"}))
def test_what_is_called_large_is_larger_than_what_is_called_small(name, cases):
    findings = [f for case in cases[name] for f in case.findings if "size" in f.attributes]
    assert findings
    for word in {f.name for f in findings}:
        small, large = (
            [f.mask.sum() for f in findings if f.name == word and f.attributes["size"] == size]
            for size in ("small", "large")
        )
        assert np.median(small) * 1.4 < np.median(large), word


def test_radiographs_are_those_of_the_chest_world_with_their_anatomy(cases):
    drawn = draw_cases(seed_range("development", 0, 120), Knobs())
    for ours, chest in zip(cases["radiograph"], drawn, strict=True):
        assert np.array_equal(ours.images[0], chest.images[0])
        findings = [f for f in ours.findings if f.name not in ("lung", "heart")]
        assert [f.name for f in findings] == [f.name for f in chest.findings]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(findings, chest.findings, strict=True))
        lungs = np.logical_or.reduce([f.mask for f in ours.findings if f.name == "lung"])
        (heart,) = [f.mask for f in ours.findings if f.name == "heart"]
        assert not (lungs & heart).any()
        pixels = np.asarray(chest.images[0])
        assert pixels[lungs].mean() + 30 < pixels[heart].mean()


def test_the_seeds_of_splits_never_meet():
    ids = {split: {case.id for case in draw_modality("ct", split, n=3, seed=2)} for split in SPLITS}
    assert all(not ids[a] & ids[b] for a, b in combinations(SPLITS, 2))
    assert not ids["train"] & {case.id for case in draw_modality("ct", "train", n=3, seed=3)}


@pytest.mark.parametrize("name", HELD_OUT)
def test_a_held_out_modality_is_never_drawn_for_training(name):
    for split in SPLITS:
        if split in EVALUATION_SPLITS:
            assert len(draw_modality(name, split, n=1)) == 1
        else:
            with pytest.raises(RequestError, match="held out"):
                draw_modality(name, split, n=1)


def test_held_out_modalities_share_words_with_those_that_train():
    assert set(HELD_OUT) | set(TRAINED) == set(MODALITIES)
    assert not set(HELD_OUT) & set(TRAINED)
    assert not {"train", "validation", "pretrain", "pretrain_validation"} & set(EVALUATION_SPLITS)
    for name in HELD_OUT:
        shared = shared_classes(name)
        assert shared, name
        assert all(any(word in MODALITIES[other].classes for other in TRAINED) for word in shared)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_modality("xray", "test", n=1), "modality='xray'"),
        (lambda: draw_modality("ct", "exam", n=1), "split='exam'"),
        (lambda: draw_modality("ct", "test", n=1, seed=1000), "seed=1000"),
        (lambda: PictureKnobs(image_px=60), "image_px=60"),
        (lambda: PictureKnobs(finding_scale_pct=20), "finding_scale_pct=20"),
        (lambda: PictureKnobs(noise_pct=300), "noise_pct=300"),
    ],
)
def test_other_requests_are_refused(call, message):
    with pytest.raises(RequestError, match=message):
        call()


def _looks(drawn: list[Case]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each region: what a 9 x 9 grid over it shows, with its place and size; its mean grey; its class."""
    looks, greys, names = [], [], []
    for case in drawn:
        image = np.asarray(case.images[0], dtype=float)
        image = image[..., None] if image.ndim == 2 else image
        h, w = image.shape[:2]
        for finding in case.findings:
            x0, y0, x1, y1 = finding.boxes[0]
            dx, dy = 0.3 * (x1 - x0), 0.3 * (y1 - y0)
            cols = np.clip(np.linspace((x0 - dx) * w, (x1 + dx) * w - 1, 9).round().astype(int), 0, w - 1)
            rows = np.clip(np.linspace((y0 - dy) * h, (y1 + dy) * h - 1, 9).round().astype(int), 0, h - 1)
            grid = np.ix_(rows, cols)
            shape = [3 * np.log((x1 - x0) * (y1 - y0)), 2 * np.log((x1 - x0) * w / ((y1 - y0) * h))]
            place = [2 * (x0 + x1), 2 * (y0 + y1)]
            looks.append(np.concatenate([image[grid].ravel() / 40, 1.5 * finding.mask[grid].ravel(), shape, place]))
            greys.append([image[finding.mask].mean() / 10])
            names.append(finding.name)
    return np.array(looks), np.array(greys), np.array(names)


def _nearest_accuracy(train, train_names, test, test_names) -> float:
    """Accuracy of the nearest neighbour, every class weighing alike."""
    distance = (test**2).sum(axis=1)[:, None] + (train**2).sum(axis=1)[None] - 2 * test @ train.T
    guesses = train_names[distance.argmin(axis=1)]
    return float(np.mean([(guesses[test_names == name] == name).mean() for name in np.unique(test_names)]))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODALITIES)
def test_a_class_is_learnable_from_its_pixels_and_not_from_its_grey_value(name, cases):
    train, test = _looks(cases[name]), _looks(draw_modality(name, "development", n=60, seed=5))
    look = _nearest_accuracy(train[0], train[2], test[0], test[2])
    grey = _nearest_accuracy(train[1], train[2], test[1], test[2])
    assert look > 0.65, (look, grey)
    assert grey < look - 0.2, (look, grey)
