"""The page of `lightbox view` in headless Chromium: what visitors do, what cannot work, and what is never written."""

import contextlib
import importlib
import json
import re
import shutil
import struct
import sys
import threading
import time
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from lightbox.paper.pixel_prompts import Scribble
from lightbox.phantom import draw_cases, seed_range
from lightbox.phantom.modalities import draw_modality
from lightbox.records import Box
from lightbox.view.checkpoints import viewable_papers
from lightbox.view.loopback import open_port
from lightbox.view.viewer import Viewer

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CANARY = "CANARY"
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser():
    """The machine's own Chromium; without one these tests fail, and `.ci/run` says that it leaves them out."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.fail(f"none of {BROWSERS} is on the path: install one, or leave these tests out with -m 'not browser'")
    # imported here, as gradio below: the fast lane collects this file, and would pay ten seconds for both
    with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextlib.contextmanager
def serving(papers, out):
    """The viewer behind a free port; its address and itself."""
    viewer, listener = Viewer(papers, out), open_port(0)
    server = importlib.import_module("lightbox.view.server").make_server(viewer, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", viewer
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture
def visit(browser):
    """Open the page in a context of its own; `asked` of the page are the requests that it made."""
    contexts = []

    def open_page(address):
        contexts.append(browser.new_context(viewport={"width": 1300, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request))
        page.goto(address)
        page.wait_for_function("document.querySelector('#question textarea, #question input')?.value")
        return page

    yield open_page
    for context in contexts:
        context.close()


def upload(page, file):
    before = page.locator("#film canvas").get_attribute("data-shown") or "0"
    page.set_input_files("#film input[type=file]", file)
    page.wait_for_selector(f"#film canvas[data-shown='{int(before) + 1}']")


def choose(page, name, text):
    page.click(f"#{name} input")
    page.locator("ul[role=listbox] li", has_text=text).first.click()


def choose_paper(page, side, paper, checkpoint):
    choose(page, f"paper-{side}", paper)
    box = page.locator(f"#checkpoint-{side} input")
    page.wait_for_function("([box, name]) => box.value.includes(name)", arg=[box.element_handle(), checkpoint])


def draw(page, tool, *spots):
    page.click(f"[data-tool={tool}]")
    edge = page.locator("#film canvas").bounding_box()
    places = [(edge["x"] + x * edge["width"], edge["y"] + y * edge["height"]) for x, y in spots]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def ask(page, *sides):
    """Press the button, and wait for answers that are not those before."""
    answers = {side: page.locator(f"#answer-{side} .lb-answer[data-number]") for side in sides}
    before = {side: answer.get_attribute("data-number") if answer.count() else "" for side, answer in answers.items()}
    page.click("#ask")
    for side, number in before.items():
        page.wait_for_selector(f"#answer-{side} .lb-answer[data-number]:not([data-number='{number}'])")


def three_parts(page, where):
    page.wait_for_selector(f"{where} .lb-error")
    assert page.locator(f"{where} dt").all_inner_texts() == ["What was given", "Why", "What to do"]
    return page.inner_text(where)


def write_dicom(path, *, has_pixels=True):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientName = dataset.PatientID = dataset.InstitutionName = f"{CANARY}^PATIENT"
    if has_pixels:
        dataset.Rows, dataset.Columns = 40, 60
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def chest(tmp_path):
    pixels = draw_cases(seed_range("development", 0, 1))[0].images[0]
    Image.fromarray(pixels).save(tmp_path / "chest.png")
    return tmp_path / "chest.png"


class Writes:
    """Files that this process opens for writing and folders that it makes, whoever does it, inside of `noted`."""

    def __init__(self):
        self._paths = None
        sys.addaudithook(self._note)  # there is no way to take one off again

    @contextlib.contextmanager
    def noted(self):
        self._paths = []
        try:
            yield self._paths
        finally:
            self._paths = None

    def _note(self, event, arguments):
        if self._paths is None or event not in ("open", "os.rename", "os.mkdir", "shutil.copyfile"):
            return
        is_read = event == "open" and not (set(str(arguments[1])) & set("wax+") or int(arguments[2] or 0) & 3)
        if not is_read and not str(arguments[0]).startswith("/dev/"):
            self._paths.append(f"{event} {arguments[0]}")


@pytest.fixture(scope="module")
def writes():
    return Writes()


def test_two_models_are_asked_about_a_region_side_by_side(visit, entries, asking, runs, chest, tmp_path):
    runs("one", "two")
    with serving(entries, tmp_path / "out") as (address, _):
        page = visit(address)
        assert "not for clinical use" in page.inner_text("body")
        upload(page, chest)
        choose(page, "checkpoint-a", "one")
        choose_paper(page, "b", "asked", "two")
        page.fill("#question-b textarea, #question-b input", "and this ?")
        draw(page, "box", (0.25, 0.25), (0.75, 0.5))
        ask(page, "a", "b")
        said = page.inner_text("#answer-a")
        assert "one says <b>what is seen ?</b>" in said  # as text
        assert "looks {{ 7 * 7 }} ${7 * 7}" in said
        assert "box 0.25, 0.25 to 0.75, 0.50" in said
        assert "and this ?" in page.inner_text("#answer-b")
        assert page.locator("#answer-a img").count() == 2
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        draw(page, "point", (0.5, 0.5))
        ask(page, "a", "b")
        draw(page, "mask", (0.2, 0.2), (0.8, 0.2))
        ask(page, "a", "b")
        assert {request.url.split("/")[2] for request in page.asked if "://" in request.url} == {address.split("/")[2]}
    regions = [region for _, name, _, region, _ in asking.asked if name == "one"]
    assert isinstance(regions[0], Box)
    assert regions[0] == pytest.approx((0.25, 0.25, 0.75, 0.5), abs=0.01)
    assert isinstance(regions[1], Scribble)
    assert regions[2].shape == (64, 64)
    assert regions[2][13, 16:48].all()


def test_no_byte_of_an_upload_reaches_the_disk_and_no_name_the_page(
    visit, entries, runs, tmp_path, writes, capfd, caplog
):
    runs("one")
    file = write_dicom(tmp_path / f"{CANARY}.dcm")
    with serving(entries, tmp_path / "out") as (address, _):
        page = visit(address)
        with writes.noted() as paths:
            upload(page, file)
            ask(page, "a")
        assert "DICOM, 60 x 40 pixels" in page.inner_text("#facts")
        assert CANARY not in page.content()
        sent = [request.post_data or "" for request in page.asked]
        assert any(len(data) > 2000 for data in sent)  # the file was sent
        assert not any(CANARY in data for data in sent)  # base64 hides the header; the file's name would show
        picture = {"name": "a.dcm", "mimeType": "application/dicom", "buffer": file.read_bytes()}
        answer = page.request.post(f"{address}/gradio_api/upload", multipart={"files": picture})
        assert answer.status == 403
    assert paths == []
    printed = "".join(capfd.readouterr()) + caplog.text
    assert CANARY not in printed


def huge_png(path):
    """A PNG whose header says 20,000 x 20,000 pixels."""
    Image.new("L", (4, 4)).save(path)
    content = bytearray(path.read_bytes())
    struct.pack_into(">II", content, 16, 20_000, 20_000)
    struct.pack_into(">I", content, 29, zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    return path


def test_what_cannot_be_shown_is_refused_and_the_next_image_is_shown(visit, entries, runs, chest, tmp_path):
    runs("one")
    (tmp_path / "words.png").write_text("no picture")
    refusals = {
        huge_png(tmp_path / "huge.png"): "20000 x 20000 pixels",
        write_dicom(tmp_path / "report.dcm", has_pixels=False): "holds no pixels",
        tmp_path / "words.png": "neither PNG",
    }
    with serving(entries, tmp_path / "out") as (address, _):
        page = visit(address)
        for file, why in refusals.items():
            page.set_input_files("#film input[type=file]", file)
            page.wait_for_function("why => document.querySelector('#facts').innerText.includes(why)", arg=why)
            three_parts(page, "#facts")
            ask(page, "a")
            assert "No image is open" in three_parts(page, "#answer-a")
        upload(page, chest)
        ask(page, "a")
        assert "one says" in page.inner_text("#answer-a")


def test_a_checkpoint_of_another_paper_is_refused_and_the_other_side_answers(visit, entries, runs, chest, tmp_path):
    runs("one")
    (foreign,) = runs("foreign", paper="other")
    with serving(entries, tmp_path / "out") as (address, _):
        page = visit(address)
        upload(page, chest)
        page.fill("#checkpoint-a input", str(foreign))
        page.press("#checkpoint-a input", "Enter")
        choose_paper(page, "b", "asked", "one")
        ask(page, "a", "b")
        assert "It is a run of other, and asked reads its own." in three_parts(page, "#answer-a")
        assert "one says" in page.inner_text("#answer-b")
        page.fill("#question textarea, #question input", "refuse ?")
        ask(page, "a", "b")
        assert "The run was not taught it." in three_parts(page, "#answer-b")


def test_a_browser_that_leaves_in_the_middle_stops_nobody(visit, entries, asking, runs, chest, tmp_path, capfd):
    runs("one")
    with serving(entries, tmp_path / "out") as (address, viewer):
        leaver = visit(address)
        upload(leaver, chest)
        choose_paper(leaver, "b", "asked", "one")
        asking.go.clear()
        leaver.click("#ask")
        assert asking.begun.wait(20)
        stayer = visit(address)
        upload(stayer, chest)  # images are read while a model is busy
        stayer.click("#ask")
        leaver.close()
        deadline = time.monotonic() + 20
        while len(viewer.sessions.uploads) > 1 and time.monotonic() < deadline:
            stayer.wait_for_timeout(100)
        assert len(viewer.sessions.uploads) == 1  # what the leaver uploaded is forgotten
        asking.go.set()
        stayer.wait_for_selector("#answer-a .lb-time")
        assert "one says" in stayer.inner_text("#answer-a")
    assert asking.most_busy == 1
    assert len(asking.asked) == 2  # the leaver's second model was spared
    assert "Traceback" not in "".join(capfd.readouterr())


def test_slices_of_a_volume_are_shown_and_asked_about(visit, entries, asking, runs, tmp_path):
    runs("one")
    values = np.random.default_rng(0).integers(0, 900, (20, 30, 40)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 3, 4, 1])), tmp_path / "v.nii.gz")
    with serving(entries, tmp_path / "out") as (address, viewer):
        page = visit(address)
        upload(page, tmp_path / "v.nii.gz")
        assert "NIfTI, 20 x 30 pixels" in page.inner_text("#facts")
        shown = page.locator("#film canvas").get_attribute("data-shown")
        choose(page, "plane", "sagittal")
        page.wait_for_function("before => document.querySelector('#film canvas').dataset.shown > before", arg=shown)
        shown = page.locator("#film canvas").get_attribute("data-shown")
        page.fill("#slice input[type=number]", "3")
        page.press("#slice input[type=number]", "Enter")
        page.wait_for_function("before => document.querySelector('#film canvas').dataset.shown > before", arg=shown)
        ask(page, "a")
        (volume,) = viewer.sessions.uploads.values()
        assert np.array_equal(asking.seen[-1], volume.pixels("sagittal", 3))
    assert asking.asked[-1][-1] == (40, 30)


PAPERS = {
    "medthink": (["experiment=explanation"], "is there a nodule ?"),
    "k2sight": (["experiment=defined"], "any means coin, white, dextral top"),
    "mmedpo": (["experiment=start"], "is there a nodule ?"),
    "vitar": (["experiment=mark"], "what is seen in the left hilum ?"),
    "medplib": (["experiment=align"], "segment the liver ."),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_a_training_of_each_paper_is_visited(visit, paper, chest, tmp_path, writes, monkeypatch):
    monkeypatch.setattr("lightbox.paper.entries.index_run", lambda *_: None)
    papers, (arm, question) = viewable_papers(), PAPERS[paper]
    out = tmp_path / "trained"
    papers[paper].train(["preset=smoke", f"run.out={out}", *arm])
    (folder,) = [record.parent for record in (out / "runs").glob("*/job.json")]
    if paper == "medplib":
        Image.fromarray(draw_modality("pet", "development", n=1)[0].images[0]).save(chest)
    with serving(papers, out) as (address, _):
        page = visit(address)
        upload(page, chest)
        choose_paper(page, "a", paper, folder.name)
        page.fill("#question textarea, #question input", question)
        ask(page, "a")
        page.screenshot(path=tmp_path / f"{paper}.png", full_page=True)
        said = page.inner_text("#answer-a")
        assert page.locator("#answer-a .lb-error").count() == 0, said
        wanted = {
            "medthink": ["rationale", "confidence"],
            "k2sight": ["definition", "says"],
            "mmedpo": ["answer to noise", "answer of the shipped weights"],
            "vitar": ["turn 1", "view"],
            "medplib": ["empty masks"],
        }
        assert [name for name in wanted[paper] if name not in said] == []
        first = re.sub(r"[\d.]+ s\.", "", said)
        with writes.noted() as paths:
            ask(page, "a")
        assert paths == []  # no paper's model writes what it was shown
        # a model that is held answers as it did when it was opened
        assert re.sub(r"[\d.]+ s\.", "", page.inner_text("#answer-a")) == first
    assert json.loads((folder / "job.json").read_text())["paper"] == paper
