"""Questions in parquet shards, one image a row, as Hugging Face publishes them: columns image, question, answer.

Shards are `<split>-*.parquet` in the folder or in `data/`, or lie in `<split>/` or `default/<split>/`. Pixels stay in
them: the image of a case is the path ``<file>.parquet/<row>``, which `images.load_image` opens. Many rows repeat one
image; the SHA-256 of its bytes is the case id, and cases of different splits with equal bytes name the same path.
Patients are unknown.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightbox.errors import RequestError
from lightbox.readers.parquet import IMAGE_COLUMN
from lightbox.readers.rows import Gathering, RowError, make_question, shown, text_field
from lightbox.readers.stores import InnerPath
from lightbox.records import Case

PATTERNS = ("{}-*.parquet", "data/{}-*.parquet", "{}/*.parquet", "default/{}/*.parquet")
ROWS_AT_ONCE = 64  # a row holds its image, so larger batches cost memory and save nothing


def find_shards(root: Path, splits: Sequence[str], patterns: Sequence[str] = PATTERNS) -> list[tuple[Path, str]]:
    """(file, split) of the shards below `root`, in order; `{}` in a pattern stands for the split."""
    return [(file, name) for name in splits for pattern in patterns for file in sorted(root.glob(pattern.format(name)))]


def read_shards(
    shards: Sequence[tuple[Path, str]],
    rows: Gathering,
    *,
    title: str,
    id_column: str = "",
    kind_column: str = "",
    **fields: str,
) -> None:
    """Read every row of the shards.

    Args:
        shards: see `find_shards`.
        rows: where cases, problems and counts go; rows of a column that is not read are counted too.
        title: of the dataset, for messages.
        id_column: names the image of a row; "" takes a digest of its bytes.
        kind_column: the kind of a question; "" leaves it open.
        fields: of every case.

    Raises:
        RequestError: a shard is not parquet, or lacks a column.
    """
    columns = [name for name in (IMAGE_COLUMN, "question", "answer", id_column, kind_column) if name]
    places: dict[str, Path] = {}
    for file, split in shards:
        try:
            shard = _opened(file, columns, rows, title)
            number = 0
            for batch in shard.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                for row in _values(batch):
                    with rows.row(file, number + 1):
                        if isinstance(row, RowError):
                            raise row
                        digest = _digest(row[IMAGE_COLUMN])
                        # one path for equal images in two splits: so leakage between them shows
                        image = places.setdefault(digest, InnerPath(file, str(number)))
                        case_id = text_field(row, id_column) if id_column else digest
                        question = make_question(
                            "-".join(part for part in (split, file.stem, str(number)) if part),
                            text_field(row, "question"),
                            text_field(row, "answer"),
                            kind=text_field(row, kind_column, default="") if kind_column else "",
                        )
                        case = Case(id=case_id, images=(image,), split=split, **fields)
                        rows.add_once(case, question, id_field="row")
                    number += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
            raise RequestError(f"File '{file}'", f"It is not readable parquet: {err}", "Fetch the file again") from err


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | RowError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # parquet promises UTF-8 and nobody checks it; the other rows are good
        for place in range(batch.num_rows):
            try:
                yield batch.slice(place, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield RowError("row", "holds text that is not UTF-8")


def _digest(cell: object) -> str:
    content = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(content, bytes) or not content:
        raise RowError(IMAGE_COLUMN, f"is {shown(cell)}, not a struct with bytes")
    return hashlib.sha256(content).hexdigest()[:16]  # of the file's bytes: decoding 30,000 images takes minutes


def _opened(file: Path, columns: Sequence[str], rows: Gathering, title: str) -> pq.ParquetFile:
    if not file.name.isprintable():  # ids are made of it
        raise RequestError(f"File '{file}'", "Its name is no printable text", "Rename it")
    if not file.is_file():  # a pipe would be waited for
        raise RequestError(
            f"File '{file}'", "It is a folder, a pipe or a link that leads nowhere", "Fetch the file again"
        )
    shard = pq.ParquetFile(file)
    schema = shard.schema_arrow
    twice = sorted({name for name in columns if schema.names.count(name) > 1})
    if twice:  # a row would hold the last of them and say nothing
        raise RequestError(f"File '{file}'", f"The column {', '.join(twice)} stands twice", "Fetch the file again")
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise RequestError(
            f"File '{file}' has the columns {', '.join(schema.names)}",
            f"{title} needs {', '.join(missing)} too",
            f"Fetch the parquet release named in the card of {rows.dataset}",
        )
    times = [name for name in columns if _holds_time(schema.field(name).type)]
    if times:  # pyarrow holds times that Python cannot
        raise RequestError(
            f"File '{file}'", f"The column {', '.join(times)} holds times, no text", "Fetch the file again"
        )
    for name in schema.names:
        if name not in columns:
            rows.counts[f"rows_with_unread_column_{name}"] += shard.metadata.num_rows
    return shard


def _holds_time(kind: pa.DataType) -> bool:
    inner = [kind.value_type] if pa.types.is_dictionary(kind) else [kind.field(n).type for n in range(kind.num_fields)]
    return pa.types.is_temporal(kind) or any(_holds_time(each) for each in inner)
