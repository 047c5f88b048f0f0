"""Readers of masks on real files that nobody here wrote, found through LIGHTBOX_DATA_ROOT."""

import os
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from lightbox.readers import volumes
from lightbox.readers.all_sets import read_dataset
from lightbox.readers.catalog import ROOT_VARIABLE, read
from lightbox.readers.cuts import open_cut
from lightbox.readers.masks import CHECKS, instances_of, mask_of
from lightbox.readers.pixels import load_pixels
from lightbox.readers.splits import split_by_image
from lightbox.readers.validate import validate

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get(ROOT_VARIABLE), reason=f"{ROOT_VARIABLE} is not set: no real data here"),
]


@pytest.fixture(scope="module")
def data_root():
    return Path(os.environ[ROOT_VARIABLE])


@pytest.mark.parametrize(
    ("name", "cases", "images", "masks", "present", "absent"),
    [
        ("covid_cxr_masks", 22, 22, 131, 137, 0),
        ("dsb2018_nuclei", 16, 16, 599, 16, 0),
        ("drosophila_vnc_em", 2, 2, 6, 6, 0),
        ("msd_hippocampus", 666, 666, 807, 807, 525),
        ("sam_med2d_demo", 4, 2, 38, 38, 0),  # the same two images in train and test, 19 masks each
    ],
)
def test_a_set_is_read_whole_and_every_mask_is_sound(name, cases, images, masks, present, absent):
    found = validate(name)
    assert found.is_ok
    notes = found.notes
    assert (found.cases, found.images) == (cases, images)
    assert (notes["masks"], notes["masks_decoded"]) == (masks, masks)
    assert (notes["findings_present"], notes["findings_absent"]) == (present, absent)
    assert {check: notes.get(check, 0) for check in CHECKS} == dict.fromkeys(CHECKS, 0)


@pytest.mark.parametrize("name", ["covid_cxr_masks", "dsb2018_nuclei"])
def test_boxes_around_masks_are_those_of_the_readers_of_boxes(name):
    for masked, boxed in zip(read_dataset(name).cases, read(name).cases, strict=True):
        assert (masked.id, masked.patient_id, masked.images) == (boxed.id, boxed.patient_id, boxed.images)
        assert [(f.name, f.boxes) for f in masked.findings] == [(f.name, f.boxes) for f in boxed.findings]


def test_hippocampi_lie_as_anatomy_has_it_and_stay_with_their_patient(data_root):
    result = read_dataset("msd_hippocampus", plane="sagittal")
    columns = {"anterior hippocampus": [], "posterior hippocampus": []}
    for case in result.cases:
        for finding in case.findings:
            if finding.present:
                mask = mask_of(finding)
                assert mask.shape == load_pixels(case.images[0]).shape
                columns[finding.name].append(np.nonzero(mask)[1].mean() / mask.shape[1])
    # anterior is on the left of a sagittal slice
    assert np.mean(columns["anterior hippocampus"]) + 0.2 < np.mean(columns["posterior hippocampus"])
    split = split_by_image(result.cases, 0)
    assert len({(case.patient_id, case.split) for case in split}) == len({case.patient_id for case in split}) == 24
    file = data_root / "msd_hippocampus" / "data" / "TrainingSet" / "images" / "hippocampus_004.nii.gz"
    assert volumes.read_header(file).spacing_mm == (1.0, 1.0, 1.0)
    assert volumes.read_header(file).stored_axes == "RAS"


def test_masks_of_slices_add_up_to_the_label_volume_they_were_read_from(data_root):
    """A mask that is cut out of a file and written on the voxels of its scan marks what it marked in the file."""
    folder = data_root / "msd_hippocampus" / "data" / "TrainingSet"
    scans = sorted((folder / "images").glob("*.nii.gz"))[:4]
    for scan in scans:
        labels = folder / "labels" / scan.name
        stored = np.asarray(nib.load(labels).dataobj)
        for axis, plane in enumerate(volumes.PLANES):
            written = np.zeros(stored.shape, np.uint8)
            for index in range(volumes.read_header(scan).shape[axis]):
                cut = open_cut(scan, f"{plane}/{index}")
                written += np.asarray(cut.volume(cut.labels(labels) == 1).dataobj)
            assert np.array_equal(written, stored == 1)
    assert len(scans) == 4


def test_nuclei_do_not_overlap_and_hold_the_pixels_of_their_files():
    for case in read_dataset("dsb2018_nuclei").cases[:4]:
        (nuclei,) = case.findings
        count = sum(mask.astype(int) for mask in instances_of(nuclei))
        assert count.max() == 1
        assert (count > 0).sum() == sum((np.asarray(Image.open(part.path)) > 0).sum() for part in nuclei.parts)


def test_lungs_of_the_radiographs_lie_on_their_side():
    """The patient's right lung is on the left of the picture: a crop put into the wrong corner would not be."""
    sides = Counter()
    for case in read_dataset("covid_cxr_masks").cases:
        masks = {finding.name: mask_of(finding) for finding in case.findings if finding.name.endswith("Lung")}
        for name, mask in masks.items():
            if mask is not None:
                middle = np.nonzero(mask)[1].mean() / mask.shape[1]
                sides[name, bool(middle < 0.5)] += 1
    assert sides["Right Lung", True] == sides["Right Lung", True] + sides["Right Lung", False]
    assert sides["Left Lung", False] == sides["Left Lung", True] + sides["Left Lung", False]


def test_both_forms_of_the_fly_agree_on_mitochondria():
    masks, labels = (read_dataset("drosophila_vnc_em", form=form).cases for form in ("masks", "labels"))
    for one, other in zip(masks, labels, strict=True):
        first, second = ({f.name: mask_of(f) for f in case.findings} for case in (one, other))
        a, b = first["mitochondrion"], second["mitochondrion"]
        assert (a & b).sum() / (a | b).sum() > 0.99
        assert (second["membrane"] & ~first["membrane"]).sum() == 0


def test_an_organ_of_the_demonstration_is_as_large_as_its_file_says():
    case = next(case for case in read_dataset("sam_med2d_demo", split="train").cases if case.id == "s0114_111")
    assert (case.patient_id, load_pixels(case.images[0]).shape) == ("s0114", (181, 258))
    aorta = next(finding for finding in case.findings if finding.name == "aorta")
    with Image.open(aorta.parts[0].path) as picture:
        assert mask_of(aorta).sum() == (np.asarray(picture) == 255).sum()
