"""Uploads: what is decoded in memory, as the readers decode files, and what is refused without a word from a header."""

import gzip
import io
import random
import struct
import warnings
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from lightbox.errors import RequestError
from lightbox.readers import volumes
from lightbox.readers.images import load_image
from lightbox.view.uploads import MAX_UPLOAD_BYTES, check_size, read_upload

CANARY = "CANARY^PATIENT"
RAMP = (np.arange(20, dtype=np.uint8)[:, None] * 10 + np.arange(30, dtype=np.uint8)[None]).astype(np.uint8)
VOXELS = np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16)


def saved(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def dicom_upload(stored=RAMP, *, has_pixels=True, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName, dataset.PatientID = CANARY, CANARY
    if has_pixels:
        dataset.Rows, dataset.Columns = stored.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = stored.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def nifti(values=VOXELS, affine=None, volume_class=nib.Nifti1Image):
    return volume_class(values, np.diag([2.0, 3, 4, 1]) if affine is None else affine)


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(RAMP),
        Image.fromarray(np.stack([RAMP, RAMP // 2, RAMP // 3], axis=-1)),
        Image.fromarray(np.stack([RAMP, RAMP // 2, RAMP // 3, 255 - RAMP], axis=-1)),
        Image.fromarray(RAMP).convert("LA"),
        Image.fromarray(RAMP).convert("P"),
        Image.fromarray(RAMP > 100),
        Image.fromarray(RAMP.astype(np.uint16) * 200),
    ],
    ids=lambda picture: picture.mode,
)
def test_a_png_is_read_as_the_file_of_its_bytes(tmp_path, picture):
    content = saved(picture)
    (tmp_path / "a.png").write_bytes(content)
    upload = read_upload(content)
    assert upload.kind == "PNG"
    assert np.array_equal(upload.pixels(), load_image(tmp_path / "a.png", in_colour=True))


def test_a_jpeg_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(RAMP), "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(content)
    assert read_upload(content).pixels().shape == (30, 20)
    assert np.array_equal(read_upload(content).pixels(), load_image(tmp_path / "a.jpg"))


def test_a_dicom_is_read_as_the_file_of_its_bytes(tmp_path):
    content = dicom_upload()
    (tmp_path / "a.dcm").write_bytes(content)
    assert np.array_equal(read_upload(content).pixels(), load_image(tmp_path / "a.dcm"))


@pytest.mark.parametrize("flips", [(1, 1), (-1, 1), (1, -1)])
@pytest.mark.parametrize("volume_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_volume_is_cut_as_the_file_of_its_bytes(tmp_path, flips, volume_class, is_packed):
    affine = np.array([[0, 0, 2.0 * flips[0], 1], [3.0 * flips[1], 0, 0, 2], [0, 4.0, 0, 3], [0, 0, 0, 1]])
    file = tmp_path / ("v.nii.gz" if is_packed else "v.nii")
    nib.save(nifti(affine=affine, volume_class=volume_class), file)
    upload = read_upload(file.read_bytes())
    assert upload.counts == dict(zip(volumes.PLANES, volumes.read_header(file).shape, strict=True))
    for plane, count in upload.counts.items():
        for index in (0, count - 1):
            place = volumes.SlicePlace(file, plane, index)
            assert np.array_equal(upload.pixels(plane, index), volumes.slice_pixels(place)), (plane, index)


def test_channels_of_a_4d_volume_are_scaled_apart():
    values = np.stack([VOXELS, VOXELS * 3 + 50], axis=-1)
    upload = read_upload(nifti(values).to_bytes())
    assert upload.channels == 2
    alone = read_upload(nifti(values[..., 1]).to_bytes())
    assert np.array_equal(upload.pixels("coronal", 2, 1), alone.pixels("coronal", 2))


@pytest.mark.parametrize(
    ("plane", "index", "channel"), [("axial", 7, 0), ("axial", -1, 0), ("oblique", 0, 0), ("axial", 0, 1)]
)
def test_a_slice_that_is_not_there_is_refused(plane, index, channel):
    with pytest.raises(RequestError, match="counted from 0"):
        read_upload(nifti().to_bytes()).pixels(plane, index, channel)


def test_a_picture_of_20000_by_20000_pixels_is_refused_before_it_is_decoded(monkeypatch):
    content = bytearray(saved(Image.fromarray(RAMP)))
    struct.pack_into(">II", content, 16, 20_000, 20_000)
    struct.pack_into(">I", content, 29, zlib.crc32(bytes(content[12:29])))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(RequestError, match="decompression bomb"):
        read_upload(bytes(content))


def test_a_volume_that_claims_too_much_is_refused_before_it_is_inflated():
    head = bytearray(nifti().to_bytes()[:352])
    struct.pack_into("<3h", head, 42, 30_000, 30_000, 30_000)
    with pytest.raises(RequestError, match="voxels"):
        read_upload(gzip.compress(bytes(head)))


def test_a_dicom_without_pixels_says_so():
    with pytest.raises(RequestError, match="holds no pixels"):
        read_upload(dicom_upload(has_pixels=False))


def test_a_dicom_that_owns_to_burned_in_words_is_refused():
    with pytest.raises(RequestError, match="Blank them out"):
        read_upload(dicom_upload(BurnedInAnnotation="YES"))
    assert read_upload(dicom_upload(BurnedInAnnotation="NO")).pixels().shape == RAMP.shape


def without_spacing():
    volume = nifti()
    volume.header["pixdim"][1:4] = 0
    content = bytearray(nifti().to_bytes())
    struct.pack_into("<3f", content, 80, 0, 0, 0)
    return bytes(content)


def without_orientation():
    volume = nifti()
    volume.set_sform(None, 0)
    volume.set_qform(None, 0)
    return volume.to_bytes()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "held in memory"),
        (b"GIF89a" + b"\0" * 200, "neither PNG, JPEG, DICOM nor NIfTI"),
        (saved(Image.fromarray(RAMP))[:-30], "cannot be decoded in full"),
        (saved(Image.fromarray(RAMP), "JPEG")[:200], "cannot be decoded in full"),
        (gzip.compress(b"no volume", mtime=0), "holds no NIfTI volume"),
        (b"\x1f\x8b" + b"\0" * 40, "cannot be decoded in full"),
        (nifti().to_bytes()[:400], "cannot be decoded in full"),
        (nifti(np.full((3, 3, 3), np.nan, np.float32)).to_bytes(), "not finite"),
        (nifti(np.zeros((3, 3, 3, 2, 2), np.int16)).to_bytes(), "three axes"),
        (without_spacing(), "distance of its voxels"),
        (without_orientation(), "patient's left"),
        (nifti(affine=[[1e9, 1e9, 0, 0], [0, 1e-7, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).to_bytes(), "patient's left"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else value,
)
def test_what_cannot_be_shown_is_refused_in_three_parts(content, why):
    with pytest.raises(RequestError, match=why) as refused:
        read_upload(content)
    assert all((refused.value.given, refused.value.why, refused.value.do))


def test_an_upload_above_the_cap_is_refused_by_its_size():
    with pytest.raises(RequestError, match="held in memory"):
        check_size(MAX_UPLOAD_BYTES + 1)


def test_spoiled_bytes_are_an_image_or_three_parts_and_quote_no_header():
    whole = [dicom_upload(), nifti().to_bytes(), gzip.compress(nifti().to_bytes())]
    whole += [saved(Image.fromarray(RAMP)), saved(Image.fromarray(RAMP), "JPEG")]
    rng, refusals = random.Random(0), []
    for _ in range(600):
        content = bytearray(rng.choice(whole))
        for _ in range(rng.choice((1, 3, 12))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                upload = read_upload(bytes(content))
            counts = upload.counts
            pixels = upload.pixels("axial", 0) if counts else upload.pixels()
            assert pixels.dtype == np.uint8
        except RequestError as err:
            refusals.append(str(err))
    assert len(refusals) > 100
    assert not any("CANARY" in text for text in refusals)
