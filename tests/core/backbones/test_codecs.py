"""Boxes as text: what each family writes, what comes back, and what is no box."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightbox.backbones.codecs import CODECS, FlorenceBins, Fraction, PerMille, Pixels
from lightbox.backbones.families import FAMILIES
from lightbox.errors import RequestError
from lightbox.records import Box, check_box

SIZE = (640, 480)
WRITTEN = {
    "florence_bins": "<loc_100><loc_200><loc_500><loc_999>",
    "per_mille": "<|box_start|>(100,200),(500,1000)<|box_end|>",
    "pixels": '{"bbox_2d": [64, 96, 320, 480]}',
    "fraction": "[0.100, 0.200, 0.500, 1.000]",
}
SWAPPED = {
    "florence_bins": "<loc_500><loc_200><loc_100><loc_999>",
    "per_mille": "(500,200),(100,900)",
    "pixels": '{"bbox_2d": [322, 95, 64, 476]}',
    "fraction": "[0.5, 0.2, 0.1, 0.9]",
}
OUTSIDE = {
    "florence_bins": "<loc_0><loc_0><loc_1500><loc_99999>",
    "per_mille": "(-30,-2),(1100,5000)",
    "pixels": '{"bbox_2d": [-30, -1.5, 9000, 9000]}',
    "fraction": "[-0.2, -1, 1.5, 2.]",
}
edges = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=2, unique=True).map(sorted)
boxes = st.tuples(edges, edges).map(lambda ends: Box(ends[0][0], ends[1][0], ends[0][1], ends[1][1]))
sides = st.integers(29, 3000)


def in_tokens(width, height):
    """Sides as Qwen resizes them where no bound on the area does more."""
    return round(width / 28) * 28, round(height / 28) * 28


every_codec = pytest.mark.parametrize("codec", [*CODECS.values(), FlorenceBins(64), Pixels(in_tokens)])


def test_every_family_names_a_codec():
    assert {family.codec for family in FAMILIES} == set(CODECS)


@pytest.mark.parametrize("name", CODECS)
def test_written_form_is_the_familys(name):
    assert CODECS[name].encode((0.1, 0.2, 0.5, 1.0), *SIZE) == WRITTEN[name]


@every_codec
@given(box=boxes, width=sides, height=sides)
def test_box_comes_back_within_half_a_step(codec, box, width, height):
    """One step where the box is thinner than that, as it then comes back one step wide."""
    read = codec.decode(codec.encode(box, width, height), width, height)
    assert len(read) == 1
    check_box(read[0], where="what was read")
    across, down = codec.step(width, height)
    for low, high, step in ((0, 2, across), (1, 3, down)):
        bound = step / 2 if box[high] - box[low] > step else step
        assert abs(read[0][low] - box[low]) <= bound + 1e-9
        assert abs(read[0][high] - box[high]) <= bound + 1e-9


@every_codec
@given(text=st.text(alphabet='<loc_0123456789>()[]{},.:"bx2d -', max_size=80))
def test_any_text_is_read_without_an_error_and_gives_boxes_inside_the_image(codec, text):
    for box in codec.decode(text, *SIZE):
        check_box(box, where="what was read")


@pytest.mark.parametrize("name", CODECS)
def test_several_boxes_are_read_in_order_out_of_a_sentence(name):
    codec = CODECS[name]
    given_boxes = [Box(0.1, 0.2, 0.5, 0.75), Box(0.25, 0.5, 0.5, 0.875)]
    text = " and ".join(f"a nodule {codec.encode(box, *SIZE)}" for box in given_boxes) + ", 3 of 4 (2)."
    read = codec.decode(text, *SIZE)
    assert len(read) == 2
    for box, expected in zip(read, given_boxes, strict=True):
        assert box == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("name", CODECS)
def test_text_that_breaks_off_inside_a_box_gives_the_boxes_before(name):
    whole = WRITTEN[name]
    assert len(CODECS[name].decode(whole + " " + whole[: len(whole) // 2], *SIZE)) == 1
    assert CODECS[name].decode("", *SIZE) == CODECS[name].decode("There is none.", *SIZE) == []


@pytest.mark.parametrize("name", CODECS)
def test_ends_in_the_wrong_order_are_no_box(name):
    assert CODECS[name].decode(SWAPPED[name], *SIZE) == []


@pytest.mark.parametrize("name", CODECS)
def test_ends_outside_the_image_are_moved_to_its_edge(name):
    (box,) = CODECS[name].decode(OUTSIDE[name], *SIZE)
    half_bin = 0.0005 if name == "florence_bins" else 0
    assert box == pytest.approx((half_bin, half_bin, 1 - half_bin, 1 - half_bin))


def test_box_thinner_than_a_bin_is_read_as_that_bin():
    assert FlorenceBins(64).decode("<loc_3><loc_8><loc_3><loc_10>", *SIZE) == [Box(3 / 64, 8.5 / 64, 4 / 64, 10.5 / 64)]
    assert PerMille().decode("(0,10),(0,20)", *SIZE) == [Box(0, 0.01, 0.0005, 0.02)]


@every_codec
@pytest.mark.parametrize("box", [(0.5, 0.1, 0.5, 0.2), (0.6, 0.1, 0.5, 0.2), (-0.1, 0, 1, 1), (0, 0, 1, float("nan"))])
def test_degenerate_box_is_refused_by_name(codec, box):
    with pytest.raises(RequestError, match=r"a box (for|in) .*x0 < x1 and y0 < y1"):
        codec.encode(box, *SIZE)


def test_box_tokens_are_not_needed_to_read_thousandths():
    assert PerMille().decode("(100, 200), (500,1000)", *SIZE) == [Box(0.1, 0.2, 0.5, 1.0)]


def test_pixels_are_those_that_the_model_sees():
    small = Pixels(lambda width, height: (112, 84))
    assert small.encode((0, 0, 1, 1), 640, 480) == '{"bbox_2d": [0, 0, 112, 84]}'
    assert small.decode('```json\n[{"bbox_2d": [0, 0, 56, 42], "label": "mass"}]', 640, 480) == [Box(0, 0, 0.5, 0.5)]


def test_fraction_reads_what_is_written_with_fewer_decimals():
    assert Fraction().decode("at [0, .5, 1, 1]", *SIZE) == []
    assert Fraction().decode("at [0, 0.5, 1, 1]", *SIZE) == [Box(0, 0.5, 1, 1)]


def test_codecs_need_no_torch():
    code = "import sys, lightbox.backbones.codecs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
