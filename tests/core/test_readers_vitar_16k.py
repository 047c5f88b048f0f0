"""ViTAR-16K: questions with boxes from parquet; a row with a bad box is set aside by file, row and field."""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightbox.cli.app import main
from lightbox.errors import RequestError
from lightbox.phantom.place_questions import BoxedQuestion
from lightbox.readers.all_sets import VITAR_16K, read_dataset
from lightbox.readers.dataset_cards import load_dataset_card
from lightbox.readers.images import load_image
from lightbox.records import Box

BOXES = pa.list_(pa.list_(pa.float64()))
SCHEMA = {
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "question": pa.string(),
    "answer": pa.string(),
    "bbox": BOXES,
}
BOX = [0.25, 0.5, 0.75, 1.0]


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def row(value=10, question="What lies near (0.5, 0.7)? A: cyst B: stone", answer="A", bbox=(BOX,)):
    return {"image": {"bytes": png(value), "path": None}, "question": question, "answer": answer, "bbox": bbox}


def write(root, *shards, schema=SCHEMA):
    (root / "data").mkdir()
    for number, rows in enumerate(shards):
        file = root / "data" / f"train-{number:05d}-of-{len(shards):05d}.parquet"
        rows = [{name: own[name] for name in schema} for own in rows]
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(schema.items()))), file)
    return root


def test_rows_of_one_image_are_one_case_and_each_question_has_its_boxes(tmp_path):
    two = [BOX, [0.0, 0.0, 0.1, 0.2]]
    write(tmp_path, [row(), row(20, bbox=two)], [row(10, "Is it round?", "No")])
    result = read_dataset("vitar_16k", tmp_path)
    first, second = result.cases
    assert result.problems == ()
    assert first.id == hashlib.sha256(png(10)).hexdigest()[:16]
    assert (first.split, first.licence) == ("train", "CC-BY-NC-4.0")
    assert first.questions == (
        BoxedQuestion("train-train-00000-of-00002-0", row()["question"], "A", boxes=(Box(*BOX),)),
        BoxedQuestion("train-train-00001-of-00002-0", "Is it round?", "no", ("yes", "no"), 1, boxes=(Box(*BOX),)),
    )
    assert second.questions[0].boxes == tuple(Box(*box) for box in two)
    assert load_image(second.images[0]).mean() == 20
    assert result.counts["rows"] == 3
    assert not [name for name in result.counts if "unread" in name]


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"bbox": []}, "bbox", "not a list of boxes"),
        ({"bbox": None}, "bbox", "not a list of boxes"),
        ({"bbox": [BOX, [0.1, 0.2, 0.3]]}, "bbox", "not a list of four numbers"),
        ({"bbox": [[0.5, 0.0, 0.2, 1.0]]}, "bbox", "inverted"),
        ({"bbox": [[0.0, 0.0, 40.0, 30.0]]}, "bbox", "pixels where fractions are declared"),
        ({"bbox": [[0.0, 0.0, float("nan"), 1.0]]}, "bbox", "nan"),
        ({"bbox": [[0.0, None, 1.0, 1.0]]}, "bbox", "None"),
        ({"answer": " "}, "answer", "empty"),
        ({"image": {"bytes": b"", "path": None}}, "image", "not a struct with bytes"),
    ],
)
def test_a_malformed_row_is_named_and_the_rest_is_read(tmp_path, change, field, reason):
    write(tmp_path, [row(), row(20, "Second?") | change, row(30, "Third?")])
    result = read_dataset("vitar_16k", tmp_path)
    (problem,) = result.problems
    assert (problem.row, problem.field) == ("2", field)
    assert problem.file.endswith("train-00000-of-00001.parquet")
    assert reason in problem.reason
    assert [case.questions[0].text for case in result.cases] == [row()["question"], "Third?"]
    assert result.counts["malformed_rows"] == 1


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"train-\*\.parquet"):
        read_dataset("vitar_16k", tmp_path)
    write(tmp_path, [row()], schema={name: kind for name, kind in SCHEMA.items() if name != "bbox"})
    with pytest.raises(RequestError, match="bbox"):
        read_dataset("vitar_16k", tmp_path)
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(RequestError, match="bbox"):
        read_dataset("vitar_16k", tmp_path)
    with pytest.raises(RequestError, match="Its splits are train"):
        read_dataset("vitar_16k", tmp_path, "test")


def test_the_command_line_checks_it_and_its_card_agrees(tmp_path, capsys):
    write(tmp_path, [row(), row(20, "Second?", bbox=[])])
    with pytest.raises(SystemExit) as stopped:
        main(["data", "validate", "vitar_16k", "--root", str(tmp_path)])
    assert stopped.value.code == 1
    assert "1 malformed rows" in capsys.readouterr().out
    card, (reader,) = load_dataset_card("vitar_16k"), VITAR_16K.values()
    assert (card.licence, card.title) == (reader.licence, reader.title)
