"""Figures of images beside their copies: outlines read back from pixels, and what cannot be drawn."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lightbox.errors import RequestError
from lightbox.report.image_rows import REGION, image_rows

GREY = np.full((16, 16), 90, dtype=np.uint8)
SPOT = np.zeros((16, 16), dtype=bool)
SPOT[4:9, 6:12] = True
ROWS = {"spot": {"image": GREY, "copy": GREY}, "all": {"image": GREY, "copy": GREY}}


def share_in_colour(data, colour):
    """Share of the pixels of a PNG that have a colour."""
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) / 255
    return float((np.abs(picture - np.array(to_rgb(colour))).max(axis=-1) < 0.02).mean())


def test_a_region_is_outlined_once_in_the_first_image_of_its_row():
    one = share_in_colour(image_rows(ROWS, {"spot": SPOT}, title="drawn"), REGION)
    two = share_in_colour(image_rows(ROWS, {"spot": SPOT, "all": SPOT}, title="drawn"), REGION)
    assert one > 0
    assert two == pytest.approx(2 * one, rel=0.1)


@pytest.mark.parametrize("region", [np.ones_like(SPOT), np.zeros_like(SPOT)])
def test_all_and_nothing_have_no_outline(region):
    assert share_in_colour(image_rows(ROWS, {"all": region}, title="drawn"), REGION) == 0


def test_grey_is_drawn_as_it_is():
    assert share_in_colour(image_rows(ROWS, {}, title="drawn"), (90 / 255,) * 3) > 0.3


@pytest.mark.parametrize(
    ("rows", "regions", "message"),
    [
        ({}, {}, "at least one"),
        ({"a": {}}, {}, "at least one"),
        ({"a": {"x": GREY}, "b": {"y": GREY}}, {}, "the same columns"),
        ({"a": {"x": GREY}}, {"b": SPOT}, "Name one of the rows"),
        ({"a": {"x": GREY}}, {"a": SPOT[:4]}, "its height and width"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows, regions, message):
    with pytest.raises(RequestError, match=message):
        image_rows(rows, regions, title="drawn")
