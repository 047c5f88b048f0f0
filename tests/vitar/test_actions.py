"""Replies as text and back, in ViTAR's JSON and in tags; what is no reply has a name."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightbox.backbones.edge_bins import EdgeBins
from lightbox.eval.boxes import iou_matrix
from lightbox.paper.image_regions import from_px, to_px
from lightbox.paper.image_tools import TOOLS, Action, Observation, observe
from lightbox.paper.replies import FAILURES, Reply, TagReplies
from lightbox.pretrain.qwen2_5_vl import TAGS, make_tokenizer
from lightbox.pretrain.qwen2_5_vl_rows import BINS
from lightbox.records import Box
from vitar.actions import JsonReplies

SIZE = (640, 480)
WHOLE = Box(0.0, 0.0, 1.0, 1.0)
# the two frames differ, as they do behind Qwen's resizing
CODECS = [JsonReplies(), JsonReplies(seen=lambda width, height: (width // 28 * 28, height // 28 * 28)), TagReplies()]
fractions = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda ends: ends[1] - ends[0] > 1e-4)
boxes = st.builds(lambda x, y: Box(x[0], y[0], x[1], y[1]), fractions, fractions)
actions = st.one_of(
    st.builds(lambda own: Action("mark", tuple(own)), st.lists(boxes, min_size=1, max_size=3)),
    st.builds(lambda own: Action("crop", (own,)), boxes),
    st.builds(lambda own, *window: Action("window", (own,), window), boxes, st.floats(0, 1), st.floats(0.01, 1)),
)
words = st.text(st.characters(codec="utf-8", exclude_characters="<\0"), max_size=20)
replies = st.one_of(
    st.builds(lambda thought, own: Reply(thought, tuple(own)), words, st.lists(actions, min_size=1, max_size=2)),
    st.builds(lambda thought, own: Reply(thought, answer=own), words, words.filter(str.strip)),
)


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
@given(reply=replies)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(codec, reply):
    text = codec.write(reply, SIZE)
    back = codec.read(text, SIZE)
    assert (back.failure, back.thought, back.answer) == ("", reply.thought, reply.answer)
    assert codec.write(back, SIZE) == text
    steps = (1 / codec.bins,) * 4 if isinstance(codec, TagReplies) else tuple(1 / s for s in codec.seen(*SIZE)) * 2
    assert [action.tool for action in back.actions] == [action.tool for action in reply.actions]
    for own, other in zip(reply.actions, back.actions, strict=True):
        for before, after in zip(own.boxes, other.boxes, strict=True):
            grown = [before.x0 - after.x0, before.y0 - after.y0, after.x1 - before.x1, after.y1 - before.y1]
            assert all(-1e-5 <= more < step + 1e-5 for more, step in zip(grown, steps, strict=True))
        for before, after in zip(own.window, other.window, strict=True):
            assert abs(before - after) <= steps[0] / 2 + 1e-9


@pytest.mark.parametrize("codec", CODECS)
def test_the_whole_image_and_the_smallest_corner_come_back_exactly(codec):
    seen = (codec.bins,) * 2 if isinstance(codec, TagReplies) else codec.seen(*SIZE)
    for box in (WHOLE, from_px((0, 0, 1, 1), seen), from_px((seen[0] - 1, seen[1] - 1, *seen), seen)):
        (action,) = codec.read(codec.write(Reply("", (Action("mark", (box,)),)), SIZE), SIZE).actions
        assert action.boxes[0] == pytest.approx(box, abs=1e-12)


def test_json_is_vitars_protocol():
    text = JsonReplies().write(Reply("look", (Action("mark", (Box(0.1, 0.25, 0.5, 1.0), WHOLE)),)), SIZE)
    box = [[64, 120, 320, 480], [0, 0, 640, 480]]
    assert json.loads(text) == {"thought": "look", "actions": [{"name": "Mark", "arguments": {"box": box}}]}
    # the authors' code finds the end of an episode by these keys in this order
    end = JsonReplies().write(Reply("so", answer="B"), SIZE)
    found = re.search(r'\{"name": "Terminate", "arguments": \{[^}]*"answer": "([^"]+)"', end)
    assert found[1] == "B"


def test_pixels_are_those_of_the_image_that_the_model_sees():
    codec = JsonReplies(seen=lambda width, height: (2 * width, height // 2))
    text = '{"thought": "", "actions": [{"name": "Mark", "arguments": {"box": [[320, 60, 1280, 240]]}}]}'
    assert codec.read(text, SIZE).actions[0].boxes == (Box(0.25, 0.25, 1.0, 1.0),)
    assert JsonReplies().read(text, SIZE).failure == "outside"


def call(name="Mark", **arguments):
    return json.dumps({"thought": "t", "actions": [{"name": name, "arguments": arguments}]})


END = call("Terminate", answer="A")
JSON_FAILURES = [
    ("no_json", ""),
    ("no_json", "disc"),
    ("no_json", END + " so"),
    ("no_json", END[:-1]),
    ("no_json", "[1]"),
    ("no_json", "null"),
    ("no_json", "[" * 100_000),
    ("wrong_key", '{"thought": "t"}'),
    ("wrong_key", '{"thoughts": "t", "actions": []}'),
    ("wrong_key", '{"thought": "t", "actions": [], "more": 1}'),
    ("wrong_key", '{"thought": "t", "thought": "u", "actions": []}'),
    ("wrong_key", '{"thought": "t", "actions": [{"name": "Mark"}]}'),
    ("wrong_key", call(boxes=[[1, 2, 3, 4]])),
    ("wrong_key", call("Terminate", reply="A")),
    ("wrong_key", call("Window", box=[[1, 2, 3, 4]])),
    ("wrong_type", '{"thought": 1, "actions": []}'),
    ("wrong_type", '{"thought": "t", "actions": {}}'),
    ("wrong_type", '{"thought": "t", "actions": ["Mark"]}'),
    ("wrong_type", '{"thought": "t", "actions": [{"name": 1, "arguments": {}}]}'),
    ("wrong_type", '{"thought": "t", "actions": [{"name": "Mark", "arguments": []}]}'),
    ("wrong_type", call("Terminate", answer=3)),
    ("wrong_type", call("Terminate", answer=" ")),
    ("no_action", '{"thought": "t", "actions": []}'),
    ("too_many_actions", END.replace("]", ', {"name": "Mark", "arguments": {"box": [[1, 2, 3, 4]]}}]')),
    ("unknown_tool", call("Erase", box=[[1, 2, 3, 4]])),
    ("bad_arity", call(box=[1, 2, 3, 4])),
    ("bad_arity", call(box=[[1, 2, 3]])),
    ("bad_arity", call(box=[[1, 2, 3, 4], [1, 2, 3, 4, 5]])),
    ("bad_arity", call(box=[])),
    ("bad_arity", call(box=[[1, 2, True, 4]])),
    ("bad_arity", call(box=[["1", 2, 3, 4]])),
    ("bad_arity", call(box=[[float("nan"), 2, 3, 4]])),
    ("bad_arity", call(box=[[10**400, 2, 3, 4]])),
    ("bad_window", call("Window", box=[[1, 2, 3, 4]], level=None, width=1)),
    ("inverted", call(box=[[30, 2, 3, 4]])),
    ("inverted", call(box=[[1, 4, 3, 4]])),
    ("outside", call(box=[[-1, 2, 3, 4]])),
    ("outside", call(box=[[1, 2, 641, 4]])),
]
TAG_FAILURES = [
    ("no_tag", ""),
    ("no_tag", "disc"),
    ("no_tag", "<loc_1><loc_2><loc_3><loc_4>"),
    ("no_tag", "<loc_1><answer>disc"),
    ("wrong_type", "<answer>  "),
    ("too_many_actions", "<mark><loc_1><loc_2><loc_3><loc_4><answer>disc"),
    ("bad_arity", "<mark>"),
    ("bad_arity", "<mark>disc"),
    ("bad_arity", "<mark><loc_1><loc_2><loc_3>"),
    ("bad_arity", "<crop><loc_1><loc_2><loc_3><loc_4><loc_5>"),
    ("bad_arity", "<window><loc_1><loc_2><loc_3><loc_4>"),
    ("bad_arity", "<mark><loc_1><loc_2><loc_3><loc_4> there"),
    ("inverted", "<mark><loc_9><loc_2><loc_3><loc_4>"),
    ("inverted", "<mark><loc_1><loc_2><loc_3><loc_4><loc_1><loc_9><loc_3><loc_4>"),
    ("outside", "<mark><loc_1><loc_2><loc_3><loc_64>"),
    ("outside", f"<mark><loc_1><loc_2><loc_3><loc_{10**8}>"),
]


@pytest.mark.parametrize(("failure", "text"), JSON_FAILURES)
def test_json_that_is_no_reply_has_a_name(failure, text):
    assert JsonReplies().read(text, SIZE) == Reply(failure=failure)
    assert failure in FAILURES


@pytest.mark.parametrize(("failure", "text"), TAG_FAILURES)
def test_tags_that_are_no_reply_have_a_name(failure, text):
    assert TagReplies().read(text, SIZE) == Reply(failure=failure)
    assert failure in FAILURES


@pytest.mark.parametrize("codec", CODECS[1:])
@given(text=st.text(max_size=60) | st.lists(st.sampled_from([*TagReplies(4).tokens, "x", " "])).map("".join))
@settings(max_examples=60, deadline=None)
def test_no_text_raises(codec, text):
    reply = codec.read(text, SIZE)
    assert [bool(reply.failure), bool(reply.actions), reply.answer is not None].count(True) == 1


@pytest.mark.parametrize("codec", CODECS)
def test_an_early_answer_is_kept_and_named_and_a_cut_reply_is_not_looked_into(codec):
    text = codec.write(Reply("", answer="A"), SIZE)
    assert codec.read(text, SIZE, is_first=True) == Reply("", answer="A", failure="early_answer")
    assert codec.read(text, SIZE) == Reply("", answer="A")
    assert codec.read(text, SIZE, is_cut=True) == Reply(failure="cut")
    act = codec.write(Reply("", (Action("mark", (WHOLE,)),)), SIZE)
    assert codec.read(act, SIZE, is_first=True).failure == ""


def test_an_unknown_name_marks_where_the_authors_code_is_followed():
    reply = JsonReplies(other_tool="mark").read(call("Anything", box=[[0, 0, 640, 480]]), SIZE)
    assert reply.actions == (Action("mark", (WHOLE,)),)


def test_what_was_read_can_be_shown_and_failures_are_told():
    from PIL import Image  # noqa: PLC0415

    for codec in CODECS:
        reply = codec.read(codec.write(Reply("", (Action("mark", (Box(0.2, 0.2, 0.4, 0.4),)),)), SIZE), SIZE)
        shown = observe(Image.new("L", SIZE), reply.actions)
        assert shown.failure == ""
        assert codec.remark(shown) != codec.remark(Observation(failure="outside"))
    assert all(JsonReplies().remark(Observation(failure=name)).startswith("Error") for name in FAILURES)


def test_tokens_of_the_tags_are_all_that_is_written():
    codec = TagReplies(16)
    assert len(set(codec.tokens)) == len(TOOLS) + 1 + 16
    text = codec.write(Reply("", (Action("window", (WHOLE,), (1.0, 1.0)),)), SIZE)
    found = re.findall(r"<\w+>", text)
    assert "".join(found) == text
    assert set(found) <= set(codec.tokens)
    assert len(found) == 7


@given(first=st.tuples(st.integers(0, 63), st.integers(0, 63)), more=st.tuples(st.integers(0, 63), st.integers(0, 63)))
@settings(max_examples=100, deadline=None)
def test_boxes_on_the_grid_of_location_tokens_come_back_exactly(first, more):
    last = [min(begin + extra, 63) for begin, extra in zip(first, more, strict=True)]
    box = from_px((*first, last[0] + 1, last[1] + 1), (64, 64))
    text = EdgeBins(64).encode(box, 64, 64)
    assert text == f"<loc_{first[0]}><loc_{first[1]}><loc_{last[0]}><loc_{last[1]}>"
    assert EdgeBins(64).decode(text, 64, 64) == [pytest.approx(box)]
    assert EdgeBins(64).step(64, 64) == (1 / 64, 1 / 64)


def test_location_tokens_of_florence_move_small_boxes_and_these_do_not():
    """The reason for a second codec, in numbers that its docstring gives."""
    from lightbox.backbones.codecs import FlorenceBins  # noqa: PLC0415

    for side, wanted in ((3, 0.53), (12, 0.85)):
        box = from_px((20, 30, 20 + side, 30 + side), (64, 64))
        for codec, iou in ((FlorenceBins(64), wanted), (EdgeBins(64), 1.0)):
            (back,) = codec.decode(codec.encode(box, 64, 64), 64, 64)
            assert iou_matrix([back], [box])[0, 0] == pytest.approx(iou, abs=0.005)
    assert EdgeBins(64).decode("<loc_9><loc_2><loc_3><loc_4> <loc_1><loc_2><loc_99><loc_4>", 64, 64) == [
        from_px((1, 2, 64, 5), (64, 64))
    ]
    assert to_px(EdgeBins(8).decode("<loc_0><loc_0><loc_7><loc_7>", 64, 64)[0], (64, 64)) == (0, 0, 64, 64)


def test_the_tiny_model_can_say_every_tag_and_location():
    codec, tokenizer = TagReplies(BINS), make_tokenizer()
    assert {*TAGS} <= {*codec.tokens}
    assert all(tokenizer.tokenize(token) == [token] for token in codec.tokens)
    text = codec.write(Reply("a disc", (Action("mark", (Box(0.25, 0.5, 0.5, 0.75),)),)), SIZE)
    said = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert codec.read(said, SIZE).actions == codec.read(text, SIZE).actions != ()
