"""Figures of pruning: what is drawn where, read back from pixels, and what cannot be drawn."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lightbox.errors import RequestError
from lightbox.records import Box
from lightbox.report import kept_tokens
from lightbox.report.kept_tokens import BoxRow, against_budget, boxes_by_way, kept_patches, side_by_side

PIXELS = np.full((32, 32), 90, dtype=np.uint8)
LESION = np.zeros((32, 32), dtype=bool)
LESION[9:12, 17:20] = True  # within the patch (1, 2) of 4 x 4


def read_png(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64) / 255


def share_of(picture, colour):
    """Share of the pixels of a picture that have a colour."""
    return float((np.abs(picture - np.array(to_rgb(colour))).max(axis=-1) < 0.02).mean())


def tinted(grey):
    share = kept_tokens.TINT_SHARE
    return tuple((1 - share) * grey + share * channel for channel in to_rgb(kept_tokens.TINT))


def grid_of(*kept):
    made = np.zeros((4, 4), dtype=bool)
    for place in kept:
        made[place] = True
    return made


def test_dropped_patches_are_tinted_and_kept_ones_are_not():
    halves = {
        name: read_png(kept_patches(PIXELS, {}, {"policy": own}, columns=2))
        for name, own in {"none": grid_of(), "half": grid_of(*np.ndindex(2, 4)), "all": ~grid_of()}.items()
    }
    share = {name: share_of(picture, tinted(90 / 255)) for name, picture in halves.items()}
    assert share["all"] < 0.001
    assert share["half"] == pytest.approx(share["none"] / 2, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "is_kept"), [((1, 2), True), ((1, 1), False), ((2, 2), False)])
def test_a_lesion_is_crossed_out_unless_a_patch_of_it_stays(place, is_kept):
    picture = read_png(kept_patches(PIXELS, {"nodule": LESION}, {"policy": grid_of(place)}, columns=2))
    legend_alone = read_png(kept_patches(PIXELS, {}, {"policy": grid_of(place)}, columns=2))
    crossed = share_of(picture, kept_tokens.GOES) - share_of(legend_alone, kept_tokens.GOES)
    assert (crossed > 0) is not is_kept


def test_the_title_says_what_the_image_is():
    own = kept_patches(PIXELS, {}, {"a": grid_of()})
    assert kept_patches(PIXELS, {}, {"a": grid_of()}, title="the image") == own
    assert kept_patches(PIXELS, {}, {"a": grid_of()}, title="a phantom") != own


def test_every_policy_has_a_panel():
    few = Image.open(io.BytesIO(kept_patches(PIXELS, {}, {"a": grid_of()}, columns=2)))
    many = Image.open(io.BytesIO(kept_patches(PIXELS, {}, {name: grid_of() for name in "abcde"}, columns=2)))
    assert many.width == few.width
    assert many.height > 2 * few.height


@pytest.mark.parametrize(
    ("regions", "kept", "words"),
    [
        ({}, {}, "No policy"),
        ({}, {"a": np.ones((5, 4), dtype=bool)}, r"What 'a' keeps, of shape \(5, 4\)"),
        ({}, {"a": np.ones(16, dtype=bool)}, r"What 'a' keeps, of shape \(16,\)"),
        ({"nodule": LESION[:8]}, {"a": grid_of()}, "The region 'nodule'"),
    ],
)
def test_what_does_not_fit_the_image_is_refused(regions, kept, words):
    with pytest.raises(RequestError, match=words):
        kept_patches(PIXELS, regions, kept)


def test_a_line_a_policy_and_grey_ones_for_baselines():
    lines = {"random": [(0.1, 0.2), (0.4, 0.9)], "ours": [(0.1, 0.8), (0.4, 1.0)]}
    plain = read_png(against_budget({"all": lines}, unit="share"))
    with_grey = read_png(against_budget({"all": lines}, unit="share", baselines=["random"]))
    first = kept_tokens.arm_colour(0)
    assert share_of(plain, first) > 0.001
    assert share_of(with_grey, first) > 0.001  # now the colour of what is no baseline
    assert share_of(with_grey, kept_tokens.arm_colour(1)) < share_of(plain, kept_tokens.arm_colour(1)) / 10
    wider = read_png(against_budget({"all": lines, "small": lines}, unit="share", whole=0.5))
    assert wider.shape[1] > plain.shape[1]


def test_ways_stand_side_by_side():
    rows = {"a": {"keep": 0.4, "compact": 0.1}, "b": {"keep": 0.3, "compact": 0.2}}
    picture = read_png(side_by_side(rows, unit="overlap", references={"all tokens": 0.5}))
    assert share_of(picture, kept_tokens.arm_colour(0)) > 2 * share_of(picture, kept_tokens.arm_colour(1)) > 0


def test_boxes_are_drawn_where_they_are_and_a_missing_one_is_not():
    true, near = Box(0.4, 0.4, 0.6, 0.6), Box(0.45, 0.45, 0.65, 0.65)
    both = read_png(boxes_by_way([BoxRow(PIXELS, [true], {"all": [near]})]))
    none = read_png(boxes_by_way([BoxRow(PIXELS, [true], {"all": []})]))
    far = read_png(boxes_by_way([BoxRow(PIXELS, [true], {"all": [Box(0.0, 0.0, 0.1, 0.1)]})]))
    drawn = {name: share_of(own, kept_tokens.DRAWN) for name, own in {"both": both, "none": none, "far": far}.items()}
    assert drawn["both"] > 2 * drawn["none"]  # the legend has a line of it too
    assert drawn["far"] < drawn["both"]  # outside the part that is shown
    assert share_of(none, kept_tokens.TRUE) > 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda: against_budget({}, unit="share"),
        lambda: against_budget({"all": {"a": []}}, unit="share"),
        lambda: side_by_side({}, unit="share"),
        lambda: boxes_by_way([]),
        lambda: boxes_by_way([BoxRow(PIXELS, [], {"all": []})]),
        lambda: boxes_by_way([BoxRow(PIXELS, [Box(0, 0, 1, 1)], {way: []}) for way in ("a", "b")]),
    ],
)
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(RequestError):
        draw()
