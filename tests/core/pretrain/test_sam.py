"""The tiny `sam`: what it sees and must not see, prompts of its training beside those of use, scores, a build."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.segmenter import load_segmenter
from lightbox.phantom.modalities import HELD_OUT, MODALITIES, TRAINED, draw_modality
from lightbox.phantom.splits import load_splits
from lightbox.pretrain import catalog
from lightbox.pretrain.modality_pictures import CLASSES, IMAGE_PX, MUST_NOT_SEE, SCALES_PCT, trained_pictures
from lightbox.pretrain.sam import make_processor, make_sam, train_sam
from lightbox.pretrain.sam_rows import (
    PROMPTS,
    SHIFT_FRAC,
    VISITS,
    PromptRows,
    a_point,
    balanced_bce,
    bare_pixels,
    mask_box,
    mask_set,
    pixel_values,
    prompt_loss,
    prompted_masks,
    shifted,
)
from lightbox.pretrain.sam_scores import KINDS, dice_of, ellipse_in, score_sam
from lightbox.runs.sources import closure


@pytest.fixture(scope="module")
def stream():
    return mask_set("pretrain", 30)


@pytest.fixture(scope="module")
def rows(stream):
    return PromptRows(stream)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return make_sam()


@pytest.fixture(scope="module")
def segmenter(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return load_segmenter(str(folder))


# ---- what is seen


def test_every_trained_modality_is_drawn_and_no_other(stream):
    assert set(stream.modalities) == set(TRAINED)
    assert all(modality in MUST_NOT_SEE for modality in HELD_OUT)
    assert {word for names in stream.names for word in names} <= set(CLASSES)
    low, high = load_splits()["seed_ranges"]["pretrain"]
    seeds = [int(case.id.rpartition("-")[2]) for _, case in trained_pictures("pretrain", 30)]
    assert all(low <= seed < high for seed in seeds)


def test_findings_come_in_three_sizes():
    cases = [case for name, case in trained_pictures("pretrain", 30) if name == "ct"]
    share = len(cases) // len(SCALES_PCT)
    plain = draw_modality("ct", "pretrain", n=share, seed=1)
    assert [case.id for case in cases[share : 2 * share]] == [case.id for case in plain]  # the same seeds
    assert not np.array_equal(cases[share].images[0], plain[0].images[0])  # and smaller findings


def test_pictures_that_are_not_square_are_among_them(stream):
    for modality, size in zip(stream.modalities, stream.sizes_hw, strict=True):
        assert size == tuple(IMAGE_PX * part // 8 for part in MODALITIES[modality].eighths)
    assert {(48, 64), (64, 40), (64, 64)} == set(stream.sizes_hw)


def test_a_mask_lies_where_its_finding_does(stream):
    cases = [case for _, case in trained_pictures("pretrain", 30) if case.findings]
    for index, case in enumerate(cases):
        height, width = stream.sizes_hw[index]
        for mask, finding in zip(stream.masks(index), case.findings, strict=True):
            assert np.array_equal(mask[:height, :width], finding.mask)
            assert mask.sum() == finding.mask.sum()
            box = finding.boxes[0]
            assert mask_box(mask) == pytest.approx(
                np.array([box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height])
            )


def test_pictures_are_read_as_the_processor_reads_them(stream):
    picks = [stream.sizes_hw.index(size) for size in ((64, 64), (48, 64), (64, 40))]
    sizes = [stream.sizes_hw[k] for k in picks]
    images = [Image.fromarray(stream.pixels[k][: size[0], : size[1]]) for k, size in zip(picks, sizes, strict=True)]
    seen = make_processor()(images, return_tensors="pt")
    torch.testing.assert_close(pixel_values(stream.pixels[picks], sizes), seen.pixel_values, atol=1e-5, rtol=0)
    assert seen.reshaped_input_sizes.tolist() == [list(size) for size in sizes]


# ---- prompts


def test_a_shifted_box_stays_in_the_picture_and_near_the_true_one():
    rng = np.random.default_rng(0)
    box = np.array([2.0, 10.0, 42.0, 13.0])
    moved = np.stack([shifted(box, (48, 64), rng) for _ in range(500)])
    reach = np.abs(moved - box).max(axis=0)
    assert reach == pytest.approx([4, 1, 4, 1], abs=0.1)  # 40 px wide, 3 high
    assert SHIFT_FRAC == 0.1
    assert ((moved[:, 2:] - moved[:, :2]) >= 1).all()
    assert moved.min() >= 0


def test_a_point_is_the_middle_of_a_pixel_of_the_object():
    mask = np.zeros((6, 8), dtype=bool)
    mask[2, 5] = True
    assert a_point(mask, np.random.default_rng(0)).tolist() == [5.5, 2.5]


def test_a_point_means_the_smallest_object_under_it():
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0], masks[1, 1:3, 1:3], masks[2, 1:3, 1:3] = True, True, True
    assert bare_pixels(masks, 0).sum() == 12
    assert bare_pixels(masks, 1).sum() == 4
    assert np.array_equal(bare_pixels(masks[[0, 0, 1]], 2), masks[1])
    covered = np.stack([masks[1], masks[1] & (np.arange(4) == 1), masks[1] & (np.arange(4) == 2)])
    assert bare_pixels(covered, 0).sum() == 4  # nothing of it is bare


def test_a_visit_follows_from_its_index_alone(rows, stream):
    together, alone = rows.collate([3, 5]), rows.collate([5])
    for name, value in alone.items():
        assert torch.equal(together[name][1:], value)
    again = rows.collate([5 + len(stream)])
    assert torch.equal(again["pixel_values"], alone["pixel_values"])
    assert not torch.equal(again["boxes"], alone["boxes"])
    assert len(rows) == VISITS * len(stream)


def test_a_visit_points_at_objects_of_different_classes_where_there_are(rows, stream):
    picture = next(
        k for k, name in enumerate(stream.modalities) if name == "microscopy" and len(set(stream.names[k])) > 1
    )
    of_mask = {mask.tobytes(): name for mask, name in zip(stream.masks(picture), stream.names[picture], strict=True)}
    for visit in range(VISITS):
        masks = rows.collate([picture + visit * len(stream)])["masks"][0].numpy()
        assert len({of_mask[mask.tobytes()] for mask in masks}) == PROMPTS


@pytest.mark.slow
def test_masks_in_training_are_those_of_the_segmenter_in_use(rows, model, segmenter, stream):
    """Boxes and points, on pictures of every shape, through `load_segmenter` and its own way of asking."""
    indices = list(range(0, len(stream), 2))
    batch = rows.collate(indices)
    with torch.no_grad():
        ours, iou = prompted_masks(model.eval(), batch)
    images = [Image.fromarray(stream.pixels[k][: stream.sizes_hw[k][0], : stream.sizes_hw[k][1]]) for k in indices]
    embeddings = segmenter.embed(images)
    assert batch["is_point"].any()
    for row in range(len(indices)):
        wh = batch["sizes"][row].flip(0)
        for k in range(PROMPTS):
            prompt = {"boxes": batch["boxes"][row, k : k + 1] / wh.repeat(2)}
            if batch["is_point"][row, k]:
                prompt = {"points": batch["points"][row, k : k + 1] / wh, "labels": torch.ones(1, 1, dtype=torch.long)}
            with torch.no_grad():
                encoded = segmenter.encode_prompts(embeddings, **prompt, image_of=[row])
                masks = segmenter.decode(embeddings, *encoded, image_of=[row])
            torch.testing.assert_close(masks.low_res_logits[0, 0], ours[row, k], atol=1e-4, rtol=0)
            torch.testing.assert_close(masks.iou[0, 0], iou[row, k], atol=1e-4, rtol=0)
            height, width = batch["sizes"][row].tolist()
            torch.testing.assert_close(masks.logits[0][0], ours[row, k, :height, :width], atol=1e-4, rtol=0)


# ---- learning


def test_embeddings_are_alive_from_the_start(model, rows):
    features = model.vision_encoder(rows.collate([0, 1])["pixel_values"]).last_hidden_state
    assert features.std() > 0.05  # 1e-21 with the defaults of transformers
    frozen = {name.rpartition(".")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert "positional_embedding" in frozen
    assert model.config.vision_config.scale == 1.0


def test_filling_carries_no_loss(rows, model):
    index = rows.data.sizes_hw.index((64, 40))
    batch = rows.collate([index])
    with torch.no_grad():
        loss = prompt_loss(model, batch)[0]
        batch["masks"][:, :, :, 40:] = True
        assert torch.equal(prompt_loss(model, batch)[0], loss)
        batch["masks"][:, :, :, :40] = True
        assert not torch.equal(prompt_loss(model, batch)[0], loss)


@pytest.mark.slow
def test_a_few_steps_teach_the_masks_of_a_few_prompts(rows):
    """Two objects of each picture, so that a prompt must be read to know which is meant."""
    torch.manual_seed(0)
    model, batch = make_sam(), rows.collate([0, 12, 26])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    overlaps = []
    for _ in range(40):
        loss, count, parts = prompt_loss(model, batch)
        optimiser.zero_grad()
        (loss / count).backward()
        optimiser.step()
        overlaps.append(float(parts["iou"]))
    assert max(overlaps[:5]) < 0.15
    assert overlaps[-1] > 0.4
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_inside_and_outside_of_a_mask_count_alike():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[0, 0] = True
    logits = torch.full((8, 8), -2.0)
    inside, outside = math.log1p(math.exp(2.0)), math.log1p(math.exp(-2.0))
    assert float(balanced_bce(logits, mask)) == pytest.approx((inside + outside) / 2, rel=1e-5)


@pytest.mark.slow
def test_a_killed_build_continues_from_its_checkpoint(stream, tmp_path):
    models = []
    for _ in range(2):
        torch.manual_seed(0)  # a build begins so; what is frozen is drawn again and not in a checkpoint
        models.append(make_sam())
    first, again = models
    train_sam(first, stream, tmp_path, max_steps=1)
    with torch.no_grad():
        again.mask_decoder.mask_tokens.weight.zero_()
    train_sam(again, stream, tmp_path, max_steps=1)  # nothing is left to do
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


# ---- scores


def test_baselines_by_hand():
    ellipse = ellipse_in(np.array([0.0, 0.0, 6.0, 4.0]), (4, 7))
    middle, ends = [1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0, 0]
    assert ellipse.astype(int).tolist() == [ends, middle, middle, ends]
    assert dice_of(ellipse, ellipse) == 1
    assert dice_of(np.array([[True, True, False]]), np.array([[False, True, True]])) == 0.5


def test_scores_are_by_kind_modality_and_class_and_baselines_beat_a_random_model(segmenter):
    held_back = mask_set("pretrain_validation", 15)
    scores = score_sam(segmenter, held_back)
    assert set(KINDS) <= set(scores)
    assert all(0 <= value <= 1 for value in scores.values())
    for modality in TRAINED:
        classes = {
            name.replace(" ", "_")
            for own, names in zip(held_back.modalities, held_back.names, strict=True)
            if own == modality
            for name in names
        }
        own = [scores[f"box_{modality}_{name}"] for name in classes]
        assert scores[f"box_{modality}"] == pytest.approx(np.mean(own), abs=1e-3)
    assert scores["box"] < scores["filled"] < 0.95
    assert 0.5 < scores["ellipse"]


# ---- the catalogue


@pytest.mark.slow
def test_a_short_build_has_its_card(tmp_path):
    (card,) = catalog.build("sam", tmp_path, max_steps=1)
    assert card["recipe"]["steps"] == 1
    assert card["parameters"] < 500_000
    assert card["pictures"] == "modalities-1"
    assert {"box", "shifted", "point", "filled", "ellipse"} <= set(card["scores"])
    assert load_segmenter(str(tmp_path / "pretrain" / "sam")).model.config.vision_config.scale == 1.0


def test_segmenters_are_no_code_of_published_results():
    modules = closure("lightbox.studies.pruning")
    assert not [name for name in modules if name.startswith(("lightbox.pretrain.sam", "lightbox.pretrain.modality"))]
