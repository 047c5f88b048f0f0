"""The template table, by golden strings."""

import pytest
from transformers import AutoProcessor

from k2sight.config import resolve
from k2sight.data import Target
from k2sight.prompts import form_of, on_grid, write_texts
from lightbox.backbones.box_text import JsonList, Phrases
from lightbox.backbones.codecs import FlorenceBins
from lightbox.paper.samples import Sample
from lightbox.records import Box

TASK = "<CAPTION_TO_PHRASE_GROUNDING>"
LOW, HIGH = Box(0.5, 0.5, 0.75, 1.0), Box(0.0, 0.25, 0.5, 0.5)
ASKED = Sample("a", Target("zexa", True, {}, (LOW, HIGH), definition="net, ashen, root"), "case", 0)
ABSENT = Sample("b", Target("zexa", False, {}, (), definition="net, ashen, root"), "case", 0)
FLORENCE = Phrases(FlorenceBins(64))


def texts(arm, form, *samples, names=True):
    names = f"data.writes_names={names}"
    return write_texts(resolve(["preset=smoke", f"experiment={arm}", names]), samples, form)


@pytest.mark.parametrize(
    ("arm", "prompt", "label"),
    [
        ("name", "zexa", "zexa"),
        ("defined", "zexa means net, ashen, root", "zexa"),
        ("definition", "net, ashen, root", ""),
    ],
)
def test_florence_is_asked_in_its_own_task_and_names_each_box(arm, prompt, label):
    boxes = [f"{label}<loc_0><loc_16><loc_32><loc_32>", f"{label}<loc_32><loc_32><loc_48><loc_63>"]  # top to bottom
    assert texts(arm, FLORENCE, ASKED, ABSENT) == [(TASK + prompt, "".join(boxes)), (TASK + prompt, "")]


@pytest.mark.parametrize(
    ("arm", "asked"),
    [
        ("name", "Where in the image is zexa?"),
        ("defined", "zexa means net, ashen, root."),
        ("definition", "what looks like this: net, ashen, root?"),
    ],
)
def test_qwen_is_asked_for_a_list_and_names_each_box_there(arm, asked):
    (prompt, target), (_, nothing) = texts(arm, JsonList(), ASKED, ABSENT)
    assert asked in prompt
    assert '{"bbox_2d": [x0, y0, x1, y1], "label": ...}' in prompt
    label = "" if arm == "definition" else "zexa"
    assert target.startswith('[{"bbox_2d": [0, 250, 500, 500], "label": "' + label)
    assert nothing == "[]"


@pytest.mark.parametrize("arm", ["name", "defined", "definition"])
def test_boxes_may_stand_without_their_name(arm):
    (_, target), _ = texts(arm, FLORENCE, ASKED, ABSENT, names=False)
    assert target == "<loc_0><loc_16><loc_32><loc_32><loc_32><loc_32><loc_48><loc_63>"


@pytest.mark.parametrize(
    ("box", "moved"),
    [
        (Box(0.1, 0.2, 0.5, 0.7), (6, 13, 32, 45)),
        (Box(0.5, 0.5, 0.501, 0.502), (32, 32, 33, 33)),  # thinner than a pixel
        (Box(0.999, 0.0, 1.0, 1.0), (63, 0, 64, 64)),  # at the edge
    ],
)
def test_edges_are_moved_to_the_nearest_pixel_and_a_box_stays_a_box(box, moved):
    assert on_grid(box, 64) == Box(*(edge / 64 for edge in moved))
    assert on_grid(box, 0) == box
    cfg = resolve(["preset=smoke", "experiment=defined", "data.box_grid=64", "data.writes_names=false"])
    (_, target), *_ = write_texts(cfg, [Sample("a", Target("zexa", True, {}, (box,)), "case", 0)], FLORENCE)
    assert target == "".join(f"<loc_{min(edge, 63)}>" for edge in moved)


def test_what_a_form_writes_it_reads_back():
    for form in (FLORENCE, JsonList()):
        target = texts("defined", form, ASKED)[0][1]
        reading = form.read(target, 1000, 1000)
        assert [box.label for box in reading.boxes] == ["zexa", "zexa"]
        assert reading.boxes[0].box == pytest.approx(HIGH, abs=1 / 64)


def test_a_name_of_several_words_is_written_before_each_box():
    asked = Sample("a", Target("pleural effusion", True, {}, (LOW, HIGH)), "case", 0)
    reading = FLORENCE.read(texts("name", FLORENCE, asked)[0][1], 1000, 1000)
    assert [box.label for box in reading.boxes] == ["pleural effusion"] * 2


def test_florence_has_as_many_bins_as_location_tokens(florence2_folder):
    form = form_of("florence2", AutoProcessor.from_pretrained(florence2_folder).tokenizer)
    assert form == FLORENCE
