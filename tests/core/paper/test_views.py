"""Views of training images: boxes lie where their pixels went, draws come again, nothing is mirrored."""

from dataclasses import dataclass

import numpy as np
import pytest

from lightbox.paper.samples import Sample, Split
from lightbox.paper.views import LEAST_SIDE_PX, view, with_views
from lightbox.records import Box

SIDE = 64


@dataclass(frozen=True)
class Boxed:
    boxes: tuple[Box, ...]


def marked(*boxes):
    """Dark, with each box bright."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    for box in boxes:
        x0, y0, x1, y1 = (round(edge * SIDE) for edge in box)
        image[y0:y1, x0:x1] = 200
    return image


@pytest.mark.parametrize("seed", range(12))
def test_a_box_is_around_its_pixels_in_every_view(seed):
    box = Box(0.25, 0.5, 0.5, 0.625)
    image, (moved,) = view(marked(box), [box], seed=seed)
    rows, columns = np.nonzero(image > 80)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(moved) * SIDE - seen).max() <= 2.0  # bilinear edges fade over a pixel or two


def test_views_differ_and_come_again():
    box = Box(0.25, 0.5, 0.5, 0.625)
    views = [view(marked(box), [box], seed=seed) for seed in (0, 1, 0)]
    assert np.array_equal(views[0][0], views[2][0])
    assert views[0][1] == views[2][1] != views[1][1]
    assert not np.array_equal(views[0][0], views[1][0])


def test_nothing_is_mirrored_and_colour_stays():
    left = Box(0.1, 0.4, 0.3, 0.6)
    colour = np.stack([marked(left), np.zeros_like(marked(left)), np.zeros_like(marked(left))], axis=2)
    for seed in range(40):
        image, (moved,) = view(colour, [left], seed=seed)
        assert image.shape == colour.shape
        assert moved.x1 < 0.5
        assert image[..., 0].max() > image[..., 1].max()


def test_a_box_that_leaves_the_image_is_gone_and_one_at_the_edge_is_cut():
    at_edge = Box(1 - LEAST_SIDE_PX / SIDE, 0.5, 1.0, 0.6)
    boxes = [view(marked(at_edge), [at_edge], seed=seed)[1][0] for seed in range(40)]
    assert None in boxes
    assert any(box is not None and box.x1 == 1.0 for box in boxes)
    assert all(box.area > 0 for box in boxes if box is not None)


def split_with(*items):
    """One image for each list of boxes, one sample for each of its boxes, or one absent."""
    samples = []
    for row, boxes in enumerate(items):
        for k, box in enumerate(boxes or [None]):
            samples.append(Sample(f"{row}/{k}", Boxed((box,) if box else ()), f"case{row}", row))
    return Split("train", samples, [marked(*boxes) for boxes in items], [f"case{row}" for row in range(len(items))])


def test_each_sample_has_its_copies_on_the_views_of_its_image():
    split = split_with([Box(0.2, 0.2, 0.4, 0.4), Box(0.6, 0.6, 0.8, 0.8)], [])
    wider = with_views(split, 3, seed=0, image_px=SIDE)
    assert wider.samples[: len(split.samples)] == split.samples
    assert len(wider.samples) == 4 * len(split.samples)
    assert len(wider.images) == len(wider.case_ids) == 4 * len(split.images)
    assert len(set(wider.ids)) == len(wider.ids)
    for copy in wider.samples[len(split.samples) :]:
        assert wider.case_ids[copy.image].startswith(f"{copy.case_id}/view ")
        for box in copy.record.boxes:
            middle = wider.images[copy.image][int((box.y0 + box.y1) / 2 * SIDE), int((box.x0 + box.x1) / 2 * SIDE)]
            assert middle > 80
    assert [bool(s.record.boxes) for s in wider.samples] == [True, True, False] + [True, True] * 3 + [False] * 3
    assert with_views(split, 0, seed=0, image_px=SIDE).samples == split.samples
    other = with_views(split, 3, seed=1, image_px=SIDE)
    assert any(not np.array_equal(a, b) for a, b in zip(wider.images, other.images, strict=True))


def test_a_present_finding_that_has_left_the_image_is_not_called_absent():
    at_edge = Box(1 - LEAST_SIDE_PX / SIDE, 0.5, 1.0, 0.6)
    wider = with_views(split_with([at_edge, Box(0.4, 0.4, 0.6, 0.6)]), 40, seed=0, image_px=SIDE)
    assert all(sample.record.boxes for sample in wider.samples)
    assert len(wider.samples) < 2 * 41
