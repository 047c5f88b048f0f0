"""Prompts to masks and masks to features, on images that are not square."""

import numpy as np
import pytest
import torch

from lightbox.errors import RequestError
from lightbox.paper.image_frames import Frame, letterboxed, stretched
from lightbox.paper.pixel_prompts import Polygon, Scribble, mask_of, point, pool, region_weights
from lightbox.records import Box

HW = (40, 100)


def seen_places(frame, grid):
    """Features that say where a patch lies: y and x of its middle, in fractions of the image."""
    y, x = np.meshgrid(*((np.arange(n) + 0.5) / n for n in grid), indexing="ij")
    y = (y * frame.canvas_hw[0] - frame.top) / frame.height
    x = (x * frame.canvas_hw[1] - frame.left) / frame.width
    return torch.tensor(np.stack([y.ravel(), x.ravel()], axis=1))


# ---- prompts


def test_a_box_is_the_pixels_that_it_touches_rows_first():
    mask = mask_of(Box(0.2, 0.25, 0.5, 0.5), HW)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 20, 49)
    assert mask.sum() == 10 * 30
    assert mask_of(Box(0.201, 0.26, 0.202, 0.27), HW).sum() == 1  # smaller than a pixel


def test_a_point_is_a_disc_around_it_of_a_size_that_follows_the_image():
    small, large = mask_of(point(0.8, 0.25), HW), mask_of(point(0.8, 0.25), (400, 1000))
    assert small[10, 80]
    assert not small[:, :70].any()
    assert large.mean() == pytest.approx(np.pi * 12.5**2 / 400_000, rel=0.02)
    assert mask_of(Scribble(((1.0, 1.0),), width_frac=1e-9), HW).nonzero() == (39, 99)  # its own pixel, at the edge too


def test_a_scribble_joins_its_spots():
    mask = mask_of(Scribble(((0.1, 0.5), (0.5, 0.5), (0.5, 0.9)), width_frac=0.1), HW)
    assert mask[20, 10:50].all()
    assert mask[20:36, 50].all()
    assert not mask[:17].any()
    assert not mask[30, :45].any()


def test_a_polygon_is_what_it_encloses():
    triangle = mask_of(Polygon(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))), HW)
    assert triangle.sum() == pytest.approx(40 * 100 / 2, abs=50)
    assert triangle[1, 90]
    assert not triangle[38, 90]
    square = mask_of(Polygon(((0.2, 0.25), (0.5, 0.25), (0.5, 0.5), (0.2, 0.5))), HW)
    assert np.array_equal(square, mask_of(Box(0.2, 0.25, 0.5, 0.5), HW))
    star = Polygon(((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)))  # crosses itself in the middle
    assert not mask_of(star, HW)[2, 50]


def test_a_mask_is_itself_whatever_its_one_label():
    mask = np.zeros(HW, np.uint8)
    mask[3, 7] = 255
    assert mask_of(mask, HW).nonzero() == (3, 7)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (point(1.2, 0.5), r"the spot \(1\.2, 0\.5\)\. Spots lie in the image"),
        (Scribble(((0.1, float("nan")),)), "Spots lie in the image"),
        (Scribble(()), r"A region of 0 spots\. It takes 1 or more"),
        (Polygon(((0.1, 0.1), (0.2, 0.2))), r"A region of 2 spots\. It takes 3 or more"),
        (Polygon(((0.1, 0.1), (0.1001, 0.1), (0.1, 0.1001))), "A region of kind Polygon .* No pixel lies in it"),
        (Box(0.5, 0.1, 0.4, 0.2), "Region: field 'box'"),
        (np.zeros(HW, bool), r"A region of kind ndarray on an image of 40 x 100\. No pixel lies in it"),
        (np.ones((100, 40), bool), r"A mask of shape \(100, 40\)\. The image is 40 x 100"),
        (np.arange(4000).reshape(HW) % 3, r"with the labels \[1, 2\]\. Which of them is meant is not said"),
    ],
)
def test_prompts_that_mean_no_region_are_refused(prompt, message):
    with pytest.raises(RequestError, match=message):
        mask_of(prompt, HW)


# ---- pooling


@pytest.mark.parametrize("grid", [(24, 24), (3, 8), (5, 2)])
def test_a_constant_map_gives_the_constant(grid):
    mask = np.random.default_rng(0).random(HW) < 0.1
    weights = region_weights([mask], letterboxed(HW, 336), grid)
    pooled = pool(torch.full((grid[0] * grid[1], 3), 1.75, dtype=torch.float64), weights)
    torch.testing.assert_close(pooled, torch.full((1, 3), 1.75, dtype=torch.float64))


def test_a_region_of_one_cell_gives_that_cell():
    grid = (4, 10)
    mask = np.zeros(HW, bool)
    mask[20:30, 70:80] = True  # row 2, column 7 of a grid with cells of 10 x 10
    pooled = pool(torch.eye(40), region_weights([mask, ~mask], stretched(HW, (56, 140)), grid))
    assert pooled[0].argmax() == 27
    assert pooled[0, 27] == pytest.approx(1.0)
    assert pooled[1, 27] == 0


@pytest.mark.parametrize("hw", [HW, (100, 40), (300, 100)])
@pytest.mark.parametrize("make", [letterboxed, lambda hw, side: stretched(hw, (168, 280))])
def test_the_mean_place_of_a_region_is_its_own_on_any_frame(hw, make):
    """Transposed or shifted geometry would put it elsewhere."""
    frame, grid = make(hw, 336), (24, 20)
    box = Box(0.1, 0.5, 0.4, 0.9)
    place = pool(seen_places(frame, grid), region_weights([mask_of(box, hw)], frame, grid))[0]
    torch.testing.assert_close(place, torch.tensor([0.7, 0.25], dtype=torch.float64), atol=0.03, rtol=0)


def test_an_object_smaller_than_a_patch_keeps_its_weight_and_an_edge_is_shared():
    mask = np.zeros((672, 672), bool)
    mask[300:303, 321:324] = True  # 3 px where a patch has 28
    weights = region_weights([mask], letterboxed(mask.shape, 336), (24, 24))
    assert weights[0, 10, 11] == pytest.approx(1.0)
    mask[300:303, 334:338] = True  # two pixels on either side of an edge between patches
    mask[300:303, 321:324] = False
    weights = region_weights([mask], letterboxed(mask.shape, 336), (24, 24))
    assert weights[0, 10, 11] == pytest.approx(0.5)
    assert weights[0, 10, 12] == pytest.approx(0.5)


def test_gradient_reaches_the_patches_under_a_region_alone():
    features = torch.zeros(8, 2, requires_grad=True)
    mask = np.zeros(HW, bool)
    mask[:, :25] = True
    pool(features, region_weights([mask], stretched(HW, HW), (2, 4))).sum().backward()
    assert features.grad[:, 0].tolist() == [0.5, 0, 0, 0, 0.5, 0, 0, 0]


def test_what_cannot_be_pooled_is_refused():
    edge = mask_of(Box(0.0, 0.0, 0.1, 1.0), (100, 300))
    with pytest.raises(RequestError, match=r"Region 0, of 3000 pixels\. Nothing of it is left .* show the model all"):
        region_weights([edge], Frame((100, 300), (336, 336), 0, -336, 336, 1008), (24, 24))
    with pytest.raises(RequestError, match=r"grid of 2 x 3 and 8 patches"):
        pool(torch.zeros(8, 2), np.ones((1, 2, 3)))
