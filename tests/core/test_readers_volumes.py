"""NIfTI volumes and the Decathlon's layout: orientation, spacing, slices, labels, and what is refused."""

import gzip
import json
import re

import nibabel as nib
import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.readers import volumes
from lightbox.readers.all_sets import read_dataset
from lightbox.readers.masks import mask_of
from lightbox.readers.pixels import load_pixels, pixels_size_wh
from lightbox.readers.splits import split_by_image
from lightbox.readers.validate import validate

SHAPE = (4, 5, 6)  # x y z in RAS+


def write(file, values, *, spacing=(1.0, 2.0, 3.0), axes="RAS", **header):
    """Write values that are given in RAS+ as a file whose axes point to `axes`."""
    affine = np.diag([*spacing, 1.0])
    image = nib.Nifti1Image(values, affine)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    image = image.as_reoriented(turn)
    for name, value in header.items():
        image.header[name] = value
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)
    return file


def break_spacing(file):
    """Set pixdim[3] to 0 in the file itself: the library repairs it as it loads and as it saves."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[88:92] = b"\0\0\0\0"
    file.write_bytes(gzip.compress(bytes(content)))


def marked():
    """One bright voxel at the left, anterior, superior end, on a ramp along x."""
    values = np.zeros(SHAPE, np.int16) + np.arange(4, dtype=np.int16)[:, None, None]
    values[0, 4, 5] = 100
    return values


@pytest.fixture
def task(tmp_path):
    """Two volumes of one task; labels 1 and 2 in z 2 and 3 of the first, 1 in z 0 of the second."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 1:4, 2:4] = 1
    labels[2, 2, 3] = 2
    other = np.zeros(SHAPE, np.uint8)
    other[0, 0, 0] = 1
    for name, label in (("a", labels), ("b", other)):
        write(tmp_path / "imagesTr" / f"{name}.nii.gz", marked())
        write(tmp_path / "labelsTr" / f"{name}.nii.gz", label)
    describe(tmp_path)
    return tmp_path


def describe(root, **changes):
    pairs = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("a", "b")]
    content = {"name": "Organ", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "organ", "2": "tumour"}}
    (root / "dataset.json").write_text(json.dumps(content | {"training": pairs} | changes))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
def test_a_slice_looks_the_same_however_the_file_is_oriented(tmp_path, axes):
    file = write(tmp_path / "v.nii.gz", marked(), axes=axes)
    header = volumes.read_header(file)
    assert (header.shape, header.stored_axes) == (SHAPE, axes)
    assert np.allclose(header.spacing_mm, (1, 2, 3))
    axial = volumes.read_slice(volumes.slice_place(volumes.slice_path(file, "axial", 5)))
    assert axial.shape == (5, 4)  # rows from anterior to posterior, columns from the patient's right to left
    assert axial[0, 3] == 100
    assert list(axial[1]) == [3, 2, 1, 0]
    coronal = volumes.read_slice(volumes.slice_place(volumes.slice_path(file, "coronal", 4)))
    assert coronal.shape == (6, 4)
    assert coronal[0, 3] == 100
    sagittal = volumes.read_slice(volumes.slice_place(volumes.slice_path(file, "sagittal", 0)))
    assert sagittal.shape == (6, 5)
    assert sagittal[0, 0] == 100


def test_size_and_spacing_of_a_slice_are_those_of_its_pixels(tmp_path):
    file = write(tmp_path / "v.nii.gz", marked(), axes="PIR")
    for plane, size_wh, spacing in (
        ("axial", (4, 5), (2, 1)),
        ("coronal", (4, 6), (3, 1)),
        ("sagittal", (5, 6), (3, 2)),
    ):
        path = volumes.slice_path(file, plane, 0)
        assert pixels_size_wh(path) == size_wh == load_pixels(path).shape[::-1]
        assert np.allclose(volumes.slice_spacing_mm(volumes.slice_place(path)), spacing)


def test_a_window_and_a_channel_stand_in_the_path(tmp_path):
    values = np.stack([np.full(SHAPE, -100, np.int16), np.full(SHAPE, 50, np.int16)], axis=-1)
    file = tmp_path / "v.nii.gz"
    nib.save(nib.Nifti1Image(values, np.eye(4)), file)
    path = volumes.slice_path(file, "axial", 0, channel=1, window=(-100, 200))
    assert path.as_posix().endswith("v.nii.gz/axial/0/c1/w-100_200")
    assert (load_pixels(path) == 128).all()  # half of the window
    assert (load_pixels(volumes.slice_path(file, "axial", 0, channel=0, window=(-100, 200))) == 0).all()
    with pytest.raises(RequestError, match="2 channels, counted from 0.*option channel="):
        load_pixels(volumes.slice_path(file, "axial", 0))


def test_a_volume_without_spacing_is_refused_in_three_parts(tmp_path):
    file = write(tmp_path / "v.nii.gz", marked())
    break_spacing(file)
    with pytest.raises(RequestError) as caught:
        volumes.read_volume(file)
    assert "(1.0, 2.0, 0.0) mm" in caught.value.given
    assert "sizes and volumes would be guesses" in caught.value.why
    assert "pixdim[1..3]" in caught.value.do


def test_a_volume_without_orientation_is_refused(tmp_path):
    file = tmp_path / "v.nii.gz"
    image = nib.Nifti1Image(marked(), np.eye(4))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, file)
    with pytest.raises(RequestError, match="no orientation.*the patient's left would be a guess"):
        volumes.read_volume(file)


