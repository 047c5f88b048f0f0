"""The tiny `modality_tower`: what it sees in which patch, in which colours, its loss by hand, scores, a build."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModel

from lightbox.paths import shared_data
from lightbox.phantom.modalities import HELD_OUT, MODALITIES, TRAINED
from lightbox.pretrain import catalog
from lightbox.pretrain.modality_pictures import CLASSES, trained_pictures
from lightbox.pretrain.modality_tower import (
    ABSENT_WEIGHT,
    PATCHES,
    ClassTower,
    area_under_curve,
    class_loss,
    class_set,
    colour_values,
    in_square,
    score_class_tower,
)
from lightbox.pretrain.tower import PATCH_PX, normalise


@pytest.fixture(scope="module")
def stream():
    return class_set("pretrain", 30)


@pytest.fixture(scope="module")
def tower():
    return CLIPVisionModel.from_pretrained(shared_data() / "weights" / "tower")


class Logits(torch.nn.Module):
    """A model that says what it is told to, whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, pixels):
        return self.logits


# ---- what is seen


def test_classes_are_those_of_trained_modalities_each_once():
    assert len(CLASSES) == len(set(CLASSES)) == 29
    only_held_out = {word for name in HELD_OUT for word in MODALITIES[name].classes} - set(CLASSES)
    assert {"optic disc", "polyp", "lumen"} <= only_held_out


def test_a_patch_is_of_a_class_where_any_of_its_pixels_is(stream):
    for index, (modality, case) in enumerate(trained_pictures("pretrain", 30)):
        assert TRAINED[stream.modalities[index]] == modality
        height, width = case.images[0].shape[:2]
        top, left = (64 - height) // 2, (64 - width) // 2
        wanted = np.zeros((PATCHES, len(CLASSES)), dtype=bool)
        for finding in case.findings:
            for row, column in zip(*finding.mask.nonzero(), strict=True):
                patch = (row + top) // PATCH_PX * 8 + (column + left) // PATCH_PX
                wanted[patch, CLASSES.index(finding.name)] = True
        assert np.array_equal(stream.classes[index], wanted)
    assert (stream.classes.sum(axis=2) > 1).any()  # a lesion in an organ


def test_colours_are_those_of_the_picture_and_grey_is_what_the_tiny_tower_reads(stream):
    pictures = dict(trained_pictures("pretrain", 30))
    skin = pictures["dermoscopy"].images[0]
    square = in_square(skin)
    assert np.array_equal(square[8:56], skin)
    assert not square[:8].any()
    assert not square[56:].any()
    chest = pictures["radiograph"].images[0]
    torch.testing.assert_close(colour_values(in_square(chest)[None]), normalise(chest[None]))


# ---- learning


def test_a_class_counts_alike_however_large_and_classes_that_no_picture_shows_count_as_absent():
    is_there = torch.zeros(1, PATCHES, len(CLASSES), dtype=torch.bool)
    is_there[0, :20, 0], is_there[0, 0, 1] = True, True
    logits = torch.zeros(is_there.shape)
    logits[..., 1] = 2.0
    batch = {"pixel_values": torch.zeros(1), "classes": is_there}
    loss, n, parts = class_loss(Logits(logits), batch)
    softplus = math.log1p(math.exp(2.0))
    present = (math.log(2) + math.log1p(math.exp(-2.0))) / 2  # of two classes, whatever their sizes
    n_absent = is_there.numel() - 21
    absent = (softplus * (PATCHES - 1) + math.log(2) * (n_absent - PATCHES + 1)) / n_absent
    assert n == 1
    assert float(parts["present"]) == pytest.approx(present, rel=1e-5)
    assert float(parts["absent"]) == pytest.approx(absent, rel=1e-5)
    assert float(loss) == pytest.approx(present + ABSENT_WEIGHT * absent, rel=1e-5)


def test_a_few_steps_lower_the_loss_and_reach_every_layer(stream, tower):
    torch.manual_seed(0)
    model = ClassTower(tower)
    tower.post_layernorm.requires_grad_(False)
    picks = list(range(0, 30, 7))
    batch = {"pixel_values": colour_values(stream.pixels[picks]), "classes": torch.from_numpy(stream.classes[picks])}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(6):
        loss, count, _ = class_loss(model, batch)
        optimiser.zero_grad()
        (loss / count).backward()
        optimiser.step()
        losses.append(float(loss.detach()) / count)
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


# ---- scores


def test_area_under_the_curve_by_hand():
    assert area_under_curve([1, 2, 3, 4], np.array([False, False, True, True])) == 1
    assert area_under_curve([1, 1, 1, 1], np.array([False, False, True, True])) == 0.5
    assert area_under_curve([4, 2, 3, 1], np.array([False, False, True, True])) == 0.25


def test_a_tower_that_knows_scores_1_and_one_that_does_not_scores_a_half():
    data = class_set("pretrain_validation", 60)
    knows = Logits(torch.from_numpy(data.classes).float())
    assert set(score_class_tower(knows, data, batch=60).values()) == {1.0}
    guesses = score_class_tower(Logits(torch.zeros(data.classes.shape)), data, batch=60)
    assert set(guesses.values()) == {0.5}
    assert {"patch", "presence", "patch_ct_liver", "presence_microscopy_parasite"} <= set(guesses)


# ---- the catalogue


@pytest.mark.slow
def test_a_short_build_is_read_by_transformers_as_it_was_trained(tmp_path, stream):
    (card,) = catalog.build("modality_tower", tmp_path, max_steps=1)
    assert card["recipe"]["steps"] == 1
    assert set(card["starts_from"]) == {"tiny/tower"}
    folder = tmp_path / "pretrain" / "modality_tower"
    tower = CLIPVisionModel.from_pretrained(folder)
    assert "shared_data" not in (folder / "config.json").read_text()
    pick = [int(np.flatnonzero(stream.modalities == TRAINED.index("dermoscopy"))[0])]
    seen = CLIPImageProcessor.from_pretrained(folder)(Image.fromarray(stream.pixels[pick[0]]), return_tensors="pt")
    torch.testing.assert_close(seen.pixel_values, colour_values(stream.pixels[pick]), atol=1e-5, rtol=0)
    assert tower(seen.pixel_values).last_hidden_state.shape == (1, 1 + PATCHES, 96)
