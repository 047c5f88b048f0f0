"""Images inside other files: ``<file>.parquet/<row>``, read one row group at a time, and ``<file>.zip/<member>``.

`images.load_image` asks here whether a path leads into a file, and for the bytes that lie there.
"""

from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lightbox.errors import RequestError
from lightbox.readers.members import member_bytes, split_member

IMAGE_COLUMN = "image"


def is_row_path(path: Path) -> bool:
    """True for ``<file>.parquet/<row>`` and ``<file>.zip/<member>`` where the file exists."""
    is_row = path.parent.suffix == ".parquet" and path.name.isdecimal() and path.parent.is_file()
    return is_row or split_member(path) is not None


def image_bytes(path: Path) -> bytes:
    """The encoded image that a path leads to.

    In parquet it is the `bytes` of the struct column `image`, at the row (from 0) that the path names.

    Raises:
        RequestError: not parquet and no zip file, no such row or member, or no bytes there.
    """
    place = split_member(path)
    if place is not None:
        return member_bytes(*place)
    file, number = path.parent, int(path.name)
    try:
        mtime_ns = file.stat().st_mtime_ns
        group, offset = _locate(file, mtime_ns, number)
        cell = _group(file, mtime_ns, group)[offset].as_py()
    # a page may hold fewer rows than its group says: IndexError
    except (pa.ArrowException, OSError, KeyError, UnicodeError, OverflowError, IndexError) as err:
        raise RequestError(
            f"Image '{path}'", f"The parquet file cannot be read: {err}", "Fetch the file again"
        ) from err
    if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes) or not cell["bytes"]:
        raise RequestError(f"Image '{path}'", "The row holds no image bytes", "Leave the row out")
    return cell["bytes"]


def _locate(file: Path, mtime_ns: int, number: int) -> tuple[int, int]:
    start = 0
    for group, rows in enumerate(_group_sizes(file, mtime_ns)):
        if number < start + rows:
            return group, number - start
        start += rows
    raise RequestError(
        f"Image '{file}/{number}'", f"The file has {start} rows, counted from 0", "Read the dataset again"
    )


@lru_cache(maxsize=64)  # asked for every image, and a shard of 60,000 rows has hundreds of groups
def _group_sizes(file: Path, mtime_ns: int) -> tuple[int, ...]:
    metadata = pq.read_metadata(file)
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@lru_cache(maxsize=2)  # cases come in file order, so the last group serves the next rows
def _group(file: Path, mtime_ns: int, group: int) -> pa.ChunkedArray:
    """One row group's image column; the file's time is part of the key, so a replaced file is read anew."""
    return pq.ParquetFile(file).read_row_group(group, columns=[IMAGE_COLUMN]).column(IMAGE_COLUMN)
