"""A named slice of a NIfTI file, masks of it written in the file's own voxels, and what is refused."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.readers import volumes
from lightbox.readers.cuts import is_nifti, open_cut

SHAPE = (3, 4, 5)  # x y z in RAS+
SPACING = (1.0, 2.0, 3.0)
TURNS = tuple(
    "".join(ends) for order in itertools.permutations(("RL", "AP", "SI")) for ends in itertools.product(*order)
)
"""All 48 ways in which the axes of a file may point."""


def write(file, values, *, axes="RAS", affine=None, **header):
    """Write values that are given in RAS+ as a file whose axes point to `axes`; of two axes where the third has one."""
    image = nib.Nifti1Image(values, np.diag([*SPACING, 1.0]) if affine is None else affine)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    image = image.as_reoriented(turn)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, file)
    return file


def write_flat(file, *, axes="RAS"):
    """A file of two axes: a plane of the volume whose third stored axis has one voxel."""
    shape = [1 if axes[2] in ends else count for count, ends in zip((4, 5, 6), ("RL", "AP", "SI"), strict=True)]
    volume = nib.load(write(file.with_name(f"deep-{file.name}"), numbered(shape), axes=axes))
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj)[..., 0], volume.affine), file)
    return file


def numbered(shape):
    """Each voxel has a number of its own, 1 and up."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape)


def break_spacing(file, place):
    """Set a pixdim to 0 in the file itself: the library repairs it as it loads and as it saves."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[76 + 4 * place : 80 + 4 * place] = b"\0\0\0\0"
    file.write_bytes(gzip.compress(bytes(content)))
    return file


def picked(shape_hw):
    """A mask that no turn and no mirror leaves as it is: the first row, and one pixel more."""
    mask = np.zeros(shape_hw, dtype=bool)
    mask[0, :-1] = mask[-1, 0] = True
    return mask


@pytest.mark.parametrize("axes", TURNS)
def test_a_mask_marks_the_voxels_whose_pixels_it_was_drawn_on(axes, tmp_path):
    """Each voxel has its own number, so the numbers under the mask and those of the marked voxels tell both apart."""
    file = write(tmp_path / "a.nii.gz", numbered(SHAPE), axes=axes)
    stored = np.asarray(nib.load(file).dataobj)
    for place, plane in enumerate(volumes.PLANES):
        cut = open_cut(file, f"{plane}/{SHAPE[place] - 2}")
        shown = volumes.read_slice(cut.place)
        mask = picked(shown.shape)
        written = np.asarray(cut.volume(mask).dataobj)
        assert written.shape == stored.shape
        assert sorted(stored[written == 1].tolist()) == sorted(shown[mask].tolist())
        assert written.sum() == mask.sum()


def test_a_mask_lies_where_the_patient_has_what_it_was_drawn_on(tmp_path):
    """In mm, for a scan that is turned and tilted: the bright voxel is the patient's leftmost, at the front."""
    tilt = np.deg2rad(20)
    tilted = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = tilted @ np.diag(SPACING), (-10, 20, 30)
    values = np.zeros(SHAPE, np.int16)
    values[0, 3, 2] = 100
    file = write(tmp_path / "a.nii.gz", values, axes="SPR", affine=affine)
    cut = open_cut(file, "axial/2")
    bright = cut.pixels() > 0
    assert bright[0, 2]  # anterior is up, the patient's left on the right
    cut.volume(bright).to_filename(tmp_path / "m.nii.gz")
    mask = nib.load(tmp_path / "m.nii.gz")
    (voxel,) = np.argwhere(np.asarray(mask.dataobj))
    assert np.allclose(mask.affine @ (*voxel, 1), affine @ (0, 3, 2, 1), atol=1e-5)


def test_a_mask_has_the_geometry_of_its_file_and_none_of_its_texts(tmp_path):
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (5, 6, 7)
    file = write(tmp_path / "a.nii.gz", numbered(SHAPE), axes="LPS", affine=affine, descrip=b"Mrs. Doe", cal_max=900)
    scan = nib.load(file)
    scan.header.set_sform(scan.affine, 4)
    scan.header.set_qform(np.diag([2.0, 2.0, 2.0, 1.0]), 1)  # the scanner's; the other is an atlas's, of other steps
    scan.header.set_xyzt_units("mm", "sec")
    nib.save(scan, tmp_path / "b.nii.gz")
    scan = nib.load(tmp_path / "b.nii.gz")
    open_cut(tmp_path / "b.nii.gz", "coronal/1").volume(np.ones((5, 3), dtype=bool)).to_filename(tmp_path / "m.nii.gz")
    mask = nib.load(tmp_path / "m.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, scan.affine)
    for name in ("qform_code", "sform_code", "srow_x", "quatern_d", "xyzt_units"):
        assert np.array_equal(mask.header[name], scan.header[name]), name
    assert np.array_equal(mask.header["pixdim"][:4], scan.header["pixdim"][:4])
    assert np.array_equal(mask.get_qform(), scan.get_qform())
    assert mask.header["descrip"].item() == b""
    assert mask.header["cal_max"] == 0


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "SLP", "AIL"])
def test_a_file_of_two_axes_is_its_only_slice(axes, tmp_path):
    file = write_flat(tmp_path / "a.nii.gz", axes=axes)
    deep = tmp_path / "deep-a.nii.gz"
    cut, same = open_cut(file), open_cut(deep)
    assert cut.place.plane == same.place.plane
    assert cut.name.endswith(" 0, of 0 to 0")
    assert np.array_equal(cut.pixels(), same.pixels())
    mask = picked(cut.pixels().shape)
    written = np.asarray(cut.volume(mask).dataobj)
    assert written.shape == nib.load(file).shape
    assert np.array_equal(written, np.asarray(same.volume(mask).dataobj)[..., 0])
    windowed = open_cut(file, f"{cut.place.plane}/0/w2_7")
    assert np.array_equal(windowed.pixels(), open_cut(deep, f"{cut.place.plane}/0/w2_7").pixels())


