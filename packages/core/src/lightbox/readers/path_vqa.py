"""PathVQA as parquet shards on Hugging Face, see `shards`. The release pickled by the authors is not read.

Seen: columns, splits and row counts of flaviagiammarino/path-vqa; that some of its images are CMYK JPEG.
"""

from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.rows import Gathering
from lightbox.readers.shards import find_shards, read_shards

SPLITS = ("train", "validation", "test")


def read_cases(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the parquet files of PathVQA.

    Args:
        root: folder with the files, in one of the layouts of `shards`.
        rows: where cases, problems and counts go.
        split: "train", "validation", "test", or None for all there are.

    Raises:
        RequestError: no file, one that is not parquet, or one without the three columns.
    """
    splits = SPLITS if split is None else (split,)
    files = find_shards(root, splits)
    if not files:
        raise RequestError(
            f"PathVQA at '{root}'",
            f"There is no {' or '.join(f'{name}-*.parquet' for name in splits)} in it, in data/ or in <split>/",
            "Name the folder that holds the parquet files with --root",
        )
    read_shards(files, rows, title="PathVQA")
