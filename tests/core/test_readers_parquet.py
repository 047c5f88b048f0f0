"""Questions in parquet shards: golden examples, odd and broken images, spoiled shards, repeated ids."""

import hashlib
import io
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.files import file_sha256
from lightbox.paper.samples import Split
from lightbox.readers import parquet, validate
from lightbox.readers.catalog import read
from lightbox.readers.images import load_image
from lightbox.records import Case, Question

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = {"image": IMAGE, "question": pa.string(), "answer": pa.string()}


def encoded(pixels, kind="PNG", mode=None):
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, kind) if mode is None else pixels.save(stream, kind)
    return stream.getvalue()


def grey(value):
    return encoded(np.full((4, 6), value, np.uint8))


def row(content, question="What is drawn?", answer="a square", **more):
    return {"image": {"bytes": content, "path": None}, "question": question, "answer": answer, **more}


def write(file, rows, columns=COLUMNS, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items()))), file, **options)
    return file


def test_vqa_rad_parquet_golden(tmp_path):
    train = write(
        tmp_path / "data" / "train-00000-of-00001-eb88.parquet",
        [row(grey(10), "Is it round?", "No"), row(grey(20)), row(grey(10))],
    )
    write(tmp_path / "data" / "test-00000-of-00001-e5bc.parquet", [row(grey(20), "Is it round?", "yes")])
    first, second, test = read("vqa_rad", tmp_path).cases
    name = "train-train-00000-of-00001-eb88"
    assert first == Case(
        id=hashlib.sha256(grey(10)).hexdigest()[:16],
        images=(train / "0",),
        split="train",
        licence="CC0-1.0",
        questions=(
            Question(f"{name}-0", "Is it round?", "no", ("yes", "no"), 1),
            Question(f"{name}-2", "What is drawn?", "a square"),
        ),
    )
    assert second.images == (train / "1",)
    assert (test.split, test.images) == ("test", second.images)  # equal bytes, so the leak between the splits shows
    assert load_image(test.images[0])[0, 0] == 20
    assert [case.split for case in read("vqa_rad", tmp_path, "test", form="parquet").cases] == ["test"]


def test_vqa_rad_of_another_form_is_not_taken_for_parquet(tmp_path):
    write(tmp_path / "train-0.parquet", [row(grey(1))])
    with pytest.raises(RequestError, match=r"form 'split'.*no data/\*\.parquet of that kind"):
        read("vqa_rad", tmp_path, form="split")


def test_slake_parquet_golden_and_what_it_lacks(tmp_path):
    file = write(tmp_path / "data" / "validation-00000-of-00001.parquet", [row(grey(5), "Is it CT?", "Yes")])
    (case,) = read("slake", tmp_path).cases
    assert (case.split, case.images, case.findings) == ("validation", (file / "0",), ())
    assert case.questions[0].options == ("yes", "no")
    for asked in ({"language": "zh"}, {"use_masks": True}):
        with pytest.raises(RequestError, match="holds the English questions and no masks"):
            read("slake", tmp_path, **asked)


KVASIR = COLUMNS | {"source": pa.string(), "img_id": pa.string()}


def test_kvasir_golden(tmp_path):
    file = write(
        tmp_path / "data" / "00000.parquet",
        [
            row(grey(1), "Are there polyps?", "Yes", source="Polyps", img_id="cl8k2"),
            row(grey(1), "Which colours?", "pink; red", source="Polyps", img_id="cl8k2"),
            row(grey(2), source=None, img_id="cl8k3"),
        ],
        KVASIR,
    )
    first, second = read("kvasir_vqa", tmp_path).cases
    assert first == Case(
        id="cl8k2",
        images=(file / "0",),
        modality="endoscopy",
        licence="CC-BY-NC-4.0",
        questions=(
            Question("00000-0", "Are there polyps?", "yes", ("yes", "no"), 0, kind="Polyps"),
            Question("00000-1", "Which colours?", "pink; red", kind="Polyps"),
        ),
    )
    assert (second.id, second.questions[0].kind) == ("cl8k3", "")


def test_kvasir_image_id_with_two_images_or_none_is_a_malformed_row(tmp_path):
    rows = [row(grey(1), img_id="a"), row(grey(2), img_id="a"), row(grey(3), img_id=None), row(grey(4), img_id="b")]
    write(tmp_path / "00000.parquet", rows, KVASIR)
    result = read("kvasir_vqa", tmp_path)
    assert [(p.row, p.field) for p in result.problems] == [("2", "image"), ("3", "img_id")]
    assert result.counts["questions"] == 2


def test_column_that_is_missing_is_named_and_one_that_is_not_read_is_counted(tmp_path):
    write(tmp_path / "00000.parquet", [row(grey(1))])
    with pytest.raises(RequestError, match=r"columns image, question, answer\. Kvasir-VQA needs img_id, source too"):
        read("kvasir_vqa", tmp_path)
    write(tmp_path / "train-0.parquet", [row(grey(1), note="n"), row(grey(1))], COLUMNS | {"note": pa.string()})
    result = read("path_vqa", tmp_path)
    assert result.counts["rows_with_unread_column_note"] == 2
    assert result.counts["questions"] == 2
    assert result.problems == ()


