"""Sets of files with masks: who is held out, what is asked for at which size, and stage 3 that goes on on them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lightbox.paper.conditions import GREY
from lightbox.paper.drawn_regions import MASK, shuffled_rows
from lightbox.paper.pixel_items import SEG, check_item
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.real_masks import stretched_as
from lightbox.runs.folders import MODEL, read_card, read_scores
from medplib import evaluate, train
from medplib.artifact import save_model
from medplib.claims import PAPER
from medplib.config import chosen, inputs, resolve
from medplib.data import item_of, load_splits, target_of

SIZES = ((48, 64), (64, 40), (30, 30))
SETTINGS = ("preset=smoke", "data.source=mask_folders", "data.parts=3")


def disc(height, width, number):
    rows, columns = np.mgrid[:height, :width]
    return (rows - height / 3 - number) ** 2 + (columns - width / 2) ** 2 < (min(height, width) / 4) ** 2


@pytest.fixture
def root(tmp_path):
    """Nine images of three sizes, in colour and grey in turn, with a bright disc; every third has a dark corner."""
    for folder in ("images", "masks/nucleus", "masks/dark corner"):
        (tmp_path / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for n in range(9):
        height, width = SIZES[n % 3]
        pixels = random.integers(60, 90, (height, width), dtype=np.uint8)
        mask, corner = disc(height, width, n / 3), np.zeros((height, width), dtype=bool)
        pixels[mask] = 220
        if n % 3 == 0:
            corner[-10:, -10:] = True
            pixels[corner] = 0
            Image.fromarray(corner).save(tmp_path / "masks" / "dark corner" / f"{n}.png")
        Image.fromarray(np.stack([pixels] * 3, axis=-1) if n % 2 else pixels).save(tmp_path / "images" / f"{n}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / "nucleus" / f"{n}.png")
    return tmp_path


@pytest.fixture
def settings(root):
    return [*SETTINGS, f"data.root={root}"]


def test_every_image_is_scored_once_by_as_many_seeds_as_parts(settings):
    scored_ids = []
    for seed in range(3):
        learnt, scored = load_splits(resolve([*settings, "experiment=nuclei", f"run.seed={seed}"]))
        assert not set(learnt.case_ids) & set(scored.case_ids)
        assert (len(learnt.images), len(scored.images)) == (6, 3)
        assert len(set(scored.case_ids)) == len(scored.case_ids)
        scored_ids += scored.case_ids
    assert len(set(scored_ids)) == len(scored_ids) == 9


def test_requests_are_in_the_words_of_the_phantom_and_answers_ask_for_a_mask(settings):
    split, _ = load_splits(resolve([*settings, "experiment=nuclei"]))
    for sample in split.samples:
        asked, image = sample.record, split.images[sample.image]
        assert (asked.task, asked.kind) == (MASK, asked.name)
        assert asked.name in ("nuclei", "dark corner")
        assert asked.name in asked.text
        assert target_of(asked) == f"the {asked.name} {SEG} ."
        assert asked.mask.shape == image.shape[:2]
        item = item_of(sample, split, is_answered=True)
        check_item(item)
        np.testing.assert_array_equal(item.masks[0], asked.mask)
        grey = image if image.ndim == 2 else image[..., 0]
        assert (grey[asked.mask] > 200).all() if asked.name == "nuclei" else (grey[asked.mask] == 0).all()


def test_images_are_shrunk_with_their_masks_and_kinds_choose_classes(settings):
    split, _ = load_splits(resolve([*settings, "experiment=nuclei", "model.image_px=32", "data.kinds=['dark corner']"]))
    assert {sample.record.name for sample in split.samples} == {"dark corner"}
    assert {max(np.asarray(image).shape[:2]) for image in split.images} == {32}
    assert all(sample.record.mask.shape == (24, 32) for sample in split.samples)


def test_of_fewer_items_than_there_are_the_first_are_taken(settings):
    whole, _ = load_splits(resolve([*settings, "experiment=nuclei"]))
    some, scored = load_splits(resolve([*settings, "experiment=nuclei", "data.n_train=2", "data.n_test=1"]))
    assert some.ids == whole.ids[:2]
    assert (len(some.images), len(scored.samples)) == (len(set(some.case_ids)), 1)


def test_another_image_takes_the_size_of_its_own(settings):
    _, scored = load_splits(resolve([*settings, "experiment=nuclei"]))
    for sample, row in zip(scored.samples, shuffled_rows(scored, seed=0), strict=True):
        own = scored.images[sample.image]
        assert row != sample.image
        shown = item_of(sample, scored, image=row).image
        assert shown.shape[:2] == own.shape[:2]
        assert (item_of(sample, scored, image=len(scored.images)).image == GREY).all()
    tall = np.tile(np.arange(20, dtype=np.uint8)[:, None], (1, 10))
    wide = stretched_as(tall, np.zeros((10, 40, 3), dtype=np.uint8))
    assert wide.shape == (10, 40)
    assert (np.diff(wide.astype(int), axis=0) > 0).all()
    assert stretched_as(tall, tall) is tall


def test_another_image_is_of_another_patient_where_there_is_one(settings):
    _, scored = load_splits(resolve([*settings, "experiment=nuclei"]))
    patients = dict(zip(range(len(scored.images)), ("a", "a", "b"), strict=True))
    samples = [sample.with_record(patient_id=patients[sample.image]) for sample in scored.samples]
    for sample, row in zip(samples, shuffled_rows(replace(scored, samples=samples), seed=0), strict=True):
        assert patients[row] != sample.record.patient_id
    alone = [sample.with_record(patient_id="a") for sample in scored.samples]
    assert shuffled_rows(replace(scored, samples=alone), seed=0) == [sample.image for sample in alone]


def test_what_an_arm_without_weights_reads_is_in_its_key(settings, root):
    cfg = resolve([*settings, "experiment=nuclei_mean_mask"])
    before = inputs(cfg)
    assert inputs(resolve([*settings, "experiment=nuclei"]))["data"] == before["data"]
    assert chosen(cfg) == ("lightbox.readers.mask_folders",)
    Image.fromarray(~disc(*SIZES[0], 0)).save(root / "masks" / "nucleus" / "0.png")
    assert inputs(cfg)["data"] != before["data"]


@pytest.mark.parametrize(("method", "least"), [("oracle", 0.9), ("bright", 0.9), ("mean_mask", 0.5)])
def test_rivals_draw_on_images_of_any_size(settings, tmp_path, method, least):
    cfg = resolve([*settings, f"experiment=nuclei_{method}", "data.kinds=[nuclei]"])
    evaluate.run_baseline(cfg, tmp_path / "run")
    rows = read_scores(tmp_path / "run").to_pylist()
    assert len(rows) == 3
    assert {row["kind"] for row in rows} == {"nuclei"}
    assert np.mean([row["dice_present"] for row in rows]) > least


@pytest.mark.slow
def test_stage_3_goes_on_from_stage_3_and_its_card_says_what_was_left_out(settings, folders, new_model, tmp_path):
    parts = [f"model.segmenter={folders / 'sam'}", "data.n_test=4", "optim.max_steps=2"]
    cfg = resolve([*settings, *parts, "experiment=nuclei"])
    start = tmp_path / "grounding"
    save_model(start / MODEL, new_model("tiny"))
    base, run = find_pretrained(str(folders / "tiny")), tmp_path / "run"
    train.run(cfg, base, run, cache=tmp_path, needs={"grounding": start}, keeps_model=False)
    rows, card = read_scores(run).to_pylist(), read_card(run)
    assert {row["condition"] for row in rows} == {"image", "blank", "shuffled"}
    assert all(row["dice_present"] is not None for row in rows)
    assert set(card["learns"]) == {"networks", "seg_projector", "mask_decoder"}
    assert card["leaks"] == []
    assert card["requests"]["cases"] == 9
    assert card["baselines"]["question_only, dice"] > 0
    assert not any("region" in name or "presence" in name for name in card["baselines"])  # nobody asked
    assert "threshold" not in card  # no image is left to choose it on
    assert all(row["dice_chosen"] is None for row in rows)
    assert (run / MODEL).is_dir()
    untouched = replace(cfg, objective=replace(cfg.objective, is_trained=False))
    train.run(untouched, base, tmp_path / "as_it_was", cache=tmp_path, needs={"grounding": start}, keeps_model=False)
    assert read_scores(tmp_path / "as_it_was").num_rows == len(rows)


def test_arms_of_a_set_share_their_items_and_each_is_read_by_its_claim():
    real = {claim.id: claim for claim in PAPER.claims if claim.presets == ("real",)}
    assert list(real) == ["ER1", "ER2", "ER3"]
    for arm, claim in zip(("nuclei", "hippocampus", "chest"), real.values(), strict=True):
        assert set(claim.arms) == {name for name in PAPER.arms if name.split("_")[0] == arm}
        data = [{own for own in PAPER.arms[name].overrides if own.startswith("data.")} for name in claim.arms]
        assert all(own == data[0] for own in data)
        assert PAPER.arms[arm].needs == ("grounding",)
