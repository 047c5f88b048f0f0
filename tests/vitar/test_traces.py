"""Traces: made by the environment from true boxes, and read from a file whose faults name file, row and turn."""

import json

import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.image_regions import view
from lightbox.paper.image_tools import Feedback, Task, observe
from lightbox.paper.replies import TagReplies
from lightbox.paper.trace_files import read_trace_file
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.place_questions import place_questions
from lightbox.records import box_iou
from vitar.actions import JsonReplies
from vitar.data import task_of
from vitar.traces import make_trace


@pytest.fixture(scope="module")
def cases():
    knobs = Knobs(image_px=128, vocabulary="triples", distractors=1)
    return draw_cases(seed_range("development", 0, 40), knobs, questions_per_case=0)


def some_tasks(cases):
    """Tasks about small findings."""
    pairs = [(case, asked) for case in cases for asked in place_questions(case, scale_pct=100)]
    return [task_of(asked, Image.fromarray(case.images[0])) for case, asked in pairs if asked.kind == "small_100"]


@pytest.mark.parametrize("tool", ["mark", "crop"])
@pytest.mark.parametrize("codec", [TagReplies(64), JsonReplies()])
def test_a_trace_is_the_episode_of_a_policy_that_looks_near_the_finding_and_is_right(cases, codec, tool):
    for seed, task in enumerate(some_tasks(cases)[:6]):
        feedback = Feedback(view_px=64)
        trace = make_trace(task, codec, feedback, seed=seed, tool=tool, thoughts=("look", "so"))
        *_, question, act, told, answer = trace.turns
        assert task.question in question.text
        assert question.images[0].tobytes() == view(task.image, 64).tobytes()
        asked, final = codec.read(act.text, task.image.size), codec.read(answer.text, task.image.size)
        assert (asked.failure, asked.thought, asked.actions[0].tool) == ("", "look", tool)
        assert 0.3 < box_iou(asked.actions[0].boxes[0], task.true_boxes[0]) <= 1
        shown = observe(task.image, asked.actions, feedback).images
        assert [image.tobytes() for image in told.images] == [image.tobytes() for image in shown]
        assert (final.failure, final.answer) == ("", task.answer)
        assert trace.is_answered
        assert [turn.is_supervised for turn in trace.answers] == [True, True]
        again = make_trace(task, codec, feedback, seed=seed, tool=tool, thoughts=("look", "so"))
        assert [turn.text for turn in again.turns] == [turn.text for turn in trace.turns]


def test_every_arm_learns_from_its_own_feedback(cases):
    task = some_tasks(cases)[0]
    seen = {}
    for name, feedback in {"mark": Feedback(), "same": Feedback(tool="same"), "crop": Feedback(tool="crop")}.items():
        trace = make_trace(task, TagReplies(), feedback, seed=3)
        seen[name] = trace.turns[2].images[0].tobytes()
        assert trace.turns[1].text == make_trace(task, TagReplies(), Feedback(), seed=3).turns[1].text
    assert len(set(seen.values())) == 3
    assert seen["same"] == view(task.image).tobytes()


def test_one_pass_answers_at_once_and_boxes_lie_as_near_as_asked(cases):
    task = some_tasks(cases)[0]
    once = make_trace(task, TagReplies(128), Feedback(view_px=64), seed=0, tool="")
    assert [turn.role for turn in once.turns] == ["user", "assistant"]
    assert once.turns[1].text == f"<answer>{task.answer}"
    for overlap in ((0.5, 0.6), (0.8, 0.9)):
        boxes = [own.boxes[0] for seed in range(8) for own in acts_of(task, overlap, seed)]
        ious = [box_iou(box, task.true_boxes[0]) for box in boxes]
        assert all(overlap[0] - 0.02 <= iou <= overlap[1] + 0.02 for iou in ious)


def acts_of(task, overlap, seed):
    fine = TagReplies(4096)  # coarse bins would widen a small box
    trace = make_trace(task, fine, Feedback(), seed=seed, overlap=overlap)
    return fine.read(trace.turns[1].text, task.image.size).actions


def test_a_task_that_shows_nothing_is_refused(cases):
    absent = Task(Image.fromarray(cases[0].images[0]), "What?", "disc")
    with pytest.raises(RequestError, match="A task about 0 boxes.*bad_arity"):
        make_trace(absent, TagReplies(), Feedback(), seed=0)


# ---- a file of traces


MARK = '{"thought": "near the hilum", "actions": [{"name": "Mark", "arguments": {"box": [[4, 8, 20, 30]]}}]}'
END = '{"thought": "solid", "actions": [{"name": "Terminate", "arguments": {"answer": "B"}}]}'