def test_shard_under_two_names_of_folders_repeats_its_ids(tmp_path):
    for folder in (tmp_path, tmp_path / "data"):
        write(folder / "train-0.parquet", [row(grey(1)), row(grey(2))])
    write(tmp_path / "data" / "train-1.parquet", [row(grey(1))])
    result = read("path_vqa", tmp_path)
    assert [(p.row, p.field) for p in result.problems] == [("1", "row"), ("2", "row")]
    assert result.problems[0].reason == ("is train-train-0-0, as in train-0.parquet, row 1; the first row is kept")
    assert result.counts["questions"] == 3


def cmyk(colour):
    return encoded(Image.new("CMYK", (8, 8), colour), "JPEG", "CMYK")


def test_images_of_16_bits_and_cmyk_are_decoded_and_counted(tmp_path):
    deep = encoded(np.array([[0, 1000], [2000, 4000]], np.uint16))
    write(tmp_path / "train-0.parquet", [row(grey(9)), row(deep), row(cmyk((0, 0, 0, 255))), row(cmyk((0, 0, 0, 0)))])
    _, sixteen, black, white = (case.images[0] for case in read("path_vqa", tmp_path).cases)
    assert load_image(sixteen).tolist() == [[0, 64], [128, 255]]
    assert load_image(black).max() < 5
    assert load_image(white).min() > 250
    found = validate.validate("path_vqa", tmp_path)
    assert found.is_ok
    assert (found.notes["cmyk_images"], found.notes["images_of_16_bits"]) == (2, 1)


def test_image_bytes_that_do_not_decode_are_unreadable_images_and_the_rest_is_read(tmp_path):
    rows = [row(grey(1)), row(b"no image at all"), row(grey(2)[:40]), row(encoded(np.zeros((4, 4), np.uint8), "TIFF"))]
    write(tmp_path / "train-0.parquet", rows)
    found = validate.validate("path_vqa", tmp_path)
    assert (found.questions, found.images, found.malformed) == (4, 4, 0)
    assert found.failures == ("3 unreadable images",)
    assert [key.rpartition("/")[2] for key, _ in found.unreadable] == ["1", "2", "3"]
    with pytest.raises(RequestError, match=r"Its content is neither PNG, JPEG nor DICOM\. Use a PNG"):
        load_image(tmp_path / "train-0.parquet" / "1")


def test_image_cell_that_is_text_makes_malformed_rows(tmp_path):
    table = pa.table({"image": ["a.png", "b.png"], "question": ["q", "q"], "answer": ["a", "a"]})
    pq.write_table(table, tmp_path / "train-0.parquet")
    with pytest.raises(RequestError, match="no readable row.*field 'image': is 'a.png', not a struct with bytes"):
        read("path_vqa", tmp_path)


def test_text_that_is_not_utf_8_makes_its_row_malformed(tmp_path):
    file = write(tmp_path / "train-0.parquet", [row(grey(1), "first"), row(grey(2), "secret"), row(grey(3), "third")])
    content = file.read_bytes()
    assert content.count(b"secret") == 1  # in the page; the statistics hold the first and last text in order
    file.write_bytes(content.replace(b"secret", b"\xb2ecret"))
    result = read("path_vqa", tmp_path)
    assert [(p.row, p.reason) for p in result.problems] == [("2", "holds text that is not UTF-8")]
    assert [case.questions[0].text for case in result.cases] == ["first", "third"]


def test_digest_of_an_inner_image_is_that_of_its_bytes_and_follows_the_file(tmp_path):
    file = write(tmp_path / "train-0.parquet", [row(grey(1))])
    (case,) = read("path_vqa", tmp_path).cases
    image = case.images[0]
    assert file_sha256(image) == hashlib.sha256(grey(1)).hexdigest()
    before = Split("train", [], [image], [case.id]).digest()
    write(file, [row(grey(2))])
    assert Split("train", [], [image], [case.id]).digest() != before
    with pytest.raises(io.UnsupportedOperation, match="only be read as bytes"):
        image.open()


@pytest.mark.slow
def test_fifteen_thousand_rows_validate_in_time_and_decode_each_image_once(tmp_path, monkeypatch):
    """The limit is 40 s; of the processor, since other work may wait beside it."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 96, 128), np.uint8)
    pictures = [encoded(picture, "JPEG") for picture in noise]
    for shard in range(3):
        rows = [row(pictures[i % 300], f"Question {i}?", "yes") for i in range(shard * 5000, shard * 5000 + 5000)]
        write(tmp_path / f"train-{shard}.parquet", rows, row_group_size=100)
    decoded, opened = [], []
    monkeypatch.setattr(validate, "load_pixels", lambda image: decoded.append(image) or load_image(image))
    read_metadata = pq.read_metadata
    monkeypatch.setattr(parquet.pq, "read_metadata", lambda file: opened.append(file) or read_metadata(file))
    start = time.process_time()
    found = validate.validate("path_vqa", tmp_path)
    assert time.process_time() - start < 40
    assert (found.questions, found.images, len(decoded), len(opened)) == (15_000, 300, 300, 1)
    assert found.is_ok
