"""Boxes on images: where they are drawn, what is written, and that words do not cover words."""

import itertools

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper import overlay
from lightbox.paper.overlay import DRAWN_COLOUR, TRUE_COLOUR, Mark, draw_boxes, draw_prediction, with_strip
from lightbox.records import Box


def places_of(picture, colour):
    """Rows and columns of the pixels of a colour."""
    return np.nonzero((np.asarray(picture) == colour).all(axis=-1))


def test_a_half_open_box_is_drawn_on_whole_source_pixels():
    picture = with_strip(draw_boxes(np.zeros((64, 64), np.uint8), [Mark("", Box(0.25, 0.5, 0.5, 0.75))], scale=4), "X")
    rows, columns = places_of(picture, DRAWN_COLOUR)
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (64, 128, 128, 192)


def test_truth_is_dashed_and_a_prediction_is_not():
    canvas, box = np.full((200, 200), 128, np.uint8), Box(0.25, 0.25, 0.75, 0.75)
    solid = places_of(draw_boxes(canvas, [Mark("", box)]), DRAWN_COLOUR)
    dashed = places_of(draw_boxes(canvas, [Mark("", box, is_true=True)]).crop((0, 50, 200, 200)), TRUE_COLOUR)
    assert 0.4 < len(dashed[0]) / len(solid[0]) < 0.75
    assert (dashed[0].max() + 50, dashed[1].min(), dashed[1].max()) == (149, 50, 149)  # without the word above
    assert Mark("mass", box, is_true=True).text == "true mass"
    assert Mark("mass", box, 0.876).text == "mass 0.88"


@pytest.mark.parametrize("shade", [0, 255])
def test_lines_show_on_dark_and_on_light(shade):
    picture = np.asarray(draw_boxes(np.full((200, 200), shade, np.uint8), [Mark("mass", Box(0.3, 0.3, 0.6, 0.6))]))
    assert {(0, 0, 0), DRAWN_COLOUR} <= {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}


def test_words_of_crowded_boxes_do_not_cover_each_other_and_stay_inside(monkeypatch):
    taken, free_place = [], overlay._free_place
    monkeypatch.setattr(overlay, "_free_place", lambda *given: taken.append(free_place(*given)) or taken[-1])
    rng = np.random.default_rng(0)
    marks = [Mark("cell", Box(x, y, x + 0.2, y + 0.2), 0.5) for x, y in rng.uniform(0, 0.8, (30, 2)).tolist()]
    draw_boxes(np.zeros((300, 400), np.uint8), marks)
    assert not any(overlay._overlap(a, b) for a, b in itertools.combinations(taken, 2))
    assert all(0 <= x0 and 0 <= y0 and x1 < 400 and y1 < 300 for x0, y0, x1, y1 in taken)


@pytest.mark.parametrize("box", [Box(0.0, 0.0, 1.0, 1.0), Box(0.99, 0.99, 1.0, 1.0), Box(0.0, 0.5, 0.001, 0.501)])
@pytest.mark.parametrize("is_true", [False, True])
def test_boxes_at_the_edge_and_boxes_without_width_are_drawn(box, is_true):
    picture = draw_boxes(
        np.zeros((90, 60, 3), np.uint8), [Mark("a name that is wider than the image", box, 1, is_true)]
    )
    assert len(places_of(picture, TRUE_COLOUR if is_true else DRAWN_COLOUR)[0])


def test_a_prediction_is_drawn_with_its_labels_and_scores(tmp_path):
    Image.new("RGB", (90, 60), (200, 100, 100)).save(tmp_path / "a.png")
    answer = {"text": "mass", "boxes": [(0.2, 0.3, 0.5, 0.6)], "labels": ["mass"], "scores": [0.5]}
    draw_prediction(tmp_path / "a.png", "where?", answer, out=tmp_path / "new" / "b.png")
    with Image.open(tmp_path / "new" / "b.png") as picture:
        assert picture.width == 384
        assert len(places_of(picture, DRAWN_COLOUR)[0]) > 400
    with pytest.raises(RequestError, match="PNG"):
        draw_prediction(tmp_path / "a.png", "where?", answer, out=tmp_path / "b.jpg")