def test_axes_that_point_the_same_way_are_no_orientation(tmp_path):
    affine = np.diag([1e6, 1e-10, 1e6, 1.0])
    affine[0, 1] = 1e6
    nib.save(nib.Nifti1Image(marked(), affine), tmp_path / "v.nii")
    with pytest.raises(RequestError, match="no orientation"):
        volumes.read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_a_header_that_is_cut_off_is_refused_by_name(tmp_path, name):
    whole = write(tmp_path / "whole.nii", marked()).read_bytes()
    for length in (1, 100, 344, 347, 351):
        cut = whole[:length]
        (tmp_path / name).write_bytes(gzip.compress(cut) if name.endswith(".gz") else cut)
        with pytest.raises(RequestError, match=re.escape(name)):
            volumes.read_volume(tmp_path / name)


@pytest.mark.parametrize("damage", ["cut", "text", "nan", "empty"])
def test_a_damaged_volume_is_refused_by_name(tmp_path, damage):
    file = write(tmp_path / "v.nii.gz", marked().astype(np.float32) if damage != "nan" else np.full(SHAPE, np.nan))
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-60], "text": b"no volume", "empty": b"", "nan": content}[damage])
    with pytest.raises(RequestError, match=r"v\.nii\.gz"):
        volumes.read_volume(file)


def test_the_golden_task_gives_slices_with_their_masks(task):
    result = read_dataset("decathlon", task, empty_share=0.5)
    assert result.problems == ()
    ids = [case.id for case in result.cases]
    assert ids == ["a-axial-001", "a-axial-002", "a-axial-003", "a-axial-005", "b-axial-000", "b-axial-003"]
    case = result.cases[2]
    assert (case.patient_id, case.modality, case.body_part, case.split) == ("a", "MR", "organ", "")
    organ, tumour = case.findings
    assert (organ.name, tumour.name, organ.present) == ("organ", "tumour", True)
    expected = np.zeros((5, 4), bool)
    expected[1:4, 1:3] = True  # y 1..3 from the top, x 1..2, both turned round
    expected[2, 1] = False  # the tumour's voxel at x 2, y 2
    assert (mask_of(organ) == expected).all()
    assert mask_of(tumour).sum() == 1
    assert [finding.present for finding in result.cases[0].findings] == [False, False]
    counts = result.counts
    assert (counts["slices_with_foreground"], counts["slices_empty"], counts["slices_left_out"]) == (3, 3, 6)


@pytest.mark.parametrize(("share", "empty"), [(0.0, 0), (0.25, 1), (0.5, 3), (0.9, 9)])
def test_the_share_of_empty_slices_is_what_was_asked_for_as_far_as_there_are_any(task, share, empty):
    assert read_dataset("decathlon", task, empty_share=share).counts["slices_empty"] == empty


def test_a_split_of_slices_goes_by_patient(task):
    cases = split_by_image(read_dataset("decathlon", task).cases, 0, {"train": 0.5, "test": 0.5})
    assert {(case.patient_id, case.split) for case in cases} in (
        {("a", "train"), ("b", "test")},
        {("a", "test"), ("b", "train")},
    )


def test_a_volume_without_spacing_costs_itself_and_the_rest_is_read(task):
    break_spacing(task / "imagesTr" / "a.nii.gz")
    result = read_dataset("decathlon", task)
    assert {case.patient_id for case in result.cases} == {"b"}
    (problem,) = result.problems
    assert (problem.field, problem.row) == ("image", "all")
    assert "sizes and volumes would be guesses" in problem.reason
    assert "Write the spacing" in problem.reason


@pytest.mark.parametrize(
    ("change", "check", "reason"),
    [
        ("label", "masks_with_unknown_labels", "holds the labels 7; no class has them"),
        ("shape", "masks_of_another_size", "which voxels it marks would be a guess"),
        ("affine", "masks_of_another_size", "another affine"),
        ("missing", "unreadable_masks", "There is no such file"),
    ],
)
def test_a_label_volume_that_does_not_fit_is_a_counted_problem(task, change, check, reason):
    file = task / "labelsTr" / "a.nii.gz"
    if change == "label":
        write(file, np.full(SHAPE, 7, np.uint8))
    elif change == "shape":
        write(file, np.ones((4, 5, 7), np.uint8))
    elif change == "affine":
        write(file, np.ones(SHAPE, np.uint8), spacing=(1, 2, 4))
    else:
        file.unlink()
    found = validate("decathlon", task)
    assert found.notes[check] == 1
    assert found.malformed == 1
    assert reason in found.problems[0].reason
    assert not found.is_ok
    assert found.cases == 1  # the slice of b, whose share of empty ones rounds to none


def test_labels_that_nothing_names_and_wrong_options_are_refused(task):
    for options, reason in (
        ({"plane": "oblique"}, "sagittal, coronal, axial"),
        ({"empty_share": "1"}, "0 <= share < 1"),
        ({"window": "5,1"}, "LOW below HIGH"),
        ({"labels": "one=liver"}, "whole number with a name"),
    ):
        with pytest.raises(RequestError, match=reason):
            read_dataset("decathlon", task, **options)
    (task / "dataset.json").unlink()
    for folder in ("images", "labels"):
        (task / f"{folder}Tr").rename(task / folder)
    with pytest.raises(RequestError, match="no dataset.json with labels"):
        read_dataset("decathlon", task)
    assert read_dataset("decathlon", task, labels="1=organ,2=tumour").cases[0].findings[0].name == "organ"
