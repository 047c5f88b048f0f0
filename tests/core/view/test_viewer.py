"""Uploads of open pages, one question to one model, and the command before gradio is there."""

import base64
import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lightbox.cli import main
from lightbox.errors import RequestError
from lightbox.paper.entries import Entries
from lightbox.testing.web_page import Page
from lightbox.view.loopback import open_port
from lightbox.view.uploads import Upload
from lightbox.view.viewer import MOST_SESSIONS, Sessions, Viewer

GREY = np.full((8, 8), 9, np.uint8)


@pytest.fixture
def viewer(entries, tmp_path):
    return Viewer(entries, tmp_path / "out")


def sent(pixels=GREY):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode(), len(stream.getvalue())


def error_text(html):
    page = Page(html)
    assert [attrs.get("class") for name, attrs in page.tags if name == "dl"] == ["lb-error"]
    return page.text


def test_each_page_has_its_own_upload_and_few_are_held():
    sessions = Sessions()
    for number in range(MOST_SESSIONS + 2):
        sessions.keep(str(number), Upload(GREY + number, "PNG"))
    assert len(sessions.uploads) == MOST_SESSIONS
    assert sessions.find("5").pixels()[0, 0] == 14
    for session in ("0", "1", "nobody"):
        with pytest.raises(RequestError, match="No image is open"):
            sessions.find(session)
    sessions.forget("5")
    sessions.forget("5")
    assert "5" not in sessions.uploads


def test_an_upload_that_is_refused_takes_the_place_of_the_one_before(viewer):
    viewer.open_upload("a", *sent())
    with pytest.raises(RequestError, match="neither PNG"):
        viewer.open_upload("a", base64.b64encode(b"words").decode(), 5)
    with pytest.raises(RequestError, match="No image is open"):
        viewer.sessions.find("a")  # an answer about the image before would be taken for one about this
    with pytest.raises(RequestError, match="did not arrive whole"):
        viewer.open_upload("a", "!!!", 3)
    with pytest.raises(RequestError, match="held in memory"):
        viewer.open_upload("a", "", 1 << 40)


def test_a_question_reaches_the_model_with_its_options_and_region(viewer, asking, runs):
    (folder,) = runs("one")
    viewer.open_upload("a", *sent())
    drawn = json.dumps({"tool": "box", "strokes": [[[0, 0], [0.5, 1]]]})
    html = viewer.answer("a", "asked", f" {folder} ", " what ? ", options="yes, no", drawn=drawn)
    assert "one says" in Page(html).text
    assert asking.asked == [("what ?", "one", ("yes", "no"), (0, 0, 0.5, 1), (8, 8))]


def test_a_paper_that_takes_no_region_is_asked_about_the_whole_image(viewer, asking, entries, runs):
    (folder,) = runs("one")
    viewer.open_upload("a", *sent())
    whole = Viewer({"asked": Entries("asked")}, viewer.out, sessions=viewer.sessions)
    page = Page(whole.answer("a", "asked", str(folder), "what ?", drawn='{"tool": "point", "strokes": [[[0, 0]]]}'))
    assert asking.asked[0][3] is None
    assert "point" not in page.text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"question": "  "}, "nothing to answer"),
        ({"options": "yes"}, "two or more"),
        ({"checkpoint": ""}, "lightbox train PAPER"),
        ({"checkpoint": "gone"}, "lightbox train PAPER"),
        ({"session": "other"}, "No image is open"),
        ({"drawn": "{"}, "draw it again"),
        ({"place": ("axial", 90, 0)}, ""),
        ({"question": "refuse ?"}, "was not taught it"),
        ({"paper": "whole"}, "It is a run of asked, and whole reads its own"),
    ],
)
def test_what_cannot_be_answered_is_said_in_three_parts(viewer, asking, runs, change, why):
    (folder,) = runs("one")
    viewer.open_upload("a", *sent())
    asked = {"session": "a", "paper": "asked", "checkpoint": str(folder), "question": "what ?"} | change
    html = viewer.answer(**asked)
    if not why:  # a 2D image has no slices to choose from
        assert "one says" in Page(html).text
        return
    assert why in error_text(html)


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch, capsys):
    has_gradio = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else has_gradio(name))
    with pytest.raises(SystemExit) as ended:
        main(["view"])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["What was given", "Why", "What to do"]
    assert "lightbox-core[demo]" in lines[2]


def test_a_port_in_use_ends_the_command_before_gradio_or_torch_is_imported():
    code = (
        "import sys\nfrom lightbox.cli import main\ntry:\n    main()\n"
        "finally:\n    print([name for name in ('gradio', 'torch') if name in sys.modules])"
    )
    with open_port(0) as listener:
        words = ["view", "--port", str(listener.getsockname()[1])]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (2, "[]")
    assert "Another program listens there" in done.stderr
    assert "Traceback" not in done.stderr
