"""ViTAR-16K as parquet: columns image, question, answer and bbox, one row a question, all of it for training.

`bbox` is a list of boxes, each left, top, right, bottom as fractions of the image: what the question is about. A row
whose boxes cannot be read is malformed as a whole, since it is there for them. Answers may be letters of options that
stand in the question's text, and are read as they are. Shards are `train-*.parquet`, see `shards`. Seen: the names of
the columns, one row as it is shown in the authors' next work, the number of shards. Unseen: a file. Patients are
unknown.
"""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lightbox.errors import RequestError
from lightbox.phantom.place_questions import BoxedQuestion
from lightbox.readers.boxes import edges_list, make_box
from lightbox.readers.rows import Gathering, RowError, shown
from lightbox.readers.shards import find_shards, read_shards
from lightbox.records import Box, Question

SPLITS = ("train",)
COLUMN = "bbox"


def read_cases(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the parquet files of ViTAR-16K.

    Args:
        root: folder with the files, in one of the layouts of `shards`.
        rows: where cases, problems and counts go; questions are `BoxedQuestion`s.
        split: "train", or None, which is the same.

    Raises:
        RequestError: no file, one that is not parquet, or one without the four columns.
    """
    files = find_shards(root, SPLITS)
    if not files:
        raise RequestError(
            f"ViTAR-16K at '{root}'",
            "There is no train-*.parquet in it, in data/ or in train/",
            "Name the folder that holds the parquet files with --root",
        )
    values = {f"{name}-{file.stem}-{row}": (file, row, value) for file, name in files for row, value in _column(file)}
    plain = Gathering(rows.dataset, rows.licence)
    read_shards(files, plain, title="ViTAR-16K")
    del plain.counts[f"rows_with_unread_column_{COLUMN}"]
    rows.problems += plain.problems
    rows.counts.update(plain.counts)
    for case in plain.result(root).cases:
        for question in case.questions:
            file, row, value = values[question.id]
            with rows.row(file, row + 1, counter="rows_with_a_question"):
                rows.add_once(case, _with_boxes(question, _boxes(value)), id_field="row")


def _column(file: Path) -> Iterator[tuple[int, object]]:
    """Row, counted from 0, and what its boxes are; the images stay in the file."""
    try:
        column = pq.read_table(file, columns=[COLUMN]).column(COLUMN)
        yield from enumerate(column.to_pylist())
    except (pa.ArrowException, OSError, KeyError, UnicodeError) as err:
        raise RequestError(
            f"File '{file}'", f"It is not parquet with a column {COLUMN}: {err}", "Fetch jline/ViTAR-16K"
        ) from err


def _boxes(value: object) -> tuple[Box, ...]:
    if not isinstance(value, list) or not value:
        raise RowError(COLUMN, f"is {shown(value)}, not a list of boxes")
    return tuple(make_box(edges_list(box, COLUMN), COLUMN, size_wh=None)[0] for box in value)


def _with_boxes(question: Question, boxes: tuple[Box, ...]) -> BoxedQuestion:
    return BoxedQuestion(**{own.name: getattr(question, own.name) for own in fields(Question)}, boxes=boxes)
