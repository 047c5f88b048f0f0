"""What was drawn on the page, as a region that a model takes."""

import json

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.paper.pixel_prompts import Scribble
from lightbox.records import Box
from lightbox.view.regions import region_of, words_of


def sent(tool, *strokes, width=0.1):
    return json.dumps({"tool": tool, "strokes": strokes, "width": width})


def test_nothing_drawn_is_no_region():
    assert region_of("", (4, 4)) is None
    assert region_of(None, (4, 4)) is None


def test_a_box_may_be_drawn_from_any_corner():
    assert region_of(sent("box", [[0.75, 0.5], [0.25, 1.0]]), (40, 40)) == Box(0.25, 0.5, 0.75, 1.0)


def test_a_point_is_its_first_place():
    assert region_of(sent("point", [[0.25, 0.5]]), (40, 40)) == Scribble(((0.25, 0.5),))


@pytest.mark.parametrize("image_hw", [(64, 64), (40, 90), (1500, 900)])
def test_a_mask_covers_its_strokes_at_the_size_of_the_image(image_hw):
    mask = region_of(sent("mask", [[0.2, 0.2], [0.8, 0.2]], [[0.5, 0.9]]), image_hw)
    assert mask.shape == image_hw
    assert mask.dtype == bool
    rows, columns = (np.array([0.2, 0.2, 0.2, 0.9]) * image_hw[0]).astype(int), [0.2, 0.5, 0.79, 0.5]
    assert mask[rows, (np.array(columns) * image_hw[1]).astype(int)].all()
    assert not mask[int(0.5 * image_hw[0])].any()


@pytest.mark.parametrize(
    "drawn",
    [
        "no json",
        "[]",
        "7",
        '{"tool": "box"}',
        sent("lasso", [[0, 0], [1, 1]]),
        sent("box", [[0.5, 0.5]]),
        sent("box", [[0.5, 0.5], [0.5, 0.9]]),
        sent("box", [[0, 0], [1.5, 1]]),
        sent("box", [[0, 0], [float("nan"), 1]]),
        sent("mask", [[0, 0]], width=0),
        sent("mask", [[0, 0]], width=5),
        sent("mask", []),
        sent("mask"),
        sent("point", [["a", 0]]),
        sent("mask", [[0.5, 0.5]] * 5000),
        "[" * 100_000,
    ],
)
def test_what_is_no_region_is_refused_in_three_parts(drawn):
    with pytest.raises(RequestError, match="draw it again"):
        region_of(drawn, (30, 40))


def test_regions_have_words():
    assert words_of(None) == ""
    assert words_of(region_of(sent("point", [[0.25, 0.5]]), (4, 4))) == "point 0.25, 0.50"
    assert words_of(np.eye(2, dtype=bool)) == "mask, 50.0% of the image"
