"""Pixels: what is decoded, how it is scaled, and what is refused, with the path and without patient text."""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage, generate_uid

from lightbox.errors import RequestError
from lightbox.readers.dicom import read_dicom
from lightbox.readers.images import MAX_PIXELS, image_size_wh, letterbox, letterbox_box, load_image
from lightbox.records import Box, box_from_mask

CANARY = "CANARY^PATIENT"
RAMP = (np.arange(20, dtype=np.uint8)[:, None] * 10 + np.arange(30, dtype=np.uint8)[None]).astype(np.uint8)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def dicom_dataset(stored, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName = CANARY
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def write_dicom(path, stored, **tags):
    dicom_dataset(stored, **tags).save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bin", "a.jpg"])
def test_png_is_told_by_content_and_kept_as_it_is(tmp_path, name):
    Image.fromarray(RAMP).save(tmp_path / name, "PNG")
    loaded = load_image(tmp_path / name)
    assert loaded.dtype == np.uint8
    assert np.array_equal(loaded, RAMP)
    assert loaded.flags.writeable


def test_jpeg_is_close_to_its_source_and_a_path_may_be_text(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(load_image(str(tmp_path / "a.jpg")).astype(int) - RAMP).max() <= 4


def test_16_bit_ramp_keeps_its_order_and_does_not_saturate(tmp_path):
    """`convert("L")` puts nearly every pixel of such a file at 255."""
    ramp = np.linspace(300, 4095, 600).astype(np.uint16).reshape(20, 30)  # 12 bits in a 16-bit file
    Image.fromarray(ramp).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png").ravel().astype(int)
    assert (loaded[0], loaded[-1]) == (0, 255)
    assert (np.diff(loaded) >= 0).all()
    assert (loaded == 255).sum() <= 3
    assert len(np.unique(loaded)) == 256


def test_constant_16_bit_image_is_black_and_8_bit_is_never_rescaled(tmp_path):
    Image.fromarray(np.full((4, 4), 700, np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").max() == 0
    dim = np.full((4, 4), 7, np.uint8)
    Image.fromarray(dim).save(tmp_path / "b.png")
    assert np.array_equal(load_image(tmp_path / "b.png"), dim)


def test_one_bit_and_palette_images_become_grey(tmp_path):
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png"), np.eye(4, dtype=np.uint8) * 255)
    Image.fromarray(RAMP).convert("P").save(tmp_path / "b.png")
    assert np.array_equal(load_image(tmp_path / "b.png"), RAMP)


def test_colour_is_luminance_and_transparency_lies_over_black(tmp_path):
    red = np.zeros((2, 2, 4), np.uint8)
    red[..., 0] = 255
    red[0, :, 3] = 255
    red[1, 0, 3] = 128
    Image.fromarray(red).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").tolist() == [[76, 76], [38, 0]]


def test_colour_is_kept_where_it_is_asked_for_and_there(tmp_path):
    """Arrays, files and palettes; transparency lies over black, grey keeps one value a pixel, also at 16 bits."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    Image.fromarray(colours).quantize(256).save(tmp_path / "b.png")
    clear = np.dstack([colours, np.zeros((6, 4), np.uint8)])
    for image in (colours, tmp_path / "a.png", tmp_path / "b.png"):
        assert np.array_equal(load_image(image, in_colour=True), colours)
        assert load_image(image).shape == (6, 4)
    assert load_image(clear, in_colour=True).tolist() == np.zeros((6, 4, 3)).tolist()
    boxed = load_image(colours, image_px=6, in_colour=True)
    assert np.array_equal(boxed[:, 1:5], colours)
    assert boxed[:, [0, 5]].max() == 0
    for grey in (RAMP, RAMP.astype(np.uint16), np.eye(4, dtype=bool).astype(np.uint8)):
        assert np.array_equal(load_image(grey, in_colour=True), load_image(grey))


def test_exif_orientation_is_applied_and_the_header_size_agrees(tmp_path):
    wide = np.zeros((8, 16), np.uint8)
    wide[:, :8] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to view
    Image.fromarray(wide).save(tmp_path / "a.jpg", exif=exif, quality=95)
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.shape == (16, 8)
    assert loaded[2, 4] > 150
    assert loaded[13, 4] < 50
    assert image_size_wh(tmp_path / "a.jpg") == (8, 16)


def test_arrays_pass_through_the_same_rules():
    assert np.array_equal(load_image(RAMP), RAMP)
    assert load_image(RAMP) is not RAMP
    assert load_image(np.full((2, 3, 3), 9, np.uint8)).tolist() == [[9] * 3] * 2
    assert load_image(np.array([[0, 1000], [500, 250]], np.uint16)).tolist() == [[0, 255], [128, 64]]


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2)), np.zeros((0, 2), np.uint8), np.zeros((2, 2, 2), np.uint8), np.zeros(4, np.uint8)]
)
def test_arrays_without_a_rule_are_refused(array):
    with pytest.raises(RequestError, match="An image array of shape"):
        load_image(array)


def test_letterbox_keeps_aspect_centres_and_moves_boxes_along():
    image = np.zeros((20, 40), np.uint8)
    image[5:10, 20:40] = 255
    square = letterbox(image, 80)
    assert square.shape == (80, 80)
    assert square[:20].max() == 0
    assert square[60:].max() == 0
    box = letterbox_box(Box(0.5, 0.25, 1.0, 0.5), image_hw=(20, 40), image_px=80)
    assert box == Box(0.5, 0.375, 1.0, 0.5)
    assert box_from_mask(square > 127) == box


def test_letterbox_odd_margin_goes_below_and_one_pixel_images_survive():
    assert load_image(np.full((3, 2), 9, np.uint8), image_px=3).tolist() == [[9, 9, 0]] * 3
    assert load_image(np.full((1, 4000), 9, np.uint8), image_px=8).shape == (8, 8)


@pytest.mark.parametrize("image_px", [0, -1, 8193])
def test_impossible_side_is_refused(image_px):
    with pytest.raises(RequestError, match=r"must lie in 1\.\.8192"):
        load_image(RAMP, image_px=image_px)


def test_missing_file_folder_and_foreign_content_are_refused_with_the_path(tmp_path):
    cases = {
        "none.png": "no such file",
        ".": "no such file",
        "a.gif": "neither PNG",
        "b.png": "neither PNG",
        "c.png": "LFS",
    }
    Image.fromarray(RAMP).save(tmp_path / "a.gif")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for name, why in cases.items():
        with pytest.raises(RequestError, match=why) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path / name) in caught.value.given


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_truncated_image_is_refused_at_every_length(tmp_path, form):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(stream, form)
    whole = stream.getvalue()
    for share in (0.02, 0.3, 0.5, 0.9):
        (tmp_path / "a").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(RequestError, match="'.*a'"):
            load_image(tmp_path / "a")


def test_the_flag_that_hides_truncation_is_refused(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RequestError, match="LOAD_TRUNCATED_IMAGES is on"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("side", [8200, 10_000, 20_000, 60_000])
def test_decompression_bomb_is_refused_before_decoding(tmp_path, side):
    """8,192 squared is our cap; Pillow alone warns at 10,000 squared and refuses at 13,400."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (tmp_path / "bomb.png").write_bytes(content + png_chunk(b"IEND", b""))
    with pytest.raises(RequestError, match=f"Above {MAX_PIXELS} pixels.*decompression bomb"):
        load_image(tmp_path / "bomb.png")


def test_dicom_rescale_window_and_scaling(tmp_path):
    stored = np.array([[0, 100, 200], [300, 400, 2000]], np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", stored, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=300, WindowWidth=400
    )
    loaded = load_image(path)
    # after rescale: -100 100 300 / 500 700 3900; the window 100..500 clips both ends
    assert loaded[0, 0] == loaded[0, 1] == 0
    assert loaded[1, 0] == loaded[1, 1] == loaded[1, 2] == 255
    assert 126 <= loaded[0, 2] <= 129


def test_dicom_monochrome1_is_inverted(tmp_path):
    stored = np.array([[0, 1000]], np.uint16)
    assert load_image(write_dicom(tmp_path / "a.dcm", stored)).tolist() == [[0, 255]]
    inverted = write_dicom(tmp_path / "b.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    assert load_image(inverted).tolist() == [[255, 0]]


def test_dicom_padding_does_not_eat_the_contrast(tmp_path):
    stored = np.array([[-2000, 0, 50, 100]], np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000)
    assert load_image(path).tolist() == [[0, 0, 128, 255]]


def test_dicom_rle_decodes(tmp_path):
    dataset = dicom_dataset(RAMP.astype(np.uint16) * 9)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert load_image(tmp_path / "a.dcm").max() == 255


def test_dicom_keeps_only_technical_tags_that_look_technical(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom dislikes what this file says, and so it should
        path = write_dicom(
            tmp_path / "a.dcm",
            RAMP.astype(np.uint16),
            Modality="CR",
            BodyPartExamined=CANARY,  # a name in a code field
            PixelSpacing=[0.5, 0.25],
            StudyDescription=CANARY,
            PatientID="4711",
        )
    assert CANARY in caplog.text
    caplog.clear()
    _, tags = read_dicom(path, path=path, max_pixels=MAX_PIXELS)
    assert tags["Modality"] == "CR"
    assert tags["PixelSpacing"] == (0.5, 0.25)
    assert (tags["Rows"], tags["Columns"]) == (20.0, 30.0)
    assert "BodyPartExamined" not in tags
    assert not {"PatientName", "PatientID", "StudyDescription"} & set(tags)
    assert CANARY not in repr(tags)
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"NumberOfFrames": 3}, "One is read here"),
        ({"Rows": 60_000, "Columns": 60_000}, "decompression bomb"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "cannot be decoded in full"),
        ({"Rows": 40}, "cannot be decoded in full"),  # fewer pixels than announced: a truncated file
    ],
)
def test_dicom_that_cannot_be_used_is_refused_without_patient_text(tmp_path, tags, why):
    path = write_dicom(tmp_path / "a.dcm", RAMP.astype(np.uint16), **tags)
    with pytest.raises(RequestError, match=why) as caught:
        load_image(path)
    assert CANARY not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("tail", [b"", b"garbage" * 50, b"\x08\x00\x05\x00CS\xff\xff" + b"x" * 90])
def test_garbage_dicom_is_refused_and_not_forced(tmp_path, tail):
    path = tmp_path / "a.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM" + tail)
    with pytest.raises(RequestError, match="cannot be decoded in full"):
        load_image(path)
    path.write_bytes(b"garbage without a preamble" * 20)
    with pytest.raises(RequestError, match="neither PNG, JPEG nor DICOM"):
        load_image(path)


def test_deflated_dicom_is_refused_because_its_size_is_hidden(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(
        b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99\0" + zlib.compress(b"\0" * 9999)
    )
    with pytest.raises(RequestError, match="deflated"):
        load_image(path)


def encoded_images():
    found = {}
    for form in ("PNG", "JPEG"):
        stream = io.BytesIO()
        Image.fromarray(RAMP).save(stream, form)
        found[form] = stream.getvalue()
    for name in ("dicom", "rle"):
        dataset = dicom_dataset(RAMP.astype(np.uint16), WindowCenter=100, WindowWidth=90)
        if name == "rle":
            dataset.compress(RLELossless)
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        found[name] = stream.getvalue()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PNG", "JPEG", "dicom", "rle"])
def test_damaged_bytes_give_an_image_or_a_request_error_never_another(tmp_path, name):
    """250 damaged files a format, the same ones on every run."""
    whole, rng, path = encoded_images()[name], random.Random(7), tmp_path / "a"
    refusals = []
    for trial in range(250):
        damaged = bytearray(whole[: rng.randrange(1, len(whole))] if trial % 3 == 0 else whole)
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            damaged[rng.randrange(min(len(damaged), 700))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert load_image(path).dtype == np.uint8
        except RequestError as err:
            refusals.append(str(err))
    assert len(refusals) > 50
    assert CANARY not in "".join(refusals)