def test_a_written_mask_is_read_back_as_labels_of_its_slice(tmp_path):
    file = write(tmp_path / "a.nii.gz", numbered(SHAPE), axes="PIR")
    for scan, asked in ((file, "sagittal/1"), (write_flat(tmp_path / "flat.nii.gz", axes="PIR"), "")):
        cut = open_cut(scan, asked)
        mask = picked(cut.pixels().shape)
        cut.volume(mask).to_filename(tmp_path / "m.nii.gz")
        assert np.array_equal(cut.labels(tmp_path / "m.nii.gz"), mask.astype(np.int64))


def test_a_channel_is_named_and_its_mask_is_of_the_volume(tmp_path):
    values = np.stack([numbered(SHAPE), numbered(SHAPE)[::-1]], axis=-1)
    nib.save(nib.Nifti1Image(values, np.diag([*SPACING, 1.0])), tmp_path / "a.nii.gz")
    cut = open_cut(tmp_path / "a.nii.gz", "axial/4/c1")
    assert not np.array_equal(cut.pixels(), open_cut(tmp_path / "a.nii.gz", "axial/4/c0").pixels())
    assert cut.volume(np.ones((4, 3), dtype=bool)).shape == SHAPE


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("", "is a 3-D volume of 3 x 4 x 5 voxels.*Name it, such as --slice axial/2; there are sagittal 0 to 2"),
        ("axial", "A slice is PLANE/INDEX"),
        ("axial/-1", "A slice is PLANE/INDEX"),
        ("/etc/axial/1", "A slice is PLANE/INDEX"),
        ("axial/5", "axial 0 to 4"),
        ("coronal/4", "coronal 0 to 3"),
        ("axial/1/c0", "has no channels"),
        ("axial/1/w5_5", "LOW below HIGH"),
        ("axial/1/w5", "A slice is PLANE/INDEX"),
    ],
)
def test_a_slice_that_there_is_not_is_refused(asked, message, tmp_path):
    file = write(tmp_path / "a.nii.gz", numbered(SHAPE))
    with pytest.raises(RequestError, match=message):
        open_cut(file, asked)


def test_volumes_without_spacing_orientation_or_voxels_are_refused(tmp_path):
    volume = write(tmp_path / "a.nii.gz", numbered(SHAPE))
    with pytest.raises(RequestError, match="Without the distance of its voxels"):
        open_cut(break_spacing(volume, 3), "axial/0")
    with pytest.raises(RequestError, match="Without the distance of its pixels"):
        open_cut(break_spacing(write_flat(tmp_path / "b.nii.gz"), 2))
    nib.save(nib.Nifti1Image(np.ones((4, 5), np.int16), None), tmp_path / "c.nii.gz")
    with pytest.raises(RequestError, match="has no orientation"):
        open_cut(tmp_path / "c.nii.gz")
    (tmp_path / "d.nii.gz").write_bytes(b"no volume")
    with pytest.raises(RequestError, match="Its header cannot be read"):
        open_cut(tmp_path / "d.nii.gz", "axial/0")
    flat = write_flat(tmp_path / "e.nii.gz")
    flat.write_bytes(gzip.compress(gzip.decompress(flat.read_bytes())[:-6]))
    with pytest.raises(RequestError, match="Its voxels cannot be read"):
        open_cut(flat).pixels()
    nib.save(nib.Nifti1Image(np.full((4, 5), np.nan, np.float32), np.eye(4)), tmp_path / "f.nii")
    with pytest.raises(RequestError, match="not finite"):
        open_cut(tmp_path / "f.nii").pixels()
    channels = np.ones((*SHAPE, 2), np.int16)
    nib.save(nib.Nifti1Image(channels, np.eye(4)), tmp_path / "g.nii")
    for asked in ("", "axial/0", "axial/0/c2"):
        with pytest.raises(RequestError, match="2 channels"):
            open_cut(tmp_path / "g.nii", asked)


def test_labels_on_other_voxels_are_refused(tmp_path):
    cut = open_cut(write(tmp_path / "a.nii.gz", numbered(SHAPE)), "axial/1")
    for shape in ((3, 4, 6), (3, 4, 1)):
        with pytest.raises(RequestError, match=f"of 3 x 4 x {shape[2]} voxels.*The image has 3 x 4 x 5 voxels"):
            cut.labels(write(tmp_path / "b.nii.gz", numbered(shape)))
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 2), np.int16), np.diag([*SPACING, 1.0])), tmp_path / "channels.nii")
    with pytest.raises(RequestError, match="voxels and 2 channels"):
        cut.labels(tmp_path / "channels.nii")
    with pytest.raises(RequestError, match="another affine"):
        cut.labels(write(tmp_path / "c.nii.gz", numbered(SHAPE), affine=np.eye(4)))
    with pytest.raises(RequestError, match="no whole numbers"):
        cut.labels(write(tmp_path / "d.nii.gz", numbered(SHAPE).astype(np.float32) / 2))


def test_nifti_is_told_by_its_ending(tmp_path):
    assert is_nifti(tmp_path / "A.NII.GZ")
    assert is_nifti(tmp_path / "a.nii")
    assert not is_nifti(tmp_path / "a.png")
