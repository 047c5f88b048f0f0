"""The HTML of an answer: everything that is there is shown, escaped, and inside the page."""

import base64
import io
import re

import numpy as np
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.entries import PICTURES
from lightbox.testing.web_page import PAYLOAD, Page
from lightbox.view.answers import MOST_PX, Asked, answer_html, error_html, picture_address

ASKED = Asked("medplib", "vl-0123", "what is <region></region> ?", "box 0.10, 0.20 to 0.50, 0.60")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 64), dtype=np.uint8)


def picture_of(address):
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))


def shown(prediction, pixels=PIXELS):
    return Page(answer_html(ASKED, pixels, prediction, wall_s=1.25))


def test_all_that_a_paper_returns_is_on_the_page():
    page = shown(
        {
            "answer": "yes",
            "rationale": "because",
            "confidence": 0.87654,
            "options": {"yes": 0.7, "no": 0.3},
            "boxes": [(0.1, 0.2, 0.5, 0.6)],
            "labels": ["mass"],
            "scores": [0.5],
            "turn 1": "zoom",
            PICTURES: {"mask 1": Image.fromarray(PIXELS), "attention": Image.fromarray(PIXELS)},
            "note": "n",
        }
    )
    assert page.is_balanced
    for text in ("medplib", "vl-0123", "yes 0.700, no 0.300", "0.877", "because", "zoom", "1 box", "1.2 s", "clinical"):
        assert text in page.text
    names = [image["alt"] for image in page.all("img")]
    assert names == ["the image with what the model marked", "mask 1", "attention"]


def test_texts_of_models_and_people_come_out_escaped():
    asked = Asked(PAYLOAD, PAYLOAD, PAYLOAD, PAYLOAD)
    for html in (
        answer_html(asked, PIXELS, {"answer": PAYLOAD, "turn 1": PAYLOAD, PAYLOAD: PAYLOAD}, wall_s=0),
        error_html(asked, RequestError(PAYLOAD, PAYLOAD, PAYLOAD)),
    ):
        page = Page(html)
        assert page.is_balanced
        assert page.all("script") == []
        assert page.text.count(PAYLOAD) >= 4


def test_boxes_are_drawn_on_the_image():
    with_box = shown({"boxes": [(0.25, 0.25, 0.75, 0.75)], "labels": ["a"]}).all("img")[0]["src"]
    without = shown({"boxes": []}).all("img")[0]["src"]
    drawn, plain = np.asarray(picture_of(with_box)), np.asarray(picture_of(without))
    assert drawn.shape == plain.shape == (240, 384, 3)
    assert np.array_equal(plain[::6, ::6, 0], PIXELS)  # enlarged, not resampled
    assert (drawn != plain).any()


def test_a_large_image_is_shown_small_and_an_answer_without_words_says_so():
    page = shown({"answer": "", "boxes": []}, np.zeros((3000, 1500, 3), np.uint8))
    assert max(picture_of(page.all("img")[0]["src"]).size) == MOST_PX
    assert "no answer that could be read" in page.text
    assert picture_of(picture_address(np.zeros((10, 2 * MOST_PX), np.uint8))).size == (MOST_PX, 5)


def test_an_error_has_its_three_parts_and_no_picture():
    page = Page(error_html(None, RequestError("This was given", "That is why", "Do this")))
    assert re.search("What was given This was given. Why That is why. What to do Do this.", page.text)
    assert page.all("img") == []
