"""Regions of images: fractions to pixels and back, edges included, and what is drawn, cut and moved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightbox.paper.image_regions import (
    box_elsewhere,
    box_fault,
    cropped,
    from_px,
    is_grey,
    jittered,
    marked,
    to_px,
    view,
)
from lightbox.records import Box, box_iou

WHOLE = Box(0.0, 0.0, 1.0, 1.0)
SIDES = st.integers(1, 3000)
ENDS = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda ends: ends[1] - ends[0] > 0.01)


@given(data=st.data(), width=SIDES, height=SIDES)
@settings(max_examples=100, deadline=None)
def test_pixels_come_back_from_fractions_exactly_edges_included(data, width, height):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (x0, y0, data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height)))
    assert to_px(from_px(box, (width, height)), (width, height)) == box
    assert to_px(WHOLE, (width, height)) == (0, 0, width, height)
    assert from_px((0, 0, width, height), (width, height)) == WHOLE


@given(data=st.data(), width=SIDES, height=SIDES)
@settings(max_examples=100, deadline=None)
def test_a_box_of_fractions_touches_at_least_one_pixel_and_loses_none(data, width, height):
    low, high = (data.draw(st.floats(0, 1)) for _ in range(2))
    if not low < high:
        return
    x0, y0, x1, y1 = to_px((low, low, high, high), (width, height))
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert x0 <= low * width + 1e-6
    assert x1 >= high * width - 1e-6
    assert x1 - x0 <= (high - low) * width + 2


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ((0.0, 0.0, 1.0, 1.0), ""),
        ((0.0, 0.0, 1e-9, 1e-9), ""),
        ((0.5, 0.2, 0.5, 0.4), "inverted"),
        ((0.2, 0.5, 0.4, 0.1), "inverted"),
        ((-1e-9, 0.0, 1.0, 1.0), "outside"),
        ((0.0, 0.0, 1.0, 1.0 + 1e-9), "outside"),
        ((0.0, 0.0, 1.0, float("nan")), "outside"),
        ((0.0, 0.0, 1.0, float("inf")), "outside"),
    ],
)
def test_a_box_is_inside_the_image_and_the_right_way_round(box, fault):
    assert box_fault(box) == fault


@pytest.mark.parametrize("line_px", [1, 3])
def test_outlines_are_as_wide_as_asked_and_hide_nothing_inside(line_px):
    image = Image.new("RGB", (40, 30), (9, 9, 9))
    is_red = (np.asarray(marked(image, [from_px((10, 10, 20, 16), image.size)], line_px=line_px)) == (255, 0, 0)).all(
        -1
    )
    assert is_red.sum() == (10 + 2 * line_px) * (6 + 2 * line_px) - 60
    assert not is_red[10:16, 10:20].any()
    assert np.asarray(image).max() == 9


def test_a_view_is_colour_of_the_longer_side_asked_for_and_never_without_a_pixel():
    assert view(Image.new("L", (300, 100)), 30).size == (30, 10)
    assert view(Image.new("L", (1000, 2)), 30).size == (30, 1)
    assert view(Image.new("L", (20, 10))).mode == "RGB"
    assert view(Image.new("L", (20, 10)), 40).size == (40, 20)


def test_grey_is_what_shows_no_colour():
    assert is_grey(Image.new("L", (4, 4), 100))
    assert is_grey(Image.new("RGB", (4, 4), (7, 7, 7)))
    tinted = Image.new("RGB", (4, 4), (7, 7, 7))
    tinted.putpixel((3, 3), (7, 7, 8))
    assert not is_grey(tinted)


def test_a_cut_out_region_is_widened_around_its_middle():
    levels = Image.fromarray(np.tile(np.arange(120, dtype=np.uint8), (60, 1)))
    part = np.asarray(cropped(levels, from_px((55, 20, 65, 40), levels.size), (40, 20)))[10, :, 0]
    assert abs(int(part[0]) - 40) <= 1  # 10 x 20 of a 120 x 60 image becomes 40 x 20: 40 to 80
    assert abs(int(part[-1]) - 79) <= 1


def test_a_box_is_moved_to_where_it_meets_the_others_least():
    image, rng = Image.new("L", (100, 100)), np.random.default_rng(0)
    wide = Box(0.0, 0.0, 0.9, 0.9)
    moved = box_elsewhere(wide, image, [wide], rng)
    assert (moved.x1 - moved.x0, moved.y1 - moved.y0) == pytest.approx((0.9, 0.9))
    assert moved.x1 <= 1
    assert box_iou(moved, wide) < 0.75  # nothing is free of it, the far corner overlaps by 0.65
    assert box_elsewhere(WHOLE, image, [WHOLE], rng) == WHOLE


@given(x=ENDS, y=ENDS, seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_jittered_box_overlaps_the_true_one_as_a_readers_does(x, y, seed):
    true = Box(x[0], y[0], x[1], y[1])
    moved = jittered(true, np.random.default_rng(seed))
    assert 0.5 - 1e-9 <= box_iou(moved, true) <= 0.9 + 1e-9
    assert 0 <= moved.x0 < moved.x1 <= 1
    assert 0 <= moved.y0 < moved.y1 <= 1


def test_jitter_that_no_draw_meets_shrinks_the_box_to_the_middle_of_the_range():
    true = Box(0.2, 0.2, 0.6, 0.4)
    moved = jittered(true, np.random.default_rng(0), low=0.7999999, high=0.8000001)
    assert box_iou(moved, true) == pytest.approx(0.8)
    assert moved.x0 > true.x0
    assert moved.x1 < true.x1
