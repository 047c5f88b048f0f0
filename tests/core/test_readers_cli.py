"""`lightbox data` list, show, render and the phantom; `validate` has its own file."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lightbox.cli.data import PHANTOM_STRIP, app
from lightbox.errors import RequestError

runner = CliRunner()
ROW = {"qid": 1, "image_name": "a.png", "question": "Is it \x1b[2J big?", "answer": "Yes", "phrase_type": "freeform"}


@pytest.fixture
def rad(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((40, 60), 100, np.uint8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "trainset.json").write_text(json.dumps([ROW]))
    return tmp_path


def test_list_names_every_card():
    result = runner.invoke(app, ["list", "--json"])
    assert result.exit_code == 0
    assert {"vqa_rad", "phantom"} <= {card["name"] for card in json.loads(result.stdout)}
    assert "vqa_rad" in runner.invoke(app, ["list"]).stdout


def test_show_prints_the_record_without_control_characters(rad):
    result = runner.invoke(app, ["show", "vqa_rad", "--root", str(rad)])
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "options yes | no" in result.stdout
    assert "-> yes" in " ".join(result.stdout.split())


def test_show_prints_ids_alone_where_the_licence_is_not_public(tmp_path):
    item = {"question": "SECRET?", "choices": ["yes", "no"], "answer": 0, "solution": "SECRET", "image": "a.png"}
    (tmp_path / "closed-end").mkdir()
    (tmp_path / "closed-end" / "trainset.json").write_text(json.dumps({"1": item}))
    result = runner.invoke(app, ["show", "r_rad", "--root", str(tmp_path)])
    assert "train-closed-1" in result.stdout
    assert "SECRET" not in result.stdout


def test_render_writes_one_png_a_case_and_none_for_text_sets(rad, tmp_path):
    out = tmp_path / "pictures"
    assert runner.invoke(app, ["render", "vqa_rad", "--root", str(rad), "--out", str(out)]).exit_code == 0
    picture = np.asarray(Image.open(out / "0000.png"))
    assert picture.shape[1] >= 60
    assert (picture[:40, :60] == 100).all()
    slake = tmp_path / "slake"
    slake.mkdir()
    row = {"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "q", "answer": "CT"}
    (slake / "train.json").write_text(json.dumps([row]))
    result = runner.invoke(app, ["render", "slake", "--root", str(slake), "--out", str(out)])
    assert isinstance(result.exception, RequestError)


def test_render_phantom_is_enlarged_four_times_and_has_a_strip(tmp_path):
    assert PHANTOM_STRIP == "SYNTHETIC phantom, not a patient"
    result = runner.invoke(app, ["render", "phantom", "-n", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0
    pictures = [np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*.png"))]
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.shape[1] == 256
        assert picture.shape[0] > 256
        assert picture[256:].max() > 200  # the strip is written on


def test_show_and_validate_phantom():
    shown = runner.invoke(app, ["show", "phantom", "-n", "1", "--split", "train", "--seed", "3"])
    assert shown.exit_code == 0
    assert "split=train" in shown.stdout
    result = runner.invoke(app, ["validate", "phantom", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["is_own_split"] is True
    assert set(found["counts"]["split"]) == {"train", "validation", "test"}
