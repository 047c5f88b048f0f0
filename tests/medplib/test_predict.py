"""One question at the command line: its regions, an image that is a slice, and what is written of the masks."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from lightbox.cli import main
from lightbox.errors import RequestError
from lightbox.paper.asked_images import AskedImage, MaskFile, open_image
from lightbox.paper.mask_outlines import Outline
from lightbox.paper.pixel_items import HERE
from lightbox.paper.pixel_prompts import mask_of, point
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.phantom.modalities import draw_modality
from lightbox.readers import volumes
from lightbox.readers.images import load_image
from lightbox.records import Box
from medplib.cli import ENTRIES
from medplib.predict import load_run, placed, predict, shown_masks

REGION_QUESTION = "what does the region show ?"
SLICES, INDEX = 7, 4


@pytest.fixture(scope="module")
def picture():
    """Of the phantom, grey, and higher than it is wide."""
    pixels = draw_modality("pet", "development", n=1)[0].images[0]
    assert (pixels.ndim, pixels.shape[0] > pixels.shape[1]) == (2, True)
    return pixels


@pytest.fixture
def scan(tmp_path, picture):
    """Slices of a volume that points to the patient's left, back and feet; the picture is one of them."""
    ras = np.zeros((picture.shape[1], picture.shape[0], SLICES), np.int16)
    ras += np.arange(SLICES, dtype=np.int16)
    ras[:, :, INDEX] = 10 + picture.T[::-1, ::-1]
    image = nib.Nifti1Image(ras, np.diag([0.8, 0.9, 5.0, 1.0]))
    codes = (nib.orientations.axcodes2ornt(axes) for axes in ("RAS", "IPL"))
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(*codes)), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture(scope="module")
def run(trained):
    """A finished run that has learnt about regions."""
    return trained("vl")


@pytest.fixture
def shown(run, monkeypatch):
    """What the model of the run is shown, in order; not what its training was."""
    items, answer = [], PixelVLM.answer

    def recorded(self, own, **settings):
        items.extend(own)
        return answer(self, own, **settings)

    monkeypatch.setattr(PixelVLM, "answer", recorded)
    return items


@pytest.mark.slow
def test_a_point_a_box_and_a_mask_reach_the_model_as_regions(run, picture, shown, tmp_path):
    Image.fromarray(picture).save(tmp_path / "image.png")
    mask = mask_of(point(0.3, 0.6), picture.shape)
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    regions = (point(0.3, 0.6), Box(0.1, 0.2, 0.6, 0.9), MaskFile(tmp_path / "mask.png"))
    asked = {"image": tmp_path / "image.png", "run": run}
    said = [ENTRIES.predict(question=REGION_QUESTION, regions=[region], **asked)["answer"] for region in regions]
    assert said[0] == said[2]  # the same pixels
    assert [item.question for item in shown] == [f"what does the region {HERE} show ?"] * 3
    assert [np.array_equal(mask_of(item.regions[0], picture.shape), mask) for item in shown] == [True, False, True]
    both = f"{HERE} or {HERE} ?"
    assert isinstance(ENTRIES.predict(question=both, regions=regions[:2], **asked)["answer"], str)
    assert shown[-1].regions == regions[:2]


def test_a_region_has_its_place_in_the_question():
    assert placed("what does <region></region> show ?", 1) == "what does <region></region> show ?"
    assert placed("is the region like the region ?", 2) == f"is the region {HERE} like the region {HERE} ?"
    assert placed("is the region like the region ?", 1) == f"is the region {HERE} like the region ?"
    for question, n_regions in (("segment the liver .", 1), (f"what is {HERE} ?", 0), (f"what is {HERE} ?", 2)):
        with pytest.raises(RequestError, match="each place its region"):
            placed(question, n_regions)


def test_requests_that_cannot_be_answered_are_refused_before_a_model_is_loaded(run, scan, shown, tmp_path):
    asked = {"question": REGION_QUESTION, "run": run}
    Image.new("L", (20, 30), 1).save(tmp_path / "mask.png")
    with pytest.raises(RequestError, match="has 20 x 30 pixels"):
        ENTRIES.predict(image=scan, slice_name=f"axial/{INDEX}", regions=[MaskFile(tmp_path / "mask.png")], **asked)
    with pytest.raises(RequestError, match="is a 3-D volume"):
        ENTRIES.predict(image=scan, **asked)
    with pytest.raises(RequestError, match="each place its region"):
        ENTRIES.predict(image=scan, slice_name="axial/0", **asked | {"question": f"what is {HERE} ?"})
    assert shown == []


