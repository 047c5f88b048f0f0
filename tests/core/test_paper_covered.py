"""What a covered box looks like."""

import numpy as np
import pytest
from PIL import Image

from lightbox.paper.covered import cover
from lightbox.paper.image_regions import to_px
from lightbox.records import Box

BOX = Box(0.25, 0.5, 0.5, 0.75)


@pytest.mark.parametrize("shape", [(64, 96), (64, 96, 3)])
def test_a_covered_box_has_the_mean_of_what_lies_around_it_and_the_rest_stays(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    covered = np.asarray(cover(Image.fromarray(pixels), BOX))
    x0, y0, x1, y1 = to_px(BOX, (96, 64))
    inside = np.zeros(shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    assert np.array_equal(covered[~inside], pixels[~inside])
    assert len(np.unique(covered[inside].reshape(inside.sum(), -1), axis=0)) == 1
    assert np.abs(covered[y0, x0].astype(int) - 127).max() < 30


def test_a_box_of_the_whole_image_is_covered_too():
    assert np.asarray(cover(Image.new("L", (8, 8), 200), Box(0, 0, 1, 1))).max() == 0
