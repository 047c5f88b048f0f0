"""ChestX-Det: 13 thoracic findings on 3,578 NIH radiographs, as JSON of the authors or as parquet of MedOtter.

JSON: `ChestX_Det_train.json` and `ChestX_Det_test.json`, lists of file_name, syms, boxes (left, top, right, bottom in
pixels), polygons (not read). The images, named 36199.png and so on, lie below the folder or not at all; boxes are then
measured by 1024 x 1024, the size of every NIH image. Parquet: `<split>-*.parquet` in the folder or in `data/` with
`image` (bytes) and `annotation_json` (an object with syms and boxes); other columns are not read. Every image was
looked at for every finding that occurs in what is read. Seen: the test JSON without images; code that names the two
columns. Unseen: a row of parquet. natealberti/ChestX-Det, which has masks and no boxes, is not read. The names say
nothing of the NIH image or patient.
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lightbox.errors import RequestError
from lightbox.readers.boxes import edges_list
from lightbox.readers.documents import parse_json, read_json
from lightbox.readers.findings import MarkedImage, Markings
from lightbox.readers.members import is_there
from lightbox.readers.rows import Gathering, RowError, as_row, shown, text_field
from lightbox.readers.shards import find_shards
from lightbox.readers.stores import InnerPath, tree_store

FILES = {"train": "ChestX_Det_train.json", "test": "ChestX_Det_test.json"}
SIZE_WH = (1024, 1024)
FIELDS = {"modality": "X-ray", "body_part": "chest"}


def read_cases(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the JSON files of a folder, or its parquet files where it has no JSON; `split` None reads both.

    Raises:
        RequestError: no file, or one that is neither JSON nor parquet of this kind.
    """
    splits = tuple(FILES) if split is None else (split,)
    files = [(root / FILES[name], name) for name in splits if is_there(root / FILES[name])]
    shards = [] if files else find_shards(root, splits)
    if not files and not shards:
        names = " or ".join(FILES[name] for name in splits)
        raise RequestError(f"ChestX-Det at '{root}'", f"There is no {names} and no parquet", "Name the folder with it")
    marks = Markings(rows, tree_store(root, rows) if files else None, **FIELDS)
    for file, name in files:
        for number, value in enumerate(read_json(file, list), start=1):
            with rows.row(file, number, counter="images"):
                row = as_row(value)
                image = marks.image(text_field(row, "file_name"), "file_name", split=name, size_wh=SIZE_WH)
                _mark_all(row, image, marks, rows, file, str(number))
    for file, name in shards:
        _read_shard(file, name, marks, rows)
    marks.finish(root)


def _mark_all(
    row: Mapping[str, object], image: MarkedImage, marks: Markings, rows: Gathering, file: Path, number: str
) -> None:
    """Mark the boxes of one image, each a row of its own, so that one bad box costs no other."""
    names, boxes = row.get("syms"), row.get("boxes")
    with image.row():
        if not isinstance(names, list) or not isinstance(boxes, list) or len(names) != len(boxes):
            raise RowError("boxes", f"is {shown(boxes)} with syms {shown(names)}, not two lists of one length")
    for place, (name, xyxy) in enumerate(zip(names, boxes, strict=True), start=1):
        with rows.row(file, f"{number}, box {place}", counter="box_rows"), image.row():
            marks.add(image, text_field({"syms": name}, "syms"), edges_list(xyxy, "boxes"), "boxes")


def _read_shard(file: Path, split: str, marks: Markings, rows: Gathering) -> None:
    try:
        # the images stay in the file, hundreds of megabytes a shard
        column = pq.read_table(file, columns=["annotation_json"]).column(0)
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        values = (column.cast(pa.large_binary()) if is_text else column).to_pylist()
    except (pa.ArrowException, OSError, UnicodeError) as err:
        raise RequestError(
            f"File '{file}'", f"It is not parquet with annotation_json: {err}", "Fetch MedOtter/ChestX-Det"
        ) from err
    for number, value in enumerate(values, start=1):
        with rows.row(file, number, counter="images"):
            try:
                row = as_row(parse_json(value.decode("utf-8")) if isinstance(value, bytes) else value)
            except ValueError as err:
                raise RowError("annotation_json", f"is not JSON: {err}") from err
            name = f"{file.stem}-{number - 1}"
            path = InnerPath(file, str(number - 1))
            image = marks.image(name, "image", split=split, size_wh=SIZE_WH, images=(path,))
            _mark_all(row, image, marks, rows, file, str(number))
