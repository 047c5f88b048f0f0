"""The environment: what each tool shows, controls, and failures that have names."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.image_regions import box_fault, from_px, to_px, view
from lightbox.paper.image_tools import FAILURES, MARK_PX, Action, Feedback, observe
from lightbox.records import Box, box_iou

WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def picture(width=64, height=48, mode="L", seed=0):
    """Values 40 to 200, so that no pixel is red by itself."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(40, 201, shape, dtype=np.uint8), mode)


def red_pixels(image):
    return (np.asarray(image) == (255, 0, 0)).all(axis=-1)


def mark(*boxes):
    return [Action("mark", boxes)]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_mark_is_a_red_ring_of_three_pixels_around_the_box_and_changes_nothing_else(mode):
    image = picture(mode=mode)
    before = image.tobytes()
    shown = observe(image, mark(from_px((20, 10, 30, 25), image.size)))
    assert shown.failure == ""
    assert shown.images[0].mode == "RGB"
    wanted = np.zeros((48, 64), dtype=bool)
    wanted[7:28, 17:33] = True
    wanted[10:25, 20:30] = False
    assert np.array_equal(red_pixels(shown.images[0]), wanted)
    untouched = np.asarray(image.convert("RGB"))[~wanted]
    assert np.array_equal(np.asarray(shown.images[0])[~wanted], untouched)
    assert image.tobytes() == before


def test_the_outline_of_the_whole_image_is_drawn_inside_and_one_at_an_edge_is_cut_there():
    image = picture()
    ring = red_pixels(observe(image, mark(WHOLE)).images[0])
    assert ring.sum() == 64 * 48 - (64 - 2 * MARK_PX) * (48 - 2 * MARK_PX)
    corner = red_pixels(observe(image, mark(from_px((0, 0, 2, 2), image.size))).images[0])
    assert not corner[:2, :2].any()
    assert corner.sum() == 5 * 5 - 2 * 2


def test_all_boxes_of_a_mark_stand_on_one_copy():
    boxes = (Box(0.1, 0.1, 0.3, 0.3), Box(0.6, 0.6, 0.9, 0.9))
    together = observe(picture(), mark(*boxes))
    assert len(together.images) == 1
    apart = [red_pixels(observe(picture(), mark(box)).images[0]) for box in boxes]
    assert np.array_equal(red_pixels(together.images[0]), apart[0] | apart[1])


def test_a_box_marks_the_same_place_at_every_size_of_the_view():
    image, box = picture(256, 256), Box(0.25, 0.5, 0.375, 0.625)
    for view_px in (32, 64, 256):
        ring = red_pixels(observe(image, mark(box), Feedback(view_px=view_px)).images[0])
        rows, columns = np.flatnonzero(ring.any(axis=1)), np.flatnonzero(ring.any(axis=0))
        scale = view_px / 256
        assert (columns[0] + MARK_PX, columns[-1] + 1 - MARK_PX) == (64 * scale, 96 * scale)
        assert (rows[0] + MARK_PX, rows[-1] + 1 - MARK_PX) == (128 * scale, 160 * scale)


