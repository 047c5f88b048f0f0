"""Images inside parquet files, addressed as ``<file>.parquet/<row>`` and read one row group at a time."""

from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lightbox.errors import RequestError

IMAGE_COLUMN = "image"


def is_row_path(path: Path) -> bool:
    """True for ``<file>.parquet/<row>`` where the file exists."""
    return path.parent.suffix == ".parquet" and path.name.isdecimal() and path.parent.is_file()


def image_bytes(path: Path) -> bytes:
    """The encoded image in the `bytes` of the struct column `image`, at the row (from 0) that the path names.

    Raises:
        RequestError: not parquet, no such row, or no bytes there.
    """
    file, number = path.parent, int(path.name)
    try:
        group, offset = _locate(file, number)
        cell = _group(file, file.stat().st_mtime_ns, group)[offset].as_py()
    except (pa.ArrowException, OSError, KeyError) as err:
        raise RequestError(
            f"Image '{path}'", f"The parquet file cannot be read: {err}", "Fetch the file again"
        ) from err
    if not isinstance(cell, dict) or not cell.get("bytes"):
        raise RequestError(f"Image '{path}'", "The row holds no image bytes", "Leave the row out")
    return cell["bytes"]


def _locate(file: Path, number: int) -> tuple[int, int]:
    metadata = pq.read_metadata(file)
    start = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if number < start + rows:
            return group, number - start
        start += rows
    raise RequestError(
        f"Image '{file}/{number}'", f"The file has {start} rows, counted from 0", "Read the dataset again"
    )


@lru_cache(maxsize=2)  # cases come in file order, so the last group serves the next rows
def _group(file: Path, mtime_ns: int, group: int) -> pa.ChunkedArray:
    """One row group's image column; the file's time is part of the key, so a replaced file is read anew."""
    return pq.ParquetFile(file).read_row_group(group, columns=[IMAGE_COLUMN]).column(IMAGE_COLUMN)
