"""Prompts drawn from a mask: on the region, the same for the same draws, true to it where nothing jitters."""

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.phantom.modalities import draw_modality
from lightbox.phantom.region_prompts import PROMPTS, own_pixels, prompt_region, text_stream
from lightbox.records import Finding, box_from_mask, box_iou, check_box

FOLLOWED = ("box", "polygon", "mask")


@pytest.fixture(scope="module")
def cases():
    return [case for name in ("ultrasound", "dermoscopy", "pet") for case in draw_modality(name, "development", n=25)]


def _square(rows: slice, cols: slice, shape=(12, 20)) -> Finding:
    mask = np.zeros(shape, dtype=bool)
    mask[rows, cols] = True
    return Finding("square", mask=mask)


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_prompt_lies_in_the_image_and_meets_its_region(kind, cases):
    for case in cases:
        for place, finding in enumerate(case.findings):
            prompt = prompt_region(case.findings, place, kind=kind, stream=text_stream(f"{case.id} {place}"))
            assert prompt.kind == kind
            assert prompt.mask.shape == finding.mask.shape
            assert (prompt.mask & finding.mask).any()
            assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in prompt.points)
            check_box(prompt.box, where=case.id)
            if kind in ("point", "scribble"):
                assert not (prompt.mask & ~own_pixels(case.findings, place)).any()
                assert kind == "scribble" or prompt.mask.sum() == 1


@pytest.mark.parametrize("kind", PROMPTS)
def test_the_same_draws_give_the_same_prompt_and_others_another(kind, cases):
    case = max(cases, key=lambda case: max(f.mask.sum() for f in case.findings) if case.findings else 0)
    place = int(np.argmax([f.mask.sum() for f in case.findings]))
    first, again, *others = (
        prompt_region(case.findings, place, kind=kind, stream=text_stream(text)) for text in ("a", "a", "b", "c", "d")
    )
    assert first.points == again.points
    assert np.array_equal(first.mask, again.mask)
    assert any(not np.array_equal(first.mask, other.mask) for other in others)


@pytest.mark.parametrize("kind", FOLLOWED)
def test_without_jitter_a_rectangle_comes_back_whole(kind):
    finding = _square(slice(2, 9), slice(4, 17))
    prompt = prompt_region([finding], 0, kind=kind, stream=text_stream("x"), jitter_pct=0)
    assert np.array_equal(prompt.mask, finding.mask)
    assert prompt.box == box_from_mask(finding.mask)


@pytest.mark.parametrize("kind", FOLLOWED)
def test_more_jitter_follows_the_region_less(kind, cases):
    def overlap(jitter_pct: int) -> float:
        return float(
            np.mean(
                [
                    box_iou(
                        f.boxes[0],
                        prompt_region([f], 0, kind=kind, stream=text_stream(case.id), jitter_pct=jitter_pct).box,
                    )
                    for case in cases
                    for f in case.findings
                    if f.mask.sum() > 60
                ]
            )
        )

    assert 1 >= overlap(0) > overlap(10) > overlap(40) > 0.2


def test_a_polygon_is_convex_round_its_region_where_nothing_jitters(cases):
    for case in cases:
        for finding in case.findings:
            prompt = prompt_region([finding], 0, kind="polygon", stream=text_stream("x"), jitter_pct=0)
            assert 3 <= len(prompt.points) <= 12
            if len(prompt.points) <= 8:  # its corners may have been thinned else
                assert (prompt.mask & finding.mask).sum() >= 0.6 * finding.mask.sum()


def test_a_point_on_a_container_is_not_on_what_lies_in_it():
    outer, inner = _square(slice(0, 12), slice(0, 20)), _square(slice(1, 11), slice(1, 19))
    assert own_pixels([outer, inner], 0).sum() == 240 - 180
    assert np.array_equal(own_pixels([outer, inner], 1), inner.mask)
    covered = [_square(slice(3, 4), slice(3, 5)), _square(slice(3, 4), slice(3, 4)), _square(slice(3, 4), slice(4, 5))]
    assert np.array_equal(own_pixels(covered, 0), covered[0].mask)  # nothing of its own is left
    for text in "abcdefgh":
        prompt = prompt_region([outer, inner], 0, kind="point", stream=text_stream(text))
        assert not (prompt.mask & inner.mask).any()


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_region_of_one_pixel_and_one_of_all_pixels_can_be_prompted(kind):
    for finding in (_square(slice(0, 1), slice(19, 20)), _square(slice(0, 12), slice(0, 20))):
        for text in "abcd":
            prompt = prompt_region([finding], 0, kind=kind, stream=text_stream(text), jitter_pct=50)
            assert (prompt.mask & finding.mask).any() or kind == "box"
            check_box(prompt.box, where=kind)


@pytest.mark.parametrize(
    ("finding", "options", "message"),
    [
        (_square(slice(0, 2), slice(0, 2)), {"kind": "lasso"}, "kind='lasso'"),
        (_square(slice(0, 2), slice(0, 2)), {"kind": "box", "jitter_pct": 60}, "jitter_pct=60"),
        (_square(slice(0, 0), slice(0, 0)), {"kind": "box"}, "with an empty mask"),
        (Finding("nodule"), {"kind": "point"}, "without mask"),
    ],
)
def test_what_cannot_be_prompted_is_refused(finding, options, message):
    with pytest.raises(RequestError, match=message):
        prompt_region([finding], 0, stream=text_stream("x"), **options)
