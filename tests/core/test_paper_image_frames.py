"""Masks to an encoder's square and back, images of several aspects; the cover of a cell as an exact area."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightbox.errors import RequestError
from lightbox.paper.image_frames import Frame, letterboxed, official_reading, official_window, stretched
from lightbox.paper.moved_masks import mask_iou
from lightbox.readers.images import letterbox

SIDE = 256
ASPECTS = [(240, 240), (400, 200), (200, 400), (450, 150), (150, 450), (258, 181), (155, 225)]


def cornered(hw, side):
    """At the top left, as SAM of transformers puts it."""
    middle = letterboxed(hw, side)
    return replace(middle, top=0, left=0)


def ellipse(hw, centre=(0.55, 0.4), radii=(0.3, 0.25)):
    """A mask that no flip or transposition leaves alone."""
    y, x = ((np.arange(n) + 0.5) / n for n in hw)
    return ((y[:, None] - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1


@pytest.mark.parametrize("hw", ASPECTS)
@pytest.mark.parametrize("make", [letterboxed, cornered])
def test_a_mask_comes_back_from_a_quarter_of_the_square(hw, make):
    """At 64 x 64, the size of SAM's own logits at 256, filling included."""
    mask, frame = ellipse(hw), make(hw, SIDE)
    logits = torch.from_numpy(frame.cover(mask, (64, 64))) - 0.5
    back = frame.unpad(logits[None])
    assert back.shape == (1, *hw)
    assert mask_iou(back[0].numpy() > 0, mask) > 0.95


@pytest.mark.parametrize("hw", [(258, 181), (155, 225)])
def test_the_official_way_back_is_wrong_where_an_image_is_not_square(hw):
    """It takes numbers measured at 256 for places on a grid of 64: a shorter side of 180 is cut at 6 and not at 9.5."""
    mask, frame = ellipse(hw), letterboxed(hw, SIDE)
    logits = torch.from_numpy(frame.cover(mask, (64, 64))) - 0.5
    short = 64 * round(min(frame.height, frame.width)) / SIDE
    assert short < 64
    first, last = 6, 64
    cut = logits[:, first:last] if hw[0] > hw[1] else logits[first:last]
    back = torch.nn.functional.interpolate(cut[None, None], size=hw, mode="bilinear")[0, 0].numpy() > 0
    assert mask_iou(back, mask) < 0.9


@pytest.mark.parametrize("hw", ASPECTS)
def test_the_frame_is_where_the_house_puts_the_image(hw):
    white = np.full(hw, 255, np.uint8)
    there = letterbox(white, SIDE) > 0
    assert np.array_equal(letterboxed(hw, SIDE).cover(np.ones(hw, dtype=bool), (SIDE, SIDE)) > 0.5, there)


def test_cover_is_an_exact_area():
    """Four pixels a row on a grid of 3 x 2: the second pixel lies two thirds in the first cell... by hand."""
    mask = np.array([[False, True, False, False], [False, True, False, False]])
    cover = stretched((2, 4), (30, 60)).cover(mask, (2, 3))
    np.testing.assert_allclose(cover, [[0.25, 0.5, 0.0]] * 2, atol=1e-12)
    rng = np.random.default_rng(0)
    mask = rng.random((37, 91)) < 0.3
    for frame in (stretched(mask.shape, (56, 140)), letterboxed(mask.shape, 336), cornered(mask.shape, 336)):
        share = frame.height * frame.width / (frame.canvas_hw[0] * frame.canvas_hw[1])
        assert frame.cover(mask, (7, 5)).mean() == pytest.approx(mask.mean() * share)


def test_a_crop_loses_what_lies_outside():
    frame = Frame((100, 300), (336, 336), 0, -336, 336, 1008)  # as CLIP cuts by default
    left, middle = np.zeros((2, 100, 300), dtype=bool)
    left[:, :90], middle[:, 120:180] = True, True
    assert frame.cover(left, (24, 24)).sum() == 0
    assert frame.cover(middle, (10, 10)).mean() == pytest.approx(0.6)


def test_values_at_the_middle_of_cells_are_kept_and_gradient_flows():
    values = torch.arange(12.0).reshape(3, 4).requires_grad_()
    frame = Frame((3, 4), (30, 40), 0, 0, 30, 40)
    back = frame.unpad(values)
    torch.testing.assert_close(back, values)
    back.sum().backward()
    torch.testing.assert_close(values.grad, torch.ones(3, 4))


def test_a_mask_that_is_turned_is_refused():
    with pytest.raises(RequestError, match=r"A mask of 181 x 258 for an image of 258 x 181"):
        letterboxed((258, 181), SIDE).cover(np.ones((181, 258), dtype=bool), (24, 24))


@pytest.mark.parametrize(
    ("px", "window"), [(256, (0, 64)), (200, (0, 64)), (180, (6, 64)), (176, (8, 64)), (128, (32, 64))]
)
def test_the_official_window_is_that_of_the_released_code(px, window):
    assert official_window(px) == slice(*window)


@pytest.mark.parametrize("side", [64, 48])
def test_a_square_image_is_read_alike_by_both(side):
    wave = np.sin(np.linspace(0, 6, side))
    logits = 3 * wave[:, None] + wave
    np.testing.assert_allclose(official_reading(logits), logits, atol=1e-9 if side == 64 else 0.1)


def test_the_official_way_back_moves_what_an_image_shows_that_is_twice_as_wide_as_high():
    logits = np.full((32, 64), -5.0)
    logits[16:24] = 5.0  # third quarter of the height
    read = official_reading(logits)
    assert read.shape == (32, 64)
    # rows 32 to 64 of the canvas: lower half of the image, stretched from 16 to 16 rows of 32, and filling below it
    np.testing.assert_array_equal(np.unique(np.flatnonzero((read > 0).any(axis=1))), np.arange(8))
    assert (read[16:] == -5).all()


def test_the_official_way_back_squeezes_an_image_three_quarters_as_wide_as_high_with_its_filling():
    logits = np.full((64, 48), 5.0)
    logits[60:] = -5.0
    columns = np.flatnonzero((official_reading(logits)[:60] > 0).all(axis=0))
    # 64 columns are read as 48: the 8 of filling on either side as 6
    np.testing.assert_array_equal(columns, np.arange(6, 42))
