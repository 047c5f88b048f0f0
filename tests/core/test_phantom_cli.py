"""`lightbox data` shows and renders every modality of the phantom, and says which there are."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lightbox.cli.data import PHANTOM_SCALE, app
from lightbox.errors import RequestError

runner = CliRunner()


def test_a_modality_is_rendered_in_its_colours_and_says_that_it_is_synthetic(tmp_path):
    asked = ["render", "phantom", "-n", "2", "--out", str(tmp_path), "-o", "modality=fundus"]
    result = runner.invoke(app, asked, catch_exceptions=False)
    assert "2 pictures" in result.stdout
    picture = np.asarray(Image.open(tmp_path / "0000.png")).astype(int)
    assert picture.shape[0] > 64 * PHANTOM_SCALE  # a strip stands below
    red, _, blue = picture[40 * PHANTOM_SCALE, 32 * PHANTOM_SCALE]
    assert red > blue + 20


def test_a_modality_is_shown_with_what_lies_in_it():
    result = runner.invoke(app, ["show", "phantom", "-n", "3", "-o", "modality=ct", "--split", "train"])
    assert "phantom ct" in result.stdout
    assert "finding kidney" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "modality=xray"], "modality='xray'"),
        (["-o", "modality=mr", "--split", "train"], "held out"),
        (["-o", "size=3"], "--option size"),
    ],
)
def test_what_the_phantom_does_not_draw_is_refused(options, message):
    result = runner.invoke(app, ["show", "phantom", *options])
    assert isinstance(result.exception, RequestError)
    assert message in str(result.exception)
