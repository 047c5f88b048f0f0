"""Pictures of a conversation: what is drawn where, one scale of attention for all, and what cannot be drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.records import Box
from lightbox.report.trace_pictures import Panel, draw_rows

GREY = np.full((16, 16, 3), 90, np.uint8)
BOX = Box(0.25, 0.25, 0.75, 0.75)


def pixels_of(rows):
    return np.asarray(Image.open(io.BytesIO(draw_rows(rows, title="a phantom"))).convert("RGB")).astype(int)


def n_near(pixels, colour, within=30):
    return int((np.abs(pixels - colour).max(axis=-1) < within).sum())


def test_boxes_are_drawn_in_their_colours_and_named_once():
    none, both = pixels_of([[Panel(GREY, "view")]]), pixels_of([[Panel(GREY, "view", true=(BOX,), drawn=(BOX,))]])
    for colour in ((86, 180, 233), (255, 176, 0)):
        assert n_near(none, colour) == 0
        assert n_near(both, colour) > 100


def test_attention_of_all_pictures_shares_one_scale():
    """An even map beside one that peaks is drawn darker than alone, where its one value is the most there is."""
    even, peak = np.ones((4, 4)), np.full((4, 4), 0.5)
    peak[1, 1] = 8.5
    alone, beside = (
        pixels_of([[Panel(GREY, attention=even)]]),
        pixels_of([[Panel(GREY, attention=even)], [Panel(GREY, attention=peak)]]),
    )
    middle = alone.shape[1] // 3
    light_alone, light_beside = (own[110:160, middle - 40 : middle].mean() for own in (alone, beside))
    assert light_alone > light_beside + 30


def test_rows_may_be_of_other_lengths_and_the_same_pictures_give_the_same_bytes():
    rows = [[Panel(GREY, "a"), Panel(GREY, "b", "says disc " * 30)], [Panel(GREY[:8], "c")]]
    assert draw_rows(rows, title="t") == draw_rows(rows, title="t")
    wide, narrow = pixels_of(rows), pixels_of([row[:1] for row in rows])
    assert wide.shape[1] > 1.5 * narrow.shape[1]  # the long text has not widened its picture


@pytest.mark.parametrize(
    "panel",
    [
        Panel(GREY[..., 0]),
        Panel(GREY[:0]),
        Panel(GREY, attention=np.full((2, 2), np.nan)),
        Panel(GREY, attention=np.full((2, 2), -1.0)),
        Panel(GREY, attention=np.ones(4)),
        Panel(GREY, attention=np.ones((0, 2))),
    ],
)
def test_what_is_no_picture_or_no_map_is_refused(panel):
    with pytest.raises(RequestError, match="Give at least one such picture"):
        draw_rows([[panel]], title="t")


def test_no_picture_at_all_is_refused():
    with pytest.raises(RequestError, match="Give at least one such picture"):
        draw_rows([[]], title="t")