def row(**changes):
    """One good trace in the form of the published ones; a change by turn number replaces or, where None, removes it."""
    turns = {
        1: {"role": "system", "content": "Read the image."},
        2: {"role": "user", "content": "<image>Which type?\nOptions:\nA ring\nB disc"},
        3: {"role": "assistant", "content": MARK},
        4: {"role": "user", "content": "Marked. Answer by it.<image>"},
        5: {"role": "assistant", "content": END},
    }
    images = changes.pop("images", ["one.png", "two.png"])
    for name, turn in changes.items():
        turns[int(name.removeprefix("turn"))] = turn
    return {"messages": [turn for turn in turns.values() if turn is not None], "images": images}


def said(role, content):
    return {"role": role, "content": content}


@pytest.fixture
def folder(tmp_path):
    for name, level in (("one.png", 10), ("two.png", 200)):
        Image.new("L", (40, 32), level).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path


def read_back(folder, rows):
    (folder / "traces.json").write_text(json.dumps(rows), encoding="utf-8")
    return read_trace_file(folder / "traces.json", JsonReplies())


def test_a_good_trace_is_a_conversation_with_its_images_in_place(folder):
    traces = read_back(folder, [row(), row(turn1=None), longer(MARK)])
    assert traces.problems == ()
    first, second, third = traces.conversations
    assert len(third.answers) == 3
    assert [turn.role for turn in first.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [image.getpixel((0, 0)) for image in first.images] == [10, 200]
    assert isinstance(first.turns[1].parts[0], Image.Image)
    assert isinstance(first.turns[3].parts[1], Image.Image)
    assert first.turns[1].text == "Which type?\nOptions:\nA ring\nB disc"
    assert [turn.text for turn in second.answers] == [MARK, END]


def longer(third):
    """A trace of three replies."""
    good = row()
    good["messages"][4:] = [said("assistant", third), said("user", "Once more."), said("assistant", END)]
    return good


FAULTS = [
    ("turn 3", "no_json", row(turn3=said("assistant", "mark it"))),
    ("turn 3", "inverted", row(turn3=said("assistant", MARK.replace("20", "2")))),
    ("turn 3", "outside", row(turn3=said("assistant", MARK.replace("30", "33")))),
    ("turn 3", "early_answer", row(turn3=said("assistant", END))),
    ("turn 5", "an answer before the end", longer(END)),
    ("turn 5", "none at it", row(turn5=said("assistant", MARK))),
    ("turn 5", "wrong_key", row(turn5=said("assistant", END.replace("answer", "reply")))),
    ("turn 4", "is of the assistant, where the user speaks", row(turn4=said("assistant", MARK))),
    ("turn 2", "is of the assistant, where the user speaks", row(turn2=None)),
    ("turn 1", "is of the tool", row(turn1=said("tool", "x"))),
    ("turn 2", "field 'content' is missing", row(turn2={"role": "user"})),
    ("turn 2", "not an object", row(turn2="Which type?")),
    ("turn 4", "shows 2 images where 1 of 2 are left", row(turn4=said("user", "<image> and <image>"))),
    ("turn 4", "is not answered", row(turn5=None)),
    ("images", "has 1 more than the turns show", row(turn4=said("user", "Marked."))),
    ("images", "neither PNG, JPEG nor DICOM", row(images=["one.png", "broken.png"])),
    ("images", "no such file", row(images=["one.png", "three.png"])),
    ("images", "inside the image folder", row(images=["one.png", "../two.png"])),
    ("images", "is missing", {"messages": row()["messages"]}),
    ("messages", "not a list of turns", row() | {"messages": "Which type?"}),
    ("messages", "Images are read, never said", row(turn1=said("system", "<image>"), turn4=said("user", "Marked."))),
    ("row", "not an object", 3),
]


@pytest.mark.parametrize(("place", "reason", "fault"), FAULTS)
def test_a_malformed_trace_names_file_row_and_turn_and_the_others_are_read(folder, place, reason, fault):
    traces = read_back(folder, [row(), fault, row()])
    assert len(traces.conversations) == 2
    (problem,) = traces.problems
    assert (problem.file, problem.row, problem.field) == (str(folder / "traces.json"), "2", place)
    assert reason in problem.reason


def test_a_file_that_is_no_list_of_traces_is_refused(folder):
    with pytest.raises(RequestError, match=r"traces\.json' holds a JSON"):
        read_back(folder, {"messages": []})
