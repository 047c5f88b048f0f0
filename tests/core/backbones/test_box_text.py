"""Answers with several labelled boxes: written, read back, scored, and what is unparsable."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightbox.backbones.box_text import JsonList, Phrases, read_generated, thousandths, unparsable_share
from lightbox.backbones.codecs import FlorenceBins, PerMille, Pixels
from lightbox.backbones.generation import Generated
from lightbox.backbones.loading import load
from lightbox.errors import RequestError
from lightbox.eval.boxes import LabelledBox
from lightbox.records import Box, check_box
from lightbox.testing.shrunk import save_shrunk

BOXES = [
    LabelledBox("nodule or mass", Box(0.1, 0.2, 0.5, 0.9)),
    LabelledBox("nodule or mass", Box(0.6, 0.0, 1.0, 0.25)),
    LabelledBox('left "hazy" {patch}', Box(0.25, 0.25, 0.75, 0.5)),
]
FORMS = [Phrases(FlorenceBins()), Phrases(FlorenceBins(64)), JsonList(), Phrases(PerMille())]


@pytest.mark.parametrize("form", FORMS)
def test_several_boxes_come_back_with_their_labels(form):
    read = form.read(form.write(BOXES, 300, 200), 300, 200)
    assert [box.label for box in read.boxes] == [box.label for box in BOXES]
    for box, written in zip(read.boxes, BOXES, strict=True):
        assert box.box == pytest.approx(written.box, abs=1 / 128 + 1e-9)
    assert (read.is_parsed, read.n_broken, {box.score for box in read.boxes}) == (True, 0, {1.0})


@pytest.mark.parametrize("bins", [64, 1000])
def test_the_edges_of_an_image_have_tokens_and_come_back(bins):
    form = Phrases(FlorenceBins(bins))
    text = form.write([LabelledBox("all", Box(0.0, 0.0, 1.0, 1.0))], 512, 512)
    assert text == f"all<loc_0><loc_0><loc_{bins - 1}><loc_{bins - 1}>"  # the authors' code writes a token too many
    (box,) = form.read(text, 512, 512).boxes
    assert box.box == pytest.approx((0, 0, 1, 1), abs=0.5 / bins + 1e-9)


def test_the_edges_of_the_grid_of_qwen_are_0_and_1000():
    text = JsonList().write([LabelledBox("all", Box(0.0, 0.0, 1.0, 1.0))], 512, 384)
    assert text == '[{"bbox_2d": [0, 0, 1000, 1000], "label": "all"}]'
    assert JsonList().read(text, 512, 384).boxes[0].box == Box(0.0, 0.0, 1.0, 1.0)
    assert JsonList().codec == Pixels(thousandths)


@pytest.mark.parametrize(
    ("form", "text", "labels", "is_parsed", "n_broken"),
    [
        (FORMS[0], "mass<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>", ["mass", "mass"], True, 0),
        (FORMS[0], "<s>mass<loc_1><loc_2><loc_3><loc_4></s><pad>", ["mass"], True, 0),
        (FORMS[0], "mass<loc_1><loc_2><loc_3><loc_4>mass<loc_5><loc_6>", ["mass"], True, 1),
        (FORMS[0], "mass<loc_9><loc_2><loc_3><loc_4>cyst<loc_1><loc_2><loc_3><loc_4>", ["cyst"], True, 1),
        (FORMS[0], "mass<loc_1>", [], False, 1),
        (FORMS[0], "there is a mass", [], False, 0),
        (FORMS[0], "</s>", [], True, 0),
        (FORMS[2], '<answer>[{"label": "a", "bbox_2d": [1, 2, 3, 4]}, {"label": "b", "bbox_2d": [1, 2, 3, 4]}]',
         ["a", "b"], True, 0),
        (FORMS[2], '[{"bbox_2d": [1, 2, 3, 4], "score": 1, "label": "a"}, {"bbox_2d": [1, 2, 3', ["a"], True, 1),
        (FORMS[2], '[{"bbox_2d": [9, 2, 3, 4], "label": "a"}]', [], False, 1),
        (FORMS[2], '[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [1, 2, 3, 4], "label": "b"}]', ["", "b"], True, 0),
        (FORMS[2], '[{"bbox_2d": [1, 2, 3, 4], "label": "a\\x"}]', ["a\\x"], True, 0),
        (FORMS[2], "<answer>[]</answer>", [], True, 0),
        (FORMS[2], "None.", [], True, 0),
        (FORMS[2], "I cannot see it", [], False, 0),
    ],
)  # fmt: skip
def test_what_a_model_may_write(form, text, labels, is_parsed, n_broken):
    read = form.read(text, 64, 64)
    assert ([box.label for box in read.boxes], read.is_parsed, read.n_broken) == (labels, is_parsed, n_broken)


PIECES = [
    "mass",
    "<loc_1>",
    "<loc_70>",
    "</s>",
    ' "bbox_2d": [1, 2, 3, 4]',
    '"label": "a\\x"',
    '"',
    "{",
    "}",
    "[]",
    "(1,2),(3,4)",
]


@pytest.mark.parametrize("form", FORMS)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=14))
def test_no_text_is_an_error_and_every_box_is_one(form, pieces):
    read = form.read("".join(pieces), 64, 48)
    assert read.n_broken >= 0
    assert read.is_parsed or not read.boxes
    for box in read.boxes:
        check_box(box.box, where="what was read")


def test_share_of_unparsable_answers():
    texts = ["mass<loc_1><loc_2><loc_3><loc_4>", "", "what?", "mass<loc_1>"]
    assert unparsable_share([FORMS[0].read(text, 64, 64) for text in texts]) == 0.5
    assert unparsable_share([]) is None


def test_a_box_outside_the_image_is_not_written():
    with pytest.raises(RequestError, match="box"):
        JsonList().write([LabelledBox("a", Box(0.5, 0.5, 1.5, 1.0))], 64, 64)


def test_confidence_is_of_the_tokens_that_write_coordinates():
    text = '[{"bbox_2d": [10, 20, 30, 40], "label": "a"}]'
    pieces = ['[{"bbox_2d": [', "10", ",", " 20", ", ", "30", ", 4", "0", '], "label": "a"}]', ""]
    ends = [sum(map(len, pieces[: place + 1])) for place in range(len(pieces))]
    token_spans = list(zip([0, *ends], ends, strict=False))
    logps = [-9.0, -0.1, -9.0, -0.2, -9.0, -0.3, -0.4, -0.5, -9.0, -9.0]
    (box,) = JsonList().read(text, 64, 64, token_spans=token_spans, logps=logps).boxes
    assert box.score == pytest.approx(math.exp(-0.3))


def test_confidences_of_a_florence_answer_come_from_its_own_tokens(tmp_path):
    florence = load(str(save_shrunk("florence-2-base", tmp_path)))
    form = Phrases(florence.codec)
    text = form.write(BOXES[:2], 64, 64)
    batch = florence.prepare([Image.new("RGB", (64, 64))], ["Where?"], [text], max_tokens=200)
    ids = batch.labels
    logps = torch.linspace(-3, -0.1, ids.shape[1])[None]
    generated = Generated([florence.read_ids(ids[0])], ids, torch.ones_like(ids, dtype=torch.bool), logps)
    (read,) = read_generated(florence, generated, form, [(64, 64)])
    tokens = florence.tokenizer.convert_ids_to_tokens(ids[0])
    places = [place for place, token in enumerate(tokens) if token.startswith("<loc_")]
    for box, own in zip(read.boxes, (places[:4], places[4:]), strict=True):
        assert box.score == pytest.approx(math.exp(logps[0, own].mean().item()))
    assert [box.label for box in read.boxes] == ["nodule or mass"] * 2
