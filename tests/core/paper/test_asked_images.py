"""The image and the regions of a question at the command line: read once, refused before a model is loaded."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.asked_images import MaskFile, open_image, option_of, read_regions
from lightbox.paper.entries import Entries
from lightbox.paper.pixel_prompts import POINT_FRAC, Scribble, mask_of, point
from lightbox.records import Box

WIDE = (40, 64)  # rows, columns


@pytest.fixture
def image(tmp_path):
    Image.new("L", WIDE[::-1], 90).save(tmp_path / "image.png")
    return open_image(tmp_path / "image.png")


def mask_file(path, values):
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def half(value=1):
    values = np.zeros(WIDE, np.uint8)
    values[:, 32:] = value
    return values


def test_a_point_is_the_disc_that_training_shows(image):
    (prompt,) = read_regions([point(0.5, 0.25)], image)
    assert prompt == Scribble(((0.5, 0.25),), POINT_FRAC)
    rows, columns = np.nonzero(mask_of(prompt, WIDE))
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == (10, 32)
    assert set(np.unique(rows)) == {9, 10}  # 40 / 16 is 2.5 px wide


@pytest.mark.parametrize("value", [1, 7, 255])
def test_a_mask_of_one_value_is_a_region_whatever_the_value(image, tmp_path, value):
    (prompt,) = read_regions([MaskFile(mask_file(tmp_path / "m.png", half(value)))], image)
    assert np.array_equal(prompt, half() == 1)


def test_one_of_several_labels_is_named(image, tmp_path):
    labels = half(2)
    labels[:5] = 3
    file = mask_file(tmp_path / "m.png", labels)
    (prompt,) = read_regions([MaskFile(file, 3)], image)
    assert np.array_equal(prompt, labels == 3)
    with pytest.raises(RequestError, match=r"has 2 labels: 2, 3.*such as --mask .*m.png:2"):
        read_regions([MaskFile(file)], image)
    with pytest.raises(RequestError, match="The file's labels are 2, 3"):
        read_regions([MaskFile(file, 1)], image)


def test_regions_that_mean_no_pixel_of_the_image_are_refused(image, tmp_path):
    with pytest.raises(RequestError, match=r"has 40 x 64 pixels.*The image has 64 x 40"):
        read_regions([MaskFile(mask_file(tmp_path / "turned.png", half().T))], image)
    with pytest.raises(RequestError, match="is 0 all over"):
        read_regions([MaskFile(mask_file(tmp_path / "black.png", np.zeros(WIDE)))], image)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(RequestError, match="neither PNG, JPEG nor TIFF"):
        read_regions([MaskFile(tmp_path / "text.png")], image)
    with pytest.raises(RequestError, match="Spots lie in the image"):
        read_regions([point(0.5, 1.5)], image)
    with pytest.raises(RequestError, match="field 'box'"):
        read_regions([Box(0.5, 0, 0.5, 1)], image)


def test_a_slice_is_an_image_and_takes_masks_of_its_own_kind(image, tmp_path):
    values = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1])), tmp_path / "scan.nii.gz")
    scan = open_image(tmp_path / "scan.nii.gz", "sagittal/2")
    assert scan.pixels.shape == (8, 7)
    mask = np.zeros((8, 7), dtype=bool)
    mask[1, 2:4] = True
    scan.cut.volume(mask).to_filename(tmp_path / "m.nii.gz")
    mask_file(tmp_path / "m.png", mask)
    for name in ("m.nii.gz", "m.png"):
        (prompt,) = read_regions([MaskFile(tmp_path / name)], scan)
        assert np.array_equal(prompt, mask)
    with pytest.raises(RequestError, match="the image is no NIfTI file"):
        read_regions([MaskFile(tmp_path / "m.nii.gz")], image)


def test_a_slice_of_a_picture_is_refused(tmp_path, image):
    with pytest.raises(RequestError, match="Slices are of volumes"):
        open_image(tmp_path / "image.png", "axial/1")


def test_regions_are_named_as_their_options(tmp_path):
    assert option_of(MaskFile(tmp_path / "a.png", 2)) == f"--mask {tmp_path / 'a.png'}:2"
    assert option_of(MaskFile(tmp_path / "a.png")) == f"--mask {tmp_path / 'a.png'}"


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ({"regions": (point(0.2, 0.3),)}, "--point 0.2,0.3"),
        ({"regions": (Box(0, 0, 1, 1),)}, "--box 0,0,1,1"),
        ({"regions": (MaskFile("m.png"),)}, "--mask m.png"),
        ({"slice_name": "axial/3"}, "--slice"),
    ],
)
def test_a_paper_without_regions_refuses_them_by_their_option(asked, option, tmp_path):
    with pytest.raises(RequestError) as refused:
        Entries("medthink").predict(image=tmp_path / "a.png", question="is it ?", run=tmp_path, **asked)
    assert refused.value.given.startswith(option)
    assert f"eave {option.split(' ')[0]} out" in refused.value.do
    assert "medthink" in refused.value.why