def test_masks_are_written_as_the_image_came(scan, picture):
    mask = picture > 100
    outlines = [Outline("the liver", mask), Outline("the kidney", ~mask)]
    png = shown_masks(AskedImage(picture), outlines)
    assert png.keys() == {"pictures"}
    assert png["pictures"].keys() == {"outlines", "mask 1", "mask 2"}
    assert np.array_equal(np.asarray(png["pictures"]["mask 1"]), mask * np.uint8(255))
    nifti = shown_masks(open_image(scan, f"axial/{INDEX}"), outlines)
    assert (nifti["pictures"].keys(), nifti["volumes"].keys()) == ({"outlines"}, {"mask 1", "mask 2"})
    assert [volume.get_fdata().sum() for volume in nifti["volumes"].values()] == [mask.sum(), (~mask).sum()]
    assert shown_masks(AskedImage(picture), []) == {}
    about = shown_masks(AskedImage(picture), [], [point(0.3, 0.6)])  # what the question was about
    assert about.keys() == {"pictures"}
    assert about["pictures"].keys() == {"outlines"}


def lightbox(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--json"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return json.loads(printed.out)


@pytest.mark.slow
def test_a_slice_is_asked_about_at_the_command_line_and_its_mask_is_a_volume(scan, capsys, tmp_path):
    """A run that has learnt to say <SEG>, with the shipped segmenter; its mask is the region of the next question."""
    run, needs = None, []
    for arm, steps in (("align", 2), ("vl", 4), ("grounding", 40)):
        more = [f"run.out={tmp_path}", f"experiment={arm}", f"optim.max_steps={steps}", *needs]
        run = ENTRIES.run_once(["preset=smoke", "data.n_test=1", *more], "train", is_indexed=False)
        needs = [f"needs=[{run}]"]
    capsys.readouterr()
    command = ("predict", "medplib", "--run", run, "--image", scan, "--slice", f"axial/{INDEX}")
    said = lightbox(capsys, *command, "--question", "segment the kidney .", "--out", tmp_path / "seen.png")
    assert "<SEG>" in said["answer"]
    assert said["slice"] == f"axial {INDEX}, of 0 to {SLICES - 1}"
    assert said["empty masks"] == 0
    pages = [load_image(place, in_colour=True) for place in (tmp_path / "seen.png", said["outlines is shown in"])]
    assert all((page[..., 0] != page[..., 2]).any() for page in pages)  # a coloured box, a coloured outline
    written, stored = nib.load(said["mask 1 lies in"]), nib.load(scan)
    assert written.shape == stored.shape
    assert np.array_equal(written.affine, stored.affine)
    marked = [
        place for place in range(SLICES) if np.asarray(written.dataobj)[place].any()
    ]  # its first axis: to the feet
    assert marked == [SLICES - 1 - INDEX]
    # the slice as a picture gives the same mask as a picture
    alone = lightbox(
        *(capsys, "predict", "medplib", "--run", run, "--image", said["slice is shown in"]),
        *("--question", "segment the kidney .", "--out", tmp_path / "alone.png"),
    )
    place = volumes.SlicePlace(tmp_path / "seen-mask-1.nii.gz", "axial", INDEX)
    assert np.array_equal(load_image(alone["mask 1 is shown in"]) > 0, volumes.read_slice(place) == 1)
    assert alone["boxes"] == said["boxes"]
    for mask in (said["mask 1 lies in"], alone["mask 1 is shown in"]):
        about = lightbox(capsys, *command, "--question", REGION_QUESTION, "--mask", mask)
        assert about["answer"]


def test_a_model_that_is_open_answers_as_one_that_is_opened_for_it(run, picture):
    asked = {"image": AskedImage(picture), "question": REGION_QUESTION, "folder": run, "regions": (point(0.5, 0.5),)}
    opened = load_run(run)
    assert [predict(**asked, opened=opened)["answer"] for _ in range(2)] == [predict(**asked)["answer"]] * 2