def test_a_crop_comes_from_the_original_and_not_from_the_view():
    """Stripes of one pixel: grey in a view of a quarter, black and white in the crop."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (256, 128)))
    assert np.ptp(np.asarray(view(stripes, 64))[8:-8, 8:-8]) < 40
    crop = observe(stripes, [Action("crop", (from_px((96, 96, 160, 160), (256, 256)),))], Feedback(view_px=64))
    assert crop.images[0].size == (64, 64)
    assert np.array_equal(np.asarray(crop.images[0])[..., 0], np.asarray(stripes)[96:160, 96:160])


def test_a_crop_keeps_the_shape_of_the_image_and_stays_inside():
    image = picture(100, 60, "RGB")
    for box in ((0, 0, 3, 40), (97, 20, 100, 60), (40, 30, 41, 31), (0, 0, 100, 60)):
        shown = observe(image, [Action("crop", (from_px(box, image.size),))])
        assert shown.images[0].size == (100, 60)
    assert np.array_equal(np.asarray(shown.images[0]), np.asarray(image))
    # 3 x 40 px is widened to 66.7 x 40, at the left edge
    levels = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (60, 1)))
    wide = np.asarray(observe(levels, [Action("crop", (from_px((0, 0, 3, 40), (100, 60)),))]).images[0])[30, :, 0]
    assert wide[0] == 0
    assert 64 <= wide[-1] <= 67


def test_level_and_width_spread_a_range_of_grey_and_zoom_cuts_it_out():
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    shown = np.asarray(observe(ramp, [Action("window", (WHOLE,), (0.5, 0.2))]).images[0])[0, :, 0].astype(int)
    low, high = 255 * 0.4, 255 * 0.6
    wanted = np.clip((np.arange(256) - low) / (high - low), 0, 1) * 255
    assert np.abs(shown - wanted).max() <= 0.51
    zoomed = observe(ramp, [Action("window", (Box(0.4, 0.4, 0.6, 0.6),), (0.5, 0.2))], Feedback(view_px=51))
    ends = np.asarray(zoomed.images[0])[0, :, 0]
    assert ends[0] < 12
    assert ends[-1] > 243
    plain = observe(ramp, [Action("window", (WHOLE,))]).images[0]
    assert np.array_equal(np.asarray(plain), np.asarray(ramp.convert("RGB")))


# ---- controls


def test_same_shows_the_view_of_the_image_whatever_was_asked():
    image = picture(128, 128)
    for tool in ("mark", "crop"):
        shown = observe(image, [Action(tool, (Box(0.1, 0.1, 0.2, 0.2),))], Feedback(tool="same", view_px=64))
        assert shown.images[0].tobytes() == view(image, 64).tobytes()


def test_another_tool_than_the_one_asked_for_can_be_shown():
    image, box = picture(), Box(0.2, 0.2, 0.5, 0.5)
    swapped = observe(image, mark(box), Feedback(tool="crop")).images[0]
    assert swapped.tobytes() == observe(image, [Action("crop", (box,))]).images[0].tobytes()


def test_random_boxes_have_as_many_pixels_lie_elsewhere_and_follow_from_the_seed():
    image, box, true = picture(256, 256), Box(0.1, 0.2, 0.2, 0.26), Box(0.5, 0.5, 0.7, 0.7)
    seen = [observe(image, mark(box), Feedback(boxes="random"), true_boxes=[true], seed=s).boxes[0] for s in range(50)]
    x0, y0, x1, y1 = to_px(box, image.size)
    for other in seen:
        left, top, right, bottom = to_px(other, image.size)
        assert (right - left, bottom - top) == (x1 - x0, y1 - y0)
        assert box_fault(other) == ""
        assert max(box_iou(other, box), box_iou(other, true)) == 0
    assert len(set(seen)) > 45
    again = observe(image, mark(box), Feedback(boxes="random"), true_boxes=[true], seed=7)
    assert again.boxes[0] == seen[7]
    whole = observe(image, mark(WHOLE), Feedback(boxes="random"))
    assert whole.boxes == (WHOLE,)


def test_the_oracle_shows_the_true_box_instead_of_a_wrong_one():
    image, wrong, true = picture(), Box(0.0, 0.0, 0.2, 0.2), Box(0.6, 0.6, 0.9, 0.9)
    for tool in ("mark", "crop"):
        oracle = observe(image, [Action(tool, (wrong,))], Feedback(boxes="true"), true_boxes=[true])
        assert oracle.boxes == (true,)
        assert oracle.images[0].tobytes() == observe(image, [Action(tool, (true,))]).images[0].tobytes()


# ---- failures


BOX = Box(0.25, 0.25, 0.5, 0.5)


@pytest.mark.parametrize(
    ("failure", "image", "actions", "feedback"),
    [
        ("no_action", picture(), [], Feedback()),
        ("too_many_actions", picture(), mark(BOX) * 2, Feedback()),
        ("unknown_tool", picture(), [Action("erase", (BOX,))], Feedback()),
        ("bad_arity", picture(), mark(), Feedback()),
        ("bad_arity", picture(), mark(*[BOX] * 5), Feedback()),
        ("bad_arity", picture(), [Action("crop", (BOX, BOX))], Feedback()),
        ("bad_arity", picture(), mark(BOX, BOX), Feedback(tool="crop")),
        ("inverted", picture(), mark(Box(0.5, 0.1, 0.2, 0.3)), Feedback()),
        ("inverted", picture(), mark(BOX, Box(0.1, 0.5, 0.2, 0.5)), Feedback(tool="same")),
        ("outside", picture(), mark(Box(-0.01, 0.1, 0.2, 0.3)), Feedback()),
        ("outside", picture(), mark(Box(0.9, 0.1, 1.01, 0.3)), Feedback()),
        ("outside", picture(), mark(Box(2.0, 2.0, 3.0, 3.0)), Feedback()),
        ("outside", picture(), mark(Box(float("nan"), 0.1, 0.2, 0.3)), Feedback()),
        ("outside", picture(), mark(Box(0.0, 0.0, float("inf"), 1.0)), Feedback()),
        ("bad_window", picture(), [Action("window", (BOX,), (0.5, 0.0))], Feedback()),
        ("bad_window", picture(), [Action("window", (BOX,), (1.5, 0.5))], Feedback()),
        ("not_grey", picture(mode="RGB"), [Action("window", (BOX,), (0.5, 0.5))], Feedback()),
        ("not_8_bit", Image.new("I;16", (64, 64)), mark(BOX), Feedback()),
        ("image_too_small", picture(6, 64), mark(BOX), Feedback()),
        ("image_too_small", picture(128, 128), mark(BOX), Feedback(view_px=6)),
        ("no_true_box", picture(), mark(BOX), Feedback(boxes="true")),
    ],
)
def test_what_cannot_be_done_is_a_named_failure_and_no_exception(failure, image, actions, feedback):
    shown = observe(image, actions, feedback)
    assert shown.failure == failure
    assert failure in FAILURES
    assert (shown.images, shown.boxes) == ((), ())


def test_every_failure_of_the_environment_was_met_above():
    marks = test_what_cannot_be_done_is_a_named_failure_and_no_exception.pytestmark[0]
    assert {case[0] for case in marks.args[1]} == set(FAILURES)


@given(
    values=st.lists(st.floats(), min_size=4, max_size=4),
    tool=st.sampled_from(["mark", "crop", "window", "erase"]),
    control=st.sampled_from(["own", "random", "true"]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
@settings(max_examples=100, deadline=None)
def test_no_box_and_no_size_raises(values, tool, control, size):
    action = Action(tool, (Box(*values),), (0.5, 0.5))
    shown = observe(picture(*size), [action], Feedback(boxes=control), true_boxes=[BOX])
    assert bool(shown.images) != bool(shown.failure)


def test_several_actions_where_they_are_allowed_give_one_image_each():
    actions = [*mark(BOX), Action("crop", (BOX,))]
    shown = observe(picture(), actions, Feedback(most_actions=2))
    assert [len(shown.images), len(shown.boxes)] == [2, 2]
    assert observe(picture(), [actions[0], Action("crop", ())], Feedback(most_actions=2)).failure == "bad_arity"


@pytest.mark.parametrize("wrong", [{"tool": "blur"}, {"boxes": "gold"}, {"view_px": 0}, {"most_actions": 0}])
def test_feedback_that_is_not_there_is_refused_before_a_run(wrong):
    with pytest.raises(RequestError, match="Correct the feedback"):
        Feedback(**wrong)
