"""From a trained folder to an answer about an image file."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from lightbox.errors import RequestError
from lightbox.records import Box
from medthink import cli
from medthink.predict import load_run, predict

QUESTION = "is there a nodule ?"


def save_dicom(path, pixels):
    """A minimal 8-bit secondary capture."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelData = pixels.tobytes()
    image.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Runs by strategy: trained for 120 steps, so that answers can be parsed."""
    out = tmp_path_factory.mktemp("out")
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightbox.paper.entries.index_run", lambda *_: None)
        for arm in ("explanation", "reasoning", "stage1"):
            cli.train([*tiny, f"experiment={arm}", f"run.out={out}", "optim.max_steps=120", "optim.lr=0.01"])
            folders[arm] = next((out / "runs").glob(f"{arm}-*"))
    return folders


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    save_dicom(tmp_path / "image.dcm", pixels)
    return tmp_path / "image.png"


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["explanation", "reasoning"])
def test_prediction_has_answer_rationale_and_probabilities(trained, picture, arm):
    told = predict(picture, QUESTION, folder=trained[arm], options=("yes", "no"))
    assert told["strategy"] == arm
    assert told["answer"] in ("yes", "no", "")
    assert sum(told["options"].values()) == pytest.approx(1)
    assert set(told["options"]) == {"yes", "no"}
    if told["answer"]:
        assert 0 < told["confidence"] <= 1
        assert max(told["options"], key=told["options"].get) == told["answer"]
    json.dumps(told)


def test_answer_can_be_parsed_after_training(trained, picture):
    assert predict(picture, QUESTION, folder=trained["explanation"], options=("yes", "no"))["answer"] in ("yes", "no")


def test_stage_one_gives_a_rationale_and_no_answer(trained, picture):
    told = predict(picture, QUESTION, folder=trained["stage1"], options=("yes", "no"))
    assert (told["answer"], told["confidence"]) == ("", None)
    assert told["rationale"]
    assert told["options"] == {}


def test_dicom_and_png_of_equal_pixels_get_equal_answers(trained, picture):
    given = {"folder": trained["explanation"], "options": ("yes", "no")}
    assert predict(picture, QUESTION, **given) == predict(picture.with_suffix(".dcm"), QUESTION, **given)


def test_cli_takes_the_newest_run_and_draws_the_answer(trained, picture, monkeypatch, tmp_path):
    out = trained["explanation"].parents[1]
    monkeypatch.setattr("lightbox.paper.entries.default_out", lambda: out)
    drawn = tmp_path / "answer.png"
    told = cli.predict(image=picture, question=QUESTION, options=("yes", "no"), out=drawn)
    assert told["strategy"] == "first_stage"  # trained last
    with Image.open(drawn) as shown:
        assert shown.size[1] > shown.size[0]  # text below the picture


def test_prediction_without_a_run_says_how_to_make_one(picture):
    with pytest.raises(RequestError, match="Run `lightbox train medthink preset=quick` first"):
        cli.predict(image=picture, question=QUESTION)


def test_box_is_refused(picture):
    with pytest.raises(RequestError, match="answers about the whole image"):
        cli.predict(image=picture, question=QUESTION, regions=[Box(0, 0, 1, 1)])


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no finished run"):
        load_run(tmp_path)


def test_reader_cannot_see_an_image(trained, tmp_path, picture):
    copy = Path(tmp_path / "run")
    copy.mkdir()
    (copy / "model").symlink_to(trained["explanation"] / "model")
    card = json.loads((trained["explanation"] / "job.json").read_text())
    card["config"]["model"]["features"] = "detr.safetensors"
    card["config"]["data"] |= {"source": "r_slake", "root": "somewhere"}
    (copy / "job.json").write_text(json.dumps(card))
    with pytest.raises(RequestError, match="It learned from ready features"):
        predict(picture, QUESTION, folder=copy)
